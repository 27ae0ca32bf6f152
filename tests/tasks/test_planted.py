"""Planted rows against what was asked for: sums of directions, frequencies, hierarchies, correlations."""

import jax
import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.tasks import planted
from tests.tiny import check_close

N = 20_000


def draw(n=N, **how):
    truth = planted(jax.random.key(0), **{**dict(n_directions=24, width=6, active=2.0), **how})
    return truth, {name: np.asarray(rows, np.float64) for name, rows in truth.sample(jax.random.key(1), n).items()}


def check_frequencies(truth, amounts):
    rates, wanted = (amounts > 0).mean(0), np.asarray(truth.frequencies, np.float64)
    assert (np.abs(rates - wanted) < 5 * np.sqrt(wanted / N)).all()


def test_rows_are_sums_of_directions_of_length_one():
    truth, rows = draw()
    check_close(rows["x"], rows["amounts"] @ np.asarray(truth.directions, np.float64))
    check_close(np.linalg.norm(truth.directions, axis=1), np.ones(24))
    some = rows["amounts"][rows["amounts"] > 0]
    assert some.min() >= 0.5 and abs(some.mean() - 1.0) < 0.02


@pytest.mark.parametrize("how", [{}, {"frequencies": "zipf"}, {"group_size": 3, "correlation": 0.6}])
def test_frequencies(how):
    truth, rows = draw(**how)
    check_frequencies(truth, rows["amounts"])
    assert float(truth.frequencies.sum()) == pytest.approx(2.0, rel=1e-5)
    if how.get("frequencies") == "zipf":
        assert float(truth.frequencies[0] / truth.frequencies[9]) == pytest.approx(10.0, rel=1e-4)


def test_a_child_is_active_only_where_its_parent_is():
    parents = [-1] * 8 + list(range(8)) + list(range(8, 16))  # three levels
    truth, rows = draw(parents=parents, given_parent=0.5)
    check_frequencies(truth, rows["amounts"])
    on = rows["amounts"] > 0
    assert on[:, 8:].any() and not (on[:, 8:] & ~on[:, parents[8:]]).any()
    assert on[:, 8:16][on[:, :8]].mean() == pytest.approx(0.5, abs=0.02)


def test_groups_are_correlated_and_others_are_not():
    _, rows = draw(group_size=2, correlation=0.8)
    table = np.corrcoef((rows["amounts"] > 0).T)
    neighbors = table[np.arange(0, 24, 2), np.arange(1, 24, 2)]
    assert (neighbors > 0.3).all()
    np.fill_diagonal(table, 0)
    table[np.arange(0, 24, 2), np.arange(1, 24, 2)] = table[np.arange(1, 24, 2), np.arange(0, 24, 2)] = 0
    assert np.abs(table).max() < 0.06


def test_every_fault_is_told():
    with pytest.raises(ji.InputError) as error:
        planted(
            jax.random.key(0),
            n_directions=4,
            width=2,
            active=0.0,
            parents=[-1, 1, 0, 0],
            correlation=0.5,
            frequencies="even",
        )
    for part in ("active=0.0", "directions [1]", "group_size", "'even'"):
        assert part in str(error.value)
    with pytest.raises(ji.InputError, match="direction 0 would be active with probability"):
        planted(jax.random.key(0), n_directions=4, width=2, active=3.0, frequencies="zipf")

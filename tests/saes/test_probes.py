"""Sparse probes and absorption, on dictionaries whose answers are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.saes import SAE, ReLU, SAEConfig, absorption, recovery, sparse_probes
from jaxinterp.saes._absorption import unrelated
from jaxinterp.saes._probes import logistic
from jaxinterp.tasks import planted

TRUTH = planted(jax.random.key(0), n_directions=8, width=8, active=2.5, parents=[-1] * 6 + [0, 1], given_parent=0.5)
ROWS, OTHERS = (TRUTH.sample(jax.random.key(i), 2048) for i in (1, 2))


def dictionary(directions, encoder=None):
    """Reads each direction off exactly (they are independent), less 0.25."""
    inverse = jnp.linalg.pinv(TRUTH.directions).T if encoder is None else encoder
    params = dict(W_enc=inverse, b_enc=jnp.full(8, -0.25), W_dec=directions, b_dec=jnp.zeros(8))
    config = SAEConfig(architecture=ReLU(), d_in=8, n_latents=8)
    return SAE(params=params, scales=dict(input=jnp.float32(1), target=jnp.float32(1)), config=config)


def test_the_logistic_regression_is_at_its_least():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(200, 3)), rng.random(200) < 0.2
    w = np.asarray(logistic(jnp.asarray(x, jnp.float32), jnp.asarray(y), 0.01), np.float64)
    ones = np.concatenate([x, np.ones((200, 1))], axis=1)
    weight = np.where(y, 0.5 / y.mean(), 0.5 / (1 - y.mean())) / 200
    gradient = ones.T @ (weight * (1 / (1 + np.exp(-ones @ w)) - y)) + 0.01 * w * [1, 1, 1, 0]
    assert np.abs(gradient).max() < 1e-5


def test_one_latent_tells_its_label_and_one_coordinate_does_not():
    got = sparse_probes(
        dictionary(TRUTH.directions), ROWS["x"], ROWS["amounts"] > 0, (OTHERS["x"], OTHERS["amounts"] > 0), sizes=(1,)
    )
    assert np.asarray(got.latents).min() > 0.99
    assert np.asarray(got.chosen)[:, 0].tolist() == list(range(8))
    assert 0.5 < np.asarray(got.coordinates)[:, 0].mean() < 0.9 * np.asarray(got.dense).mean()
    assert got.dataset().attrs["chance"] == 0.5
    with pytest.raises(ji.InputError, match="one class only"):
        sparse_probes(
            dictionary(TRUTH.directions), ROWS["x"], ROWS["amounts"] >= 0, (OTHERS["x"], OTHERS["amounts"] > 0)
        )


def test_a_parent_that_its_children_absorbed():
    """Latents 6 and 7 stand for child and parent at once, and the parents' latents are silent there."""
    plain = dictionary(TRUTH.directions)
    found = recovery(plain, TRUTH.directions)
    assert np.asarray(found.latents).tolist() == list(range(8))
    none = absorption(plain, TRUTH, found, ROWS["x"], ROWS["amounts"]).summary()
    assert none["missed_with"] == none["absorbed"] == none["missed_without"] == 0.0
    inverse = jnp.linalg.pinv(TRUTH.directions).T
    both = TRUTH.directions.at[6].add(2.0 * TRUTH.directions[0]).at[7].add(2.0 * TRUTH.directions[1])
    quiet = inverse.at[0].add(-9.0 * inverse[6]).at[1].add(-9.0 * inverse[7])
    absorbed = absorption(dictionary(both, quiet), TRUTH, found, ROWS["x"], ROWS["amounts"])
    amounts = np.asarray(ROWS["amounts"])
    for i, (child, parent) in enumerate(((6, 0), (7, 1))):
        on = (amounts[:, child] > 0) & (amounts[:, parent] > 0)
        written = np.maximum(amounts[:, child] - 0.25, 0) * float(both[child] @ TRUTH.directions[parent])
        silent = amounts[:, parent] - 9 * amounts[:, child] - 0.25 <= 0
        want = (on & silent & (written >= 0.5 * amounts[:, parent])).sum() / on.sum()
        assert absorbed.absorbed[i] == pytest.approx(want, abs=2e-3)
        assert absorbed.missed_with[i] == pytest.approx((on & silent).sum() / on.sum(), abs=2e-3)
    summary = absorbed.summary()
    assert summary["absorbed"] > 0.7 > 0.2 > summary["elsewhere"] and summary["missed_without"] == 0.0
    assert summary["tilt"] > 0.5
    scaled = SAEConfig(
        architecture=ReLU(), d_in=8, n_latents=8, normalize="sqrt_d"
    )  # the same function, otherwise said
    one = dictionary(both, quiet)
    params = {**one.params, "b_enc": 4.0 * one.params["b_enc"]}
    same = SAE(params=params, scales=dict(input=jnp.float32(4), target=jnp.float32(4)), config=scaled)
    for name, value in absorption(same, TRUTH, found, ROWS["x"], ROWS["amounts"]).summary().items():
        assert value == pytest.approx(summary[name], abs=1e-3), name
    with pytest.raises(ji.InputError, match="no parents"):
        flat = planted(jax.random.key(0), n_directions=8, width=8)
        absorption(plain, flat, found, ROWS["x"], ROWS["amounts"])


@pytest.mark.parametrize(
    ("child", "parents", "want"),
    [
        (6, [-1] * 6 + [0, 1], 1),
        (7, [-1] * 6 + [0, 1], 0),
        (1, [-1, 0, 1, -1], 3),
        (3, [-1, 0, 1, 2], -1),
        (1, [-1, 0, -1, 2], 2),
    ],
)
def test_the_control_is_not_on_the_line_of_the_child(child, parents, want):
    assert unrelated(child, np.array(parents)) == want

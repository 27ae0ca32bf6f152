import math

import numpy as np
import pytest

from jaxinterp import InputError
from jaxinterp.audit import Share, bootstrap_mean, wilson


@pytest.mark.parametrize(
    ("count", "total", "low", "high"),  # by the formula in arbitrary precision
    [(9, 10, 0.5958499732, 0.9821237869), (0, 20, 0.0, 0.1611251581), (50, 100, 0.4038315304, 0.5961684696)],
)
def test_wilson_known_values(count, total, low, high):
    ends = wilson(count, total)
    assert ends.low == pytest.approx(low, abs=1e-9) and ends.high == pytest.approx(high, abs=1e-9)


def test_wilson_solves_the_score_equation_and_is_symmetric():
    z = 1.959963984540054
    for count, total in ((3, 11), (7, 8), (1, 200)):
        ends = wilson(count, total)
        for end in (ends.low, ends.high):
            assert abs(count / total - end) == pytest.approx(z * math.sqrt(end * (1 - end) / total), rel=1e-9)
        mirrored = wilson(total - count, total)
        assert mirrored.low == pytest.approx(1 - ends.high) and mirrored.high == pytest.approx(1 - ends.low)


def test_no_trials_say_nothing_and_impossible_counts_are_errors():
    assert (wilson(0, 0).low, wilson(0, 0).high) == (0.0, 1.0)
    assert str(Share(count=0, total=0)) == "0 of 0" and math.isnan(Share(count=0, total=0).fraction)
    for count, total in ((3, 2), (-1, 2)):
        with pytest.raises(InputError, match="legal counts"):
            wilson(count, total)


def test_the_bootstrap_is_near_the_normal_interval_and_repeats():
    values = np.random.default_rng(0).normal(3.0, 2.0, size=400)
    ends = bootstrap_mean(values)
    half = 1.96 * values.std() / 20
    assert ends.estimate == pytest.approx(values.mean())
    assert ends.low == pytest.approx(values.mean() - half, abs=0.03)
    assert ends.high == pytest.approx(values.mean() + half, abs=0.03)
    assert bootstrap_mean(values) == ends != bootstrap_mean(values, seed=1)
    with pytest.raises(InputError, match="one finite number"):
        bootstrap_mean([1.0, math.nan])

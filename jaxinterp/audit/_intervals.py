"""Intervals for counts and means."""

import dataclasses
import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from jaxinterp._errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate with the ends of its confidence interval."""

    estimate: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Share:
    """A count of successes among trials, with its 95 % Wilson interval; undefined (NaN) without trials."""

    count: int
    total: int

    @property
    def fraction(self) -> float:
        """The count over the total; NaN of none."""
        return self.count / self.total if self.total else math.nan

    @property
    def interval(self) -> Interval:
        """The fraction with its interval."""
        return wilson(self.count, self.total)

    def __str__(self) -> str:
        if not self.total:
            return "0 of 0"
        ends = self.interval
        return f"{self.count} of {self.total} ({self.fraction:.0%}, 95 % interval {ends.low:.0%} to {ends.high:.0%})"


def wilson(count: int, total: int, *, confidence: float = 0.95) -> Interval:
    """Wilson's score interval for a proportion, which also holds for few trials and for shares near 0 and 1.

    Args:
        count: successes.
        total: trials; 0 gives the interval from 0 to 1.
        confidence: such as 0.95.

    Returns:
        Fractions.

    Raises:
        InputError: a count outside 0..total, or a confidence outside (0, 1).

    Example:
        >>> ends = wilson(9, 10)
        >>> round(ends.low, 3), round(ends.high, 3)
        (0.596, 0.982)

    Source: Wilson 1927, Journal of the American Statistical Association 22.
    """
    if not 0 <= count <= total:
        raise InputError(f"{count} successes of {total} trials is not possible: legal counts are 0 to {total}.")
    if not 0 < confidence < 1:
        raise InputError(f"confidence={confidence}: give a number between 0 and 1, such as 0.95.")
    if total == 0:
        return Interval(estimate=math.nan, low=0.0, high=1.0)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = count / total
    center = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total)) / (1 + z * z / total)
    return Interval(estimate=share, low=max(center - half, 0.0), high=min(center + half, 1.0))


def bootstrap_mean(
    values: Sequence[float] | np.ndarray, *, seed: int = 0, confidence: float = 0.95, samples: int = 4000
) -> Interval:
    """The mean of independent values with a percentile bootstrap interval.

    Args:
        values: one number for each independent unit (a prompt, a pair of prompts).
        seed: of the resampling; the same seed gives the same interval.
        confidence: such as 0.95.
        samples: how many resamples.

    Returns:
        In the values' unit.

    Raises:
        InputError: no values, or values that are not finite.

    Example:
        >>> ends = bootstrap_mean([0.0, 1.0, 1.0, 1.0])
        >>> ends.estimate, ends.low < 0.75 < ends.high
        (0.75, True)

    Source: Efron 1979, Annals of Statistics 7.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not array.size or not np.isfinite(array).all():
        raise InputError(f"a mean with an interval needs one finite number for each unit; got shape {array.shape}.")
    random = np.random.default_rng(seed)
    means = array[random.integers(0, array.size, size=(samples, array.size))].mean(axis=1)
    low, high = np.quantile(means, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return Interval(estimate=float(array.mean()), low=float(low), high=float(high))

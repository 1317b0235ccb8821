"""Intervals, paired comparisons and trend tests over seeds; for single runs, what their test images can say.

Every result carries its n, and every p the smallest p that n can reach: with few seeds a test cannot come out
significant whatever the data. Numbers in points of accuracy (per cent) unless a docstring says otherwise.
"""

import itertools
import math
import typing

import numpy as np
import pandas as pd
import scipy.stats

LEVEL = 0.95
SAME = 1e-6  # points: differences of accuracies that are no further apart differ by rounding alone


class Mean(typing.NamedTuple):
    """A mean over seeds and half the width of its interval; `half` is NaN for one seed, which shows no spread."""

    n: int
    mean: float
    half: float


class Paired(typing.NamedTuple):
    """A mean difference over common seeds, half its interval, the sign-flip p and the smallest p that n allows."""

    n: int
    mean: float
    half: float
    p: float
    smallest_p: float


class Trend(typing.NamedTuple):
    """The one-sided p of Page's L for a predicted order, and the smallest p of that many seeds and levels."""

    n: int
    levels: int
    p: float
    smallest_p: float


def mean(values) -> Mean:
    """Mean of `values` (n,) and half of its 95 % Student interval.

    It covers the mean over all seeds in 95 % of studies, as far as seeds vary normally. A bootstrap of 5 values is too
    narrow (its 95 % interval covers some 83 %: tests/test_stats.py), so it is not used for so few. Of one value, or of
    values that are all the same, there is no interval: no spread was seen, which is not to say that there is none.
    """
    values = _finite(values)
    n = len(values)
    if n < 2 or np.ptp(values) < SAME:
        return Mean(n, float(values.mean()) if n else math.nan, math.nan)
    half = scipy.stats.t.ppf((1 + LEVEL) / 2, n - 1) * values.std(ddof=1) / math.sqrt(n)
    return Mean(n, float(values.mean()), float(half))


def paired(first: dict, second: dict) -> Paired:
    """`second - first` over the seeds that both have; each is {seed: accuracy}.

    Common seeds share the split, so what a seed does to both cancels. The p is that of flipping the sign of each
    difference, exact for up to 13 seeds: it asks whether the differences lie around zero. It cannot be below
    2 / 2**n, so fewer than 6 seeds never reach 0.05; with one seed there is no p and no interval.
    """
    differences = _finite([second[seed] - first[seed] for seed in sorted(set(first) & set(second))])
    n, average, half = mean(differences)
    if n < 2:
        return Paired(n, average, half, math.nan, math.nan)
    flip = scipy.stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=9999, rng=np.random.default_rng(0)
    )
    return Paired(n, average, half, float(flip.pvalue), 2.0 ** (1 - n))


def wider(half: float, n: int, tests: int) -> float:
    """Half of an interval of n values, widened (Bonferroni) so that all of so many tests err together in 5 %."""
    limit, wide = (scipy.stats.t.ppf(1 - (1 - LEVEL) / 2 / each, n - 1) for each in (1, tests))
    return half * float(wide / limit)


def apart_by_chance(groups: list[list[float]]) -> tuple[float, int]:
    """How far apart two single values of one group lie at most, in 95 % of pairs, and on how many degrees of freedom.

    The spread is pooled over the groups (the seeds of one setting, then of another), as if it were the same in all.
    """
    values = [_finite(group) for group in groups if group]
    free = sum(len(group) - 1 for group in values)
    if not free:
        return math.nan, 0
    variance = sum(((group - group.mean()) ** 2).sum() for group in values) / free
    return float(scipy.stats.t.ppf((1 + LEVEL) / 2, free) * math.sqrt(2 * variance)), free


def deviation_limits(deviation: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a standard deviation that n normal values gave."""
    tails = scipy.stats.chi2.ppf([(1 + LEVEL) / 2, (1 - LEVEL) / 2], n - 1)
    low, high = deviation * np.sqrt((n - 1) / tails)
    return float(low), float(high)


def seeds_for(step: float, spread: float, power: float = 0.8) -> int:
    """Paired seeds with which a two-sided t-test at 5 % finds a true difference `step` with this power.

    spread: the standard deviation of the paired differences, in the same unit.
    """

    def found(n: int) -> float:
        limit = scipy.stats.t.ppf((1 + LEVEL) / 2, n - 1)
        return scipy.stats.nct.sf(limit, n - 1, abs(step) / spread * math.sqrt(n))

    return next(n for n in itertools.count(2) if found(n) >= power)


def trend(table) -> Trend:
    """Page's test that each row of `table` (seeds, levels) rises from left to right, against no order at all.

    It shows an order across levels, not that each step of it is real. A perfect order of k levels in n rows has
    probability (1/k!)^n by chance. One seed, or fewer than three levels, have no trend.
    """
    table = np.asarray(table, dtype=float)
    n, levels = table.shape
    if n < 2 or levels < 3:
        return Trend(n, levels, math.nan, math.nan)
    return Trend(n, levels, float(scipy.stats.page_trend_test(table).pvalue), math.factorial(levels) ** -float(n))


def binomial_error(accuracy: float, images: int) -> float:
    """Standard error (points) of one network's `accuracy` (%) on `images` test images.

    What other test images of the same kind would change. It holds nothing of what another seed would.
    """
    share = accuracy / 100
    return 100 * math.sqrt(share * (1 - share) / images)


def mcnemar(first, second, labels) -> float:
    """The two-sided p of the exact McNemar test of two networks' predictions against `labels`, each (n,).

    It compares these two trained networks on images of this kind; it cannot say that the same two settings trained
    with other seeds would differ.
    """
    first, second, labels = (np.asarray(values) for values in (first, second, labels))
    if not first.shape == second.shape == labels.shape:
        raise ValueError(f"predictions {first.shape}, {second.shape} and labels {labels.shape} differ in number")
    right, also = first == labels, second == labels
    only_first, only_second = int(np.sum(right & ~also)), int(np.sum(also & ~right))
    discordant = only_first + only_second
    return float(scipy.stats.binomtest(only_first, discordant).pvalue) if discordant else 1.0


def holm(p: pd.Series) -> pd.Series:
    """p-values of several tests made at once, adjusted by Holm's method; NaN where a test was not made."""
    ordered = p.dropna().sort_values()
    return (ordered * np.arange(len(ordered), 0, -1)).cummax().clip(upper=1).reindex(p.index)


def _finite(values) -> np.ndarray:
    """`values` as floats; a NaN among them would silently become the answer."""
    values = np.asarray(values, dtype=float)
    if not np.isfinite(values).all():
        raise ValueError("a value is not finite")
    return values

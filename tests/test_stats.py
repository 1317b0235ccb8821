"""Each statistic against a value worked out another way."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from lib.report import stats


def test_mean_is_students_interval():
    values = [90.1, 89.7, 90.4, 89.9, 90.2]
    result = stats.mean(values)
    low, high = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert result == (5, pytest.approx(np.mean(values)), pytest.approx((high - low) / 2))


def test_the_seeds_that_a_step_needs_find_it_as_often_as_they_should():
    """By simulation: the t-test of that many seeds, and of one fewer."""
    n = stats.seeds_for(0.5, 0.4, power=0.8)
    draws = np.random.default_rng(0).normal(0.5, 0.4, (20_000, n))
    found = [(scipy.stats.ttest_1samp(draws[:, :size], 0, axis=1).pvalue < 0.05).mean() for size in (n, n - 1)]
    assert found[0] > 0.79 and found[1] < 0.81


def test_one_seed_has_no_interval_and_none_no_mean():
    assert stats.mean([88.0])[:2] == (1, 88.0) and math.isnan(stats.mean([88.0]).half)
    assert stats.mean([]).n == 0 and math.isnan(stats.mean([]).mean)


def test_nan_is_refused():
    with pytest.raises(ValueError, match="not finite"):
        stats.mean([1.0, math.nan])


@pytest.mark.parametrize("values", [[0.0, 0.0], [80.21 - 79.69, 81.21 - 80.69, 0.52]])
def test_values_that_are_all_the_same_have_a_mean_and_no_interval_of_zero_width(values):
    n, average, half = stats.mean(values)
    assert n == len(values) and average == pytest.approx(values[0]) and np.isnan(half)


def test_students_interval_covers_where_a_bootstrap_of_five_does_not():
    draws = np.random.default_rng(1).normal(size=(400, 5))
    student = [abs(result.mean) <= result.half for result in map(stats.mean, draws)]
    boot = scipy.stats.bootstrap((draws,), np.mean, axis=1, method="percentile", n_resamples=500, rng=2)
    low, high = boot.confidence_interval
    assert 0.92 < np.mean(student) < 0.98
    assert np.mean((low <= 0) & (high >= 0)) < 0.88


@pytest.mark.parametrize(("n", "smallest"), [(2, 0.5), (3, 0.25), (5, 0.0625), (6, 0.03125)])
def test_smallest_sign_flip_p_is_reached_and_never_passed(n, smallest):
    result = stats.paired(dict.fromkeys(range(n), 80.0), {seed: 81 + seed / 10 for seed in range(n)})
    assert (result.n, result.p, result.smallest_p) == (n, pytest.approx(smallest), pytest.approx(smallest))


def test_paired_counts_all_sign_flips_over_common_seeds():
    first, second = {0: 80.0, 1: 81.0, 2: 79.0, 3: 80.0, 9: 1.0}, {0: 80.9, 1: 81.2, 2: 78.7, 3: 80.5, 8: 99.0}
    differences = np.array([0.9, 0.2, -0.3, 0.5])
    flipped = [np.mean(differences * signs) for signs in itertools.product((1, -1), repeat=4)]
    expected = np.mean(np.abs(flipped) >= abs(differences.mean()) - 1e-12)
    result = stats.paired(first, second)
    assert result.n == 4 and result.mean == pytest.approx(0.325) and result.p == pytest.approx(expected)


def test_one_common_seed_has_a_difference_only():
    result = stats.paired({0: 80.0}, {0: 81.5, 1: 3.0})
    assert result[:2] == (1, 1.5) and all(math.isnan(value) for value in result[2:])
    assert stats.paired({0: 1.0}, {1: 2.0}).n == 0


def test_trend_over_seeds_is_pages():
    table = np.random.default_rng(0).normal(size=(5, 4)) + np.arange(4)
    result, page = stats.trend(table), scipy.stats.page_trend_test(table)
    assert result.p == page.pvalue and result.smallest_p == 24.0**-5
    assert stats.trend([[1, 2, 3]] * 3).p == pytest.approx(1 / 6**3)
    assert math.isnan(stats.trend([[1, 2]] * 3).p) and math.isnan(stats.trend([[1, 2, 3]]).p)  # two levels; one seed


def test_binomial_error_at_89_per_cent():
    assert stats.binomial_error(89, 10_000) == pytest.approx(0.31, abs=0.005)


def test_mcnemar_is_the_sign_test_of_discordant_images():
    labels = np.zeros(100, np.uint8)
    first, second = labels.copy(), labels.copy()
    first[:15], second[10:12] = 1, 1
    assert stats.mcnemar(first, second, labels) == pytest.approx(2 * 0.5**13)  # 13 images, all for one of them
    assert stats.mcnemar(first, first, labels) == 1.0
    with pytest.raises(ValueError, match="differ in number"):
        stats.mcnemar(first[:5], second, labels)


def test_holm_by_hand():
    p = pd.Series([0.03, np.nan, 0.01, 0.04])
    assert stats.holm(p).tolist()[2] == pytest.approx(0.03)
    assert stats.holm(p).tolist()[0] == pytest.approx(0.06)
    assert stats.holm(p).tolist()[3] == pytest.approx(0.06)  # never below a smaller one's
    assert np.isnan(stats.holm(p)[1])


def test_a_spread_is_pooled_over_groups():
    groups = [[80.0, 81.0, 82.0], [90.0, 91.0, 92.0], [], [70.0]]
    half, free = stats.apart_by_chance(groups)
    assert free == 4 and half == pytest.approx(scipy.stats.t.ppf(0.975, 4) * 2**0.5)
    assert stats.apart_by_chance([[1.0], []])[1] == 0


def test_two_values_of_one_group_are_that_near_in_95_of_100_pairs():
    random = np.random.default_rng(0)
    near = []
    for _ in range(4000):
        half, _ = stats.apart_by_chance(random.normal(size=(4, 3)).tolist())
        near.append(abs(np.diff(random.normal(size=2))[0]) <= half)
    assert np.mean(near) == pytest.approx(0.95, abs=0.01)


def test_the_limits_of_a_deviation_hold_it_in_95_of_100_samples():
    random = np.random.default_rng(1)
    limits = [stats.deviation_limits(sample.std(ddof=1), 5) for sample in random.normal(size=(4000, 5))]
    assert np.mean([low <= 1 <= high for low, high in limits]) == pytest.approx(0.95, abs=0.01)


def test_intervals_of_many_tests_err_together_in_5_of_100_studies():
    random = np.random.default_rng(2)
    missed = 0
    for study in random.normal(size=(2000, 3, 5)):
        found = [stats.mean(values) for values in study]
        missed += any(abs(each.mean) > stats.wider(each.half, each.n, 3) for each in found)
    assert missed / 2000 == pytest.approx(0.05, abs=0.015)


def test_holm_never_says_more_than_one():
    assert stats.holm(pd.Series([0.6, 0.9])).tolist() == [1.0, 1.0]

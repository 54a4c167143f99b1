"""Statistics against scipy called one test at a time, loops, closed forms and hand counts."""

import itertools

import numpy as np
import pytest
from scipy import stats as scipy_stats

from touchstone_jax import stats

NAN = float("nan")


def _scores(methods: int, cases: int, *, gaps: float = 0.0, digits: int = 9, seed: int = 0):
    rng = np.random.default_rng(seed)
    table = np.round(rng.beta(6, 2, (methods, cases)) + 0.02 * np.arange(methods)[:, None], digits)
    table[rng.random(table.shape) < gaps] = NAN
    return table


# ---------------------------------------------------------------- corrections


def test_holm_as_a_loop_by_the_definition() -> None:
    p = np.random.default_rng(1).random(20) ** 4
    rejected_at = []
    for value in p:  # the adjusted p is the smallest level at which the step-down rejects it
        smaller = [(p.size - rank) * q for rank, q in enumerate(sorted(p)) if q <= value]
        rejected_at.append(min(1.0, max(smaller)))
    np.testing.assert_allclose(stats.holm(p), rejected_at, rtol=1e-15)


def test_holm_leaves_out_nan_and_keeps_the_shape() -> None:
    p = np.array([[NAN, 0.01], [0.04, NAN]])
    np.testing.assert_array_equal(stats.holm(p), [[NAN, 0.02], [0.04, NAN]])
    assert stats.holm(np.array([])).shape == (0,)
    np.testing.assert_array_equal(stats.bonferroni(np.array([0.2, 0.6, NAN])), [0.4, 1.0, NAN])
    np.testing.assert_array_equal(stats.holm(np.array([0.03, 0.03, 0.01])), [0.06, 0.06, 0.03])


@pytest.mark.parametrize("correct", [stats.holm, stats.bonferroni])
def test_a_p_value_outside_its_range_is_refused(correct) -> None:
    with pytest.raises(ValueError, match=r"p-value 100\.0; expected values in 0\.\.1"):
        correct(np.array([0.1, 100.0]))


# ---------------------------------------------------------------- columns


def test_describe_is_numpy_column_by_column() -> None:
    table = _scores(4, 31, gaps=0.3).T
    table[:, 2], table[1:, 3], table[0, 0] = NAN, NAN, 0.0
    ours = stats.describe(table)
    for j, column in enumerate(table.T):
        kept = column[~np.isnan(column)]
        assert ours.n[j] == kept.size and ours.zeros[j] == (kept == 0).sum()
        got = [getattr(ours, name)[j] for name in ("mean", "sd", "median", "q1", "q3")]
        if not kept.size:
            assert np.isnan(got).all()
            continue
        told = [kept.mean(), kept.std(), *np.quantile(kept, [0.5, 0.25, 0.75])]
        np.testing.assert_allclose(got, told, rtol=1e-14)
    with pytest.raises(ValueError, match="1 infinite values"):
        stats.describe(np.array([[np.inf]]))
    assert np.isnan(stats.describe(np.empty((0, 2))).mean).all()


# ---------------------------------------------------------------- paired tests


@pytest.mark.parametrize(
    ("cases", "digits", "gaps"),
    [(9, 9, 0.0), (9, 1, 0.2), (30, 9, 0.2), (30, 1, 0.2), (80, 2, 0.0), (80, 9, 0.3)],
)
def test_pairs_are_scipy_one_test_at_a_time(cases: int, digits: int, gaps: float) -> None:
    table = _scores(4, cases, digits=digits, gaps=gaps)
    ours = stats.compare_pairs(table)
    for i, j in itertools.permutations(range(4), 2):
        both = ~np.isnan(table[i]) & ~np.isnan(table[j])
        x, y = table[i, both], table[j, both]
        told = scipy_stats.wilcoxon(x, y, alternative="greater")
        assert ours.p[i, j] == pytest.approx(told.pvalue, rel=1e-12)
        assert ours.w_plus[i, j] == told.statistic
        assert ours.n_pairs[i, j] == both.sum() and ours.n_nonzero[i, j] == (x != y).sum()
        wins, ties = sum(x > y), sum(x == y)
        assert ours.superiority[i, j] == pytest.approx((wins + ties / 2) / both.sum())
        assert ours.mean_difference[i, j] == pytest.approx(x.mean() - y.mean(), abs=1e-12)


def test_rank_biserial_by_hand() -> None:
    # |differences| 1, 2, 3: ranks 1, 2, 3; the second is negative: (1 + 3 - 2) / 6.
    ours = stats.compare_pairs(np.array([[1.0, 0.0, 3.0, 5.0], [0.0, 2.0, 0.0, 5.0]]))
    assert ours.rank_biserial[0, 1] == pytest.approx(2 / 6) == -ours.rank_biserial[1, 0]
    assert ours.n_nonzero[0, 1] == 3 and ours.w_plus[0, 1] == 4


def test_pairs_without_a_difference_or_a_common_case() -> None:
    same = np.tile(np.linspace(0, 1, 60), (2, 1))
    ours = stats.compare_pairs(same)
    assert ours.p[0, 1] == ours.p[1, 0] == 1 and ours.rank_biserial[0, 1] == 0
    assert np.isnan(ours.p[0, 0]) and ours.n_pairs[0, 0] == 0
    ours = stats.compare_pairs(np.array([[0.5, NAN], [NAN, 0.7]]))
    assert np.isnan(ours.p).all() and (ours.n_pairs == 0).all()
    assert stats.compare_pairs(np.ones((1, 5))).p.shape == (1, 1)


def test_pairs_refuse_what_is_no_table_of_scores() -> None:
    with pytest.raises(ValueError, match=r"shape \(3,\); expected \(methods, cases\)"):
        stats.compare_pairs(np.ones(3))
    with pytest.raises(ValueError, match="1 infinite scores"):
        stats.compare_pairs(np.array([[np.inf, 1.0]]))


# ---------------------------------------------------------------- bootstrap


@pytest.mark.parametrize("method", ["bca", "percentile"])
def test_intervals_are_scipy_s_on_the_same_draws(method: str) -> None:
    column = _scores(1, 40, seed=3)[0] ** 3  # skewed
    told = scipy_stats.bootstrap(
        (column,), np.mean, n_resamples=500, method=method, rng=np.random.default_rng(7)
    )
    ours = stats.bootstrap_means(column[:, None], resamples=500, method=method, seed=7)
    np.testing.assert_allclose(ours.distribution[:, 0], told.bootstrap_distribution, rtol=1e-13)
    got = (ours.low[0], ours.high[0])
    np.testing.assert_allclose(got, told.confidence_interval, rtol=1e-12)


def test_a_column_with_gaps_is_a_loop_over_resamples() -> None:
    table = _scores(3, 12, gaps=0.4, seed=5).T
    counts = stats.draw_counts(12, 50, seed=2)
    means = stats.weighted_means(counts, table)
    for r, c in itertools.product(range(50), range(3)):
        drawn = np.repeat(table[:, c], counts[r].astype(int))
        kept = drawn[~np.isnan(drawn)]
        told = kept.mean() if kept.size else NAN
        np.testing.assert_allclose(means[r, c], told, rtol=1e-13)
    told = [stats.describe(np.delete(table, case, axis=0)).mean for case in range(12)]
    np.testing.assert_allclose(stats.left_out_means(table), told, rtol=1e-13)
    assert (counts.sum(1) == 12).all() and (
        stats.draw_counts(12, 5, seed=2, size=30).sum(1) == 30
    ).all()


def test_intervals_cover_the_mean_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    table = rng.exponential(1.0, (60, 600))  # 600 samples of 60, of mean 1
    ours = stats.bootstrap_means(table, resamples=400)
    covered = ((ours.low <= 1) & (ours.high >= 1)).mean()
    assert 0.90 < covered < 0.975  # 95 % nominal; binomial SD 0.9 %, BCa is a little short


def test_degenerate_columns_of_the_bootstrap() -> None:
    table = np.full((6, 4), NAN)
    table[:, 0], table[2, 1], table[:2, 2] = 0.8, 0.5, (0.1, 0.9)
    ours = stats.bootstrap_means(table, resamples=300)
    ends = [ours.low[:2], ours.high[:2]]
    np.testing.assert_allclose(ends, [[0.8, 0.5]] * 2, rtol=1e-14)
    assert 0.1 <= ours.low[2] < ours.high[2] <= 0.9
    assert np.isnan([ours.estimate[3], ours.low[3], ours.high[3]]).all()


@pytest.mark.parametrize(
    ("case", "match"),
    [
        (lambda: stats.bootstrap_means(np.ones((0, 2))), "values of shape"),
        (lambda: stats.bootstrap_means(np.ones(3)), "values of shape"),
        (lambda: stats.bootstrap_means(np.ones((3, 1)), level=95), "level=95"),
        (lambda: stats.bootstrap_means(np.ones((3, 1)), method="t"), "method='t'"),
        (lambda: stats.bootstrap_means(np.ones((3, 1)), resamples=0), "resamples=0"),
        (lambda: stats.interval(np.ones((3, 1)), np.ones(1)), "'bca' needs left_out"),
        (lambda: stats.rank_stability(np.ones((3, 2)), np.ones(3)), r"expected \(resamples"),
        (lambda: stats.size_effects(np.ones((1, 9)), [5]), "at least two methods"),
        (lambda: stats.size_effects(np.full((2, 9), NAN), [5]), "no NaN"),
        (lambda: stats.size_effects(np.ones((2, 9)), [1]), "at least 2 cases"),
        (lambda: stats.compare_groups({"a": np.ones(3)}), "at least two"),
        (lambda: stats.compare_groups({"a": np.ones(3), "b": np.ones(0)}), "group 'b': 0 scores"),
    ],
)
def test_bad_arguments_are_told(case, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        case()


# ---------------------------------------------------------------- rankings


def test_kendall_is_scipy_s_with_and_without_ties() -> None:
    rng = np.random.default_rng(0)
    for high in (4, 1000):
        reference, rankings = rng.integers(0, high, 9), rng.integers(0, high, (20, 9))
        told = [scipy_stats.kendalltau(r, reference).statistic for r in rankings]
        np.testing.assert_allclose(stats.kendall(rankings, reference), told, rtol=1e-13)
    assert np.isnan(stats.kendall(np.ones((1, 3)), np.arange(3)))[0]


def test_places_with_ties_and_without_a_value() -> None:
    np.testing.assert_array_equal(stats.places(np.array([0.5, 0.9, 0.5, NAN])), [2.5, 1, 2.5, 4])


def test_rank_stability_by_counting() -> None:
    drawn = np.array([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [2.0, 3.0, 1.0], [2.0, 2.0, 1.0]])
    ours = stats.rank_stability(drawn, drawn.mean(0))
    np.testing.assert_allclose(ours.first, [2.5 / 4, 1.5 / 4, 0])
    np.testing.assert_allclose(ours.mean_place, [(1 + 1 + 2 + 1.5) / 4, (2 + 2 + 1 + 1.5) / 4, 3])
    np.testing.assert_allclose(ours.shares, [[0.5, 0.5, 0], [0.25, 0.75, 0], [0, 0, 1]])
    assert (ours.low[2], ours.high[2]) == (3, 3) and (ours.low[0], ours.high[0]) == (1, 2)
    assert ours.tau[0] == 1 and ours.tau[2] == pytest.approx(1 / 3)


# ---------------------------------------------------------------- test-set size


def test_larger_test_sets_rank_better_and_find_more() -> None:
    table = np.random.default_rng(0).normal(0, 0.1, (5, 120)) + 0.03 * np.arange(5)[:, None]
    small, large, more = stats.size_effects(table, [10, 120, 1000], draws=300, tests=5)
    assert small.tau < large.tau < more.tau and small.winner_kept < more.winner_kept
    assert small.significant < large.significant <= 0.5 and np.isnan(more.significant)
    # The interval of a mean is 2 * 1.96 * sd / sqrt(n) wide.
    for effect in (small, large, more):
        told = 2 * 1.96 * table.std(1).mean() / np.sqrt(effect.n)
        assert effect.width == pytest.approx(told, rel=0.1)


def test_significance_of_the_whole_is_that_of_the_pairs() -> None:
    table = np.random.default_rng(0).normal(0, 0.1, (4, 90)) + 0.03 * np.arange(4)[:, None]
    (effect,) = stats.size_effects(table, [90], draws=10)
    p = stats.holm(stats.compare_pairs(table).p)
    assert effect.significant == pytest.approx((p < 0.05).sum() / 12)


# ---------------------------------------------------------------- groups


def test_groups_are_scipy_s_tests_pair_by_pair() -> None:
    rng = np.random.default_rng(0)
    groups = {name: np.round(rng.normal(m, 1, n), 1) for name, m, n in
              [("a", 0, 30), ("b", 1, 25), ("c", 0, 6)]}  # fmt: skip
    ours = stats.compare_groups(groups)
    told = scipy_stats.kruskal(*groups.values())
    assert (ours.h, ours.p, ours.df) == (told.statistic, told.pvalue, 2) and ours.gate_open
    for pair in ours.pairs:
        x, y = groups[pair.first], groups[pair.second]
        told = scipy_stats.mannwhitneyu(x, y)
        assert (pair.u, pair.p) == (told.statistic, told.pvalue)
        assert pair.p_bonferroni == min(1, 3 * told.pvalue)
        wins = sum((a > b) + 0.5 * (a == b) for a in x for b in y)
        assert pair.superiority == pytest.approx(wins / len(x) / len(y))


def test_many_rows_of_groups_are_each_alone() -> None:
    rng = np.random.default_rng(0)
    groups = {name: np.round(rng.normal(0, 1, (5, n)), 1) for name, n in
              [("a", 30), ("b", 12), ("c", 5)]}  # fmt: skip
    groups["c"][0] = np.arange(5) + 0.123  # no ties: exact in this row, not in the others
    for values in groups.values():
        values[4] = 0.5
    together = stats.compare_many_groups(groups)
    for row, ours in enumerate(together):
        assert ours == stats.compare_groups({name: x[row] for name, x in groups.items()})
    exact = scipy_stats.mannwhitneyu(groups["b"][0], groups["c"][0])
    assert together[0].pairs[2].p == exact.pvalue and together[4].p == 1


def test_groups_of_equal_scores_do_not_differ() -> None:
    ours = stats.compare_groups({"a": np.full(4, 0.5), "b": np.full(7, 0.5)})
    assert (ours.h, ours.p, ours.gate_open) == (0.0, 1.0, False) and ours.pairs[0].p == 1


def test_stars() -> None:
    told = [stats.stars(p) for p in (1e-4, 1e-3, 1e-2, 0.05, 0.051)]
    assert told == ["****", "***", "**", "*", "ns"]

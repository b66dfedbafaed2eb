"""The numbers of a study's tables against counting by hand, NumPy and SciPy; its figure."""

import math

import matplotlib.image
import numpy as np
import pytest
from scipy import stats

from safe_components.studies import (
    episode_mean,
    frames_to_best,
    frames_to_safe,
    last_frames,
    over_seeds,
    plot_comparison,
    rolling_mean,
    summarize,
)

NAN = math.nan
FRAMES = np.arange(10, 110, 10)
ONES = np.ones(10)


def test_a_mean_of_rows_is_the_mean_of_their_episodes():
    rng = np.random.default_rng(0)
    counts = np.array([3, 0, 7, 1])
    episodes = [rng.normal(size=n) for n in counts]
    rows = [e.mean() if len(e) else NAN for e in episodes]
    # Both sides sum the same 11 numbers of size 1 in float64.
    assert episode_mean(rows, counts) == pytest.approx(np.concatenate(episodes).mean(), abs=1e-14)
    assert math.isnan(episode_mean([NAN, NAN], [0, 0]))
    assert math.isnan(episode_mean([], []))


def test_a_missing_mean_of_episodes_is_an_error_not_a_gap():
    with pytest.raises(ValueError, match="no number"):
        episode_mean([1.0, NAN], [2, 1])


@pytest.mark.parametrize(("share", "expected"), [(0.1, [100]), (0.3, [80, 90, 100]), (1.0, list(FRAMES))])
def test_the_last_frames(share, expected):
    assert FRAMES[last_frames(FRAMES, share)].tolist() == expected


def test_the_last_row_counts_however_long_it_is():
    assert last_frames([10, 1000]).tolist() == [False, True]
    for share in (0.0, 1.1):
        with pytest.raises(ValueError, match="share is"):
            last_frames(FRAMES, share)


@pytest.mark.parametrize("signals", [(), (2,)])
def test_rolling_means_pool_episodes(signals):
    rng = np.random.default_rng(1)
    counts = np.array([2, 0, 0, 0, 5, 1, 3])
    values = rng.normal(size=(7, *signals))
    values[counts == 0] = NAN
    found = rolling_mean(values, counts, rows=3)
    assert found.shape == (5, *signals)
    for i in range(5):
        window = range(i, i + 3)
        pooled = [values[j] for j in window for _ in range(counts[j])]
        expected = np.mean(pooled, axis=0) if pooled else np.full(signals, NAN)
        np.testing.assert_allclose(found[i], expected, atol=1e-14)  # rounding of at most 9 terms
    assert rolling_mean(values, counts, rows=8).shape == (0, *signals)
    with pytest.raises(ValueError, match="rows is 0"):
        rolling_mean(values, counts, rows=0)


def test_safe_is_the_first_of_three_rows_whose_episodes_keep_every_limit():
    cost = np.array([90.0, 80, 20, 100, 20, 24, 31, 25, 60, 0])
    # Rows 5-7 (20, 24, 31) average 25, the limit itself, which is kept; none before does.
    assert frames_to_safe(FRAMES, cost[:, None], ONES, [25.0]) == 50
    assert math.isnan(frames_to_safe(FRAMES, cost[:, None], ONES, [24.9]))
    # Rows 3-5 hold twenty episodes at 20, one at 100 and one at 20: 23.6 on average.
    counts = np.where(np.arange(10) == 2, 20, 1)
    assert frames_to_safe(FRAMES, cost[:, None], counts, [25.0]) == 30
    # A second signal that comes down later delays it.
    other = np.array([5.0] * 6 + [0.0] * 4)
    assert frames_to_safe(FRAMES, np.stack([0 * cost, other], -1), ONES, [25.0, 1.0]) == 70
    assert math.isnan(frames_to_safe(FRAMES[:2], np.zeros((2, 1)), ONES[:2], [25.0]))


def test_rows_without_episodes_are_not_safe():
    cost = np.full((10, 1), NAN)
    assert math.isnan(frames_to_safe(FRAMES, cost, 0 * ONES, [25.0]))


def test_the_best_reward_counts_only_within_the_limits():
    reward = np.array([0.0, 500, 10, 50, 89, 91, 100, 95, 300, 80])
    cost = np.array([0.0, 99, 0, 0, 0, 0, 0, 0, 99, 0])[:, None]
    assert frames_to_best(FRAMES, reward, cost, ONES, [25.0], rows=1) == 60
    assert frames_to_best(FRAMES, reward, cost, ONES, [25.0], rows=1, share=1.0) == 70
    assert math.isnan(frames_to_best(FRAMES, reward, cost + 26, ONES, [25.0], rows=1))
    # Three rows: the best safe window is 91, 100, 95, of mean 95.3; 89, 91, 100 is above 90 % of it.
    assert frames_to_best(FRAMES, reward, cost, ONES, [25.0]) == 50
    with pytest.raises(ValueError, match="share is 0"):
        frames_to_best(FRAMES, reward, cost, ONES, [25.0], share=0)


def test_a_negative_best_reward_is_approached_from_below():
    reward = np.array([-400.0, -115, -109, -100])
    assert frames_to_best(FRAMES[:4], reward, np.zeros((4, 1)), ONES[:4], [25.0], rows=1) == 30


@pytest.mark.parametrize(
    ("values", "mean"),
    [([3.0], 3.0), ([1.0, 5.0], 3.0), ([0.0, 1.0, 8.0], 3.0), ([9.0, 1.0, 2.0, 4.0, -50.0], 7 / 3)],
)
def test_the_interquartile_mean_by_hand(values, mean):
    assert summarize(values).mean == pytest.approx(mean, rel=1e-15)


def test_the_interval_is_the_quantiles_of_resampled_means():
    values = np.random.default_rng(2).normal(size=10)
    rng = np.random.default_rng(3)
    draws = np.sort(values[rng.integers(10, size=(200_000, 10))], axis=1)
    expected = np.quantile(draws[:, 2:8].mean(1), [0.025, 0.975])
    summary = summarize(values)
    # The 2.5 % quantile of 9,999 draws has a standard error of sqrt(.025 * .975 / 9999) / density: about
    # 0.16 percentage points of rank, and of 0.06 standard errors of the mean (0.35) in value.
    np.testing.assert_allclose([summary.low, summary.high], expected, atol=0.06)
    assert summary.low < summary.mean < summary.high
    assert summary == summarize(values)


def test_equal_seeds_have_an_interval_of_no_width():
    summary = summarize([2.0, 2.0, 2.0])
    assert (summary.low, summary.high) == (2.0, 2.0)


def test_seeds_without_a_value_are_counted():
    summary = summarize([NAN, 4.0, NAN, 6.0])
    assert (summary.mean, summary.count, summary.seeds) == (5.0, 2, 4)
    nothing = summarize([NAN, NAN])
    assert math.isnan(nothing.mean)
    assert (nothing.count, nothing.seeds) == (0, 2)


def run(frames, **columns):
    return {"frames": np.array(frames, float), **{name: np.array(c, float) for name, c in columns.items()}}


def test_seeds_meet_on_a_common_grid():
    rng = np.random.default_rng(4)
    # Straight lines, so that interpolation is exact wherever the rows lie.
    slopes = rng.normal(size=5)
    runs = [run(f := np.array([0.0, *(np.arange(5, 100, 5) + rng.uniform(-1, 1, 19)), 100.0]), x=s * f)
            for s in slopes]  # fmt: skip
    frames, mean, low, high = over_seeds(runs, "x")
    assert frames[0] == 0
    assert frames[-1] == 100
    np.testing.assert_allclose(mean, stats.trim_mean(slopes, 0.25) * frames, atol=1e-12)
    np.testing.assert_allclose(low, np.quantile(slopes, 0.25) * frames, atol=1e-12)
    np.testing.assert_allclose(high, np.quantile(slopes, 0.75) * frames, atol=1e-12)


def test_a_seed_counts_only_where_it_has_rows():
    runs = [run([0, 100], x=[1, 1]), run([0, 50, 100], x=[3, 3, NAN]), run([], x=[]), run([0, 100])]
    frames, mean, _, _ = over_seeds(runs, "x")
    assert set(mean[frames < 50]) == {2.0}
    assert set(mean[frames > 50]) == {1.0}
    assert [len(column) for column in over_seeds(runs[2:], "x")] == [0, 0, 0, 0]


def test_a_seed_has_no_value_where_its_rows_are_missing():
    frames = np.arange(0.0, 101, 10)
    whole, broken = run(frames, x=frames * 0 + 1), run(frames, x=np.where(abs(frames - 50) < 15, NAN, 3))
    grid, mean, _, _ = over_seeds([whole, broken], "x")
    inside = (grid > 30) & (grid < 70)
    assert set(mean[inside]) == {1.0}
    assert set(mean[(grid < 30) | (grid > 70)]) == {2.0}


def test_the_figure_has_a_panel_for_each_cost_and_refuses_to_be_empty(tmp_path):
    columns = {"episode_reward": [1, 2], "episode_cost": [9, 3], "episode_cost_1": [1, 0]}
    variants = {f"variant-{i}": [run([10, 20 + i], **columns)] for i in range(12)} | {"none": []}
    plot_comparison(variants, [5.0], tmp_path / "one.png")
    plot_comparison(variants, [5.0, 1.0], tmp_path / "two.png", title="two costs")
    one, two = (matplotlib.image.imread(tmp_path / name) for name in ("one.png", "two.png"))
    assert two.shape[1] > 1.3 * one.shape[1]
    assert one[..., :3].std() > 0.01
    with pytest.raises(ValueError, match="nothing to draw"):
        plot_comparison({"none": [], "empty": [run([])]}, [5.0], tmp_path / "no.png")

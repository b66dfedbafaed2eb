"""Statistics of one run and of several seeds, as pure functions of the columns of ``metrics.csv``."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

__all__ = [
    "Summary",
    "episode_mean",
    "frames_to_best",
    "frames_to_safe",
    "last_frames",
    "rolling_mean",
    "summarize",
]


def episode_mean(values: ArrayLike, episodes: ArrayLike) -> float:
    """Return the mean over episodes, Σ_r n_r x_r / Σ_r n_r, of a metric that is given as means of rows.

    Args:
        values: metric x of each row, ``[rows]``; NaN in rows in which no episode ended.
        episodes: number n of episodes of each row, ``[rows]``.

    Returns:
        The mean; NaN if no episode ended in any row.

    Raises:
        ValueError: if a row with episodes holds no number.

    Example:
        >>> episode_mean([1.0, float("nan"), 4.0], [2, 0, 1])
        2.0
    """
    values, episodes = np.asarray(values, float), np.asarray(episodes, float)
    some = episodes > 0
    if np.isnan(values[some]).any():
        raise ValueError("a row in which episodes ended holds no number for them")
    return float(np.average(values[some], weights=episodes[some])) if some.any() else math.nan


def last_frames(frames: ArrayLike, share: float = 0.1) -> np.ndarray:
    """Tell which rows belong to the last ``share`` of a run: frames > (1 − share) · last frames.

    Args:
        frames: frames at the end of each row, ``[rows]``, increasing.
        share: share of the run, in (0, 1].

    Returns:
        Booleans ``[rows]``. The last one is always true.

    Example:
        >>> last_frames([10, 20, 90, 95, 100])
        array([False, False, False,  True,  True])
    """
    if not 0 < share <= 1:
        raise ValueError(f"share is {share}, must be above 0 and at most 1")
    at = np.asarray(frames, float)
    late: np.ndarray = at > (1 - share) * at[-1]
    return late


def rolling_mean(values: ArrayLike, episodes: ArrayLike, rows: int = 3) -> np.ndarray:
    """Return the mean over the episodes of each row and of the ``rows − 1`` rows after it.

    One row is the mean of a few episodes, so it can be good by chance. Three rows in sequence are less often
    good by chance.

    Args:
        values: metric of each row, ``[n]`` or ``[n, m]``; NaN where no episode ended.
        episodes: number of episodes of each row, ``[n]``.
        rows: number of rows in a window, at least 1.

    Returns:
        The means, ``[n − rows + 1]`` or ``[n − rows + 1, m]``, and NaN where a window holds no episode. They
        are empty if the run has fewer than ``rows`` rows.

    Example:
        >>> rolling_mean([4.0, 1.0, 1.0, 7.0], [1, 1, 1, 1])
        array([2., 3.])
    """
    if rows < 1:
        raise ValueError(f"rows is {rows}, must be at least 1")
    values, episodes = np.asarray(values, float), np.asarray(episodes, float)
    count = max(len(episodes) - rows + 1, 0)
    weights = episodes.reshape(-1, *([1] * (values.ndim - 1)))
    sums = np.where(weights > 0, np.nan_to_num(values) * weights, 0.0)
    window = np.arange(count)[:, None] + np.arange(rows)
    total = weights[window].sum(1)
    means = np.full_like(sums[:count], np.nan)
    np.divide(sums[window].sum(1), total, out=means, where=total > 0)
    return means


def frames_to_safe(
    frames: ArrayLike, cost: ArrayLike, episodes: ArrayLike, limits: Sequence[float], rows: int = 3
) -> float:
    """Return the frames at the first row from which ``rows`` rows in sequence keep every limit on average.

    The mean is over all episodes of these rows. Later rows may be over a limit again.

    Args:
        frames: frames at the end of each row, ``[n]``.
        cost: mean episodic cost of each row, ``[n, m]``.
        episodes: number of episodes of each row, ``[n]``.
        limits: limits of the episodic cost, m numbers.
        rows: number of rows in a window.

    Returns:
        The frames; NaN if no such rows exist.

    Example:
        >>> frames_to_safe([10, 20, 30, 40], [[90], [20], [30], [25]], [1, 1, 1, 1], limits=[25])
        20.0
    """
    safe = (rolling_mean(cost, episodes, rows) <= np.asarray(limits, float)).all(-1)
    return float(np.asarray(frames, float)[np.argmax(safe)]) if safe.any() else math.nan


def frames_to_best(
    frames: ArrayLike,
    reward: ArrayLike,
    cost: ArrayLike,
    episodes: ArrayLike,
    limits: Sequence[float],
    share: float = 0.9,
    rows: int = 3,
) -> float:
    """Return the frames at the first row that keeps every limit and reaches the reward R* − (1 − share)·|R*|.

    R* is the best reward of this run within the limits, so a fast but unsafe policy does not count.
    For a positive R* the threshold is share·R*. Reward and cost are those of ``rows`` rows in sequence, as
    in :func:`frames_to_safe`.

    Args:
        frames: frames at the end of each row, ``[n]``.
        reward: mean episodic reward of each row, ``[n]``.
        cost: mean episodic cost of each row, ``[n, m]``.
        episodes: number of episodes of each row, ``[n]``.
        limits: limits of the episodic cost, m numbers.
        share: share of the best reward, in (0, 1].
        rows: number of rows in a window.

    Returns:
        The frames; NaN if no ``rows`` rows in sequence kept the limits.

    Example:
        >>> reward, cost = [50, 10, 19, 20], [[99], [0], [0], [0]]
        >>> frames_to_best([10, 20, 30, 40], reward, cost, [1, 1, 1, 1], limits=[25], rows=1)
        30.0
    """
    if not 0 < share <= 1:
        raise ValueError(f"share is {share}, must be above 0 and at most 1")
    safe = (rolling_mean(cost, episodes, rows) <= np.asarray(limits, float)).all(-1)
    if not safe.any():
        return math.nan
    reward = np.where(safe, rolling_mean(reward, episodes, rows), -np.inf)
    best = reward.max()
    return float(np.asarray(frames, float)[np.argmax(reward >= best - (1 - share) * abs(best))])


@dataclasses.dataclass(frozen=True)
class Summary:
    """A summary of one quantity over several seeds.

    Attributes:
        mean: interquartile mean; NaN if no seed has a value.
        low: lower end of the bootstrap interval; NaN with fewer than two values.
        high: upper end of that interval.
        count: number of seeds with a value.
        seeds: number of all seeds.
    """

    mean: float
    low: float
    high: float
    count: int
    seeds: int


def _trimmed(values: np.ndarray, axis: int = -1) -> Any:
    return stats.trim_mean(values, 0.25, axis=axis)


def summarize(values: ArrayLike, confidence: float = 0.95, resamples: int = 9_999) -> Summary:
    """Return the interquartile mean over seeds, and a percentile bootstrap interval of it.

    The mean drops the ⌊n/4⌋ smallest and the ⌊n/4⌋ largest of n values (``scipy.stats.trim_mean``). Of 3
    values it drops no value, and of 5 values it drops one at each end. The interval holds ``confidence`` of
    the means of ``resamples`` draws of n values with replacement (``scipy.stats.bootstrap``, a fixed seed).
    With 3 to 5 seeds it describes their spread. It is too narrow for a level of 95 %, because the tails of so
    few values are unknown. NaN means "no value". It is left out of the mean, and ``count`` shows it.
    Method: Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice",
    NeurIPS 2021, section 4.

    Args:
        values: one number per seed, ``[n]``, NaN for a seed without a value.
        confidence: confidence level of the interval, in (0, 1).
        resamples: number of draws of the bootstrap.

    Example:
        >>> summary = summarize([1.0, 2.0, 3.0, 4.0, 100.0])
        >>> summary.mean, summary.low <= 3.0 <= summary.high, summary.count
        (3.0, True, 5)
        >>> summarize([7.0, float("nan")])
        Summary(mean=7.0, low=nan, high=nan, count=1, seeds=2)
    """
    values = np.asarray(values, float)
    there = values[~np.isnan(values)]
    if len(there) < 2:
        mean = float(there[0]) if len(there) else math.nan
        return Summary(mean, math.nan, math.nan, len(there), len(values))
    interval = stats.bootstrap(
        (there,),
        _trimmed,
        confidence_level=confidence,
        n_resamples=resamples,
        method="percentile",
        random_state=np.random.default_rng(0),
    ).confidence_interval
    return Summary(float(_trimmed(there)), float(interval.low), float(interval.high), len(there), len(values))

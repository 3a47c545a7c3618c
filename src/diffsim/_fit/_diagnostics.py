"""Whether chains tell of the same distribution, and how many independent draws they are worth.

Rank-normalised split R-hat, the larger of that of the draws and that of their distances from the
median, and the bulk effective sample size: Vehtari, Gelman, Simpson, Carpenter, Bürkner (2021),
doi:10.1214/20-BA1221.
"""

from __future__ import annotations

import jax
import numpy as np


def split_rhat(draws: np.ndarray) -> np.ndarray:
    """R-hat of draws (chains, draws, ...), over the trailing axes; 1 for what has converged."""
    return _each(lambda x: max(_rhat(_normal(x)), _rhat(_normal(_folded(x)))), draws)


def bulk_ess(draws: np.ndarray) -> np.ndarray:
    """The number of independent draws with the same standard error of the mean."""
    return _each(lambda x: _ess(_normal(x)), draws)


def _each(fn, draws: np.ndarray) -> np.ndarray:
    """fn of the split chains of every entry."""
    draws = np.asarray(draws, dtype=float)
    half = draws.shape[1] // 2
    halves = np.concatenate([draws[:, :half], draws[:, draws.shape[1] - half :]])
    flat = halves.reshape(*halves.shape[:2], -1)
    found = [fn(flat[:, :, i]) for i in range(flat.shape[2])]
    return np.asarray(found).reshape(draws.shape[2:])


def _folded(x: np.ndarray) -> np.ndarray:
    return np.abs(x - np.median(x))


def _normal(x: np.ndarray) -> np.ndarray:
    """Normal scores of the ranks, equal ones sharing theirs."""
    if not np.all(np.isfinite(x)):
        return np.full(x.shape, np.nan)
    _, where, counts = np.unique(x, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - 0.5 * (counts - 1))[where.ravel()]
    scores = jax.scipy.special.ndtri(np.asarray((ranks - 0.375) / (x.size + 0.25)))
    return np.asarray(scores, dtype=float).reshape(x.shape)


def _variances(x: np.ndarray) -> tuple[float, float]:
    """Within chains, and of the whole as estimated from both within and between them."""
    n = x.shape[1]
    within = float(np.mean(np.var(x, axis=1, ddof=1)))
    between = float(np.var(np.mean(x, axis=1), ddof=1))
    return within, within * (n - 1) / n + between


def _rhat(x: np.ndarray) -> float:
    within, whole = _variances(x)
    return float(np.sqrt(whole / within)) if within > 0 else float("nan")


def _ess(x: np.ndarray) -> float:
    """Geyer's initial monotone sequence over all chains."""
    chains, n = x.shape
    within, whole = _variances(x)
    if not within > 0:
        return float("nan")
    centred = x - np.mean(x, axis=1, keepdims=True)
    spectrum = np.abs(np.fft.rfft(centred, 2 * n, axis=1)) ** 2
    covariance = np.mean(np.fft.irfft(spectrum, axis=1)[:, :n], axis=0) / n
    rho = 1 - (within - covariance * n / (n - 1)) / whole
    rho[0] = 1.0
    pairs = rho[: n // 2 * 2].reshape(-1, 2).sum(axis=1)
    end = int(np.argmax(pairs < 0)) if np.any(pairs < 0) else len(pairs)
    time = -1 + 2 * float(np.sum(np.minimum.accumulate(pairs[:end])))
    return chains * n / max(time, 1 / np.log10(max(chains * n, 10)))

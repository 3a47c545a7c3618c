"""Averages of correlated or weighted samples, with honest error bars. On the host, in NumPy."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from ._errors import ConfigError

FEWEST = 8  # samples, or as many weights that count, below which an error cannot be told


class Average(NamedTuple):
    """The mean of a series, and how well it is known. Every field has the trailing axes' shape.

    mean: m
    stderr: the standard error of m: the scatter of m were the run repeated
    correlation_time: τ = 1 + 2 Σ ρ_k, in samples: how many of them make an independent one
    effective_samples: n_eff = var(x)/stderr², n/τ where the samples have equal weights
    """

    mean: Float[np.ndarray, "..."]
    stderr: Float[np.ndarray, "..."]
    correlation_time: Float[np.ndarray, "..."]
    effective_samples: Float[np.ndarray, "..."]


def blocking(
    x: Float[np.ndarray, "..."],
    axis: int = 0,
    *,
    weights: Float[np.ndarray, "..."] | None = None,
) -> Average:
    """stderr² = (s²/B) (1 + 2 Σ_k r_k): block averages, with what correlation they have left.

    The series is cut into B ≈ 4√n blocks, s² is the variance of the block means and r_k their
    correlation at lag k. Blocks (Flyvbjerg and Petersen 1989, doi:10.1063/1.457480) average
    oscillations and fast noise away, so that a weak slow part shows; the sum takes care of
    correlation longer than a block. It stops where r_2k + r_2k+1 turns negative (Geyer 1992,
    doi:10.1214/ss/1177011137), and is divided by 1 - (number of lags)/B, since the r_k are taken
    about the sample's own mean (Wolff 2004, doi:10.1016/S0010-4655(03)00467-3).

    x: samples in order of time along `axis`; the other axes are separate series
    weights: ≥ 0, along `axis` or of the shape of x, such as those of reweighting. The mean is then
        m = Σ w x/Σ w, and its error that of the series n w (x - m)/Σ w, to first order

    The error is 1.0 to 1.1 of the true one on average, over autoregressive and two-scale series
    with 25 or more effective samples; a single one scatters by a factor of ±0.3 at 25, ±0.15 at
    2,000. With fewer no method can see the whole correlation: it is 0.9 of the true one at ten,
    0.7 at three. Oscillations longer than a block, √n/4, make it too large, by up to 1.8.

    A series of equal values has the error 0 and τ = 1. One with a value that is not finite gives
    NaN, as do weights that are all zero. Fewer than 8 samples, or weights that count as fewer,
    give the mean with an infinite error, n_eff = 0 and τ NaN.
    """
    series = np.moveaxis(np.asarray(x, dtype=float), axis, 0)
    if len(series) == 0:
        raise ConfigError("there is no sample to average", key="samples")
    w = _weights(weights, axis, series)
    shape, columns = series.shape[1:], (len(series), math.prod(series.shape[1:]))
    series, w = series.reshape(columns), np.broadcast_to(w, series.shape).reshape(columns)
    finite = np.all(np.isfinite(series) & np.isfinite(w), axis=0) & np.any(w > 0, axis=0)
    series, w = np.where(finite, series, 0.0), np.where(finite, w, 1.0)
    w = w / np.max(w, axis=0)
    # In units of its range from its first value on, no square over- or underflows.
    scale = np.ptp(series, axis=0)
    unit = np.where(scale > 0, scale, 1.0)
    mean, influence, variance = _moments((series - series[0]) / unit, w)
    error2 = _error_of_mean(influence)
    constant = error2 == 0
    # About its own mean a series varies less than about the true one, by the mean's error.
    spread = np.mean(influence**2, axis=0) + error2
    few = np.sum(w, axis=0) ** 2 < FEWEST * np.sum(w**2, axis=0)
    known = ~(few | constant)
    error = np.select([few, constant], [np.inf, 0.0], scale * np.sqrt(error2))
    tau = np.select(
        [few, constant], [np.nan, 1.0], len(series) * error2 / np.where(known, spread, 1)
    )
    effective = np.select(
        [few, constant], [0.0, len(series)], (variance + error2) / np.where(known, error2, 1)
    )
    return Average(
        *(
            np.where(finite, v, np.nan).reshape(shape)
            for v in (series[0] + scale * mean, error, tau, effective)
        )
    )


def of_means(
    function: Callable[..., Any], *series: Float[np.ndarray, "..."], axis: int = 0
) -> Average:
    """f(⟨A⟩, ⟨B⟩, ...) with the error of the series Σ_k ∂f/∂⟨A_k⟩ (A_k - ⟨A_k⟩).

    What is not an average itself: a variance, a ratio, a heat capacity. To first order its error is
    that of one series, which `blocking` finds with all the correlation that there is, in time and
    between the averages; where the number of samples counts f is off by its own error squared.

    function: of as many numbers as there are series, elementwise, and analytic (arithmetic, exp,
        log, roots): its derivatives are taken by a complex step, exact to rounding
    series: samples in order of time along `axis`, all of one shape

    For a variance, subtract a rough mean before squaring: f(m2, m1) = m2 - m1² loses digits.
    """
    columns = [np.moveaxis(np.asarray(x, dtype=float), axis, 0) for x in series]
    means = [x.mean(axis=0) for x in columns]
    influence = np.zeros(columns[0].shape)
    for k, (column, mean) in enumerate(zip(columns, means, strict=True)):
        step = 1e-30 * np.where(mean == 0, 1.0, np.abs(mean))
        turned = [m + 1j * step if i == k else m for i, m in enumerate(means)]
        influence = influence + np.imag(function(*turned)) / step * (column - mean)
    found = blocking(influence)
    value = np.asarray(function(*means), dtype=float)
    return Average(value, found.stderr, found.correlation_time, found.effective_samples)


def controlled_mean(
    values: Float[np.ndarray, " samples"],
    control: Float[np.ndarray, " samples"],
    known: float,
) -> tuple[float, float]:
    """m = ⟨y⟩ - b (⟨c⟩ - c₀): the mean of y were that of a control c what it is known to be.

    b is the slope of the line through (c, y), and the error that of the line at c₀,
    s² (1/n + (c₀ - ⟨c⟩)²/Σ(c - ⟨c⟩)²), s² from the scatter about it with n - 2 degrees of freedom:
    of y's own scatter only the part that c does not explain is left.

    values, control: of independent samples. With fewer than 5 of them, or of a constant control,
    the plain mean and its error; of one value, an infinite error.

    Returns the mean and its standard error.
    """
    y, c = np.asarray(values, dtype=float), np.asarray(control, dtype=float)
    n, mean = len(y), float(np.mean(y))
    plain = float(np.std(y, ddof=1)) / math.sqrt(n) if n > 1 else math.inf
    off = c - np.mean(c)
    spread = float(np.sum(off**2))
    if n < 5 or spread == 0:
        return mean, plain
    slope = float(np.sum(off * y)) / spread
    away = known - float(np.mean(c))
    residual = y - mean - slope * off
    variance = float(np.sum(residual**2)) / (n - 2)
    return mean + slope * away, math.sqrt(variance * (1 / n + away**2 / spread))


def effective_sample_size(
    log_weights: Float[np.ndarray, "..."], axis: int = 0
) -> Float[np.ndarray, "..."]:
    """n_eff = (Σ w)²/Σ w² with w = exp(log_weights): Kish's size of a weighted sample.

    It lies between 1, where one sample has all the weight, and n, for equal weights. Weights need
    no normalisation, and may be as large as their logarithms allow. NaN where one of them is.
    Correlation between the samples comes on top: `blocking(..., weights=)` has both.
    """
    logs = np.moveaxis(np.asarray(log_weights, dtype=float), axis, 0)
    if len(logs) == 0:
        raise ConfigError("there is no sample to weigh", key="samples")
    top = np.max(logs, axis=0)
    w = np.exp(logs - np.where(np.isfinite(top), top, 0.0))
    total = np.sum(w, axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        size = total**2 / np.sum(w**2, axis=0)
    return np.where(np.isfinite(top), size, np.nan)


def _weights(weights: np.ndarray | None, axis: int, series: np.ndarray) -> np.ndarray:
    if weights is None:
        return np.ones((len(series), *(1,) * (series.ndim - 1)))
    w = np.asarray(weights, dtype=float)
    w = w.reshape(-1, *(1,) * (series.ndim - 1)) if w.ndim == 1 else np.moveaxis(w, axis, 0)
    if w.shape != series.shape and w.shape != (len(series), *(1,) * (series.ndim - 1)):
        raise ConfigError(
            f"shape {w.shape} does not fit samples of shape {series.shape}: give one each, or one "
            "along the axis",
            key="weights",
        )
    if np.any(w < 0):
        raise ConfigError("must not be negative", key="weights", value=float(np.nanmin(w)))
    return w


def _moments(x: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weighted mean, the series whose mean has the same error, and the weighted variance."""
    share = w / np.mean(w, axis=0)
    mean = np.mean(share * x, axis=0)
    deviation = x - mean
    return mean, share * deviation, np.mean(share * deviation**2, axis=0)


def _error_of_mean(y: np.ndarray) -> np.ndarray:
    """The squared standard error of the mean of y (n, ...), whose sample mean is zero."""
    n = len(y)
    size = max(1, round(np.sqrt(n) / 4))
    blocks = n // size
    means = y[n - blocks * size :].reshape(blocks, size, *y.shape[1:]).mean(axis=1)
    covariance = _covariance(means - means.mean(axis=0))
    pairs = covariance[0 : 2 * (blocks // 2) : 2] + covariance[1 : 2 * (blocks // 2) : 2]
    kept = np.logical_and.accumulate(pairs > 0, axis=0)
    lags = np.maximum(2 * np.sum(kept, axis=0) - 1, 1)
    total = 2 * np.sum(np.where(kept, pairs, 0.0), axis=0) - covariance[0]
    # Anticorrelation may leave nothing: floors of a tenth of a block's share, and of τ = 0.01.
    total = np.maximum(total, 0.1 * covariance[0])
    error2 = total / blocks / np.maximum(1 - lags / blocks, 0.3)
    return np.maximum(error2, 0.01 * np.mean(y**2, axis=0) / n)


def _covariance(y: np.ndarray) -> np.ndarray:
    """c_k = Σ_t y_t y_t+k / B by Fourier transform, padded so that nothing wraps around."""
    spectrum = np.fft.rfft(y, 2 * len(y), axis=0)
    return np.fft.irfft(np.abs(spectrum) ** 2, 2 * len(y), axis=0)[: len(y)] / len(y)

"""Correlations in time and what follows from them: diffusion, spectra. On the host, in NumPy."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float

from .._errors import ConfigError
from ._fluctuations import Estimate
from ._units import UnitSystem, unit_system

Vectors = Float[np.ndarray, "saves atoms 3"]
XI = 2.837297  # of a cubic box of the Ewald kind


def mean_square_displacement(positions: Vectors, lags: int | None = None) -> np.ndarray:
    """⟨|x(t) - x(0)|²⟩ over atoms and all origins of time, (lags,) [length²], the first one 0.

    positions: (saves, atoms, 3) [length], unwrapped, at even times
    lags: how many, default half the saves. Costs n log n, by Fourier transforms (Kneller et al.
        1995, doi:10.1016/0010-4655(95)00048-K)
    """
    x, count = _checked(positions, lags)
    x = x - x[0]
    n = len(x)
    squares = np.sum(x**2, axis=(1, 2))
    total = np.cumsum(squares)
    k = np.arange(count)
    # Σ_t |x_t|² + |x_t+k|² over the n - k origins, less twice the correlation
    ends = total[n - 1 - k] + total[n - 1] - np.concatenate([[0.0], total])[k]
    return (ends - 2 * _correlation(x, count)) / ((n - k) * x.shape[1])


def velocity_autocorrelation(velocities: Vectors, lags: int | None = None) -> np.ndarray:
    """⟨v(t)·v(0)⟩ over atoms and all origins of time, (lags,) [length²/time²]."""
    v, count = _checked(velocities, lags)
    return _correlation(v, count) / ((len(v) - np.arange(count)) * v.shape[1])


def vibrational_spectrum(
    correlation: Float[np.ndarray, " lags"], spacing: float
) -> tuple[np.ndarray, np.ndarray]:
    """S(ν) = 4 ∫₀^∞ C(t)/C(0) cos(2πνt) dt: the density of states, whose integral is one.

    correlation: of velocities (times masses, where they differ), `spacing` [time] apart; it is
        tapered to zero at its end by Hann's window

    Returns frequencies ν (lags,) [1/time], not angular, and S (lags,) [time].
    """
    c = np.asarray(correlation, dtype=float)
    n = len(c)
    tapered = c / c[0] * (0.5 + 0.5 * np.cos(math.pi * np.arange(n) / n))
    even = np.concatenate([tapered, [0.0], tapered[:0:-1]])
    spectrum = np.fft.rfft(even).real[:n] * spacing * 2
    return np.fft.rfftfreq(2 * n, spacing)[:n], spectrum


def diffusion(
    positions: Vectors,
    spacing: float,
    window: tuple[float, float],
    *,
    blocks: int = 8,
    units: str | UnitSystem = "lj",
) -> Estimate:
    """D = (1/6) d⟨|x(t) - x(0)|²⟩/dt over a window of times [length²/time].

    positions: (saves, atoms, 3) [length], unwrapped, `spacing` [time] apart
    window: from when on, and until when, the displacement is a straight line [time]
    blocks: stretches of the run, each of which gives a slope; their scatter gives the error

    Of one periodic box: `finite_size_correction` adds what the box takes away.
    """
    x = np.asarray(positions, dtype=float)
    low, high = (round(t / spacing) for t in window)
    length = len(x) // blocks
    if not 0 <= low < high - 1 or high >= length:
        raise ConfigError(
            "must increase, two saves apart, and end within a block of the run",
            key="window",
            value=window,
            allowed=f"up to {(length - 1) * spacing:g}",
        )
    times = spacing * np.arange(low, high + 1)
    slopes = [
        np.polyfit(times, mean_square_displacement(part, high + 1)[low:], 1)[0] / 6
        for part in (x[i * length : (i + 1) * length] for i in range(blocks))
    ]
    error = np.std(slopes, ddof=1) / math.sqrt(blocks) if blocks > 1 else math.inf
    unit = unit_system(units).filled("({length})^2/({time})")
    return Estimate(float(np.mean(slopes)), float(error), unit)


def finite_size_correction(
    temperature: float, viscosity: float, edge: float, *, units: str | UnitSystem = "lj"
) -> float:
    """ΔD = 2.837297 kT/(6πηL), which a cubic box of edge L takes from D [length²/time].

    viscosity: η [energy time/length³]; edge: L [length]. Source: Yeh & Hummer 2004,
    doi:10.1021/jp0477147.
    """
    kT = temperature * unit_system(units).boltzmann
    return XI * kT / (6 * math.pi * viscosity * edge)


def _checked(x: np.ndarray, lags: int | None) -> tuple[np.ndarray, int]:
    x = np.asarray(x, dtype=float)
    if x.ndim != 3 or len(x) < 2:
        raise ConfigError(f"must have the shape (saves, atoms, 3), not {x.shape}", key="trajectory")
    count = len(x) // 2 if lags is None else lags
    if not 1 <= count <= len(x):
        raise ConfigError("no such lag", key="lags", value=count, allowed=f"1 to {len(x)}")
    return x, count


def _correlation(x: np.ndarray, count: int) -> np.ndarray:
    """Σ_t Σ_atoms x_t · x_t+k, (count,)."""
    total = np.zeros(count)
    for atom in range(x.shape[1]):  # one at a time: the spectra of all would be twice the data
        spectrum = np.fft.rfft(x[:, atom], 2 * len(x), axis=0)
        power = np.sum(np.abs(spectrum) ** 2, axis=1)
        total += np.fft.irfft(power, 2 * len(x))[:count]
    return total

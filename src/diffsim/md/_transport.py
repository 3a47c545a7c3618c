"""Correlations in time and what follows from them: diffusion, spectra. On the host, in NumPy."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, overload

import numpy as np
from jaxtyping import Float

from .._errors import ConfigError
from ._checks import check_positive, checked_array, checked_count
from ._fluctuations import Estimate
from ._units import UnitSystem, unit_system

Vectors = Float[np.ndarray, "saves atoms 3"]
XI = 2.837297  # of a cubic box of the Ewald kind


class Curve(NamedTuple):
    """A function at even distances and the standard error of each value, (lags,) both."""

    values: np.ndarray
    stderr: np.ndarray


@overload
def mean_square_displacement(
    positions: Vectors, lags: int | None = None, *, blocks: None = None
) -> np.ndarray: ...
@overload
def mean_square_displacement(
    positions: Vectors, lags: int | None = None, *, blocks: int
) -> Curve: ...
def mean_square_displacement(
    positions: Vectors, lags: int | None = None, *, blocks: int | None = None
) -> np.ndarray | Curve:
    """⟨|x(t) - x(0)|²⟩ over atoms and all origins of time, (lags,) [length²], the first one 0.

    positions: (saves, atoms, 3) [length], unwrapped, at even times
    lags: how many, default half the saves. Costs n log n, by Fourier transforms (Kneller et al.
        1995, doi:10.1016/0010-4655(95)00048-K)
    blocks: stretches of the run, 8 say, each of which gives a curve: then their mean and, from
        their scatter, its error, a `Curve`. A stretch should be many correlation times long
    """
    if blocks is not None:
        return _of_stretches(mean_square_displacement, positions, lags, blocks)
    x, count = _checked(positions, lags)
    x = x - x[0]
    n = len(x)
    squares = np.sum(x**2, axis=(1, 2))
    total = np.cumsum(squares)
    k = np.arange(count)
    # Σ_t |x_t|² + |x_t+k|² over the n - k origins, less twice the correlation
    ends = total[n - 1 - k] + total[n - 1] - np.concatenate([[0.0], total])[k]
    return (ends - 2 * _correlation(x, count)) / ((n - k) * x.shape[1])


@overload
def velocity_autocorrelation(
    velocities: Vectors, lags: int | None = None, *, blocks: None = None
) -> np.ndarray: ...
@overload
def velocity_autocorrelation(
    velocities: Vectors, lags: int | None = None, *, blocks: int
) -> Curve: ...
def velocity_autocorrelation(
    velocities: Vectors, lags: int | None = None, *, blocks: int | None = None
) -> np.ndarray | Curve:
    """⟨v(t)·v(0)⟩ over atoms and all origins of time, (lags,) [length²/time²].

    velocities: (saves, atoms, 3) [length/time], at even times
    lags, blocks: as of `mean_square_displacement`
    """
    if blocks is not None:
        return _of_stretches(velocity_autocorrelation, velocities, lags, blocks)
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
    check_positive(spacing=spacing)
    c = checked_array("correlation", correlation, "lags")
    if not c[0] > 0:
        raise ConfigError("must begin with a positive C(0)", key="correlation", value=float(c[0]))
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
    check_positive(spacing=spacing)
    x = checked_array("positions", positions, "saves", "atoms", 3)
    begin, end = window
    if not (math.isfinite(begin) and math.isfinite(end)):
        raise ConfigError("must be two finite times", key="window", value=window)
    low, high = round(begin / spacing), round(end / spacing)
    length = len(x) // checked_count("blocks", blocks)
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
        for part in _stretches(x, blocks)
    ]
    value, error = _scatter(slopes)
    unit = unit_system(units).filled("({length})^2/({time})")
    return Estimate(float(value), float(error), unit)


def finite_size_correction(
    temperature: float, viscosity: float, edge: float, *, units: str | UnitSystem = "lj"
) -> float:
    """ΔD = 2.837297 kT/(6πηL), which a cubic box of edge L takes from D [length²/time].

    viscosity: η [energy time/length³]; edge: L [length]. Source: Yeh & Hummer 2004,
    doi:10.1021/jp0477147.
    """
    check_positive(temperature=temperature, viscosity=viscosity, edge=edge)
    kT = temperature * unit_system(units).boltzmann
    return XI * kT / (6 * math.pi * viscosity * edge)


def _checked(x: np.ndarray, lags: int | None) -> tuple[np.ndarray, int]:
    x = checked_array("trajectory", x, "saves", "atoms", 3, least=2)
    count = len(x) // 2 if lags is None else lags
    if not 1 <= count <= len(x):
        raise ConfigError("no such lag", key="lags", value=count, allowed=f"1 to {len(x)}")
    return x, count


def _stretches(x: np.ndarray, blocks: int) -> list[np.ndarray]:
    """Stretches of a run of one length, what is left over at its end left out."""
    length = len(x) // blocks
    return [x[i * length : (i + 1) * length] for i in range(blocks)]


def _scatter(values: Sequence[Any]) -> tuple[Any, Any]:
    """The mean of what each stretch gave, and its standard error; infinite of one alone."""
    found = np.asarray(values)
    if len(found) == 1:
        return found[0], np.full(found[0].shape, math.inf)
    return found.mean(axis=0), found.std(axis=0, ddof=1) / math.sqrt(len(found))


def _of_stretches(
    curve: Callable[[np.ndarray, int | None], np.ndarray], x: Vectors, lags: int | None, blocks: int
) -> Curve:
    """A curve with its error, from the curves of so many stretches of a run."""
    count = checked_count("blocks", blocks, least=2)
    given = checked_array("trajectory", x, "saves", "atoms", 3, least=2 * count)
    return Curve(*_scatter([curve(part, lags) for part in _stretches(given, count)]))


def _correlation(x: np.ndarray, count: int) -> np.ndarray:
    """Σ_t Σ_atoms x_t · x_t+k, (count,)."""
    total = np.zeros(count)
    for atom in range(x.shape[1]):  # one at a time: the spectra of all would be twice the data
        spectrum = np.fft.rfft(x[:, atom], 2 * len(x), axis=0)
        power = np.sum(np.abs(spectrum) ** 2, axis=1)
        total += np.fft.irfft(power, 2 * len(x))[:count]
    return total

"""Velocity fields to start from, with a leading axis for the conditions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .._errors import ConfigError
from ._incompressible import IncompressibleFlow

Fields = tuple[np.ndarray, ...]


def taylor_green(flow: IncompressibleFlow, wavenumber: int = 1) -> Fields:
    """u = cos kx sin ky, v = -sin kx cos ky (in 3D u and v times cos kz, w = 0), in a box of 2π.

    In 2D it decays as exp(-2 k² ν t) (Taylor and Green 1937, doi:10.1098/rspa.1937.0036); in 3D it
    breaks up into turbulence. Shapes: (1, *unknowns) of each component.
    """
    k = wavenumber
    signs = (1.0, -1.0)

    def component(c: int, x: tuple[np.ndarray, ...]) -> np.ndarray:
        if c == 2:
            return np.zeros_like(x[0])
        across = 1 - c
        rest = np.cos(k * x[2]) if len(x) == 3 else 1.0
        return signs[c] * np.cos(k * x[c]) * np.sin(k * x[across]) * rest

    return _sampled(flow, component)


def uniform(flow: IncompressibleFlow, velocity: Sequence[float]) -> Fields:
    """The same velocity everywhere. Shapes: (1, *unknowns) of each component."""
    if len(velocity) != flow.grid.ndim:
        raise ConfigError(f"needs {flow.grid.ndim} components", key="velocity", value=velocity)
    return _sampled(flow, lambda c, x: np.full(x[0].shape, float(velocity[c])))


def _sampled(
    flow: IncompressibleFlow, component: Callable[[int, tuple[np.ndarray, ...]], np.ndarray]
) -> Fields:
    box = flow.box
    return tuple(component(c, box.coordinates(c))[None] for c in range(box.grid.ndim))


def random_velocity(
    flow: IncompressibleFlow,
    peak_wavenumber: float = 4.0,
    max_velocity: float = 1.0,
    seeds: Sequence[int] = (0,),
) -> Fields:
    """Random fields whose energy E(k) ∝ k⁴ exp(-2 (k/k₀)²) peaks at k₀, in a periodic box.

    Free of divergence on the grid, and scaled to `max_velocity`; the same field, sampled finer, on
    a finer grid. k is in units of 2π/L. A condition a seed: shapes (seeds, *unknowns).
    """
    if not flow.box.periodic:
        raise ConfigError("random_velocity needs a periodic box", key="conditions")
    if not 0 < peak_wavenumber < min(flow.grid.shape) / 4:
        raise ConfigError(
            "must be positive and under a quarter of the cells along an axis",
            key="peak_wavenumber",
            value=peak_wavenumber,
        )
    samples = [_random(flow, peak_wavenumber, max_velocity, seed) for seed in seeds]
    return tuple(np.stack(parts) for parts in zip(*samples, strict=True))


def _random(flow: IncompressibleFlow, peak: float, fastest: float, seed: int) -> list[np.ndarray]:
    shape, ndim = flow.grid.shape, flow.grid.ndim
    most = int(np.ceil(3 * peak))
    rng = np.random.default_rng(seed)
    axes = [np.arange(-most, most + 1)] * ndim
    waves = np.stack(np.meshgrid(*axes, indexing="ij")).reshape(ndim, -1)
    size = np.sqrt(np.sum(waves**2, axis=0))
    keep = (size > 0) & (size <= most)
    waves, size = waves[:, keep], size[keep]
    weight = size ** (2 - (ndim - 1) / 2) * np.exp(-((size / peak) ** 2))
    fields = []
    for component in range(ndim):
        # drawn wave by wave, so that a finer grid has the same field
        drawn = weight * (rng.standard_normal(size.size) + 1j * rng.standard_normal(size.size))
        x = flow.box.coordinates(component)
        total = np.zeros(shape, complex)
        total[tuple(waves % np.array(shape)[:, None])] += drawn
        shift = [a.min() for a in x]
        phase = np.exp(
            2j
            * np.pi
            * sum(
                k * s / length
                for k, s, length in zip(
                    np.meshgrid(*(np.fft.fftfreq(n, 1 / n) for n in shape), indexing="ij"),
                    [s - low for s, low in zip(shift, flow.grid.lower, strict=True)],
                    flow.grid.size,
                    strict=True,
                )
            )
        )
        fields.append(np.real(np.fft.ifftn(total * phase)) * np.prod(shape))
    projected: Any = flow.project(fields, {})[0]
    projected = [np.asarray(u) for u in projected]
    scale = fastest / max(float(np.max(np.abs(u))) for u in projected)
    return [scale * u for u in projected]

"""Velocity fields to start from, with a leading axis for the conditions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .._errors import ConfigError
from ._grid import Grid
from ._incompressible import IncompressibleFlow
from ._spectral import SpectralFlow

Fields = tuple[np.ndarray, ...]
Flow = IncompressibleFlow | SpectralFlow


def taylor_green(flow: Flow, wavenumber: int = 1) -> Fields:
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


def uniform(flow: Flow, velocity: Sequence[float]) -> Fields:
    """The same velocity everywhere. Shapes: (1, *unknowns) of each component."""
    if len(velocity) != flow.grid.ndim:
        raise ConfigError(f"needs {flow.grid.ndim} components", key="velocity", value=velocity)
    return _sampled(flow, lambda c, x: np.full(x[0].shape, float(velocity[c])))


def _sampled(flow: Flow, component: Callable[[int, tuple[np.ndarray, ...]], np.ndarray]) -> Fields:
    box = flow.box
    return tuple(component(c, box.coordinates(c))[None] for c in range(box.grid.ndim))


def random_velocity(
    flow: Flow,
    peak_wavenumber: float = 4.0,
    max_velocity: float = 1.0,
    seeds: Sequence[int] = (0,),
) -> Fields:
    """Random fields whose energy E(k) ∝ k⁴ exp(-2 (k/k₀)²) peaks at k₀, in a periodic box.

    u is the curl of a random potential, differenced on the grid, so that it is free of divergence
    there: the averages over the faces of one smooth field, whatever the grid, whose largest
    component is `max_velocity`. k is in units of 2π/L. Shapes: (seeds, *unknowns).
    """
    grid = flow.grid
    if not (isinstance(flow, IncompressibleFlow) and flow.box.periodic):
        raise ConfigError(
            "random_velocity needs a periodic IncompressibleFlow",
            key="conditions",
            allowed="RandomPotential(...).velocity gives the same field at the points of any grid",
        )
    if not 0 < peak_wavenumber < min(grid.shape) / 6:
        raise ConfigError(
            "must be positive and under a sixth of the cells along an axis",
            key="peak_wavenumber",
            value=peak_wavenumber,
        )
    samples = [_curl(grid, RandomPotential(grid, peak_wavenumber, max_velocity, s)) for s in seeds]
    return tuple(np.stack(parts) for parts in zip(*samples, strict=True))


def _curl(grid: Grid, potential: RandomPotential) -> list[np.ndarray]:
    """u_a = Σ_b ∂_b A_ab at the faces, A antisymmetric, given at the edges between a and b."""
    fields = []
    for a in range(grid.ndim):
        total = np.zeros(grid.shape)
        for b in range(grid.ndim):
            if b != a:
                # an edge is at a face of both axes, and at the centre of the third
                offset = tuple(1.0 if axis in (a, b) else 0.5 for axis in range(grid.ndim))
                at_edges = potential.sampled(a, b, grid.shape, offset)
                total += (at_edges - np.roll(at_edges, 1, b)) / grid.spacing[b]
        fields.append(total)
    return fields


class RandomPotential:
    """A_ab(x) = Re Σ_k c_k exp(i k·x) for each pair of axes a < b: a smooth random field, known
    everywhere by its few coefficients."""

    def __init__(self, grid: Grid, peak: float, fastest: float, seed: int):
        self.grid, most = grid, int(np.ceil(2.5 * peak))
        rng = np.random.default_rng(seed)
        axes = [np.arange(-most, most + 1)] * grid.ndim
        waves = np.stack(np.meshgrid(*axes, indexing="ij")).reshape(grid.ndim, -1)
        size = np.sqrt(np.sum(waves**2, axis=0))
        self.waves = waves[:, (size > 0) & (size <= most)]
        k = np.sqrt(np.sum(self.waves**2, axis=0))
        # |u_k|² ~ k² |A_k|², of which a shell has k^(d - 1)
        weight = k ** (1 - (grid.ndim - 1) / 2) * np.exp(-((k / peak) ** 2))
        pairs = [(a, b) for a in range(grid.ndim) for b in range(a + 1, grid.ndim)]
        draws = rng.standard_normal((len(pairs), 2, k.size))
        self.coefficients = {
            pair: weight * (d[0] + 1j * d[1]) for pair, d in zip(pairs, draws, strict=True)
        }
        fine = (8 * most,) * grid.ndim
        speed = max(float(np.max(np.abs(self.velocity(a, fine)))) for a in range(grid.ndim))
        self.coefficients = {p: fastest / speed * c for p, c in self.coefficients.items()}

    def _at(self, coefficients: np.ndarray, shape: Sequence[int], offset: Any) -> np.ndarray:
        """Re Σ c exp(i k·x) at x = (index + offset) L/n."""
        total = np.zeros(tuple(shape), complex)
        shift = sum(k * o / n for k, o, n in zip(self.waves, offset, shape, strict=True))
        index = tuple(k % n for k, n in zip(self.waves, shape, strict=True))
        np.add.at(total, index, coefficients * np.exp(2j * np.pi * shift))
        return np.real(np.fft.ifftn(total)) * np.prod(shape)

    def sampled(self, a: int, b: int, shape: Sequence[int], offset: Any) -> np.ndarray:
        """A_ab, antisymmetric."""
        if a > b:
            return -self.sampled(b, a, shape, offset)
        return self._at(self.coefficients[a, b], shape, offset)

    def velocity(self, a: int, shape: Sequence[int], offset: Any = None) -> np.ndarray:
        """u_a itself at the points x = (index + offset) L/n of a grid."""
        offset = (0.0,) * self.grid.ndim if offset is None else offset
        total = np.zeros(tuple(shape))
        for b in range(self.grid.ndim):
            if b != a:
                pair, sign = ((a, b), 1.0) if a < b else ((b, a), -1.0)
                slope = 2j * np.pi * self.waves[b] / self.grid.size[b]
                total += sign * self._at(slope * self.coefficients[pair], shape, offset)
        return total

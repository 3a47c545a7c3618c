"""Real fields on a periodic grid and the Fourier modes that are kept of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._errors import ConfigError
from ._grid import Grid
from ._linear import AbstractLinear

# the modes kept, as a share of the wave numbers below N: N/3 keeps a product of two fields free of
# aliases, N/4 one of three
DEALIAS = {"2/3": 3, "1/2": 4, "none": 2}

SIDES = ("periodic", "insulated", "fixed")


@dataclass(frozen=True)
class ToPoints(AbstractLinear):
    """P: from modes to points. `adjoint`: Mᵀ = n P/w in its place, n the number of points and w
    how often a mode counts: twice, for its conjugate that is not kept, but for k = 0 along the last
    axis."""

    shape: tuple[int, ...]
    cut: tuple[int, ...]
    adjoint: bool = False

    def apply(self, x: Array) -> Array:
        if self.adjoint:
            x = x * jnp.asarray(math.prod(self.shape) / counts(self.cut), x.dtype)
        axes = tuple(range(-len(self.shape), 0))
        modes = jax.lax.complex(x[0], x[1])
        for axis, m, n in zip(axes[:-1], self.cut, self.shape, strict=False):
            gap = list(modes.shape)
            gap[axis] = n - 2 * m - 1
            low, high = jnp.split(modes, [m + 1], axis)
            modes = jnp.concatenate([low, jnp.zeros(gap, modes.dtype), high], axis)
        above = self.shape[-1] // 2 - self.cut[-1]
        modes = jnp.pad(modes, [(0, 0)] * (modes.ndim - 1) + [(0, above)])
        return jnp.fft.irfftn(modes, s=self.shape, axes=axes)

    def transposed(self, shape: tuple[int, ...]) -> AbstractLinear:
        return ToModes(self.shape, self.cut, not self.adjoint)


@dataclass(frozen=True)
class ToModes(AbstractLinear):
    """M: from points to modes. `adjoint`: Pᵀ = w M/n in its place."""

    shape: tuple[int, ...]
    cut: tuple[int, ...]
    adjoint: bool = False

    def apply(self, x: Array) -> Array:
        axes = tuple(range(-len(self.shape), 0))
        modes = jnp.fft.rfftn(x, axes=axes)[..., : self.cut[-1] + 1]
        for axis, m, n in zip(axes[:-1], self.cut, self.shape, strict=False):
            low = jax.lax.slice_in_dim(modes, 0, m + 1, axis=axis)
            high = jax.lax.slice_in_dim(modes, n - m, n, axis=axis)
            modes = jnp.concatenate([low, high], axis)
        spectrum = jnp.stack([modes.real, modes.imag])
        if not self.adjoint:
            return spectrum
        return spectrum * jnp.asarray(counts(self.cut) / math.prod(self.shape), spectrum.dtype)

    def transposed(self, shape: tuple[int, ...]) -> AbstractLinear:
        return ToPoints(self.shape, self.cut, not self.adjoint)


def counts(cut: Sequence[int]) -> np.ndarray:
    """How often a mode that is kept counts in a sum over all, along the last axis."""
    return np.where(np.arange(cut[-1] + 1) > 0, 2.0, 1.0)


class PeriodicModes(eqx.Module):
    """u(x) = Σ_k û_k e^{ik·(x - lower)}/n, |kᵢ| ≤ 2π cutᵢ/Lᵢ, on the n points xᵢ = lower + i h.

    Spectra are real: (2, …, *shape), the real and imaginary part of what `numpy.fft.rfftn` gives
    (no scaling), of the wave numbers 0 … cut, -cut … -1 along each axis but the last, which has
    0 … cut. What is cut off a field is lost, the shortest wave of an even number of points in any
    case: it has no derivative.

    **Arguments:** `grid`; `dealias`: "2/3" (cut < N/3: products of two fields are exact), "1/2"
    (cut < N/4: of three), "none" (all).
    """

    grid: Grid
    cut: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, grid: Grid, dealias: str = "2/3"):
        if dealias not in DEALIAS:
            raise ConfigError("unknown", key="dealias", value=dealias, allowed=DEALIAS)
        self.grid = grid
        self.cut = tuple((n - 1) // DEALIAS[dealias] for n in grid.shape)

    def __check_init__(self):
        if min(self.cut) < 1:
            raise ConfigError("too few points to keep a wave", key="grid", value=self.grid.shape)

    @property
    def periodic(self) -> bool:
        return True

    @property
    def shape(self) -> tuple[int, ...]:
        """How many modes are kept along each axis."""
        return (*(2 * m + 1 for m in self.cut[:-1]), self.cut[-1] + 1)

    @property
    def axes(self) -> tuple[int, ...]:
        return tuple(range(-self.grid.ndim, 0))

    def coordinates(self, component: int | None = None) -> tuple[np.ndarray, ...]:
        """The points, an array of the grid's shape an axis; the same for every component."""
        del component
        grid = self.grid
        along = [low + h * np.arange(n) for low, h, n in zip(*_edges(grid), strict=True)]
        return tuple(np.meshgrid(*along, indexing="ij"))

    def to_faces(self, q: Array, axis: int) -> Array:
        """All unknowns are at the same points, so that forcing has nothing to interpolate."""
        del axis
        return q

    def wavenumbers(self) -> tuple[np.ndarray, ...]:
        """k [1/length], an axis each, shaped to broadcast over spectra."""
        found = []
        for axis, (m, size) in enumerate(zip(self.cut, self.grid.size, strict=True)):
            last = axis == self.grid.ndim - 1
            k = np.r_[0 : m + 1] if last else np.r_[0 : m + 1, -m:0]
            shape = [1] * self.grid.ndim
            shape[axis] = -1
            found.append((2 * math.pi / size * k).reshape(shape))
        return tuple(found)

    def squared(self) -> np.ndarray:
        """k² [1/length²]."""
        return sum((k**2 for k in self.wavenumbers()), np.zeros(self.shape))

    def inverse_squared(self) -> np.ndarray:
        """1/k², and 0 for the constant."""
        squared = self.squared()
        return np.divide(1, squared, out=np.zeros(self.shape), where=squared > 0)

    def points(self, spectrum: Array) -> Array:
        """The field of a spectrum: (2, …, *shape) -> (…, *grid.shape)."""
        return ToPoints(self.grid.shape, self.cut)(spectrum)

    def modes(self, field: Array) -> Array:
        """The spectrum of a field: (…, *grid.shape) -> (2, …, *shape)."""
        return ToModes(self.grid.shape, self.cut)(field)

    def mean_product(self, a: Array, b: Array) -> Array:
        """<a b> over the volume, from spectra: (2, …, *shape) -> (…)."""
        weights = counts(self.cut) / math.prod(self.grid.shape) ** 2
        total = jnp.sum(a * b * jnp.asarray(weights, a.dtype), axis=self.axes)
        return jnp.sum(total, axis=0)

    def mean(self, spectrum: Array) -> Array:
        """<a>: (2, …, *shape) -> (…)."""
        return spectrum[0][(..., *(0,) * self.grid.ndim)] / math.prod(self.grid.shape)


class MirroredModes(eqx.Module):
    """Fields between walls, as periodic ones of twice the length: mirrored at insulated walls
    (∂u/∂n = 0), mirrored with the other sign at fixed ones (u = 0).

    The points are xᵢ = lower + i h along periodic axes, else the centres of the cells.

    **Arguments:** `grid`; `sides`: "periodic", "insulated" or "fixed", one for all or one an axis.
    """

    grid: Grid
    sides: tuple[str, ...] = eqx.field(static=True)
    doubled: PeriodicModes

    def __init__(self, grid: Grid, sides: str | Sequence[str]):
        self.grid = grid
        self.sides = (sides,) * grid.ndim if isinstance(sides, str) else tuple(sides)
        if len(self.sides) != grid.ndim:
            raise ConfigError(f"needs {grid.ndim} entries", key="sides", value=self.sides)
        for side in self.sides:
            if side not in SIDES:
                raise ConfigError("unknown", key="sides", value=side, allowed=SIDES)
        factor = [1 if side == "periodic" else 2 for side in self.sides]
        shape = [f * n for f, n in zip(factor, grid.shape, strict=True)]
        size = [f * s for f, s in zip(factor, grid.size, strict=True)]
        self.doubled = PeriodicModes(Grid(shape, size, grid.lower), "none")

    @property
    def axes(self) -> tuple[int, ...]:
        return self.doubled.axes

    def coordinates(self) -> tuple[np.ndarray, ...]:
        """The points, an array of the grid's shape an axis."""
        within = tuple(slice(n) for n in self.grid.shape)
        halves = [
            0.0 if side == "periodic" else 0.5 * h
            for side, h in zip(self.sides, self.grid.spacing, strict=True)
        ]
        found = self.doubled.coordinates()
        return tuple(x[within] + half for x, half in zip(found, halves, strict=True))

    def squared(self) -> np.ndarray:
        """k² [1/length²]."""
        return self.doubled.squared()

    def modes(self, field: Array) -> Array:
        """The spectrum of a field: (…, *grid.shape) -> (2, …, modes)."""
        for axis, side in zip(self.axes, self.sides, strict=True):
            if side != "periodic":
                image = jnp.flip(field, axis)
                image = image if side == "insulated" else -image
                field = jnp.concatenate([field, image], axis)
        return self.doubled.modes(field)

    def points(self, spectrum: Array) -> Array:
        """The field of a spectrum: (2, …, modes) -> (…, *grid.shape)."""
        within = (..., *(slice(n) for n in self.grid.shape))
        return self.doubled.points(spectrum)[within]


def rotated(k: Any, spectrum: Array) -> Array:
    """i k û: a derivative, k a wave number or its product with something real."""
    k = jnp.asarray(k, spectrum.dtype)
    return jnp.stack([-k * spectrum[1], k * spectrum[0]])


def floating(field: Array) -> Array:
    """In floating point, if it is not."""
    return field if jnp.issubdtype(field.dtype, jnp.floating) else field.astype(float)


def _edges(grid: Grid) -> tuple[tuple[Any, ...], ...]:
    return grid.lower, grid.spacing, grid.shape

"""What instruments at a few places see."""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._errors import ConfigError
from ._boundary import Box


class AbstractProbe(eqx.Module):
    """A further observable of a flow, called `name`."""

    name: eqx.AbstractVar[str]

    @abstractmethod
    def __call__(self, box: Box, velocity: Sequence[Array], params: Mapping[str, Any]) -> Array:
        """Its value."""

    def check(self, box: Box) -> None:
        """Refuse, before anything is traced, a box that it does not fit."""
        del box


class Probes(AbstractProbe):
    """u(x_p) by linear interpolation of the staggered values, at points x_p: an observable of shape
    (points, axes), second order in the grid.

    **Arguments:** `points`: (points, axes) coordinates; or `counts`, numbers of points along each
    axis, evenly spaced over the box, the first half a spacing from its side; `name` of the
    observable.
    """

    points: Any = None
    counts: tuple[int, ...] | None = eqx.field(static=True, default=None)
    name: str = eqx.field(static=True, default="probes")

    def __init__(
        self, points: Any = None, counts: Sequence[int] | None = None, name: str = "probes"
    ):
        self.points = None if points is None else np.asarray(points, dtype=float)
        self.counts = None if counts is None else tuple(int(n) for n in counts)
        self.name = name

    def __check_init__(self):
        if (self.points is None) == (self.counts is None):
            raise ConfigError("give either points or counts", key="probes")

    def places(self, box: Box) -> np.ndarray:
        """Their coordinates, shape (points, axes)."""
        if self.counts is None:
            return np.asarray(self.points)
        grid = box.grid
        along = [
            low + (np.arange(n) + 0.5) * size / n
            for low, n, size in zip(grid.lower, self.counts, grid.size, strict=True)
        ]
        return np.stack(np.meshgrid(*along, indexing="ij"), axis=-1).reshape(-1, grid.ndim)

    def check(self, box: Box) -> None:
        grid = box.grid
        if self.counts is not None and (len(self.counts) != grid.ndim or min(self.counts) < 1):
            raise ConfigError(f"needs {grid.ndim} numbers", key="probes.counts", value=self.counts)
        x = self.places(box)
        if x.ndim != 2 or x.shape[1] != grid.ndim:
            raise ConfigError(f"needs shape (points, {grid.ndim})", key="probes", value=x.shape)
        low, high = np.asarray(grid.lower), np.asarray(grid.lower) + np.asarray(grid.size)
        outside = np.flatnonzero(np.any((x < low) | (x > high), axis=1))
        if outside.size:
            raise ConfigError(
                f"point {outside[0]} is outside of the domain",
                key="probes.points",
                value=x[outside[0]].tolist(),
            )

    def __call__(self, box: Box, velocity: Sequence[Array], params: Mapping[str, Any]) -> Array:
        x = self.places(box)
        columns = []
        for component, u in enumerate(velocity):
            wide = box.faces(u, component, params)
            for axis in range(box.grid.ndim):
                if axis != component:
                    wide = box.beside(wide, component, axis, params)
            columns.append(_interpolated(box, wide, component, x))
        return jnp.stack(columns, axis=-1)


def _interpolated(box: Box, wide: Array, component: int, x: np.ndarray) -> Array:
    """A component with all its faces and a ghost cell around, at points."""
    below, share = [], []
    for axis, (low, h) in enumerate(zip(box.grid.lower, box.grid.spacing, strict=True)):
        first = 0.0 if axis == component else -0.5  # of the first value, in cells
        place = (x[:, axis] - low) / h - first
        index = np.clip(np.floor(place).astype(int), 0, wide.shape[axis] - 2)
        below.append(index)
        share.append(place - index)
    total = jnp.zeros(len(x), wide.dtype)
    for corner in itertools.product((0, 1), repeat=box.grid.ndim):
        weight = np.prod([s if c else 1 - s for c, s in zip(corner, share, strict=True)], axis=0)
        at = tuple(i + c for c, i in zip(corner, below, strict=True))
        total = total + jnp.asarray(weight, wide.dtype) * wide[at]
    return total

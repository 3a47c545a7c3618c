"""Uniform Cartesian grids."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Float

from .._errors import ConfigError

AXES = "xyz"


class Grid(eqx.Module):
    """xᵢ = lower + (i + ½) h: the centres of the cells of a box in one, two or three dimensions.

    **Arguments:** `shape`: cells along each axis; `size`: edge lengths, a number for all; `lower`:
    the corner at the origin of indices. Lengths are in any consistent unit.
    """

    shape: tuple[int, ...] = eqx.field(static=True)
    size: tuple[float, ...] = eqx.field(static=True)
    lower: tuple[float, ...] = eqx.field(static=True)

    def __init__(
        self,
        shape: Sequence[int],
        size: Sequence[float] | float = 2 * math.pi,
        lower: Sequence[float] | float = 0.0,
    ):
        self.shape = tuple(int(n) for n in shape)
        self.size, self.lower = (
            tuple(float(v) for v in np.broadcast_to(np.asarray(x, float), (len(self.shape),)))
            for x in (self._as_long("size", size), self._as_long("lower", lower))
        )

    def _as_long(self, key: str, value: Any) -> Any:
        if np.ndim(value) and np.shape(value) != (len(self.shape),):
            raise ConfigError(f"needs {len(self.shape)} numbers, one an axis", key=key, value=value)
        return value

    def __check_init__(self):
        if not 1 <= self.ndim <= 3:
            raise ConfigError("a grid has one to three axes", key="shape", value=self.shape)
        if min(self.shape) < 4:
            raise ConfigError(
                "needs at least 4 cells along each axis", key="shape", value=self.shape
            )
        if not all(math.isfinite(s) and s > 0 for s in self.size):
            raise ConfigError("must be positive and finite", key="size", value=self.size)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def spacing(self) -> tuple[float, ...]:
        """h: the edges of a cell."""
        return tuple(s / n for s, n in zip(self.size, self.shape, strict=True))

    @property
    def cell_volume(self) -> float:
        return math.prod(self.spacing)

    @property
    def volume(self) -> float:
        return math.prod(self.size)

    def centres(self, axis: int) -> Float[np.ndarray, "cells"]:
        """Centres of the cells along an axis."""
        return self.lower[axis] + (np.arange(self.shape[axis]) + 0.5) * self.spacing[axis]

    def faces(self, axis: int) -> Float[np.ndarray, "faces"]:
        """Faces of the cells along an axis, both ends included."""
        return self.lower[axis] + np.arange(self.shape[axis] + 1) * self.spacing[axis]

    def mesh(self) -> tuple[np.ndarray, ...]:
        """The coordinates of all centres, an array of the grid's shape an axis."""
        return tuple(np.meshgrid(*map(self.centres, range(self.ndim)), indexing="ij"))

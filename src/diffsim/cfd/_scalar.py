"""Scalars that the fluid carries: temperature, salt, dye."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._errors import ConfigError
from ._boundary import Box, value_of
from ._convection import AbstractScheme
from ._grid import AXES
from ._stencil import difference, extended, second_difference


class Scalar(eqx.Module):
    """∂s/∂t = -∇·(u s) + κ ∇²s.

    **Arguments:** `name`; `diffusivity` κ [length²/time]: a number or the name of a parameter
    (default: `<name>_diffusivity`); `sides`: for each axis None, or a pair of what holds at the
    lower and upper side: None (no flux; periodic where the box is) or a value, a number or the name
    of a parameter.
    """

    name: str = eqx.field(static=True, default="temperature")
    diffusivity: Any = None
    sides: tuple[Any, ...] | None = eqx.field(static=True, default=None)

    def __init__(self, name: str = "temperature", diffusivity: Any = None, sides: Any = None):
        self.name = name
        self.diffusivity = f"{name}_diffusivity" if diffusivity is None else diffusivity
        self.sides = None if sides is None else tuple(e if e is None else tuple(e) for e in sides)

    def parameters(self) -> tuple[str, ...]:
        values = [self.diffusivity, *(v for pair in self.sides or () for v in pair or ())]
        return tuple(v for v in values if isinstance(v, str))

    def check(self, box: Box) -> None:
        if self.sides is None:
            return
        if len(self.sides) != box.grid.ndim:
            raise ConfigError(
                f"needs {box.grid.ndim} entries, one an axis", key=f"scalars.{self.name}.sides"
            )
        for axis, (pair, walls) in enumerate(zip(self.sides, box.sides, strict=True)):
            if pair is not None and (walls is None or len(pair) != 2):
                raise ConfigError(
                    "a value at a side needs a box with sides there, and a pair",
                    key=f"scalars.{self.name}.sides.{AXES[axis]}",
                    value=pair,
                )

    def pair(self, axis: int) -> tuple[Any, Any]:
        """What holds at the two sides of an axis."""
        found = None if self.sides is None else self.sides[axis]
        return (None, None) if found is None else found

    def fixed(self, box: Box) -> list[tuple[bool, bool]]:
        """At which sides a value is given."""
        return [
            (low is not None, high is not None)
            for low, high in (self.pair(axis) for axis in range(box.grid.ndim))
        ]

    def beside(
        self, box: Box, s: Array, axis: int, params: Mapping[str, Any], width: int = 1
    ) -> Array:
        """With `width` ghost cells beyond both sides of an axis."""
        if box.sides[axis] is None:
            return extended(s, axis, "wrap", "wrap", width)
        values = self.pair(axis)
        low, high = ("even" if value is None else "odd" for value in values)
        wide = extended(s, axis, low, high, width)
        for value, place in zip(values, (slice(0, width), slice(-width, None)), strict=True):
            if value is not None:
                fixed = jnp.asarray(2 * value_of(value, params), s.dtype)
                wide = wide.at[(slice(None),) * axis + (place,)].add(fixed)
        return wide

    def convected(
        self,
        box: Box,
        scheme: AbstractScheme,
        s: Array,
        faces: Sequence[Array],
        params: Mapping[str, Any],
    ) -> Array:
        """-∇·(u s), from the velocity at all faces."""
        total = jnp.zeros_like(s)
        for axis, (speed, h) in enumerate(zip(faces, box.grid.spacing, strict=True)):
            wide = self.beside(box, s, axis, params, scheme.width)
            total = total - difference(scheme.flux(wide, axis, speed), axis) / h
        return total

    def laplacian(self, box: Box, s: Array, params: Mapping[str, Any]) -> Array:
        total = jnp.zeros_like(s)
        for axis, h in enumerate(box.grid.spacing):
            wide = self.beside(box, s, axis, params)
            total = total + second_difference(wide, axis) / h**2
        return total

    def start(self, box: Box, given: Any, dtype: Any) -> Array:
        """The first field: a number or an array of the grid's shape."""
        value = jnp.asarray(0.0 if given is None else given, dtype)
        if value.shape not in ((), box.grid.shape):
            raise ConfigError(
                f"must have the grid's shape {box.grid.shape}",
                key=f"scalars.{self.name}",
                value=np.shape(value),
            )
        return jnp.broadcast_to(value, box.grid.shape)

"""Convection and diffusion of staggered fields in flux form."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array

from .._errors import ConfigError
from ._boundary import Box
from ._stencil import average, cut, difference, second_difference


class AbstractScheme(eqx.Module):
    """What a flux carries through a face: an interpolation along one axis."""

    @property
    @abstractmethod
    def width(self) -> int:
        """How many values on each side of a face it looks at."""

    @abstractmethod
    def flux(self, x: Array, axis: int, speed: Array) -> Array:
        """speed · x_f at m faces, from `x` of m + 2·width - 1 values along `axis`."""


class Central(AbstractScheme):
    """x_f = (xᵢ + xᵢ₊₁)/2: second order; kinetic energy is conserved but for viscosity (Harlow and
    Welch 1965, doi:10.1063/1.1761178). Oscillates where gradients are steeper than the grid."""

    @property
    def width(self) -> int:
        return 1

    def flux(self, x: Array, axis: int, speed: Array) -> Array:
        return speed * average(x, axis)


class Upwind(AbstractScheme):
    """x_f = xᵢ where fluid comes from i: first order, and its diffusion |u|h/2 is usually far
    larger than the viscosity."""

    @property
    def width(self) -> int:
        return 1

    def flux(self, x: Array, axis: int, speed: Array) -> Array:
        return speed * average(x, axis) - 0.5 * jnp.abs(speed) * difference(x, axis)


class VanLeer(AbstractScheme):
    """x_f = xᵢ + ½ sᵢ,  s = 2ab/(a + b) if ab > 0 else 0, a and b the differences to both sides of
    the cell i that fluid comes from.

    van Leer's limiter (1974, doi:10.1016/0021-9991(74)90019-9) in semi-discrete form: second order
    away from extrema in space, of the integrator's order in time, and no new extrema. (JAX-CFD's
    has dt in the flux, which makes it first order with Runge-Kutta.)
    """

    @property
    def width(self) -> int:
        return 2

    def flux(self, x: Array, axis: int, speed: Array) -> Array:
        # With m and d the mean and the difference of a and b, s = m - d²/(4m); and both sides of a
        # face come as a mean and a jump: averages and differences have cheap transposes.
        steps = difference(x, axis)
        mean, curve = average(steps, axis), difference(steps, axis)
        monotone = jnp.abs(curve) < 2 * jnp.abs(mean)
        slope = jnp.where(monotone, mean - curve**2 / (4 * jnp.where(monotone, mean, 1)), 0)
        middle = cut(x, axis, 1, -1)
        both = average(middle, axis) - 0.25 * difference(slope, axis)
        jump = difference(middle, axis) - average(slope, axis)
        return speed * both - 0.5 * jnp.abs(speed) * jump


SCHEMES: dict[str, AbstractScheme] = {
    "central": Central(),
    "upwind": Upwind(),
    "van_leer": VanLeer(),
}


def scheme_of(scheme: str | AbstractScheme) -> AbstractScheme:
    """A scheme by its name, or itself."""
    if isinstance(scheme, AbstractScheme):
        return scheme
    if scheme not in SCHEMES:
        raise ConfigError("unknown scheme", key="convection", value=scheme, allowed=SCHEMES)
    return SCHEMES[scheme]


def convection(
    box: Box, scheme: AbstractScheme, velocity: Sequence[Array], params: Mapping[str, Any]
) -> tuple[Array, ...]:
    """-∇·(u u) at the unknowns of each component."""
    faces = [box.faces(u, axis, params) for axis, u in enumerate(velocity)]
    spacing = box.grid.spacing
    tendencies = []
    for component, u in enumerate(velocity):
        total = jnp.zeros_like(u)
        for axis, h in enumerate(spacing):
            if axis == component:
                speed = average(faces[axis], axis)
                wide = faces[axis] if scheme.width == 1 else box.beyond_faces(faces[axis], axis)
                flux = scheme.flux(wide, axis, speed)
                total = total - box.difference_at_faces(flux, axis) / h
            else:
                speed = box.to_faces(faces[axis], component)
                wide = box.beside(u, component, axis, params, scheme.width)
                flux = scheme.flux(wide, axis, speed)
                total = total - difference(flux, axis) / h
        tendencies.append(total)
    return tuple(tendencies)


def laplacian(box: Box, velocity: Sequence[Array], params: Mapping[str, Any]) -> tuple[Array, ...]:
    """∇²u at the unknowns of each component."""
    out = []
    for component, u in enumerate(velocity):
        total = jnp.zeros_like(u)
        for axis, h in enumerate(box.grid.spacing):
            if axis == component:
                wide = box.around(u, component, params)
            else:
                wide = box.beside(u, component, axis, params)
            total = total + second_difference(wide, axis) / h**2
        out.append(total)
    return tuple(out)

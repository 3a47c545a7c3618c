"""The Navier-Stokes equations between Fourier modes: vorticity in 2D, velocity in 3D."""

from __future__ import annotations

import functools
import operator
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ._exponential import Fields
from ._spectral_modes import PeriodicModes, rotated


class AbstractEquation(eqx.Module):
    """The unknowns of a flow as spectra, and what changes them."""

    modes: eqx.AbstractVar[PeriodicModes]

    @abstractmethod
    def linear(self, viscosity: Array, drag: Array) -> Fields:
        """The diagonal of L = ν ∇² - α."""

    @abstractmethod
    def unknowns(self, vector: Sequence[Array]) -> Fields:
        """The unknowns of a velocity, or their change by an acceleration, from spectra of its
        components: its divergence is lost."""

    @abstractmethod
    def velocity(self, fields: Fields) -> tuple[Array, ...]:
        """Spectra of the velocity, a component an axis."""

    @abstractmethod
    def convection(self, velocity: Sequence[Array]) -> Fields:
        """The change by -∇·(u u) and the pressure, from the velocity at the points."""

    @abstractmethod
    def vorticity(self, fields: Fields) -> tuple[Array, ...]:
        """Spectra of the vorticity: one in 2D, three in 3D."""


class VorticityEquation(AbstractEquation):
    """∂ω/∂t = -∇·(u ω) + ν ∇²ω + ∇×f,  ∂U/∂t = <f>: the vorticity and the mean velocity.

    With ∇·(u ω) = (∂xx - ∂yy)(uv) + ∂xy(v² - u²) four transforms give the convection (Basdevant
    1983, doi:10.1016/0021-9991(83)90064-5).
    """

    modes: PeriodicModes

    def linear(self, viscosity: Array, drag: Array) -> Fields:
        squared = jnp.asarray(self.modes.squared(), viscosity.dtype)
        return -viscosity * squared - drag, -drag

    def unknowns(self, vector: Sequence[Array]) -> Fields:
        kx, ky = self.modes.wavenumbers()
        mean = jnp.stack([self.modes.mean(u) for u in vector])
        return rotated(kx, vector[1]) - rotated(ky, vector[0]), mean

    def velocity(self, fields: Fields) -> tuple[Array, ...]:
        vorticity, mean = fields
        kx, ky = self.modes.wavenumbers()
        inverse = self.modes.inverse_squared()
        constant = np.zeros((2, *self.modes.shape))
        constant[0, 0, 0] = np.prod(self.modes.grid.shape)
        constant = jnp.asarray(constant, vorticity.dtype)
        return tuple(
            rotated(k * inverse, vorticity) + u * constant
            for k, u in zip((ky, -kx), mean, strict=True)
        )

    def convection(self, velocity: Sequence[Array]) -> Fields:
        u, v = velocity
        kx, ky = self.modes.wavenumbers()
        shear = jnp.asarray(kx**2 - ky**2, u.dtype) * self.modes.modes(u * v)
        normal = jnp.asarray(kx * ky, u.dtype) * self.modes.modes(v * v - u * u)
        return shear + normal, jnp.zeros(2, u.dtype)

    def vorticity(self, fields: Fields) -> tuple[Array, ...]:
        return (fields[0],)


class VelocityEquation(AbstractEquation):
    """∂u/∂t = -P ∇·(u u) + ν ∇²u + P f,  P = 1 - k k/k².

    A multiple of the unit tensor adds a gradient alone, so that w² may be taken off the diagonal of
    u u, and eight transforms give the convection (Basdevant 1983,
    doi:10.1016/0021-9991(83)90064-5).
    """

    modes: PeriodicModes

    def linear(self, viscosity: Array, drag: Array) -> Fields:
        return (-viscosity * jnp.asarray(self.modes.squared(), viscosity.dtype) - drag,)

    def unknowns(self, vector: Sequence[Array]) -> Fields:
        return (self._projected(vector),)

    def velocity(self, fields: Fields) -> tuple[Array, ...]:
        return tuple(fields[0][:, axis] for axis in range(3))

    def _projected(self, vector: Sequence[Array]) -> Array:
        """P f, stacked behind the axis of real and imaginary parts."""
        waves = [jnp.asarray(k, vector[0].dtype) for k in self.modes.wavenumbers()]
        parts = [k * f for k, f in zip(waves, vector, strict=True)]
        inverse = jnp.asarray(self.modes.inverse_squared(), vector[0].dtype)
        along = sum(parts[1:], parts[0]) * inverse
        return jnp.stack([f - k * along for k, f in zip(waves, vector, strict=True)], axis=1)

    def convection(self, velocity: Sequence[Array]) -> Fields:
        u, v, w = velocity
        kx, ky, kz = self.modes.wavenumbers()
        uv, uw, vw, uu, vv = map(
            self.modes.modes, (u * v, u * w, v * w, u * u - w * w, v * v - w * w)
        )
        flux = (
            rotated(-kx, uu) + rotated(-ky, uv) + rotated(-kz, uw),
            rotated(-kx, uv) + rotated(-ky, vv) + rotated(-kz, vw),
            rotated(-kx, uw) + rotated(-ky, vw),
        )
        return (self._projected(flux),)

    def vorticity(self, fields: Fields) -> tuple[Array, ...]:
        u, v, w = self.velocity(fields)
        kx, ky, kz = self.modes.wavenumbers()
        return (
            rotated(ky, w) - rotated(kz, v),
            rotated(kz, u) - rotated(kx, w),
            rotated(kx, v) - rotated(ky, u),
        )


def equation_of(modes: PeriodicModes) -> AbstractEquation:
    return VorticityEquation(modes) if modes.grid.ndim == 2 else VelocityEquation(modes)


def total(*parts: Any) -> Fields:
    """The sum of changes, field by field."""
    return tuple(functools.reduce(operator.add, field) for field in zip(*parts, strict=True))

"""What accelerates a fluid besides itself: body forces, drag, buoyancy, solid bodies."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._errors import ConfigError
from ._boundary import Box, value_of
from ._grid import AXES

Number = Any  # a number, or the name of a parameter


class AbstractForcing(eqx.Module):
    """f(u, t; θ): an acceleration at the unknowns of each velocity component."""

    @abstractmethod
    def parameters(self) -> tuple[str, ...]:
        """The names of the parameters it reads."""

    @abstractmethod
    def __call__(
        self,
        box: Box,
        params: Mapping[str, Any],
        velocity: Sequence[Array],
        scalars: Mapping[str, Array],
        t: Any,
    ) -> tuple[Array | float, ...]:
        """Accelerations, one a component."""

    def check(self, box: Box, scalars: Sequence[str]) -> None:
        """Refuse, before anything is traced, what does not fit the box."""
        del box, scalars


def _names(*values: Any) -> tuple[str, ...]:
    return tuple(value for value in values if isinstance(value, str))


class KolmogorovForcing(AbstractForcing):
    """f = A sin(k y) along x: the laminar flow is A sin(k y)/(ν k² + α) with linear drag α.

    **Arguments:** `wavenumber` k [1/length] (Kochkov et al. 2021, doi:10.1073/pnas.2101784118,
    take 4 in a box of 2π); `amplitude` A [acceleration]: a number or the name of a parameter;
    `along`, `across`: the axes of the force and of its variation.
    """

    wavenumber: float | int = 4
    amplitude: Number = 1.0
    along: int = eqx.field(static=True, default=0)
    across: int = eqx.field(static=True, default=1)

    def parameters(self) -> tuple[str, ...]:
        return _names(self.amplitude)

    def check(self, box: Box, scalars: Sequence[str]) -> None:
        for key in ("along", "across"):
            if not 0 <= getattr(self, key) < box.grid.ndim:
                axes = ", ".join(map(str, range(box.grid.ndim)))
                raise ConfigError("no such axis", key=key, value=getattr(self, key), allowed=axes)
        if self.along == self.across:
            raise ConfigError("must differ from along", key="across", value=self.across)

    def __call__(self, box, params, velocity, scalars, t):
        y = box.coordinates(self.along)[self.across]
        shape = jnp.asarray(np.sin(self.wavenumber * y), velocity[0].dtype)
        force: list[Array | float] = [0.0] * box.grid.ndim
        force[self.along] = value_of(self.amplitude, params) * shape
        return tuple(force)


class LinearDrag(AbstractForcing):
    """f = -α u: friction with what lies above and below a thin layer. `coefficient` α [1/time]: a
    number or the name of a parameter."""

    coefficient: Number = 0.1

    def parameters(self) -> tuple[str, ...]:
        return _names(self.coefficient)

    def __call__(self, box, params, velocity, scalars, t):
        return tuple(-value_of(self.coefficient, params) * u for u in velocity)


class Acceleration(AbstractForcing):
    """f = g: uniform, such as the pressure gradient that drives a channel. `vector`: for each axis
    a number or the name of a parameter."""

    vector: tuple[Any, ...] = eqx.field(converter=tuple)

    def parameters(self) -> tuple[str, ...]:
        return _names(*self.vector)

    def check(self, box: Box, scalars: Sequence[str]) -> None:
        if len(self.vector) != box.grid.ndim:
            raise ConfigError(f"needs {box.grid.ndim} entries", key="vector", value=self.vector)

    def __call__(self, box, params, velocity, scalars, t):
        return tuple(
            jnp.broadcast_to(jnp.asarray(value_of(g, params), u.dtype), u.shape)
            for g, u in zip(self.vector, velocity, strict=True)
        )


class Buoyancy(AbstractForcing):
    """f = β (s - s₀) e: Boussinesq's approximation, upwards along the last axis.

    **Arguments:** `scalar`: the name of the scalar s; `coefficient` β, `reference` s₀: numbers or
    names of parameters.
    """

    scalar: str = eqx.field(static=True, default="temperature")
    coefficient: Number = 1.0
    reference: Number = 0.0

    def parameters(self) -> tuple[str, ...]:
        return _names(self.coefficient, self.reference)

    def check(self, box: Box, scalars: Sequence[str]) -> None:
        if self.scalar not in scalars:
            raise ConfigError(
                "no such scalar", key="forcing.scalar", value=self.scalar, allowed=scalars
            )

    def __call__(self, box, params, velocity, scalars, t):
        up = box.grid.ndim - 1
        excess = scalars[self.scalar] - value_of(self.reference, params)
        lift = value_of(self.coefficient, params) * box.to_faces(excess, up)
        return (*(0.0 for _ in range(up)), lift)


class BodyForce(AbstractForcing):
    """f = function(t, x, θ): any function of time, place and parameters, for control inputs.

    **Arguments:** `function(t, x, params)` -> an acceleration for each axis, from `x`, a tuple of
    coordinate arrays; it is evaluated at the unknowns of each component; `names`: the parameters
    it needs.
    """

    function: Callable[..., Sequence[Any]]
    names: tuple[str, ...] = eqx.field(static=True, default=(), converter=tuple)

    def parameters(self) -> tuple[str, ...]:
        return self.names

    def __call__(self, box, params, velocity, scalars, t):
        return tuple(
            self.function(t, tuple(map(jnp.asarray, box.coordinates(c))), params)[c]
            for c in range(box.grid.ndim)
        )


class Modes(AbstractForcing):
    """f_x = Σ_m a_m sin(k_m y) + b_m cos(k_m y), k_m = 2π m / L: an unknown force along x that
    depends on y.

    **Arguments:** `count`: modes m = 1 … count; `coefficients`: the name of a parameter of shape
    (2, count), a and b; `along`, `across`: the axes of the force and of its variation.
    """

    count: int = eqx.field(static=True, default=4)
    coefficients: str = eqx.field(static=True, default="force")
    along: int = eqx.field(static=True, default=0)
    across: int = eqx.field(static=True, default=1)

    def parameters(self) -> tuple[str, ...]:
        return (self.coefficients,)

    def __call__(self, box, params, velocity, scalars, t):
        grid, dtype = box.grid, velocity[0].dtype
        y = (box.coordinates(self.along)[self.across] - grid.lower[self.across]) / grid.size[
            self.across
        ]
        phase = 2 * np.pi * np.arange(1, self.count + 1)[:, None, None] * y.reshape(y.shape[0], -1)
        waves = jnp.asarray(np.stack([np.sin(phase), np.cos(phase)]), dtype)
        total = jnp.tensordot(jnp.asarray(params[self.coefficients], dtype), waves, axes=2)
        force: list[Array | float] = [0.0] * grid.ndim
        force[self.along] = total.reshape(y.shape)
        return tuple(force)


class Cylinder(eqx.Module):
    """A solid body by volume penalisation: ∂u/∂t = … - χ(x) (u - U)/η  (Angot et al. 1999,
    doi:10.1007/s002110050401), a cylinder (in 3D along z) or, of one axis less, a plate.

    χ is the share of each cell within `radius` of `centre`, smoothed over one cell. The velocity
    error at its surface falls as √(ν η). `permeability` η [time]: taken implicitly, so that it may
    be far below the time step; `velocity` U of the body.
    """

    centre: tuple[float, ...] = eqx.field(static=True, converter=tuple)
    radius: float = eqx.field(static=True, converter=float)
    permeability: float = eqx.field(static=True, default=1e-3, converter=float)
    velocity: tuple[float, ...] = eqx.field(static=True, default=(0.0, 0.0))

    def check(self, box: Box) -> None:
        grid = box.grid
        if not (self.radius > 0 and self.permeability > 0):
            raise ConfigError("must be positive", key="body.radius, body.permeability")
        if len(self.centre) != 2 or grid.ndim < 2:
            raise ConfigError("needs x and y, in a grid of 2 or 3 axes", key="body.centre")
        for axis, (c, low, size) in enumerate(
            zip(self.centre, grid.lower, grid.size, strict=False)
        ):
            if not low <= c - self.radius or not c + self.radius <= low + size:
                raise ConfigError(
                    f"the body reaches from {c - self.radius:g} to {c + self.radius:g} along "
                    f"{AXES[axis]}, outside of the domain [{low:g}, {low + size:g}]",
                    key="body.centre",
                    value=self.centre,
                )
        if self.radius < 2 * max(grid.spacing[:2]):
            raise ConfigError(
                f"the radius spans fewer than two cells of {max(grid.spacing[:2]):g}",
                key="body.radius",
                value=self.radius,
                allowed="a finer grid or a larger body",
            )

    def mask(self, box: Box, component: int) -> np.ndarray:
        """χ at the unknowns of a component."""
        x, y = box.coordinates(component)[:2]
        h = max(box.grid.spacing[:2])
        distance = np.hypot(x - self.centre[0], y - self.centre[1]) - self.radius
        return np.clip(0.5 - distance / h, 0.0, 1.0)

    def share(self, box: Box, component: int, dt: Any, dtype: Any) -> Array:
        """What part of its velocity relative to the body the fluid loses in a time dt, implicitly:
        χ dt/(η + dt), so that a cell half in the body loses half of what one inside does."""
        return jnp.asarray(self.mask(box, component), dtype) * (dt / (self.permeability + dt))

    def target(self, component: int) -> float:
        return self.velocity[component] if component < len(self.velocity) else 0.0

"""Reaction and diffusion."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array

from ..._errors import ConfigError
from .._checks import checked_dt
from .._exponential import AbstractStepper, stepper_of
from .._grid import Grid
from .._spectral_modes import PeriodicModes
from ._abstract import AbstractPDE


class ReactionDiffusion(AbstractPDE):
    """∂uᵢ/∂t = Dᵢ ∇²uᵢ + Rᵢ(u; θ): diffusion exact, any reaction between any number of fields.

    **Arguments:** `grid` of one to three axes, periodic; `dt`; `reaction(params, *fields)` -> a
    rate for each field (of one field the rate itself), from fields at the points; `names` of the
    fields; `needs`: the names of the parameters that the reaction reads; `method`: "etdrk4",
    "etdrk2", "cn_rk4" or a stepper; `dealias`: "2/3" (exact for products of two fields), "1/2" (of
    three), "none". The step has to follow the reaction, not the diffusion.

    **Parameters:** `diffusivity` D [length²/time], () or (fields,), and what the reaction needs.
    **Conditions:** the fields by their names, at xᵢ = lower + i h. Observables: see `AbstractPDE`.
    """

    modes: PeriodicModes
    dt: float = eqx.field(static=True)
    method: AbstractStepper
    reaction: Callable[..., Any]
    field_names: tuple[str, ...] = eqx.field(static=True)
    needs: tuple[str, ...] = eqx.field(static=True)

    def __init__(
        self,
        grid: Grid,
        dt: float,
        reaction: Callable[..., Any],
        *,
        names: Sequence[str] = ("u",),
        needs: Sequence[str] = (),
        method: str | AbstractStepper = "etdrk4",
        dealias: str = "2/3",
    ):
        self.modes, self.dt = PeriodicModes(grid, dealias), checked_dt(dt)
        self.method, self.reaction = stepper_of(method), reaction
        self.field_names, self.needs = tuple(names), tuple(needs)

    def __check_init__(self):
        taken = {"mass", "energy", "time"} & set(self.field_names)
        if taken or not self.field_names or len(set(self.field_names)) < len(self.field_names):
            raise ConfigError(
                "must differ, and from mass, energy and time", key="names", value=self.field_names
            )

    def names(self) -> tuple[str, ...]:
        return self.field_names

    def parameters(self) -> tuple[str, ...]:
        return ("diffusivity", *self.needs)

    def not_negative(self) -> tuple[str, ...]:
        return ("diffusivity",)

    def vectors(self) -> dict[str, int]:
        return {"diffusivity": len(self.field_names)}

    def linear(self, params: Mapping[str, Any], dtype: Any) -> Array:
        diffusivity = jnp.asarray(params["diffusivity"], dtype)
        diffusivity = jnp.broadcast_to(diffusivity, (len(self.field_names),))
        return -jnp.multiply.outer(diffusivity, jnp.asarray(self.modes.squared(), dtype))

    def nonlinear(self, params: Mapping[str, Any], spectrum: Array, t: Array) -> Array:
        fields = self.modes.points(spectrum)
        rates = self.reaction(params, *fields)
        rates = [rates] if len(self.field_names) == 1 and not _several(rates) else rates
        found = [jnp.broadcast_to(jnp.asarray(r, fields.dtype), fields.shape[1:]) for r in rates]
        if len(found) != len(self.field_names):
            raise ConfigError(
                f"must return {len(self.field_names)} rates", key="reaction", value=len(found)
            )
        return self.modes.modes(jnp.stack(found))


def _several(rates: Any) -> bool:
    return isinstance(rates, (tuple, list))


class FisherKPP(AbstractPDE):
    """∂u/∂t = D ∇²u + r u (1 - u): fronts between 0 and 1 that run at 2 √(r D) and faster.

    Fisher 1937, doi:10.1111/j.1469-1809.1937.tb02153.x; their width is √(D/r).

    **Arguments:** `grid` of one to three axes, periodic; `dt`; `method`: "etdrk4", "etdrk2",
    "cn_rk4" or a stepper; `dealias`: "2/3" (exact products), "1/2" or "none". Good values: D = 1,
    r = 1, 4 points a unit of length, dt = 0.1.

    **Parameters:** `diffusivity` D [length²/time], `growth` r [1/time]. **Conditions:** `u` at
    xᵢ = lower + i h. Observables: see `AbstractPDE`.
    """

    modes: PeriodicModes
    dt: float = eqx.field(static=True)
    method: AbstractStepper

    def __init__(
        self,
        grid: Grid,
        dt: float,
        *,
        method: str | AbstractStepper = "etdrk4",
        dealias: str = "2/3",
    ):
        self.modes, self.dt = PeriodicModes(grid, dealias), checked_dt(dt)
        self.method = stepper_of(method)

    def parameters(self) -> tuple[str, ...]:
        return ("diffusivity", "growth")

    def not_negative(self) -> tuple[str, ...]:
        return ("diffusivity",)

    def linear(self, params: Mapping[str, Any], dtype: Any) -> Array:
        diffusivity = jnp.asarray(params["diffusivity"], dtype)
        return -diffusivity * jnp.asarray(self.modes.squared(), dtype)

    def nonlinear(self, params: Mapping[str, Any], spectrum: Array, t: Array) -> Array:
        u = self.modes.points(spectrum)
        return jnp.asarray(params["growth"], u.dtype) * self.modes.modes(u * (1 - u))


class GrayScott(AbstractPDE):
    """∂u/∂t = D_u ∇²u - u v² + F (1 - u),  ∂v/∂t = D_v ∇²v + u v² - (F + k) v.

    u feeds v, which makes more of itself: spots that divide, stripes, waves (Pearson 1993,
    doi:10.1126/science.261.5118.189). Diffusion, feed and removal are exact.

    **Arguments:** `grid` of one to three axes, periodic; `dt`; `method`: "etdrk4", "etdrk2",
    "cn_rk4" or a stepper; `dealias`: "2/3", "1/2" (the cubic product exact) or "none". Good values:
    D_u = 2e-5, D_v = 1e-5, F = 0.04, k = 0.06 in a box of 2.5 with 256 points, dt = 1; start from
    u = 1, v = 0 with a square of u = 1/2, v = 1/4.

    **Parameters:** `diffusivity_u`, `diffusivity_v` [length²/time], `feed` F, `kill` k [1/time].
    **Conditions:** `u` and `v` at xᵢ = lower + i h. Observables: see `AbstractPDE`.
    """

    modes: PeriodicModes
    dt: float = eqx.field(static=True)
    method: AbstractStepper

    def __init__(
        self,
        grid: Grid,
        dt: float,
        *,
        method: str | AbstractStepper = "etdrk4",
        dealias: str = "2/3",
    ):
        self.modes, self.dt = PeriodicModes(grid, dealias), checked_dt(dt)
        self.method = stepper_of(method)

    def names(self) -> tuple[str, ...]:
        return ("u", "v")

    def parameters(self) -> tuple[str, ...]:
        return ("diffusivity_u", "diffusivity_v", "feed", "kill")

    def not_negative(self) -> tuple[str, ...]:
        return ("diffusivity_u", "diffusivity_v")

    def linear(self, params: Mapping[str, Any], dtype: Any) -> Array:
        du, dv, feed, kill = (jnp.asarray(params[name], dtype) for name in self.parameters())
        squared = jnp.asarray(self.modes.squared(), dtype)
        return jnp.stack([-du * squared - feed, -dv * squared - feed - kill])

    def nonlinear(self, params: Mapping[str, Any], spectrum: Array, t: Array) -> Array:
        u, v = self.modes.points(spectrum)
        feed = jnp.asarray(params["feed"], u.dtype)
        made = u * v**2
        return self.modes.modes(jnp.stack([feed - made, made]))

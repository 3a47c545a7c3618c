"""Burgers' equation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array

from .._checks import checked_dt
from .._exponential import AbstractStepper, stepper_of
from .._grid import Grid
from .._spectral_modes import PeriodicModes
from ._abstract import AbstractPDE, need_one_axis, steepening


class Burgers(AbstractPDE):
    """∂u/∂t + ∂(u²/2)/∂x = ν ∂²u/∂x² on a periodic line.

    Waves steepen to shocks of width ν/Δu, which the grid has to resolve; a solution in closed form
    is that of Cole (1951) and Hopf (1950, doi:10.1002/cpa.3160030302).

    **Arguments:** `grid` of one axis; `dt`; `method`: "etdrk4", "etdrk2", "cn_rk4" or a stepper;
    `dealias`: "2/3" (exact products), "1/2" or "none". Good values: u of order 1 in a box of 2π,
    ν = 0.02 to 0.1, 128 points, dt = 0.01.

    **Parameters:** `viscosity` ν [length²/time]. **Conditions:** `u` at xᵢ = lower + i h.
    Observables: see `AbstractPDE`; `mass` is constant, `energy` never grows.
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
        need_one_axis(grid)
        self.modes, self.dt = PeriodicModes(grid, dealias), checked_dt(dt)
        self.method = stepper_of(method)

    def parameters(self) -> tuple[str, ...]:
        return ("viscosity",)

    def not_negative(self) -> tuple[str, ...]:
        return ("viscosity",)

    def linear(self, params: Mapping[str, Any], dtype: Any) -> Array:
        viscosity = jnp.asarray(params["viscosity"], dtype)
        return -viscosity * jnp.asarray(self.modes.squared(), dtype)

    def nonlinear(self, params: Mapping[str, Any], spectrum: Array, t: Array) -> Array:
        return steepening(self.modes, spectrum)

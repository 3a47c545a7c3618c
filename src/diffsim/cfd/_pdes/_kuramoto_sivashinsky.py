"""The Kuramoto-Sivashinsky equation."""

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


class KuramotoSivashinsky(AbstractPDE):
    """∂u/∂t + ∂(u²/2)/∂x = -a ∂²u/∂x² - b ∂⁴u/∂x⁴ on a periodic line.

    Long waves grow, short ones decay, convection carries energy from the ones to the others:
    chaos in boxes longer than about 22 √(b/a) (Kuramoto and Tsuzuki 1976, doi:10.1143/PTP.55.356;
    Sivashinsky 1977, doi:10.1016/0094-5765(77)90096-0).

    **Arguments:** `grid` of one axis; `dt`; `method`: "etdrk4", "etdrk2", "cn_rk4" or a stepper;
    `dealias`: "2/3" (exact products), "1/2" or "none". Good values: a = b = 1, a box of 22 to 200,
    3 points a unit of length, dt = 0.1 to 0.25.

    **Parameters:** `growth` a, `damping` b. **Conditions:** `u` at xᵢ = lower + i h. Observables:
    see `AbstractPDE`; `mass` is constant.
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
        return ("growth", "damping")

    def not_negative(self) -> tuple[str, ...]:
        return ("damping",)

    def linear(self, params: Mapping[str, Any], dtype: Any) -> Array:
        growth, damping = (jnp.asarray(params[name], dtype) for name in self.parameters())
        squared = jnp.asarray(self.modes.squared(), dtype)
        return (growth - damping * squared) * squared

    def nonlinear(self, params: Mapping[str, Any], spectrum: Array, t: Array) -> Array:
        return steepening(self.modes, spectrum)

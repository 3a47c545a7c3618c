"""Linear equations, exact in time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._checks import checked_dt
from .._exponential import AbstractStepper, Exact
from .._grid import Grid
from .._spectral_modes import MirroredModes, PeriodicModes
from ._abstract import AbstractPDE


class Heat(AbstractPDE):
    """∂u/∂t = κ ∇²u: a mode decays as exp(-κ k² t), exactly for every step.

    **Arguments:** `grid` of one to three axes; `dt`; `sides`: for each axis, or one for all,
    "periodic", "insulated" (∂u/∂n = 0) or "fixed" (u = 0 at both ends; for other values take a
    steady solution off u). Fields are at xᵢ = lower + i h along periodic axes, else at the centres
    of the cells.

    **Parameters:** `diffusivity` κ [length²/time]. **Conditions:** `u`. Observables: see
    `AbstractPDE`; of periodic and insulated boxes `mass` is constant, `energy` never grows.
    """

    modes: MirroredModes
    dt: float = eqx.field(static=True)
    method: AbstractStepper

    def __init__(self, grid: Grid, dt: float, *, sides: str | Sequence[str] = "periodic"):
        self.modes, self.dt, self.method = MirroredModes(grid, sides), checked_dt(dt), Exact()

    def parameters(self) -> tuple[str, ...]:
        return ("diffusivity",)

    def not_negative(self) -> tuple[str, ...]:
        return ("diffusivity",)

    def linear(self, params: Mapping[str, Any], dtype: Any) -> Array:
        kappa = jnp.asarray(params["diffusivity"], dtype)
        return -kappa * jnp.asarray(self.modes.squared(), dtype)


class AdvectionDiffusion(AbstractPDE):
    """∂u/∂t + c·∇u = κ ∇²u with a constant velocity c: u(x, t) is the solution of the heat equation
    at x - c t, exactly for every step.

    **Arguments:** `grid` of one to three axes, periodic; `dt`.

    **Parameters:** `velocity` c [length/time], (axes,) or one number for all; `diffusivity` κ
    [length²/time]. **Conditions:** `u` at xᵢ = lower + i h. Observables: see `AbstractPDE`; `mass`
    is constant, without diffusion `energy` too.
    """

    modes: PeriodicModes
    dt: float = eqx.field(static=True)
    method: AbstractStepper

    def __init__(self, grid: Grid, dt: float):
        self.modes, self.dt, self.method = PeriodicModes(grid, "none"), checked_dt(dt), Exact()

    def parameters(self) -> tuple[str, ...]:
        return ("velocity", "diffusivity")

    def not_negative(self) -> tuple[str, ...]:
        return ("diffusivity",)

    def vectors(self) -> dict[str, int]:
        return {"velocity": self.grid.ndim}

    def linear(self, params: Mapping[str, Any], dtype: Any) -> Array:
        velocity = jnp.asarray(params["velocity"], dtype)
        velocity = jnp.broadcast_to(velocity, (self.grid.ndim,))
        waves = [jnp.asarray(k, dtype) for k in self.modes.wavenumbers()]
        parts = [c * k for c, k in zip(velocity, waves, strict=True)]
        kappa = jnp.asarray(params["diffusivity"], dtype)
        decay = -kappa * jnp.asarray(self.modes.squared(), dtype)
        return jax.lax.complex(decay, jnp.broadcast_to(-sum(parts[1:], parts[0]), decay.shape))

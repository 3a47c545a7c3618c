"""Correlations in time as observables of a state: short windows of undisturbed motion."""

from __future__ import annotations

from typing import Literal

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from .._adjoint import AbstractAdjoint, Direct
from .._errors import ConfigError
from .._schedule import Schedule
from .._solve import solve
from ._nve import NVE
from ._observable import AbstractObservable
from ._state import State

KINDS = ("displacement", "velocity")


class TimeCorrelation(AbstractObservable):
    """C(t) = ⟨|x(t) - x(0)|²⟩ or ⟨v(t)·v(0)⟩ over atoms, of a window that begins at the state.

    Each saved state of a thermostatted run starts its own stretch at constant energy, so that the
    mean over the saves is a correlation function of equilibrium: a `Target` of dynamics. With
    `Reweight` its gradient is complete, d⟨C⟩ = ⟨dC⟩ - (⟨C du⟩ - ⟨C⟩⟨du⟩): ⟨dC⟩ is that of the
    trajectories of the windows, the rest that of where they start. Gradients of a trajectory grow
    exponentially in a liquid: windows of up to 1 to 1.5 reduced units of time, and hundreds of
    them, keep the mean sharp.

    dynamics: the `NVE` that moves the window, as a rule with the potential of the run itself
    steps: how long it is; save_every: at which steps C is taken, (steps/save_every,) values at the
        times `times()`
    of: "displacement" [length²], whose slope at long times is 6D; "velocity" [length²/time²]
    adjoint: of the window; `Direct` serves both modes, `Reversible` reverse mode in less memory
    """

    dynamics: NVE
    steps: int = eqx.field(static=True)
    save_every: int = eqx.field(static=True)
    of: Literal["displacement", "velocity"] = eqx.field(static=True, default="displacement")
    adjoint: AbstractAdjoint = Direct()
    name: str = eqx.field(static=True, default="")
    unit: str = eqx.field(static=True, default="")

    def __init__(
        self,
        dynamics: NVE,
        steps: int,
        save_every: int,
        of: Literal["displacement", "velocity"] = "displacement",
        adjoint: AbstractAdjoint | None = None,
        name: str | None = None,
    ):
        if of not in KINDS:
            raise ConfigError("no such correlation", key="of", value=of, allowed=KINDS)
        Schedule(steps=steps, save_every=save_every)
        self.dynamics, self.steps, self.save_every, self.of = dynamics, steps, save_every, of
        self.adjoint = Direct() if adjoint is None else adjoint
        default = "mean_square_displacement" if of == "displacement" else "velocity_correlation"
        self.name = default if name is None else name
        self.unit = "({length})^2" if of == "displacement" else "({length})^2/({time})^2"

    def __call__(self, params: PyTree, state: State) -> Float[Array, " lags"]:
        start = self.dynamics.continue_from(params, state)
        kept = "positions" if self.of == "displacement" else "velocities"
        sol = solve(
            self.dynamics,
            params,
            start,
            schedule=Schedule(steps=self.steps, save_every=self.save_every),
            adjoint=self.adjoint,
            observables=(kept,),
        )
        series = sol.observables[kept]
        if self.of == "displacement":
            return jnp.mean(jnp.sum((series - start.positions) ** 2, axis=2), axis=1)
        return jnp.mean(jnp.sum(series * start.velocities, axis=2), axis=1)

    def times(self) -> Float[np.ndarray, " lags"]:
        """When C is taken, (lags,) [time]."""
        saves = np.arange(1, self.steps // self.save_every + 1)
        return self.dynamics.dt * self.save_every * saves

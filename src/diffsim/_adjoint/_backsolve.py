"""Gradients by the continuous adjoint equation."""

from __future__ import annotations

from typing import ClassVar

import jax

from .._errors import ConfigError
from .._schedule import SavePlan
from .._simulation import AbstractFlow, AbstractSimulation, Params, State
from ._base import AbstractAdjoint, Health, Observe, Trajectory


class Backsolve(AbstractAdjoint):
    """da/dt = -(∂f/∂y)ᵀ a, dL/dθ = -∫ aᵀ ∂f/∂θ dt, solved backwards together with y.

    The continuous adjoint (Pontryagin 1962; Chen et al. 2018, arXiv:1806.07366), by Diffrax.

    **When:** long smooth problems whose backward solution is stable. **Costs:** about three forward
    runs; memory O(1). **Cannot:** be exact: its error is that of the backward solve, large where
    the flow contracts (dissipative and stiff systems run backwards blow up); events; second
    derivatives; simulations that are not dy/dt = f.
    """

    modes: ClassVar[tuple[str, ...]] = ("reverse",)

    @property
    def twice(self) -> bool:
        return False

    why: ClassVar[str] = "the adjoint equation is solved backwards, nothing is kept"
    needs: ClassVar[type[AbstractSimulation]] = AbstractFlow
    exact: ClassVar[bool] = False

    def loop(
        self,
        sim: AbstractSimulation,
        params: Params,
        state: State,
        plan: SavePlan,
        observe: Observe,
    ) -> Trajectory:
        """A run with fixed steps, as the solver's own loop makes it."""
        assert isinstance(sim, AbstractFlow)
        dt = sim.time_step()
        if dt is None:
            raise ConfigError("needs a schedule in time", key="schedule", allowed="t1=, ts=")
        start = sim.time(state)
        blocks = jax.numpy.arange(1, plan.blocks + 1, dtype=start.dtype)
        integral = sim.integrate(params, state, start + blocks * plan.stride * dt, self)
        observed = jax.vmap(lambda state: observe(sim, params, state))(integral.states)
        health = Health(integral.result, integral.first_bad_step)
        return Trajectory(integral.final, observed, health)

"""Autodiff straight through the scan."""

from __future__ import annotations

from typing import ClassVar

from .._schedule import SavePlan
from .._simulation import AbstractSimulation, Params, State
from ._base import AbstractAdjoint, Observe, Trajectory, march_blocks


class Direct(AbstractAdjoint):
    """Autodiff through the scan: every step's intermediates are kept.

    **When:** short runs, forward mode with few parameters, second derivatives. **Costs:** one
    forward and one reverse pass; memory O(steps) in reverse mode, O(1) in forward mode. **Cannot:**
    reach long trajectories in reverse mode before memory ends.
    """

    modes: ClassVar[tuple[str, ...]] = ("forward", "reverse")
    why: ClassVar[str] = "autodiff through every step, all of them kept"
    needs: ClassVar[type[AbstractSimulation]] = AbstractSimulation

    def loop(
        self,
        sim: AbstractSimulation,
        params: Params,
        state: State,
        plan: SavePlan,
        observe: Observe,
    ) -> Trajectory:
        state, health, observed = march_blocks(
            sim, params, state, plan, lambda state: observe(sim, params, state)
        )
        return Trajectory(state, observed, health)

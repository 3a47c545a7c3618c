"""Gradients pushed forward along the trajectory, a tangent a parameter."""

from __future__ import annotations

from typing import ClassVar

import equinox as eqx
from equinox.internal import nondifferentiable_backward

from .._errors import ConfigError
from .._schedule import SavePlan
from .._simulation import AbstractSimulation, Params, State
from ._base import AbstractAdjoint, Observe, Trajectory
from ._bytes import parsed_bytes
from ._direct import Direct

MESSAGE = (
    "ForwardMode has no reverse mode: take jax.jvp or jax.jacfwd, or another adjoint "
    "(RecursiveCheckpoint, Direct)"
)


class ForwardMode(AbstractAdjoint):
    """∂y(t)/∂θ is carried along with y(t): d/dt (∂y/∂θ) = (∂f/∂y) ∂y/∂θ + ∂f/∂θ.

    **When:** few parameters (up to some dozens), many residuals, least squares and posteriors of
    small systems. **Costs:** about one further run a parameter, all in one vectorised pass; memory
    O(1) in steps. **Cannot:** reverse mode (`jax.grad` is refused while tracing); many parameters.

    **Arguments:** `chunk`: how many tangents fits push side by side (default: all); each further
    chunk costs a run and saves memory; `memory`: "2GB", or bytes, in place of a number: as many as
    fit by the prediction of `Auto`. In your own code, `jax.jacfwd` pushes all at once.
    """

    chunk: int | None = eqx.field(static=True, default=None)
    memory: str | float | None = eqx.field(static=True, default=None)

    modes: ClassVar[tuple[str, ...]] = ("forward",)
    why: ClassVar[str] = "few parameters: their tangents run along, nothing is kept"
    needs: ClassVar[type[AbstractSimulation]] = AbstractSimulation

    def __check_init__(self):
        if self.chunk is not None and self.chunk < 1:
            raise ConfigError("must be at least 1", key="chunk", value=self.chunk)
        if self.memory is not None:
            parsed_bytes(self.memory)
            if self.chunk is not None:
                raise ConfigError("give one of the two", key="memory", allowed="chunk, memory")

    def loop(
        self,
        sim: AbstractSimulation,
        params: Params,
        state: State,
        plan: SavePlan,
        observe: Observe,
    ) -> Trajectory:
        trajectory = Direct().loop(sim, params, state, plan, observe)
        state, observed = forward_only((trajectory.state, trajectory.observables))
        return Trajectory(state, observed, trajectory.health)


def forward_only(tree: State) -> State:
    """The same arrays, whose transposition says what to do instead."""
    return nondifferentiable_backward(tree, msg=MESSAGE, symbolic=True)

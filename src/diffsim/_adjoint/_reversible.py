"""Gradients by running the trajectory backwards."""

from __future__ import annotations

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from .._schedule import SavePlan
from .._simulation import AbstractFlow, AbstractReversible, AbstractSimulation, Params, State
from ._base import (
    AbstractAdjoint,
    Health,
    Observe,
    Trajectory,
    add,
    arrays,
    filled,
    inexact,
    once,
    pull_observation,
    zeros_of,
)


class Reversible(AbstractAdjoint):
    """Runs the step backwards from the final state: nothing is stored on the way.

    The trajectory is run in the simulation's exact (integer) representation, so that its reversal
    meets every state again to the last bit; each step's pullback is `sim.pullback`, for molecular
    dynamics one forward-over-reverse pass. If the way back does not end on the very start, the
    gradient is NaN rather than wrong; fits then go on by `RecursiveCheckpoint`, and warn.

    **When:** long trajectories of reversible integrators. **Costs:** about the time of three to
    four forward runs; memory O(1) in the number of steps (plus what is saved). **Cannot:** forward
    mode, second derivatives, thermostats that destroy information, gradients in arrays that the
    simulation itself holds (pass them as parameters). Positions must stay within 8e6 length units.
    """

    modes: ClassVar[tuple[str, ...]] = ("reverse",)
    why: ClassVar[str] = "the trajectory is run backwards exactly, nothing is kept"
    needs: ClassVar[type[AbstractSimulation]] = AbstractReversible

    def remedy(self, sim: AbstractSimulation) -> str:
        able = isinstance(sim, AbstractFlow) and not sim.adaptive
        return " (ode.AlgebraicallyReversible makes one of explicit methods)" if able else ""

    @property
    def twice(self) -> bool:
        return False

    def loop(
        self,
        sim: AbstractSimulation,
        params: Params,
        state: State,
        plan: SavePlan,
        observe: Observe,
    ) -> Trajectory:
        assert isinstance(sim, AbstractReversible)
        run = eqx.filter_custom_vjp(_forward)
        run.def_fwd(_forward_keep)
        run.def_bwd(_backward)
        (state, observed), health = run((params, state), sim, plan, observe)
        return Trajectory(state, observed, health)


def _exact_run(
    params: Params, exact: PyTree, sim: AbstractReversible, plan: SavePlan, observe: Observe
) -> tuple[PyTree, Health, dict[str, Array]]:
    """Forward in the exact representation, observing after every block."""

    def tick(carry, k):
        exact, health = carry
        exact = sim.exact_step(params, exact)
        return (exact, health.after(sim.status(sim.from_exact(exact)), k)), None

    def block(carry, b):
        steps = b * plan.stride + 1 + jnp.arange(plan.stride, dtype=jnp.int32)
        carry, _ = jax.lax.scan(tick, carry, steps)
        return carry, observe(sim, params, sim.from_exact(carry[0]))

    blocks = jnp.arange(plan.blocks, dtype=jnp.int32)
    (exact, health), observed = jax.lax.scan(block, (exact, Health.good()), blocks)
    return exact, health, observed


def _forward(operands, sim, plan, observe):
    params, state = operands
    start = sim.to_exact(params, state, plan.steps)
    exact, health, observed = _exact_run(params, start, sim, plan, observe)
    return (sim.from_exact(exact), observed), health


def _forward_keep(perturbed, operands, sim, plan, observe):
    del perturbed
    dynamic, static = eqx.partition(operands, eqx.is_inexact_array)
    # tangents of what becomes integers would be zero
    params, state = eqx.combine(once(lambda x: x, "Reversible")(dynamic), static)
    start = sim.to_exact(params, state, plan.steps)
    exact, health, observed = _exact_run(params, start, sim, plan, observe)
    return ((sim.from_exact(exact), observed), health), (start, exact)


def _backward(residuals, cotangents, perturbed, operands, sim, plan, observe):
    del perturbed
    start, exact = residuals
    params = arrays(operands[0])
    (ct_state, ct_observed), _ = cotangents
    ct_state = add(inexact(ct_state), zeros_of(sim.from_exact(exact)))

    def unblock(carry, ct_seen):
        exact, ct_params, ct_state = carry
        more = pull_observation(observe, sim, params, sim.from_exact(exact), ct_seen)
        carry = (exact, *map(add, (ct_params, ct_state), more))
        return jax.lax.scan(untick, carry, length=plan.stride)[0], None

    def untick(carry, _):
        exact, ct_params, ct_state = carry
        exact = sim.exact_unstep(params, exact)
        more_params, ct_state = sim.pullback(params, sim.from_exact(exact), ct_state)
        return (exact, add(ct_params, more_params), ct_state), None

    carry = (exact, zeros_of(params), ct_state)
    ct_observed = filled(ct_observed, observe, sim, params, sim.from_exact(exact), plan)
    carry, _ = jax.lax.scan(unblock, carry, ct_observed, reverse=True)
    returned, ct_params, ct_state = carry
    blame = jnp.where(sim.same(returned, start), 0.0, jnp.nan)
    return jax.tree.map(lambda ct: ct + blame.astype(ct.dtype), (ct_params, ct_state))

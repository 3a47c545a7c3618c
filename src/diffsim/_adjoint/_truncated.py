"""Gradients of the last steps of a trajectory alone."""

from __future__ import annotations

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from .._errors import ConfigError
from .._schedule import SavePlan
from .._simulation import AbstractSimulation, Params, State
from ._base import AbstractAdjoint, Health, Observe, Trajectory, march


class Truncated(AbstractAdjoint):
    """dL/dθ ≈ Σ_{t > T-w} (∂L/∂x_t) ∂x_t/∂θ with x_{T-w} held fixed, w the window.

    Truncated backpropagation through time (Williams & Peng 1990, doi:10.1162/neco.1990.2.4.490):
    the first T - w steps are run outside of every gradient, and what is saved on them counts as
    constant; the last w are differentiated as by `Direct`, in both modes.

    **When:** chaos makes the gradient of the whole run useless, and that of a window about one
    Lyapunov time long is informative. **Costs:** one forward run and one reverse pass over the
    window; memory O(window). **Cannot:** be unbiased: everything that happens over more than
    `window` steps is missing from the gradient (`stats["biased"]` says so), and the gradient in
    the start is zero unless the window is the whole run. For averages at equilibrium take
    `Reweight`, which is not biased.

    **Arguments:** `window`: how many steps at the end are differentiated; more than the run has:
    all of it.
    """

    window: int = eqx.field(static=True)

    modes: ClassVar[tuple[str, ...]] = ("forward", "reverse")
    why: ClassVar[str] = (
        "the last steps alone are differentiated, so that chaos cannot grow: a biased gradient"
    )
    needs: ClassVar[type[AbstractSimulation]] = AbstractSimulation
    exact: ClassVar[bool] = False

    def __check_init__(self):
        if isinstance(self.window, bool) or not isinstance(self.window, int) or self.window < 1:
            raise ConfigError(
                "must be a whole number of at least 1", key="window", value=self.window
            )

    def loop(
        self,
        sim: AbstractSimulation,
        params: Params,
        state: State,
        plan: SavePlan,
        observe: Observe,
    ) -> Trajectory:
        def begun(carry: tuple[State, Health]) -> tuple[State, Health]:
            """Where the window begins: held fixed, but for what the state caches of θ."""
            state, health = stopped(carry)
            return sim.prepare(params, state), health

        held = max(plan.steps - self.window, 0)
        whole, part = divmod(held, plan.stride)
        frozen = stopped(params)

        def block(carry, b):
            carry = march(sim, frozen, carry, b * plan.stride, plan.stride)
            return carry, observe(sim, frozen, carry[0])

        def live(carry, b):
            carry = march(sim, params, carry, b * plan.stride, plan.stride)
            return carry, observe(sim, params, carry[0])

        carry = (stopped(state) if held else state, Health.good())
        numbers = jnp.arange(plan.blocks, dtype=jnp.int32)
        carry, head = jax.lax.scan(block, carry, numbers[:whole])
        pieces = [stopped(head)]
        if part:  # the block in which the window begins
            carry = march(sim, frozen, carry, whole * plan.stride, part)
            carry = march(sim, params, begun(carry), held, plan.stride - part)
            first = observe(sim, params, carry[0])
            pieces.append(jax.tree.map(lambda x: x[None], first))
        carry = begun(carry) if held and not part else carry
        carry, tail = jax.lax.scan(live, carry, numbers[whole + bool(part) :])
        observed = jax.tree.map(lambda *x: jnp.concatenate(x), *pieces, tail)
        state, health = carry
        return Trajectory(state, observed, health, {"biased": jnp.asarray(held > 0)})


def stopped(tree: PyTree) -> PyTree:
    """The same values, outside of every gradient."""
    dynamic, static = eqx.partition(tree, eqx.is_array)
    return eqx.combine(jax.lax.stop_gradient(dynamic), static)

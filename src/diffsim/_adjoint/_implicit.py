"""Gradients of a fixed point by the implicit function theorem."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from .._errors import ConfigError
from .._schedule import SavePlan
from .._simulation import RESULTS, AbstractSimulation, Params, State
from ._base import AbstractAdjoint, Observe, Trajectory, march_blocks
from ._truncated import stopped


class Implicit(AbstractAdjoint):
    """dx*/dθ = (I - ∂g/∂x)⁻¹ ∂g/∂θ at the fixed point x* = g(θ, x*) of a step g.

    The run goes to its end outside of every gradient, and where it ends is differentiated by the
    implicit function theorem (Christianson 1994, doi:10.1080/10556789408805572): matrix-free,
    by products with ∂g/∂x and an iterative solver, in both modes and to any order.

    **When:** minima that a descent has found, steady flows, stationary concentrations: gradients
    that do not depend on how the run got there. **Costs:** one forward run, and some dozens of
    linearised steps a gradient; memory of one step, O(1) in steps. **Cannot:** differentiate what
    is saved on the way (only the end has a gradient; in the start it is zero), nor a run that has
    not arrived: where Newton's step from the end to the fixed point is longer than `rtol` of it,
    the result is `not_converged` and the gradient NaN. Directions that the step leaves alone (the
    centre of mass, a conserved mean) stay as the run found them.

    **Arguments:** `rtol`: how near the fixed point the end must be, max |Δx| / max |x|;
    `linear_solver`: lineax's, default GMRES to 1e-10 (float32: 1e-5).
    """

    rtol: float = eqx.field(static=True, default=1e-6)
    linear_solver: lx.AbstractLinearSolver | None = None

    modes: ClassVar[tuple[str, ...]] = ("forward", "reverse")
    why: ClassVar[str] = "the run ends at a fixed point, whose derivative needs no trajectory"
    needs: ClassVar[type[AbstractSimulation]] = AbstractSimulation
    exact: ClassVar[bool] = False

    def __check_init__(self):
        if not self.rtol > 0:
            raise ConfigError("must be positive", key="rtol", value=self.rtol)

    @classmethod
    def takes(cls, sim: AbstractSimulation) -> bool:
        return sim.rests

    def lack(self, sim: AbstractSimulation) -> str:
        kind = type(sim).__name__
        return f"Implicit needs a run that comes to rest, and one of {kind} never does"

    def loop(
        self,
        sim: AbstractSimulation,
        params: Params,
        state: State,
        plan: SavePlan,
        observe: Observe,
    ) -> Trajectory:
        frozen = stopped(params)
        end, health, observed = march_blocks(
            sim, frozen, stopped(state), plan, lambda state: observe(sim, frozen, state)
        )
        end, observed = stopped(end), stopped(observed)
        time = sim.time(end)
        end = sim.at_time(end, time)
        dynamic, static = eqx.partition(end, eqx.is_inexact_array)
        flat, unravel = ravel_pytree(dynamic)

        def miss(params: Params, x: Array) -> Array:
            """g(θ, x) - x, the clock put back."""
            after = sim.at_time(sim.step(params, eqx.combine(unravel(x), static)), time)
            return ravel_pytree(eqx.filter(after, eqx.is_inexact_array))[0] - x

        here = miss(frozen, flat)
        _, push = jax.linearize(lambda x: miss(frozen, x), flat)
        # a miss that is rounding may point where the step cannot go: it is none
        size = jnp.max(jnp.abs(flat), initial=0)
        rounding = 100 * jnp.finfo(flat.dtype).eps * size
        there = jnp.max(jnp.abs(here), initial=0) <= rounding
        to_go = self._solved(push, jnp.where(there, 0.0, -here))
        far = jnp.max(jnp.abs(to_go), initial=0) > self.rtol * size
        arrived = ~far & jnp.all(jnp.isfinite(to_go))

        def tangent(linear: Callable[[Array], Array], y: Array) -> Array:
            solve = lambda matvec, b: jnp.where(arrived, self._solved(matvec, b), jnp.nan)  # noqa: E731
            return jax.lax.custom_linear_solve(linear, y, solve, solve)

        root = jax.lax.custom_root(lambda x: miss(params, x), flat, lambda _, x: x, tangent)
        state = eqx.combine(unravel(root), static)
        last = observe(sim, params, state)
        observed = jax.tree.map(lambda all_, x: all_.at[-1].set(x), observed, last)
        status = RESULTS.where(arrived, RESULTS.successful, RESULTS.not_converged)
        distance: dict[str, Any] = {"distance": jnp.max(jnp.abs(to_go), initial=0)}
        return Trajectory(state, observed, health.after(status, jnp.asarray(plan.steps)), distance)

    def _solved(self, matvec: Callable[[Array], Array], b: Array) -> Array:
        """A⁻¹ b, NaN where the solver did not get there."""
        rtol = 1e-10 if b.dtype == jnp.float64 else 1e-5
        solver = self.linear_solver or lx.GMRES(
            rtol=rtol, atol=0.0, restart=min(b.size, 50), max_steps=max(20, 10 * b.size)
        )
        # GMRES compares with b entry by entry, so that a vanishing b needs no iteration at all
        scale = jnp.max(jnp.abs(b), initial=0)
        unit = jnp.where(scale > 0, b / jnp.where(scale > 0, scale, 1), 0)
        operator = lx.FunctionLinearOperator(matvec, jax.ShapeDtypeStruct(b.shape, b.dtype))
        solution = lx.linear_solve(operator, unit, solver, throw=False)
        # told by what is left, since a solver may break down on a singular system it has solved
        left = jnp.max(jnp.abs(matvec(solution.value) - unit), initial=0)
        good = ((left <= 1e3 * rtol) | (scale == 0)) & jnp.isfinite(scale)
        return jnp.where(good, jnp.where(scale > 0, solution.value * scale, 0), jnp.nan)

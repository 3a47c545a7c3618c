"""What implicit solvers need to be dependable: Newton's method that knows when it is done."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax
import optimistix
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

SHARE = 0.01  # of the tolerance that the remaining error of an iteration may take
GROWTH = 2.0  # of a correction over the one before, which is divergence


class NewtonState(eqx.Module):
    """The sizes of the last two corrections in units of the tolerance, and how many there were."""

    size: Array
    previous: Array
    count: Array


class Newton(optimistix.AbstractRootFinder):
    """y ← y - J(y)⁻¹ f(y), J evaluated anew each time, until what is left is a hundredth of
    atol + rtol |y|.

    What is left after a correction of size s that shrank by the factor r is about s r/(1 - r)
    (Hairer & Wanner 1996, doi:10.1007/978-3-642-05221-7, section IV.8). Diffrax's default keeps J
    of the first iterate and takes corrections near rounding for divergence, which costs half of all
    steps where tolerances are small. Suits systems of up to some hundred components.
    """

    rtol: float
    atol: float
    norm: Callable[[PyTree], Array] = optimistix.max_norm
    linear_solver: lineax.AbstractLinearSolver = lineax.LU()

    def init(
        self, fn: Any, y: Any, args: Any, options: Any, f_struct: Any, aux_struct: Any, tags: Any
    ) -> NewtonState:
        del fn, args, options, f_struct, aux_struct, tags
        infinite = jnp.full((), jnp.inf, ravel_pytree(y)[0].dtype)
        return NewtonState(infinite, infinite, jnp.zeros((), jnp.int32))

    def step(
        self, fn: Any, y: Any, args: Any, options: Any, state: Any, tags: Any
    ) -> tuple[Any, NewtonState, Any]:
        del options, tags
        flat, unravel = ravel_pytree(y)

        def residual(flat: Array) -> tuple[Array, Any]:
            f, aux = fn(unravel(flat), args)
            return ravel_pytree(f)[0], aux

        jacobian, _ = jax.jacfwd(residual, has_aux=True)(flat)
        f, aux = residual(flat)
        correction = jnp.linalg.solve(jacobian, f)
        new = flat - correction
        size = self.norm(correction / (self.atol + self.rtol * jnp.abs(new)))
        return unravel(new), NewtonState(size, state.size, state.count + 1), aux

    def terminate(
        self, fn: Any, y: Any, args: Any, options: Any, state: Any, tags: Any
    ) -> tuple[Array, optimistix.RESULTS]:
        del fn, y, args, options, tags
        rate, later = state.size / state.previous, state.count >= 2
        left = state.size * rate / (1 - rate)
        done = (state.size < SHARE) | (later & (rate < 1) & (left < SHARE))
        # below the tolerance, and no longer shrinking: as far as rounding lets it come
        done = done | (later & (state.size < 1) & (rate > 0.3))
        lost = (state.count >= 1) & ~jnp.isfinite(state.size)
        lost = lost | (later & (rate > GROWTH) & ~done)
        diverged = optimistix.RESULTS.nonlinear_divergence
        result = optimistix.RESULTS.where(lost, diverged, optimistix.RESULTS.successful)
        return done | lost, result

    def postprocess(
        self,
        fn: Any,
        y: Any,
        aux: Any,
        args: Any,
        options: Any,
        state: Any,
        tags: Any,
        result: Any,
    ) -> tuple[Any, Any, dict[str, Any]]:
        del fn, args, options, state, tags, result
        return y, aux, {}


class Guarded(diffrax.AbstractAdaptiveStepSizeController[Any, Any]):
    """A controller that shrinks the step on which anything is not finite.

    Diffrax's PID controller takes an infinite candidate at its word: ∞/∞ makes the next step NaN,
    and every one after it.
    """

    inner: diffrax.PIDController

    @property
    def rtol(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.inner.rtol

    @property
    def atol(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.inner.atol

    @property
    def norm(self) -> Any:  # pyright: ignore
        return self.inner.norm

    def wrap(self, direction: Any) -> Guarded:
        return Guarded(inner=self.inner.wrap(direction))  # pyright: ignore

    def init(self, *arguments: Any) -> Any:  # pyright: ignore
        return self.inner.init(*arguments)

    def adapt_step_size(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, t0: Any, t1: Any, y0: Any, y1: Any, args: Any, error: Any, order: Any, state: Any
    ) -> Any:
        finite = jnp.asarray(True)
        for leaf in jax.tree.leaves((y1, error)):
            finite = finite & jnp.all(jnp.isfinite(leaf))
        y1 = jax.tree.map(lambda old, new: jnp.where(finite, new, old), y0, y1)
        error = jax.tree.map(lambda e: jnp.where(finite, e, jnp.inf), error)
        return self.inner.adapt_step_size(t0, t1, y0, y1, args, error, order, state)


def both_modes(solver: Any) -> Any:
    """A solver whose loop over its stages can be differentiated forward too, for our own time loop:
    left to itself Diffrax takes one for reverse mode alone."""
    if getattr(solver, "scan_kind", "") is not None:
        return solver
    kind = "bounded" if isinstance(solver, diffrax.AbstractRungeKutta) else "lax"
    return dataclasses.replace(solver, scan_kind=kind)


def dependable(solver: Any, rtol: float, atol: float) -> Any:
    """An implicit solver whose root finder would take its tolerances from the controller, with
    `Newton` in its place; others as they are."""
    finder = getattr(solver, "root_finder", None)
    if finder is None or eqx.is_array_like(getattr(finder, "rtol", 0.0)):
        return solver
    return eqx.tree_at(lambda s: s.root_finder, solver, Newton(rtol, atol))

"""The loops of a block of lanes: adaptive or equal steps, forth and back.

Inside a block each component of y is an array of its own, (lanes,), so that a step is arithmetic on
contiguous numbers and compiles to few fused loops. All lanes of a block take their n-th step
together, each with its own time and step size; who has arrived at a save waits there with steps of
length zero.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ._lanes_step import rk_step

RUNNING, NONFINITE, NO_STEP, MAX_STEPS = range(4)
SAFETY, SHRINK, GROW = 0.9, 0.2, 10.0
STRETCH = 1.01  # a step that would all but reach a save goes there at once

Components = tuple[Array, ...]
Field = Callable[[Any, Components, PyTree], Components]


class Rule(NamedTuple):
    """How long a step may be: a method, its tolerances, and the most steps of a block."""

    tableau: diffrax.ButcherTableau
    order: float
    rtol: float
    atol: float
    max_steps: int


class Lanes(NamedTuple):
    """Where each lane stands. Arrays (lanes,);"""

    t: Array
    h: Array
    y: Components
    log_error: Array
    code: Array
    accepted: Array
    rejected: Array


class Saved(NamedTuple):
    """States at the times asked for: components (saves, lanes); which are good (saves, lanes); the
    steps of the block up to each (saves,); code, accepted and rejected steps of each lane."""

    y: Components
    good: Array
    ends: Array
    code: Array
    accepted: Array
    rejected: Array


class Rows(NamedTuple):
    """The steps a block took: (steps, lanes) arrays of time, length and state at the start."""

    t: Array
    h: Array
    y: Components


# Adaptive steps


def begin(rule: Rule, field: Field, args: PyTree, t0: Array, y: Components) -> Lanes:
    """All lanes at their start, with the first step of Hairer, Nørsett & Wanner (1993, II.4)."""
    k = field(t0, y, args)
    h = jax.lax.stop_gradient(_first_step(rule, field, args, t0, y, k))
    bad = ~jnp.isfinite(h)
    zeros = jnp.zeros(h.shape, jnp.int32)
    return Lanes(
        jnp.full_like(h, t0),
        jnp.where(bad, 0, h),
        y,
        zeros.astype(jnp.float32),
        jnp.where(bad, NONFINITE, RUNNING).astype(jnp.int32),
        zeros,
        zeros,
    )


def _first_step(
    rule: Rule, field: Field, args: PyTree, t0: Array, y: Components, k: Components
) -> Array:
    d0, d1 = (_norm(rule, x, y) for x in (y, k))
    h0 = jnp.where((d0 < 1e-5) | (d1 < 1e-5), 1e-6, 0.01 * d0 / jnp.where(d1 == 0, 1, d1))
    moved = tuple(a + h0 * b for a, b in zip(y, k, strict=True))
    change = tuple(b - a for a, b in zip(k, field(t0 + h0, moved, args), strict=True))
    worst = jnp.maximum(d1, _norm(rule, change, y) / h0)
    h1 = jnp.where(worst <= 1e-15, jnp.maximum(1e-6, 1e-3 * h0), (0.01 / worst) ** (1 / rule.order))
    return jnp.minimum(100 * h0, h1)


def _norm(rule: Rule, e: Components, y: Components) -> Array:
    """Root mean square of e / (atol + rtol |y|) over the components, y at the start of the step."""
    scaled = (a * (1 / (rule.atol + rule.rtol * jnp.abs(b))) for a, b in zip(e, y, strict=True))
    first, *rest = (s * s for s in scaled)
    return jnp.sqrt(sum(rest, first) / len(e))


def attempt(
    rule: Rule, field: Field, args: PyTree, lanes: Lanes, target: Array
) -> tuple[Lanes, Rows]:
    """One step of every lane that has not reached `target`, kept where its error is in bounds.

    PI controller: h' = 0.9 h e^(-0.85/q) e_before^(0.2/q), q the order (Hairer, Nørsett & Wanner
    1993, IV.2, doi:10.1007/978-3-540-78862-1), computed in single precision, which is ample. A
    step cut short to land on `target` does not shorten the one proposed before.
    """
    remaining = target - lanes.t
    going = (remaining > 0) & (lanes.code == RUNNING)
    last = STRETCH * lanes.h >= remaining
    h = jax.lax.stop_gradient(jnp.where(going, jnp.where(last, remaining, lanes.h), 0))
    y, error, _ = rk_step(rule.tableau, lambda t, y: field(t, y, args), lanes.t, lanes.y, h)
    norm = jax.lax.stop_gradient(_norm(rule, error, lanes.y))
    accept = going & (norm <= 1)
    log_error = jnp.log(jnp.clip(norm, 1e-12, 1e12).astype(jnp.float32))
    factor = SAFETY * jnp.exp((0.2 * lanes.log_error - 0.85 * log_error) / rule.order)
    factor = jnp.where(jnp.isfinite(norm), jnp.clip(factor, SHRINK, GROW), SHRINK)
    proposal = h * factor.astype(h.dtype)
    proposal = jnp.where(accept & last, jnp.maximum(lanes.h, proposal), proposal)
    smallest = 16 * jnp.finfo(h.dtype).eps * jnp.maximum(jnp.abs(lanes.t), jnp.abs(target))
    stuck = going & (proposal <= smallest) & ~(accept & last)

    after = Lanes(
        jnp.where(accept, jnp.where(last, target, lanes.t + h), lanes.t),
        jnp.where(going, proposal, lanes.h),
        tuple(jnp.where(accept, a, b) for a, b in zip(y, lanes.y, strict=True)),
        jnp.where(accept, log_error, lanes.log_error),
        jnp.where(stuck, NO_STEP, lanes.code),
        lanes.accepted + accept,
        lanes.rejected + (going & ~accept),
    )
    return after, Rows(lanes.t, jnp.where(accept, h, 0), lanes.y)


def adaptive(
    rule: Rule,
    field: Field,
    args: PyTree,
    t0: Array,
    y0: Components,
    ts: Array,
    rows: Any = None,
) -> tuple[Saved, Any]:
    """All lanes of a block through the times `ts`; the steps are written into `rows`, if given."""

    def running(carry):
        (lanes, step, _), target = carry
        return (step < rule.max_steps) & jnp.any((lanes.code == RUNNING) & (lanes.t < target))

    def advance(carry):
        (lanes, step, rows), target = carry
        lanes, row = attempt(rule, field, args, lanes, target)
        if rows is not None:
            rows = jax.tree.map(lambda b, x: b.at[step].set(x), rows, row)
        return (lanes, step + 1, rows), target

    def segment(carry, target):
        (lanes, step, rows), _ = jax.lax.while_loop(running, advance, (carry, target))
        late = (lanes.code == RUNNING) & (lanes.t < target)
        lanes = lanes._replace(code=jnp.where(late, MAX_STEPS, lanes.code))
        return (lanes, step, rows), (lanes.y, lanes.code == RUNNING, step)

    carry = begin(rule, field, args, t0, y0), jnp.zeros((), jnp.int32), rows
    (lanes, _, rows), (ys, good, ends) = jax.lax.scan(segment, carry, ts)
    return Saved(ys, good, ends, lanes.code, lanes.accepted, lanes.rejected), rows


# Equal steps


def equal(
    rule: Rule,
    field: Field,
    args: PyTree,
    t0: Array,
    h: Array,
    y0: Components,
    first: Array,
    count: Array,
    rows: Any = None,
) -> tuple[Components, Any]:
    """`count` steps of length h, numbered from `first`, step 0 being at t0."""
    fsal = rule.tableau.fsal

    def advance(i, carry):
        y, k, rows = carry
        t = t0 + (first + i) * h
        if rows is not None:
            row = Rows(jnp.full_like(y[0], t), jnp.full_like(y[0], h), y)
            rows = jax.tree.map(lambda b, x: b.at[i].set(x), rows, row)
        y, _, k = rk_step(rule.tableau, lambda t, y: field(t, y, args), t, y, h, k)
        return y, k, rows

    k = field(t0 + first * h, y0, args) if fsal else None
    y, _, rows = jax.lax.fori_loop(0, count, advance, (y0, k, rows))
    return y, rows


# The way back


def no_rows(steps: int, y: Components) -> Rows:
    """Room for the rows of so many steps."""
    room = jnp.zeros((steps, *y[0].shape), y[0].dtype)
    return Rows(room, room, tuple(room for _ in y))


def pull_rows(
    rule: Rule, field: Field, args: PyTree, rows: Rows, first: Array, end: Array, ct: Any
) -> Any:
    """Cotangents (of y, of args) at the start of the rows first to end, from those at their end.

    The discrete adjoint of the steps as they were taken, lengths held fixed.
    """

    def back(carry):
        i, (ct_y, ct_args) = carry
        t, h, y = jax.tree.map(lambda b: b[i - 1], rows)

        def step(y, args):
            return rk_step(rule.tableau, lambda t, y: field(t, y, args), t, y, h)[0]

        before, more = jax.vjp(step, y, args)[1](ct_y)
        # a step not taken changes nothing, and at what was not finite it may not multiply zeros
        ct_y = tuple(jnp.where(h > 0, a, b) for a, b in zip(before, ct_y, strict=True))
        more = jax.tree.map(lambda m: _masked(h > 0, m), more)
        return i - 1, (ct_y, jax.tree.map(jnp.add, ct_args, more))

    return jax.lax.while_loop(lambda carry: carry[0] > first, back, (end, ct))[1]


def _masked(taken: Array, cotangent: Array) -> Array:
    """Zeros for steps not taken, where the cotangent is one of lanes."""
    return jnp.where(taken, cotangent, 0) if cotangent.shape == taken.shape else cotangent

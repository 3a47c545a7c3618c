"""Gradients by recomputing from a few stored states, on the offline-optimal schedule."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from .._errors import ConfigError
from .._schedule import SavePlan
from .._simulation import AbstractSimulation, Params, State
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

PLACES = (None, "host")
HOST, DEVICE = jax.memory.Space.Host, jax.memory.Space.Device


class RecursiveCheckpoint(AbstractAdjoint):
    """Stores `checkpoints` states and recomputes the others on the binomial schedule.

    For T steps and s stored states with β(s, r-1) < T ≤ β(s, r), β(s, r) = C(s + r, s), the way
    back repeats r T - β(s + 1, r - 1) steps, the fewest possible (Griewank & Walther 2000,
    doi:10.1145/347837.347846). The schedule is data: compile time does not grow with T.

    **When:** long runs of any simulation in reverse mode. **Costs:** r + 1 forward runs and one
    pullback a step; memory of s states. Second derivatives work, forward over reverse
    (`jax.hessian`). **Cannot:** forward mode alone, gradients in arrays that the simulation itself
    holds (pass them as parameters).

    **Arguments:** `checkpoints`: states to store; default: the fewest with r ≤ 3. `offload="host"`:
    they are stored in the host's memory instead of the accelerator's, for one transfer of a state
    each way a step, and no second derivatives.
    """

    checkpoints: int | None = eqx.field(static=True, default=None)
    offload: str | None = eqx.field(static=True, default=None)

    modes: ClassVar[tuple[str, ...]] = ("reverse",)
    why: ClassVar[str] = "few states are kept, the others recomputed on the way back"
    needs: ClassVar[type[AbstractSimulation]] = AbstractSimulation

    @property
    def twice(self) -> bool:
        return self.offload is None

    def __check_init__(self):
        if self.checkpoints is not None and self.checkpoints < 1:
            raise ConfigError("must be at least 1", key="checkpoints", value=self.checkpoints)
        if self.offload not in PLACES:
            raise ConfigError(
                "unknown place", key="offload", value=self.offload, allowed="host, null"
            )

    def loop(
        self,
        sim: AbstractSimulation,
        params: Params,
        state: State,
        plan: SavePlan,
        observe: Observe,
    ) -> Trajectory:
        slots = Slots(
            min(self.checkpoints or enough_checkpoints(plan.steps), plan.steps), self.offload
        )
        run = eqx.filter_custom_vjp(_forward)
        run.def_fwd(_forward_keep)
        run.def_bwd(_backward)
        (state, observed), health = run((params, state), sim, plan, observe, slots)
        return Trajectory(state, observed, health)


class Slots(NamedTuple):
    """`places` for states (and one for what is not kept), on the device or the host."""

    places: int
    offload: str | None

    def empty(self, like: PyTree) -> PyTree:
        """All of them, for states like this one."""
        empty = lambda x: jnp.zeros((self.places + 1, *x.shape), x.dtype)  # noqa: E731
        stores = jax.tree.map(empty, like)
        return stores if self.offload is None else jax.device_put(stores, HOST)

    def stored(self, stores: PyTree, state: PyTree, slot: Array) -> PyTree:
        """The places with `state` in one of them."""
        if self.offload is None:
            return jax.tree.map(lambda s, x: s.at[slot].set(x), stores, state)
        return jax.tree.map(lambda s, x: _put(0)(s, x, slot), stores, state)

    def loaded(self, stores: PyTree, slot: Array) -> PyTree:
        """The state in one of them."""
        if self.offload is None:
            return jax.tree.map(lambda s: s[slot], stores)
        return jax.tree.map(lambda s: _take(0)(s, slot), stores)


# What is batched would be gathered and scattered, which XLA does not do in the host's memory: the
# batch becomes an axis before that of the places instead.
def _take(axis: int) -> Callable[[Array, Array], Array]:
    @jax.custom_batching.custom_vmap
    def take(stores: Array, slot: Array) -> Array:
        x = jax.lax.dynamic_index_in_dim(stores, slot, axis, keepdims=False)
        return jax.device_put(x, DEVICE)

    @take.def_vmap
    def _(size, which, stores, slot):
        del size, which
        return _take(axis + 1)(stores, slot), True

    return take


def _put(axis: int) -> Callable[[Array, Array, Array], Array]:
    @jax.custom_batching.custom_vmap
    def put(stores: Array, x: Array, slot: Array) -> Array:
        return jax.lax.dynamic_update_index_in_dim(stores, jax.device_put(x, HOST), slot, axis)

    @put.def_vmap
    def _(size, which, stores, x, slot):
        stores = stores if which[0] else jnp.broadcast_to(stores, (size, *stores.shape))
        x = x if which[1] else jnp.broadcast_to(x, (size, *x.shape))
        return _put(axis + 1)(stores, x, slot), True

    return once(put, "RecursiveCheckpoint with states on the host")


def reach(slots: int, repeats: int) -> int:
    """β(s, r) = C(s + r, s): the steps that s stored states reverse with r evaluations of each."""
    return math.comb(slots + repeats, slots) if repeats >= 0 else 0


def enough_checkpoints(steps: int, repeats: int = 3) -> int:
    """The fewest stored states that reverse `steps` steps with at most `repeats` evaluations."""
    slots = 1
    while reach(slots, repeats) < steps:
        slots += 1
    return slots


def _split(steps: int, slots: int) -> int:
    """How far to advance before the next store; optimal for `slots` stored states (start's too)."""
    r = 1
    while reach(slots, r) < steps:
        r += 1
    return min(reach(slots, r - 1), steps - reach(slots - 1, r - 1))


@functools.lru_cache(maxsize=32)
def binomial_schedule(steps: int, slots: int) -> tuple[np.ndarray, np.ndarray]:
    """The schedule as data.

    **Returns** `first`: (steps,) the slot that takes the state before step t on the first sweep,
    `slots` meaning none; `back`: (operations, 4) with columns `load` (a slot, or -1 to go on from
    the last state), `store` (a slot, or `slots` for none), `reverse` (1: pull back the step, 0:
    advance by it) and the step's number.
    """
    first = np.full(steps, slots, dtype=np.int32)
    back: list[tuple[int, int, int, int]] = []
    # (start, end, stored states left, slot of start, sweep still on its first way)
    stack = [(0, steps, slots, 0, True)]
    first[0] = 0
    while stack:
        a, b, left, slot, fresh = stack.pop()
        if b - a == 1 or left == 1:
            for t in range(b - 1, a - 1, -1):
                back.extend((slot if k == a else -1, slots, 0, k) for k in range(a, t))
                back.append((slot if t == a else -1, slots, 1, t))
            continue
        m, free = _split(b - a, left), slots - left + 1
        if fresh:
            first[a + m] = free
        else:
            back.extend((slot if k == a else -1, slots, 0, k) for k in range(a, a + m))
            # the state that the advance ends on is stored before the next operation uses it
            back.append((-1, free, -1, a + m))
        stack.append((a, a + m, left, slot, False))
        stack.append((a + m, b, left - 1, free, fresh))
    return first, _fuse_stores(back, slots)


def _fuse_stores(back: list[tuple[int, int, int, int]], slots: int) -> np.ndarray:
    """Fold each pure store into the operation after it, which starts from the same state."""
    fused, pending = [], slots
    for load, store, reverse, step in back:
        if reverse < 0:
            pending = store
            continue
        # a load of the slot that is about to be stored is the working state itself
        fused.append((-1 if load == pending else load, pending, reverse, step))
        pending = slots
    return np.asarray(fused, dtype=np.int32).reshape(-1, 4)


def _raw(tree: PyTree) -> PyTree:
    """Array leaves only, typed keys as their data, so that they can be stored in slots."""
    return jax.tree.map(
        lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x,
        eqx.filter(tree, eqx.is_array),
    )


def _cooked(raw: PyTree, like: PyTree) -> PyTree:
    """The inverse of `_raw`, with what is not an array taken from `like`."""
    arrays, rest = eqx.partition(like, eqx.is_array)

    def one(x, template):
        if jnp.issubdtype(template.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(x, impl=jax.random.key_impl(template))
        return x

    return eqx.combine(jax.tree.map(one, raw, arrays), rest)


def _sweep(operands, sim, plan, observe, slots):
    """The first sweep: (final state, saved observables), health, stored states."""
    params, start = operands
    first, _ = binomial_schedule(plan.steps, slots.places)
    stores = slots.empty(_raw(start))

    def tick(carry, inputs):
        (state, health, stores), (slot, k) = carry, inputs
        stores = slots.stored(stores, _raw(state), slot)
        state = sim.step(params, state)
        return (state, health.after(sim.status(state), k), stores), None

    def block(carry, inputs):
        carry, _ = jax.lax.scan(tick, carry, inputs)
        return carry, observe(sim, params, carry[0])

    shape = (plan.blocks, plan.stride)
    numbers = jnp.arange(1, plan.steps + 1, dtype=jnp.int32).reshape(shape)
    carry = (start, Health.good(), stores)
    carry, observed = jax.lax.scan(block, carry, (jnp.asarray(first).reshape(shape), numbers))
    state, health, stores = carry
    return (state, observed), health, stores


def _forward(operands, sim, plan, observe, slots):
    out, health, _ = _sweep(operands, sim, plan, observe, slots)
    return out, health


def _forward_keep(perturbed, operands, sim, plan, observe, slots):
    del perturbed
    out, health, stores = _sweep(operands, sim, plan, observe, slots)
    return (out, health), (out[0], stores)


def _backward(residuals, cotangents, perturbed, operands, sim, plan, observe, slots):
    del perturbed
    final, stores = residuals
    params, start = arrays(operands[0]), operands[1]
    (ct_state, ct_observed), _ = cotangents
    ct_observed = filled(ct_observed, observe, sim, params, final, plan)
    _, back = binomial_schedule(plan.steps, slots.places)

    def see_back(state, ct_params, ct_state, save):
        """Add the pullback of the observation numbered `save`, made at `state`."""
        ct = jax.tree.map(lambda c: c[save], ct_observed)
        more_params, more_state = pull_observation(observe, sim, params, state, ct)
        return add(ct_params, more_params), add(ct_state, more_state)

    def reverse(state, ct_params, ct_state, step):
        more, ct_state = sim.pullback(params, state, ct_state)
        ct_params = add(ct_params, more)
        return jax.lax.cond(
            (step > 0) & (step % plan.stride == 0),
            lambda: see_back(state, ct_params, ct_state, step // plan.stride - 1),
            lambda: (ct_params, ct_state),
        )

    def operation(carry, op):
        working, stores, ct_params, ct_state = carry
        load, store, is_reverse, step = op
        kept = slots.loaded(stores, jnp.maximum(load, 0))
        working = jax.tree.map(lambda w, k: jnp.where(load < 0, w, k), working, kept)
        stores = slots.stored(stores, working, store)

        def pull():
            return working, *reverse(_cooked(working, start), ct_params, ct_state, step)

        def advance():
            return _raw(sim.step(params, _cooked(working, start))), ct_params, ct_state

        working, ct_params, ct_state = jax.lax.cond(is_reverse == 1, pull, advance)
        return (working, stores, ct_params, ct_state), None

    ct_state = add(inexact(ct_state), zeros_of(final))
    ct_params, ct_state = see_back(final, zeros_of(params), ct_state, plan.blocks - 1)
    carry = (_raw(final), stores, ct_params, ct_state)
    (_, _, ct_params, ct_state), _ = jax.lax.scan(operation, carry, tuple(jnp.asarray(back).T))
    return ct_params, ct_state

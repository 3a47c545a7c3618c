"""The host's loop around a long run: chunks of one compiled scan, between which it looks up.

Between chunks the host draws progress, checks laws and health, writes frames, saves restarts and
honours signals. The chunk length never changes a result: the state carries all there is.

No buffer is donated to the next chunk. Its start is what a failure, a signal or a full disk in its
midst saves, and what a list that overflows is run again from; it costs one state beside the 12
(spectral) to 24 (finite volumes) that a step of a flow in three dimensions holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ._adjoint import Health
from ._adjoint._base import march, march_blocks
from ._errors import ConfigError
from ._laws import AbstractLaw, Ledger, assess, observables_of
from ._placement import AbstractPlacement, SingleDevice
from ._schedule import SavePlan, Schedule
from ._simulation import (
    RESULTS,
    AbstractEquilibrium,
    AbstractFlow,
    AbstractSimulation,
    Params,
    State,
)
from ._solve import check_health

ENLARGEMENTS = 8  # more than these in a row means that something else is wrong


class View(eqx.Module):
    """What is kept of a state at each save: named observables, and the state itself if `samples`,
    with its reduced energy."""

    observables: tuple[str, ...] = eqx.field(static=True, default=())
    samples: bool = eqx.field(static=True, default=False)

    def __call__(self, simulation: AbstractSimulation, params: Params, state: State) -> PyTree:
        seen: dict[str, Any] = {}
        if self.observables:
            observed = simulation.observe(params, state)
            seen["observables"] = {name: observed[name] for name in self.observables}
        if self.samples:
            assert isinstance(simulation, AbstractEquilibrium)
            seen["states"] = simulation.sample(state)
            seen["u"] = simulation.reduced_energy(params, seen["states"])
        return seen


class Chunk(eqx.Module):
    """One stretch of a run. `seen`: what `View` kept, leading axes (conditions, saves). `steps`:
    steps taken since the start. `ledger`: the laws in this stretch. `start_observed`,
    `last_observed`: the laws' observables at the very start, and at the last save."""

    state: State
    seen: PyTree
    steps: int = eqx.field(static=True)
    first_saved_step: int = eqx.field(static=True)
    ledger: Ledger
    health: Health
    start_observed: PyTree
    last_observed: PyTree

    def check(self) -> Chunk:
        """Raise the failure of this chunk, if there is one."""
        check_health(self.health.result, self.health.first_bad_step)
        return self


@eqx.filter_jit
def _start(
    simulation: AbstractSimulation,
    params: Params,
    states: State,
    view: View,
    placement: AbstractPlacement,
) -> PyTree:
    """States with their caches of `params` fresh, and what is seen of them."""

    def one(shared, state):
        simulation, params = shared
        state = simulation.prepare(params, state)
        return state, view(simulation, params, state)

    states, seen = placement.map(one, (simulation, params), states)
    return states, placement.readable(seen)


@eqx.filter_jit
def _stretch(
    simulation: AbstractSimulation,
    params: Params,
    states: State,
    plan: SavePlan,
    view: View,
    placement: AbstractPlacement,
    turns: Array,
) -> tuple[State, Health, PyTree]:
    def one(shared, state):
        simulation, params, turns = shared
        see = lambda state: view(simulation, params, state)  # noqa: E731
        if plan.blocks == 1 and not view.samples:
            return _one_block(simulation, params, state, plan.stride, see, turns)
        return march_blocks(simulation, params, state, plan, see)

    shared = simulation, params, turns
    return _read(placement, *placement.map(one, shared, states))


def _one_block(
    simulation: AbstractSimulation,
    params: Params,
    state: State,
    stride: int,
    see: Callable[[State], PyTree],
    turns: Array,
) -> tuple[State, Health, PyTree]:
    """`march_blocks` of one block, in a loop whose number of turns, one, is only known at run time:
    taken out of its loop, what is seen would be fused with the step and rounded otherwise, and the
    length of a chunk would show in the last bit."""

    def block(now):
        turn, carry, _ = now
        carry = march(simulation, params, carry, turn * stride, stride)
        return turn + 1, carry, see(carry[0])

    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(see, state))
    start = jnp.zeros((), jnp.int32), (state, Health.good()), nothing
    _, (state, health), seen = jax.lax.while_loop(lambda now: now[0] < turns, block, start)
    return state, health, jax.tree.map(lambda x: x[None], seen)


def _read(
    placement: AbstractPlacement, states: State, health: Health, seen: dict[str, Any]
) -> tuple[State, Health, PyTree]:
    """The same, what the host looks at where it can; states and samples stay where they are."""
    if "observables" in seen:
        seen = seen | {"observables": placement.readable(seen["observables"])}
    return states, placement.readable(health), seen


@eqx.filter_jit
def _assess(laws: Any, start: Any, series: Any, before: Any, steps: Array) -> Ledger:
    if not laws:
        return assess(laws, {}, {}, steps)
    return eqx.filter_vmap(
        lambda start, series, before: assess(laws, start, series, steps, before=before)
    )(start, series, before)


def drive(
    simulation: AbstractSimulation,
    params: Params,
    states: State,
    *,
    steps: int,
    save_every: int,
    chunk: int | None = None,
    view: View | None = None,
    laws: Sequence[AbstractLaw] = (),
    done: int = 0,
    start_observed: PyTree = None,
    last_observed: PyTree = None,
    placement: AbstractPlacement | None = None,
) -> Iterator[Chunk]:
    """Run `steps` steps of a batch of states (leading axis: conditions), a chunk at a time.

    A chunk in which a neighbour list overflowed is run again from its start with more room. Other
    failures are in the chunk's health: `Chunk.check()` raises them.

    **Arguments:** `chunk`: steps between two looks of the host, rounded to whole saves; `view`:
    what is kept at each save; `done`: steps taken before (a restart), which go on from `states` as
    they are, with `start_observed` and `last_observed` the laws' observables at the very start and
    at the last save; the chunks are then those that the whole run would have had; `placement`:
    where the conditions run (default: one device).
    """
    saves, view, place = steps // save_every, view or View(), placement or SingleDevice()
    if steps % save_every:
        raise ConfigError(
            f"must be a multiple of save_every={save_every}", key="steps", value=steps
        )

    def advance(states: State, taken: int, saves: int, wide: View) -> Any:
        plan = SavePlan(save_every, saves)
        states, health, seen = _with_room(simulation, params, states, plan, wide, place)
        late = jnp.where(health.first_bad_step >= 0, health.first_bad_step + taken, -1)
        return states, Health(health.result, late), seen

    blocks = _blocks(saves, max(1, (chunk or steps) // save_every), done // save_every)
    observed = start_observed, last_observed
    yield from _chunks(
        *(
            simulation,
            params,
            states,
            advance,
            blocks,
            save_every,
            view,
            laws,
            done,
            observed,
            place,
        )
    )


def _chunks(
    simulation: AbstractSimulation,
    params: Params,
    states: State,
    advance: Callable[[State, int, int, View], tuple[State, Health, PyTree]],
    blocks: Iterator[int],
    stride: int,
    view: View,
    laws: Sequence[AbstractLaw],
    done: int,
    observed: tuple[PyTree, PyTree],
    placement: AbstractPlacement,
) -> Iterator[Chunk]:
    """Chunks of as many saves as `blocks` says, `stride` apart in number, each under the laws;
    `advance(states, taken, saves, view)` runs one."""
    names = observables_of(laws, available_observables(simulation, params, states)) if laws else ()
    wide = View(tuple(dict.fromkeys((*view.observables, *names))), view.samples)
    start_observed, previous = observed
    if done == 0:
        states, seen = _start(simulation, params, states, View(names), placement)
        start_observed = seen.get("observables", {})
    previous, taken = start_observed if previous is None else previous, done
    for saves in blocks:
        states, health, seen = advance(states, taken, saves, wide)
        series = {name: seen["observables"][name] for name in names}
        saved = taken + stride * (1 + jnp.arange(saves, dtype=jnp.int32))
        now = _assess(tuple(laws), start_observed, series, previous, saved)
        previous = {name: value[:, -1] for name, value in series.items()}
        if view.observables:
            seen["observables"] = {n: seen["observables"][n] for n in view.observables}
        first, taken = taken + stride, taken + stride * saves
        yield Chunk(states, seen, taken, first, now, health, start_observed, previous)


@eqx.filter_jit
def _flow_stretch(
    simulation: AbstractFlow,
    params: Params,
    states: State,
    times: Array,
    view: View,
    placement: AbstractPlacement,
) -> tuple[State, Health, PyTree]:
    def one(shared, state):
        simulation, params, times = shared
        integral = simulation.integrate(params, state, times, None)
        seen = jax.vmap(lambda state: view(simulation, params, state))(integral.states)
        return integral.final, Health(integral.result, integral.first_bad_step), seen

    return _read(placement, *placement.map(one, (simulation, params, times), states))


def drive_flow(
    simulation: AbstractFlow,
    params: Params,
    states: State,
    *,
    schedule: Schedule,
    chunk: int,
    view: View,
    laws: Sequence[AbstractLaw] = (),
    done: int = 0,
    start_observed: PyTree = None,
    last_observed: PyTree = None,
    placement: AbstractPlacement | None = None,
) -> Iterator[Chunk]:
    """`drive` for solvers that choose their steps: `Chunk.steps` counts saves in place of steps,
    and a chunk has `chunk` of them. A solver looks for its first step anew in each, so that values
    depend on the length of chunks, by less than the tolerance; a run that an event may end is one
    chunk."""
    times, place = schedule.times(), placement or SingleDevice()

    def advance(states: State, taken: int, saves: int, wide: View) -> Any:
        ts = jnp.asarray(times[taken : taken + saves])
        return _flow_stretch(simulation, params, states, ts, wide, place)

    if done == 0:
        at_start = lambda shared, state: shared.at_time(state, schedule.t0)  # noqa: E731
        states = place.map(at_start, simulation, states)
    blocks = _blocks(len(times), len(times) if simulation.may_end else max(1, chunk), done)
    observed = start_observed, last_observed
    yield from _chunks(
        *(simulation, params, states, advance, blocks, 1, view, laws, done, observed, place)
    )


def available_observables(
    simulation: AbstractSimulation, params: Params, states: State
) -> tuple[str, ...]:
    """The names that a simulation observes of a batch of states."""
    one = jax.tree.map(lambda x: x[0] if eqx.is_array(x) else x, states)
    return tuple(eqx.filter_eval_shape(simulation.observe, params, one))


def _blocks(saves: int, most: int, done: int = 0) -> Iterator[int]:
    """Saves a chunk: the largest number up to `most` that divides all, so that all chunks share one
    compilation; if that is under half of `most`, `most` and a shorter rest. A run that goes on
    after `done` saves has the chunks that it would have had."""
    even = max(n for n in range(1, min(most, saves) + 1) if saves % n == 0) if saves else 1
    size = even if 2 * even >= min(most, saves) else most
    while done < saves:
        now = min(size - done % size, saves - done)
        yield now
        done += now


def _with_room(
    simulation: AbstractSimulation,
    params: Params,
    states: State,
    plan: SavePlan,
    view: View,
    placement: AbstractPlacement,
) -> tuple[State, Health, PyTree]:
    """A stretch, again from its start with larger neighbour lists for as long as they overflow."""
    turns = jnp.asarray(plan.blocks, jnp.int32)
    out = _stretch(simulation, params, states, plan, view, placement, turns)
    for _ in range(ENLARGEMENTS):
        if not bool(jnp.any(out[1].result == RESULTS.neighbour_overflow)):
            return out
        states = placement.place(_enlarged(simulation, params, placement.fetch(states)))
        out = _stretch(simulation, params, states, plan, view, placement, turns)
    return out


def _enlarged(simulation: AbstractSimulation, params: Params, states: State) -> State:
    """Every member of a batch with more room, all with the same shapes."""
    members = jax.tree.leaves(eqx.filter(states, eqx.is_array))[0].shape[0]
    each = [
        simulation.enlarge(params, jax.tree.map(lambda x: x[i] if eqx.is_array(x) else x, states))  # noqa: B023
        for i in range(members)
    ]
    kinds = {str(jax.tree.map(lambda x: getattr(x, "shape", x), one)) for one in each}
    if len(kinds) > 1:
        raise ConfigError(
            "the members of this batch need neighbour lists of different sizes",
            key="conditions",
            allowed="one run for each member, which `solve` and `fit` do by themselves",
        )
    return jax.tree.map(lambda *x: jnp.stack(x) if eqx.is_array(x[0]) else x[0], *each)

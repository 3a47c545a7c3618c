"""The host's loop around a long run: chunks of one compiled scan, between which it looks up.

Between chunks the host draws progress, checks laws and health, writes frames, saves restarts and
honours signals. The chunk length never changes a result: the state carries all there is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ._adjoint import Health
from ._adjoint._base import march_blocks
from ._errors import ConfigError
from ._laws import AbstractLaw, Ledger, assess, observables_of
from ._schedule import SavePlan, Schedule
from ._simulation import (
    RESULTS,
    AbstractEquilibrium,
    AbstractFlow,
    AbstractSimulation,
    Params,
    State,
)
from ._solve import check_health, over_batch

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
    steps taken since the start. `ledger`: the laws in this stretch. `start_observed`: the laws'
    observables at the very start."""

    state: State
    seen: PyTree
    steps: int = eqx.field(static=True)
    first_saved_step: int = eqx.field(static=True)
    ledger: Ledger
    health: Health
    start_observed: PyTree

    def check(self) -> Chunk:
        """Raise the failure of this chunk, if there is one."""
        check_health(self.health.result, self.health.first_bad_step)
        return self


@eqx.filter_jit
def _start(simulation: AbstractSimulation, params: Params, states: State, view: View) -> PyTree:
    """States with their caches of `params` fresh, and what is seen of them."""

    def one(state):
        state = simulation.prepare(params, state)
        return state, view(simulation, params, state)

    return over_batch(one, states)


@eqx.filter_jit
def _stretch(
    simulation: AbstractSimulation, params: Params, states: State, plan: SavePlan, view: View
) -> tuple[State, Health, PyTree]:
    def one(state):
        see = lambda state: view(simulation, params, state)  # noqa: E731
        return march_blocks(simulation, params, state, plan, see)

    return over_batch(one, states)


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
) -> Iterator[Chunk]:
    """Run `steps` steps of a batch of states (leading axis: conditions), a chunk at a time.

    A chunk in which a neighbour list overflowed is run again from its start with more room. Other
    failures are in the chunk's health: `Chunk.check()` raises them.

    **Arguments:** `chunk`: steps between two looks of the host, rounded to whole saves; `view`:
    what is kept at each save; `done`: steps taken before (a restart), which go on from `states` as
    they are, with `start_observed` the laws' observables at the very start.
    """
    saves, view = steps // save_every, view or View()
    if steps % save_every:
        raise ConfigError(
            f"must be a multiple of save_every={save_every}", key="steps", value=steps
        )

    def advance(states: State, taken: int, saves: int, wide: View) -> Any:
        plan = SavePlan(save_every, saves)
        states, health, seen = _with_room(simulation, params, states, plan, wide)
        late = jnp.where(health.first_bad_step >= 0, health.first_bad_step + taken, -1)
        return states, Health(health.result, late), seen

    blocks = _blocks(saves - done // save_every, max(1, (chunk or steps) // save_every))
    yield from _chunks(
        simulation, params, states, advance, blocks, save_every, view, laws, done, start_observed
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
    start_observed: PyTree,
) -> Iterator[Chunk]:
    """Chunks of as many saves as `blocks` says, `stride` apart in number, each under the laws;
    `advance(states, taken, saves, view)` runs one."""
    names = observables_of(laws, available_observables(simulation, params, states))
    wide = View(tuple(dict.fromkeys((*view.observables, *names))), view.samples)
    if done == 0:
        states, seen = _start(simulation, params, states, View(names))
        start_observed = seen.get("observables", {})
    previous, taken = start_observed, done
    for saves in blocks:
        states, health, seen = advance(states, taken, saves, wide)
        series = {name: seen["observables"][name] for name in names}
        saved = taken + stride * (1 + jnp.arange(saves, dtype=jnp.int32))
        now = _assess(tuple(laws), start_observed, series, previous, saved)
        previous = {name: value[:, -1] for name, value in series.items()}
        if view.observables:
            seen["observables"] = {n: seen["observables"][n] for n in view.observables}
        first, taken = taken + stride, taken + stride * saves
        yield Chunk(states, seen, taken, first, now, health, start_observed)


@eqx.filter_jit
def _flow_stretch(
    simulation: AbstractFlow, params: Params, states: State, times: Array, view: View
) -> tuple[State, Health, PyTree]:
    def one(state):
        integral = simulation.integrate(params, state, times, None)
        seen = jax.vmap(lambda state: view(simulation, params, state))(integral.states)
        return integral.final, Health(integral.result, integral.first_bad_step), seen

    return over_batch(one, states)


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
) -> Iterator[Chunk]:
    """`drive` for solvers that choose their steps: `Chunk.steps` counts saves in place of steps,
    and a chunk has `chunk` of them. A solver looks for its first step anew in each, so that values
    depend on the length of chunks, by less than the tolerance; a run that an event may end is one
    chunk."""
    times = schedule.times()

    def advance(states: State, taken: int, saves: int, wide: View) -> Any:
        ts = jnp.asarray(times[taken : taken + saves])
        return _flow_stretch(simulation, params, states, ts, wide)

    if done == 0:
        states = over_batch(lambda state: simulation.at_time(state, schedule.t0), states)
    blocks = _blocks(len(times) - done, len(times) if simulation.may_end else max(1, chunk))
    yield from _chunks(
        simulation, params, states, advance, blocks, 1, view, laws, done, start_observed
    )


def available_observables(
    simulation: AbstractSimulation, params: Params, states: State
) -> tuple[str, ...]:
    """The names that a simulation observes of a batch of states."""
    one = jax.tree.map(lambda x: x[0] if eqx.is_array(x) else x, states)
    return tuple(eqx.filter_eval_shape(simulation.observe, params, one))


def _blocks(saves: int, most: int) -> Iterator[int]:
    """Saves a chunk: the largest number up to `most` that divides all, so that all chunks share one
    compilation; if that is under half of `most`, `most` and a shorter rest."""
    even = max(n for n in range(1, min(most, saves) + 1) if saves % n == 0) if saves else 1
    size = even if 2 * even >= min(most, saves) else most
    while saves > 0:
        yield min(size, saves)
        saves -= size


def _with_room(
    simulation: AbstractSimulation, params: Params, states: State, plan: SavePlan, view: View
) -> tuple[State, Health, PyTree]:
    """A stretch, again from its start with larger neighbour lists for as long as they overflow."""
    out = _stretch(simulation, params, states, plan, view)
    for _ in range(ENLARGEMENTS):
        if not bool(jnp.any(out[1].result == RESULTS.neighbour_overflow)):
            return out
        states = _enlarged(simulation, params, states)
        out = _stretch(simulation, params, states, plan, view)
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

"""The only place where a trajectory is run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ._adjoint import AbstractAdjoint, Auto, Direct, ForwardMode, RecursiveCheckpoint, Samples
from ._errors import ConfigError, LawBroken, SimulationError
from ._laws import AbstractLaw, Ledger, assess, observables_of
from ._placement import over_batch as over_batch
from ._schedule import Schedule
from ._simulation import (
    RESULT_NAMES,
    RESULTS,
    AbstractFlow,
    AbstractSimulation,
    Params,
    State,
)


class Stats(dict[str, Any]):
    """A dictionary whose entries are attributes too: `stats["ess"]`, `stats.ess`."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"no {name} among {', '.join(self) or 'nothing'}") from None


jax.tree_util.register_pytree_node(
    Stats,
    lambda stats: (tuple(stats[name] for name in sorted(stats)), tuple(sorted(stats))),
    lambda names, values: Stats(zip(names, values, strict=True)),
)


class Solution(eqx.Module):
    """What a run leaves. Leading axis of `observables`: saves (after a batch axis under vmap).

    `state`: the final state. `steps`, `times`: when each save was made. `ledger`: the laws.
    `result`, `first_bad_step`: the first failure (−1: none). `stats`: what is particular to the
    adjoint, `ess` or the `plan` of `Auto`. `samples`: the samples of `Reweight`, for reuse.
    """

    observables: dict[str, Array]
    state: State
    steps: Array
    times: Array | None
    ledger: Ledger
    result: RESULTS
    first_bad_step: Array
    stats: Stats
    samples: Samples | None = None

    def check(self) -> Solution:
        """Raise on the host what went wrong: the failure or the law, its step, the remedy."""
        check_health(self.result, self.first_bad_step)
        for row in self.ledger.rows():
            if not row["ok"] and row["action"] == "stop":
                raise LawBroken(
                    row["name"], worst=row["worst"], tolerance=row["tolerance"], step=row["step"]
                )
        return self


def check_health(result: RESULTS, first_bad_step: Array) -> None:
    """Raise `SimulationError` for the earliest failure of a run or of a batch of runs."""
    steps = np.atleast_1d(np.asarray(first_bad_step))
    if np.all(steps < 0):
        return
    member = int(np.argmin(np.where(steps < 0, np.iinfo(steps.dtype).max, steps)))
    cause, _, advice = _message(result, member).partition("; ")
    if steps.size > 1:
        cause += f" in member {member} of the batch"
    raise SimulationError(cause, step=int(steps.ravel()[member]), advice=advice)


def _message(result: RESULTS, member: int) -> str:
    """The message of one member of a batched result."""
    for name in RESULT_NAMES:
        item = getattr(RESULTS, name)
        if np.ravel(np.asarray(result == item))[member]:
            return RESULTS[item]
    raise AssertionError("a result is always one of RESULTS")


def solve(
    simulation: AbstractSimulation,
    params: Params,
    state: State,
    *,
    schedule: Schedule,
    adjoint: AbstractAdjoint | None = None,
    laws: Sequence[AbstractLaw] = (),
    observables: Sequence[str] | None = None,
) -> Solution:
    """x_{t+1} = step(θ, x_t) for the whole schedule, differentiable in `params` and `state`.

    Pure: jit it, vmap it, differentiate it. Failure is data (`result`, `first_bad_step`), raised by
    `Solution.check()` on the host.

    **Arguments:** `state`, from `simulation.init`; `adjoint`, how the gradient is taken (default
    `Direct`, for adaptive solvers `RecursiveCheckpoint`); `laws`, what is recorded in the ledger;
    `observables`, the names to save (default: all that the simulation observes).

    **Raises** `ConfigError` before tracing when schedule, adjoint, laws or names do not fit.
    """
    adjoint = default_adjoint(simulation) if adjoint is None else adjoint
    adjoint.check(simulation)
    if isinstance(adjoint, Auto) and getattr(simulation, "adaptive", False):
        forward = adjoint.mode == "forward"  # the memory of the others follows unknown steps
        adjoint = default_adjoint(simulation, ("forward",) if forward else ("reverse",))
    if schedule.steps is None:
        state = simulation.at_time(state, schedule.t0)
    available = tuple(eqx.filter_eval_shape(simulation.observe, params, state))
    wanted = tuple(available if observables is None else observables)
    for name in wanted:
        if name not in available:
            raise ConfigError("no such observable", key=name, allowed=available)
    law_names = observables_of(laws, available)
    saved = tuple(dict.fromkeys((*wanted, *law_names)))

    def observe(sim: AbstractSimulation, params: Params, state: State) -> dict[str, Array]:
        seen = sim.observe(params, state)
        return {name: seen[name] for name in saved}

    began = state = simulation.prepare(params, state)
    start = observe(simulation, params, state)
    if isinstance(simulation, AbstractFlow) and simulation.adaptive:
        return _flow(simulation, params, state, schedule, adjoint, laws, start, observe, wanted)
    plan = schedule.plan(simulation.time_step())
    trajectory = adjoint.loop(simulation, params, state, plan, observe)
    block_steps = (jnp.arange(plan.blocks, dtype=jnp.int32) + 1) * plan.stride
    first, series = ({k: t[k] for k in law_names} for t in (start, trajectory.observables))
    ledger = assess(laws, first, series, block_steps)
    steps = plan.saved_steps()
    dt = simulation.time_step()
    begin = simulation.time(began) if schedule.steps is not None else schedule.t0
    return Solution(
        observables=_select(trajectory.observables, start, plan, wanted),
        state=trajectory.state,
        steps=jnp.asarray(steps, jnp.int32),
        times=None if dt is None else jnp.asarray(begin + steps * dt),
        ledger=ledger,
        result=trajectory.health.result,
        first_bad_step=trajectory.health.first_bad_step,
        stats=Stats({k: v for k, v in trajectory.extra.items() if k != "samples"}),
        samples=trajectory.extra.get("samples"),
    )


def equilibrated(simulation: AbstractSimulation, params: Params, state: State, steps: int) -> State:
    """A state after `steps` steps, outside of every gradient."""
    if not steps:
        return state
    dynamic, static = eqx.partition((params, state), eqx.is_array)
    params, state = eqx.combine(jax.lax.stop_gradient(dynamic), static)
    return solve(simulation, params, state, schedule=Schedule(steps=steps), observables=()).state


def default_adjoint(
    simulation: AbstractSimulation, modes: Sequence[str] = ("reverse",)
) -> AbstractAdjoint:
    """How a gradient is taken where nobody says so: `Direct`; of an adaptive solver in reverse mode
    `RecursiveCheckpoint`, in forward mode alone `ForwardMode`."""
    if not (isinstance(simulation, AbstractFlow) and simulation.adaptive):
        return Direct()
    return RecursiveCheckpoint() if "reverse" in modes else ForwardMode()


def _flow(
    simulation: AbstractFlow,
    params: Params,
    state: State,
    schedule: Schedule,
    adjoint: AbstractAdjoint,
    laws: Sequence[AbstractLaw],
    start: dict[str, Array],
    observe: Callable[..., dict[str, Array]],
    wanted: tuple[str, ...],
) -> Solution:
    """A run whose solver chooses its steps: the saves are numbered where the steps were."""
    times = schedule.times()
    integral = simulation.integrate(params, state, times, adjoint, end=schedule.end)
    observed = jax.vmap(lambda state: observe(simulation, params, state))(integral.states)
    numbers = jnp.arange(1, len(times) + 1, dtype=jnp.int32)
    first, series = ({k: t[k] for k in observables_of(laws, tuple(t))} for t in (start, observed))
    return Solution(
        observables={name: observed[name] for name in wanted},
        state=integral.final,
        steps=numbers,
        times=jnp.asarray(times),
        ledger=assess(laws, first, series, numbers),
        result=integral.result,
        first_bad_step=integral.first_bad_step,
        stats=Stats(integral.stats),
    )


def _select(observed, start, plan, wanted):
    """The saves that the schedule asked for, of the observables that the caller asked for."""
    chosen = {}
    for name in wanted:
        values = observed[name]
        if plan.keep is not None:
            values = values[np.asarray(plan.keep, dtype=int)]
        chosen[name] = jnp.concatenate([start[name][None], values]) if plan.start else values
    return chosen

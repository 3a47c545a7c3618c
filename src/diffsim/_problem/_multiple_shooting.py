"""Multiple shooting: a long trajectory as many short ones that must meet."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PRNGKeyArray, PyTree

from .._errors import ConfigError
from .._parameter import Parameter
from .._schedule import Schedule
from .._simulation import RESULTS, AbstractFlow, AbstractSimulation, Integral, Params, State
from .._solve import solve
from ._problem import Problem
from ._target import Target

NODES = "nodes"
GAPS = "gaps"


def multiple_shooting(
    problem: Problem,
    segments: int,
    *,
    nodes: Any = None,
    gap: float = 1e-4,
) -> Problem:
    """min Σ r² subject to x_{i+1}(0) = x_i(Δ): one trajectory as `segments` short ones.

    Over a long run of a chaotic or stiff system the error surface is rough on the scale exp(-λT),
    and a descent from a bad start gets nowhere. Over a segment it is smooth: each starts at a free
    state, a node, and that it meets the next becomes data, the target `gaps`. Where `gap` is far
    below what the measurements tell of a state, the minimum is that of the one trajectory, with its
    error bars. Segments are conditions: they run as one batch, on any simulation, by any adjoint.

    **Arguments:**

    - `problem`: whose targets are of "each" save; any number of conditions.
    - `segments`: of equal length. A schedule in steps must have that many blocks, or a multiple.
    - `nodes`: (segments - 1, n), or (conditions, segments - 1, n): where the later segments start
      at first, n the numbers of `simulation.variables`. Default: what was measured there, where a
      target is the variables themselves; else the run at the starting parameters.
    - `gap`: the sigma of the gaps, relative to the spread of each variable over the nodes.

    The result has one more parameter, `nodes` (conditions, segments - 1, n). A descent damped
    relative to such steep gaps would hold the trajectory where it is: start `least_squares` with
    `damping=1e-9` or less.

    Source: Bock, in Modelling of Chemical Reaction Systems, 102 (1981),
    doi:10.1007/978-3-642-68220-9_8. **Raises** `ConfigError` before tracing.
    """
    _check(problem, segments, gap)
    problem.check()
    layout = _layout(problem, segments)
    given = problem.conditions or {}
    starts = _Starts(problem, layout)
    nodes = starts.measured() if nodes is None else starts.checked(nodes)
    nodes = starts.simulated() if nodes is None else nodes
    spread = _spread(np.concatenate([starts.first[:, None], nodes], axis=1))
    count = problem.batch * segments
    conditions = {
        name: jax.tree.map(lambda x: _repeated(x, segments), v) for name, v in given.items()
    }
    conditions["segment"] = np.tile(np.arange(segments), problem.batch)
    conditions["row"] = np.repeat(np.arange(problem.batch), segments)
    meets = np.zeros((count, layout.saves, spread.size), dtype=bool)
    meets[conditions["segment"] < segments - 1, -1] = True
    gaps = Target(
        GAPS, np.zeros(meets.shape), gap * spread, statistic="each", mask=meets, name=GAPS
    )
    return Problem(
        segments_of(problem.simulation, layout),
        {**problem.parameters, NODES: Parameter(nodes)},
        [*(layout.target(t) for t in problem.targets), gaps],
        layout.schedule,
        conditions,
        placement=problem.placement,
    )


class SegmentState(eqx.Module):
    """The state of one segment, which segment of which trajectory it is."""

    inner: State
    segment: Array
    row: Array


class Segments(AbstractSimulation):
    """One segment of a trajectory of `simulation`, which starts at a node."""

    simulation: AbstractSimulation
    segments: int = eqx.field(static=True)
    span: float = eqx.field(static=True)

    def init(
        self, params: Params, key: PRNGKeyArray, *, segment: Any, row: Any, **conditions: Any
    ) -> SegmentState:
        own = inner(params)
        first = self.simulation.init(own, key, **conditions)
        flat, unravel = ravel_pytree(self.simulation.variables(first))
        segment, row = jnp.asarray(segment), jnp.asarray(row)
        node = jnp.asarray(params[NODES])[row, jnp.maximum(segment - 1, 0)]
        start = jnp.where(segment == 0, flat, node.astype(flat.dtype))
        state = self.simulation.with_variables(first, unravel(start))
        state = self.simulation.prepare(own, self._clocked(state, 0.0, segment))
        return SegmentState(state, segment, row)

    def _clocked(self, state: State, t: Any, segment: Array) -> State:
        return self.simulation.at_time(state, t + segment * self.span) if self.span else state

    def check(self, params: Params, **conditions: Any) -> None:
        own = {k: v for k, v in conditions.items() if k not in ("segment", "row")}
        self.simulation.check(inner(params), **own)

    def step(self, params: Params, state: SegmentState) -> SegmentState:
        after = self.simulation.step(inner(params), state.inner)
        return SegmentState(after, state.segment, state.row)

    def observe(self, params: Params, state: SegmentState) -> dict[str, Array]:
        seen = self.simulation.observe(inner(params), state.inner)
        flat, _ = ravel_pytree(self.simulation.variables(state.inner))
        nodes = jnp.asarray(params[NODES])
        following = nodes[state.row, jnp.minimum(state.segment, self.segments - 2)]
        last = state.segment == self.segments - 1
        return {**seen, GAPS: jnp.where(last, 0.0, flat - following)}

    def units(self) -> dict[str, str]:
        return self.simulation.units()

    def traceable_init(self) -> bool:
        return self.simulation.traceable_init()

    def time_step(self) -> float | None:
        return self.simulation.time_step()

    def time(self, state: SegmentState) -> Any:
        return self.simulation.time(state.inner)

    def at_time(self, state: SegmentState, t: Any) -> SegmentState:
        after = self._clocked(state.inner, t, state.segment)
        return SegmentState(after, state.segment, state.row)

    def prepare(self, params: Params, state: SegmentState) -> SegmentState:
        after = self.simulation.prepare(inner(params), state.inner)
        return SegmentState(after, state.segment, state.row)

    def status(self, state: SegmentState) -> RESULTS:
        return self.simulation.status(state.inner)


class FlowSegments(Segments, AbstractFlow):
    """Segments of a flow whose solver chooses its steps."""

    @property
    def adaptive(self) -> bool:
        return True

    def vector_field(self, t: Any, y: PyTree, args: Any) -> PyTree:
        assert isinstance(self.simulation, AbstractFlow)
        return self.simulation.vector_field(t, y, inner(args))

    def integrate(
        self,
        params: Params,
        state: SegmentState,
        times: Sequence[float] | Array,
        adjoint: Any,
        end: float | None = None,
    ) -> Integral:
        assert isinstance(self.simulation, AbstractFlow)
        del end  # the last of the times, by construction
        times = jnp.asarray(times) + state.segment * self.span
        run = self.simulation.integrate(inner(params), state.inner, times, adjoint)
        many = lambda x: jnp.broadcast_to(x, times.shape)  # noqa: E731
        return dataclasses.replace(
            run,
            states=SegmentState(run.states, many(state.segment), many(state.row)),
            final=SegmentState(run.final, state.segment, state.row),
        )


def inner(params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of the simulation itself."""
    return {name: value for name, value in params.items() if name != NODES}


def _check(problem: Problem, segments: int, gap: float) -> None:
    if isinstance(segments, bool) or not isinstance(segments, int) or segments < 2:
        raise ConfigError("must be a whole number of at least 2", key="segments", value=segments)
    if not (math.isfinite(gap) and gap > 0):
        raise ConfigError("must be positive", key="gap", value=gap)
    for target in (*problem.targets, *problem.entropies):
        if target.statistic != "each":
            raise ConfigError(
                "a mean over the run is none over its segments",
                key=f"target {target.label}.statistic",
                value=target.statistic,
                allowed="each",
            )
    if not isinstance(problem.parameters, Mapping) or NODES in problem.parameters:
        raise ConfigError("this name is needed for the nodes", key=f"parameters.{NODES}")
    if problem.equilibration:
        raise ConfigError(
            "segments have starts of their own", key="equilibration", value=problem.equilibration
        )
    if getattr(problem.simulation, "may_end", False):
        raise ConfigError("a run that an event ends has no segments", key="simulation.event")
    if not problem.simulation.traceable_init():
        raise ConfigError(
            f"{type(problem.simulation).__name__} allocates neighbour lists as it starts, which "
            "segments cannot",
            key="simulation",
            allowed="a potential without lists (dense)",
        )


@dataclasses.dataclass
class _Layout:
    """How a schedule falls into segments: that of one, how long each is in time (0: no clock), and
    `place`, of each save of the whole run its (segment, save)."""

    schedule: Schedule
    span: float
    saves: int
    segments: int
    place: np.ndarray

    def target(self, target: Target) -> Target:
        """The same measurements, segment by segment."""
        shape = np.shape(target.data)
        measured = np.ones(shape, dtype=bool) if target.mask is None else np.asarray(target.mask)
        changes: dict[str, Any] = {
            "data": self._moved(np.asarray(target.data, dtype=float)),
            "mask": self._moved(measured),
        }
        if np.ndim(target.sigma) and not isinstance(target.sigma, str):
            sigma = np.broadcast_to(np.asarray(target.sigma, dtype=float), shape)
            changes["sigma"] = self._moved(sigma, fill=1.0)
        return dataclasses.replace(target, **changes)

    def _moved(self, values: np.ndarray, fill: float = 0.0) -> np.ndarray:
        """(conditions, saves, ...) as (conditions x segments, saves of a segment, ...)."""
        rows = len(values)
        out = np.full((rows, self.segments, self.saves, *values.shape[2:]), fill, values.dtype)
        out[:, self.place[:, 0], self.place[:, 1]] = values
        return out.reshape(rows * self.segments, self.saves, *values.shape[2:])


def segments_of(simulation: AbstractSimulation, layout: _Layout) -> Segments:
    """The simulation of the segments of another."""
    flow = isinstance(simulation, AbstractFlow) and simulation.adaptive
    return (FlowSegments if flow else Segments)(simulation, layout.segments, layout.span)


def _layout(problem: Problem, segments: int) -> _Layout:
    schedule, dt = problem.schedule, problem.simulation.time_step()
    if schedule.steps is not None:
        stride = schedule.save_every or schedule.steps
        blocks = schedule.steps // stride
        if blocks % segments:
            raise ConfigError(
                f"must divide the {blocks} saves of the schedule",
                key="segments",
                value=segments,
                suggestion=str(_nearest_divisor(blocks, segments)),
            )
        each = blocks // segments
        place = np.stack(np.divmod(np.arange(blocks), each), axis=1)
        span = each * stride * (dt or 0.0)
        return _Layout(
            Schedule(steps=each * stride, save_every=stride), span, each, segments, place
        )
    times, t0 = np.asarray(schedule.times()), schedule.t0
    span = (schedule.end - t0) / segments
    gone = (times - t0) / span
    segment = np.maximum(np.ceil(gone - 1e-9) - 1, 0).astype(int)
    within = np.round(gone - segment, 9)
    union = np.union1d(within, [1.0])
    place = np.stack([segment, np.searchsorted(union, within)], axis=1)
    whole = Schedule(t0=t0, ts=t0 + union * span)
    return _Layout(whole, span, len(union), segments, place)


def _nearest_divisor(blocks: int, wanted: int) -> int:
    divisors = [n for n in range(2, blocks + 1) if blocks % n == 0]
    return min(divisors, key=lambda n: abs(n - wanted), default=2)


@dataclasses.dataclass
class _Starts:
    """Where segments start at first. `first`: (conditions, n), the starts of the trajectories."""

    problem: Problem
    layout: _Layout

    def __post_init__(self):
        problem = self.problem
        self.theta = problem.initial()
        self.params = problem.params(self.theta)
        self.states = problem.states(self.theta, jax.random.key(0))
        flat = jax.vmap(lambda s: ravel_pytree(problem.simulation.variables(s))[0])
        self.flat: Callable[[State], Array] = flat
        self.first = np.asarray(flat(self.states))

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.problem.batch, self.layout.segments - 1, self.first.shape[1])

    def checked(self, nodes: Any) -> np.ndarray:
        """Nodes that a person gave."""
        nodes = np.asarray(nodes, dtype=float)
        nodes = nodes[None] if nodes.ndim == 2 else nodes
        if nodes.shape != self.shape:
            raise ConfigError(
                f"have the shape {nodes.shape} where (conditions, segments - 1, variables) is "
                f"{self.shape}",
                key="nodes",
            )
        if not np.all(np.isfinite(nodes)):
            raise ConfigError("must be finite numbers", key="nodes")
        return nodes

    def measured(self) -> np.ndarray | None:
        """The measurements at the nodes, of a target that is the variables themselves."""
        boundary = np.nonzero(self.layout.place[:, 1] == self.layout.saves - 1)[0]
        boundary = boundary[self.layout.place[boundary, 0] < self.layout.segments - 1]
        if len(boundary) != self.layout.segments - 1:
            return None
        for target in self.problem.targets:
            data = np.asarray(target.data, dtype=float)
            seen = np.ones(data.shape, bool) if target.mask is None else np.asarray(target.mask)
            if self._is_variables(target) and np.all(seen[:, boundary]):
                return data[:, boundary].reshape(self.shape)
        return None

    def _is_variables(self, target: Target) -> bool:
        """Whether an observable repeats the variables, number by number."""
        simulation = self.problem.simulation
        state = jax.tree.map(lambda x: x[0] if eqx.is_array(x) else x, self.states)
        flat, unravel = ravel_pytree(simulation.variables(state))
        other = flat + jax.random.normal(jax.random.key(1), flat.shape, flat.dtype)
        state = simulation.with_variables(state, unravel(other))
        seen = np.ravel(simulation.observe(self.params, state)[target.observable])
        units = (target.unit, simulation.units().get(target.observable))
        same = units[0] is None or units[0] == units[1]
        return same and seen.shape == other.shape and np.allclose(seen, other)

    def simulated(self) -> np.ndarray:
        """The states at the nodes, of a run at the starting parameters."""
        simulation, schedule = self.problem.simulation, self.layout.schedule

        rows, n = self.shape[0], self.shape[2]
        params = {**self.params, NODES: jnp.zeros((rows, self.layout.segments - 1, n))}
        segmented = segments_of(simulation, self.layout)

        def one(params: Params, state: SegmentState) -> SegmentState:
            return solve(segmented, params, state, schedule=schedule, observables=()).state

        run = eqx.filter_jit(eqx.filter_vmap(one, in_axes=(None, eqx.if_array(0))))
        states, nodes = self.states, []
        for i in range(self.layout.segments - 1):
            states = run(params, SegmentState(states, jnp.full(rows, i), jnp.arange(rows))).inner
            nodes.append(np.asarray(self.flat(states)))
        nodes = np.stack(nodes, axis=1)
        if not np.all(np.isfinite(nodes)):
            raise ConfigError(
                "the run at the starting parameters does not stay finite, so the nodes must be "
                "given",
                key="nodes",
                value=None,
            )
        return nodes


def _spread(values: np.ndarray) -> np.ndarray:
    """The scale of each variable over conditions and segments, (n,): its standard deviation, where
    that is nothing its size, where that is nothing one."""
    flat = values.reshape(-1, values.shape[-1])
    spread, size = np.std(flat, axis=0), np.abs(flat).max(axis=0)
    spread = np.where(spread > 1e-9 * size, spread, size)
    return np.where(spread > 0, spread, 1.0)


def _repeated(x: Any, times: int) -> Any:
    """Each row `times` times in a row; typed keys too."""
    return jnp.repeat(x, times, axis=0) if isinstance(x, jax.Array) else np.repeat(x, times, axis=0)

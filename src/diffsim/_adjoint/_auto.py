"""The adjoint that fits the memory at hand and takes the least time."""

from __future__ import annotations

import math
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from .._errors import ConfigError
from .._schedule import SavePlan
from .._simulation import AbstractSimulation, Params, State
from ._base import AbstractAdjoint, Observe, Trajectory, inexact
from ._bytes import parsed_bytes, shown
from ._checkpoint import RecursiveCheckpoint
from ._plan import (
    Ask,
    Candidate,
    Plan,
    abstract,
    compiled,
    footprint,
    predictions,
    recomputed,
    temp_bytes,
)

NEAR = 3  # times the budget, up to which a prediction is no refusal
CLOSE = 1.1  # what is predicted to be over the budget by less is compiled, if it is the fastest
MODES = ("reverse", "forward", "any")
CHAOS = ("warn", "window", "refuse")


class Auto(AbstractAdjoint):
    """argmin over adjoints of the predicted time, subject to bytes ≤ `memory`.

    A step and its pullback are compiled for the shapes at hand (nothing is run): they tell the
    bytes and forward runs of `Direct`, `RecursiveCheckpoint` (with as many states as fit),
    `Reversible` and `ForwardMode`. The fastest predicted one within the budget is compiled, its
    temporary memory compared with the prediction, and the next taken where it is over. The table is
    in `stats.plan`, and in a run's report.

    **When:** always, unless you know better. **Costs:** what it chooses, and one to two further
    compilations. **Cannot:** choose `Truncated`, `Backsolve` or `Implicit`, whose gradients are not
    that of the run; inside `vmap` it sees one member, while fits plan for the whole batch.

    **Arguments:** `memory`: the budget, "2GB" or a number of bytes (default: what the device has
    free); `time`: the most that a gradient may cost, in forward runs; `mode`: how the result will
    be differentiated, "reverse" (`jax.grad`) or "forward" (`jax.jvp`, `jax.jacfwd`); fits set it to
    what their method needs; `chaos`: what a fit does where the run is longer than the horizon of
    its gradient (`diffsim.growth` of the first condition): "warn", in the plan; "window", take
    `Truncated` of that length, which is biased; "refuse".
    """

    memory: str | float | None = eqx.field(static=True, default=None)
    time: float | None = eqx.field(static=True, default=None)
    mode: str = eqx.field(static=True, default="reverse")
    chaos: str = eqx.field(static=True, default="warn")

    modes: ClassVar[tuple[str, ...]] = ("forward", "reverse")
    why: ClassVar[str] = "the fastest that fits the memory"
    needs: ClassVar[type[AbstractSimulation]] = AbstractSimulation
    exact: ClassVar[bool] = False  # what it chooses is; it is not another way to check one

    def __check_init__(self):
        if self.memory is not None:
            parsed_bytes(self.memory)
        if self.time is not None and not self.time > 0:
            raise ConfigError("must be positive", key="time", value=self.time)
        if self.mode not in MODES:
            raise ConfigError("unknown mode", key="mode", value=self.mode, allowed=MODES)
        if self.chaos not in CHAOS:
            raise ConfigError("unknown choice", key="chaos", value=self.chaos, allowed=CHAOS)

    def loop(
        self,
        sim: AbstractSimulation,
        params: Params,
        state: State,
        plan: SavePlan,
        observe: Observe,
    ) -> Trajectory:
        count = sum(x.size for x in jax.tree.leaves(inexact(params)))
        ask = Ask(self.mode, pushes=max(1, count))
        choice = self.choose(sim, params, state, plan, observe, ask)
        while over := choice.measure(_gradient_bytes(choice, sim, params, state, plan, observe)):
            choice = over
        trajectory = choice.adjoint.loop(sim, params, state, plan, observe)
        extra = trajectory.extra | {"plan": choice.plan}
        return Trajectory(trajectory.state, trajectory.observables, trajectory.health, extra)

    def choose(
        self,
        sim: AbstractSimulation,
        params: Params,
        state: State,
        plan: SavePlan,
        observe: Observe,
        ask: Ask,
    ) -> Choice:
        """The predicted winner, and who comes next."""
        budget = parsed_bytes(self.memory)
        foot = footprint(sim, params, state, observe, plan.steps)
        found = predictions(sim, foot, plan, ask, budget)
        return Choice.of(found, budget, self.time, _Fewer(plan.steps, ask.batch * foot.state))


class _Fewer(NamedTuple):
    """How a checkpointed run comes with less: its steps, and the bytes of a stored state."""

    steps: int
    state: int

    def than(self, row: Candidate, slots: int, excess: int) -> tuple[RecursiveCheckpoint, Any]:
        """As many stored states fewer as the excess asks for, and its row."""
        fewer = max(1, slots - math.ceil(excess / max(self.state, 1)))
        adjoint = RecursiveCheckpoint(fewer)
        size = (row.measured or 0) - (slots - fewer) * self.state
        more = recomputed(self.steps, fewer) - recomputed(self.steps, slots)
        return adjoint, Candidate(_name(adjoint), size, (row.cost or 0.0) + more, None, "slower")


class Choice:
    """A choice that can be stepped down from: the adjoints left, the rows so far; `caution`: what
    is to be said of any of them."""

    def __init__(
        self,
        ranked: list[Any],
        rows: dict[str, Candidate],
        budget: int,
        fewer: _Fewer,
        caution: str | None = None,
    ):
        self.ranked, self.table, self.budget = ranked, rows, budget
        self.fewer, self.caution = fewer, caution
        self.adjoint: AbstractAdjoint = ranked[0]

    @classmethod
    def of(cls, found: list[Any], budget: int, time: float | None, fewer: _Fewer) -> Choice:
        """From predictions: the fastest within the budget, or close to it, first."""
        rows, ranked = {}, []
        for adjoint, size, cost in sorted(found, key=lambda f: f[2]):
            verdict = "slower"
            if size > CLOSE * budget:
                verdict = "over the budget"
            elif time is not None and cost > time:
                verdict = f"takes more than {time:g} forward runs"
            else:
                ranked.append(adjoint)
            rows[_name(adjoint)] = Candidate(_name(adjoint), int(size), float(cost), None, verdict)
        least = min(found, key=lambda f: f[1])
        if not ranked and time is None and least[1] < NEAR * budget:
            ranked.append(least[0])  # so near that the compiled size must tell
        if not ranked:
            cause = f"no adjoint fits {shown(budget)}"
            cause += "" if time is None else f" and {time:g} forward runs"
            raise ConfigError(
                f"{cause}; the least memory is that of {_name(least[0])}",
                key="adjoint.memory",
                value=shown(budget),
                suggestion=f"{shown(int(1.2 * least[1]))}, or fewer conditions side by side",
            )
        return cls(ranked, rows, budget, fewer)

    def measure(self, size: int | None) -> Choice | None:
        """Note the compiled size; the next choice where it is over the budget."""
        name, left = _name(self.adjoint), self.ranked[1:]
        over = size is not None and size > self.budget
        verdict = "compiled to more than the budget" if over else "chosen"
        row = self.table[name]._replace(measured=size, verdict=verdict)
        table = self.table | {name: row}
        if over and size is not None and isinstance(self.adjoint, RecursiveCheckpoint):
            slots = self.adjoint.checkpoints or 1
            if slots > 1:
                adjoint, further = self.fewer.than(row, slots, size - self.budget)
                left, table = [adjoint, *left], table | {further.name: further}
        if over and not left:
            raise ConfigError(
                f"{name} compiles to {shown(size)}, and nothing smaller is left",
                key="adjoint.memory",
                value=shown(self.budget),
                suggestion=f"{shown(int(1.1 * size))}" if size else None,
            )
        if over:
            return Choice(left, table, self.budget, self.fewer, self.caution)
        self.table = table
        return None

    @property
    def plan(self) -> Plan:
        """What goes into results."""
        name, why = _name(self.adjoint), self.adjoint.why
        why += "" if self.caution is None else f"; but {self.caution}"
        return Plan(tuple(self.table.values()), self.budget, name, why)


def _name(adjoint: AbstractAdjoint) -> str:
    slots = getattr(adjoint, "checkpoints", None) or getattr(adjoint, "chunk", None)
    return f"{type(adjoint).__name__}({slots})" if slots else type(adjoint).__name__


def _gradient_bytes(
    choice: Choice,
    sim: AbstractSimulation,
    params: Params,
    state: State,
    plan: SavePlan,
    observe: Observe,
) -> int | None:
    """The temporary memory of a gradient by the chosen adjoint, compiled for these shapes."""
    adjoint = choice.adjoint

    def total(free, rest, sim):
        params, state = eqx.combine(free, rest)
        run = adjoint.loop(sim, params, state, plan, observe)
        leaves = jax.tree.leaves(inexact((run.observables, run.state)))
        return sum((jnp.sum(x.astype(float)) for x in leaves), jnp.zeros(()))

    def gradient(sim, params, state):
        free, rest = eqx.partition((params, state), eqx.is_inexact_array)
        if "reverse" in adjoint.modes:
            return jax.grad(total)(free, rest, sim)
        return jax.jacfwd(lambda by_params: total((by_params, free[1]), rest, sim))(free[0])

    return temp_bytes(compiled(gradient, sim, *abstract((params, state))))

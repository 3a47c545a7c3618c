"""What each way to a gradient will take: bytes and evaluations, predicted from shapes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters import partial_eval
from jaxtyping import PyTree

from .._schedule import SavePlan
from .._simulation import AbstractReversible, AbstractSimulation, Params, State
from ._base import AbstractAdjoint, Observe, add, inexact, march_blocks, pull_observation, zeros_of
from ._bytes import shown
from ._checkpoint import RecursiveCheckpoint, reach
from ._direct import Direct
from ._forward import ForwardMode
from ._reversible import Reversible

TRACED = SavePlan(stride=7, blocks=5)  # lengths that no axis of a state is likely to have
LOOP_BYTES = 2048  # counters and tables of a loop
CARRIED = 3  # states that the way back holds besides those it stores: at work, final, cotangent
BACKWARD_FORWARDS = 3.0  # forward steps that a step's pullback costs, where XLA does not tell


class Candidate(NamedTuple):
    """One way to the gradient: `predicted` bytes and what it costs in forward runs (None: it cannot
    be told); `measured`: of the compiled program; `verdict`: chosen, or why not."""

    name: str
    predicted: int | None
    cost: float | None
    measured: int | None
    verdict: str


class Plan(NamedTuple):
    """The choice of an adjoint: the `candidates`, the budget [bytes], which was `chosen` and why.

    It is data of the trace, not of the run: it has no arrays, and passes through transformations.
    """

    candidates: tuple[Candidate, ...]
    budget: int
    chosen: str
    why: str

    def rows(self) -> list[dict[str, Any]]:
        """A row a candidate, for `result.json`."""
        return [c._asdict() for c in self.candidates]

    def __str__(self) -> str:
        wide = max(len(c.name) for c in self.candidates)
        lines = [f"{'adjoint':{wide}}  predicted   measured    forward runs"]
        for c in self.candidates:
            cost = "" if c.cost is None else f"{c.cost:.1f}"
            lines.append(
                f"{c.name:{wide}}  {shown(c.predicted):11} {shown(c.measured):11} {cost:12}  "
                f"{c.verdict}"
            )
        return "\n".join([*lines, f"budget {shown(self.budget)}: {self.chosen}, {self.why}"])


jax.tree_util.register_static(Plan)


class Ask(NamedTuple):
    """What a gradient is for. `mode`: "reverse", "forward", or "any" where both will do; `pulls`:
    cotangents that are pulled back (1 for a loss, all residuals for a Jacobian); `pushes`: tangents
    that are pushed forward, one a parameter; `batch`: runs side by side; `chunks`: whether
    tangents may be pushed in several passes."""

    mode: str = "reverse"
    pulls: int = 1
    pushes: int | None = None
    batch: int = 1
    chunks: bool = False


class Footprint(NamedTuple):
    """Of one step and its pullback [bytes]: `state`; `work`, what the pullback needs besides;
    `kept`, what plain autodiff stores of a step; `saved`, of an observation; `pull`: the pullback's
    cost in steps; `exact`, what the exact representation of the run holds besides a state."""

    state: int
    work: int
    kept: int
    saved: int
    pull: float
    exact: int = 0


def _size(tree: PyTree) -> int:
    """The bytes of the arrays in a tree, of keys their data."""
    leaves = [x for x in jax.tree.leaves(tree) if hasattr(x, "shape") and hasattr(x, "dtype")]
    return sum(math.prod(x.shape) * _item(x.dtype) for x in leaves)


def _item(dtype: Any) -> int:
    return 8 if jnp.issubdtype(dtype, jax.dtypes.prng_key) else np.dtype(dtype).itemsize


def abstract(tree: PyTree) -> PyTree:
    """The same tree with shapes in place of arrays, on no devices: what is traced inside of
    shard_map has a mesh, for which nothing can be compiled by itself."""
    known = lambda x: eqx.is_array(x) or isinstance(x, jax.ShapeDtypeStruct)  # noqa: E731
    one = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype) if known(x) else x  # noqa: E731
    return jax.tree.map(one, tree)


def compiled(fn: Callable[..., PyTree], *args: PyTree) -> Any:
    """`fn` compiled for the shapes of its arguments; what is no array is closed over."""
    is_shape = lambda x: isinstance(x, jax.ShapeDtypeStruct)  # noqa: E731
    dynamic, static = eqx.partition(abstract(args), is_shape)

    def flat(dynamic: PyTree) -> PyTree:
        return eqx.filter(fn(*eqx.combine(dynamic, static)), eqx.is_array)

    return jax.jit(flat).lower(dynamic).compile()


def temp_bytes(program: Any) -> int | None:
    """What a compiled program keeps besides arguments and results; None where it is not told."""
    analysis = program.memory_analysis()
    return None if analysis is None else int(analysis.temp_size_in_bytes)


def _weight(program: Any) -> float:
    """Arithmetic and traffic of a program, one number: what its time goes with, roughly."""
    cost = program.cost_analysis() or {}
    cost = cost[0] if isinstance(cost, list) else cost
    return float(cost.get("flops", 0.0)) + float(cost.get("bytes accessed", 0.0))


def footprint(
    sim: AbstractSimulation, params: Params, state: State, observe: Observe, steps: int
) -> Footprint:
    """Compiles a step and its pullback for these shapes, and traces autodiff through a few steps;
    runs nothing."""

    def pulled(sim, params, state, cotangent, seen):
        more_params, more_state = pull_observation(observe, sim, params, state, seen)
        by_params, by_state = sim.pullback(params, state, add(cotangent, more_state))
        return add(by_params, more_params), by_state

    def cotangents(sim, params, state):
        return zeros_of(state), zeros_of(observe(sim, params, state))

    cotangent, seen = eqx.filter_eval_shape(cotangents, sim, params, state)
    pull = compiled(pulled, sim, params, state, cotangent, seen)
    step = compiled(lambda sim, params, state: sim.step(params, state), sim, params, state)
    ratio = _weight(pull) / max(_weight(step), 1.0)
    kept, saved = _stored(sim, params, state, observe)
    pull_cost = ratio if 1.5 < ratio < 20 else BACKWARD_FORWARDS
    stored = _needed(pulled, sim, params, state, cotangent, seen)
    exact = _exact_room(sim, params, state, steps)
    return Footprint(stored, temp_bytes(pull) or 0, kept, saved, pull_cost, exact)


def _exact_room(sim: AbstractSimulation, params: Params, state: State, steps: int) -> int:
    """What the exact representation of `steps` steps holds beyond that of none."""
    if not isinstance(sim, AbstractReversible):
        return 0
    held = lambda n: eqx.filter_eval_shape(lambda p, s: sim.to_exact(p, s, n), params, state)  # noqa: E731
    return _size(held(steps)) - _size(held(0))


def _needed(pulled: Callable[..., PyTree], sim: Any, params: Any, state: Any, *rest: Any) -> int:
    """The bytes of the leaves of a state that its pullback looks at: XLA stores no other."""
    is_shape = lambda x: isinstance(x, jax.ShapeDtypeStruct)  # noqa: E731
    state, others = abstract(state), abstract((sim, params, *rest))
    (dynamic, fixed), (held, static) = (eqx.partition(x, is_shape) for x in (state, others))

    def flat(dynamic, held):
        sim, params, *rest = eqx.combine(held, static)
        return eqx.filter(pulled(sim, params, eqx.combine(dynamic, fixed), *rest), eqx.is_array)

    jaxpr = jax.make_jaxpr(flat)(dynamic, held).jaxpr
    _, used = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    leaves = jax.tree.leaves(dynamic)
    return sum(_size(x) for x, u in zip(leaves, used, strict=False) if u)


def _stored(
    sim: AbstractSimulation, params: Params, state: State, observe: Observe
) -> tuple[int, int]:
    """What autodiff through the scan stores of a step, and of an observation."""
    is_shape = lambda x: isinstance(x, jax.ShapeDtypeStruct)  # noqa: E731
    dynamic, static = eqx.partition(abstract((sim, params, state)), is_shape)

    def residuals(dynamic):
        sim, params, state = eqx.combine(dynamic, static)
        free, rest = eqx.partition((params, state), eqx.is_inexact_array)

        def run(free):
            params, state = eqx.combine(free, rest)
            end, _, seen = march_blocks(
                sim, params, state, TRACED, lambda state: observe(sim, params, state)
            )
            return inexact(end), inexact(seen)

        return jax.tree.leaves(jax.vjp(run, free)[1])

    outs = {id(v): v.aval for v in jax.make_jaxpr(residuals)(dynamic).jaxpr.outvars}
    kept = saved = 0
    for aval in outs.values():
        shape = getattr(aval, "shape", ())
        if shape[:2] == (TRACED.blocks, TRACED.stride):
            kept += math.prod(shape[2:]) * _item(aval.dtype)
        elif shape[:1] == (TRACED.blocks,):
            saved += math.prod(shape[1:]) * _item(aval.dtype)
    return kept, saved


def recomputed(steps: int, slots: int) -> float:
    """Steps that the binomial schedule repeats, per step: r - β(s + 1, r - 1)/T."""
    if slots >= steps:
        return 0.0
    r = 1
    while reach(slots, r) < steps:
        r += 1
    return r - reach(slots + 1, r - 1) / steps


def predictions(
    sim: AbstractSimulation, foot: Footprint, plan: SavePlan, ask: Ask, budget: int
) -> list[tuple[AbstractAdjoint, int, float]]:
    """The adjoints that apply, each with its predicted bytes and its cost in forward runs."""
    many, found = ask.batch, []
    if ask.mode in ("reverse", "any"):
        side = many * ask.pulls
        back = foot.pull + (ask.pulls - 1) * (foot.pull - 1)
        # a block's own stack is copied into that of all blocks
        stacked = plan.steps + (plan.stride if plan.blocks > 1 else 0)
        direct = many * (foot.kept * stacked + foot.saved * plan.blocks) + side * foot.work
        found.append((Direct(), direct, back))
        per_slot = many * foot.state
        fixed = side * (foot.work + CARRIED * foot.state) + LOOP_BYTES
        slots = max(1, min(int((budget - fixed) // max(per_slot, 1)) - 1, plan.steps))
        slots = _cheapest(plan.steps, slots)
        cost = 1 + recomputed(plan.steps, slots) + back
        found.append((RecursiveCheckpoint(slots), fixed + (slots + 1) * per_slot, cost))
        if isinstance(sim, AbstractReversible):
            found.append((Reversible(), fixed + many * foot.exact, 2 + back))
    if ask.mode in ("forward", "any") and ask.pushes is not None:
        one = many * (foot.state + foot.work // 2)
        chunk = ask.pushes
        if ask.chunks:
            fitting = int((budget - LOOP_BYTES) // max(one, 1)) - 1
            chunk = max(1, min(ask.pushes, fitting))
        adjoint = ForwardMode() if chunk == ask.pushes else ForwardMode(chunk)
        cost = ask.pushes + math.ceil(ask.pushes / chunk)
        found.append((adjoint, (chunk + 1) * one + LOOP_BYTES, float(cost)))
    return found


def _cheapest(steps: int, slots: int) -> int:
    """The fewest states, up to `slots`, that cost no more than 5 % over what `slots` cost."""
    bound = 1.05 * (1 + recomputed(steps, slots))
    low, high = 1, slots
    while low < high:
        middle = (low + high) // 2
        if 1 + recomputed(steps, middle) <= bound:
            high = middle
        else:
            low = middle + 1
    return low

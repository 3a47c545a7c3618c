"""One compiled evaluation of a problem: residuals with their Jacobian, or a loss with its gradient,
over fresh trajectories or over samples that are drawn anew when they no longer serve."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PRNGKeyArray, PyTree

from .._adjoint import (
    AbstractAdjoint,
    ForwardMode,
    RecursiveCheckpoint,
    Reversible,
    Reweight,
    Samples,
)
from .._drive import View, drive
from .._errors import ConfigError
from .._problem import Prediction, Problem
from .._schedule import Schedule
from .._solve import check_health, over_batch
from ._derivative import pushed
from ._memory import Facts, Kept, Saved
from ._planned import planned
from ._result import Cost

Watch = Callable[[str, dict[str, Any]], None]
"""Called with an event ("compiling", "compiled", "equilibration", "sampling", "iteration",
"warning") and its facts; may raise to end a fit between two chunks."""

NO_WAY_BACK = (
    "the way back of Reversible does not end on the start, so its gradient is none; "
    "RecursiveCheckpoint takes its place"
)
ESS_LEAST = 0.3  # the smallest effective fraction at which samples still serve


def silent(event: str, facts: dict[str, Any]) -> None:
    """The watch that sees nothing."""
    del event, facts


def mask_of(problem: Problem, use: Sequence[bool] | np.ndarray | None) -> np.ndarray:
    """`use` as weights, one a condition; all ones where it is None."""
    mask = np.ones(problem.batch) if use is None else np.asarray(use, dtype=float)
    if mask.shape != (problem.batch,):
        raise ConfigError(f"must have {problem.batch} entries", key="use", value=mask.shape)
    return mask


class Run(eqx.Module):
    """What an evaluation needs beside the parameters: `start` is a batch of states, or a key from
    which the problem makes them at the parameters of the evaluation."""

    problem: Problem
    adjoint: AbstractAdjoint
    start: PyTree
    use: Array

    def predict(self, theta: dict[str, PyTree]) -> Prediction:
        states = self.start
        if eqx.is_array(states):
            states = self.problem.states(theta, states)
        return self.problem.predict(theta, states, self.adjoint)

    def residuals(self, theta: dict[str, PyTree]) -> tuple[Array, Prediction]:
        prediction = self.predict(theta)
        residuals = self.problem.residuals(theta, prediction, self.use)
        return self.problem.placement.readable(residuals), prediction

    def loss(self, theta: dict[str, PyTree]) -> tuple[Array, Prediction]:
        prediction = self.predict(theta)
        loss = self.problem.loss(theta, prediction, self.use)
        return self.problem.placement.readable(loss), prediction


Evaluation = tuple[Array, Array, Prediction]


class Sampling(NamedTuple):
    """How far the drawing of samples is: what is going on, the steps taken of it, and what was
    seen in each chunk of it."""

    what: str
    steps: int
    kept: tuple[dict[str, PyTree], ...] = ()

    def joined(self) -> Samples:
        join = lambda *parts: jnp.concatenate(parts, axis=1)  # noqa: E731
        return Samples(
            jax.tree.map(join, *(seen["states"] for seen in self.kept)),
            jnp.concatenate([seen["u"] for seen in self.kept], axis=1),
        )


def residuals_and_jacobian(z: Array, unravel: Callable[[Array], Any], run: Run) -> Evaluation:
    """r, ∂r/∂z (residuals, parameters) and the prediction; forward mode where the adjoint has
    it."""
    fn = lambda z: run.residuals(unravel(z))  # noqa: E731
    if isinstance(run.adjoint, (ForwardMode, Reweight)):
        return pushed(fn, z, _chunk(run.adjoint))
    if "forward" in run.adjoint.modes:
        value, push, prediction = jax.linearize(fn, z, has_aux=True)
        return value, jax.vmap(push)(jnp.eye(z.size, dtype=z.dtype)).T, prediction
    value, transpose, prediction = jax.vjp(fn, z, has_aux=True)
    (jacobian,) = jax.vmap(transpose)(jnp.eye(value.size, dtype=value.dtype))
    return value, jacobian, prediction


def _chunk(adjoint: AbstractAdjoint) -> int | None:
    return adjoint.chunk if isinstance(adjoint, ForwardMode) else None


def loss_and_gradient(z: Array, unravel: Callable[[Array], Any], run: Run) -> Evaluation:
    """The loss, its gradient in z and the prediction; forward mode only over samples, of which
    a reverse pass would keep every pair (and so would `linearize`), and where there is no other."""
    fn = lambda z: run.loss(unravel(z))  # noqa: E731
    if isinstance(run.adjoint, (ForwardMode, Reweight)):
        return pushed(fn, z, _chunk(run.adjoint))
    if "reverse" not in run.adjoint.modes:
        value, push, prediction = jax.linearize(fn, z, has_aux=True)
        return value, jax.vmap(push)(jnp.eye(z.size, dtype=z.dtype)), prediction
    (value, prediction), gradient = jax.value_and_grad(fn, has_aux=True)(z)
    return value, gradient, prediction


class Evaluator:
    """Evaluates a problem at θ, holding what evaluations share: states, samples, compiled code.

    `what` is `residuals_and_jacobian` or `loss_and_gradient`. With `Reweight`, `at` draws samples
    when there are none, or when the effective fraction of some condition falls under `ESS_LEAST`.
    """

    def __init__(
        self,
        problem: Problem,
        adjoint: AbstractAdjoint,
        key: PRNGKeyArray,
        what: Callable[..., Evaluation],
        watch: Watch = silent,
        chunk: int | None = None,
    ):
        problem.check()
        adjoint.check(problem.simulation)
        pulls = problem.data_points if what is residuals_and_jacobian else 1
        adjoint, self.choice, self.plan = planned(problem, adjoint, pulls=pulls)
        problem.check_adjoint(adjoint)
        self.problem, self.adjoint, self.what, self.watch = problem, adjoint, what, watch
        self.chunk, self.schedule = chunk, problem.schedule
        theta = problem.initial()
        self.start, self.unravel = ravel_pytree(theta)
        self.caution: str | None = None
        self.sampled = isinstance(adjoint, Reweight)
        whole = self.sampled or not problem.simulation.traceable_init()
        self.states = problem.states(theta, key) if whole else key
        self.samples: Samples | None = None
        self.compiled: dict[Any, tuple[Any, Cost]] = {}
        self.cost = Cost(0.0, 0.0, None)
        self.seconds: list[float] = []
        self.sampling: Sampling | None = None
        self.put_by: Callable[[], None] = lambda: None  # between two chunks of sampling

    def at(self, z: Array, use: Array | np.ndarray) -> tuple[Any, Any, Prediction, dict[str, Any]]:
        """(value, derivative, prediction, facts) at z, from samples that serve at z."""
        fresh = self.sampled and self.samples is None
        if fresh:
            self.sample(z)
        value, derivative, prediction = self._call(z, use)
        if isinstance(self.adjoint, Reversible) and not np.all(np.isfinite(derivative)):
            value, derivative, prediction = self._fall_back(z, use)
        facts: dict[str, Any] = {"ess": None, "resampled": fresh}
        if self.sampled:
            facts["ess"] = float(np.min(np.asarray(prediction.solution.stats["ess"])))
            if not facts["ess"] >= ESS_LEAST and not fresh:
                self.sample(z)
                value, derivative, prediction = self._call(z, use)
                facts = {"ess": float(np.min(prediction.solution.stats["ess"])), "resampled": True}
        check_health(prediction.solution.result, prediction.solution.first_bad_step)
        return value, derivative, prediction, facts

    def _fall_back(self, z: Array, use: Array | np.ndarray) -> Evaluation:
        """The same by checkpoints, which serve from now on where they find a derivative."""
        before = self.adjoint, self.choice, self.compiled
        self.adjoint, self.choice, self.compiled = RecursiveCheckpoint(), None, {}
        out = self._call(z, use)
        if np.all(np.isfinite(out[1])):
            self.caution = NO_WAY_BACK
            self.watch("warning", {"text": NO_WAY_BACK})
        else:
            self.adjoint, self.choice, self.compiled = before
        return out

    @property
    def why(self) -> str:
        """Why the gradient is taken as it is."""
        if self.caution is not None:
            return self.caution
        return self.adjoint.why if self.plan is None else self.plan.why

    def sample(self, z: Array) -> None:
        """Equilibrate at z from where the states are, then draw the schedule's samples; where an
        earlier session was ended in the middle of that, from there."""
        problem, params = self.problem, self.problem.params(self.unravel(z))
        plan = self.schedule.plan(problem.simulation.time_step())
        self.sampling = self.sampling or Sampling("equilibration", 0)
        if self.sampling.what == "equilibration":
            self._advance(params, _whole(problem.equilibration, plan.stride), plan.stride)
            self.sampling = Sampling("sampling", 0)
        self._advance(params, plan.steps, plan.stride)
        self.samples, self.sampling = self.sampling.joined(), None

    def _advance(self, params: PyTree, steps: int, save_every: int) -> None:
        """Move the states on; equilibration sees what sampling sees, so that it compiles
        nothing."""
        now = self.sampling
        assert now is not None
        what = now.what
        self.watch(what, {"steps": now.steps, "of": steps})
        for piece in drive(
            self.problem.simulation,
            params,
            self.states,
            steps=steps,
            save_every=save_every,
            chunk=self.chunk,
            view=View(samples=True),
            done=now.steps,
            placement=self.problem.placement,
        ):
            piece.check()
            self.states = piece.state
            now = Sampling(what, piece.steps, (*now.kept, piece.seen) if what == "sampling" else ())
            self.sampling = now
            self.put_by()
            self.watch(what, {"steps": piece.steps, "of": steps})

    def snapshot(self) -> Callable[[], Kept]:
        """What makes, later, the record of how this stands now: all that an evaluator which goes
        on needs beside its problem."""
        states, samples, sampling = self.states, self.samples, self.sampling
        facts: Facts = {"caution": self.caution, "cost": list(self.cost), "room": self._room()}

        def make() -> Kept:
            trees: dict[str, PyTree] = {"states": eqx.filter(states, eqx.is_array)}
            if samples is not None:
                trees["samples"] = eqx.filter(samples, eqx.is_array)
            if sampling is None:
                return Kept(trees, facts)
            if sampling.kept:
                trees["sampling"] = eqx.filter(sampling.joined(), eqx.is_array)
            return Kept(trees, facts | {"sampling": [sampling.what, sampling.steps]})

        return make

    def restore(self, saved: Saved) -> None:
        """Go on from a snapshot."""
        facts, simulation = saved.facts, self.problem.simulation
        states = self.states
        if not eqx.is_array(states):
            states = simulation.with_room(states, tuple(facts["room"]))
        self.states = saved.tree("states", states)
        if saved.has("samples"):
            self.samples = saved.tree("samples", self._samples_like())
        if "sampling" in facts:
            what, steps = facts["sampling"]
            self.sampling = Sampling(what, steps)
            if saved.has("sampling"):
                part: Samples = saved.tree("sampling", self._samples_like())
                seen = {"states": part.states, "u": part.u}
                self.sampling = Sampling(what, steps, (seen,))
        if facts["caution"] is not None:
            self.caution = facts["caution"]
            self.adjoint, self.choice = RecursiveCheckpoint(), None
        self.cost = Cost(*facts["cost"])

    def _room(self) -> list[int]:
        if eqx.is_array(self.states):
            return []
        return list(self.problem.simulation.room(self.states))

    def _samples_like(self) -> Samples:
        """The structure and the types of samples."""
        params = self.problem.params(self.problem.initial())

        def see(state: PyTree) -> Samples:
            seen = View(samples=True)(self.problem.simulation, params, state)
            return Samples(seen["states"], seen["u"])

        return eqx.filter_eval_shape(lambda states: over_batch(see, states), self.states)

    def shapes(self, z: Array, use: Array | np.ndarray) -> Any:
        """What an evaluation at z returns, with shapes in place of arrays."""
        return eqx.filter_eval_shape(self.what, z, self.unravel, self.run(use, z))

    def run(self, use: Array | np.ndarray, z: Array) -> Run:
        """What an evaluation at z is made of."""
        adjoint = Reweight(self.samples) if self.sampled else self.adjoint
        return Run(self.problem, adjoint, self.states, jnp.asarray(use, z.dtype))

    def _call(self, z: Array, use: Array | np.ndarray) -> Evaluation:
        dynamic, static = eqx.partition((z, self.run(use, z)), eqx.is_array)
        leaves, structure = jax.tree.flatten(dynamic)
        signature = structure, tuple((x.shape, x.dtype) for x in leaves)
        while signature not in self.compiled:
            program = self._compile(dynamic, static)
            if self._steps_down(program[1].temp_bytes):
                dynamic, static = eqx.partition((z, self.run(use, z)), eqx.is_array)
                continue
            self.compiled[signature] = program
        run, self.cost = self.compiled[signature]
        began = time.perf_counter()
        out = eqx.combine(run(dynamic), self.static_out)
        jax.block_until_ready(out[0])
        value, derivative = self.problem.placement.fetch(out[:2])
        out = value, derivative, out[2]
        self.seconds.append(time.perf_counter() - began)
        self.cost = self.cost._replace(evaluation_s=float(np.median(self.seconds)))
        return out

    def _steps_down(self, temp_bytes: int | None) -> bool:
        """Whether the compiled program is over the budget of `Auto`, which then takes the next."""
        if self.choice is None:
            return False
        over = self.choice.measure(temp_bytes)
        self.choice = self.choice if over is None else over
        self.adjoint, self.plan = self.choice.adjoint, self.choice.plan
        return over is not None

    def _compile(self, dynamic: PyTree, static: PyTree) -> tuple[Any, Cost]:
        holder = []

        def flat(dynamic):
            z, run = eqx.combine(dynamic, static)
            value, derivative, prediction = self.what(z, self.unravel, run)
            both = self.problem.placement.readable((value, derivative))
            arrays, rest = eqx.partition((*both, prediction), eqx.is_array)
            holder.append(rest)
            return arrays

        self.watch("compiling", {"what": "the gradient"})
        began = time.perf_counter()
        compiled = jax.jit(flat).lower(dynamic).compile()
        seconds = time.perf_counter() - began
        self.static_out = holder[0]
        memory = compiled.memory_analysis()
        temp = None if memory is None else int(memory.temp_size_in_bytes)
        self.watch("compiled", {"seconds": seconds})
        return compiled, Cost(self.cost.compile_s + seconds, 0.0, temp)

    def influences(self, prediction: Prediction) -> list[np.ndarray]:
        """For each target the deviation of each sample's residual from the mean: (conditions,
        samples, ...); empty where nothing is sampled."""
        if not self.sampled:
            return []
        out = []
        sigmas = self.problem.sigmas(self.problem.initial())  # fixed, where there are residuals
        for target, series, sigma in zip(
            self.problem.targets, self.problem.series(prediction), sigmas, strict=True
        ):
            sigma = np.broadcast_to(np.asarray(sigma), np.shape(series[:, 0]))
            mean = series.mean(axis=1, keepdims=True)
            deviation = series - mean if target.noise == "normal" else series / mean - 1
            out.append(deviation / sigma[:, None] * math.sqrt(target.weight))
        return out

    def at_schedule(self, schedule: Schedule) -> None:
        """Go on with another schedule; samples of the former no longer count."""
        self.schedule, self.samples = schedule, None


def _whole(steps: int, stride: int) -> int:
    """`steps` rounded up to whole strides."""
    return -(-steps // stride) * stride


def shortened(schedule: Schedule, share: float) -> Schedule:
    """As many saves in a share of the steps: what is compiled for one serves the other."""
    plan = schedule.plan(None)
    stride = max(1, round(plan.stride * share))
    return Schedule(steps=stride * plan.blocks, save_every=stride)

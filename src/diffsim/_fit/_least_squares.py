"""Least squares by Levenberg and Marquardt, over trajectories or over samples drawn on the way."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import PRNGKeyArray

from .._adjoint import AbstractAdjoint, Reweight
from .._errors import ConfigError, SimulationError
from .._problem import Problem, fetched
from .._solve import default_adjoint
from ._evaluate import Evaluator, Watch, mask_of, residuals_and_jacobian, shortened, silent
from ._memory import FORGETFUL, Memory, Saved, kept_with, lean
from ._optimistix import check_method, solve_residuals
from ._result import FitResult, scalars
from ._uncertainty import Uncertainty, estimate, sampling_errors

MAX_STEP = 0.3  # of an unconstrained parameter of size one: 35 % of a positive one
MOST_DAMPING = 1e12  # relative; steps are then too short to matter
SAMPLED_TOL = 0.05  # a sampled fit ends when its step is this share of the statistical error


@dataclasses.dataclass
class _Point:
    """An evaluated θ."""

    iteration: int
    z: np.ndarray
    residuals: np.ndarray
    jacobian: np.ndarray
    prediction: Any
    facts: dict[str, Any]

    @property
    def loss(self) -> float:
        return 0.5 * float(self.residuals @ self.residuals)

    def checked(self) -> _Point:
        """Itself, refused where no step can be made from it."""
        for what, array in (
            ("residuals are", self.residuals),
            ("derivative of the residuals is", self.jacobian),
        ):
            if not np.all(np.isfinite(array)):
                raise SimulationError(
                    f"the {what} not finite in iteration {self.iteration}",
                    advice="look for sqrt, log or |.| at zero in the model",
                )
        return self


def least_squares(
    problem: Problem,
    *,
    steps: int = 30,
    adjoint: AbstractAdjoint | None = None,
    key: PRNGKeyArray | None = None,
    use: Sequence[bool] | np.ndarray | None = None,
    explore: float = 0.1,
    damping: float = 1e-4,
    tol: float = 1e-10,
    systematic: Mapping[str, float] | None = None,
    chunk: int | None = None,
    watch: Watch = silent,
    former: FitResult | None = None,
    method: Any = None,
    memory: Memory = FORGETFUL,
) -> FitResult:
    """min_θ ½ ‖r(θ)‖² by (JᵀJ + λ diag JᵀJ) δ = -Jᵀr, J exact (Marquardt 1963,
    doi:10.1137/0111030).

    With `Reweight` the residuals are averages over samples, reused while their effective fraction
    allows and drawn again, from where the states are, when not. A tenth (`explore`) of the schedule
    finds the neighbourhood of the minimum, the whole of it the minimum itself. Other adjoints run
    every trajectory anew; J is taken forward or in reverse as the adjoint allows. A step to where a
    trajectory fails is damped like one that raises the residuals.

    **Arguments:** `steps`: iterations at most; `use`: which conditions count (the others are
    predicted all the same); `damping`: λ at the start, relative; `tol`: a deterministic fit ends
    when no unconstrained parameter moves by more, or by more than rounding, nor its value where
    that has reached a bound; `systematic`: errors known from other runs, in
    the parameters' units; `chunk`: simulation steps between two calls of `watch`; `former`: go on
    from a former fit of the same problem, with its samples and compiled code; `method`: instead of
    this loop a solver of optimistix (`LevenbergMarquardt`, `GaussNewton`, `Dogleg`), for problems
    without samples; its tolerances then end the fit; `memory`: where it puts by how far it is.

    **Raises** `ConfigError` before tracing, `SimulationError` when a trajectory fails at the start
    or for every step from a θ, or where the derivative is not finite.
    """
    adjoint = default_adjoint(problem.simulation, ("forward",)) if adjoint is None else adjoint
    check_squares(problem)
    if method is not None:
        check_method(method, isinstance(adjoint, Reweight))
    if steps < 1:
        raise ConfigError("must be at least 1", key="steps", value=steps)
    if not 0 < explore <= 1:
        raise ConfigError("must be in (0, 1]", key="explore", value=explore)
    key = jax.random.key(0) if key is None else key
    mask = mask_of(problem, use)
    if former is not None:
        evaluator, z = former.evaluator, ravel_pytree(former.theta)[0]
    else:
        evaluator = Evaluator(problem, adjoint, key, residuals_and_jacobian, watch, chunk)
        z = evaluator.start
    fit = _Fit(evaluator, mask, damping, tol, watch, systematic, memory)
    fit.history.extend([] if former is None else former.history)
    z = np.asarray(z)
    if evaluator.sampled and former is None:
        if explore < 1 and not memory.reached("whole"):
            evaluator.at_schedule(shortened(problem.schedule, explore))
            z = fit.descend("explore", z, steps, share_of_error=1.0).z
        evaluator.at_schedule(problem.schedule)
    if method is not None:
        return fit.result(fit.by(method, z, steps))
    point = fit.descend("whole", z, steps, share_of_error=SAMPLED_TOL)
    return fit.result(point)


def check_squares(problem: Problem) -> None:
    """Refuse a sigma that is fitted, which has a term log sigma, and a relative entropy: they are
    no squares."""
    for entropy in problem.entropies:
        raise ConfigError(
            f"least squares cannot fit {entropy.label}, which is no sum of squares",
            key="targets",
            allowed="fit=optax: diffsim.fit",
        )
    for name in problem.free_noises:
        raise ConfigError(
            f"least squares cannot fit a target's sigma, which {name} is",
            key=f"parameters.{name}",
            allowed="fixed: true, or diffsim.fit or diffsim.posterior",
        )


class _Fit:
    """The descent: a damped step, an evaluation, accept or damp more; a record each."""

    def __init__(
        self,
        evaluator: Evaluator,
        mask: np.ndarray,
        damping: float,
        tol: float,
        watch: Watch,
        systematic: Mapping[str, float] | None,
        memory: Memory,
    ):
        self.evaluator, self.mask, self.tol, self.watch = evaluator, mask, tol, watch
        self.memory = memory
        self.problem, self.systematic = evaluator.problem, systematic
        self.damping = damping
        self.history: list[dict[str, Any]] = []
        self.converged = False

    def evaluate(self, z: np.ndarray) -> _Point:
        began = time.perf_counter()
        r, jacobian, prediction, facts = self.evaluator.at(jnp.asarray(z), self.mask)
        point = _Point(len(self.history), z, np.asarray(r), np.asarray(jacobian), prediction, facts)
        values = self.problem.values(self.evaluator.unravel(jnp.asarray(z)))
        record = {
            "iteration": len(self.history),
            "loss": point.loss,
            "parameters": scalars(values),
            "gradient_norm": float(np.linalg.norm(point.jacobian.T @ point.residuals)),
            **facts,
            "seconds": time.perf_counter() - began,
        }
        self.history.append(record)
        self.watch("iteration", record)
        return point

    def descend(self, stage: str, z: np.ndarray, steps: int, share_of_error: float) -> _Point:
        """Iterate to convergence: a step below `tol`, or below its share of the sampling error."""
        point, failure, done = self._begin(stage, z)
        for n in range(done, steps - 1):
            self._put_by(stage, z, point, failure, n)
            step = self._step(point)
            settled = self._settled(point, step, share_of_error)
            if failure is not None and (settled or self.damping > MOST_DAMPING):
                raise failure
            self.converged = settled
            if settled or self.damping > MOST_DAMPING:
                break
            trial, failure = self._try(point.z + step)
            if trial is not None and self._improves(trial, point):
                point, self.damping = trial.checked(), max(self.damping / 5, 1e-12)
            else:
                self.damping = max(self.damping, 1e-6) * 20
        self._put_by(stage, z, point, None, steps)
        return point

    def _begin(self, stage: str, z: np.ndarray) -> tuple[_Point, SimulationError | None, int]:
        """The first point of a stage, or the last of an earlier session with the failure after it
        and the number of steps taken."""
        saved, self.converged = self.memory.recall(stage), False
        if saved is not None:
            facts = saved.own
            self.evaluator.restore(saved)
            self.damping, self.history[:] = facts["damping"], facts["history"]
            if "point" in facts:
                failure = facts["failure"] and SimulationError(**facts["failure"])
                self.converged = facts["converged"]
                return self._recalled(saved), failure, facts["steps"]
            z = saved.tree("z", z)
        self._put_by(stage, z, None, None, 0)
        return self.evaluate(z).checked(), None, 0

    def _put_by(
        self, stage: str, z: np.ndarray, point: _Point | None, failure: Any, steps: int
    ) -> None:
        """Offer what the stage can be gone on with from: now, and in the middle of sampling.
        After `steps` of them all it has ended."""
        why = failure and {"cause": failure.cause, "step": failure.step, "advice": failure.advice}
        own = {"damping": self.damping, "history": list(self.history)}
        own |= {"steps": steps, "failure": why, "converged": self.converged}
        arrays: dict[str, Any] = {"z": z}
        if point is not None:
            arrays = {"point": (point.z, point.residuals, point.jacobian, lean(point.prediction))}
            own["point"] = {"iteration": point.iteration, "facts": point.facts}

        def put_by() -> None:
            self.memory.offer(stage, kept_with(self.evaluator.snapshot(), arrays, own))

        self.evaluator.put_by = put_by
        put_by()

    def _recalled(self, saved: Saved) -> _Point:
        z = np.asarray(self.evaluator.start)
        shapes = self.evaluator.shapes(self.evaluator.start, self.mask)
        like = (z, np.zeros(0, z.dtype), np.zeros(0, z.dtype), lean(shapes[2]))
        known = saved.own["point"]
        found = saved.tree("point", like)
        return _Point(known["iteration"], found[0], found[1], found[2], found[3], known["facts"])

    def _try(self, z: np.ndarray) -> tuple[_Point | None, SimulationError | None]:
        """The evaluated z, or why its trajectory failed; samples that fail end the fit."""
        try:
            return self.evaluate(z), None
        except SimulationError as failure:
            if self.evaluator.sampled:
                raise
            return None, failure

    def _improves(self, trial: _Point, point: _Point) -> bool:
        # a sampled loss is known only to about the number of residuals
        slack = 0.5 * trial.residuals.size if self.evaluator.sampled else 0.0
        return bool(np.isfinite(trial.loss)) and trial.loss <= point.loss + slack

    def _settled(self, point: _Point, step: np.ndarray, share: float) -> bool:
        """Whether no parameter moves by more than its resolution, nor, at a bound, at all."""
        small = np.abs(step) <= self._resolution(point, share)
        if np.all(small):
            return True
        unravel = self.evaluator.unravel
        large = unravel(jnp.asarray(~small, step.dtype))
        now, then = (
            self.problem.values(unravel(jnp.asarray(z))) for z in (point.z, point.z + step)
        )
        moving = [name for name in large if any(map(np.any, jax.tree.leaves(large[name])))]
        return all(eqx.tree_equal(now[name], then[name]) for name in moving)

    def by(self, method: Any, z: np.ndarray, steps: int) -> _Point:
        """From z to where a solver of optimistix ends."""
        self.evaluate(z)
        found, self.converged = solve_residuals(self.evaluator, self.mask, z, method, steps)
        return self.evaluate(found).checked()

    def _step(self, point: _Point) -> np.ndarray:
        jacobian, residuals = (np.asarray(x, float) for x in (point.jacobian, point.residuals))
        normal = jacobian.T @ jacobian
        scale = np.diag(np.maximum(np.diag(normal), 1e-300))
        slope = jacobian.T @ residuals
        step = -np.linalg.lstsq(normal + self.damping * scale, slope, rcond=None)[0]
        limit = MAX_STEP * np.maximum(np.abs(point.z), 1)
        if not self.evaluator.sampled:
            limit = 10 * limit
        step = step / max(1.0, float(np.max(np.abs(step) / limit)))
        return step.astype(point.z.dtype)

    def _resolution(self, point: _Point, share: float) -> np.ndarray:
        if not self.evaluator.sampled:
            rounding = 10 * np.finfo(point.z.dtype).eps * np.maximum(1.0, np.abs(point.z))
            return np.maximum(self.tol, rounding)
        return share * sampling_errors(point.jacobian, self.evaluator.influences(point.prediction))

    def _uncertainty(self, point: _Point) -> Uncertainty:
        theta = self.evaluator.unravel(jnp.asarray(point.z))
        influences = self.evaluator.influences(point.prediction)
        return estimate(
            self.problem,
            theta,
            point.residuals,
            point.jacobian,
            influences,
            self.mask,
            self.systematic,
        )

    def result(self, point: _Point) -> FitResult:
        theta = self.evaluator.unravel(jnp.asarray(point.z))
        return FitResult(
            theta=theta,
            values=self.problem.values(theta),
            loss=point.loss,
            uncertainty=self._uncertainty(point),
            prediction=fetched(point.prediction, self.problem.placement),
            residuals=point.residuals,
            history=self.history,
            converged=self.converged,
            cost=self.evaluator.cost,
            evaluator=self.evaluator,
        )

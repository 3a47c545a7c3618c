"""Fits by first-order and quasi-Newton optimisers of optax."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PRNGKeyArray

from .._adjoint import AbstractAdjoint
from .._errors import ConfigError, SimulationError
from .._problem import Problem
from .._solve import default_adjoint
from ._derivative import explicit
from ._evaluate import Evaluator, Run, Watch, loss_and_gradient, mask_of, silent
from ._laplace import laplace
from ._result import FitResult, scalars

TOL = 1e-6  # of the gradient in parameters of size one, relative to the loss, both per datum
IDLE = 10  # iterations without a better loss after which a line search has no further to go
GAIN = 1e-12  # of the loss, relative, that counts as better
FLAT = 1e-2  # the slope, as for `TOL`, under which that counts as converged
HALVINGS = 30  # at most, on the way back from where a trajectory fails


@eqx.filter_jit
def _update(
    transform: Any, unravel: Any, run: Run, z: Array, state: Any, loss: Array, gradient: Array
) -> tuple[Array, Any]:
    """One step of the optimiser; a line search evaluates the loss inside."""
    count = run.problem.data_points

    def value(z: Array) -> Array:
        loss, prediction = run.loss(unravel(z))
        failed = jnp.any(prediction.solution.first_bad_step >= 0)
        return jnp.where(failed, jnp.inf, loss / count)  # a line search steps back from there

    # a line search calls jax.grad
    share = value if "reverse" in run.adjoint.modes else explicit(value, forward=True)
    gradient = gradient / count
    updates, state = transform.update(
        gradient, state, z, value=loss / count, grad=gradient, value_fn=share
    )
    return _strong((z + updates, state))


def _strong(tree: Any) -> Any:
    """Without weak types, which would compile the same step anew as they come and go."""
    return jax.tree.map(
        lambda x: jax.lax.convert_element_type(x, x.dtype) if eqx.is_array(x) else x, tree
    )


def fit(
    problem: Problem,
    optimiser: optax.GradientTransformation | None = None,
    *,
    steps: int = 200,
    adjoint: AbstractAdjoint | None = None,
    key: PRNGKeyArray | None = None,
    use: Sequence[bool] | np.ndarray | None = None,
    tol: float | None = None,
    uncertainty: Literal["laplace"] | None = None,
    chunk: int | None = None,
    watch: Watch = silent,
) -> FitResult:
    """θ ← θ + optimiser(∇L(θ)/n), L the negative log posterior of n data, for `steps` iterations.

    **Arguments:** `optimiser`: any optax transformation (default `optax.lbfgs()`, whose line search
    evaluates the loss further times); `adjoint`: how ∇L is taken; with `Reweight` samples are drawn
    anew when their effective fraction falls under 0.3; `tol`: end when ‖∇L/n‖ is below; by default
    when ‖max(1, |θ|) ∇L‖ is below 10⁻⁶ max(n, |L|), or when a line search finds nothing better in
    ten iterations; `uncertainty`: "laplace" for error bars from the inverse Hessian of L at the
    end, which cost it; `use`, `chunk`, `watch`: as in `least_squares`.

    The best iterate seen is returned. An optimiser with a line search starts anew half-way back to
    it from where a trajectory fails.

    **Raises** `ConfigError` before tracing, `SimulationError` when a trajectory fails, at the start
    or with an optimiser without a line search.
    """
    adjoint = default_adjoint(problem.simulation) if adjoint is None else adjoint
    if uncertainty not in (None, "laplace"):
        raise ConfigError(
            "no such choice", key="uncertainty", value=uncertainty, allowed="laplace, or none"
        )
    optimiser = optax.lbfgs() if optimiser is None else optimiser
    if steps < 1:
        raise ConfigError("must be at least 1", key="steps", value=steps)
    key = jax.random.key(0) if key is None else key
    mask = mask_of(problem, use)
    evaluator = Evaluator(problem, adjoint, key, loss_and_gradient, watch, chunk)
    descent = _Descent(evaluator, mask, optax.with_extra_args_support(optimiser), tol)
    best = descent.run(steps)
    theta = evaluator.unravel(best.z)
    run = evaluator.run(mask, best.z)
    return FitResult(
        theta=theta,
        values=problem.values(theta),
        loss=best.loss,
        uncertainty=laplace(theta, run) if uncertainty else None,
        prediction=best.prediction,
        residuals=np.asarray(problem.residuals(theta, best.prediction, jnp.asarray(mask))),
        history=descent.history,
        converged=descent.converged,
        cost=evaluator.cost,
        evaluator=evaluator,
    )


@dataclasses.dataclass
class _Iterate:
    """An evaluated z."""

    z: Array
    loss: float
    gradient: Array
    prediction: Any


class _Descent:
    """The iteration: an evaluation, a step of the optimiser; a record each."""

    def __init__(
        self,
        evaluator: Evaluator,
        mask: np.ndarray,
        transform: optax.GradientTransformationExtraArgs,
        tol: float | None,
    ):
        self.evaluator, self.mask, self.transform, self.tol = evaluator, mask, transform, tol
        self.problem = evaluator.problem
        self.history: list[dict[str, Any]] = []
        self.best: _Iterate | None = None
        self.idle, self.converged = 0, False
        self.searches = _searches(transform.init(evaluator.start)) and not evaluator.sampled

    def run(self, steps: int) -> _Iterate:
        """The best of `steps` iterates, or of those to convergence."""
        z = _strong(self.evaluator.start)
        state = _strong(self.transform.init(z))
        back = 0
        for _ in range(steps):
            try:
                point = self._evaluate(z)
            except SimulationError:
                back += 1
                if self.best is None or back > HALVINGS or not self.searches:
                    raise
                if not bool(jnp.all(jnp.isfinite(z))):
                    raise
                z = (z + self.best.z) / 2
                state = _strong(self.transform.init(z))
                continue
            back = 0
            if self._ends(point):
                break
            run = self.evaluator.run(self.mask, z)
            slope = _strong((jnp.asarray(point.loss, z.dtype), point.gradient))
            z, state = _update(self.transform, self.evaluator.unravel, run, z, state, *slope)
        assert self.best is not None
        return self.best

    def _evaluate(self, z: Array) -> _Iterate:
        began = time.perf_counter()
        loss, gradient, prediction, facts = self.evaluator.at(z, self.mask)
        point = _Iterate(z, float(loss), gradient, prediction)
        self._keep(point)
        record = {
            "iteration": len(self.history),
            "loss": point.loss,
            "parameters": scalars(self.problem.values(self.evaluator.unravel(z))),
            "gradient_norm": float(jnp.linalg.norm(gradient)) / self.problem.data_points,
            **facts,
            "seconds": time.perf_counter() - began,
        }
        self.history.append(record)
        self.evaluator.watch("iteration", record)
        return point

    def _keep(self, point: _Iterate) -> None:
        """The best so far, and for how long it has been about that."""
        gain = max(GAIN, float(jnp.finfo(point.z.dtype).eps))
        former = np.inf if self.best is None else self.best.loss
        self.idle = 0 if point.loss < former - gain * min(abs(former), 1e300) else self.idle + 1
        if self.best is None or point.loss < former:
            self.best = point

    def _ends(self, point: _Iterate) -> bool:
        """Whether the slope vanishes, or nothing more is gained."""
        count = self.problem.data_points
        if self.tol is not None:
            self.converged = float(jnp.linalg.norm(point.gradient)) / count <= self.tol
            return self.converged
        slope = float(jnp.linalg.norm(point.gradient * jnp.maximum(1.0, jnp.abs(point.z))))
        slope /= max(count, abs(point.loss))
        self.converged = slope <= TOL
        if self.searches and self.idle >= IDLE:
            self.converged = slope <= FLAT
            return True
        return self.converged


def _searches(state: Any) -> bool:
    """Whether an optimiser evaluates the loss on its own, and steps back where it is infinite."""
    kinds = (optax.ScaleByZoomLinesearchState, optax.ScaleByBacktrackingLinesearchState)
    is_one = lambda x: isinstance(x, kinds)  # noqa: E731
    return any(is_one(x) for x in jax.tree.leaves(state, is_leaf=is_one))

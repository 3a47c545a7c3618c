"""Fits by first-order and quasi-Newton optimisers of optax."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PRNGKeyArray

from .._adjoint import AbstractAdjoint
from .._errors import ConfigError
from .._problem import Prediction, Problem, fetched
from .._solve import default_adjoint
from ._batches import BatchDescent
from ._descent import Descent
from ._evaluate import Evaluator, Run, Watch, loss_and_gradient, mask_of, shortened, silent
from ._laplace import laplace
from ._memory import FORGETFUL, Memory
from ._result import FitResult
from ._uncertainty import Uncertainty


def fit(
    problem: Problem,
    optimiser: optax.GradientTransformation | None = None,
    *,
    steps: int = 200,
    adjoint: AbstractAdjoint | None = None,
    key: PRNGKeyArray | None = None,
    use: Sequence[bool] | np.ndarray | None = None,
    tol: float | None = None,
    batch: int | None = None,
    explore: float = 1.0,
    uncertainty: Literal["laplace"] | None = None,
    chunk: int | None = None,
    watch: Watch = silent,
    memory: Memory = FORGETFUL,
) -> FitResult:
    """θ ← θ + optimiser(∇L(θ)/n), L the negative log posterior of n data, for `steps` iterations.

    **Arguments:** `optimiser`: any optax transformation (default `optax.lbfgs()`, whose line search
    evaluates the loss further times); `adjoint`: how ∇L is taken; with `Reweight` samples are drawn
    anew when their effective fraction falls under 0.3, and a line search stays where it is over
    0.1; `tol`: end when ‖∇L/n‖ is below; by default when ‖max(1, |θ|) ∇L‖ is below
    10⁻⁶ max(n, |L|), or when a line search finds nothing better in ten iterations; `batch`: how
    many conditions, drawn anew in each iteration, stand for all of them; `explore`: over samples,
    the share of the schedule that finds the neighbourhood of the minimum, before the whole of it
    finds the minimum; `uncertainty`: "laplace" for error bars from the inverse Hessian of L at the
    end, which cost it, and from the scatter of samples; `use`, `chunk`, `watch`, `memory`: as in
    `least_squares`.

    The best iterate seen is returned; where a trajectory fails, an optimiser with a line search
    starts anew half-way back to it. With `batch` the last iterate is returned, which goes half-way
    back where a trajectory fails, and has converged when the mean loss of the last fifth of the
    iterations is not below that of the fifth before by more than two standard errors.

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
    if not 0 < explore <= 1:
        raise ConfigError("must be in (0, 1]", key="explore", value=explore)
    key = jax.random.key(0) if key is None else key
    mask = mask_of(problem, use)
    evaluator = Evaluator(problem, adjoint, key, loss_and_gradient, watch, chunk)
    transform = optax.with_extra_args_support(optimiser)
    if batch is None:
        settings = evaluator, mask, transform, tol, memory
        descent = Descent(*settings)
        if evaluator.sampled and explore < 1 and not memory.reached("descent"):
            evaluator.at_schedule(shortened(problem.schedule, explore))
            first = Descent(*settings, "explore")
            evaluator.start = first.run(steps).z
            evaluator.at_schedule(problem.schedule)
            descent.history.extend(first.history)
    else:
        descent = BatchDescent(evaluator, mask, transform, batch, key, memory)
    best = descent.run(steps)
    theta = evaluator.unravel(best.z)
    run = evaluator.run(mask, best.z)
    prediction = fetched(best.prediction, problem.placement)
    return FitResult(
        theta=theta,
        values=problem.values(theta),
        loss=best.loss,
        uncertainty=_errors(evaluator, theta, run, prediction) if uncertainty else None,
        prediction=prediction,
        residuals=np.asarray(problem.residuals(theta, prediction, jnp.asarray(mask))),
        history=descent.history,
        converged=descent.converged,
        cost=evaluator.cost,
        evaluator=evaluator,
    )


def _errors(evaluator: Evaluator, theta: Any, run: Run, prediction: Prediction) -> Uncertainty:
    return laplace(theta, run, prediction, evaluator.influences(prediction))

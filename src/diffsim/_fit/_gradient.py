"""Fits by first-order and quasi-Newton optimisers of optax."""

from __future__ import annotations

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
from .._errors import ConfigError
from .._problem import Problem
from .._solve import default_adjoint
from ._derivative import explicit
from ._evaluate import Evaluator, Run, Watch, loss_and_gradient, silent
from ._laplace import laplace
from ._result import FitResult, scalars


@eqx.filter_jit
def _update(
    transform: Any, unravel: Any, run: Run, z: Array, state: Any, loss: Array, gradient: Array
) -> tuple[Array, Any]:
    """One step of the optimiser; a line search evaluates the loss inside."""
    count = run.problem.data_points
    share = lambda z: run.loss(unravel(z))[0] / count  # noqa: E731
    if "reverse" not in run.adjoint.modes:
        share = explicit(share, forward=True)  # a line search calls jax.grad
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
    tol: float = 0.0,
    uncertainty: Literal["laplace"] | None = None,
    chunk: int | None = None,
    watch: Watch = silent,
) -> FitResult:
    """θ ← θ + optimiser(∇L(θ)/n), L the negative log posterior of n data, for `steps` iterations.

    **Arguments:** `optimiser`: any optax transformation (default `optax.lbfgs()`, whose line search
    evaluates the loss further times); `adjoint`: how ∇L is taken; with `Reweight` samples are drawn
    anew when their effective fraction falls under 0.3; `tol`: end when ‖∇L/n‖ is below;
    `uncertainty`: "laplace" for error bars from the inverse Hessian of L at the end, which cost it;
    `use`, `chunk`, `watch`: as in `least_squares`.

    The best iterate seen is returned.

    **Raises** `ConfigError` before tracing, `SimulationError` when a trajectory fails.
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
    mask = np.ones(problem.batch) if use is None else np.asarray(use, dtype=float)
    evaluator = Evaluator(problem, adjoint, key, loss_and_gradient, watch, chunk)
    transform = optax.with_extra_args_support(optimiser)
    z = _strong(evaluator.start)
    state = _strong(transform.init(z))
    history: list[dict[str, Any]] = []
    best: tuple[float, Any, Any] | None = None
    converged = False

    for iteration in range(steps):
        began = time.perf_counter()
        loss, gradient, prediction, facts = evaluator.at(z, mask)
        if best is None or float(loss) < best[0]:
            best = (float(loss), z, prediction)
        norm = float(jnp.linalg.norm(gradient)) / problem.data_points
        values = problem.values(evaluator.unravel(z))
        record = {
            "iteration": iteration,
            "loss": float(loss),
            "parameters": scalars(values),
            "gradient_norm": norm,
            **facts,
            "seconds": time.perf_counter() - began,
        }
        history.append(record)
        watch("iteration", record)
        if norm <= tol:
            converged = True
            break
        run = evaluator.run(mask, z)
        z, state = _update(transform, evaluator.unravel, run, z, state, *_strong((loss, gradient)))
    assert best is not None
    theta = evaluator.unravel(best[1])
    run = evaluator.run(mask, best[1])
    return FitResult(
        theta=theta,
        values=problem.values(theta),
        loss=best[0],
        uncertainty=laplace(theta, run) if uncertainty else None,
        prediction=best[2],
        residuals=np.asarray(problem.residuals(theta, best[2], jnp.asarray(mask))),
        history=history,
        converged=converged,
        cost=evaluator.cost,
        evaluator=evaluator,
    )

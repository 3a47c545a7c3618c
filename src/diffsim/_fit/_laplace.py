"""Error bars from the curvature of the posterior at its mode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from .._adjoint import Reweight
from .._problem import Prediction
from ._derivative import hessian
from ._evaluate import Run, residuals_and_jacobian
from ._uncertainty import Uncertainty, distinct_entries, errors_of, scatter_of, shifts_of, slopes_of


def laplace(
    theta: Mapping[str, jax.Array],
    run: Run,
    prediction: Prediction | None = None,
    influences: Sequence[np.ndarray] = (),
) -> Uncertainty:
    """Cov z = H⁻¹, H = ∂²L/∂z² of the loss at its minimum, carried to the parameters' own units
    to first order; the targets' sigmas set its scale. Not a number where H is not positive.

    Over samples, those of `prediction`, their scatter adds Cov(H⁻¹ ∇L), the statistical part;
    `influences`: what each adds to the residuals.
    """
    flat, unravel = ravel_pytree(dict(theta))
    loss = lambda z: run.loss(unravel(z))[0]  # noqa: E731
    second = lambda z: hessian(loss, z, run.adjoint, run.problem.simulation)  # noqa: E731
    curvature = np.asarray(run.problem.placement.fetch(jax.jit(second)(flat)))
    once = distinct_entries(theta, curvature)
    of_once = once.T @ curvature @ once
    if np.all(np.isfinite(of_once)) and np.all(np.linalg.eigvalsh(of_once) > 0):
        covariance = once @ np.linalg.inv(of_once) @ once.T
    else:
        covariance = np.full_like(curvature, np.nan)
    scatter = np.zeros_like(covariance)
    if isinstance(run.adjoint, Reweight) and prediction is not None:
        shifts = _shifts(flat, unravel, run, prediction, influences, covariance)
        scatter = scatter_of(shifts, flat.size)
    slopes = slopes_of(run.problem, theta)
    return Uncertainty(
        statistical=errors_of(run.problem, scatter, slopes),
        model=errors_of(run.problem, covariance, slopes),
        systematic={},
        covariance=covariance + scatter,
    )


def _shifts(
    z: Array,
    unravel: Any,
    run: Run,
    prediction: Prediction,
    influences: Sequence[np.ndarray],
    covariance: np.ndarray,
) -> list[np.ndarray]:
    """By how much each sample moves the minimum: (conditions, samples, parameters) each."""
    problem, shifts = run.problem, []
    if any(target.weight for target in problem.targets):
        jacobian = jax.jit(lambda z: residuals_and_jacobian(z, unravel, run)[1])(z)
        shifts += shifts_of(covariance @ np.asarray(jacobian).T, influences)
    weight = sum(entropy.weight for entropy in problem.entropies)
    if weight:
        slopes = np.asarray(
            problem.placement.fetch(jax.jit(jax.jacfwd(_energies(unravel, run)))(z))
        )
        w = np.asarray(prediction.solution.stats["weights"])[..., None]
        mean = np.mean(w * slopes, axis=1, keepdims=True)
        used = weight * np.asarray(run.use)[:, None, None]
        shifts.append(used * w * (slopes - mean) @ covariance)
    return shifts


def _energies(unravel: Any, run: Run) -> Any:
    """u_θ of every sample, (conditions, samples), as a function of z."""
    assert isinstance(run.adjoint, Reweight) and run.adjoint.samples is not None
    states = run.adjoint.samples.states

    def one(shared: Any, states: Any) -> Array:
        simulation, params = shared
        return jax.lax.map(lambda state: simulation.reduced_energy(params, state), states)

    def energies(z: Array) -> Array:
        shared = run.problem.simulation, run.problem.params(unravel(z))
        return jnp.asarray(run.problem.placement.map(one, shared, states))

    return energies

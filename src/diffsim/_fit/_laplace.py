"""Error bars from the curvature of the posterior at its mode."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import numpy as np
from jax.flatten_util import ravel_pytree

from ._derivative import hessian
from ._evaluate import Run
from ._uncertainty import Uncertainty, errors_of, slopes_of


def laplace(theta: Mapping[str, jax.Array], run: Run) -> Uncertainty:
    """Cov z = H⁻¹, H = ∂²L/∂z² of the loss at its minimum, carried to the parameters' own units
    to first order; the targets' sigmas set its scale. Not a number where H is not positive."""
    flat, unravel = ravel_pytree(dict(theta))
    loss = lambda z: run.loss(unravel(z))[0]  # noqa: E731
    second = lambda z: hessian(loss, z, run.adjoint, run.problem.simulation)  # noqa: E731
    curvature = np.asarray(run.problem.placement.fetch(jax.jit(second)(flat)))
    finite = bool(np.all(np.isfinite(curvature)))
    if finite and np.all(np.linalg.eigvalsh(curvature) > 0):
        covariance = np.linalg.inv(curvature)
    else:
        covariance = np.full_like(curvature, np.nan)
    errors = errors_of(run.problem, covariance, slopes_of(run.problem, theta))
    return Uncertainty(
        statistical=dict.fromkeys(errors, 0.0), model=errors, systematic={}, covariance=covariance
    )

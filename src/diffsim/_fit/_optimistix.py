"""Least squares by a solver of optimistix, in one compiled program."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix

from .._errors import ConfigError
from ._derivative import explicit
from ._evaluate import Evaluator


def check_method(method: Any, sampled: bool) -> None:
    """Refuse what is no solver of least squares, and samples, which a solver cannot renew."""
    kinds = (optimistix.AbstractLeastSquaresSolver, optimistix.AbstractMinimiser)
    if not isinstance(method, kinds):
        raise ConfigError(
            "is no solver of least squares",
            key="method",
            value=method,
            allowed="optimistix.LevenbergMarquardt, GaussNewton, Dogleg, or none",
        )
    if sampled:
        raise ConfigError(
            "samples are renewed on the way, which is left to diffsim's own loop",
            key="method",
            value=type(method).__name__,
            allowed="none, or an adjoint without samples",
        )


def solve_residuals(
    evaluator: Evaluator, mask: np.ndarray, z: np.ndarray, method: Any, steps: int
) -> tuple[np.ndarray, bool]:
    """z where `method` ends after at most `steps` steps, and whether it says that it converged.

    Solvers ask for products with the Jacobian and its transpose; they get the matrix, taken forward
    or in reverse as the adjoint allows, so that every solver goes with every adjoint.
    """
    start = jnp.asarray(z)
    dynamic, static = eqx.partition(evaluator.run(mask, start), eqx.is_array)
    forward = "forward" in evaluator.adjoint.modes

    @jax.jit
    def solve(z, dynamic):
        run = eqx.combine(dynamic, static)
        fn = explicit(lambda z: run.residuals(evaluator.unravel(z))[0], forward=forward)
        found = optimistix.least_squares(
            lambda z, _: fn(z), method, z, max_steps=steps, throw=False
        )
        return found.value, found.result == optimistix.RESULTS.successful

    value, converged = evaluator.problem.placement.fetch(solve(start, dynamic))
    return np.asarray(value), bool(converged)

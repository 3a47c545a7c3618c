"""What a fit says of measured values that it was not fitted to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.flatten_util import ravel_pytree

from .._errors import ConfigError
from .._fit import FitResult
from .._statistics import blocking
from ._session import Session
from ._studies import AbstractStudy

if TYPE_CHECKING:
    from ._experiment import Experiment


class UnfittedStudy(AbstractStudy):
    """A(θ) ± σ_A, σ_A² = (∂A/∂θ)ᵀ Cov(θ) ∂A/∂θ + σ_sampling²: the targets of weight 0, beside their
    data, with what the error of the parameters does to them.

    `measured.unfitted` gets by each target's label `value`, `stderr` (null where the parameters'
    errors are not known), `data` and `deviation`; of several conditions lists of them. Targets
    have one number a condition.
    """

    def run(
        self, experiment: Experiment, session: Session, pieces: dict[str, Any]
    ) -> dict[str, Any]:
        del session
        fit: FitResult = pieces["fit"]
        problem, evaluator = experiment.problem, fit.evaluator
        which = [i for i, t in enumerate(problem.targets) if not t.weight and np.ndim(t.data) == 1]
        if not which:
            raise ConfigError("there is no target of weight 0 with one number", key="studies")
        z = ravel_pytree(fit.theta)[0]
        run = evaluator.run(np.ones(problem.batch), z)

        def values(z: Any) -> Any:
            return [run.predict(evaluator.unravel(z)).values[i] for i in which]

        slopes = jax.jit(jax.jacfwd(values))(z)
        series = problem.series(fit.prediction) if evaluator.sampled else None
        found = {}
        for i, slope in zip(which, slopes, strict=True):
            target, value = problem.targets[i], np.asarray(fit.prediction.values[i])
            variance = np.zeros(value.shape)
            if series is not None:
                variance = np.asarray(blocking(series[i], axis=1).stderr) ** 2
            if fit.uncertainty is not None:
                covariance = fit.uncertainty.covariance
                variance = variance + np.einsum("ci,ij,cj->c", slope, covariance, slope)
            found[target.label] = {
                "value": _one(value),
                "stderr": None if fit.uncertainty is None else _one(np.sqrt(variance)),
                "data": _one(np.asarray(target.data)),
                "deviation": _one(value - np.asarray(target.data)),
            }
        return {"unfitted": found}


def _one(values: np.ndarray) -> float | list[float]:
    return float(values[0]) if len(values) == 1 else values.tolist()

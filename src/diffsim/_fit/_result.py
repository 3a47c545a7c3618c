"""What a fit returns."""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import numpy as np
from jaxtyping import Array, PyTree

from .._problem import Prediction
from ._uncertainty import Uncertainty


class Cost(NamedTuple):
    """What a gradient took: seconds to compile and an evaluation, and the compiled program's
    temporary bytes."""

    compile_s: float
    evaluation_s: float
    temp_bytes: int | None


class FitResult(eqx.Module):
    """A fitted problem.

    `theta`: unconstrained free parameters; `values`: all parameters in their own units; `loss`:
    ½ Σ r² (priors included); `uncertainty`: of each free scalar parameter (None where a fit cannot
    tell); `prediction`: at `values`, for every condition; `residuals`; `history`: one record an
    iteration; `converged`; `cost`; `evaluator`: what a further fit goes on from.
    """

    theta: dict[str, PyTree]
    values: dict[str, PyTree]
    loss: float
    uncertainty: Uncertainty | None
    prediction: Prediction
    residuals: np.ndarray
    history: list[dict[str, Any]]
    converged: bool
    cost: Cost
    evaluator: Any = eqx.field(repr=False)

    @property
    def samples(self) -> Any:
        """The samples behind a sampled fit, leading axes (conditions, samples); None otherwise."""
        return self.evaluator.samples

    def stderr(self, name: str) -> float:
        """The standard error of a scalar parameter, statistical and model scatter together."""
        if self.uncertainty is None:
            return float("nan")
        return self.uncertainty.total[name]


def scalar(value: Array | float) -> float | list[Any]:
    """A JSON-ready number, or nested lists of an array."""
    array = np.asarray(value, dtype=float)
    return float(array) if array.ndim == 0 else array.tolist()

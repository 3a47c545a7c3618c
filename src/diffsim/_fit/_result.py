"""What a fit returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PyTree

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
    ½ Σ r² (priors included); `uncertainty`: of each free parameter, infinite where the data do not
    determine it (None where a fit cannot tell); `prediction`: at `values`, for every condition;
    `residuals`; `history`: one record an evaluated iterate; `converged`; `cost`;
    `evaluator`: what a further fit goes on from.
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

    def adjoint(self) -> dict[str, Any]:
        """How the gradient was taken, why, and what it kept; of `Auto` its plan."""
        taken, plan = self.evaluator.adjoint, self.evaluator.plan
        facts = {
            "name": type(taken).__name__,
            "why": self.evaluator.why,
            "temp_bytes": self.cost.temp_bytes,
        }
        return facts if plan is None else facts | {"budget": plan.budget, "plan": plan.rows()}

    def stderr(self, name: str) -> Any:
        """The standard error of a free parameter, statistical and model scatter together, infinite
        where the data do not determine it: a number for a number, an array of its shape for an
        array (a table, one entry a kind, knots), the largest of all for a network."""
        if self.uncertainty is None:
            return float("nan")
        return self.uncertainty.total[name]


def scalars(values: Mapping[str, Any]) -> dict[str, float]:
    """The parameters that are single numbers, as metrics show them; networks are left out."""
    numbers = {k: v for k, v in values.items() if isinstance(v, (float, np.ndarray, jax.Array))}
    return {name: float(np.ravel(v)[0]) for name, v in numbers.items() if np.size(v) == 1}

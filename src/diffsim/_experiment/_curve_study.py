"""A curve that was fitted by its values, beside the one that it should be."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from .._errors import ConfigError
from .._fit import FitResult
from .._fit._uncertainty import slopes_of
from ._session import Session
from ._studies import AbstractStudy

if TYPE_CHECKING:
    from ._experiment import Experiment


class CurveStudy(AbstractStudy):
    """f(x_k) ± σ_k: a curve that was fitted by its values, beside the one that it should be.

    **Arguments:** `parameter`: whose values these are (knots,); `x`: where, (knots,) or more, of
    which the first count; `truth`: the known curve there; `within`: the range of x over which they
    are compared; `label`: of x, for the report.

    `measured` gets `curve` (rows of `x`, `value`, `stderr`, `truth`), and within the range
    `curve_rms` and `curve_worst`, root mean square and largest deviation, and `curve_chi2`, the
    mean square deviation in standard errors, where there are any.
    """

    parameter: str
    x: np.ndarray
    truth: np.ndarray
    within: tuple[float, float] = (-math.inf, math.inf)
    label: str = "r"

    def run(
        self, experiment: Experiment, session: Session, pieces: dict[str, Any]
    ) -> dict[str, Any]:
        del session
        fit: FitResult = pieces["fit"]
        if self.parameter not in experiment.problem.free:
            raise ConfigError(
                "is not fitted",
                key="studies.parameter",
                value=self.parameter,
                allowed=experiment.problem.free,
            )
        value = np.ravel(np.asarray(fit.values[self.parameter]))
        x, truth = (np.asarray(v, dtype=float)[: value.size] for v in (self.x, self.truth))
        if not x.size == truth.size == value.size:
            cause = f"has {x.size} entries for {value.size} values"
            raise ConfigError(cause, key="studies.x")
        error = self._errors(experiment, fit)
        inside = (x >= self.within[0]) & (x <= self.within[1])
        off = (value - truth)[inside]
        measured: dict[str, Any] = {
            "curve": [
                {"x": float(a), "value": float(b), "stderr": c, "truth": float(d)}
                for a, b, c, d in zip(x, value, error, truth, strict=True)
            ],
            "curve_rms": float(np.sqrt(np.mean(off**2))),
            "curve_worst": float(np.max(np.abs(off), initial=0.0)),
        }
        if error[0] is not None:
            measured["curve_chi2"] = float(np.mean((off / np.asarray(error)[inside]) ** 2))
        r, known, found = (v[inside].tolist() for v in (x, truth, value))
        panel = {
            "name": self.parameter,
            "observable": self.parameter,
            "unit": experiment.simulation.units().get(self.parameter, "1"),
            "time": self.label,
            "noise": "normal",
            "times": r,
            "curve_times": r,
            "curves": [{"label": "", "used": True, "data": known, "fit": found}],
        }
        series = [*pieces["measured"].get("series", []), panel]
        return measured | {"series": series}

    def _errors(self, experiment: Experiment, fit: FitResult) -> list[float | None]:
        """The standard error of each value."""
        slopes = slopes_of(experiment.problem, fit.theta)[self.parameter]
        if fit.uncertainty is None:
            return [None] * len(slopes)
        variances = np.einsum("ij,jk,ik->i", slopes, fit.uncertainty.covariance, slopes)
        return np.sqrt(variances).tolist()

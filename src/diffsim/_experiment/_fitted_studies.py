"""Studies of what a fit found: ratios of parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .._errors import ConfigError
from .._fit import FitResult
from .._fit._uncertainty import slopes_of
from .._store.draws import read_draws
from ._session import Session
from ._studies import AbstractStudy

if TYPE_CHECKING:
    from ._experiment import Experiment


class RatioStudy(AbstractStudy):
    """x = a/b of two fitted numbers, with its error: `numerator` = a over `denominator` = b.

    After a posterior: mean, standard deviation and the quantiles of 5 and 95 % over the draws, so
    that however skewed and correlated a and b are is counted. After least squares: the covariance
    carried through the logarithm of the ratio. Otherwise the ratio alone.

    `measured` gets `name`: `value`, `stderr`, `unit`, and after a posterior `q05`, `q95`.
    """

    name: str
    numerator: str
    denominator: str
    unit: str = "1"

    def run(
        self, experiment: Experiment, session: Session, pieces: dict[str, Any]
    ) -> dict[str, Any]:
        for key in ("numerator", "denominator"):
            if getattr(self, key) not in pieces["parameters"]:
                raise ConfigError(
                    "no such parameter",
                    key=f"studies.{key}",
                    value=getattr(self, key),
                    allowed=tuple(pieces["parameters"]),
                )
        if "posterior" in pieces["measured"]:
            found = self._of_draws(read_draws(session.directory.path / "posterior.h5"))
        else:
            found = self._of_fit(experiment, pieces["fit"])
        return {self.name: found | {"unit": self.unit}}

    def _of_draws(self, draws: dict[str, np.ndarray]) -> dict[str, Any]:
        ratio = draws[self.numerator] / draws[self.denominator]
        low, high = np.quantile(ratio, (0.05, 0.95))
        return {
            "value": float(np.mean(ratio)),
            "stderr": float(np.std(ratio, ddof=1)),
            "q05": float(low),
            "q95": float(high),
        }

    def _of_fit(self, experiment: Experiment, fit: FitResult) -> dict[str, Any]:
        a, b = (float(fit.values[name]) for name in (self.numerator, self.denominator))
        if fit.uncertainty is None:
            return {"value": a / b, "stderr": None}
        slopes = slopes_of(experiment.problem, fit.theta)
        share = (slopes[self.numerator] / a - slopes[self.denominator] / b)[0]
        variance = share @ fit.uncertainty.covariance @ share
        return {"value": a / b, "stderr": float(abs(a / b) * np.sqrt(variance))}

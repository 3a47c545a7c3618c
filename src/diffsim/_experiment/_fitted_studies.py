"""Studies of what a fit found: ratios of parameters, terms that were learned."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from .._errors import ConfigError
from .._fit import FitResult
from .._fit._uncertainty import slopes_of
from .._schedule import Schedule
from .._simulation import AbstractFlow
from .._solve import over_batch, solve
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


class LearnedTermStudy(AbstractStudy):
    """How near a learned term comes to what it stands for, where the truth is known.

    `truth`: the complete equation with `parameters`; it runs from the experiment's starts until
    `until`, `every` apart, and so does the fit. The fitted equation is its known part and the
    observable `term`; what is missing, m(y) = f_true(y) - known(y), is compared with the term along
    the true trajectories.

    `measured` gets `term_error`, the root mean square of term - m relative to that of m while there
    were data; `fit_error`, of the trajectories then, relative to the truth; `extrapolation_error`,
    the same after the last data. The report's series get both beyond the data, and the term.
    """

    truth: AbstractFlow
    parameters: dict[str, Any]
    until: float
    every: float

    def __check_init__(self):
        for key in ("every", "until"):
            if not getattr(self, key) > 0:
                raise ConfigError("must be positive", key=key, value=getattr(self, key))

    def run(
        self, experiment: Experiment, session: Session, pieces: dict[str, Any]
    ) -> dict[str, Any]:
        del session
        problem, flow = experiment.problem, experiment.simulation
        if not isinstance(flow, AbstractFlow):
            raise ConfigError("needs a differential equation", key="simulation")
        params, start = problem.params(pieces["fit"].theta), problem.schedule.t0
        end = float(problem.times()[-1])
        times = start + self.every * np.arange(1, round((self.until - start) / self.every) + 1)
        if not times[-1] > end:
            raise ConfigError("must lie beyond the data", key="until", value=self.until)
        y = self._solved(experiment, self.truth, self.parameters, times)
        fitted = self._solved(experiment, flow, params, times)
        term, missing = self._terms(flow, params, y)
        early = times <= end * (1 + 1e-9)
        off, error = fitted / y - 1, term - missing
        later = _panels(flow, "{}, continued", times, y, fitted, ~early)
        terms = _panels(flow, "learned term of {}", times, missing, term, early)
        return {
            "term_error": _rms(error[:, early]) / _rms(missing[:, early]),
            "fit_error": _rms(off[:, early]),
            "extrapolation_error": _rms(off[:, ~early]),
            "series": [*pieces["measured"].get("series", []), *later, *terms],
        }

    def _solved(
        self, experiment: Experiment, flow: AbstractFlow, params: Any, times: np.ndarray
    ) -> np.ndarray:
        """y at `times` from the experiment's starts: (conditions, times, n)."""
        key, given = jax.random.key(experiment.seed), experiment.problem.conditions or {}
        schedule = Schedule(t0=experiment.problem.schedule.t0, ts=times)

        def one(given: Any) -> Any:
            state = flow.init(params, key, **given)
            return solve(flow, params, state, schedule=schedule, observables=("y",))

        solution = over_batch(one, {name: np.asarray(v) for name, v in given.items()})
        return np.asarray(solution.observables["y"])

    def _terms(
        self, flow: AbstractFlow, params: Any, y: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The learned term and the missing one at each y."""
        key = jax.random.key(0)  # unused: each y is given

        def one(y: Any) -> Any:
            seen = flow.observe(params, flow.init(params, key, y0=y))
            if "term" not in seen:
                raise ConfigError(
                    "no such observable", key="simulation", value="term", allowed=tuple(seen)
                )
            known = flow.vector_field(0.0, y, params) - seen["term"]
            return seen["term"], self.truth.vector_field(0.0, y, self.parameters) - known

        term, missing = jax.jit(jax.vmap(jax.vmap(one)))(y)
        return np.asarray(term), np.asarray(missing)


def _rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(x**2)))


def _panels(
    flow: AbstractFlow,
    title: str,
    times: np.ndarray,
    true: np.ndarray,
    found: np.ndarray,
    chosen: np.ndarray,
) -> list[dict[str, Any]]:
    """Series of the report, one a component of y: at the chosen times the truth as points, what was
    found as a curve."""
    count = true.shape[-1]
    names = getattr(flow, "components", ()) or tuple(f"y{i}" for i in range(count))
    points = np.flatnonzero(chosen)[:: max(1, int(chosen.sum()) // 25)]
    return [
        {
            "name": title.format(name),
            "observable": "y",
            "unit": "1",
            "time": "time",
            "noise": "normal",
            "times": times[points].tolist(),
            "curve_times": times[chosen].tolist(),
            "curves": [
                {"label": "", "used": True, "data": a.tolist(), "fit": b.tolist()}
                for a, b in zip(true[:, points, i], found[:, chosen, i], strict=True)
            ],
        }
        for i, name in enumerate(names)
    ]


class TruthStudy(AbstractStudy):
    """ε(t) = |A_fit(t) - A(t)| / |A(t)|, root mean squares over the components: how far fitted
    fields are from the true ones, which the fit did not see.

    **Arguments:** `observable`; `truth`: its values (saves, ...) at `times`, which may lie beyond
    the data; `name`: what `measured` calls the list of errors, beside `<name>_start`, that of the
    first guess.
    """

    observable: str
    truth: np.ndarray
    times: np.ndarray
    name: str = "field_error"

    def run(
        self, experiment: Experiment, session: Session, pieces: dict[str, Any]
    ) -> dict[str, Any]:
        del session
        problem, simulation = experiment.problem, experiment.simulation
        truth = np.asarray(self.truth, dtype=float)
        times = np.asarray(self.times, dtype=float)
        if len(truth) != len(times):
            raise ConfigError(
                f"has {len(truth)} entries for {len(times)} times", key="studies.truth"
            )
        schedule = Schedule(t0=problem.schedule.t0, ts=times)
        measured: dict[str, Any] = {"times": times.tolist()}
        for key, theta in (
            (self.name, pieces["fit"].theta),
            (f"{self.name}_start", problem.initial()),
        ):
            states = problem.states(theta, jax.random.key(experiment.seed))
            sol = solve(
                simulation,
                problem.params(theta),
                jax.tree.map(lambda x: x[0], states),
                schedule=schedule,
                observables=[self.observable],
            ).check()
            found = np.asarray(sol.observables[self.observable]).reshape(len(times), -1)
            exact = truth.reshape(len(times), -1)
            if found.shape != exact.shape:
                sizes = f"{found.shape[1]} numbers a save, the truth {exact.shape[1]}"
                raise ConfigError(f"{self.observable} has {sizes}", key="studies.truth")
            off = np.linalg.norm(found - exact, axis=1) / np.linalg.norm(exact, axis=1)
            measured[key] = off.tolist()
        return measured

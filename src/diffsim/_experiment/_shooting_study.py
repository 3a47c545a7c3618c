"""What multiple shooting gains over single shooting, as an experiment measures it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from .._errors import ConfigError
from .._fit import FitResult, least_squares, scalars
from .._problem import Problem, Target
from .._schedule import Schedule
from .._simulation import AbstractSimulation
from .._solve import solve
from ._session import Session
from ._studies import AbstractStudy

if TYPE_CHECKING:
    from ._experiment import Experiment

CURVE = 10  # points of a drawn curve between two measured ones, at most


class ShootingStudy(AbstractStudy):
    """The same data fitted by `single`, one trajectory in place of many segments.

    `measured.shooting` gets a row each for the experiment's own fit by `ode.Shooting`, for single
    shooting from the same start, and for single shooting from where the first ended: loss (½ χ²),
    χ² a degree of freedom, iterations, whether it converged, parameters and their errors.
    `measured.chi2` repeats the χ² by name; `measured.apart` is how far the one trajectory from the
    fitted start departs from the segments, in sigma: small where the gaps are small enough.
    `measured.series` gets the trajectories with the data.

    **Arguments:** `single`: the simulation, with fixed steps and the parameters' names of the first
    start; `steps`: iterations at most; `observable`: of `ode.Shooting`, what was measured.
    """

    single: AbstractSimulation
    steps: int = 60
    observable: str = "points"

    def run(
        self, experiment: Experiment, session: Session, pieces: dict[str, Any]
    ) -> dict[str, Any]:
        multiple: FitResult = pieces["fit"]
        values = {name: np.asarray(v) for name, v in scalars(multiple.values).items()}
        problem = self._problem(experiment)
        session.console.say("the same data by single shooting, from the same start")
        lost = self._fit(session, problem)
        session.console.say("and from where multiple shooting ended")
        found = self._fit(session, problem.starting_at(values))
        rows = [
            _row("multiple shooting", multiple, problem),
            _row("single shooting, same start", lost, problem),
            _row("single shooting, from the answer", found, problem),
        ]
        for row in rows:
            session.console.say(f"  {row['name']}: loss {row['loss']:.6g}")
        series = self._series(problem, {"multiple": values, "single": scalars(lost.values)})
        return {
            "shooting": rows,
            "series": series,
            "chi2": {row.pop("key"): row["chi2"] for row in rows},
            "apart": self._apart(experiment, multiple, self._curve(problem, values, 1)),
        }

    def _apart(self, experiment: Experiment, multiple: FitResult, one: np.ndarray) -> float:
        """The largest difference of the one trajectory from the segments, in sigma."""
        which = [t.observable for t in experiment.problem.targets].index(self.observable)
        many = np.asarray(multiple.prediction.values[which])[0, 0]
        return float(np.max(np.abs(one - many) / experiment.problem.targets[which].sigma))

    def _problem(self, experiment: Experiment) -> Problem:
        """The fit of one trajectory."""
        many = experiment.problem
        seen = [t for t in many.targets if t.observable == self.observable]
        if not seen or np.ndim(seen[0].data) != 4:
            raise ConfigError("is no target of segments", key="studies.observable")
        apart = many.schedule.end - many.schedule.t0
        data = np.asarray(seen[0].data)[:, 0]
        times = many.schedule.t0 + apart * np.arange(data.shape[1])
        target = Target("y", data, seen[0].sigma, statistic="each")
        numbers = {k: p for k, p in many.parameters.items() if np.size(p.init) == 1}
        schedule = Schedule(t0=many.schedule.t0, ts=times)
        return Problem(self.single, numbers, [target], schedule)

    def _fit(self, session: Session, problem: Problem) -> FitResult:
        watch = lambda event, facts: session.poll()  # noqa: E731
        return least_squares(problem, steps=self.steps, watch=watch)

    def _curve(self, problem: Problem, values: Mapping[str, Any], finer: int) -> np.ndarray:
        """y (times, n) from the fitted start."""
        theta = problem.starting_at({k: np.asarray(v) for k, v in values.items()}).initial()
        params = problem.params(theta)
        state = self.single.init(params, jax.random.key(0))
        schedule = Schedule(t0=problem.schedule.t0, ts=_finer(problem, finer))
        seen = solve(self.single, params, state, schedule=schedule, observables=("y",))
        return np.asarray(seen.observables["y"])

    def _series(
        self, problem: Problem, fits: Mapping[str, Mapping[str, Any]]
    ) -> list[dict[str, Any]]:
        """A panel a component: the data, and the trajectory of each fit."""
        data = np.asarray(problem.targets[0].data)[0]
        dt = self.single.time_step() or 1.0
        finer = min(CURVE, round((problem.times()[1] - problem.times()[0]) / dt))
        curves = {name: self._curve(problem, values, finer) for name, values in fits.items()}
        names = getattr(self.single, "components", ()) or range(data.shape[1])
        return [
            {
                "name": str(name),
                "observable": str(name),
                "unit": "1",
                "time": "time",
                "noise": "normal",
                "times": problem.times().tolist(),
                "curve_times": _finer(problem, finer).tolist(),
                "curves": [
                    {
                        "label": f"{label} shooting",
                        "used": label == "multiple",
                        "data": data[:, i].tolist() if label == "multiple" else [None] * len(data),
                        "fit": curve[:, i].tolist(),
                    }
                    for label, curve in curves.items()
                ],
            }
            for i, name in enumerate(names)
        ]


def _finer(problem: Problem, finer: int) -> np.ndarray:
    """The measured times with `finer` steps between any two, on the steps of the simulation."""
    times = problem.times()
    return np.linspace(times[0], times[-1], finer * (len(times) - 1) + 1)


def _row(name: str, result: FitResult, problem: Problem) -> dict[str, Any]:
    """What `measured.shooting` says of one fit."""
    freedom = problem.data_points - len(problem.free)
    key = name.replace(",", "").replace(" shooting", "").replace(" ", "_")
    errors = scalars(result.uncertainty.total) if result.uncertainty is not None else {}
    free = {k: v for k, v in scalars(result.values).items() if k in problem.free}
    return {
        "name": name,
        "key": key,
        "loss": result.loss,
        "chi2": 2 * result.loss / freedom,
        "iterations": len(result.history),
        "converged": result.converged,
        "parameters": free,
        "stderr": {k: errors.get(k) for k in free},
    }

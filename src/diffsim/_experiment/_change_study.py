"""What a fit changed: averages along the trajectory before it and after it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from .._errors import ConfigError
from .._problem import Problem
from .._solve import equilibrated, solve
from ._session import Session
from ._studies import AbstractStudy

if TYPE_CHECKING:
    from ._experiment import Experiment


class ChangeStudy(AbstractStudy):
    """<A> over the schedule's saves with the first guess and with what was found, of each of
    `observables`, for the starts of the fit and for starts that it did not see.

    `unseen`: conditions as the experiment's own. A design that holds for one trajectory need not
    hold for the next: that is what they tell.

    `measured.change` gets a row an observable and start: `observable`, `start` ("fitted" or
    "unseen"), `number`, `before`, `after`; `measured.<observable>_gain` and
    `measured.<observable>_gain_unseen` are the mean after over the mean before.
    """

    observables: Sequence[str]
    unseen: Mapping[str, Any] | None = None

    def run(
        self, experiment: Experiment, session: Session, pieces: dict[str, Any]
    ) -> dict[str, Any]:
        problem, found = experiment.problem, pieces["fit"].theta
        known = problem.observables(problem.params(found))
        for name in self.observables:
            if name not in known:
                raise ConfigError(
                    "no such observable", key="studies.observables", value=name, allowed=known
                )
        sets = {"fitted": problem}
        if self.unseen:
            sets["unseen"] = dataclasses.replace(problem, conditions=self.unseen)
        rows, gains = [], {}
        for start, which in sets.items():
            session.poll()
            before, after = (
                self._means(which, theta, experiment.seed) for theta in (problem.initial(), found)
            )
            for name in self.observables:
                pairs = list(zip(before[name], after[name], strict=True))
                rows += [
                    {"observable": name, "start": start, "number": i, "before": a, "after": b}
                    for i, (a, b) in enumerate(pairs)
                ]
                suffix = "" if start == "fitted" else "_unseen"
                gain = float(np.mean(after[name]) / np.mean(before[name]))
                gains[f"{name}_gain{suffix}"] = gain
                session.console.say(f"  {name}, {start} starts: {gain:.3g} times what it was")
        answers = [
            {"label": name.replace("_", " "), "value": float(f"{gain:.3g}"), "stderr": None}
            for name, gain in gains.items()
        ]
        return {"answers": answers[:6], "change": rows, **gains}

    def _means(self, problem: Problem, theta: Any, seed: int) -> dict[str, list[float]]:
        """The mean over the saves and whatever shape, one a start."""
        params = problem.params(theta)

        def one(shared: Any, state: Any) -> Any:
            simulation, params = shared
            return solve(
                simulation,
                params,
                equilibrated(simulation, params, state, problem.equilibration),
                schedule=problem.schedule,
                observables=tuple(self.observables),
            )

        placement, states = problem.placement, problem.states(theta, jax.random.key(seed))
        solution = placement.map(one, (problem.simulation, params), states)
        solution = placement.fetch(solution).check()
        return {
            name: [float(np.mean(series)) for series in np.asarray(solution.observables[name])]
            for name in self.observables
        }

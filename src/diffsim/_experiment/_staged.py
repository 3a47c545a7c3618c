"""Fits in stages: some of the data first, then all of them."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import equinox as eqx

from .._errors import ConfigError
from .._fit import FORGETFUL, FitResult, Memory
from ._fits import AbstractFitTask
from ._horizons import found_values, free_values

if TYPE_CHECKING:
    from ._experiment import Experiment


class StagedFit(AbstractFitTask):
    """min L₁(θ), and from there min L(θ): `first` fits the `targets` of these names alone, `then`
    all of them.

    For data that mean nothing far from the minimum (the elastic constants of what is not yet a
    crystal), that are costly, or that correct what is already fitted. `first` may be a `StagedFit`
    itself. Studies find where the last stage began as the starting values of the result's problem.

    **Arguments:** `first`, `then`: `OptaxFit` or `LeastSquaresFit`, each with options of its own;
    `targets`: names of the targets of the first stage.
    """

    first: AbstractFitTask
    then: AbstractFitTask
    targets: tuple[str, ...] = eqx.field(converter=tuple)

    @property
    def modes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.first.modes, *self.then.modes)))

    def check_own(self, experiment: Experiment) -> None:
        known = tuple(target.label for target in experiment.problem.targets)
        if not set(self.targets) < set(known) or not self.targets:
            raise ConfigError(
                "must be some of the targets, not all",
                key="fit.targets",
                value=self.targets,
                allowed=known,
            )
        self.first.check_own(self._part(experiment))
        self.then.check_own(experiment)

    def _part(self, experiment: Experiment) -> Experiment:
        problem = experiment.problem
        first = tuple(target for target in problem.targets if target.label in self.targets)
        return experiment.with_problem(dataclasses.replace(problem, targets=first))

    def solve(
        self, experiment: Experiment, watch: Any, memory: Memory = FORGETFUL, **further: Any
    ) -> FitResult:
        if "former" in further:  # once more, all of it
            return self.then.solve(experiment, watch, memory, **further)
        problem = experiment.problem

        def fitted() -> dict[str, Any]:
            part = self._part(experiment)
            found = self.first.solve(part, watch, memory.within("first"), **further)
            return found_values(problem, found)

        start = memory.once("after the first", free_values(problem), fitted)
        whole = experiment.with_problem(problem.starting_at(start))
        return self.then.solve(whole, watch, memory.within("then"), **further)

"""Further analyses that an experiment asks for, after its run."""

from __future__ import annotations

import itertools
import math
import time
from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import equinox as eqx
import numpy as np

from .._adjoint import AbstractAdjoint
from .._drive import View, drive
from .._errors import ConfigError
from .._fit import FitResult, scalars
from ._session import Session

if TYPE_CHECKING:
    from ._experiment import Experiment


class AbstractStudy(eqx.Module):
    """Adds to `measured` of result.json what further runs of the same experiment show."""

    @abstractmethod
    def run(
        self, experiment: Experiment, session: Session, pieces: dict[str, Any]
    ) -> dict[str, Any]:
        """The keys to add; `pieces` is what the run has made so far."""


class StepSizeStudy(AbstractStudy):
    """σ(E_total) ∝ dt²: the scatter of the total energy at each of `dts`, over `time` from the same
    state. A second-order integrator of smooth forces shows a factor of four a halving."""

    dts: tuple[float, ...] = eqx.field(converter=tuple)
    time: float
    save_every: int = 5

    def __check_init__(self):
        if len(self.dts) < 2 or not all(0 < dt < math.inf for dt in self.dts):
            raise ConfigError("needs at least two positive time steps", key="dts", value=self.dts)
        if not 0 < self.time < math.inf:
            raise ConfigError("must be a positive, finite time", key="time", value=self.time)
        if self.save_every < 1:
            raise ConfigError("must be at least 1", key="save_every", value=self.save_every)

    def run(
        self, experiment: Experiment, session: Session, pieces: dict[str, Any]
    ) -> dict[str, Any]:
        problem = experiment.problem
        params = problem.params(problem.initial())
        # from the end of the run: equilibrium, the same start for all
        fresh = lambda shared, state: shared[0].prepare(shared[1], state)  # noqa: E731
        placement = experiment.placement
        start = placement.map(fresh, (experiment.simulation, params), pieces["states"])
        scatter = []
        for dt in sorted(self.dts, reverse=True):
            simulation = experiment.simulation.with_time_step(dt)  # pyright: ignore
            steps = max(1, round(self.time / dt / self.save_every)) * self.save_every
            energies = []
            with session.console.progress(steps, f"dt = {dt:g}") as progress:
                for chunk in drive(
                    simulation,
                    params,
                    start,
                    steps=steps,
                    chunk=experiment.chunk,
                    save_every=self.save_every,
                    view=View(("total_energy",)),
                    placement=placement,
                ):
                    energies.append(np.asarray(chunk.check().seen["observables"]["total_energy"]))
                    progress.update(chunk.steps)
                    session.poll()
            scatter.append(float(np.mean(np.std(np.concatenate(energies, axis=1), axis=1))))
        units = experiment.simulation.units()
        system = getattr(experiment.simulation, "unit_system", None)
        return {
            "convergence": {
                "dt": sorted(self.dts, reverse=True),
                "dt_unit": system.unit_of("time") if system else "1",
                "std_total_energy": scatter,
                "energy_unit": units.get("total_energy", "1"),
                "ratio": [a / b for a, b in itertools.pairwise(scatter)],
            }
        }


class AdjointStudy(AbstractStudy):
    """The same fit with each of `adjoints`: same answer, other costs."""

    adjoints: tuple[AbstractAdjoint, ...] = eqx.field(converter=tuple)

    def run(
        self, experiment: Experiment, session: Session, pieces: dict[str, Any]
    ) -> dict[str, Any]:
        rows = [self._row(experiment.adjoint, pieces["fit"])]
        names = {type(experiment.adjoint)}
        for adjoint in self.adjoints:
            if type(adjoint) in names:
                continue
            session.console.say(f"the same fit with {type(adjoint).__name__}")
            other = experiment.with_adjoint(adjoint)
            assert other.fit is not None
            began = time.perf_counter()
            result = other.fit.solve(other, lambda event, facts: session.poll(), use=other.used)
            session.console.say(f"  loss {result.loss:.3g} in {time.perf_counter() - began:.1f} s")
            rows.append(self._row(adjoint, result))
        return {"adjoints": rows}

    def _row(self, adjoint: AbstractAdjoint, result: FitResult) -> dict[str, Any]:
        start = result.evaluator.start
        _, gradient, _, _ = result.evaluator.at(start, np.ones(result.evaluator.problem.batch))
        table = result.evaluator.unravel(gradient)
        return {
            "name": type(adjoint).__name__,
            "why": adjoint.why,
            "loss": result.loss,
            "parameters": scalars(result.values),
            "gradient": scalars(table),
            "iteration_s": result.cost.evaluation_s,
            "compile_s": result.cost.compile_s,
            "temp_bytes": result.cost.temp_bytes,
        }

"""Fits as experiments run them: train, validate, refit, and say how well each state is met."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from .._adjoint import Reweight
from .._errors import ConfigError
from .._fit import (
    FORGETFUL,
    FitResult,
    Memory,
    check_batch,
    check_squares,
    fit,
    least_squares,
    scalars,
)
from .._problem import Problem
from .._statistics import blocking
from .._store import write_parameters
from ._horizons import check_horizons, check_steps, found_values, free_values, over_horizons
from ._reporting import Reporting
from ._series import series
from ._session import Session
from ._simulate import open_trajectory, rdf_table

if TYPE_CHECKING:
    from ._experiment import Experiment


class AbstractFitTask(eqx.Module):
    """A fit with its options, as the configuration's key `fit` names it."""

    @abstractmethod
    def solve(
        self, experiment: Experiment, watch: Any, memory: Memory = FORGETFUL, **further: Any
    ) -> FitResult:
        """Run the fit; `former`: once more, from where that one ended (None: an earlier session
        knows it)."""

    @property
    def modes(self) -> tuple[str, ...]:
        """What it asks of an adjoint: "forward" (least squares, draws), "reverse" (descents)."""
        return ("forward",)

    def check_own(self, experiment: Experiment) -> None:
        """Refuse what this fit in particular cannot do."""

    def complete(
        self,
        experiment: Experiment,
        session: Session,
        watch: Any,
        result: FitResult,
        pieces: dict[str, Any],
        memory: Memory,
    ) -> dict[str, Any]:
        """The pieces of result.json, with what this fit adds to them at the end."""
        del session, watch, memory
        shown = series(experiment, result)
        return pieces | ({"measured": pieces["measured"] | {"series": shown}} if shown else {})

    def check(self, experiment: Experiment) -> None:
        """Refuse what cannot work, before anything is written."""
        experiment.adjoint.check(experiment.simulation)
        self.check_own(experiment)
        experiment.problem.check_adjoint(experiment.adjoint)
        for target in experiment.problem.targets:
            if target.statistic != "mean" and isinstance(experiment.adjoint, Reweight):
                raise ConfigError(
                    "reweighting gives averages, not single saves",
                    key=f"target {target.label}.statistic",
                    allowed="mean, or another adjoint",
                )

    def run(self, experiment: Experiment, session: Session) -> dict[str, Any]:
        """The fit on the conditions that are used, its validation on the others, and a refit on
        all: the pieces of result.json."""
        memory = session.memory()
        watch = Reporting(session)
        began = time.perf_counter()
        result, validation = None, memory.noted("validation")
        if validation is None:
            result = self.solve(experiment, watch, memory.within("fit"), use=experiment.used)
        if experiment.held_out:
            if result is not None:
                validation = validate(experiment, result)
                session.console.say(_sentence(validation))
                memory.note("validation", validation)
                memory.forget_ended()
            watch.stage = "refit"
            result = self.solve(experiment, watch, memory.within("refit"), former=result)
        assert result is not None
        watch.close()
        if not result.converged:
            session.console.say("note: the fit stopped before it converged; see fit.steps")
        measured = measure(experiment, result) | _kept(experiment, session, result)
        measured["converged"] = result.converged
        if experiment.held_out:
            measured["refitted_on"] = experiment.problem.batch
        write_parameters(session.directory.parameters, result.values)
        sampling = watch.compile_s
        pieces = {
            "parameters": parameters(experiment, result),
            "loss": result.loss,
            "validation": validation,
            "adjoint": result.adjoint(),
            "compile_s": result.cost.compile_s + sampling,
            "iteration_s": (time.perf_counter() - began) / max(1, len(result.history)),
            "measured": measured,
            "fit": result,
        }
        return self.complete(experiment, session, watch, result, pieces, memory)


class LeastSquaresFit(AbstractFitTask):
    """`diffsim.least_squares` with its options: `steps`, `explore`, `damping`, `tol`.

    `horizons`: numbers of saves, increasing: the first of them alone are fitted first, and each fit
    starts from where the one before ended, so that a trajectory far from the data finds its way.
    """

    steps: int = 30
    explore: float = 0.1
    damping: float = 1e-4
    tol: float = 1e-10
    horizons: tuple[int, ...] = eqx.field(converter=tuple, default=())

    def __check_init__(self):
        check_steps(self.steps)

    def check_own(self, experiment: Experiment) -> None:
        check_squares(experiment.problem)
        check_horizons(self.horizons, experiment.problem)

    def solve(
        self, experiment: Experiment, watch: Any, memory: Memory = FORGETFUL, **further: Any
    ) -> FitResult:
        return over_horizons(
            lambda problem, memory: self._least_squares(
                problem, experiment, watch, memory=memory, **further
            ),
            experiment.problem,
            () if "former" in further else self.horizons,
            memory,
        )

    def _least_squares(
        self, problem: Problem, experiment: Experiment, watch: Any, **further: Any
    ) -> FitResult:
        return least_squares(
            problem,
            steps=self.steps,
            adjoint=experiment.adjoint,
            key=jax.random.key(experiment.seed),
            explore=self.explore,
            damping=self.damping,
            tol=self.tol,
            systematic=experiment.expected.get("systematic"),
            chunk=experiment.chunk,
            watch=watch,
            **further,
        )


class OptaxFit(AbstractFitTask):
    """`diffsim.fit` with its options: any optax `optimiser`, `steps`, `tol` of the gradient,
    `batch`, `explore`, `uncertainty`; and `horizons` as in `LeastSquaresFit`, each of them for as
    many steps."""

    optimiser: optax.GradientTransformation | None = None
    steps: int = 200
    tol: float | None = None
    batch: int | None = None
    explore: float = 1.0
    uncertainty: Literal["laplace"] | None = None
    horizons: tuple[int, ...] = eqx.field(converter=tuple, default=())

    def __check_init__(self):
        check_steps(self.steps)

    @property
    def modes(self) -> tuple[str, ...]:
        return ("reverse",)

    def check_own(self, experiment: Experiment) -> None:
        check_horizons(self.horizons, experiment.problem)
        if self.batch is not None:
            optimiser = self.optimiser or optax.lbfgs()
            check_batch(experiment.problem, experiment.used, optimiser, self.batch)

    def solve(
        self, experiment: Experiment, watch: Any, memory: Memory = FORGETFUL, **further: Any
    ) -> FitResult:
        again, former = "former" in further, further.pop("former", None)
        problem = experiment.problem
        if again:
            start = memory.once(
                "start", free_values(problem), lambda: found_values(problem, former)
            )
            problem = problem.starting_at(start)

        def one(problem: Problem, memory: Memory) -> FitResult:
            return fit(
                problem,
                self.optimiser,
                steps=self.steps,
                adjoint=experiment.adjoint,
                key=jax.random.key(experiment.seed),
                tol=self.tol,
                batch=self.batch,
                explore=self.explore,
                uncertainty=self.uncertainty,
                chunk=experiment.chunk,
                watch=watch,
                memory=memory,
                **further,
            )

        return over_horizons(one, problem, () if again else self.horizons, memory)


def parameters(experiment: Experiment, result: FitResult) -> dict[str, Any]:
    """result.json's `parameters`: scalar ones with their error bars."""
    out, u = {}, result.uncertainty
    free, (total, statistical, model, systematic) = experiment.problem.free, ({}, {}, {}, {})
    if u is not None:
        total, statistical, model = map(scalars, (u.total, u.statistical, u.model))
        systematic = {name: u.systematic[name] for name in u.systematic if name in free}
    for name, value in scalars(result.values).items():
        out[name] = {
            "value": float(value),
            "stderr": total.get(name),
            "unit": experiment.problem.parameters[name].unit or "1",
            "fixed": name not in free,
            "statistical": statistical.get(name),
            "model": model.get(name),
            "systematic": systematic.get(name),
        }
    return out


def _mean_targets(experiment: Experiment) -> list[tuple[int, Any]]:
    """Targets with one number a condition, which tables and parity plots show."""
    return [
        (i, t)
        for i, t in enumerate(experiment.problem.targets)
        if t.statistic == "mean" and np.ndim(t.data) == 1
    ]


def validate(experiment: Experiment, result: FitResult) -> dict[str, Any]:
    """How the fit predicts the conditions that it has not seen."""
    rows = list(experiment.held_out)
    sigmas = experiment.problem.sigmas(result.theta)
    rms, squares = {}, []
    for i, target in enumerate(experiment.problem.targets):
        value = np.asarray(result.prediction.values[i])
        data = np.broadcast_to(np.asarray(target.data, dtype=float), value.shape)[rows]
        measured = np.ones(value.shape, bool) if target.mask is None else np.asarray(target.mask)
        off = np.where(measured[rows], value[rows] - data, 0.0)
        rms[target.label] = float(np.sqrt(np.sum(off**2) / max(1, np.sum(measured[rows]))))
        residual = np.asarray(target.residual(jnp.asarray(value), sigmas[i]))[rows]
        squares.append(residual[measured[rows]] ** 2)
    squares = np.concatenate([np.zeros(0), *map(np.ravel, squares)])
    total = float(np.sum(squares))
    return {
        "rows": rows,
        "loss": 0.5 * total,
        "rms": rms,
        "chi2_per_point": total / max(1, np.size(squares)),
    }


def _sentence(validation: Mapping[str, Any]) -> str:
    rms = ", ".join(f"{name} {value:.3g}" for name, value in validation["rms"].items())
    return f"validation on rows {validation['rows']}: root mean square error {rms}"


def measure(experiment: Experiment, result: FitResult) -> dict[str, Any]:
    """`measured.targets` and `measured.states`: prediction against data with blocked errors."""
    shown = _mean_targets(experiment)
    if not shown:
        return {}
    sigmas = experiment.problem.sigmas(result.theta)
    targets = [
        {
            "name": t.label,
            "observable": t.observable,
            "unit": t.unit or experiment.simulation.units().get(t.observable, "1"),
            "sigma": float(np.mean(np.asarray(sigmas[i]))),
        }
        for i, t in shown
    ]
    saves = experiment.problem.series(result.prediction)
    when = experiment.problem.times()
    lag = float(when[1] - when[0]) if len(when) > 1 else 1.0
    states = []
    for row in range(experiment.problem.batch):
        entry: dict[str, Any] = {
            "label": experiment.labels[row] if experiment.labels else f"condition {row}",
            "used": bool(experiment.used[row]),
            **{key: values[row] for key, values in experiment.columns.items()},
        }
        times, counts = [], []
        for i, target in shown:
            found = blocking(np.asarray(saves[i][row]))
            entry[target.label] = float(np.asarray(result.prediction.values[i])[row])
            entry[f"{target.label}_stderr"] = float(found.stderr)
            entry[f"{target.label}_target"] = float(np.asarray(target.data)[row])
            times.append(float(found.correlation_time) * lag)
            counts.append(float(found.effective_samples))
        entry["correlation_time"] = max(times)  # of the slowest observable, in the time unit
        entry["effective_samples"] = min(counts)
        states.append(entry)
    measured: dict[str, Any] = {"targets": targets, "states": states}
    system = getattr(experiment.simulation, "unit_system", None)
    if system is not None:
        measured["time_unit"] = system.unit_of("time")
    return measured


def _kept(experiment: Experiment, session: Session, result: FitResult) -> dict[str, Any]:
    """trajectory.h5 and g(r) of the samples behind a fit by reweighting."""
    if not result.evaluator.sampled or result.samples is None:
        return {}
    plan = experiment.problem.schedule.plan(experiment.simulation.time_step())
    states, steps = result.samples.states, plan.saved_steps()
    times = steps * (experiment.simulation.time_step() or 1.0)
    first = jax.tree.map(lambda x: x[:, 0] if eqx.is_array(x) else x, states)
    frames = {}
    if experiment.has_particles:
        c = experiment.condition
        fetch = experiment.placement.fetch
        frames = {
            "positions": np.asarray(fetch(states.positions[c])),
            "velocities": np.asarray(fetch(states.velocities[c])),
            "box": np.asarray(fetch(states.box[c])),
        }
    observables = {
        t.observable: np.moveaxis(
            np.asarray(result.prediction.solution.observables[t.observable]), 0, 1
        )
        for t in experiment.problem.targets
    }
    session.directory.trajectory.unlink(missing_ok=True)  # of a session that was ended here
    with open_trajectory(experiment, session, first, tuple(observables)) as writer:
        writer.extend(steps, times, **frames, observables=observables)
    return _rdf(experiment, result)


def _rdf(experiment: Experiment, result: FitResult) -> dict[str, Any]:
    extra = [o for o in getattr(experiment.simulation, "extra", ()) if hasattr(o, "centres")]
    if not extra or result.samples is None:
        return {}
    observer, params = extra[0], experiment.problem.params(result.theta)
    curves = experiment.placement.map(
        lambda params, states: jnp.mean(jax.lax.map(lambda s: observer(params, s), states), axis=0),
        params,
        result.samples.states,
    )
    curves = experiment.placement.fetch(curves)
    chosen = sorted({0, experiment.problem.batch // 2, experiment.problem.batch - 1})
    table = rdf_table(experiment, np.asarray(observer.centres()), list(np.asarray(curves)))
    table["curves"] = [table["curves"][i] for i in chosen]
    return {"rdf": table}

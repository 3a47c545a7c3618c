"""Further analyses of differential equations: what drifts, and what paths scatter about."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import numpy as np

from .._drive import View, available_observables, drive, drive_flow
from .._errors import ConfigError
from .._schedule import Schedule
from .._simulation import AbstractFlow, AbstractSimulation
from .._solve import solve
from .._store import read_trajectory
from ._session import Session
from ._studies import AbstractStudy

if TYPE_CHECKING:
    from ._experiment import Experiment

LOOKS = 40  # of the host at a run
WINDOWS = 60  # of an error's envelope, evenly spaced in log t


class DriftStudy(AbstractStudy):
    """ε(t) = A(t)/A(0) - 1 of each of `observables` under several integrators.

    The experiment's own run, called `name`, is compared with `others` from the same starts and at
    the same saves: of the first condition the largest |ε| in the first and in the last tenth of
    the run, their ratio in `<observable>_growth`, the slope dε/dt of a straight line through ε, and
    max |ε| over windows, evenly spaced in log t, for a figure. A method that keeps its error has a
    growth of one, one that drifts evenly of ten.

    **Arguments:** `observables`: invariants that do not start at zero; `others`: simulations by
    the name they are shown under, whose steps divide the time between two saves.
    """

    observables: tuple[str, ...] = eqx.field(converter=tuple)
    name: str
    others: dict[str, AbstractSimulation]

    def run(
        self, experiment: Experiment, session: Session, pieces: dict[str, Any]
    ) -> dict[str, Any]:
        recorded = read_trajectory(session.directory.trajectory, particles=False).observables
        first = recorded[self.observables[0]]
        times, own = np.asarray(first.time), {}
        for name in self.observables:
            if name not in recorded:
                raise ConfigError("no such observable", key="observables", value=name)
            own[name] = np.asarray(recorded[name].value).reshape(len(times), -1)[:, 0]
        own["seconds"] = pieces["iteration_s"] * int(first.step[-1])
        start = _starts(experiment, experiment.simulation, self.observables)
        series = {self.name: (experiment.simulation, own)}
        for label, simulation in self.others.items():
            series[label] = (simulation, self._follow(experiment, session, label, simulation))
        measured: dict[str, Any] = {}
        for name in self.observables:
            rows = [
                _row(label, simulation, times, found[name] / start[name] - 1, found["seconds"])
                for label, (simulation, found) in series.items()
            ]
            measured[f"{name}_drift"] = rows
            measured[f"{name}_growth"] = {row["name"]: row["growth"] for row in rows}
        return measured

    def _follow(
        self, experiment: Experiment, session: Session, label: str, simulation: AbstractSimulation
    ) -> dict[str, Any]:
        """The observables of the first condition at every save of the experiment's own run."""
        began, found = time.perf_counter(), {name: [] for name in self.observables}
        chunks, steps = self._chunks(experiment, simulation)
        with session.console.progress(steps, label) as progress:
            for chunk in chunks:
                for name, values in chunk.check().seen["observables"].items():
                    found[name].append(np.asarray(values)[0])
                progress.update(chunk.steps)
                session.poll()
        joined: dict[str, Any] = {name: np.concatenate(found[name]) for name in found}
        return joined | {"seconds": time.perf_counter() - began}

    def _chunks(self, experiment: Experiment, simulation: AbstractSimulation) -> Any:
        """The run in chunks, and the number of its last."""
        problem, view = experiment.problem, View(self.observables)
        own = problem.simulation.time_step()
        plan = problem.schedule.plan(own)
        if own is None or plan.keep is not None:
            raise ConfigError("needs a schedule of steps, save_every", key="schedule")
        apart, t0 = plan.stride * own, problem.schedule.t0
        params = problem.params(problem.initial())
        states = _states(experiment, simulation)
        if isinstance(simulation, AbstractFlow) and simulation.adaptive:
            schedule = Schedule(t0=t0, ts=t0 + apart * np.arange(1, plan.blocks + 1))
            few = max(1, plan.blocks // LOOKS)
            chunks = drive_flow(
                simulation,
                params,
                states,
                schedule=schedule,
                chunk=few,
                view=view,
                placement=experiment.placement,
            )
            return chunks, plan.blocks
        stride = Schedule(t0=t0, ts=[t0 + apart]).plan(simulation.time_step()).stride
        common: dict[str, Any] = dict(steps=stride * plan.blocks, save_every=stride, view=view)
        common["placement"] = experiment.placement
        chunks = drive(simulation, params, states, chunk=stride * plan.blocks // LOOKS, **common)
        return chunks, stride * plan.blocks


def _states(experiment: Experiment, simulation: AbstractSimulation) -> Any:
    """Where another simulation starts under the experiment's conditions."""
    problem = eqx.tree_at(lambda p: p.simulation, experiment.problem, simulation)
    return problem.states(problem.initial(), jax.random.key(experiment.seed))


def _starts(
    experiment: Experiment, simulation: AbstractSimulation, names: tuple[str, ...]
) -> Mapping[str, float]:
    """The observables of the first condition at the start."""
    params = experiment.problem.params(experiment.problem.initial())
    states = _states(experiment, simulation)
    known = available_observables(simulation, params, states)
    for name in names:
        if name not in known:
            raise ConfigError("no such observable", key="observables", value=name, allowed=known)
    observed = lambda shared, state: shared[0].observe(shared[1], state)  # noqa: E731
    placement = experiment.placement
    seen = placement.fetch(placement.map(observed, (simulation, params), states))
    return {name: float(np.ravel(np.asarray(seen[name]))[0]) for name in names}


def _row(
    label: str, simulation: AbstractSimulation, times: np.ndarray, off: np.ndarray, seconds: float
) -> dict[str, Any]:
    """What `measured.<observable>_drift` says of one integrator."""
    size, tenth = np.abs(off), max(1, len(off) // 10)
    first, last = float(size[:tenth].max()), float(size[-tenth:].max())
    edges = np.geomspace(times[0], times[-1], WINDOWS + 1)
    window = np.clip(np.searchsorted(edges, times, side="right") - 1, 0, WINDOWS - 1)
    filled = np.unique(window)
    return {
        "name": label,
        "dt": simulation.time_step(),
        "first_tenth": first,
        "last_tenth": last,
        "growth": last / first if first > 0 else 1.0,
        "slope": float(np.polyfit(times, off, 1)[0]),
        "seconds": seconds,
        "times": [float(times[window == w].max()) for w in filled],
        "envelope": [float(size[window == w].max()) for w in filled],
    }


class PathsStudy(AbstractStudy):
    """Measured paths beside the mean and the 90 % band of a fitted stochastic equation.

    The experiment's simulation, whose state is one component in many copies (`ode.Copies`), runs
    at the fitted parameters from the point where all paths start. `measured.series` gets the paths
    with mean and band; `measured.within_band` the share of points (but the first) in the band.

    **Arguments:** `path`, `time`, `value`: columns, a row a measured point, ordered by path and
    time, every path at the same times; `name`: how the figure calls the value.
    """

    path: np.ndarray
    time: np.ndarray
    value: np.ndarray
    name: str = "x"

    def run(
        self, experiment: Experiment, session: Session, pieces: dict[str, Any]
    ) -> dict[str, Any]:
        del session
        times, paths = self._paths()
        simulation, values = experiment.simulation, pieces["fit"].theta
        params = experiment.problem.params(values)
        copies = np.shape(next(iter((experiment.problem.conditions or {}).values())))[1]
        key, start = jax.random.key(experiment.seed), np.full(copies, paths[0, 0])
        state = simulation.init(params, key, y0=start)
        plan = Schedule(t0=times[0], ts=times[1:])
        seen = solve(simulation, params, state, schedule=plan, observables=("y",)).observables["y"]
        y = np.concatenate([start[None], np.asarray(seen)])
        band = np.quantile(y, (0.05, 0.95), axis=1)
        inside = (paths >= band[0]) & (paths <= band[1])
        curves: list[dict[str, Any]] = [
            {"label": "", "used": True, "data": path.tolist()} for path in paths
        ]
        curves[0] |= {"fit": y.mean(axis=1).tolist(), "predictive": band.tolist()}
        entry = {
            "name": self.name,
            "observable": self.name,
            "unit": "1",
            "time": "time",
            "noise": "normal",
            "times": times.tolist(),
            "curve_times": times.tolist(),
            "curves": curves,
        }
        return {"series": [entry], "within_band": float(np.mean(inside[:, 1:]))}

    def _paths(self) -> tuple[np.ndarray, np.ndarray]:
        """The times, and the values (paths, times)."""
        names, counts = np.unique(self.path, return_counts=True)
        if len(set(counts)) > 1:
            raise ConfigError("must have as many points for each path", key="studies.path")
        time, value = (np.reshape(x, (len(names), -1)) for x in (self.time, self.value))
        if np.any(time != time[0]) or np.any(value[:, 0] != value[0, 0]):
            raise ConfigError("must start together, and share their times", key="studies.time")
        return time[0], value

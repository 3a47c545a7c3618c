"""A liquid at equilibrium, before a fit and after it: averages, curves, and how far it wanders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import numpy as np

from .._drive import View, drive
from .._errors import ConfigError
from .._schedule import Schedule
from .._statistics import blocking, controlled_mean
from .._units import convert
from ..md import NVE, diffusion, finite_size_correction
from ._session import Session
from ._studies import AbstractStudy

if TYPE_CHECKING:
    from ._experiment import Experiment

WHEN = ("before", "after")


def _span(times: Sequence[float]) -> tuple[float, float]:
    begin, end = times
    return float(begin), float(end)


class Motion(eqx.Module):
    """D = (1/6) d⟨|x(t) - x(0)|²⟩/dt + 2.837297 kT/(6πηL) of undisturbed motion.

    Each stretch of constant energy has a temperature of its own, whose scatter among starts,
    T (k/C_V)^½, is 3 % for a hundred molecules of water and 6 % for as many atoms of argon: D,
    which goes with a high power of T, scatters several times as much. So the run that samples
    equilibrium is left at `starts` even places, and D is taken where the mean temperature of the
    stretches is that of the thermostat, on the line through (T, D) of them; its error is that of
    the line there. Fewer than 5 starts: the mean, with its scatter.

    **Arguments:** `dynamics`, the `NVE` that moves it, with the constraints of the run: what they
    hold together moves as one; `steps`, `save_every` of each stretch; `window`: from when until
    when the displacement is a straight line [time]; `starts`; `viscosity` η [mPa s; of reduced
    units their own], for what one periodic box takes away (Yeh & Hummer 2004,
    doi:10.1021/jp0477147; None: left out); `unit` of D (default: the system's own).
    """

    dynamics: NVE
    steps: int
    save_every: int
    window: tuple[float, float] = eqx.field(converter=_span)
    starts: int = 8
    viscosity: float | None = None
    unit: str | None = None

    def __check_init__(self):
        if self.starts < 1:
            raise ConfigError("must be positive", key="starts", value=self.starts)
        Schedule(steps=self.steps, save_every=self.save_every)
        longest = self.dynamics.dt * (self.steps - self.save_every)
        if not 0 <= self.window[0] < self.window[1] <= longest * (1 + 1e-9):
            raise ConfigError(
                "must increase, and end within a stretch",
                key="window",
                value=self.window,
                allowed=f"up to {longest:g}",
            )


class EquilibriumStudy(AbstractStudy):
    """⟨A⟩ ± σ at the parameters where the fit began and at those where it ended, each of a run of
    its own, of the first condition.

    **Arguments:** `observables`; `steps`, `save_every` of the run, after the experiment's
    equilibration; `motion`, a `Motion` from places along the run: self-diffusion; `references`:
    known values by the names of the numbers, for the report.

    `measured.equilibrium` has a row for each number: `name`, `unit`, `before`, `before_stderr`,
    `after`, `after_stderr`, `reference`; errors by blocking. A curve, as g(r), has its greatest
    value, `<name>_peak`, and where, `<name>_peak_at`. `measured.<name>_before` and the like are
    the same numbers. Curves are drawn.
    """

    observables: tuple[str, ...] = eqx.field(converter=tuple)
    steps: int
    save_every: int
    motion: Motion | None = None
    references: Mapping[str, float] | None = None

    def __check_init__(self):
        starts = 1 if self.motion is None else self.motion.starts
        if self.steps % (starts * self.save_every):
            raise ConfigError(
                "must be whole saves between one start of motion and the next",
                key="steps",
                value=self.steps,
                allowed=f"multiples of {starts * self.save_every}",
            )

    def run(
        self, experiment: Experiment, session: Session, pieces: dict[str, Any]
    ) -> dict[str, Any]:
        simulation, fit = experiment.simulation, pieces["fit"]
        known = tuple(simulation.units())
        for name in self.observables:
            if name not in known:
                raise ConfigError(
                    "no such observable", key="studies.observables", value=name, allowed=known
                )
        thetas = fit.evaluator.problem.initial(), fit.theta
        before, after = (
            self._at(experiment, session, theta, when)
            for theta, when in zip(thetas, WHEN, strict=True)
        )
        rows = []
        for name, (value, error, unit) in before["numbers"].items():
            later, its_error, _ = after["numbers"][name]
            row = {"name": name, "unit": unit, "before": value, "before_stderr": error}
            row |= {"after": later, "after_stderr": its_error}
            row["reference"] = (self.references or {}).get(name)
            rows.append(row)
            session.console.say(
                f"  {name}: {value:.5g} ± {error:.2g}, then {later:.5g} ± {its_error:.2g} {unit}"
            )
        numbers = {f"{r['name']}_{when}": r[when] for r in rows for when in WHEN}
        answers = [
            {
                "label": r["name"],
                "unit": r["unit"],
                "value": r["after"],
                "stderr": r["after_stderr"],
            }
            for r in rows[:6]
        ]
        panels = [
            _panel(name, simulation.units()[name], x, first, after["curves"][name][1])
            for name, (x, first) in before["curves"].items()
        ]
        series = [*pieces["measured"].get("series", []), *panels]
        return {"answers": answers, "equilibrium": rows, **numbers} | (
            {"series": series} if panels else {}
        )

    def _at(
        self, experiment: Experiment, session: Session, theta: Any, when: str
    ) -> dict[str, Any]:
        """Numbers (value, error, unit) and curves (x, values) at these parameters."""
        problem, simulation = experiment.problem.rows(np.array([0])), experiment.simulation
        params = problem.params(theta)
        states = problem.states(theta, jax.random.key(experiment.seed))
        motion, parts, moved = self.motion, [], []
        if motion and motion.viscosity is not None and np.ndim(states.box) > 2:
            raise ConfigError(
                "the correction for the size of the box is that of a cube",
                key="studies.motion.viscosity",
                allowed="null, for a triclinic box",
            )
        starts, further = (motion.starts, motion.steps) if motion else (1, 0)
        total = problem.equilibration + self.steps + starts * further
        with session.console.progress(total, f"equilibrium, {when} the fit") as progress:
            run = _Run(experiment, session, params, progress)
            if problem.equilibration:
                states, _ = run(simulation, states, problem.equilibration, problem.equilibration)
            stretch = self.steps // starts, self.save_every, self.observables
            for _ in range(starts):
                states, part = run(simulation, states, *stretch)
                parts.append(part)
                if motion is not None:
                    moved.append(self._moved(run, states, motion))
        seen = {name: np.concatenate([p[name] for p in parts], axis=1) for name in self.observables}
        units, numbers, curves = simulation.units(), {}, {}
        for name, series in seen.items():
            found = blocking(series[0])
            mean, error = np.asarray(found.mean), np.asarray(found.stderr)
            if mean.ndim == 0:
                numbers[name] = float(mean), float(error), units[name]
                continue
            x = _places(simulation, name, len(mean))
            top = int(np.argmax(mean))
            numbers[f"{name}_peak"] = float(mean[top]), float(error[top]), units[name]
            half = float(x[1] - x[0]) / 2 if len(x) > 1 else 0.0
            numbers[f"{name}_peak_at"] = float(x[top]), half, run.unit("length")
            curves[name] = x, mean
        if self.motion is not None:
            numbers["diffusion"] = self._diffusion(moved, states, self.motion)
        return {"numbers": numbers, "curves": curves}

    def _moved(self, run: _Run, states: Any, motion: Motion) -> tuple[float, float]:
        """Mean temperature and D of undisturbed motion from these states, in their own units."""
        dynamics, params, system = motion.dynamics, run.params, motion.dynamics.unit_system
        start, seen = _begun(dynamics, params, states), ("positions", "temperature")
        last, found = run(dynamics, start, motion.steps, motion.save_every, seen)
        state = jax.tree.map(lambda x: x[0], eqx.filter(last, eqx.is_array))
        x = found["positions"][0]
        if dynamics.constraints is not None:
            x = np.asarray(_centres(dynamics.constraints, x, state.masses, state.box))
        spacing, temperature = dynamics.dt * motion.save_every, float(np.mean(found["temperature"]))
        value = diffusion(x, spacing, motion.window, blocks=1, units=system).value
        if motion.viscosity is not None:
            own = system.filled("({energy})*({time})/({length})^3")
            viscosity = convert(motion.viscosity, own if system.reduced else "mPa*s", own)
            edge = float(np.mean(state.box))
            value += finite_size_correction(temperature, viscosity, edge, units=system)
        return temperature, value

    def _diffusion(
        self, moved: list[tuple[float, float]], states: Any, motion: Motion
    ) -> tuple[float, float, str]:
        system = motion.dynamics.unit_system
        temperatures, values = np.array(moved).T
        # A run without a thermostat has no temperature to go back to.
        known = np.mean(temperatures) if states.kT is None else states.kT[0] / system.boltzmann
        value, error = controlled_mean(values, temperatures, float(known))
        unit = system.filled("({length})^2/({time})")
        wanted = motion.unit or unit
        return convert(value, unit, wanted), convert(error, unit, wanted), wanted


@eqx.filter_jit
def _begun(dynamics: NVE, params: Any, states: Any) -> Any:
    return jax.vmap(lambda state: dynamics.continue_from(params, state))(states)


@eqx.filter_jit
def _centres(rigid: Any, x: Any, masses: Any, box: Any) -> Any:
    return jax.vmap(lambda x: rigid.centres(x, masses, box))(x)


class _Run:
    """Stretches of simulations at the same parameters, watched by a session."""

    def __init__(self, experiment: Experiment, session: Session, params: Any, progress: Any):
        self.experiment, self.session, self.params = experiment, session, params
        self.progress, self.done = progress, 0

    def __call__(
        self,
        simulation: Any,
        states: Any,
        steps: int,
        save_every: int,
        names: tuple[str, ...] = (),
    ) -> tuple[Any, dict[str, np.ndarray]]:
        """The states at the end, and the observables at each save, (conditions, saves, ...)."""
        seen: list[dict[str, Any]] = []
        for chunk in self._chunks(simulation, states, steps, save_every, names):
            states = chunk.check().state
            if names:
                seen.append(chunk.seen["observables"])
            self.progress.update(self.done + chunk.steps)
            self.session.poll()
        self.done += steps
        joined = {name: np.concatenate([s[name] for s in seen], axis=1) for name in names}
        return states, joined

    def _chunks(
        self, simulation: Any, states: Any, steps: int, save_every: int, names: tuple[str, ...]
    ) -> Iterator[Any]:
        return drive(
            simulation,
            self.params,
            states,
            steps=steps,
            chunk=self.experiment.chunk,
            save_every=save_every,
            view=View(names),
        )

    def unit(self, quantity: str) -> str:
        system = getattr(self.experiment.simulation, "unit_system", None)
        return system.unit_of(quantity) if system else "1"


def _places(simulation: Any, name: str, count: int) -> np.ndarray:
    """Where a curve's values are: the centres of its observable, or their numbers."""
    for extra in getattr(simulation, "extra", ()):
        if extra.name == name and hasattr(extra, "centres"):
            return np.asarray(extra.centres())
    return np.arange(count, dtype=float)


def _panel(name: str, unit: str, x: np.ndarray, before: Any, after: Any) -> dict[str, Any]:
    """A figure of the report: before the fit as points, after it as a line."""
    places, points, line = (np.asarray(values).tolist() for values in (x, before, after))
    return {
        "name": name,
        "observable": name,
        "unit": unit,
        "time": "r",
        "noise": "normal",
        "times": places,
        "curve_times": places,
        "curves": [{"label": "", "used": True, "data": points, "fit": line}],
    }

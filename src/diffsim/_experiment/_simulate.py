"""A plain simulation: equilibrate, run under laws, keep frames, average what was observed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .._drive import Chunk, View, available_observables, drive, drive_flow
from .._errors import ConfigError, LawBroken
from .._laws import Ledger, observables_of
from .._simulation import AbstractFlow, Axis
from .._solve import over_batch
from .._statistics import blocking
from .._store import TrajectoryWriter, read_trajectory
from ._session import Session

if TYPE_CHECKING:
    from ._experiment import Experiment

PARTICLES = ("positions", "velocities")
SHOWN = ("total_energy", "temperature", "pressure", "kinetic_energy", "dissipation", "cfl")


def simulate(experiment: Experiment, session: Session) -> dict[str, Any]:
    """Run the schedule and return the pieces of result.json that a simulation has."""
    problem, simulation = experiment.problem, experiment.simulation
    params = problem.params(problem.initial())
    times, steps = _saves(experiment)
    states, done, kept = _begin(experiment, session, params)
    expected = 0 if kept is None else kept.pop("frames")
    if expected and not session.directory.trajectory.exists():
        raise lost(session, 0, expected)
    available = available_observables(simulation, params, states)
    names = tuple(name for name in available if name not in PARTICLES)
    writer = open_trajectory(
        experiment, session, states, names, resume_at=done if session.resume else None
    )
    if (frames := writer.frames) != expected:
        writer.close()
        raise lost(session, frames, expected)
    began, first = time.perf_counter(), None
    if session.profile is not None and steps - done <= experiment.chunk:
        session.profile.begin()  # there will be no second chunk
    with writer, session.console.progress(steps, experiment.name) as progress:
        for chunk in _chunks(experiment, params, states, names, done, kept):
            jax.block_until_ready(chunk.state)
            first = first or time.perf_counter() - began
            with session.timed("transfer and write frames"):
                _write(experiment, writer, chunk, times, names)
            session.tick()
            kept = _merge(kept, chunk)
            progress.update(chunk.steps, **_shown(chunk))
            _log(session, chunk, steps, time.perf_counter() - began)
            chunk.check()
            _heed(session, kept["ledger"])
            states = chunk.state
            _offer(experiment, session, states, chunk.steps, kept, writer)
            session.poll()
    seconds = time.perf_counter() - began
    session.flush()
    return {
        "states": states,
        "laws": kept["ledger"].rows() if kept else [],
        "measured": {
            "observables": averages(experiment, session, names),
            **_rdf(experiment, session),
            **_choices(experiment, states),
        },
        "iteration_s": seconds / max(1, steps - done),
        "compile_s": first or 0.0,
    }


def _choices(experiment: Experiment, states: PyTree) -> dict[str, Any]:
    """What the simulation chose by itself, a path for its pairs, say."""
    chosen = experiment.simulation.choices(states)
    return {"choices": chosen} if chosen else {}


def _saves(experiment: Experiment) -> tuple[dict[int, float], int]:
    """The time of each save by its number (of the step, or of the save where the solver chooses its
    steps), and the last number."""
    schedule, simulation = experiment.problem.schedule, experiment.simulation
    if isinstance(simulation, AbstractFlow) and simulation.adaptive:
        times = schedule.times()
        return dict(enumerate(times, start=1)), len(times)
    dt = simulation.time_step()
    plan = schedule.plan(dt)
    numbers = range(plan.stride, plan.steps + 1, plan.stride)
    return {n: schedule.t0 + n * (dt or 1.0) for n in numbers}, plan.steps


def _chunks(
    experiment: Experiment,
    params: PyTree,
    states: PyTree,
    names: tuple[str, ...],
    done: int,
    kept: dict[str, Any] | None,
) -> Iterator[Chunk]:
    """The run in chunks, by steps of our own or by a solver that chooses them."""
    schedule, simulation = experiment.problem.schedule, experiment.simulation
    common: dict[str, Any] = dict(
        chunk=experiment.chunk,
        view=View((*names, *(PARTICLES if experiment.has_particles else ()))),
        laws=experiment.laws,
        done=done,
        start_observed=kept and kept["start"],
        last_observed=kept and kept["last"],
        placement=experiment.placement,
    )
    if isinstance(simulation, AbstractFlow) and simulation.adaptive:
        return drive_flow(simulation, params, states, schedule=schedule, **common)
    if schedule.steps is None and done == 0:
        at_start = lambda shared, state: shared.at_time(state, schedule.t0)  # noqa: E731
        states = experiment.placement.map(at_start, simulation, states)
    plan = schedule.plan(simulation.time_step())
    return drive(simulation, params, states, steps=plan.steps, save_every=plan.stride, **common)


def equilibrated(experiment: Experiment, session: Session, params: PyTree) -> PyTree:
    """States after the equilibration, by the thermostat if there is one."""
    problem, simulation = experiment.problem, experiment.simulation
    key = jax.random.key(experiment.seed)
    with session.console.compiling("the simulation"):
        if experiment.thermostat is not None:
            problem = eqx.tree_at(lambda p: p.simulation, problem, experiment.thermostat)
        states = experiment.placement.place(problem.states(problem.initial(), key))
    steps = problem.equilibration
    if steps:
        with session.console.progress(steps, "equilibration") as progress:
            stride = max(d for d in range(1, min(steps, experiment.chunk) + 1) if steps % d == 0)
            for chunk in drive(
                problem.simulation,
                params,
                states,
                steps=steps,
                save_every=stride,
                chunk=experiment.chunk,
                placement=experiment.placement,
            ):
                states = chunk.check().state
                progress.update(chunk.steps)
                session.poll()
    if experiment.thermostat is not None:
        begin = getattr(simulation, "continue_from", None)
        if begin is None:
            raise ConfigError("cannot go on from a thermostat's state", key="thermostat")
        states = experiment.placement.map(begin, params, states)
    return states


def _begin(
    experiment: Experiment, session: Session, params: PyTree
) -> tuple[PyTree, int, dict[str, Any] | None]:
    """Where a run starts: equilibrated states, or the newest restart."""
    if not session.resume:
        return equilibrated(experiment, session, params), 0, None
    simulation, problem, laws = experiment.simulation, experiment.problem, tuple(experiment.laws)
    states = problem.states(problem.initial(), jax.random.key(experiment.seed))
    states = experiment.placement.place(states)
    found = session.restarts.newest()
    states = simulation.with_room(states, tuple(found[1]["room"] if found else ()))
    arrays, static = eqx.partition(states, eqx.is_array)
    seen = eqx.filter_eval_shape(
        lambda states: over_batch(lambda state: simulation.observe(params, state), states), states
    )
    start = {name: seen[name] for name in observables_of(laws, tuple(seen))}
    size = (problem.batch, len(laws)) if laws else (0,)
    kind = next(iter(start.values())).dtype if start else jnp.zeros(()).dtype
    marks = (jnp.zeros(size, kind), jnp.zeros(size, jnp.int32))
    done, tree, meta = session.restarts.load((arrays, start, start, *marks), resize=True)
    arrays, start, last, worst, first = tree
    session.logged = meta["logged"]
    ledger = Ledger(laws, worst, first)
    kept = {"start": start, "last": last, "ledger": ledger, "frames": meta["frames"]}
    return eqx.combine(arrays, static), done, kept


def lost(session: Session, found: int, expected: int) -> ConfigError:
    """What is wrong with a trajectory that has not the frames of its restart."""
    return ConfigError(
        f"trajectory.h5 holds {found} frames up to the restart, which saw {expected}",
        key="resume",
        value=str(session.directory.trajectory),
        allowed="the trajectory that the run has written",
    )


def _offer(
    experiment: Experiment,
    session: Session,
    states: PyTree,
    steps: int,
    kept: dict[str, Any],
    writer: TrajectoryWriter,
) -> None:
    """What the run can go on from, with the frames in its trajectory: their number and sums."""
    ledger = kept["ledger"]
    arrays = eqx.filter(states, eqx.is_array)
    tree = (arrays, kept["start"], kept["last"], ledger.worst, ledger.first_broken_step)
    meta = {"steps": steps, "frames": writer.frames, "sums": writer.sums}
    meta["room"] = experiment.simulation.room(states)
    session.offer(steps, lambda: (tree, meta))


def _merge(kept: dict[str, Any] | None, chunk: Chunk) -> dict[str, Any]:
    ledger = chunk.ledger if kept is None else kept["ledger"].merge(chunk.ledger)
    return {"start": chunk.start_observed, "last": chunk.last_observed, "ledger": ledger}


def _heed(session: Session, ledger: Ledger) -> None:
    """What the user asked to be done about broken laws."""
    for row in ledger.rows():
        if row["ok"] or row["action"] == "record":
            continue
        if row["action"] == "stop":
            raise LawBroken(
                row["name"], worst=row["worst"], tolerance=row["tolerance"], step=row["step"]
            )
        session.console.say(
            f"warning: law {row['name']} broken at step {row['step']}: "
            f"{row['worst']:.3g} exceeds {row['tolerance']:.3g}"
        )


def open_trajectory(
    experiment: Experiment,
    session: Session,
    states: PyTree,
    names: tuple[str, ...],
    resume_at: int | None = None,
) -> TrajectoryWriter:
    """trajectory.h5 with the header that the simulation's units and atoms ask for, for the
    observables `names`."""
    units = dict(experiment.simulation.units())
    condition = experiment.condition
    system = getattr(experiment.simulation, "unit_system", None)
    if system is not None:
        units |= {q: system.unit_of(q) for q in ("length", "time", "mass", "velocity")}
    particles: dict[str, Any] = {}
    if experiment.has_particles and condition is not None:
        masses, box = experiment.placement.fetch((states.masses[condition], states.box[condition]))
        masses = np.asarray(masses)
        if system is not None:
            masses = masses / system.mass_factor
        particles = {
            "atoms": states.positions.shape[1],
            "box": np.asarray(box),
            "masses": masses,
        }
    return TrajectoryWriter(
        session.directory.trajectory,
        units=units,
        axes=_axes(experiment, names),
        resume_at=resume_at,
        **particles,
    )


def _axes(experiment: Experiment, names: tuple[str, ...]) -> dict[str, tuple[Axis, ...]] | None:
    """The axes of the observables of a flow, the conditions of a batch before their own."""
    simulation, batch = experiment.simulation, experiment.problem.batch
    if getattr(simulation, "grid", None) is None:
        return None
    from ..cfd._axes import field_axes

    known = field_axes(simulation)
    samples = (Axis("sample", np.arange(batch)),) if batch > 1 else ()
    return {name: (*samples, *known.get(name, ())) for name in names}


def _write(
    experiment: Experiment,
    writer: TrajectoryWriter,
    chunk: Chunk,
    times: dict[int, float],
    names: Any,
) -> None:
    seen = {k: np.asarray(v) for k, v in chunk.seen["observables"].items()}
    steps = [n for n in times if chunk.first_saved_step <= n <= chunk.steps]
    condition = experiment.condition
    frames = {}
    if experiment.has_particles and condition is not None:
        moving = (*PARTICLES, "box") if "box" in seen else PARTICLES
        frames = {name: seen[name][condition] for name in moving}
    single = experiment.problem.batch == 1
    observables = {n: seen[n][0] if single else np.moveaxis(seen[n], 0, 1) for n in names}
    writer.extend(steps, [times[n] for n in steps], **frames, observables=observables)


def _shown(chunk: Chunk) -> dict[str, float]:
    seen = chunk.seen["observables"]
    shown = [n for n in SHOWN if n in seen and seen[n].ndim == 2]  # (conditions, saves)
    return {name: float(np.mean(seen[name][:, -1])) for name in shown[:3]}


def _log(session: Session, chunk: Chunk, steps: int, seconds: float) -> None:
    session.directory.log(
        {"step": chunk.steps, "steps": steps, "seconds": round(seconds, 3), **_shown(chunk)}
    )
    session.logged = chunk.steps


def averages(experiment: Experiment, session: Session, names: tuple[str, ...]) -> dict[str, Any]:
    """Mean, blocked standard error and correlation time of each scalar observable, from the
    file."""
    recorded = read_trajectory(session.directory.trajectory, particles=False).observables
    units = experiment.simulation.units()
    table = {}
    for name in names:
        values = np.asarray(recorded[name].value)
        if values.ndim != 1 or len(values) < 2:
            continue
        found = blocking(values)
        table[name] = {
            "mean": float(found.mean),
            "stderr": float(found.stderr),
            "unit": units.get(name, "1"),
            "correlation_time": float(found.correlation_time),
            "effective_samples": float(found.effective_samples),
        }
    return table


def _rdf(experiment: Experiment, session: Session) -> dict[str, Any]:
    """The averaged radial distribution function, where the simulation observes one."""
    extra = [o for o in getattr(experiment.simulation, "extra", ()) if hasattr(o, "centres")]
    if not extra:
        return {}
    recorded = read_trajectory(session.directory.trajectory, particles=False).observables
    observer = extra[0]
    values = np.asarray(recorded[observer.name].value)
    curves = values.reshape(len(values), -1, values.shape[-1]).mean(axis=0)
    return {"rdf": rdf_table(experiment, np.asarray(observer.centres()), list(curves))}


def rdf_table(experiment: Experiment, r: np.ndarray, curves: list[np.ndarray]) -> dict[str, Any]:
    """measured.rdf of result.json."""
    labels = experiment.labels or [f"condition {i}" for i in range(len(curves))]
    unit = experiment.simulation.units().get("positions", "1")
    shown = [{"label": label, "g": g.tolist()} for label, g in zip(labels, curves, strict=False)]
    return {"r": r.tolist(), "r_unit": unit, "curves": shown}

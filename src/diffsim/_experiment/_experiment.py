"""What a configuration describes, checked as a whole, and how it runs."""

from __future__ import annotations

import copy
import re
import string
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from .._adjoint import AbstractAdjoint
from .._errors import ConfigError
from .._laws import AbstractLaw, observables_of
from .._parameter import Parameter
from .._placement import AbstractPlacement, SingleDevice
from .._problem import Problem, RelativeEntropy, Target
from .._report import Console
from .._schedule import Schedule
from .._simulation import AbstractSimulation
from .._solve import default_adjoint
from .._store import RunDirectory, peak_bytes, provenance
from ._expected import read_expected
from ._fits import AbstractFitTask
from ._session import RESTART_SECONDS, Session
from ._simulate import simulate
from ._studies import AbstractStudy
from ._trust import audited, trust


class Experiment:
    """A simulation, or a fit of it to data, from a configuration to a run directory.

    The arguments are the keys of the configuration, with their objects built. Everything that can
    be refused is refused here (`ConfigError`), before anything is traced or written.

    `run` returns the objective: the loss of a fit, or the worst violation of a law relative to its
    tolerance for a plain simulation; one finite number, for sweeps.
    """

    def __init__(
        self,
        *,
        name: str,
        simulation: AbstractSimulation,
        schedule: Schedule,
        question: str | None = None,
        seed: int = 0,
        parameters: Mapping[str, Parameter] | None = None,
        conditions: Mapping[str, Any] | None = None,
        targets: Sequence[Target | RelativeEntropy] = (),
        held_out: Sequence[int] = (),
        label: str | None = None,
        columns: Mapping[str, Any] | None = None,
        equilibration: int = 0,
        thermostat: AbstractSimulation | None = None,
        laws: Sequence[AbstractLaw] = (),
        adjoint: AbstractAdjoint | None = None,
        fit: AbstractFitTask | None = None,
        placement: AbstractPlacement | None = None,
        studies: Sequence[AbstractStudy] = (),
        chunk: int = 1000,
        frames: Mapping[str, int] | None = None,
        expected: str | None = None,
        data_files: Sequence[str] = (),
        precision: str = "float64",
        audit: bool = False,
        restart_seconds: float | int = RESTART_SECONDS,
        profile: bool = False,
        compilation_cache: bool = True,
    ):
        del compilation_cache  # of the process, which the command line sees to
        self.name, self.question, self.seed, self.chunk = name, question, seed, chunk
        self.simulation, self.fit = simulation, fit
        modes = ("forward",) if fit is None else fit.modes
        self.adjoint = default_adjoint(simulation, modes) if adjoint is None else adjoint
        self.placement = placement or SingleDevice()
        self.laws, self.studies = tuple(laws), tuple(studies)
        self.thermostat, self.data_files = thermostat, tuple(data_files)
        self.problem = Problem(
            simulation,
            parameters or {},
            targets,
            schedule,
            conditions,
            equilibration,
            self.placement,
        )
        self.held_out = tuple(sorted(set(held_out)))
        self.condition = None if frames is None else frames.get("condition", 0)
        self.columns = {k: np.asarray(v).tolist() for k, v in (columns or {}).items()}
        self.labels = self._labels(label)
        self.expected = read_expected(expected)
        self.precision, self.audit = precision, audit
        self.restart_seconds, self.profile = float(restart_seconds), profile
        self._check()

    def _check(self) -> None:
        batch = self.problem.batch
        for row in self.held_out:
            if not 0 <= row < batch:
                raise ConfigError(
                    "no such condition", key="held_out", value=row, allowed=f"0 to {batch - 1}"
                )
        if len(self.held_out) >= batch:
            raise ConfigError("leaves no condition to fit", key="held_out")
        if self.condition is not None and not 0 <= self.condition < batch:
            raise ConfigError(
                "no such condition",
                key="frames.condition",
                value=self.condition,
                allowed=f"0 to {batch - 1}",
            )
        for key, values in self.columns.items():
            if len(values) != batch:
                raise ConfigError(
                    f"has {len(values)} rows for {batch} conditions", key=f"columns.{key}"
                )
        aims = (*self.problem.targets, *self.problem.entropies)
        if self.fit is not None and not aims:
            raise ConfigError("a fit needs at least one target", key="targets")
        if self.fit is not None and not self.problem.free:
            raise ConfigError("a fit needs at least one free parameter", key="parameters")
        if self.audit and not (aims and self.problem.free):
            raise ConfigError("an audit needs a free parameter and a target", key="audit")
        if self.chunk < 1:
            raise ConfigError("must be at least 1", key="chunk", value=self.chunk)
        if self.fit is not None:
            self.fit.check(self)
        self.problem.check()
        seen = self.problem.observables(self.problem.params(self.problem.initial()))
        if seen:
            observables_of(self.laws, tuple(seen))

    def _labels(self, form: str | None) -> tuple[str, ...]:
        """The conditions' names, made of their columns: "{temperature:g} K"."""
        form = form or ", ".join(f"{name} {{{name}:g}}" for name in self.columns)
        rows = zip(*self.columns.values(), strict=False)
        try:
            _check_label(form, self.columns)
            return tuple(form.format(**dict(zip(self.columns, r, strict=True))) for r in rows)
        except ConfigError:
            raise
        except (KeyError, ValueError, IndexError, AttributeError, TypeError) as error:
            raise ConfigError(
                f"cannot be filled in: {error!r}", key="label", value=form, allowed=self.columns
            ) from None

    @property
    def has_particles(self) -> bool:
        """Whether there are frames to write."""
        return self.condition is not None and "positions" in self.simulation.units()

    @property
    def used(self) -> np.ndarray:
        """(conditions,) which conditions are fitted."""
        return np.asarray([row not in self.held_out for row in range(self.problem.batch)])

    def with_adjoint(self, adjoint: AbstractAdjoint) -> Experiment:
        """The same experiment, its gradient taken otherwise."""
        other = copy.copy(self)
        other.adjoint = adjoint
        adjoint.check(self.simulation)
        return other

    def with_problem(self, problem: Problem) -> Experiment:
        """The same experiment, of a part of its problem or from elsewhere."""
        other = copy.copy(self)
        other.problem = problem
        return other

    def run(
        self,
        directory: RunDirectory,
        console: Console,
        *,
        resume: bool = False,
        poll: Any = lambda: None,
    ) -> float:
        """Run into `directory` and write its result.json; returns the objective.

        **Raises** `SimulationError`, `LawBroken` or `Interrupted`, with what was reached so far on
        disk; `poll` is called between chunks and raises the latter.
        """
        session = Session(
            *(
                directory,
                console,
                poll,
                resume,
                self.restart_seconds,
                self.data_files,
                self.profile,
            ),
            placement=self.placement,
        )
        try:
            result = self._assemble(session, self._pieces(session))
        except BaseException as error:
            session.rescue(error)
            raise
        session.close()
        directory.result(result)
        return _objective(result)

    def _pieces(self, session: Session) -> dict[str, Any]:
        pieces = simulate(self, session) if self.fit is None else self.fit.run(self, session)
        session.flush()
        if self.fit is not None:
            pieces["measured"] |= trust(self, session, pieces["fit"])
        if self.audit:
            pieces["audit"] = audited(self, session, pieces.get("fit"))
        for study in self.studies:
            pieces["measured"] |= study.run(self, session, pieces)
        return pieces

    def _assemble(self, session: Session, pieces: dict[str, Any]) -> dict[str, Any]:
        measured = pieces["measured"]
        taken = pieces["fit"].evaluator.adjoint if "fit" in pieces else None
        measured["placement"] = self.placement.describe(
            self.problem.batch, self.simulation, taken
        ) | {"processes": jax.process_count()}
        comparison = self._against_expected(pieces.get("parameters", {}), measured)
        if comparison:
            measured["expected"] = comparison
        return {
            "experiment": self.name,
            "question": self.question,
            "status": "done",
            "parameters": pieces.get("parameters", {}),
            "loss": pieces.get("loss"),
            "validation": pieces.get("validation"),
            "laws": pieces.get("laws", []),
            "adjoint": pieces.get(
                "adjoint", {"name": None, "why": "no gradient was taken", "temp_bytes": None}
            ),
            "timing": {
                "compile_s": pieces["compile_s"],
                "iteration_s": pieces["iteration_s"],
                "total_s": session.seconds,
            },
            "peak_bytes": peak_bytes(),
            "provenance": {
                **provenance(sys.argv, self.seed, self.data_files, session.started),
                "config_sha256": session.identity["config_sha256"],
            },
            "measured": measured,
            **({"audit": pieces["audit"]} if "audit" in pieces else {}),
            **({"profile": _profiled(session, pieces)} if session.profile else {}),
        }

    def _against_expected(
        self, parameters: Mapping[str, Any], measured: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        """Parameters and, by their dotted names, measured numbers beside what they should be."""
        found = {name: [parameter["value"]] for name, parameter in parameters.items()}
        goals = dict(self.expected.get("parameters", {}))
        for name, goal in self.expected.get("measured", {}).items():
            goals[name], found[name] = goal, np.ravel(_lookup(measured, name)).tolist()
        return [
            {
                "name": name,
                "value": value,
                "expected": goal["value"],
                "tolerance": goal["tolerance"],
                "ok": bool(abs(value - goal["value"]) <= goal["tolerance"]),
            }
            for name, goal in goals.items()
            for value in found.get(name, ())
        ]


def _check_label(form: str, columns: Mapping[str, Any]) -> None:
    """Refuse, where there are no rows too, fields that are no columns, and widths without an end.
    `ValueError`: a brace too many."""
    for _, name, spec, _ in string.Formatter().parse(form):
        if name is not None and name not in columns:
            known = columns or "no column at all"
            raise ConfigError("no such column", key="label", value=name, allowed=known)
        if re.search(r"[{}]|\d{4}", spec or ""):
            raise ConfigError("takes numbers of three digits", key="label", value=spec)


def _profiled(session: Session, pieces: dict[str, Any]) -> dict[str, Any]:
    assert session.profile is not None
    session.profile.end()
    return session.profile.table(pieces, peak_bytes())


def _lookup(tree: Any, name: str) -> Any:
    """The entry of nested dictionaries with a dotted name, [] where there is none."""
    for part in name.split("."):
        tree = tree.get(part, {}) if isinstance(tree, Mapping) else {}
    return [] if isinstance(tree, Mapping) else tree


def _objective(result: Mapping[str, Any]) -> float:
    if result["loss"] is not None:
        return float(result["loss"])
    shares = [law["worst"] / law["tolerance"] for law in result["laws"] if law["tolerance"]]
    value = max(shares, default=0.0)
    return float(value) if np.isfinite(value) else sys.float_info.max

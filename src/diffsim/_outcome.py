"""Carries an experiment through to its status, its exit code and its report, however it ends."""

from __future__ import annotations

import contextlib
import math
import sys
import traceback
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ._errors import ConfigError, Interrupted, LawBroken, SimulationError

if TYPE_CHECKING:
    from ._experiment import Experiment
    from ._store import RunDirectory

FAILED = 1e30  # the objective of a run that has none: sweepers want a finite number
STATES = {0: "done", 4: "law_broken", 130: "interrupted", 143: "interrupted"}


def conduct(
    experiment: Experiment, directory: RunDirectory, *, resume: bool = False
) -> tuple[float, int]:
    """Run, say how it ended, write the report: the objective and the exit code."""
    from ._report import Console
    from ._signals import Signals

    directory.status("running", experiment=experiment.name)
    objective, code, facts = FAILED, 0, {}
    try:
        with Signals() as signals:
            objective = experiment.run(directory, Console(), resume=resume, poll=signals.check)
    except (ConfigError, SimulationError, Interrupted) as error:
        code, facts = _how(error)
        complain(error)
    except Exception as error:
        traceback.print_exc()
        code, facts = 1, {"message": f"{type(error).__name__}: {error}"}
    directory.status(STATES.get(code, "failed"), code, experiment=experiment.name, **facts)
    _describe(directory)
    return objective if math.isfinite(objective) else FAILED, _report(directory, code)


def complain(error: object) -> None:
    """One line on standard error."""
    line = " ".join(str(error).split())
    sys.stderr.write(f"diffsim: {line}\n")
    sys.stderr.flush()


def _how(error: ConfigError | SimulationError | Interrupted) -> tuple[int, dict[str, Any]]:
    """The exit code of an ending, and what `status.json` says of it."""
    facts: dict[str, Any] = {"message": str(error)}
    if isinstance(error, ConfigError):
        return 2, facts
    if isinstance(error, Interrupted):
        return 128 + error.signum, facts
    code = 4 if isinstance(error, LawBroken) else 3
    return code, facts | {"step": error.step, "advice": error.advice}


def _describe(directory: RunDirectory) -> None:
    """The XDMF file beside a trajectory with fields in it."""
    from ._store import write_xdmf

    if directory.trajectory.exists():
        with contextlib.suppress(ConfigError):  # the report says what is wrong with the file
            write_xdmf(directory.trajectory)


def _report(directory: RunDirectory, code: int) -> int:
    """Write the report and print the end of the run. A fault here does not hide an earlier one."""
    from ._report import Console, write_report

    try:
        path = write_report(directory.path)
    except Exception:
        traceback.print_exc()
        return code or 1
    console = Console()
    console.summary(_rows(directory.read_result() or {}))
    console.say(str(path))
    return code


def _rows(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """What was fitted, or how well the laws were kept."""
    from ._report import with_error

    fitted = result.get("parameters") or {}
    if fitted:
        return [
            (name, with_error(p.get("value"), p.get("stderr"), p.get("unit") or ""))
            for name, p in fitted.items()
        ]
    return [
        (law["name"], "kept" if law["ok"] else "broken", f"worst {_short(law['worst'])}")
        for law in result.get("laws") or ()
    ]


def _short(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3g}"

"""Carries an experiment through to its status, its exit code and its report, however it ends."""

from __future__ import annotations

import contextlib
import math
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ._errors import ConfigError, Interrupted, LawBroken, SimulationError
from ._scale import LOST, current
from ._secrets import scrub
from ._streams import tell

if TYPE_CHECKING:
    from pathlib import Path

    from ._experiment import Experiment
    from ._scale import Member
    from ._signals import Signals
    from ._store import RunDirectory

FAILED = 1e30  # the objective of a run that has none: sweepers want a finite number
STATES = {0: "done", 4: "law_broken", 129: "interrupted", 130: "interrupted", 143: "interrupted"}


def conduct(
    experiment: Experiment,
    directory: RunDirectory,
    *,
    resume: bool = False,
    poll: Callable[[], None] | None = None,
) -> tuple[float, int]:
    """Run, say how it ended, write the report: the objective and the exit code. `poll` may raise
    `Interrupted` between chunks, as a signal does."""
    from ._report import Console
    from ._signals import Signals

    objective, code, facts, member = FAILED, 0, {}, current()
    if member.watch is not None and member.leads:
        member.watch.on_lost = lambda text: directory.status(
            "failed", LOST, experiment=experiment.name, message=text
        )
    try:
        directory.status("running", experiment=experiment.name)
        with Signals() as signals:
            together = _together(signals, member)

            def asked() -> None:
                together()
                if poll is not None:
                    poll()

            objective = experiment.run(directory, Console(), resume=resume, poll=asked)
            facts = {"objective": objective}
    except (ConfigError, SimulationError, Interrupted) as error:
        code, facts = _how(error)
        complain(error)
    except Exception as error:
        member.patience()  # a collective that broke off is a peer's end, of which the watch tells
        code, facts = _fault(directory, error)
    member.leave(failed=code != 0)
    with contextlib.suppress(OSError):  # the disk may be full
        directory.status(STATES.get(code, "failed"), code, experiment=experiment.name, **facts)
    if code == 5:
        return FAILED, code
    return objective if math.isfinite(objective) else FAILED, report(directory, code)


def _fault(directory: RunDirectory, error: Exception) -> tuple[int, dict[str, Any]]:
    """A full disk in one line; a fault of the program with its traceback."""
    from ._store import is_full

    if not is_full(error):
        tell(traceback.format_exc(), sys.stderr)
        return 1, {"message": f"{type(error).__name__}: {error}"}
    message = full(directory.path)
    complain(message)
    return 5, {"message": message}


def full(place: Path) -> str:
    return (
        f"the disk with {str(place)!r} is full; what was saved is intact: make room, "
        f"then go on with resume={place}"
    )


def complain(error: object) -> None:
    """One line on standard error."""
    line = scrub(" ".join(str(error).split()))
    tell(f"diffsim{current().name}: {line}\n", sys.stderr)


def _together(signals: Signals, member: Member) -> Callable[[], None]:
    """Between two chunks: a signal to one process ends all of them."""

    def poll() -> None:
        signals.asked = member.agreed(signals.asked or 0) or None
        signals.check()

    return signals.check if member.group is None else poll


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


def report(directory: RunDirectory, code: int) -> int:
    """Write the report and print the end of the run: `code`, or 1 where it was 0 and this fails."""
    from ._report import Console, write_report

    try:
        _describe(directory)
        path = write_report(directory.path)
    except Exception as error:
        return code or _fault(directory, error)[0]
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

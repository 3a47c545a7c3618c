"""The jobs of a sweep: how far each is, who runs it, and what stops them all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

from .._errors import ConfigError, Interrupted
from .._store import RunDirectory, is_full, locked
from .record import Job, Record, sha256

LOCKS = ".locks"
STOPPED = "stopped"
ENDED = (0, 2, 3, 4)  # codes that a second run would only repeat
SWEEP = "sweep"  # the lock of who launches


def state(record: Record, job: Job) -> tuple[str, int | None]:
    """How far a job is, and its exit code: done, failed, law_broken, interrupted, running (or
    killed), missing."""
    run = RunDirectory(record.path / job.folder)
    if not run.config.is_file():
        return "missing", None
    status = run.read_status()
    code = status.get("code")
    if not isinstance(code, int) or not isinstance(status.get("state"), str):
        return "running", None
    return status["state"], code


def unfinished(record: Record) -> list[Job]:
    """The jobs that are missing, were interrupted or killed, or ended by a fault of the program.

    Raises `ConfigError` for a folder that holds another configuration than the sweep gave it.
    """
    for job in record.jobs:
        _check_folder(record, job)
    return [job for job in record.jobs if state(record, job)[1] not in ENDED]


def _check_folder(record: Record, job: Job) -> None:
    run = RunDirectory(record.path / job.folder)
    if run.config.is_file():
        with contextlib.suppress(OSError, ValueError):
            if sha256(run.config_text()) == job.sha256:
                return
        cause = f"job {job.folder} has another configuration than the sweep gave it"
        hint = f"move {run.path!s} away, and the job is run anew"
        raise ConfigError(cause, key="resume", suggestion=hint)


@contextlib.contextmanager
def held(record: Record, name: str) -> Iterator[bool]:
    """Whether `name` is ours for as long as this is entered: one process runs a job. The lock goes
    with the process, however it ends."""
    place = record.path / LOCKS
    try:
        place.mkdir(exist_ok=True)
        file = open(place / name.replace("/", "%"), "a")  # noqa: SIM115
    except OSError as error:
        if is_full(error):
            raise
        cause = f"{str(record.path)!r} cannot be written: {error.strerror}"
        raise ConfigError(cause, key="resume") from None
    with file:
        yield locked(file.fileno())


def stop(record: Record, signum: int) -> None:
    """Ask every job of the sweep, on whatever machine, to stop at its next restart point."""
    with contextlib.suppress(OSError):
        (record.path / STOPPED).write_text(str(signum))


def stopped(record: Record) -> int | None:
    """The signal that stopped the sweep."""
    try:
        return int((record.path / STOPPED).read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return 15


def poll(record: Record) -> Callable[[], None]:
    """What a job calls between chunks: raises `Interrupted` once the sweep was stopped."""
    place = os.fspath(record.path / STOPPED)

    def look() -> None:
        if os.path.exists(place) and (signum := stopped(record)) is not None:
            raise Interrupted(signum)

    return look


def go_on(record: Record) -> None:
    """Forget that the sweep was stopped."""
    (record.path / STOPPED).unlink(missing_ok=True)

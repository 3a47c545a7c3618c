"""A sweep from its record to its summary: what is missing is run, what is finished is left."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from .. import config
from .._errors import ConfigError
from .._outcome import complain
from .._report import Console
from .._store import RunDirectory, alone, mask_secrets, refuse_links
from . import jobs as of
from .launch import SUBMITTED, Assigned, launch, parallel
from .page import write_page
from .record import FILE, Job, Record, sha256
from .search import overrides, propose
from .space import Settings, settings
from .summary import Summary, say, summarise, write

Task = Callable[[Any], float]


def is_sweep(path: Path) -> bool:
    """Whether a folder is that of a sweep."""
    return (path / FILE).exists()


def begin(sweep: config.Sweep, place: Path) -> Record:
    """The folder of a new sweep, with its record."""
    if place.is_symlink():
        raise ConfigError(f"{str(place)!r} is a symbolic link", key="hydra.sweep.dir")
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise ConfigError(f"{str(place)!r} is not empty", key="hydra.sweep.dir")
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        cause = f"{str(place)!r} cannot be made: {error.strerror}"
        raise ConfigError(cause, key="hydra.sweep.dir") from error
    jobs, searches = [_job(each) for each in sweep.jobs], settings(sweep.search) is not None
    record = Record(
        path=place,
        name=str(sweep.jobs[0].config["name"]),
        launcher=dict(mask_secrets(sweep.launcher)),
        jobs=() if searches else tuple(jobs),
        search=dict(sweep.search) if searches else {},
        words=tuple(map(_masked, sweep.words)),
        config_dir=sweep.config_dir,
        base=jobs[0].sha256,
    )
    record.save()
    return record


def carry_out(record: Record, task: Task, sweep: config.Sweep | None = None) -> int:
    """Run what is not finished, and say what came of everything: the exit code. `sweep`: what a
    search composes its jobs with, else the words of its record."""
    refuse_links(record.path, but=SUBMITTED)
    with of.held(record, of.SWEEP) as ours:
        if not ours:
            raise ConfigError("this sweep is running, in another process", key="resume")
        of.go_on(record)
        if not record.search:
            fine = _run(record, of.unfinished(record), task)
        else:
            record, fine = _searched(record, task, sweep)
        return _ended(record, fine)


@contextlib.contextmanager
def claimed(job: Assigned) -> Iterator[tuple[RunDirectory, bool] | None]:
    """The directory of a job, and whether it was begun before; None where the sweep was stopped, or
    another process is at it."""
    if of.stopped(job.record) is not None:
        yield None
        return
    with of.held(job.record, job.job.folder) as ours, contextlib.ExitStack() as stack:
        yield _entered(job, stack) if ours else None


def _entered(job: Assigned, stack: contextlib.ExitStack) -> tuple[RunDirectory, bool] | None:
    """None where somebody goes on with the job by itself."""
    old = (job.path / "config.yaml").is_file()
    if old:
        directory = RunDirectory.open(job.path)
    else:
        for torn in job.path.glob(".config.yaml.*.part"):  # of a process that was killed
            torn.unlink()
        directory = RunDirectory.create(job.path, job.job.config)
    try:
        stack.enter_context(alone(directory.path, "resume"))
    except ConfigError as error:
        complain(error)
        return None
    return directory, old


def _searched(record: Record, task: Task, sweep: config.Sweep | None) -> tuple[Record, bool]:
    wanted = settings(record.search)
    assert wanted is not None
    started: set[str] = set()
    while True:
        todo = [job for job in of.unfinished(record) if job.folder not in started]
        started |= {job.folder for job in todo}
        if not _run(record, todo, task) or of.stopped(record) is not None:
            return record, False
        count = min(wanted.parallel or parallel(record.launcher), wanted.trials - len(record.jobs))
        if count <= 0:
            return record, True
        sweep = sweep or _composed_again(record)
        record = record.adding(_next(record, wanted, sweep, count))
        write(record, summarise(record))


def _next(record: Record, wanted: Settings, sweep: config.Sweep, count: int) -> list[Job]:
    rows = summarise(record).rows
    tried = [(job.values, row) for job, row in zip(record.jobs, rows, strict=True)]
    first = len(record.jobs)
    proposed = propose(wanted, tried, count)
    made = [sweep.job(overrides(values), first + i) for i, values in enumerate(proposed)]
    return [_job(job, values) for job, values in zip(made, proposed, strict=True)]


def _composed_again(record: Record) -> config.Sweep:
    """What the words of a search make today, if that is what they made when it began."""
    sweep = config.prepare_sweep(record.words, record.config_dir)
    if sha256(config.to_yaml(sweep.jobs[0].config)) != record.base:
        cause = "the words of this search make another configuration today than when it began"
        raise ConfigError(cause, key="resume", value=str(record.path))
    return sweep


def _run(record: Record, jobs: Sequence[Job], task: Task) -> bool:
    for job in jobs:
        with of.held(record, job.folder) as free:
            if not free:
                cause = f"job {job.folder} is still running, in a process that was left behind"
                raise ConfigError(cause, key="resume", value=str(record.path))
    return launch(record, jobs, task)


def _ended(record: Record, fine: bool) -> int:
    summary, console = summarise(record), Console()
    write(record, summary)
    path = write_page(record, summary)
    say(summary, console)
    console.say(str(path))
    signum = of.stopped(record)
    if signum is not None:
        console.say(f"stopped; to go on: python -m diffsim.run resume={record.path}")
        return 128 + signum
    if not fine:
        console.say(f"not every job ran; to go on: python -m diffsim.run resume={record.path}")
    return _code(summary, fine)


def _code(summary: Summary, fine: bool) -> int:
    if fine and summary.best is not None:
        return 0  # what fails in a search is an answer of it
    codes = [1 if row.code is None else row.code for row in summary.rows]
    return max((0 if fine else 1, *codes))


def _job(job: config.Job, values: dict[str, Any] | None = None) -> Job:
    words = tuple(map(_masked, job.overrides))
    return Job(job.folder, words, config.to_yaml(job.config), values or {})


def _masked(word: str) -> str:
    key, equals, value = word.partition("=")
    return f"{key}{equals}{mask_secrets({key: value})[key]}"

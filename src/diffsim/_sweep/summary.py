"""What came of a sweep: a row a job, on the console, in sweep.json and in sweep.csv."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any

from .._report import Console, with_error
from .._report.numbers import number, significant
from .._report.run_data import is_map, mapping, text
from .._secrets import scrub
from .._store import RunDirectory
from .._store.json_text import to_json, write_atomically
from .jobs import state
from .record import Job, Record

SHOWN = 60  # rows on the console


@dataclass(frozen=True)
class Row:
    """A job: what distinguishes it, how it ended, its objective, and what it fitted."""

    folder: str
    overrides: Mapping[str, str]
    state: str
    code: int | None
    objective: float | None
    parameters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    message: str = ""
    seconds: float | None = None

    @property
    def done(self) -> bool:
        return self.state == "done"

    def value(self, name: str) -> tuple[float | None, float | None]:
        """A fitted parameter with its standard error."""
        found = self.parameters.get(name, {})
        return number(found.get("value")), number(found.get("stderr"))


@dataclass(frozen=True)
class Spread:
    """A parameter over the finished jobs: mean, standard deviation between them, and the root of
    the mean square of the standard errors that they have themselves."""

    jobs: int
    mean: float
    sd: float | None
    stderr: float | None
    unit: str


@dataclass(frozen=True)
class Summary:
    name: str
    rows: tuple[Row, ...]
    search: Mapping[str, Any]

    @property
    def keys(self) -> list[str]:
        """What is swept."""
        return list(dict.fromkeys(key for row in self.rows for key in row.overrides))

    @property
    def parameters(self) -> list[str]:
        return list(dict.fromkeys(name for row in self.rows for name in row.parameters))

    @property
    def counts(self) -> dict[str, int]:
        states = [row.state for row in self.rows]
        return {each: states.count(each) for each in dict.fromkeys(states)}

    @property
    def best(self) -> Row | None:
        """Of a search: the job with the best objective."""
        found = [
            (row.objective, row) for row in self.rows if row.done and row.objective is not None
        ]
        if not found or not self.search:
            return None
        sign = -1 if self.search.get("direction") == "maximize" else 1
        return min(found, key=lambda pair: sign * pair[0])[1]

    def spread(self, name: str) -> Spread | None:
        """How a parameter differs between jobs."""
        pairs = [row.value(name) for row in self.rows if row.done]
        values = [value for value, _ in pairs if value is not None]
        errors = [error for value, error in pairs if value is not None and error is not None]
        if not values:
            return None
        sd = stdev(values) if len(values) > 1 else None
        stderr = math.sqrt(fmean(e * e for e in errors)) if errors else None
        return Spread(len(values), fmean(values), sd, stderr, self.unit(name))

    def unit(self, name: str) -> str:
        units = (text(row.parameters.get(name, {}), "unit") for row in self.rows)
        return next(filter(None, units), "")


def summarise(record: Record) -> Summary:
    """Read what the jobs left; what is missing or damaged is None."""
    rows = tuple(_row(record, job) for job in record.jobs)
    return Summary(record.name, rows, record.search)


def write(record: Record, summary: Summary) -> None:
    """sweep.json and sweep.csv."""
    write_atomically(
        record.path / "sweep.json", to_json(_content(record, summary), indent=1) + "\n"
    )
    write_atomically(record.path / "sweep.csv", scrub(_table(summary)))


def say(summary: Summary, console: Console) -> None:
    """The table on the console, with those that failed if there are too many to show."""
    names, keys = summary.parameters[:6], summary.keys
    units = {name: summary.unit(name) for name in names}
    rows, failed = summary.rows[:SHOWN], [row for row in summary.rows[SHOWN:] if not row.done]
    body = [["job", *keys, "state", "objective", *names]]
    for row in (*rows, *failed[:SHOWN]):
        fitted = [with_error(*row.value(name), units[name]) for name in names]
        values = [row.overrides.get(key, "") for key in keys]
        body.append([row.folder, *values, _ending(row), significant(row.objective, 6), *fitted])
    console.summary([[cell.replace("\n", " ")[:48] for cell in line] for line in body])
    if len(summary.rows) > SHOWN:
        console.say(f"  … {len(summary.rows)} jobs in all: sweep.csv has every one")
    for name in names:
        spread = summary.spread(name)
        if spread is not None and spread.sd is not None and not summary.search:
            console.say(f"  {name}: {spread_text(spread)}")
    if summary.best is not None:
        console.say(f"  best: {summary.best.folder}  {_words(summary.best)}")
    console.say("  " + ", ".join(f"{count} {state}" for state, count in summary.counts.items()))


def spread_text(spread: Spread) -> str:
    """A sentence on how a parameter differs between jobs."""
    own = "" if spread.stderr is None else f", mean standard error {significant(spread.stderr, 2)}"
    mean = with_error(spread.mean, spread.sd, spread.unit)
    return f"{mean} (mean and standard deviation of {spread.jobs} jobs{own})"


def _row(record: Record, job: Job) -> Row:
    run = RunDirectory(record.path / job.folder)
    how, code = state(record, job)
    status, result = run.read_status(), (run.read_result() or {}) if how != "missing" else {}
    words = [word.partition("=") for word in job.overrides]
    fitted = {name: p for name, p in mapping(result, "parameters").items() if is_map(p)}
    asked = record.search.get("objective")
    objective = status.get("objective") if asked is None else _deep(result, str(asked))
    return Row(
        folder=job.folder,
        overrides={key: value for key, _, value in words},
        state=how,
        code=code,
        objective=number(objective) if how == "done" else None,
        parameters=fitted if how == "done" else {},
        message=text(status, "message"),
        seconds=number(mapping(result, "timing").get("total_s")),
    )


def _deep(node: Any, key: str) -> Any:
    for name in key.split("."):
        node = node.get(name) if is_map(node) else None
    return node


def _ending(row: Row) -> str:
    return row.state if row.code in (0, None) else f"{row.state} ({row.code})"


def _words(row: Row) -> str:
    return " ".join(f"{key}={value}" for key, value in row.overrides.items())


def _content(record: Record, summary: Summary) -> dict[str, Any]:
    spreads = {name: summary.spread(name) for name in summary.parameters}
    best = summary.best
    return {
        "name": summary.name,
        "words": record.words,
        "counts": summary.counts,
        "search": summary.search or None,
        "best": None if best is None else best.folder,
        "spread": {name: vars(spread) for name, spread in spreads.items() if spread is not None},
        "jobs": [vars(row) for row in summary.rows],
    }


def _table(summary: Summary) -> str:
    keys, names = summary.keys, summary.parameters
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    columns: Sequence[str] = [part for name in names for part in (name, f"{name}_stderr")]
    writer.writerow(["job", *keys, "state", "code", "objective", "seconds", *columns, "message"])
    for row in summary.rows:
        fitted = [value for name in names for value in row.value(name)]
        values = [row.overrides.get(key, "") for key in keys]
        facts = [row.state, row.code, row.objective, row.seconds]
        writer.writerow([row.folder, *values, *facts, *fitted, row.message])
    return out.getvalue()

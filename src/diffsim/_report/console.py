"""What a run says while it goes on: bars on a terminal, plain lines everywhere else."""

from __future__ import annotations

import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, SupportsInt, runtime_checkable

from .._streams import Outlet
from .numbers import human_time, significant

_INTERVAL = 5.0  # seconds between plain lines


@runtime_checkable
class Stream(Protocol):
    """Where text goes: a file, a terminal, a buffer."""

    def write(self, text: str, /) -> Any: ...
    def flush(self) -> Any: ...
    def isatty(self) -> bool: ...


class Console:
    """Writes to `file` (standard output where none is given); with `quiet=True` it says nothing.

    A terminal gets a bar that redraws itself. A file or pipe gets whole lines without control
    characters: the first, the last, and one every five seconds. A reader who is gone is no fault.
    """

    def __init__(self, quiet: bool = False, file: Stream | None = None) -> None:
        self._quiet = quiet
        self._file = Outlet(file if file is not None else sys.stdout)
        self._live = not quiet and self._file.isatty() and os.environ.get("TERM") != "dumb"
        self._bars: list[Any] = []

    def say(self, text: str = "") -> None:
        """One line."""
        if self._bars:
            self._bars[-1].console.print(text, markup=False, highlight=False)  # above the bar
        elif not self._quiet:
            self._file.write(text + "\n")

    @contextmanager
    def compiling(self, what: str) -> Iterator[None]:
        """A notice while `what` is compiled, and how long it took."""
        start = time.perf_counter()
        if self._live and not self._bars:
            with self._bar("compiling {task.description}", spinner=True) as bar:
                bar.add_task(what, total=None, note="")
                yield
        else:
            self.say(f"compiling {what} …")
            yield
        self.say(f"compiled {what} in {human_time(time.perf_counter() - start)}")

    @contextmanager
    def progress(self, total: int, description: str) -> Iterator[Progress]:
        """Progress of `total` steps: call `update(completed, loss=...)` on what this yields."""
        if self._live and not self._bars:
            with self._bar("{task.description}", note=True) as bar:
                task = bar.add_task(description, total=total, note="")
                yield _LiveProgress(bar, task)
            return
        lines = _PlainProgress(self, total, description)
        try:
            yield lines
        finally:
            lines.close()

    def summary(self, rows: Sequence[Sequence[Any]], title: str | None = None) -> None:
        """A small table: one row a line, columns aligned."""
        texts = [[str(cell) for cell in row] for row in rows]
        columns = max(map(len, texts), default=0)
        widths = [
            max((len(row[i]) for row in texts if i < len(row)), default=0) for i in range(columns)
        ]
        if title:
            self.say(title)
        for row in texts:
            cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
            self.say("  " + "  ".join(cells).rstrip())

    @contextmanager
    def _bar(self, text: str, *, note: bool = False, spinner: bool = False) -> Iterator[Any]:
        from rich.console import Console as RichConsole
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            SpinnerColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as RichProgress

        columns: list[Any] = [SpinnerColumn()] if spinner else []
        columns.append(TextColumn(text, markup=False))
        if note:
            columns += [BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
        columns.append(TimeElapsedColumn())
        if note:
            columns.append(TextColumn("{task.fields[note]}", markup=False))
        stream: Any = self._file
        rich = RichConsole(file=stream, force_terminal=True, highlight=False)
        with RichProgress(*columns, console=rich, transient=spinner) as bar:
            self._bars.append(bar)
            try:
                yield bar
            finally:
                self._bars.pop()


class Progress(ABC):
    """How far a loop has come."""

    @abstractmethod
    def update(self, completed: SupportsInt, **values: Any) -> None:
        """`completed` of the total are done; `values` are shown behind it."""


class _LiveProgress(Progress):
    def __init__(self, bar: Any, task: Any) -> None:
        self._bar, self._task = bar, task

    def update(self, completed: SupportsInt, **values: Any) -> None:
        self._bar.update(self._task, completed=int(completed), note=_note(values))


class _PlainProgress(Progress):
    def __init__(self, console: Console, total: int, description: str) -> None:
        self._console, self._total, self._description = console, total, description
        self._start = time.perf_counter()
        self._said: float | None = None
        self._pending = ""

    def update(self, completed: SupportsInt, **values: Any) -> None:
        now = time.perf_counter()
        parts = [self._description, f"{int(completed)}/{self._total}", _note(values)]
        parts.append(human_time(now - self._start))
        self._pending = "  ".join(filter(None, parts))
        if self._said is None or now - self._said >= _INTERVAL or int(completed) >= self._total:
            self.close()
            self._said = now

    def close(self) -> None:
        if self._pending:
            self._console.say(self._pending)
            self._pending = ""


def _note(values: dict[str, Any]) -> str:
    return "  ".join(f"{name} {_value(value)}" for name, value in values.items())


def _value(value: Any) -> str:
    try:
        return significant(float(value), 5)
    except (TypeError, ValueError):
        return str(value)

"""What a run talks to: its directory, the console, the signals, the restarts."""

from __future__ import annotations

import dataclasses
import datetime
import time
from collections.abc import Callable, Mapping
from typing import Any

from .._report import Console
from .._store import Restarts, RunDirectory

RESTART_SECONDS = 10.0  # between two restarts of one run


@dataclasses.dataclass
class Session:
    """One run on its way. `poll` raises `Interrupted` once a signal has come; `resume`: go on from
    the newest restart."""

    directory: RunDirectory
    console: Console
    poll: Callable[[], None] = lambda: None
    resume: bool = False
    started: datetime.datetime = dataclasses.field(
        default_factory=lambda: datetime.datetime.now(datetime.UTC)
    )

    def __post_init__(self):
        self.clock = time.perf_counter()
        self.restarts = Restarts(self.directory.restart)
        self._saved = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.perf_counter() - self.clock

    def save(self, step: int, tree: Any, meta: Mapping[str, Any], *, force: bool = False) -> None:
        """Save a restart, unless the last one is recent."""
        if force or time.perf_counter() - self._saved > RESTART_SECONDS:
            self.restarts.save(int(step), tree, meta)
            self.restarts.wait()
            self._saved = time.perf_counter()

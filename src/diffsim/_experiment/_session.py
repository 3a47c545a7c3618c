"""What a run talks to: its directory, the console, the signals, the restarts."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import numpy as np

from .._errors import Interrupted
from .._fit import Kept, Memory, Saved
from .._placement import AbstractPlacement, SingleDevice
from .._report import Console
from .._scale import Member, current
from .._store import Restarts, RunDirectory, identity
from ._profile import Profile

RESTART_SECONDS = 10.0  # between two restarts of one run
SHARE = 20  # of the time between two restarts goes at most one part to saving


@dataclasses.dataclass
class Session:
    """One run on its way. `poll` raises `Interrupted` once a signal has come; `resume`: go on from
    the newest restart; `every`: seconds between two restarts, 0 for one at every chance; `logged`:
    the number of the last line of metrics.jsonl that the state of the run accounts for; `profiled`:
    measure where the time goes."""

    directory: RunDirectory
    console: Console
    poll: Callable[[], None] = lambda: None
    resume: bool = False
    every: float = RESTART_SECONDS
    data_files: Sequence[str] = ()
    profiled: bool = False
    placement: AbstractPlacement = dataclasses.field(default_factory=SingleDevice)
    member: Member = dataclasses.field(default_factory=current)
    started: datetime.datetime = dataclasses.field(
        default_factory=lambda: datetime.datetime.now(datetime.UTC)
    )

    def __post_init__(self):
        self.clock = time.perf_counter()
        self.restarts = Restarts(
            self.directory.restart, asynchronous=True, tell=lambda text: self.warn(text)
        )
        self.identity = identity(self.directory.config_text(), self.data_files)
        self.profile = Profile(self.directory.path / "profile") if self.profiled else None
        self.logged = -1
        self._saved, self._took = time.perf_counter(), 0.0
        self._latest: tuple[int, Callable[[], tuple[Any, Mapping[str, Any]]], int] | None = None
        self._serial = 0

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.perf_counter() - self.clock

    def timed(self, what: str) -> contextlib.AbstractContextManager[None]:
        """Count what this takes, where the run is profiled."""
        return contextlib.nullcontext() if self.profile is None else self.profile.timed(what)

    def tick(self) -> None:
        """A chunk or an iteration is over."""
        if self.profile is not None:
            self.profile.tick()

    def close(self) -> None:
        """End what goes on beside the run."""
        if self.profile is not None:
            self.profile.close()
        self.restarts.close()

    def warn(self, text: str) -> None:
        """A line that begins with "warning"."""
        self.console.say(f"warning: {text}")

    def offer(self, step: int, make: Callable[[], tuple[Any, Mapping[str, Any]]]) -> None:
        """The run could go on from the arrays and the JSON that `make` makes: they are saved unless
        the last restart is recent, and in any case if the run ends here."""
        self._latest = (int(step), make, self.logged)
        waited = time.perf_counter() - self._saved
        due = waited > (self.every and max(self.every, SHARE * self._took))
        if self.member.agreed(due):
            self.flush()

    def flush(self) -> None:
        """Save what was offered last."""
        latest, self._latest = self._latest, None
        if latest is None:
            return
        began = time.perf_counter()
        step, make, logged = latest
        with self.timed("save restarts"):
            self._save(step, *make(), logged)
        self._saved = time.perf_counter()
        self._took = self._saved - began

    def _save(self, step: int, tree: Any, meta: Mapping[str, Any], logged: int) -> None:
        tree = eqx.filter(tree, lambda x: isinstance(x, (jax.Array, np.ndarray)))
        if self.member.group is not None:  # each holds a part
            tree = self.placement.fetch(tree)
        if self.member.leads:
            self.restarts.save(step, tree, {**meta, "logged": logged, "run": self.identity})

    def rescue(self, error: BaseException) -> None:
        """Save what was offered last, as far as that goes: `error` ended the run. Of several
        processes a signal ends all alike; after anything else one would wait for the others."""
        try:
            if self.member.group is None or isinstance(error, Interrupted):
                self.flush()
            self.restarts.wait()
        except Exception as fault:  # what ended the run counts, not this
            self.warn(f"no restart could be saved: {' '.join(str(fault).split())[:200]}")
        with contextlib.suppress(Exception):
            self.close()

    def memory(self) -> Memory:
        """Where the loops of a fit put by how far they are."""
        if not self.resume:
            return Memory(self._put_by)
        step, arrays, meta = self.restarts.read()
        self._serial, self.logged = step, meta["logged"]
        return Memory(self._put_by, Saved(arrays, meta["fit"]))

    def _put_by(self, stage: str, make: Callable[[], Kept]) -> None:
        self._serial += 1

        def record() -> tuple[Any, Mapping[str, Any]]:
            kept = make()
            return kept.trees, {"fit": {**kept.facts, "stage": stage}}

        self.offer(self._serial, record)
        self.poll()

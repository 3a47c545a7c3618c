"""GPUs for jobs side by side: each worker of this machine sees one, with no more of its memory than
it needs. JAX would give every worker the first, and three quarters of that to whoever comes first.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import IO, Any

from .._scale import VISIBLE, gpus
from .._store import locked
from .jobs import LOCKS
from .record import Record

SHARED = "DIFFSIM_SHARED_GPUS"  # who shares which out: a process's number, then their names
RESERVE = "XLA_PYTHON_CLIENT_PREALLOCATE"
WORKERS = 64  # on one GPU, at most

_held: list[IO[str]] = []  # the lock of this worker's GPU, which goes with the process


@contextlib.contextmanager
def shared_out(launcher: Mapping[str, Any]) -> Iterator[None]:
    """Inside, before JAX has started here, workers that `launcher` starts on this machine share its
    GPUs. A cluster's scheduler does that by itself."""
    names = gpus() if "n_jobs" in launcher else []
    given = {SHARED: ",".join([str(os.getpid()), *names]), RESERVE: "false"} if names else {}
    before = {key: os.environ.get(key) for key in given}
    # what the user says of reserved memory stands
    os.environ.update({k: v for k, v in given.items() if k == SHARED or before[k] is None})
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


def take_one(record: Record) -> None:
    """In a worker, before its first job: see the GPU alone that the fewest workers have."""
    parent, *names = os.environ.get(SHARED, "").split(",")
    if not names or parent == str(os.getpid()) or _held:
        return
    for round in range(WORKERS):
        for name in names:
            place = record.path / LOCKS / f"gpu.{name.replace('/', '%')}.{round}"
            try:
                file = open(place, "a")  # noqa: SIM115
            except OSError:
                return  # all see all, as without a lock
            if locked(file.fileno()):
                _held.append(file)
                os.environ[VISIBLE] = name
                return
            file.close()

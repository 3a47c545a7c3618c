"""This process as one of a group: entry, agreement, leave."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from .._errors import ConfigError
from ._detect import Group, detected
from ._watch import Watch, accepted, called, listening

START_SECONDS = "DIFFSIM_START_SECONDS"  # how long processes wait for each other at the start
TOKEN = 16  # bytes
T = TypeVar("T")


class Member:
    """One process of a run; of a run by one process, that one."""

    def __init__(self, group: Group | None = None, watch: Watch | None = None):
        self.group, self.watch = group, watch
        self.scratch: Path | None = None

    @property
    def leads(self) -> bool:
        """Whether this process writes the run directory and the console."""
        return self.group is None or self.group.index == 0

    @property
    def name(self) -> str:
        """How a line says where it comes from; nothing where there is no question."""
        return "" if self.leads or self.group is None else f" (process {self.group.index})"

    def agreed(self, value: int) -> int:
        """The largest `value` of all processes, in each of them: what one decides, all do."""
        if self.group is None:
            return value
        import numpy as np
        from jax.experimental.multihost_utils import process_allgather

        return int(np.max(process_allgather(np.int32(value))))

    def together(self, attempt: Callable[[], T]) -> T:
        """What `attempt` returns, once it has in every process. Where one of them refuses
        (`ConfigError`), all do."""
        made, refused = None, None
        try:
            made = attempt()
        except ConfigError as error:
            refused = error
        if self.agreed(int(refused is not None)):
            raise refused or ConfigError("another process of this run was refused", key="scale")
        return made  # pyright: ignore[reportReturnType]

    def leave(self, failed: bool = False) -> None:
        """Nobody need wait for this process any more."""
        if self.watch is not None:
            self.watch.leave(failed)

    def patience(self) -> None:
        """After a failure that a peer's end may have caused: the watch ends this process first."""
        if self.watch is not None:
            time.sleep(5)

    def folder(self, like: Path | None = None) -> Path:
        """Where a process that does not lead keeps what it would write, until it ends: a copy of
        the run directory `like`, where it goes on."""
        self.scratch = self.scratch or Path(tempfile.mkdtemp(prefix="diffsim_process_"))
        if self.watch is not None:
            self.watch.scratch = self.scratch
        place = self.scratch / "run"
        if like is not None:
            shutil.copytree(like, place)
        return place


_alone = Member()
_members = [_alone]  # the last is this process; it joins once at most


def current() -> Member:
    """This process."""
    return _members[-1]


@contextlib.contextmanager
def joined() -> Iterator[Member]:
    """This process in the group that it was started in, if there is one: jax sees the devices of
    all, and a peer that is lost ends the others with exit code 6 and a line."""
    group = detected()
    if group is None or current().group is not None:
        yield current()
        return
    member = Member(group, _connected(group))
    _members.append(member)
    before = sys.stdout
    if not member.leads:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    try:
        yield member
    except ConfigError:
        member.leave(failed=True)
        raise
    except BaseException:
        member.patience()
        member.leave(failed=True)
        raise
    finally:
        member.leave()
        sys.stdout = before
        if member.scratch is not None:
            shutil.rmtree(member.scratch, ignore_errors=True)


def _connected(group: Group) -> Watch:
    """jax's processes, and a line between each and process 0."""
    os.environ.setdefault("JAX_CPU_COLLECTIVES_IMPLEMENTATION", "gloo")
    import jax
    import numpy as np
    from jax.experimental.multihost_utils import broadcast_one_to_all

    seconds = _patience()
    try:
        jax.distributed.initialize(
            group.coordinator,
            group.count,
            group.index,
            initialization_timeout=seconds,
            shutdown_timeout_seconds=3600,  # process 0 writes the report meanwhile
        )
    except RuntimeError as error:
        raise ConfigError(
            f"the {group.count} processes (started by {group.started_by}) did not meet at "
            f"{group.coordinator} within {seconds} s: {str(error).splitlines()[0][:160]}",
            key="scale.processes",
        ) from error
    host = group.coordinator.rpartition(":")[0]
    said = np.zeros(TOKEN + 1, np.int32)
    if group.index == 0:
        server, token = listening(host), secrets.token_bytes(TOKEN)
        said[:] = [*token, server.getsockname()[1]]
        broadcast_one_to_all(said)
        return Watch(0, accepted(server, group.count, token))
    *token, port = np.asarray(broadcast_one_to_all(said)).tolist()
    return Watch(group.index, called(host, port, bytes(token), group.index))


def _patience() -> int:
    text = os.environ.get(START_SECONDS, "300")
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError("must be a whole number of at least 1", key=START_SECONDS, value=text)
    return int(text)

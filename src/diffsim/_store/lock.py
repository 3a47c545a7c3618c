"""One process at a time: a lock of the operating system's, which goes with the process that has it,
however that ends."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from .._errors import ConfigError
from .room import is_full

FILE = ".lock"
_MOST = 1000  # bytes that are read of who holds it


def locked(descriptor: int) -> bool:
    """Whether the lock of an open file is ours, until it is closed. Where the system or the file
    system has no locks, it is: nothing keeps two apart there."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


@contextlib.contextmanager
def alone(folder: Path, key: str) -> Iterator[None]:
    """Hold `folder` for this process alone, as long as this is entered. Raises `ConfigError`, with
    `key`, that names who holds it.

    The file is there for as long as it is held. One that a process left behind which was killed is
    held by nobody.
    """
    path = folder / FILE
    descriptor = _taken(path, key)
    try:
        yield
    finally:
        if descriptor is not None:
            with contextlib.suppress(OSError):
                path.unlink()  # while it is ours: whoever has it open sees that it is gone
            os.close(descriptor)


def holder(path: Path) -> str:
    """Who says in the lock file at `path` that it holds it, in words."""
    try:
        said = json.loads(path.read_bytes()[:_MOST])
        process, host, since = int(said["process"]), str(said["host"]), str(said["since"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return "another process"
    if not re.fullmatch(r"[\w.-]{1,253}", host) or not re.fullmatch(r"[\d:T+-]{1,40}", since):
        return "another process"
    return f"process {process} on {host} since {since}"


def _taken(path: Path, key: str) -> int | None:
    """The lock file at `path`, open, ours, with our name in it. None where the disk has no room for
    it, of which the run itself will tell."""
    flags, folder = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), str(path.parent)
    while True:
        try:
            descriptor = os.open(path, flags, 0o644)
        except OSError as error:
            if is_full(error):
                return None
            cause = f"{folder!r} cannot be written: {error.strerror}"
            raise ConfigError(cause, key=key, allowed="a directory you can write to") from None
        if not locked(descriptor):
            os.close(descriptor)
            cause = f"{folder!r} is in use by {holder(path)}"
            raise ConfigError(f"{cause}; wait for its end, or stop it", key=key)
        if _is_at(descriptor, path):
            break
        os.close(descriptor)  # its holder took it away before we had it
    now = datetime.now(UTC).isoformat(timespec="seconds")
    said = {"process": os.getpid(), "host": socket.gethostname(), "since": now}
    with contextlib.suppress(OSError):  # a full disk
        os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps(said).encode())
    return descriptor


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        there = path.stat(follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(descriptor), there)

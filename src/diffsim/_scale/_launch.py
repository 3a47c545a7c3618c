"""Several processes on this machine, for a try."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import IO

from .._errors import ConfigError
from .._signals import caught
from .._streams import tell
from ._detect import COORDINATOR, PROCESS, PROCESSES
from ._gpus import VISIBLE, gpus
from ._watch import GRACE, LOST


def launch(words: Sequence[str], count: int) -> int:
    """`python -m diffsim.run` with `words` as `count` processes of this machine, which share out
    its GPUs if it has any: the exit code of the run. The first speaks for all; what another says is
    shown where it failed alone."""
    most = max(8, 4 * (os.cpu_count() or 1))
    if count > most:
        cause = "are more processes than this machine should bear"
        raise ConfigError(cause, key="scale.processes", value=count, allowed=f"1 to {most}")
    shares = _shares(count)
    address = f"127.0.0.1:{_free_port()}"
    with contextlib.ExitStack() as stack:
        said = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(count)]
        processes = []
        for index in range(count):
            given = {COORDINATOR: address, PROCESSES: str(count), PROCESS: str(index)}
            if shares is not None:
                given[VISIBLE] = shares[index]
            streams = {} if index == 0 else dict(stdout=subprocess.DEVNULL, stderr=said[index])
            command = [sys.executable, "-m", "diffsim.run", *words]
            processes.append(subprocess.Popen(command, env=os.environ | given, **streams))  # pyright: ignore
        with _passed_on(processes):
            codes = _ended(processes)
        return _verdict(codes, said)


def _ended(processes: Sequence[subprocess.Popen[bytes]]) -> list[int]:
    """Their exit codes; when one failed, the others have `GRACE` and a little to follow."""
    deadline: float | None = None
    while any(process.poll() is None for process in processes):
        time.sleep(0.05)
        if deadline is None and any(process.poll() for process in processes):
            deadline = time.monotonic() + GRACE + 30
        if deadline is not None and time.monotonic() > deadline:
            for process in processes:
                process.kill()
    return [process.wait() for process in processes]


def _verdict(codes: Sequence[int], said: Sequence[IO[str]]) -> int:
    for index, code in enumerate(codes):
        if index and code not in (codes[0], 0, LOST):
            said[index].seek(0)
            tell(said[index].read(), sys.stderr)
    if codes[0] < 0:
        tell(f"diffsim: process 0 was ended by signal {-codes[0]}\n", sys.stderr)
        return LOST
    return codes[0] or max((code if code > 0 else LOST for code in codes[1:] if code), default=0)


@contextlib.contextmanager
def _passed_on(processes: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    """SIGTERM goes to the processes; Ctrl-C and a terminal that hangs up reach them by themselves,
    and they end in their time."""

    def hand_on(signum: int, _: object) -> None:
        for process in processes:
            if process.poll() is None:
                process.send_signal(signum)

    how = {each: hand_on if each == signal.SIGTERM else lambda *_: None for each in caught()}
    before = {each: signal.signal(each, handler) for each, handler in how.items()}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def _shares(count: int) -> list[str] | None:
    """The GPUs of each process; None where there are none to share."""
    every = gpus()
    if not every:
        return None
    share = len(every) // count
    if share == 0:
        raise ConfigError(
            f"there are {len(every)} GPUs to share out",
            key="scale.processes",
            value=count,
            allowed=f"1 to {len(every)}, or JAX_PLATFORMS=cpu",
        )
    return [",".join(every[i * share : (i + 1) * share]) for i in range(count)]

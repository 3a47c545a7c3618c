"""A line to every peer, by which the end of one is known to the others at once.

Collectives wait for as long as it takes; a peer that was killed never comes. So every process keeps
a connection to process 0, over which a byte goes each second: a connection that closes without a
farewell, or that is silent for `SILENCE` seconds, is a peer lost.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from .._streams import tell

BEAT, SILENCE, GRACE = 1.0, 60.0, 60.0  # seconds
ALIVE, DONE, FAILED, OVER = b".", b"d", b"f", b"x"
LOST = 6  # the exit code of those whose peer was lost


class Watch:
    """Watches `lines` (peer's index -> connection) from a thread of its own."""

    def __init__(self, index: int, lines: dict[int, socket.socket]):
        self.index, self.lines = index, lines
        self.on_lost: Callable[[str], None] | None = None
        self.scratch: Path | None = None  # a folder that goes with this process
        self.left = False
        self.deadline: float | None = None
        self._failed: int = 0
        self._heard = dict.fromkeys(lines, time.monotonic())
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def leave(self, failed: bool = False) -> None:
        """Tell the peers that nobody need wait for this process from here on."""
        if not self.left:
            self.left = True
            self._tell(FAILED if failed else DONE)

    def _tell(self, what: bytes) -> None:
        for line in list(self.lines.values()):
            with contextlib.suppress(OSError):
                line.sendall(what)

    def _watch(self) -> None:
        while self.lines or (self.deadline is not None and not self.left):
            self._tell(ALIVE)
            ready, _, _ = select.select(list(self.lines.values()), [], [], BEAT)
            now = time.monotonic()
            for peer, line in list(self.lines.items()):
                if line in ready:
                    self._listen(peer, line)
                elif now - self._heard[peer] > SILENCE:
                    self._lose(peer, f"was silent for {SILENCE:.0f} s")
            if self.deadline is not None and now > self.deadline and not self.left:
                self._lose(self._failed, "failed alone")

    def _listen(self, peer: int, line: socket.socket) -> None:
        try:
            said = line.recv(4096)
        except OSError:
            said = b""
        self._heard[peer] = time.monotonic()
        if OVER in said:
            self._end()  # process 0 has said why
        if FAILED in said:
            self.deadline, self._failed = time.monotonic() + GRACE, peer
        if FAILED in said or DONE in said:
            del self.lines[peer]
        elif not said:
            self._lose(peer, "ended")

    def _lose(self, peer: int, how: str) -> None:
        self.lines.pop(peer, None)
        if self.left:
            return
        text = f"process {peer} {how} before its time; a run cannot go on without it"
        tell(f"diffsim: {text}; resume= goes on from the last restart\n", sys.stderr)
        self._tell(OVER)
        if self.on_lost is not None:
            with contextlib.suppress(Exception):
                self.on_lost(text)
        self._end()

    def _end(self) -> None:
        """At once: the main thread may be in a collective that nobody will ever end."""
        if self.scratch is not None:
            shutil.rmtree(self.scratch, ignore_errors=True)
        os._exit(LOST)


def listening(host: str) -> socket.socket:
    """Where peers may call: on the address by which they know process 0, if that is one of this
    machine's."""
    with contextlib.suppress(OSError):
        return socket.create_server((host, 0))
    return socket.create_server(("", 0))


def accepted(server: socket.socket, count: int, token: bytes) -> dict[int, socket.socket]:
    """The lines of the peers 1 to `count` - 1; strangers are turned away."""
    lines: dict[int, socket.socket] = {}
    server.settimeout(SILENCE)
    with server:
        while len(lines) < count - 1:
            line, _ = server.accept()
            line.settimeout(SILENCE)
            try:
                said = _exactly(line, len(token) + 4)
            except OSError:
                said = b""
            peer = int.from_bytes(said[-4:], "big")
            if said[:-4] != token or not 0 < peer < count or peer in lines:
                line.close()
                continue
            lines[peer] = line
    return lines


def called(host: str, port: int, token: bytes, index: int) -> dict[int, socket.socket]:
    """The line of peer `index` to process 0."""
    line = socket.create_connection((host, port), timeout=SILENCE)
    line.sendall(token + index.to_bytes(4, "big"))
    return {0: line}


def _exactly(line: socket.socket, count: int) -> bytes:
    said = b""
    while len(said) < count:
        more = line.recv(count - len(said))
        if not more:
            break
        said += more
    return said

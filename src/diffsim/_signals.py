"""Ctrl-C, SIGTERM and a terminal that hangs up, as a wish that the host's loop grants between two
chunks."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

from ._errors import Interrupted
from ._streams import tell

SIGNALS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))


class Signals:
    """While it is entered, the first SIGINT, SIGTERM or SIGHUP is kept in `asked`, for `check` to
    raise as `Interrupted`; the second ends the process at once, with exit code 128 + signal.
    `told` is called with the first at once, in a thread of its own. `nohup` keeps SIGHUP away.

    Python runs its handlers only when the main thread is back from XLA, which may take minutes in a
    compilation. So a thread of its own reads signals as they come, from Python's wake-up pipe.
    Outside the main thread nothing is caught.
    """

    def __init__(self, told: Callable[[int], None] | None = None) -> None:
        self.asked: int | None = None
        self._told = told
        self._before: dict[int, Any] = {}
        self._pipe: tuple[int, int] | None = None
        self._thread: threading.Thread | None = None
        self._wakeup = -1

    def check(self) -> None:
        """Raise `Interrupted` if the process was asked to stop."""
        if self.asked is not None:
            raise Interrupted(self.asked)

    def __enter__(self) -> Signals:
        if threading.current_thread() is not threading.main_thread():
            return self
        self._pipe = os.pipe()
        os.set_blocking(self._pipe[1], False)
        self._wakeup = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        for each in caught():
            self._before[each] = signal.signal(each, _do_nothing)
        self._thread = threading.Thread(target=self._read, args=self._pipe[:1], daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._pipe is None or self._thread is None:
            return
        for each, handler in self._before.items():
            signal.signal(each, handler)
        signal.set_wakeup_fd(self._wakeup)
        os.write(self._pipe[1], b"\0")  # the end, for the thread
        self._thread.join()
        for end in self._pipe:
            os.close(end)
        self._pipe = None

    def _read(self, pipe: int) -> None:
        while number := os.read(pipe, 1)[0]:
            if number not in SIGNALS:
                continue
            if self.asked is not None:
                os._exit(128 + number)
            self.asked = number
            if self._told is not None:
                self._told(number)
            tell("stopping at the next restart point; once more to quit at once\n", sys.stderr)


def caught() -> list[int]:
    """The signals that are not kept away from this process: `nohup` has it ignore SIGHUP."""
    kept_away = [each for each in SIGNALS[2:] if signal.getsignal(each) is signal.SIG_IGN]
    return [each for each in SIGNALS if each not in kept_away]


def _do_nothing(*_: object) -> None:
    """Without a handler of Python's the signal would end the process."""

"""Standard output and error, whose reader may be gone: `| head -1`, a terminal that was closed, a
disk that is full. What is said there is a view of a run, which goes on when nobody looks."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from typing import Any

GONE = 141  # 128 + SIGPIPE: how a command ends whose only product is what it says
_FOR_NOW = (errno.ENOSPC, errno.EDQUOT, errno.EAGAIN, errno.EINTR)


def tell(text: str, stream: Any) -> bool:
    """Write `text` to a stream; False where nobody has it. Where nobody ever will, the stream leads
    nowhere from then on, so that neither a later line nor the end of the process fails."""
    if stream is None:  # the process was started without it
        return False
    try:
        stream.write(_writable(text, stream))
        stream.flush()
    except OSError as error:
        if error.errno not in _FOR_NOW:
            _silence(stream)
        return False
    except ValueError:  # closed
        return False
    return True


class Outlet:
    """`tell` in the form of a file."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.encoding = getattr(stream, "encoding", None) or "utf-8"

    def write(self, text: str, /) -> int:
        tell(text, self._stream)
        return len(text)

    def flush(self) -> None:
        """Nothing is kept back."""

    def isatty(self) -> bool:
        try:
            return self._stream is not None and self._stream.isatty()
        except ValueError:  # closed
            return False

    def fileno(self) -> int:
        return self._stream.fileno()


def settle() -> None:
    """At the end of the process: what is still to be written is written, or forgotten."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            try:
                stream.flush()
            except (OSError, ValueError):
                _silence(stream)


def _silence(stream: Any) -> None:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


_ASCII = str.maketrans({"±": "+-", "×": "x", "…": "...", "−": "-", "–": "-", "Å": "A", "µ": "u"})


def _writable(text: str, stream: Any) -> str:
    """`text` in what the stream can encode."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        text.encode(encoding, getattr(stream, "errors", None) or "strict")
    except (UnicodeError, LookupError):
        return text.translate(_ASCII).encode("ascii", "replace").decode("ascii")
    return text

"""Room on the disk, taken before it is written to; and the errors that say that it is full."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from .frames import chunk_frames

SPARE = 1 << 14  # bytes for what describes an array, and for the file as a whole
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_WORDS = ("no space left on device", "disk quota exceeded", "file too large", "errno = 28")


def reserve(path: Path, end: int, arrays: Mapping[str, np.ndarray]) -> None:
    """Make sure that `arrays` can be written to the file behind `end` [bytes]: an `OSError` where
    the disk has no room for them, before anything of it is changed."""
    if not arrays or not hasattr(os, "posix_fallocate"):
        return
    need = SPARE
    for array in arrays.values():
        chunk = chunk_frames(array[:1].nbytes) * array[:1].nbytes  # arrays grow by whole ones
        need += SPARE + (1 + array.nbytes // chunk) * chunk
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.posix_fallocate(descriptor, end, need)
    finally:
        os.close(descriptor)


def is_full(error: BaseException | None) -> bool:
    """Whether an error, or one behind it, says that the disk is full."""
    while error is not None:
        known = isinstance(error, OSError) and error.errno in FULL
        if known or any(words in str(error).lower() for words in _WORDS):
            return True
        error = error.__cause__ or error.__context__
    return False

"""Files that are read: regular ones. A device may have no end, and a pipe waits for who writes."""

from __future__ import annotations

import os
import stat

NO_FILE = "is no regular file"


def unreadable(path: str | os.PathLike[str]) -> str | None:
    """Why the file at `path` is not read, None where it can be: opens nothing."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return "does not exist"
    except (OSError, ValueError) as error:  # ValueError: a null character in its name
        return f"cannot be read: {getattr(error, 'strerror', error)}"
    if stat.S_ISDIR(mode):
        return "is a folder, no file"
    return None if stat.S_ISREG(mode) else NO_FILE

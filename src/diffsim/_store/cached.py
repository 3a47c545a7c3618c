"""Arrays that take long to compute, kept between runs in the user's cache folder."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .._errors import ConfigError
from .._hdf5 import check_array, item, opened
from .json_text import to_json

LARGEST = 2**33  # bytes that an array may claim
MOST_PROGRAMS = 2**31  # bytes of compiled programs that are kept


def cache_folder() -> Path:
    """`$DIFFSIM_CACHE`, else `$XDG_CACHE_HOME/diffsim`, else where the platform keeps caches:
    `~/.cache/diffsim`, `~/Library/Caches/diffsim`, `%LOCALAPPDATA%\\diffsim`."""
    own, base = os.environ.get("DIFFSIM_CACHE"), os.environ.get("XDG_CACHE_HOME")
    if own:
        return Path(own)
    if not base and sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA")
    usual = "Library/Caches" if sys.platform == "darwin" else ".cache"
    return (Path(base) if base else Path.home() / usual) / "diffsim"


def programs_folder() -> Path | None:
    """Where compiled programs are kept: a folder for each kind of processor, as one's may not run
    on another. None where nothing can be written. Makes it, and drops what was not used for longest
    where it holds more than `MOST_PROGRAMS` bytes."""
    kind = platform.machine()
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        kind += next((line for line in file if line.startswith(("flags", "Features"))), "")
    folder = cache_folder() / "programs" / hashlib.sha256(kind.encode()).hexdigest()[:12]
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _prune(folder)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None


def _prune(folder: Path) -> None:
    files = [(path, path.stat()) for path in folder.iterdir() if path.is_file()]
    total = sum(stat.st_size for _, stat in files)
    for path, stat in sorted(files, key=lambda each: max(each[1].st_atime, each[1].st_mtime)):
        if total <= MOST_PROGRAMS:
            return
        path.unlink(missing_ok=True)
        total -= stat.st_size


def cached_arrays(
    kind: str, key: Mapping[str, Any], make: Callable[[], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """What `make` returns, computed once for each `key`: everything that the arrays follow from.

    The file appears as a whole, so that a run that is killed leaves none; one that cannot be read
    is made anew, and where nothing can be written nothing is kept.
    """
    text = to_json(key)
    name = hashlib.sha256(text.encode()).hexdigest()[:24]
    path = cache_folder() / f"{kind}-{name}.h5"
    found = _read(path, text)
    if found is None:
        found = make()
        _write(path, text, found)
    return found


def _read(path: Path, key: str) -> dict[str, np.ndarray] | None:
    try:
        with opened(path) as file:
            if file.attrs.get("key") != key:
                return None
            found = {name: item(file, name) for name in map(str, file)}
            for array in found.values():
                check_array(array, LARGEST)
            return {name: np.asarray(array[()]) for name, array in found.items()}
    except ConfigError:
        return None


def _write(path: Path, key: str, arrays: Mapping[str, np.ndarray]) -> None:
    import h5py

    partial = path.with_suffix(f".{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(partial, "w") as file:
            file.attrs["key"] = key
            for name, values in arrays.items():
                file.create_dataset(name, data=values)
        os.replace(partial, path)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink()

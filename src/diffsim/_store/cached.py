"""Arrays that take long to compute, kept between runs in the user's cache folder."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .json_text import to_json

LARGEST = 2**33  # bytes that an array may claim


def cache_folder() -> Path:
    """`$DIFFSIM_CACHE`, else `$XDG_CACHE_HOME/diffsim`, else `~/.cache/diffsim`."""
    own = os.environ.get("DIFFSIM_CACHE")
    if own:
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "diffsim"


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
    import h5py

    try:
        with h5py.File(path, "r") as file:
            if file.attrs.get("key") != key:
                return None
            arrays = {}
            for name, item in file.items():
                plain = isinstance(item, h5py.Dataset) and not (item.external or item.is_virtual)
                if not plain or item.dtype.kind not in "iuf" or item.nbytes > LARGEST:
                    return None
                arrays[name] = np.asarray(item[()])
            return arrays
    except OSError:
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

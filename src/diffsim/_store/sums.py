"""CRC-32 sums of the frames of a trajectory, by which a restart knows them again.

The file itself keeps none: HDF5 has checksums as filters alone, and a chunk that goes through
filters moves when it grows (see `frames`).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from .._errors import ConfigError
from .._hdf5 import check_file, opened

_BLOCK_BYTES = 2**24  # in memory at once


def added(rows: NDArray[Any], sum_before: int = 0) -> int:
    """The sum of what `sum_before` is the sum of, with `rows` behind it."""
    return zlib.crc32(np.ascontiguousarray(rows).data, sum_before)


def sum_of(dataset: h5py.Dataset, frames: int) -> int:
    """The sum of the first frames of an array, read in blocks."""
    frame_bytes = dataset.dtype.itemsize * int(np.prod(dataset.shape[1:], dtype=np.int64))
    block, total = max(1, _BLOCK_BYTES // max(1, frame_bytes)), 0
    for first in range(0, frames, block):
        total = added(dataset[first : min(first + block, frames)], total)
    return total


def changed(path: Path, meta: Mapping[str, Any]) -> str | None:
    """What is not in the trajectory at `path` as the restart with `meta` saw it, None where all is.

    Restarts of fits, and those from before there were sums, say nothing of it.
    """
    if "sums" not in meta:
        return None
    frames, sums = meta["frames"], meta["sums"]
    if not path.exists():
        return f"{path.name} is missing" if frames else None
    try:
        with opened(path, "resume") as file:
            check_file(file, claims=True)
            return next((f"{path.name} {each}" for each in _faults(file, frames, sums)), None)
    except ConfigError as error:
        return error.cause


def _faults(file: h5py.File, frames: int, sums: Mapping[str, int]) -> Iterator[str]:
    for name, expected in sums.items():
        dataset = file.get(name)
        if not isinstance(dataset, h5py.Dataset):
            yield f"holds no {name}"
        elif len(dataset) < frames:
            yield f"holds {len(dataset)} frames up to the restart, which saw {frames}"
        elif sum_of(dataset, frames) != expected:
            yield f"has changed in {name}"

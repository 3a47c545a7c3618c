"""Reads H5MD trajectories, foreign ones too: what points outside or claims too much is refused."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from .._errors import ConfigError

# A deflate stream of n bytes holds at most 1032 n; the filters here can shrink data no further.
_MOST_COMPRESSION = 1040
_KNOWN_FILTERS = {
    h5py.h5z.FILTER_DEFLATE,
    h5py.h5z.FILTER_SHUFFLE,
    h5py.h5z.FILTER_FLETCHER32,
    h5py.h5z.FILTER_LZF,
}


@dataclass(frozen=True)
class Series:
    """`value` `(F, ...)` at `step` `(F,)` and `time` `(F,)`, with their units in H5MD notation."""

    step: NDArray[np.int64]
    time: NDArray[np.float64]
    value: NDArray[Any]
    unit: str = ""
    time_unit: str = ""


@dataclass(frozen=True)
class Trajectory:
    """A trajectory in memory: particles `(F, N, D)` where there are any, observables by name."""

    positions: Series | None = None
    velocities: Series | None = None
    box: Series | None = None
    boundary: tuple[str, ...] = ()
    species: NDArray[Any] | None = None
    masses: NDArray[Any] | None = None
    observables: Mapping[str, Series] = field(default_factory=dict)


def read_trajectory(
    path: str | os.PathLike[str],
    *,
    particles: bool = True,
    limit_bytes: int = 4 * 2**30,
    key: str = "trajectory",
) -> Trajectory:
    """The H5MD trajectory at `path` as NumPy arrays.

    `particles=False` reads the observables alone. A file is refused with a `ConfigError` (about the
    configuration key `key`) where it is not HDF5, is damaged, keeps data in other files (external
    storage, virtual datasets, links), or claims more data than its size can hold or than
    `limit_bytes`.
    """
    path = Path(path)
    try:
        with h5py.File(path, "r") as file:
            return _Reader(file, path.stat().st_size, limit_bytes).trajectory(particles)
    except _RefusedError as error:
        cause, allowed = str(error), "a plain H5MD file"
    except (OSError, KeyError, RuntimeError, ValueError, TypeError) as error:
        cause, allowed = f"cannot be read: {_one_line(error)}", "an intact H5MD file"
    place = str(path)
    raise ConfigError(f"{place!r} {cause}", key=key, value=place, allowed=allowed)


class _RefusedError(Exception):
    """The file holds what is not read; the text says what."""


class _Reader:
    def __init__(self, file: h5py.File, file_bytes: int, limit_bytes: int) -> None:
        self._file, self._file_bytes, self._left = file, file_bytes, limit_bytes

    def trajectory(self, particles: bool) -> Trajectory:
        if not _has(self._file, "h5md"):
            raise _RefusedError("holds no H5MD trajectory (no group h5md)")
        observables = self._group(self._file, "observables")
        series = {} if observables is None else self._all_series(observables)
        every = self._group(self._file, "particles") if particles else None
        if every is None:
            return Trajectory(observables=series)
        if len(every) > 1:
            raise _RefusedError(f"holds {len(every)} groups of particles, one is read")
        for name in map(str, every):
            group = self._group(every, name)
            if group is not None:
                return self._particles(group, series)
        return Trajectory(observables=series)

    def _particles(self, group: h5py.Group, observables: dict[str, Series]) -> Trajectory:
        box = self._group(group, "box")
        boundary = (
            () if box is None else tuple(_text(b) for b in np.ravel(box.attrs.get("boundary", ())))
        )
        return Trajectory(
            positions=self._series(group, "position"),
            velocities=self._series(group, "velocity"),
            box=None if box is None else self._series(box, "edges"),
            boundary=boundary,
            species=self._species(group),
            masses=self._array(group, "mass") if _has(group, "mass") else None,
            observables=observables,
        )

    def _all_series(self, group: h5py.Group, prefix: str = "", depth: int = 0) -> dict[str, Series]:
        found: dict[str, Series] = {}
        for name in map(str, group):
            child = self._group(group, name)
            if child is None:
                continue
            if _has(child, "value"):
                series = self._series(group, name)
                if series is not None:
                    found[prefix + name] = series
            elif depth < 2:  # H5MD allows observables of a particle group one level down
                found.update(self._all_series(child, f"{prefix}{name}/", depth + 1))
        return found

    def _series(self, parent: h5py.Group, name: str) -> Series | None:
        group = self._group(parent, name)
        if group is None:
            return None
        step, time, value = (self._array(group, part) for part in ("step", "time", "value"))
        if step.ndim != 1 or time.shape != step.shape or value.shape[:1] != step.shape:
            raise _RefusedError(
                f"{group.name}: {step.shape} steps, {time.shape} times, {value.shape[:1]} values"
            )
        unit, time_unit = (_text(group[part].attrs.get("unit", "")) for part in ("value", "time"))
        return Series(step.astype(np.int64), time.astype(np.float64), value, unit, time_unit)

    def _species(self, group: h5py.Group) -> NDArray[Any] | None:
        if not _has(group, "species"):
            return None
        numbers = self._array(group, "species")
        dataset = group["species"]
        names = h5py.check_enum_dtype(dataset.dtype) if isinstance(dataset, h5py.Dataset) else None
        if names is None:
            return numbers
        by_number = {number: name for name, number in names.items()}
        return np.array([by_number.get(int(number), str(number)) for number in np.ravel(numbers)])

    def _group(self, parent: h5py.Group, name: str) -> h5py.Group | None:
        if not _has(parent, name):
            return None
        item = self._item(parent, name)
        return item if isinstance(item, h5py.Group) else None

    def _item(self, parent: h5py.Group, name: str) -> Any:
        if not isinstance(parent.get(name, getlink=True), h5py.HardLink):
            raise _RefusedError(f"{parent.name}/{name} is a link: data must lie in the file itself")
        return parent[name]

    def _array(self, parent: h5py.Group, name: str) -> NDArray[Any]:
        dataset = self._item(parent, name)
        if not isinstance(dataset, h5py.Dataset):
            raise _RefusedError(f"{parent.name}/{name} is not an array")
        self._check_storage(dataset)
        return np.asarray(dataset[()])

    def _check_storage(self, dataset: h5py.Dataset) -> None:
        name = dataset.name
        if dataset.is_virtual or dataset.external:
            raise _RefusedError(f"{name} keeps its data in another file")
        if dataset.dtype.kind not in "iufb":
            raise _RefusedError(f"{name} holds {dataset.dtype}, not numbers")
        plist = dataset.id.get_create_plist()
        filters = {plist.get_filter(i)[0] for i in range(plist.get_nfilters())}
        if not filters <= _KNOWN_FILTERS:
            raise _RefusedError(
                f"{name} is packed in a way that is not read (HDF5 filters {sorted(filters)})"
            )
        claimed = dataset.dtype.itemsize * int(np.prod(dataset.shape or (0,), dtype=object))
        if dataset.shape == ():
            claimed = dataset.dtype.itemsize
        chunk = dataset.dtype.itemsize * int(np.prod(dataset.chunks or (1,), dtype=object))
        held = min(dataset.id.get_storage_size(), self._file_bytes) * (
            _MOST_COMPRESSION if filters else 1
        )
        if claimed > held:
            raise _RefusedError(f"{name} claims {claimed} bytes, more than the file can hold")
        if max(claimed, chunk) > self._left:
            raise _RefusedError(
                f"{name} claims {max(claimed, chunk)} bytes, over the limit of what is read"
            )
        self._left -= claimed


def _has(parent: h5py.Group, name: str) -> bool:
    """Whether there is a link of that name; unlike `in`, this follows none."""
    return parent.get(name, getlink=True) is not None


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return str(value)[:200]


def _one_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)

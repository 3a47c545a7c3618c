"""Reads H5MD trajectories, foreign ones too: what points outside or claims too much is refused."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from .._hdf5 import RefusedError, check_array, check_file, item, opened


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
    with opened(path, key) as file:
        return _Reader(file, limit_bytes).trajectory(particles)


def datasets(path: str | os.PathLike[str]) -> dict[str, NDArray[Any]]:
    """Every array of numbers that lies in the file itself, by its place: for comparisons."""
    found: dict[str, NDArray[Any]] = {}

    def look(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.dtype.kind in "iufb":
            found[name] = np.asarray(item[()])

    with opened(path) as file:
        check_file(file, claims=True)
        file.visititems(look)
    return found


class _Reader:
    def __init__(self, file: h5py.File, limit_bytes: int) -> None:
        self._file, self._left = file, limit_bytes

    def trajectory(self, particles: bool) -> Trajectory:
        if not _has(self._file, "h5md"):
            raise RefusedError("holds no H5MD trajectory (no group h5md)")
        observables = self._group(self._file, "observables")
        series = {} if observables is None else self._all_series(observables)
        every = self._group(self._file, "particles") if particles else None
        if every is None:
            return Trajectory(observables=series)
        if len(every) > 1:
            raise RefusedError(f"holds {len(every)} groups of particles, one is read")
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
            raise RefusedError(
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
        found = item(parent, name)
        return found if isinstance(found, h5py.Group) else None

    def _array(self, parent: h5py.Group, name: str) -> NDArray[Any]:
        dataset = item(parent, name)
        if not isinstance(dataset, h5py.Dataset):
            raise RefusedError(f"{parent.name}/{name} is not an array")
        self._left -= check_array(dataset, self._left)
        return np.asarray(dataset[()])


def _has(parent: h5py.Group, name: str) -> bool:
    """Whether there is a link of that name; unlike `in`, this follows none."""
    return parent.get(name, getlink=True) is not None


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return str(value)[:200]

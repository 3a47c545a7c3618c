"""Series in an HDF5 file that grow together: hard links give them one `step` and one `time`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from .sums import added, sum_of

_CHUNK_BYTES = 256 * 1024
_CHUNK_FRAMES = 1024


def chunk_frames(frame_bytes: int) -> int:
    """Frames in a chunk of an array, by the size of one."""
    return int(np.clip(_CHUNK_BYTES // frame_bytes, 1, _CHUNK_FRAMES))


class Frames:
    """Groups `place/{step, time, value}` of one file with the same frames along the first axis."""

    def __init__(self, file: h5py.File) -> None:
        self._file = file
        self._step: h5py.Dataset | None = None
        self._time: h5py.Dataset | None = None
        self._values: dict[str, h5py.Dataset] = {}
        self._sums: dict[str, int] = {}

    def adopt(self, place: str) -> None:
        """Take up the group at `place`, written in an earlier session."""
        self._step = self._dataset(f"{place}/step")
        self._time = self._dataset(f"{place}/time")
        self._values[place] = self._dataset(f"{place}/value")

    def check(self, steps: NDArray[np.int64], arrays: Mapping[str, NDArray[Any]]) -> None:
        """Refuse what does not fit behind the frames that are there, before anything is written."""
        last = self.last_step
        if (np.diff(steps) <= 0).any() or (last is not None and steps[0] <= last):
            raise ValueError(f"steps must increase, after {last}: {steps[0]} ... {steps[-1]}")
        for place, array in arrays.items():
            if array.shape[:1] != steps.shape:
                raise ValueError(f"{place} has {array.shape[:1]} frames for {len(steps)} steps")
        if self._values and set(arrays) != set(self._values):
            changed = ", ".join(sorted(set(arrays) ^ set(self._values)))
            raise ValueError(f"every extend must bring the same series; missing or new: {changed}")
        for place, dataset in self._values.items():
            if dataset.shape[1:] != arrays[place].shape[1:]:
                raise ValueError(
                    f"{place} has {dataset.shape[1:]} a frame, not {arrays[place].shape[1:]}"
                )

    def append(
        self,
        steps: NDArray[np.int64],
        times: NDArray[np.float64],
        arrays: Mapping[str, NDArray[Any]],
        units: Mapping[str, str],
    ) -> None:
        """Append frames; `units` holds the unit of each place and that of `time`."""
        if self._step is None or self._time is None:
            self._step, self._time = self._create(arrays, units)
        start = len(self._step)
        new = [*(arrays[place] for place in self._values), times, steps]
        for (name, dataset), data in zip(self._arrays().items(), new, strict=True):
            rows = np.ascontiguousarray(data, dataset.dtype)
            dataset.resize(start + len(rows), axis=0)
            dataset[start:] = rows
            self._sums[name] = added(rows, self._sums.get(name, 0))

    def truncate(self, step: int) -> None:
        """Drop the frames after `step`, and any that a kill left half written."""
        if self._step is None or self._time is None:
            return
        arrays = self._arrays()
        steps = self._step[: min(map(len, arrays.values()))]
        out_of_order = np.flatnonzero(np.diff(steps) <= 0)
        if out_of_order.size:
            steps = steps[: out_of_order[0] + 1]
        frames = int(np.count_nonzero(steps <= step))
        for name, dataset in arrays.items():
            dataset.resize(frames, axis=0)
            self._sums[name] = sum_of(dataset, frames)

    @property
    def count(self) -> int:
        return 0 if self._step is None else len(self._step)

    @property
    def sums(self) -> dict[str, int]:
        """The sum of the frames in each array of the file."""
        return dict(self._sums)

    @property
    def last_step(self) -> int | None:
        return int(self._step[-1]) if self._step is not None and len(self._step) else None

    def _arrays(self) -> dict[str, h5py.Dataset]:
        """All arrays by their places, the steps last: what has a step is whole."""
        assert self._step is not None
        assert self._time is not None
        values = {f"{place}/value": dataset for place, dataset in self._values.items()}
        first = min(self._values)  # the others link to its steps and times
        return {**values, f"{first}/time": self._time, f"{first}/step": self._step}

    def _dataset(self, place: str) -> h5py.Dataset:
        dataset = self._file[place]
        if not isinstance(dataset, h5py.Dataset):
            raise ValueError(f"{place} is not an array")
        return dataset

    def _create(
        self, arrays: Mapping[str, NDArray[Any]], units: Mapping[str, str]
    ) -> tuple[h5py.Dataset, h5py.Dataset]:
        step = time = None
        for place, data in arrays.items():
            group = self._file.create_group(place)
            if step is None or time is None:
                step = _empty(group, "step", np.dtype(np.int64), ())
                time = _empty(group, "time", np.dtype(np.float64), (), units.get("time"))
            else:
                group["step"], group["time"] = step, time
            self._values[place] = _empty(
                group, "value", data.dtype, data.shape[1:], units.get(place)
            )
        assert step is not None
        assert time is not None
        return step, time


def _empty(
    group: h5py.Group,
    name: str,
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
    unit: str | None = None,
) -> h5py.Dataset:
    if dtype.kind not in "iufb" or 0 in shape:
        raise ValueError(f"{group.name}: cannot save {dtype} of shape {shape}")
    frame_bytes = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
    chunk = chunk_frames(frame_bytes)
    # No filters: a compressed chunk moves when it grows, and a kill on the way would lose frames
    # that were flushed before; this one is written again where it lies.
    dataset = group.create_dataset(
        name,
        shape=(0, *shape),
        maxshape=(None, *shape),
        dtype=dtype,
        chunks=(chunk, *shape),
    )
    if unit:
        dataset.attrs["unit"] = unit
    return dataset

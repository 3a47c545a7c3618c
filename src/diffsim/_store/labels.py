"""Names and coordinates for the series of a trajectory, as netCDF-4 and so xarray know them.

Every series gets a second name at the root of the file, by a hard link, and each of its axes an
HDF5 dimension scale there: `xarray.open_dataset("trajectory.h5", engine="h5netcdf")`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import h5py
import numpy as np

if TYPE_CHECKING:
    from .._simulation import Axis


def label(file: h5py.File, axes: Mapping[str, Sequence[Axis]]) -> None:
    """Label the observables of a file that has just got its first frames; one whose shape is not
    that of its axes stays as it is."""
    observables = file["observables"]
    assert isinstance(observables, h5py.Group)
    for name in map(str, observables):
        group = observables[name]
        value = group["value"]  # pyright: ignore[reportIndexIssue]
        known = tuple(axes.get(name, ()))
        assert isinstance(value, h5py.Dataset)
        if name in file or value.shape[1:] != tuple(len(axis.points) for axis in known):
            continue
        scales = [_time(file, group), *(_scale(file, axis) for axis in known)]
        if any(s.shape[0] != n for s, n in zip(scales[1:], value.shape[1:], strict=True)):
            continue  # the name of an axis is taken by another
        for i, scale in enumerate(scales):
            value.dims[i].attach_scale(scale)
            value.dims[i].label = str(scale.name).rpartition("/")[2]
        space = [axis for axis in known if axis.offset is not None]
        if space:
            value.attrs["offset"] = [axis.offset for axis in space]
            _mesh(file, space)
        file[name] = value


def mesh_name(axes: Sequence[str]) -> str:
    """Where the file has the positions of fields along these axes of space."""
    return "mesh/" + "_".join(axes)


def _time(file: h5py.File, group: object) -> h5py.Dataset:
    assert isinstance(group, h5py.Group)
    if "time" not in file:
        for name in ("time", "step"):
            file[name] = group[name]
        file["time"].make_scale("time")  # pyright: ignore[reportAttributeAccessIssue]
        file["step"].dims[0].attach_scale(file["time"])  # pyright: ignore
    return _dataset(file, "time")


def _scale(file: h5py.File, axis: Axis) -> h5py.Dataset:
    if axis.name not in file:
        points = np.asarray(axis.points)
        words = h5py.string_dtype() if points.dtype.kind == "U" else None
        made = file.create_dataset(
            axis.name, data=points.tolist() if words else points, dtype=words
        )
        made.make_scale(axis.name)
        if axis.offset is not None:
            made.attrs["offset"] = axis.offset
    return _dataset(file, axis.name)


def _mesh(file: h5py.File, space: Sequence[Axis]) -> None:
    """x(i, j, k) of every point: a ParaView that reads z as the quickest of the indices has to be
    told."""
    name = mesh_name([axis.name for axis in space])
    if len(space) > 1 and name not in file:
        along = np.meshgrid(*(np.asarray(axis.points) for axis in space), indexing="ij")
        file.create_dataset(name, data=np.stack(along, axis=-1).astype(np.float32))


def _dataset(file: h5py.File, name: str) -> h5py.Dataset:
    found = file[name]
    assert isinstance(found, h5py.Dataset)
    return found

"""The XDMF file beside a trajectory, by which ParaView and VisIt open the fields of a flow."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree as ET

import h5py
import numpy as np

from .._hdf5 import check_file, opened
from .json_text import write_atomically
from .labels import mesh_name

_GEOMETRY = {2: ("2DSMesh", "XY"), 3: ("3DSMesh", "XYZ")}


class _Field(NamedTuple):
    """A number at every point of a mesh, in each frame: one entry of the dataset `name`."""

    label: str
    name: str
    entry: tuple[int, ...]  # in the axes between time and space
    dataset: h5py.Dataset


def write_xdmf(trajectory: str | os.PathLike[str]) -> Path | None:
    """Write `trajectory.xdmf`, which describes to ParaView every field of a trajectory in two or
    three axes of space, and return its path; None where there is no such field.

    trajectory: a run's directory, or the HDF5 file itself; the new file has its name and must stay
        beside it, as nothing is copied.

    ParaView takes the last axis of an array for x. Fields are stored (time, …, x, y[, z]), so each
    comes as a curvilinear mesh with the positions of its points, and stands as in the simulation.
    Fields at the faces are a mesh of their own. Components of vectors have names of their own, as
    in `velocity_u`; of several conditions, `vorticity_0`.

    Raises `ConfigError` for a file that is missing or cannot be read.
    """
    path = Path(trajectory)
    path = path / "trajectory.h5" if path.is_dir() else path
    with opened(path, "trajectory") as file:
        check_file(file)
        document = _document(file, path.name)
    if document is None:
        return None
    side = path.with_suffix(".xdmf")
    ET.indent(document)
    write_atomically(side, ET.tostring(document, encoding="unicode", xml_declaration=True) + "\n")
    return side


def _document(file: h5py.File, file_name: str) -> ET.Element | None:
    meshes: dict[tuple[str, ...], list[_Field]] = {}
    for axes, field in _fields(file):
        meshes.setdefault(axes, []).append(field)
    if not meshes:
        return None
    document = ET.Element("Xdmf", Version="2.0")
    domain = ET.SubElement(document, "Domain")
    for axes, fields in meshes.items():
        _series(domain, file, file_name, axes, fields)
    return document


def _fields(file: h5py.File) -> Iterator[tuple[tuple[str, ...], _Field]]:
    """Every field of the file, with the names of its axes in space."""
    for name, dataset in file.items():
        if not isinstance(dataset, h5py.Dataset) or dataset.is_scale:
            continue
        labels = [str(dimension.label) for dimension in dataset.dims]
        ndim = np.size(np.asarray(dataset.attrs.get("offset", ())))
        if ndim not in _GEOMETRY:
            continue
        between = [_entries(file, each) for each in labels[1:-ndim]]
        for entry in np.ndindex(*map(len, between)):
            words = (own[i] for own, i in zip(between, entry, strict=True))
            label = "_".join((str(name), *words))
            yield tuple(labels[-ndim:]), _Field(label, str(name), entry, dataset)


def _entries(file: h5py.File, axis: str) -> list[str]:
    """What the entries of an axis are called."""
    scale: Any = file[axis]
    return [word.decode() if isinstance(word, bytes) else str(word) for word in scale[()]]


def _series(
    domain: ET.Element, file: h5py.File, file_name: str, axes: Sequence[str], fields: list[_Field]
) -> None:
    """The frames of all fields on one mesh."""
    collection = ET.SubElement(
        domain, "Grid", Name="_".join(axes), GridType="Collection", CollectionType="Temporal"
    )
    times: Any = file["time"]
    frames = min(len(times), *(len(field.dataset) for field in fields))
    mesh: Any = file[mesh_name(axes)]
    topology, geometry = _GEOMETRY[len(axes)]
    for frame, time in enumerate(times[:frames]):
        grid = ET.SubElement(collection, "Grid", Name="_".join(axes), GridType="Uniform")
        ET.SubElement(grid, "Time", Value=repr(float(time)))
        ET.SubElement(grid, "Topology", TopologyType=topology, Dimensions=_row(mesh.shape[:-1]))
        place = ET.SubElement(grid, "Geometry", GeometryType=geometry)
        _stored(place, mesh, f"{file_name}:/{mesh_name(axes)}")
        for field in fields:
            _attribute(grid, field, frame, len(axes), file_name)


def _attribute(grid: ET.Element, field: _Field, frame: int, ndim: int, file_name: str) -> None:
    shape = field.dataset.shape
    attribute = ET.SubElement(
        grid, "Attribute", Name=field.label, AttributeType="Scalar", Center="Node"
    )
    slab = ET.SubElement(
        attribute, "DataItem", ItemType="HyperSlab", Dimensions=_row(shape[-ndim:])
    )
    start = (frame, *field.entry, *(0,) * ndim)
    count = (*(1 for _ in shape[:-ndim]), *shape[-ndim:])
    selection = ET.SubElement(slab, "DataItem", Dimensions=f"3 {len(shape)}", Format="XML")
    selection.text = " ".join(map(_row, (start, (1,) * len(shape), count)))
    _stored(slab, field.dataset, f"{file_name}:/{field.name}")


def _stored(parent: ET.Element, dataset: h5py.Dataset, place: str) -> None:
    item = ET.SubElement(
        parent,
        "DataItem",
        Format="HDF",
        NumberType="Float",
        Precision=str(dataset.dtype.itemsize),
        Dimensions=_row(dataset.shape),
    )
    item.text = place


def _row(numbers: Sequence[int]) -> str:
    return " ".join(map(str, numbers))

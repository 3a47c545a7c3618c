"""Along what the fields of a flow run: names and coordinates, for the files that hold them."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._simulation import AbstractSimulation, Axis
from ._grid import AXES
from ._incompressible import IncompressibleFlow
from ._pdes import AbstractPDE
from ._probes import Probes
from ._spectral import SpectralFlow

Axes = tuple[Axis, ...]
COMPONENTS = "uvw"


def field_axes(simulation: AbstractSimulation) -> dict[str, Axes]:
    """The axes of each observable of a flow that is no single number."""
    match simulation:
        case IncompressibleFlow():
            return _staggered(simulation)
        case SpectralFlow():
            return _spectral(simulation)
        case AbstractPDE():
            return dict.fromkeys(simulation.names(), _points(simulation.points()))
    return {}


def _staggered(flow: IncompressibleFlow) -> dict[str, Axes]:
    grid = flow.grid
    centres = tuple(Axis(AXES[a], grid.centres(a), 0.5) for a in range(grid.ndim))
    component = _component(grid.ndim)
    found = {
        "velocity": (component, *centres),
        "momentum": (component,),
        **dict.fromkeys(("pressure", *(s.name for s in flow.scalars)), centres),
        **_spectrum(grid.shape),
    }
    if grid.ndim == 2:
        found |= {
            "vorticity": tuple(_faces(flow, a) for a in range(2)),
            "centreline_u": centres[1:],
            "centreline_v": centres[:1],
        }
    probes = [piece for piece in flow.extra if isinstance(piece, Probes)]
    return found | {piece.name: _probed(flow, piece, component) for piece in probes}


def _faces(flow: IncompressibleFlow, axis: int) -> Axis:
    """Of a periodic axis the upper face of each cell, else all faces."""
    faces, name = flow.grid.faces(axis), f"{AXES[axis]}_face"
    return Axis(name, faces[1:], 1.0) if flow.box.sides[axis] is None else Axis(name, faces, 0.0)


def _probed(flow: IncompressibleFlow, probes: Probes, component: Axis) -> Axes:
    places = probes.places(flow.box)
    return Axis(f"{probes.name}_point", np.arange(len(places))), component


def _spectral(flow: SpectralFlow) -> dict[str, Axes]:
    points, component = _points(flow.points()), _component(flow.grid.ndim)
    vorticity = points if len(points) == 2 else (Axis("axis", list(AXES)), *points)
    return {
        "velocity": (component, *points),
        "momentum": (component,),
        "vorticity": vorticity,
        "pressure": points,
        **_spectrum(flow.grid.shape),
    }


def _points(mesh: Any) -> Axes:
    along = [np.moveaxis(x, axis, 0).reshape(len(x), -1)[:, 0] for axis, x in enumerate(mesh)]
    return tuple(Axis(AXES[a], x, 0.0) for a, x in enumerate(along))


def _component(count: int) -> Axis:
    return Axis("component", list(COMPONENTS[:count]))


def _spectrum(shape: tuple[int, ...]) -> dict[str, Axes]:
    """In units of 2π/L, up to the corner of the modes."""
    largest = np.rint(np.linalg.norm([n // 2 for n in shape]))
    return {"spectrum": (Axis("wavenumber", np.arange(int(largest) + 1)),)}

"""Writes trajectories in H5MD 1.1 (HDF5): in pieces, readable after a kill, continued on resume."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsFloat, SupportsInt

import h5py
import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._errors import ConfigError
from .._hdf5 import check_file, opened
from .frames import Frames
from .h5md_unit import h5md_unit
from .labels import label
from .room import reserve

if TYPE_CHECKING:
    from .._simulation import Axis


class TrajectoryWriter:
    """Writes a trajectory file in H5MD 1.1, chunk after chunk.

    - `atoms`: number of particles N, 0 for a run without particles (observables alone).
    - `box`: edge lengths `(D,)` of a periodic cuboid, or the lattice vectors `(D, D)` in rows of a
      triclinic box [length], None for open space.
    - `species`: names or integers `(N,)`; `masses`: `(N,)` [mass].
    - `units`: `length`, `time`, `mass`, `velocity` and observables by their names, as in
      `angstrom`, `ps`, `J/mol`; what is absent has no unit, and the velocity's is made from length
      and time.
    - `axes`: of fields, what the axes of each observable are, so that xarray opens the file; see
      `labels`.
    - `particles`: name of the particle group. MDAnalysis reads one, and guesses N only from
      `trajectory`.
    - `resume_at`: continue the file of an earlier session behind the frames up to that step. Where
      there is no file yet, it is made.

    Particles and observables may be saved at different steps: give each its own `extend`.
    MDAnalysis attaches observables to frames by their index, so save them together where it shall
    read both. Arrays keep the precision they come in. Every `extend` ends with a flush, so that
    what it wrote survives a kill: save a restart only after the frames up to its step.

    Format: P. de Buyl et al., Comput. Phys. Commun. 185, 1546 (2014),
    doi:10.1016/j.cpc.2014.01.018.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        atoms: int = 0,
        box: ArrayLike | None = None,
        species: Sequence[str] | ArrayLike | None = None,
        masses: ArrayLike | None = None,
        units: Mapping[str, str] | None = None,
        creator: str = "diffsim",
        version: str = "",
        axes: Mapping[str, Sequence[Axis]] | None = None,
        particles: str = "trajectory",
        resume_at: int | None = None,
    ) -> None:
        self._units = {name: h5md_unit(unit) for name, unit in (units or {}).items()}
        self._atoms, self._axes = int(atoms), axes
        self._box = None if box is None else _edges(box)
        self._place = f"particles/{particles}"
        path = Path(path)
        if resume_at is None and path.exists():
            raise FileExistsError(f"{str(path)!r} exists")
        if not path.exists():
            self._begin(path, creator, version, species, masses)
        self._path, self._file = path, _open_to_append(path)
        self._moving, self._measured = Frames(self._file), Frames(self._file)
        try:
            if resume_at is not None:
                self._adopt(path)
                self.truncate(resume_at)
            self._file.flush()
        except BaseException:
            self._file.close()
            raise

    def _begin(
        self, path: Path, creator: str, version: str, species: Any, masses: ArrayLike | None
    ) -> None:
        """The file with its header appears as a whole, so that it can be read from the start."""
        partial = path.with_suffix(".part")
        with h5py.File(partial, "w") as self._file:
            self._write_header(creator, version)
            if self._atoms:
                self._write_particles(species, masses)
        os.replace(partial, path)

    def append(
        self,
        step: SupportsInt,
        time: SupportsFloat,
        positions: ArrayLike | None = None,
        velocities: ArrayLike | None = None,
        *,
        observables: Mapping[str, ArrayLike] | None = None,
        box: ArrayLike | None = None,
    ) -> None:
        """Append one frame: `positions` and `velocities` `(N, D)`, observables of any shape."""

        def frame(value: ArrayLike | None) -> NDArray[Any] | None:
            return None if value is None else np.asarray(value)[None]

        measured = {name: np.asarray(value)[None] for name, value in (observables or {}).items()}
        self.extend(
            [int(step)],
            [float(time)],
            frame(positions),
            frame(velocities),
            observables=measured,
            box=frame(box),
        )

    def extend(
        self,
        steps: ArrayLike,
        times: ArrayLike,
        positions: ArrayLike | None = None,
        velocities: ArrayLike | None = None,
        *,
        observables: Mapping[str, ArrayLike] | None = None,
        box: ArrayLike | None = None,
    ) -> None:
        """Append a chunk of F frames and flush.

        - `steps`: `(F,)`, increasing and after the last one; `times`: `(F,)` [time].
        - `positions`, `velocities`: `(F, N, D)` [length], [velocity]; None to append observables
          alone.
        - `observables`: name -> `(F, ...)`; a batch of conditions is a further axis.
        - `box`: `(F, D)` or `(F, D, D)` [length] where the box changes; the fixed one is repeated
          otherwise.
        """
        steps, times = np.asarray(steps, np.int64), np.asarray(times, np.float64)
        if steps.ndim != 1 or steps.shape != times.shape:
            raise ValueError(
                f"steps and times must be vectors of one length: {steps.shape}, {times.shape}"
            )
        if not len(steps):
            return
        moving = self._particle_arrays(len(steps), positions, velocities, box)
        measured = {
            f"observables/{name}": np.asarray(value) for name, value in (observables or {}).items()
        }
        for frames, arrays in ((self._moving, moving), (self._measured, measured)):
            if arrays:
                frames.check(steps, arrays)
        reserve(self._path, self._file.id.get_filesize(), moving | measured)
        fresh = measured and "observables" not in self._file
        for frames, arrays in ((self._moving, moving), (self._measured, measured)):
            if arrays:
                frames.append(steps, times, arrays, self._place_units(arrays))
        if fresh and self._axes is not None:
            label(self._file, self._axes)
        self._file.flush()

    def truncate(self, step: int) -> None:
        """Drop every frame after `step`, and any that a kill left half written."""
        self._moving.truncate(step)
        self._measured.truncate(step)
        self._file.flush()

    @property
    def last_step(self) -> int | None:
        """The last step in the file, None where it has no frame."""
        steps = [s for s in (self._moving.last_step, self._measured.last_step) if s is not None]
        return max(steps, default=None)

    @property
    def frames(self) -> int:
        """The number of frames in the file."""
        return max(self._moving.count, self._measured.count)

    @property
    def sums(self) -> dict[str, int]:
        """The CRC-32 sum of the frames in each array of the file, by its place."""
        return self._moving.sums | self._measured.sums

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> TrajectoryWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write_header(self, creator: str, version: str) -> None:
        head = self._file.create_group("h5md")
        head.attrs["version"] = np.array([1, 1], np.int32)
        head.create_group("author").attrs["name"] = (
            "unknown"  # H5MD asks for one; a run does not look for names
        )
        made = head.create_group("creator")
        made.attrs["name"], made.attrs["version"] = creator, version
        head.create_group("modules/units").attrs["version"] = np.array([1, 0], np.int32)

    def _write_particles(self, species: Any, masses: ArrayLike | None) -> None:
        group = self._file.create_group(self._place)
        box = group.create_group("box")
        dimension = 3 if self._box is None else len(self._box)
        box.attrs["dimension"] = dimension
        box.attrs["boundary"] = ["none" if self._box is None else "periodic"] * dimension
        if species is not None:
            values, dtype = _species(species)
            group.create_dataset("species", data=self._one_each("species", values), dtype=dtype)
        if masses is not None:
            mass = group.create_dataset("mass", data=self._one_each("masses", np.asarray(masses)))
            if unit := self._units.get("mass"):
                mass.attrs["unit"] = unit

    def _one_each(self, what: str, values: NDArray[Any]) -> NDArray[Any]:
        if values.shape != (self._atoms,):
            raise ValueError(f"{what} must have the shape ({self._atoms},), not {values.shape}")
        return values

    def _adopt(self, path: Path) -> None:
        for name in ("position", "velocity", "box/edges"):
            if f"{self._place}/{name}" in self._file:
                self._moving.adopt(f"{self._place}/{name}")
        position = self._file.get(f"{self._place}/position/value")
        if isinstance(position, h5py.Dataset) and position.shape[1] != self._atoms:
            cause = f"holds {position.shape[1]} particles, the run {self._atoms}"
            raise _refuse(path, cause, "the trajectory of the same run")
        edges = self._file.get(f"{self._place}/box/edges/value")
        if self._box is None and isinstance(edges, h5py.Dataset) and len(edges):
            self._box = np.asarray(edges[0])
        observables = self._file.get("observables")
        if isinstance(observables, h5py.Group):
            for name in observables:
                self._measured.adopt(f"observables/{name}")

    def _particle_arrays(
        self,
        frames: int,
        positions: ArrayLike | None,
        velocities: ArrayLike | None,
        box: ArrayLike | None,
    ) -> dict[str, NDArray[Any]]:
        if positions is None:
            if velocities is not None or box is not None:
                raise ValueError("velocities and boxes are saved together with positions")
            return {}
        arrays = {"position": np.asarray(positions)}
        if velocities is not None:
            arrays["velocity"] = np.asarray(velocities)
        for name, array in arrays.items():
            if not self._atoms or array.ndim != 3 or array.shape[1] != self._atoms:
                raise ValueError(
                    f"{name} must be (frames, {self._atoms} atoms, D), not {array.shape}"
                )
        edges = self._box if box is None else np.asarray(box, np.float64)
        if edges is not None:  # MDAnalysis reads edges frame by frame, also where they are fixed
            arrays["box/edges"] = (
                np.broadcast_to(edges, (frames, *edges.shape)) if box is None else edges
            )
        return {f"{self._place}/{name}": array for name, array in arrays.items()}

    def _place_units(self, arrays: Mapping[str, object]) -> dict[str, str]:
        length, time = self._units.get("length", ""), self._units.get("time", "")
        known = {
            "time": time,
            f"{self._place}/position": length,
            f"{self._place}/box/edges": length,
            f"{self._place}/velocity": self._units.get(
                "velocity", f"{length} {time}-1" if length and time else ""
            ),
        }
        known.update(
            {
                place: self._units.get(place.removeprefix("observables/"), "")
                for place in arrays
                if place not in known
            }
        )
        return known


def _open_to_append(path: Path) -> h5py.File:
    with opened(path, "resume") as file:
        check_file(file)
    try:
        return h5py.File(path, "r+")
    except OSError as error:
        raise _refuse(path, f"cannot be opened: {error}", "an intact trajectory, or none") from None


def _refuse(path: Path, cause: str, allowed: str) -> ConfigError:
    place = str(path)
    return ConfigError(f"{place!r} {cause}", key="resume", value=place, allowed=allowed)


def _edges(box: ArrayLike) -> NDArray[np.float64]:
    edges = np.asarray(box, np.float64)
    square = edges.ndim == 2 and edges.shape[0] == edges.shape[1]
    lengths = np.linalg.norm(edges, axis=-1) if square else edges
    if not (square or edges.ndim == 1) or not (np.isfinite(edges).all() and (lengths > 0).all()):
        raise ValueError(
            f"box must be edge lengths (D,) or vectors (D, D), positive and finite, not {edges}"
        )
    return edges


def _species(species: Any) -> tuple[NDArray[Any], Any]:
    values = np.asarray(species)
    if values.dtype.kind in "iu":
        return values, values.dtype
    names = sorted(set(map(str, values.tolist())))
    numbers = np.array([names.index(str(name)) for name in values.tolist()], np.int32)
    return numbers, h5py.enum_dtype({name: i for i, name in enumerate(names)}, basetype="i4")

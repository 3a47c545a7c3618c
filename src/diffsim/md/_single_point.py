"""Energies, forces and virials of given structures: what quantum chemistry delivers, as targets."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from .._errors import ConfigError
from .._files import unreadable
from .._simulation import AbstractSimulation
from ._box import Edges, check, members, of_vectors, triclinic, volume
from ._checks import check_atoms, check_start
from ._cubic import CubicCrystal
from ._dynamics import check_overlap
from ._potential import AbstractPotential
from ._units import UnitSystem, unit_system

KINDS = ("positions", "box", "energy", "forces", "virial")
QUANTITIES = {"potential_energy": "energy", "energy_per_atom": "energy", "forces": "force"}
QUANTITIES |= {"virial": "energy", "pressure": "pressure", "positions": "length"}

CRYSTAL = {"lattice_constant": "length", **dict.fromkeys(("C11", "C12", "C44"), "pressure")}


class Configuration(eqx.Module):
    """One structure: positions (atoms, 3), box (3,) or (3, 3), and its neighbours where a potential
    has some."""

    positions: Float[Array, "atoms 3"]
    box: Edges
    neighbours: Any = None


class SinglePoint(AbstractSimulation):
    """U(θ, x), F = -∂U/∂x and W = -dU(λx, λL)/dλ of structures that stay as they are.

    A simulation without motion, so that a `Problem` with `Schedule(steps=1)` fits energies, forces
    and virials, beside any other problem's targets: conditions are the structures, one each.
    `init(params, key, positions=, box=)` takes positions (atoms, 3) and box (3,), or (3, 3)
    lattice vectors [length].

    Observables: `potential_energy`, `energy_per_atom`, `forces` (atoms, 3), `virial` (for pair
    potentials Σ r·f; NaN where the potential has none) and `pressure`, of the virial alone. With a
    `crystal` also what that is at rest: `lattice_constant` [length] and `C11`, `C12`, `C44`
    [pressure]. These belong to the parameters and are the same of every structure: a target of
    them counts once a structure, with `weight` 1/structures once.

    **Arguments:** `potential`; `units`; `offset`: the name of a parameter, an energy an atom that
    is added, where references count from another zero; `crystal`: a `CubicCrystal`.
    """

    potential: AbstractPotential
    offset: str | None = eqx.field(static=True)
    unit_system: UnitSystem = eqx.field(static=True)
    crystal: CubicCrystal | None

    def __init__(
        self,
        potential: AbstractPotential,
        units: str | UnitSystem = "lj",
        offset: str | None = None,
        crystal: CubicCrystal | None = None,
    ):
        self.potential, self.unit_system, self.offset = potential, unit_system(units), offset
        self.crystal = crystal

    def traceable_init(self) -> bool:
        return not self.potential.allocates

    def units(self) -> dict[str, str]:
        named = QUANTITIES | self.potential.parameter_units()
        named |= {self.offset: "energy"} if self.offset else {}
        named |= CRYSTAL if self.crystal is not None else {}
        return {name: self.unit_system.unit_of(quantity) for name, quantity in named.items()}

    def check(self, params: PyTree, *, positions: Any, box: Any, **conditions: Any) -> None:
        del conditions
        if self.offset is not None and self.offset not in params:
            raise ConfigError("no such parameter", key="offset", value=self.offset, allowed=params)
        check_start({"positions": positions}, batched=True)
        check_atoms(self.potential, np.shape(positions)[-2])
        boxes = members(box, positions)
        for each in np.unique(boxes, axis=0):
            self.potential.check(self._own(params), each)
        for key, value in {"positions": positions, "box": box}.items():
            if not np.all(np.isfinite(np.asarray(value))):
                raise ConfigError("must be finite", key=key)
        check_overlap(np.asarray(positions), boxes)

    def _own(self, params: PyTree) -> PyTree:
        """The potential's parameters."""
        if self.offset is None:
            return params
        return {name: value for name, value in params.items() if name != self.offset}

    def init(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, params: PyTree, key: PRNGKeyArray, *, positions: Any, box: Any
    ) -> Configuration:
        del key
        check_start({"positions": positions})
        if not isinstance(box, Tracer):
            check(box)
        positions = jnp.asarray(positions)
        box = jnp.asarray(box, positions.dtype)
        neighbours = self.potential.allocate(self._own(params), positions, box)
        return Configuration(positions, box, neighbours)

    def step(self, params: PyTree, state: Configuration) -> Configuration:
        del params
        return state

    def observe(self, params: PyTree, state: Configuration) -> dict[str, Array]:
        given = self._own(params), state.positions, state.box, state.neighbours
        thermo, forces = self.potential.thermo(*given), self.potential.forces(*given)
        atoms = len(state.positions)
        energy = thermo.energy
        if self.offset is not None:
            energy = energy + atoms * params[self.offset]
        pressure = thermo.virial / (3 * volume(state.box)) * self.unit_system.pressure_factor
        return self._of_crystal(params) | {
            "potential_energy": energy,
            "energy_per_atom": energy / atoms,
            "forces": forces,
            "virial": thermo.virial,
            "pressure": pressure,
            "positions": state.positions,
        }

    def _of_crystal(self, params: PyTree) -> dict[str, Array]:
        if self.crystal is None:
            return {}
        found = self.crystal.measure(self.potential, self._own(params))
        factor = self.unit_system.pressure_factor
        elastic = {name: factor * getattr(found, name) for name in ("C11", "C12", "C44")}
        return {"lattice_constant": found.lattice_constant} | elastic


@dataclasses.dataclass(frozen=True, eq=False)
class Structures:
    """Frames of an extended xyz file with as many atoms each, and what was computed for them.

    positions: (frames, atoms, 3); box: (frames, 3), or (frames, 3, 3) where one is triclinic
    [length]; energy: (frames,) [energy]; forces: (frames, atoms, 3) [energy/length]; virial:
    (frames,) [energy], Σ r·f, minus the volume times the trace of ASE's stress; None where the file
    has none.
    """

    positions: Float[np.ndarray, "frames atoms 3"]
    box: Float[np.ndarray, "frames 3"] | Float[np.ndarray, "frames 3 3"]
    species: tuple[str, ...]
    energy: Float[np.ndarray, " frames"] | None
    forces: Float[np.ndarray, "frames atoms 3"] | None
    virial: Float[np.ndarray, " frames"] | None


def load_structures(path: str | Path, units: str | UnitSystem = "metal") -> Structures:
    """All frames of an extended xyz file, its numbers taken as eV and angstrom.

    Lattices whose vectors are not along the axes are turned, positions and forces with them, until
    a is along x and b in the plane of x and y. Raises ConfigError for a file that is missing or
    malformed, boxes that are flat or left-handed, and frames of different atoms, which no batch can
    hold: fit them as problems of their own.
    """
    path, system = Path(path), unit_system(units)
    frames = _frames(path)
    first = tuple(frames[0].get_chemical_symbols())
    for number, frame in enumerate(frames):
        if tuple(frame.get_chemical_symbols()) != first:
            raise _refuse(path, f"frame {number} has other atoms than frame 0")
    length, energy = (
        1.0 if system.reduced else system.convert(1.0, unit, quantity)
        for unit, quantity in (("angstrom", "length"), ("eV", "energy"))
    )
    boxes, turns = zip(
        *(_box(frame, number, path) for number, frame in enumerate(frames)), strict=True
    )
    if any(map(triclinic, boxes)):
        boxes = [each if triclinic(each) else np.diag(each) for each in boxes]
    every = lambda name: [_computed(frame, name) for frame in frames]  # noqa: E731
    return Structures(
        length * np.stack([_turned(f.positions, r) for f, r in zip(frames, turns, strict=True)]),
        length * np.stack(boxes),
        first,
        _scaled(every("energy"), energy),
        _scaled(list(map(_turned, every("forces"), turns)), energy / length),
        _scaled(every("virial"), energy),
    )


def structure_data(path: str | Path, name: str, units: str | UnitSystem = "metal") -> np.ndarray:
    """One array of `load_structures` by its name, as a configuration wants it."""
    if name not in KINDS:
        raise ConfigError("no such array", key="name", value=name, allowed=KINDS)
    values = getattr(load_structures(path, units), name)
    if values is None:
        raise _refuse(Path(path), f"has no {name} in every frame")
    return values


def _frames(path: Path) -> list[Any]:
    import ase.io

    if (cause := unreadable(path)) is not None:
        raise _refuse(path, cause)
    try:
        frames = ase.io.read(path, index=":", format="extxyz")
    except Exception as error:  # ase raises whatever its parser stumbles on
        raise _refuse(path, f"is not an extended xyz file ({error})") from error
    if not isinstance(frames, list) or not frames:
        raise _refuse(path, "holds no frame")
    return frames


def _box(frame: Any, number: int, path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        return of_vectors(np.asarray(frame.cell))
    except ConfigError as error:
        raise _refuse(path, f"frame {number} has a box that {error.cause}") from error


def _turned(vectors: Any, turn: np.ndarray) -> Any:
    """(atoms, 3) in the axes of the box; as they are where these are the file's."""
    return vectors if vectors is None or np.all(turn == np.eye(3)) else vectors @ turn


def _computed(frame: Any, name: str) -> Any:
    results = {} if frame.calc is None else frame.calc.results
    if name != "virial":
        return results.get(name)
    if "stress" in results:  # xx, yy, zz first
        return -frame.get_volume() * float(np.sum(np.asarray(results["stress"])[:3]))
    virial = frame.info.get("virial")
    return None if virial is None else float(np.trace(np.asarray(virial).reshape(3, 3)))


def _scaled(values: list[Any], factor: float) -> np.ndarray | None:
    if any(value is None for value in values):
        return None
    return factor * np.asarray(values, dtype=float)


def _refuse(path: Path, cause: str) -> ConfigError:
    return ConfigError(f"{path}: {cause}", key="structure")

"""Where a simulation starts: atoms on a lattice or from a file, and velocities drawn by Maxwell."""

import dataclasses
import io
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from .._errors import ConfigError
from .._files import unreadable
from .._units import convert
from ._box import Box, check, of_vectors, wrapped
from ._units import UnitSystem

if TYPE_CHECKING:
    import ase

# Coordinates of the sites of one cubic cell, in quarters of its edge.
SITES = {
    "sc": ((0, 0, 0),),
    "bcc": ((0, 0, 0), (2, 2, 2)),
    "fcc": ((0, 0, 0), (0, 2, 2), (2, 0, 2), (2, 2, 0)),
    "diamond": (
        *((0, 0, 0), (0, 2, 2), (2, 0, 2), (2, 2, 0)),
        *((1, 1, 1), (1, 3, 3), (3, 1, 3), (3, 3, 1)),
    ),
}
MOST_ATOMS = 2**31
AUTOMATIC = ("fcc", "bcc", "sc")  # the denser packing wins a tie


def lattice(
    atoms: int,
    *,
    density: float | None = None,
    box: Sequence[float] | Float[np.ndarray, "3"] | None = None,
    kind: str = "auto",
) -> tuple[Float[np.ndarray, "atoms 3"], Float[np.ndarray, "3"]]:
    """x = (n + s) a with s the sites of the cell: `atoms` on a crystal that fills the box.

    atoms: how many, N
    density: N/V [1/length³], for a cube; or
    box: edge lengths [length]
    kind: "sc", "bcc", "fcc", "diamond", or "auto", which takes the one of the first three that
        leaves the fewest sites empty: none for N = m³, 2m³ or 4m³ in a cube (250 is bcc, 256 fcc)

    Where N does not fill the crystal, the empty sites are spread evenly: each is the one farthest
    from those before it, images included. This takes a time of N times their number.

    Returns positions (N, 3) in [0, box) [length], no atom on the boundary, and box (3,) [length].
    """
    edges = _box(atoms, density, box)
    if kind != "auto" and kind not in SITES:
        raise ConfigError("no such lattice", key="kind", value=kind, allowed=("auto", *SITES))
    kinds = AUTOMATIC if kind == "auto" else (kind,)
    cells = {name: _cells(atoms, edges, len(SITES[name])) for name in kinds}
    name = min(cells, key=lambda name: len(SITES[name]) * int(np.prod(cells[name])))
    sites = np.transpose(SITES[name])
    # Coordinates along each axis, in quarters of a cell, of the cells (rows) and their sites.
    axes = [4 * np.arange(n)[:, None] + s for n, s in zip(cells[name], sites, strict=True)]
    occupied = _occupied(axes, 4 * cells[name], atoms)
    quarters = np.stack([grid[occupied] for grid in np.broadcast_arrays(*_spread(axes))], axis=-1)
    # Half of a quarter off the corner: rounding leaves every atom inside.
    return (quarters + 0.5) * (edges / (4 * cells[name])), edges


def _box(atoms: int, density: float | None, box: Sequence[float] | np.ndarray | None) -> np.ndarray:
    if not isinstance(atoms, int | np.integer) or atoms < 1:
        raise ConfigError("must be a positive whole number", key="atoms", value=atoms)
    if atoms >= MOST_ATOMS:
        cause = f"is more than the {MOST_ATOMS - 1} that 32 bits count"
        raise ConfigError(cause, key="atoms", value=atoms)
    if (density is None) == (box is None):
        raise ConfigError("a lattice takes either a density or a box", key="box", value=box)
    if density is not None:
        if not (math.isfinite(density) and density > 0):
            raise ConfigError("must be a positive number", key="density", value=density)
        return np.full(3, (atoms / density) ** (1 / 3))
    return _edges(box, "box")


def _edges(box: Sequence[float] | np.ndarray | None, key: str) -> np.ndarray:
    try:
        edges = np.asarray(box, dtype=float)
    except (TypeError, ValueError):
        edges = np.full(1, np.nan)
    if edges.shape != (3,) or not np.all(np.isfinite(edges) & (edges > 0)):
        raise ConfigError("must be three positive edge lengths", key=key, value=box)
    return edges


def _cells(atoms: int, edges: np.ndarray, sites: int) -> np.ndarray:
    """The number of cells along each edge: as cubic as the box allows, and enough of them."""
    cube = (np.prod(edges) * sites / atoms) ** (1 / 3)
    return np.maximum(1, np.ceil(edges / cube - 1e-9)).astype(int)


def _occupied(axes: list[np.ndarray], periods: np.ndarray, atoms: int) -> np.ndarray:
    """Which sites hold an atom: those left when each empty one keeps far from the others."""
    shape = np.broadcast_shapes(*(axis.shape for axis in _spread(axes)))
    occupied = np.ones(shape, dtype=bool)
    clear = np.full(shape, np.inf)
    for _ in range(occupied.size - atoms):
        empty = np.unravel_index(np.argmax(clear), shape)
        occupied[empty] = False
        squares = []
        for axis, period, cell in zip(axes, periods, empty[:3], strict=True):
            d = axis - axis[cell, empty[3]]
            squares.append((d - period * np.round(d / period)) ** 2)
        x, y, z = _spread(squares)
        np.minimum(clear, x + y + z, out=clear)
    return occupied


def _spread(axes: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Arrays (cells, sites) of the three axes, as they broadcast to (cells³, sites)."""
    x, y, z = axes
    return x[:, None, None], y[:, None], z


@dataclasses.dataclass(frozen=True, eq=False)
class Structure:
    """Atoms in a periodic box, as read from a file.

    positions: (N, 3) inside of the box [length]
    box: (3,) edge lengths, or (3, 3) lattice vectors in rows, lower triangular [length]
    species: N chemical symbols
    masses: (N,) [mass]
    """

    positions: Float[np.ndarray, "atoms 3"]
    box: Box
    species: tuple[str, ...]
    masses: Float[np.ndarray, "atoms"]


def load_structure(
    path: str | Path,
    *,
    box: Sequence[float] | Box | None = None,
    frame: int = -1,
    units: UnitSystem | None = None,
) -> Structure:
    """Atoms from an xyz or extended xyz file, wrapped into its periodic box.

    The box is the file's `Lattice`, or its second line `cell: 10 10 10` as NIST writes it, or
    `box` where the file has none. Whatever the file says of boundaries, all three are periodic.
    Masses are the file's, or else those of the elements. A lattice whose vectors are not along the
    axes is turned, its atoms with it, until a is along x and b in the plane of x and y.

    path: a file whose name ends in .xyz or .extxyz
    box: edge lengths, or lattice vectors (3, 3) [length], over the file's own
    frame: which one of several; the last by default
    units: what to convert the numbers to, taking those of the file as angstrom and dalton;
        reduced units, and None, leave them as they stand

    Raises ConfigError in one line for a file that is missing or malformed (with its line), and for
    a box that is missing, flat or left-handed.
    """
    path = Path(path)
    text = _read(path)
    atoms = _parse(text, path, frame)
    if box is not None:
        given, turn = check(box) if np.ndim(box) == 2 else _edges(box, "box"), np.eye(3)  # pyright: ignore
    else:
        given, turn = _file_box(atoms, text, path)
    positions, masses = np.asarray(atoms.positions), np.asarray(atoms.get_masses())
    if np.any(turn != np.eye(3)):
        positions = positions @ turn
    if len(atoms) == 0 or not np.all(np.isfinite(positions)):
        raise _malformed(path, "has no atoms" if len(atoms) == 0 else _bad_line(text))
    if units is not None and not units.reduced:
        given = given if box is not None else units.convert(given, "angstrom", "length")
        positions = units.convert(positions, "angstrom", "length")
        masses = units.convert(masses, "dalton", "mass")
    if given.ndim == 2:
        inside = np.asarray(wrapped(positions, given))
    else:
        inside = np.mod(positions, given)
        inside = np.where(inside < given, inside, 0.0)  # mod rounds -1e-17 up to the edge itself
    return Structure(inside, given, tuple(atoms.get_chemical_symbols()), masses)


def _read(path: Path) -> str:
    if path.suffix.lower() not in (".xyz", ".extxyz"):
        raise _malformed(path, "is not named .xyz or .extxyz")
    if (cause := unreadable(path)) is not None:
        raise _malformed(path, cause)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _malformed(path, "cannot be read") from error


def _parse(text: str, path: Path, frame: int) -> "ase.Atoms":
    import ase.io

    # NIST's second line reads as a key without a value to the extended parser.
    plain = _cell_line(text) is not None
    try:
        atoms = ase.io.read(io.StringIO(text), index=frame, format="xyz" if plain else "extxyz")
    except Exception as error:  # ase raises whatever its parser stumbles on
        raise _malformed(path, _bad_line(text)) from error
    assert isinstance(atoms, ase.Atoms)
    return atoms


def _cell_line(text: str) -> np.ndarray | None:
    second = text.split("\n", 2)[1:2]
    found = re.fullmatch(r"\s*cell:((?:\s+\S+){3})\s*", second[0]) if second else None
    if found is None:
        return None
    try:
        return np.array(found[1].split(), dtype=float)
    except ValueError:
        return np.full(3, np.nan)


def _file_box(atoms: "ase.Atoms", text: str, path: Path) -> tuple[np.ndarray, np.ndarray]:
    line = _cell_line(text)
    cell = np.diag(line) if line is not None else np.asarray(atoms.cell)
    if not np.any(cell):
        raise _malformed(path, "names no box: add Lattice=... to its second line, or give one")
    try:
        return of_vectors(cell)
    except ConfigError as error:
        raise _malformed(path, f"has a box that {error.cause}") from error


def _bad_line(text: str) -> str:
    """What is wrong in which line, as far as a plain reading of the file shows."""
    from ase.data import chemical_symbols

    lines = text.splitlines()
    for number, line in enumerate(lines[2:], start=3):
        fields = line.split()
        if len(fields) == 1 and fields[0].isdigit():  # the next frame
            break
        try:
            if fields and not all(math.isfinite(float(fields[k])) for k in (1, 2, 3)):
                raise ValueError
        except (ValueError, IndexError):
            return f"line {number} is not a symbol and three numbers: {line.strip()[:60]!r}"
        if fields and fields[0].capitalize() not in chemical_symbols and not fields[0].isdigit():
            return f"line {number}: {fields[0]!r} is not a chemical element"
    if not lines or not lines[0].strip().isdigit():
        return "line 1 is not the number of atoms"
    return "is not an xyz file, or holds no such frame"


def _malformed(path: Path, cause: str) -> ConfigError:
    return ConfigError(f"{path}: {cause}", key="structure")


def number_density(
    mass_density: float,
    molar_mass: float,
    units: UnitSystem,
    *,
    density_unit: str = "kg/m^3",
    mass_unit: str = "g/mol",
) -> float:
    """n = ρ/m [1/length³]: liquid argon's 1400 kg/m³ at 39.948 g/mol is 0.0211 per Å³."""
    return convert(
        mass_density / molar_mass,
        f"({density_unit})/({mass_unit})",
        units.unit_of("number_density"),
        key="density",
    )


def maxwell_velocities(
    key: Key[Array, ""],
    masses: Float[Array | np.ndarray, "atoms"],
    kT: float | Float[Array | np.ndarray, ""],
    *,
    zero_momentum: bool = True,
    exact: bool = False,
) -> Float[Array, "atoms 3"]:
    """v = √(kT/m) ξ with ξ ~ N(0, 1): velocities in equilibrium at kT.

    masses: (N,), in the simulation's own unit (the user's mass times `units.mass_factor`)
    kT: thermal energy [energy]; may be traced, so that states of different temperature are vmapped
    zero_momentum: subtract the velocity of the centre of mass, which leaves 3N - 3 degrees of
        freedom; ½ Σ m v² is then (3N - 3)/2 kT on average, and Σ m v vanishes to rounding
    exact: rescale so that ½ Σ m v² is that average itself, as for a start at a set temperature

    Returns velocities (N, 3) [√(energy/mass) = length/time], in the precision of `masses`.
    """
    mass = jnp.asarray(masses)[:, None]
    free = 3 * len(mass) - (3 if zero_momentum else 0)
    if exact and free == 0:
        raise ConfigError("one atom at rest has no temperature", key="exact")
    noise = jax.random.normal(key, (len(mass), 3), jnp.result_type(mass, 1.0))
    velocities = jnp.sqrt(kT / mass) * noise
    if zero_momentum:
        for _ in range(2):  # the second pass removes what rounding left
            velocities -= jnp.sum(mass * velocities, axis=0) / jnp.sum(mass)
    if exact:
        velocities *= jnp.sqrt(free * kT / jnp.sum(mass * velocities**2))
    return velocities.astype(noise.dtype)

"""What OpenMM's forces are made of: bonds, angles, dihedrals, pairs with shares, charges."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .._errors import ConfigError
from ._bonded import Angles, Bonds, Dihedrals
from ._box import sides, triclinic
from ._coulomb import Coulomb
from ._exclusions import Exclusions
from ._lennard_jones import LennardJones
from ._potential import AbstractPotential
from ._reciprocal import PME, AbstractReciprocal, Ewald
from ._units import UnitSystem

METHODS = ("NoCutoff", "CutoffNonPeriodic", "CutoffPeriodic", "Ewald", "PME", "LJPME")
SAME = 1e-6  # of σ: files of force fields carry seven digits or more
ROUNDING = 1e-12  # of a share
FEWEST = 12  # points of a mesh along an edge, for splines of order 6
NOWHERE = 0.1  # σ [nm] of what has none, and no ε either: it enters nothing

Rows = np.ndarray
Term = tuple[AbstractPotential, dict[str, np.ndarray]]  # its parameters in kJ/mol, nm, e, rad


def library() -> Any:
    try:
        return importlib.import_module("openmm")
    except ImportError:
        raise ConfigError(
            "needs OpenMM, which is not installed",
            key="system",
            suggestion="pip install openmm",
        ) from None


def plain(value: Any) -> Any:
    """The number in a quantity: in nm, ps, dalton, kJ/mol, e and rad, OpenMM's own units."""
    strip = getattr(value, "value_in_unit_system", None)
    return value if strip is None else strip(library().unit.md_unit_system)


def table(owner: Any, of: str, width: int) -> Rows:
    """What `getBondParameters` says of all bonds, (bonds, width); the like of angles, ..."""
    get, count = getattr(owner, f"get{of}Parameters"), getattr(owner, f"getNum{of}s")()
    rows = [[plain(value) for value in get(i)] for i in range(count)]
    return np.asarray(rows, float).reshape(-1, width)


def _kinds(rows: Rows) -> tuple[Rows, np.ndarray]:
    """The different rows, in the order in which they come, and which of them each row is."""
    _, first, which = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)
    return rows[first[order]], np.argsort(order)[which.reshape(-1)]


# Within molecules.


class Bonded(NamedTuple):
    """How a force of OpenMM says its terms: so many atoms each, then these numbers."""

    force: str
    of: str
    atoms: int
    numbers: tuple[str, ...]
    made: Callable[[Rows, Rows, np.ndarray], AbstractPotential]


BONDED = {
    "bonds": Bonded(
        "HarmonicBondForce", "Bond", 2, ("r0", "k"), lambda atoms, _, kinds: Bonds(atoms, kinds)
    ),
    "angles": Bonded(
        "HarmonicAngleForce",
        "Angle",
        3,
        ("theta0", "k"),
        lambda atoms, _, kinds: Angles(atoms, kinds),
    ),
    "dihedrals": Bonded(
        "PeriodicTorsionForce",
        "Torsion",
        4,
        ("periodicity", "phi0", "k"),
        lambda atoms, own, kinds: Dihedrals(atoms, own[:, 0], kinds),
    ),
}


def bonded(forces: list[Any], kind: Bonded) -> Term | None:
    """The terms of all forces of a class as one; None if there are none."""
    width = kind.atoms + len(kind.numbers)
    rows = np.concatenate([np.zeros((0, width)), *(table(f, kind.of, width) for f in forces)])
    if not len(rows):
        return None
    atoms, own = rows[:, : kind.atoms], rows[:, kind.atoms :]
    numbers, kinds = _kinds(own)
    return kind.made(atoms, own, kinds), dict(zip(kind.numbers, numbers.T, strict=True))


# Between them.


def nonbonded(
    force: Any, edges: np.ndarray, kind: UnitSystem, pairs: dict[str, Any]
) -> dict[str, Term]:
    """Lennard-Jones and Coulomb, as far as atoms have ε and charges."""
    atoms = table(force, "Particle", 3)
    _check_nonbonded(force, bool(np.any(atoms[:, 0])))
    kept = _shares(table(force, "Exception", 5), atoms)
    atoms[(atoms[:, 2] == 0) & (atoms[:, 1] == 0), 1] = NOWHERE
    numbers, species = _kinds(atoms)
    charge, sigma, epsilon = numbers.T
    cutoff = plain(force.getCutoffDistance())
    reach = kind.convert(cutoff, "nm", "length")
    found: dict[str, Term] = {}
    given: dict[str, Any]
    if np.any(epsilon):
        tail = bool(force.getUseDispersionCorrection())
        given = pairs | {"species": species, "exclusions": kept["lj"]}
        law = LennardJones(reach, "cut", tail, itself=True, **given)
        found["lj"] = law, {"epsilon": epsilon, "sigma": sigma}
    if np.any(charge):
        alpha, waves = _splitting(force, edges, cutoff)
        alpha = kind.convert(alpha, "1/nm", "1/length")
        given = pairs | {"alpha": alpha, "exclusions": kept["coulomb"], "units": kind}
        charges = Coulomb(reach, species, waves, **given)
        found["coulomb"] = charges, {"charge": charge}
    return found


def _check_nonbonded(force: Any, charged: bool) -> None:
    method = METHODS[force.getNonbondedMethod()]
    offsets = force.getNumParticleParameterOffsets() + force.getNumExceptionParameterOffsets()
    served = "nonbondedMethod=PME or Ewald"
    refused = (
        (method in METHODS[:2], f"{method} has no periodic box", f"{served}, or CutoffPeriodic"),
        (method == "LJPME", "LJPME sums the dispersion over waves", f"{served}, with its tail"),
        (
            charged and method == "CutoffPeriodic",
            "CutoffPeriodic puts charges into a reaction field",
            served,
        ),
        (
            force.getUseSwitchingFunction(),
            "switches Lennard-Jones off by a polynomial of r, which here is one of r²",
            "setUseSwitchingFunction(False)",
        ),
        (offsets > 0, "has parameter offsets", "their numbers in the parameters themselves"),
        (
            not force.getIncludeDirectSpace(),
            "leaves out direct space",
            "setIncludeDirectSpace(True)",
        ),
    )
    for wrong, cause, allowed in refused:
        if wrong:
            raise ConfigError(cause, key="NonbondedForce", allowed=allowed)


def _splitting(force: Any, edges: np.ndarray, cutoff: float) -> tuple[float, AbstractReciprocal]:
    """α [1/nm] and the waves or the mesh, as OpenMM derives them from its error tolerance."""
    tolerance = force.getEwaldErrorTolerance()
    alpha = math.sqrt(max(0.0, -math.log(2 * tolerance))) / cutoff
    edges, tilted = np.asarray(sides(edges)), triclinic(edges)
    if METHODS[force.getNonbondedMethod()] == "Ewald":
        if tilted:
            raise ConfigError(
                "Ewald's waves of a triclinic box are not derived here",
                key="NonbondedForce",
                allowed="nonbondedMethod=PME",
            )
        waves = max(_waves(alpha * edge, tolerance) for edge in edges.tolist())
        return alpha, Ewald(waves, 3 * waves**2 + 1)  # a cube of waves, its corners too
    own, *mesh = (plain(value) for value in force.getPMEParameters())
    if own == 0:
        mesh = np.ceil(2 * alpha * edges / (3 * tolerance**0.2)).astype(int).tolist()
    return own or alpha, PME([max(int(points), FEWEST) for points in mesh])


def _waves(width: float, tolerance: float) -> int:
    """The highest wave along an edge of `width` = αL."""
    error = lambda n: 0.05 * math.sqrt(width) * n * math.exp(-((math.pi * n / width) ** 2))  # noqa: E731
    count = 10
    while count > 0 and error(count) < tolerance:
        count -= 1
    count += 1
    while error(count) > tolerance:
        count += 1
    return max(1, count if count % 2 == 0 else count - 1)  # OpenMM's count is odd, 0 included


def _shares(exceptions: Rows, atoms: Rows) -> dict[str, Exclusions | None]:
    """Of each pair with an exception, which share of the atoms' own law it keeps."""
    pairs = exceptions[:, :2].astype(int)
    one, other = atoms[pairs[:, 0]], atoms[pairs[:, 1]]
    charge, sigma, epsilon = exceptions[:, 2:].T
    sizes = (one[:, 1] + other[:, 1]) / 2
    odd = (epsilon != 0) & (np.abs(sigma - sizes) > SAME * sizes)
    if np.any(odd):
        k = int(np.argmax(odd))
        raise _no_share(pairs[k], "σ", sigma[k], sizes[k])
    of_charges = _share(pairs, "q_i q_j", charge, one[:, 0] * other[:, 0])
    of_sizes = _share(pairs, "ε", epsilon, np.sqrt(one[:, 2] * other[:, 2]))
    return {"lj": _excluded(pairs, of_sizes), "coulomb": _excluded(pairs, of_charges)}


def _share(pairs: np.ndarray, what: str, given: np.ndarray, own: np.ndarray) -> np.ndarray:
    none = own == 0
    if np.any(none & (given != 0)):
        k = int(np.argmax(none & (given != 0)))
        raise _no_share(pairs[k], what, given[k], own[k])
    return np.where(none, 0, given / np.where(none, 1, own))


def _no_share(pair: np.ndarray, what: str, given: float, own: float) -> ConfigError:
    return ConfigError(
        f"the exception of atoms {pair[0]} and {pair[1]} has {what} = {given:g} where their own "
        f"is {own + 0.0:g}: that is no share of one law",
        key="NonbondedForce",
        allowed="exceptions with the atoms' own σ, and with any share of their ε and q_i q_j",
    )


def _excluded(pairs: np.ndarray, kept: np.ndarray) -> Exclusions | None:
    some = np.abs(kept - 1) > ROUNDING
    return Exclusions(pairs[some], kept[some]) if np.any(some) else None

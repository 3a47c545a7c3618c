"""A molecular force field as OpenMM has it, with every number a parameter."""

from __future__ import annotations

import os
from pathlib import Path as File
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._errors import ConfigError
from .._files import unreadable
from ._box import Box, of_vectors
from ._composite import Sum
from ._constraints import Constraints
from ._openmm_terms import BONDED, Term, bonded, library, nonbonded, plain, table
from ._pair_engines import Path, Precision
from ._units import GROMACS, UnitSystem, dimensional

SERVED = ("HarmonicBondForce", "HarmonicAngleForce", "PeriodicTorsionForce", "NonbondedForce")
# What moves or couples atoms is the ensemble's, not the force field's.
LEFT_OUT = (
    "CMMotionRemover",
    "AndersenThermostat",
    "MonteCarloBarostat",
    "MonteCarloAnisotropicBarostat",
    "MonteCarloMembraneBarostat",
    "MonteCarloFlexibleBarostat",
)


class ForceField(NamedTuple):
    """U(θ, x) and what a simulation starts with: what `from_openmm` returns.

    potential: the sum of `lj`, `coulomb`, `bonds`, `angles`, `dihedrals`, as far as there are any
    params: θ, as a fit names its parameters: `lj_epsilon`, `coulomb_charge`, `bonds_k`, ...; each
        (kinds,), and the kind of each atom or bond is the term's own, as in
        `potential.potentials["lj"].species` and `potential.potentials["bonds"].kinds`
    masses: (atoms,) [mass]
    box: (3,), or (3, 3) vectors in rows [length]
    constraints: rigid distances; None where there are none
    """

    potential: Sum
    params: dict[str, Array]
    masses: Float[np.ndarray, " atoms"]
    box: Box
    constraints: Constraints | None


def from_openmm(
    system: Any,
    *,
    units: str | UnitSystem = "gromacs",
    precision: Precision = "state",
    path: Path = "auto",
    skin: float | None = None,
) -> ForceField:
    """U = Σ ½k(r - r₀)² + Σ ½k(θ - θ₀)² + Σ k[1 + cos(nφ - φ₀)] + Σ_{i<j} (4ε[(σ/r)¹² - (σ/r)⁶] +
    q_i q_j/(4πε₀r)) as an `openmm.System` has it, each number a parameter that can be fitted.

        ff = ds.md.from_openmm(system)
        sim = ds.md.NVE(ff.potential, 0.002, units="gromacs", constraints=ff.constraints)
        state = sim.init(ff.params, key, positions=x, box=ff.box, masses=ff.masses, temperature=300)

    system: an `openmm.System`, whoever made it, or the path of one that `XmlSerializer` wrote
    units: the system of units of the result: "gromacs" (kJ/mol, nm, ps), "real" or "metal"
    precision, path, skin: of the pairs, as in `LennardJones`

    Atoms with the same (ε, σ, q) are one kind, and so are bonds with the same (k, r₀), angles with
    the same (k, θ₀), torsions with the same (n, k, φ₀), numbered as they first come; to fit some of
    them apart, give them numbers that differ. σ_ab = (σ_a + σ_b)/2 and ε_ab = √(ε_a ε_b).

    Taken from the `NonbondedForce`: cutoff, dispersion correction, splitting of the charges, waves
    or mesh, all as OpenMM derives them from its error tolerance. Energies and forces are those of
    its Reference platform to rounding, but for PME: splines here are of order 6, OpenMM's of order
    5, and both are as near to the exact sum as that tolerance. Exceptions become shares of the
    atoms' own law, of Lennard-Jones and of charges apart, so that they follow a fit; where a pair
    of atoms has no charge, or no ε, its share cannot be seen, and is 0. Distances within a
    molecule are those of nearest images, where OpenMM takes positions as they are: the same for
    molecules that are whole and smaller than half the box, whose exceptions reach no farther than
    the cutoff.

    Rigid bonds are `constraints`. Thermostats, barostats and the remover of the centre's motion
    are left out on purpose: what they do is the ensemble's (`NVT`, `NPT`). Everything else is
    refused with a ConfigError that names it: other forces, virtual sites, atoms without mass,
    no periodic box, Ewald's sum in a triclinic one, a reaction field with charges, LJPME, a
    switching function, parameter offsets, and exceptions that are no share of the atoms' own
    numbers.
    """
    kind = dimensional(units)
    given = _system(system)
    forces = _forces(given)
    edges = _box(given)
    pairs = dict(precision=precision, path=path, skin=skin)
    found: dict[str, Term] = {}
    for force in forces["NonbondedForce"]:
        found |= nonbonded(force, edges, kind, pairs)
    for name, each in BONDED.items():
        if (term := bonded(forces[each.force], each)) is not None:
            found[name] = term
    params = {
        f"{name}_{key}": jnp.asarray(kind.convert(numbers[key], GROMACS.unit_of(of), of))
        for name, (term, numbers) in found.items()
        for key, of in term.parameter_units().items()
    }
    potential = Sum({name: term for name, (term, _) in found.items()})
    box = kind.convert(edges, "nm", "length")
    potential.check(params, box)
    return ForceField(potential, params, _masses(given, kind), box, _constraints(given, kind))


def _system(system: Any) -> Any:
    if isinstance(system, (str, os.PathLike)):
        return _deserialised(File(system))
    if getattr(system, "getNumForces", None) is None:
        raise ConfigError(
            f"is no System of OpenMM but a {type(system).__name__}",
            key="system",
            allowed="an openmm.System, or the path of one that openmm.XmlSerializer wrote",
        )
    return system


def _deserialised(path: File) -> Any:
    if (cause := unreadable(path)) is not None:
        raise ConfigError(f"{path}: {cause}", key="system")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read", key="system") from error
    if "PythonForce" in text:  # which OpenMM would unpickle: a file may not bring code along
        raise _unserved("PythonForce")
    openmm = library()
    try:
        found = openmm.XmlSerializer.deserialize(text)
    except Exception as error:  # OpenMM's own, of whatever its parser meets
        found, cause = None, next(iter(str(error).splitlines()), "")[:200]
    else:
        cause = f"holds a {type(found).__name__}"
    if getattr(found, "getNumForces", None) is None:
        raise ConfigError(
            f"{path}: {cause}", key="system", allowed="what openmm.XmlSerializer.serialize(system)"
        )
    return found


def _forces(system: Any) -> dict[str, list[Any]]:
    """The forces that are served, by the name of their class."""
    found: dict[str, list[Any]] = {name: [] for name in SERVED}
    for force in (system.getForce(i) for i in range(system.getNumForces())):
        name = type(force).__name__
        if name not in (*SERVED, *LEFT_OUT):
            raise _unserved(name)
        found.setdefault(name, []).append(force)
    if len(found["NonbondedForce"]) > 1:
        raise ConfigError(
            f"there are {len(found['NonbondedForce'])} of it", key="NonbondedForce", allowed="one"
        )
    return found


def _unserved(name: str) -> ConfigError:
    return ConfigError("has no counterpart here", key=name, allowed=SERVED, suggestion="")


def _box(system: Any) -> np.ndarray:
    """The edges, or the vectors where they lean [nm]."""
    if not system.usesPeriodicBoundaryConditions():
        raise ConfigError(
            "has no periodic box",
            key="system",
            allowed="nonbondedMethod=PME, Ewald or CutoffPeriodic in createSystem",
        )
    vectors = np.asarray([plain(v) for v in system.getDefaultPeriodicBoxVectors()], float)
    return of_vectors(vectors)[0]  # which OpenMM has as they are here: nothing is turned


def _masses(system: Any, kind: UnitSystem) -> np.ndarray:
    count = system.getNumParticles()
    for i in range(count):
        if system.isVirtualSite(i):
            raise ConfigError(
                f"atom {i} is a virtual site, which has no motion of its own",
                key="system",
                allowed="models whose sites are all atoms: TIP3P, SPC/E",
            )
    masses = np.asarray([plain(system.getParticleMass(i)) for i in range(count)], float)
    if np.any(masses <= 0):
        raise ConfigError(
            f"atom {int(np.argmax(masses <= 0))} has no mass: OpenMM keeps it in its place",
            key="system",
            allowed="setParticleMass with a positive mass",
        )
    return kind.convert(masses, "dalton", "mass")


def _constraints(system: Any, kind: UnitSystem) -> Constraints | None:
    held = table(system, "Constraint", 3)
    if not len(held):
        return None
    return Constraints(held[:, :2].astype(int), kind.convert(held[:, 2], "nm", "length"))

"""Fitted potentials as an OpenMM force field."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree import ElementTree as xml

import numpy as np
from jaxtyping import PyTree

from .._errors import ConfigError, nearest
from ._exported import check_kinds, check_parameters
from ._lennard_jones import LennardJones
from ._openmm_pairs import custom, in_openmm, nonbonded, tail
from ._openmm_water import water
from ._pair import Pair
from ._potential import AbstractPotential
from ._units import UnitSystem, dimensional
from ._water import Water


def to_openmm(
    potential: AbstractPotential,
    params: PyTree,
    *,
    units: str | UnitSystem,
    kinds: Sequence[str] = ("Ar",),
    model: str = "SPC/E",
) -> str:
    """A force field for `openmm.app.ForceField`: of a `LennardJones` or `Pair` with one residue for
    each kind of atom, named as its chemical symbol in `kinds`; of a `Water` with the residue HOH,
    its atoms O, H1, H2.

    Lennard-Jones that is plainly cut is a `NonbondedForce`; every other law and truncation a
    `CustomNonbondedForce` with the same formula. A tail is OpenMM's dispersion correction where
    that counts as the potential does, of one kind of atom or with `itself=True`; elsewhere a
    `CustomVolumeForce` of c/V (OpenMM 8.2 or later), which a script in the force field adds for the
    atoms of the topology. `createSystem` wants `nonbondedMethod=CutoffPeriodic` and the cutoff as
    `nonbondedCutoff`, which the force field cannot hold. Energies then agree to rounding.

    Water is charges in a `NonbondedForce`, with springs if it is flexible: give `createSystem`
    `nonbondedMethod=PME`, whose splitting and `ewaldErrorTolerance` are OpenMM's own, and for a
    flexible one `rigidWater=False`. A rigid one has the geometry of `model`, as in `rigid_water`.

    `units`: the system of the parameters; they become kJ/mol and nm. Exclusions are OpenMM's own:
    bonds of a topology. The way back is `from_openmm`, of a `NonbondedForce` whose tail is
    OpenMM's. Refused with a ConfigError: other potentials, parameters that are not the potential's,
    `kinds` that are not one symbol for each.
    """
    system = dimensional(units)
    if not isinstance(potential, (LennardJones, Pair, Water)):
        raise ConfigError(
            f"{type(potential).__name__} has no force field of OpenMM here",
            key="potential",
            allowed="LennardJones, Pair, Water",
        )
    check_parameters(potential, params)
    root = xml.Element("ForceField")
    if isinstance(potential, Water):
        water(root, potential, params, system, model)
    else:
        check_kinds(potential, params, kinds)
        _pairs(root, potential, params, system, kinds)
    xml.indent(root)
    return xml.tostring(root, encoding="unicode") + "\n"


def _pairs(
    root: xml.Element,
    potential: LennardJones | Pair,
    params: PyTree,
    system: UnitSystem,
    kinds: Sequence[str],
) -> None:
    _topology(root, kinds)
    own = False  # whether the tail is OpenMM's
    if isinstance(potential, LennardJones) and _plain(potential, params):
        own = potential.tail and (potential.itself or len(kinds) == 1)
        _nonbonded(root, params, system, kinds, own)
    else:
        custom(root, potential, params, system, kinds)
    if potential.tail and not own:
        tail(root, potential, params, system, kinds)


def _plain(potential: LennardJones, params: PyTree) -> bool:
    """Whether σ and ε of each kind of atom tell all, as in a `NonbondedForce`."""
    mixes = potential.truncation == "cut" and potential.mixing == "lorentz_berthelot"
    return mixes and all(np.ndim(v) < 2 for v in params.values())


def _topology(root: xml.Element, kinds: Sequence[str]) -> None:
    from ase.data import atomic_masses, atomic_numbers

    for symbol in kinds:
        if not atomic_numbers.get(symbol):  # ASE has an X of number 0
            raise ConfigError(
                "is no chemical symbol",
                key="kinds",
                value=symbol,
                allowed="symbols of the elements",
                suggestion=nearest(symbol, list(atomic_numbers)[1:]),
            )
    types, residues = xml.SubElement(root, "AtomTypes"), xml.SubElement(root, "Residues")
    for symbol in kinds:
        mass = f"{atomic_masses[atomic_numbers[symbol]]:.6g}"
        given = {"name": symbol, "class": symbol, "element": symbol, "mass": mass}
        xml.SubElement(types, "Type", given)
        residue = xml.SubElement(residues, "Residue", {"name": symbol})
        xml.SubElement(residue, "Atom", {"name": symbol, "type": symbol})


def _nonbonded(
    root: xml.Element, params: PyTree, system: UnitSystem, kinds: Sequence[str], corrected: bool
) -> None:
    def of_kind(name: str, quantity: str) -> np.ndarray:
        values = np.broadcast_to(np.asarray(params[name], float), len(kinds))
        return in_openmm(values, quantity, system)

    sigma, epsilon = of_kind("sigma", "length"), of_kind("epsilon", "energy")
    nonbonded(root, kinds, np.zeros(len(kinds)), sigma, epsilon, corrected)

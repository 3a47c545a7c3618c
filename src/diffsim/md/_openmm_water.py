"""Water as an OpenMM force field."""

from __future__ import annotations

from xml.etree import ElementTree as xml

import numpy as np
from jaxtyping import PyTree

from ._lennard_jones import LennardJones
from ._openmm_pairs import custom, in_openmm, nonbonded, tail
from ._units import UnitSystem, unit_system
from ._water import MASSES, Water, water_parameters

TYPES = ("HOH-O", "HOH-H")
SITES = (("O", 0), ("H1", 1), ("H2", 1))


def water(
    root: xml.Element, potential: Water, params: PyTree, system: UnitSystem, model: str
) -> None:
    """The residue HOH with its springs, charges and Lennard-Jones between oxygens."""
    _residue(root)
    _springs(root, potential, params, system, model)
    of_terms = potential._expanded(params)
    law = potential.terms_of.potentials["lj"]
    assert isinstance(law, LennardJones)
    plain = law.truncation == "cut"
    depth = in_openmm(float(params["epsilon"]), "energy", system) if plain else 0.0
    sigma = in_openmm(float(params["sigma"]), "length", system)
    # The tail is of oxygens alone, n_O²: OpenMM's counts n_O (n_O + 1).
    charges = np.asarray(of_terms["coulomb"]["charge"], float)
    nonbonded(root, TYPES, charges, (sigma, sigma), (depth, 0.0), corrected=False)
    if not plain:
        custom(root, law, of_terms["lj"], system, TYPES)
    if law.tail:
        tail(root, law, of_terms["lj"], system, TYPES)


def _residue(root: xml.Element) -> None:
    types, residues = xml.SubElement(root, "AtomTypes"), xml.SubElement(root, "Residues")
    for kind, mass in zip(TYPES, MASSES[:2], strict=True):
        given = {"name": kind, "class": kind, "element": kind[-1], "mass": repr(mass)}
        xml.SubElement(types, "Type", given)
    residue = xml.SubElement(residues, "Residue", {"name": "HOH"})
    for name, kind in SITES:
        xml.SubElement(residue, "Atom", {"name": name, "type": TYPES[kind]})
    for name, _ in SITES[1:]:
        xml.SubElement(residue, "Bond", {"atomName1": "O", "atomName2": name})


def _springs(
    root: xml.Element, potential: Water, params: PyTree, system: UnitSystem, model: str
) -> None:
    """Of a rigid one too: `createSystem` takes the distances that it holds from them."""
    if not potential.flexible:
        system = unit_system("gromacs")
        params = water_parameters(model, system, flexible=True)
    oxygen, hydrogen = TYPES
    k = in_openmm(float(params["bond_k"]), "energy/length^2", system)
    length = in_openmm(float(params["bond_r0"]), "length", system)
    bond = {"class1": oxygen, "class2": hydrogen, "length": repr(length), "k": repr(k)}
    xml.SubElement(xml.SubElement(root, "HarmonicBondForce"), "Bond", bond)
    angle = {"class1": hydrogen, "class2": oxygen, "class3": hydrogen}
    angle["angle"] = repr(float(params["angle_theta0"]))
    angle["k"] = repr(in_openmm(float(params["angle_k"]), "energy", system))
    xml.SubElement(xml.SubElement(root, "HarmonicAngleForce"), "Angle", angle)

"""Fitted pair potentials as an OpenMM force field."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree as xml

import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .._errors import ConfigError
from .._units import convert
from ._lammps import of_kinds
from ._lennard_jones import LennardJones
from ._pair import Pair
from ._pair_laws import (
    AbstractPairLaw,
    Buckingham,
    InversePower,
    Mie,
    Morse,
    SoftSphere,
    Tabulated,
    Yukawa,
)
from ._units import GROMACS, QUANTITIES, UnitSystem, dimensional

# φ of the laws in OpenMM's language; capitals with p are tables over pairs of kinds.
_LAWS: dict[type, str] = {
    LennardJones: "4*pepsilon*((psigma/r)^12-(psigma/r)^6)",
    Mie: "pn/(pn-pm)*(pn/pm)^(pm/(pn-pm))*pepsilon*((psigma/r)^pn-(psigma/r)^pm)",
    Morse: "pepsilon*((1-exp(-palpha*(r-pr0)))^2-1)",
    InversePower: "pepsilon*(psigma/r)^pn",
    SoftSphere: "pepsilon/palpha*max(0,1-r/psigma)^palpha",
    Yukawa: "pA*exp(-pkappa*r)/r",
    Buckingham: "select(step(r-ptop),pA*exp(-r/prho)-pC/r^6,pvalue+0.5*pbend*(r-ptop)^2)",
    Tabulated: "table(r)",
}


def to_openmm(
    potential: LennardJones | Pair,
    params: PyTree,
    *,
    units: str | UnitSystem,
    kinds: Sequence[str] = ("Ar",),
) -> str:
    """A force field for `openmm.app.ForceField`, with one residue for each kind of atom, named as
    its chemical symbol.

    Lennard-Jones that is plainly cut is a `NonbondedForce`, its tail OpenMM's dispersion
    correction; every other law and truncation a `CustomNonbondedForce` with the same formula.
    `createSystem` wants `nonbondedMethod=CutoffPeriodic` and the cutoff as `nonbondedCutoff`, which
    the force field cannot hold, and for a `NonbondedForce` that is not `tail=True`
    `setUseDispersionCorrection(False)`. Energies agree to rounding, with the tail of a mixture if
    the potential has `itself=True`. `units`: the system of the parameters; they become kJ/mol and
    nm. Exclusions are OpenMM's own: bonds of a topology. The way back is `from_openmm`.
    """
    system = dimensional(units)
    if potential.species is None and len(kinds) != 1:
        raise ConfigError("must be one, without species in the potential", key="kinds", value=kinds)
    root = xml.Element("ForceField")
    _topology(root, kinds)
    plain = isinstance(potential, LennardJones) and potential.truncation == "cut"
    each = {k: np.asarray(v) for k, v in params.items()}
    mixes = isinstance(potential, LennardJones) and potential.mixing == "lorentz_berthelot"
    if plain and mixes and all(v.ndim < 2 for v in each.values()):
        _nonbonded(root, each, system, kinds)
    else:
        _custom(root, potential, params, system, kinds)
    xml.indent(root)
    return xml.tostring(root, encoding="unicode") + "\n"


def _topology(root: xml.Element, kinds: Sequence[str]) -> None:
    from ase.data import atomic_masses, atomic_numbers

    types, residues = xml.SubElement(root, "AtomTypes"), xml.SubElement(root, "Residues")
    for symbol in kinds:
        mass = f"{atomic_masses[atomic_numbers[symbol]]:.6g}"
        given = {"name": symbol, "class": symbol, "element": symbol, "mass": mass}
        xml.SubElement(types, "Type", given)
        residue = xml.SubElement(residues, "Residue", {"name": symbol})
        xml.SubElement(residue, "Atom", {"name": symbol, "type": symbol})


def _nonbonded(
    root: xml.Element, params: dict[str, Any], system: UnitSystem, kinds: Sequence[str]
) -> None:
    force = xml.SubElement(root, "NonbondedForce", {"coulomb14scale": "1", "lj14scale": "1"})
    for k, symbol in enumerate(kinds):
        values = {n: float(v[k] if v.ndim else v) for n, v in params.items()}
        numbers = {
            "charge": "0",
            "sigma": repr(_in_openmm(values["sigma"], "length", system)),
            "epsilon": repr(_in_openmm(values["epsilon"], "energy", system)),
        }
        xml.SubElement(force, "Atom", {"type": symbol, **numbers})


def _in_openmm(value: Any, quantity: str, system: UnitSystem) -> Any:
    if QUANTITIES.get(quantity) == "1":
        return value
    return convert(value, system.unit_of(quantity), GROMACS.unit_of(quantity))


def _custom(
    root: xml.Element,
    potential: LennardJones | Pair,
    params: PyTree,
    system: UnitSystem,
    kinds: Sequence[str],
) -> None:
    law = potential.law if isinstance(potential, Pair) else potential
    if type(law) not in _LAWS:
        raise ConfigError(f"{type(law).__name__} has no formula for OpenMM", key="law")
    tables = _tables(potential, params, system, len(kinds))
    energy = _truncated(potential, _LAWS[type(law)], convert(1.0, system.length, "nm"))
    defined = "".join(f";p{name}=of{name}(kind1,kind2)" for name in tables)
    force = xml.SubElement(
        root, "CustomNonbondedForce", {"energy": energy + defined, "bondCutoff": "3"}
    )
    xml.SubElement(force, "PerParticleParameter", {"name": "kind"})
    for name, table in tables.items():
        size = str(len(kinds))
        given = {"name": f"of{name}", "type": "Discrete2D", "xsize": size, "ysize": size}
        xml.SubElement(force, "Function", given).text = _numbers(table)
    if isinstance(law, Tabulated):
        scale = convert(1.0, system.length, "nm")
        ends = {"min": repr(law.start * scale), "max": repr(law.end * scale)}
        element = xml.SubElement(
            force, "Function", {"name": "table", "type": "Continuous1D", **ends}
        )
        element.text = _numbers(_in_openmm(law.at_knots(params), "energy", system))
    for k, symbol in enumerate(kinds):
        xml.SubElement(force, "Atom", {"type": symbol, "kind": str(k)})


def _numbers(values: np.ndarray) -> str:
    return " ".join(repr(float(v)) for v in np.asarray(values).T.reshape(-1))


def _tables(
    potential: LennardJones | Pair, params: PyTree, system: UnitSystem, kinds: int
) -> dict[str, np.ndarray]:
    """Parameters over pairs of kinds, in kJ/mol and nm, with φ and φ' at the cutoff."""
    names = potential.parameter_units()
    found = {
        k: _in_openmm(np.array(v), names[k], system)
        for k, v in of_kinds(potential, params, kinds).items()
    }
    law = potential.law if isinstance(potential, Pair) else _LennardJonesLaw()
    given = {k: jnp.asarray(v) for k, v in found.items()}
    if isinstance(law, Buckingham):
        prepared = law.prepare(given)
        found |= {k: np.asarray(prepared[k]) for k in ("top", "value", "bend")}
    if potential.truncation in ("cut", "switch") or isinstance(law, Tabulated):
        return found
    cutoff = convert(potential.cutoff, system.length, "nm")
    as_pair = Pair(law, cutoff)
    prepared = law.prepare(given)
    at, slope = as_pair._curve(prepared, jnp.full((kinds, kinds), cutoff))
    return found | {"at": np.asarray(at), "slope": np.asarray(slope)}


class _LennardJonesLaw(AbstractPairLaw):
    def energy(self, params: PyTree, r: Any) -> Any:
        x = (params["sigma"] / r) ** 6
        return 4 * params["epsilon"] * (x * x - x)

    def scale(self, params: PyTree) -> Any:
        return params["epsilon"] / params["sigma"]


def _truncated(potential: LennardJones | Pair, phi: str, scale: float) -> str:
    cutoff, onset = potential.cutoff * scale, potential._onset() * scale
    if potential.truncation == "shift":
        return f"{phi}-pat"
    if potential.truncation == "force_shift":
        return f"{phi}-pat-(r-{cutoff!r})*pslope"
    if potential.truncation == "switch":
        x = f"x=min(1,max(0,(r^2-{onset!r}^2)/({cutoff!r}^2-{onset!r}^2)))"
        return f"({phi})*(1-x^3*(10-15*x+6*x^2));{x}"
    return phi

"""Potentials of pairs as OpenMM's custom forces: their formula, and their tail."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree as xml

import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .._errors import ConfigError
from .._units import convert
from ._exported import of_kinds, tails
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
from ._units import GROMACS, QUANTITIES, UnitSystem

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


# OpenMM's own correction integrates the formula beyond the cutoff: without what a switch takes off
# below it, and of a shifted one to no end. This runs in `createSystem`, which knows the atoms.
_TAIL = """
import openmm
tails = {tails!r}  # kJ/mol nm^3
counts = {{kind: 0 for pair in tails for kind in pair}}
for atom in data.atoms:
    if data.atomType[atom] in counts:
        counts[data.atomType[atom]] += 1
tail = sum(counts[a] * {others} * t for (a, b), t in tails.items())
sys.addForce(openmm.CustomVolumeForce(f"{{tail{share}!r}}/v"))
"""
# The same, with pairs of each atom with itself: n_a (n_a + 1) N/(N + 1).
_OTHERS = {False: "counts[b]", True: "(counts[b] + (a == b))"}
_SHARE = {False: "", True: " * sum(counts.values()) / (sum(counts.values()) + 1)"}


def in_openmm(value: Any, quantity: str, system: UnitSystem) -> Any:
    if QUANTITIES.get(quantity) == "1":
        return value
    return convert(value, system.unit_of(quantity), GROMACS.unit_of(quantity))


def nonbonded(
    root: xml.Element, types: Sequence[str], charges: Any, sigma: Any, epsilon: Any, corrected: bool
) -> None:
    """OpenMM's own Lennard-Jones and charges, one number a type [e, nm, kJ/mol]; `corrected`: with
    its correction for what is beyond the cutoff."""
    given = {"coulomb14scale": "1", "lj14scale": "1", "useDispersionCorrection": str(corrected)}
    force = xml.SubElement(root, "NonbondedForce", given)
    for kind, *numbers in zip(types, charges, sigma, epsilon, strict=True):
        named = zip(("charge", "sigma", "epsilon"), numbers, strict=True)
        xml.SubElement(force, "Atom", {"type": kind, **{k: repr(float(v)) for k, v in named}})


def custom(
    root: xml.Element,
    potential: LennardJones | Pair,
    params: PyTree,
    system: UnitSystem,
    kinds: Sequence[str],
) -> None:
    law = potential.law if isinstance(potential, Pair) else potential
    if type(law) not in _LAWS:
        known = ", ".join(each.__name__ for each in _LAWS)
        cause = f"{type(law).__name__} has no formula for OpenMM"
        raise ConfigError(cause, key="law", allowed=known)
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
        element.text = _numbers(in_openmm(law.at_knots(params), "energy", system))
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
        k: in_openmm(np.array(v), names[k], system)
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


def tail(
    root: xml.Element,
    potential: LennardJones | Pair,
    params: PyTree,
    system: UnitSystem,
    kinds: Sequence[str],
) -> None:
    """U_tail = Σ_ab n_a n_b t_ab/V of the kinds' atoms, by a script in the force field."""
    scale = convert(1.0, system.energy, "kJ/mol") * convert(1.0, system.length, "nm") ** 3
    found = scale * tails(potential, params, len(kinds))
    named = {(kinds[a], kinds[b]): float(t) for (a, b), t in np.ndenumerate(found)}
    itself = isinstance(potential, LennardJones) and potential.itself
    xml.SubElement(root, "Script").text = _TAIL.format(
        tails=named, others=_OTHERS[itself], share=_SHARE[itself]
    )

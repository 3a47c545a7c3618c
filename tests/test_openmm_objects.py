"""Force fields as OpenMM has them, read from objects with its methods where there is no OpenMM."""

import sys
from typing import Any

import equinox as eqx
import numpy as np
import pytest

from diffsim import ConfigError, convert, md
from problems import slow_but


def stand_in(name: str, **answers: Any) -> Any:
    """`get...()` returns its answer, `get...(i)` an entry of it."""
    said = lambda value: lambda self, *i: value[i[0]] if i else value  # noqa: E731
    return type(name, (), {key: said(value) for key, value in answers.items()})()


ATOMS = [[0.4, 0.3, 0.5], [-0.8, 0.35, 0.4], [0.4, 0.3, 0.5], [0.0, 0.0, 0.0]]
SAME = np.sqrt(0.5 * 0.4)


def nonbonded(exceptions: Any = (), **changes: Any) -> Any:
    answers = {
        "getNumParticles": 4,
        "getParticleParameters": ATOMS,
        "getNumExceptions": len(exceptions),
        "getExceptionParameters": exceptions,
        "getNonbondedMethod": 3,
        "getCutoffDistance": 0.9,
        "getUseSwitchingFunction": False,
        "getUseDispersionCorrection": True,
        "getEwaldErrorTolerance": 5e-4,
        "getPMEParameters": [0.0, 0, 0, 0],
        "getNumParticleParameterOffsets": 0,
        "getNumExceptionParameterOffsets": 0,
        "getIncludeDirectSpace": True,
    }
    return stand_in("NonbondedForce", **(answers | changes))


def small(*forces: Any, **changes: Any) -> Any:
    answers = {
        "getNumForces": len(forces),
        "getForce": forces,
        "getNumParticles": 4,
        "getParticleMass": [12.0, 16.0, 12.0, 1.0],
        "isVirtualSite": [False] * 4,
        "usesPeriodicBoundaryConditions": True,
        "getDefaultPeriodicBoxVectors": np.diag([2.0, 2.1, 2.2]),
        "getNumConstraints": 1,
        "getConstraintParameters": [[2, 3, 0.1]],
    }
    return stand_in("System", **(answers | changes))


HALF = [[0, 1, -0.16, 0.325, 0.25 * SAME], [1, 2, 0.0, 1.0, 0.0], [0, 2, 0.16, 0.3, 0.5]]
BONDS = stand_in(
    "HarmonicBondForce",
    getNumBonds=3,
    getBondParameters=[[0, 1, 0.14, 900.0], [1, 2, 0.15, 800.0], [2, 3, 0.14, 900.0]],
)


def test_equal_numbers_are_one_parameter_and_exceptions_are_shares():
    ff = md.from_openmm(small(nonbonded(HALF), BONDS, stand_in("CMMotionRemover")))
    lj: Any = ff.potential.potentials["lj"]
    coulomb: Any = ff.potential.potentials["coulomb"]
    bonds: Any = ff.potential.potentials["bonds"]
    assert lj.species.tolist() == coulomb.species.tolist() == [0, 1, 0, 2]
    assert bonds.kinds.tolist() == [0, 1, 0]
    np.testing.assert_allclose(ff.params["lj_epsilon"], [0.5, 0.4, 0.0])
    np.testing.assert_allclose(ff.params["coulomb_charge"], [0.4, -0.8, 0.0])
    np.testing.assert_allclose(ff.params["bonds_k"], [900.0, 800.0])
    assert lj.exclusions.pairs.tolist() == [[0, 1], [1, 2]]
    np.testing.assert_allclose(lj.exclusions.kept, [0.25, 0.0])
    assert coulomb.exclusions.pairs.tolist() == [[0, 1], [1, 2]]
    np.testing.assert_allclose(coulomb.exclusions.kept, [0.5, 0.0])
    assert ff.constraints == md.Constraints([[2, 3]], 0.1)


@pytest.mark.parametrize("units", slow_but(["real"], ["real", "metal"]))
def test_the_same_energies_in_other_units(units):
    x = np.asarray([[0.1, 0.1, 0.1], [0.45, 0.1, 0.2], [0.8, 0.5, 0.1], [0.1, 1.5, 0.9]])
    given, system = small(nonbonded(HALF), BONDS), md.unit_system(units)
    ours, other = md.from_openmm(given), md.from_openmm(given, units=units)
    scale = convert(1.0, "nm", system.length)
    parts = lambda ff: eqx.filter_jit(lambda x: ff.potential.components(ff.params, x, ff.box))  # noqa: E731
    wanted, found = parts(ours)(x), parts(other)(x * scale)
    for name, energy in wanted.items():
        there = convert(float(found[name]), system.energy, "kJ/mol")
        assert there == pytest.approx(float(energy), rel=1e-9), name


def skewed() -> np.ndarray:
    return np.asarray([[2.0, 0, 0], [0.5, 2.0, 0], [0, 0, 2.0]])


REFUSED = {
    "CustomBondForce: has no counterpart here.*NonbondedForce": small(stand_in("CustomBondForce")),
    "GBSAOBCForce: has no counterpart": small(nonbonded(), stand_in("GBSAOBCForce")),
    "NonbondedForce: there are 2": small(nonbonded(), nonbonded()),
    "system: has no periodic box": small(nonbonded(), usesPeriodicBoundaryConditions=False),
    "waves of a triclinic box": small(
        nonbonded(getNonbondedMethod=3), getDefaultPeriodicBoxVectors=skewed()
    ),
    "atom 1 is a virtual site": small(nonbonded(), isVirtualSite=[False, True, False, False]),
    "atom 3 has no mass": small(nonbonded(), getParticleMass=[1.0, 1.0, 1.0, 0.0]),
    "NoCutoff has no periodic box": small(nonbonded(getNonbondedMethod=0)),
    "reaction field.*PME or Ewald": small(nonbonded(getNonbondedMethod=2)),
    "LJPME": small(nonbonded(getNonbondedMethod=5)),
    "polynomial of r.*UseSwitching": small(nonbonded(getUseSwitchingFunction=True)),
    "parameter offsets": small(nonbonded(getNumParticleParameterOffsets=1)),
    "direct space": small(nonbonded(getIncludeDirectSpace=False)),
    "atoms 0 and 1 has σ = 0.4 where": small(nonbonded([[0, 1, 0.0, 0.4, 0.1]])),
    "atoms 2 and 3 has ε = 0.1 where": small(nonbonded([[2, 3, 0.0, 0.15, 0.1]])),
    "atoms 1 and 3 has q_i q_j = 0.2": small(nonbonded([[1, 3, 0.2, 1.0, 0.0]])),
    "cutoff: is over half the box": small(nonbonded(getCutoffDistance=1.1)),
}


@pytest.mark.parametrize("cause", REFUSED)
def test_what_has_no_counterpart_is_refused(cause):
    with pytest.raises(ConfigError, match=cause):
        md.from_openmm(REFUSED[cause])


def test_files_are_read_by_openmm(tmp_path, monkeypatch):
    for system, cause in ((3, "a int"), (tmp_path / "none.xml", "does not exist")):
        with pytest.raises(ConfigError, match=cause):
            md.from_openmm(system)
    with pytest.raises(ConfigError, match="reduced units"):
        md.from_openmm(small(nonbonded()), units="lj")
    file = tmp_path / "system.xml"
    file.write_text('<System><Forces><Force type="PythonForce"/></Forces></System>')
    with pytest.raises(ConfigError, match="PythonForce"):
        md.from_openmm(file)
    file.write_text("<System/>")
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "openmm", None)
        with pytest.raises(ConfigError, match="pip install openmm"):
            md.from_openmm(file)

"""Force fields as OpenMM has them, against the energies and forces of its Reference platform."""

import functools
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffsim as ds
from diffsim import ConfigError, md

# A residue, an atom and its place [angstrom].
DIPEPTIDE = """
ACE H1 2.000 1.000 0.000    ACE CH3 2.000 2.090 0.000   ACE H2 1.486 2.454 0.890
ACE H3 1.486 2.454 -0.890   ACE C 3.427 2.641 0.000     ACE O 4.391 1.877 0.000
ALA N 3.555 3.970 0.000     ALA H 2.733 4.556 0.000     ALA CA 4.853 4.614 0.000
ALA HA 5.408 4.316 0.890    ALA CB 5.661 4.221 -1.232   ALA HB1 5.123 4.521 -2.131
ALA HB2 6.630 4.719 -1.206  ALA HB3 5.809 3.141 -1.241  ALA C 4.713 6.129 0.000
ALA O 3.601 6.653 0.000     NME N 5.846 6.835 0.000     NME H 6.737 6.359 0.000
NME C 5.846 8.284 0.000     NME H1 4.819 8.648 0.000    NME H2 6.360 8.648 0.890
NME H3 6.360 8.648 -0.890
"""


class Model(NamedTuple):
    system: Any
    positions: np.ndarray  # nm


def _solvated(edge: float, dipeptide: bool) -> tuple[Any, Any]:
    """A box of TIP3P water, with alanine dipeptide in it or without."""
    app: Any = pytest.importorskip("openmm.app")
    topology, places, residue = app.Topology(), [], None
    chain = topology.addChain()
    words = np.asarray(DIPEPTIDE.split() if dipeptide else []).reshape(-1, 5)
    for name, atom, *place in words.tolist():
        if residue is None or residue.name != name:
            residue = topology.addResidue(name, chain)
        topology.addAtom(atom, app.Element.getBySymbol(atom[0]), residue)
        places.append(np.asarray(place, float) / 10)
    topology.createStandardBonds()
    field = app.ForceField("amber14/protein.ff14SB.xml", "amber14/tip3p.xml")
    openmm: Any = pytest.importorskip("openmm")
    solvated = app.Modeller(topology, [openmm.Vec3(*x) for x in places] * openmm.unit.nanometer)
    solvated.addSolvent(field, boxSize=openmm.Vec3(edge, edge, edge) * openmm.unit.nanometer)
    return field, solvated


def context(system: Any, positions: Any) -> Any:
    openmm: Any = pytest.importorskip("openmm")
    platform = openmm.Platform.getPlatformByName("Reference")
    made = openmm.Context(system, openmm.VerletIntegrator(0.001), platform)
    made.setPositions(positions)
    return made


@functools.cache
def model(name: str) -> Model:
    openmm: Any = pytest.importorskip("openmm")
    app: Any = pytest.importorskip("openmm.app")
    if name == "argon":
        return _argon(openmm)
    dipeptide = name.startswith("dipeptide")
    field, solvated = _solvated(1.6 if dipeptide else 1.3, dipeptide)
    system = field.createSystem(
        solvated.topology,
        nonbondedMethod=app.PME if dipeptide else app.Ewald,
        nonbondedCutoff=0.7 if dipeptide else 0.6,
        constraints=app.HBonds,
    )
    force = next(f for f in system.getForces() if isinstance(f, openmm.NonbondedForce))
    if name.endswith("without charges"):
        force.setNonbondedMethod(force.CutoffPeriodic)
        for i in range(force.getNumParticles()):
            force.setParticleParameters(i, 0.0, *force.getParticleParameters(i)[1:])
        for i in range(force.getNumExceptions()):
            one, other, _, *law = force.getExceptionParameters(i)
            force.setExceptionParameters(i, one, other, 0.0, *law)
    settled = context(system, solvated.positions)
    openmm.LocalEnergyMinimizer.minimize(settled, maxIterations=50)
    if name == "dipeptide by a fine mesh":
        force.setEwaldErrorTolerance(1e-6)
    x = settled.getState(positions=True).getPositions(asNumpy=True) / openmm.unit.nanometer
    return Model(system, x + np.random.default_rng(0).normal(0, 0.001, x.shape))


def _argon(openmm: Any) -> Model:
    x, edges = md.lattice(108, density=20.0)
    system, force = openmm.System(), openmm.NonbondedForce()
    system.setDefaultPeriodicBoxVectors(*np.diag(edges))
    force.setNonbondedMethod(force.CutoffPeriodic)
    force.setCutoffDistance(0.85)
    for _ in range(len(x)):
        system.addParticle(39.948)
        force.addParticle(0.0, 0.3405, 0.996)
    system.addForce(force)
    system.addForce(openmm.CMMotionRemover())
    system.addForce(openmm.MonteCarloBarostat(1.0, 300.0))
    return Model(system, x + np.random.default_rng(1).normal(0, 0.02, x.shape))


def openmm_says(given: Model) -> tuple[dict[str, float], np.ndarray]:
    """The energy of each force by its class, and the forces, in kJ/mol and nm."""
    openmm: Any = pytest.importorskip("openmm")
    system = openmm.XmlSerializer.clone(given.system)
    for k, force in enumerate(system.getForces()):
        force.setForceGroup(k)
    ready = context(system, given.positions)
    plain = lambda value: value.value_in_unit_system(openmm.unit.md_unit_system)  # noqa: E731
    energies = {
        type(force).__name__: plain(ready.getState(energy=True, groups={k}).getPotentialEnergy())
        for k, force in enumerate(system.getForces())
    }
    return energies, plain(ready.getState(forces=True).getForces(asNumpy=True))


NAMES = {"bonds": "HarmonicBondForce", "angles": "HarmonicAngleForce"}
NAMES |= {"dihedrals": "PeriodicTorsionForce", "lj": "NonbondedForce", "coulomb": "NonbondedForce"}


@pytest.mark.parametrize(
    ("name", "relative"),
    [
        ("argon", 1e-9),
        ("dipeptide without charges", 1e-9),
        ("water by Ewald", 1e-7),
        ("dipeptide", 5e-5),
        ("dipeptide by a fine mesh", 1e-6),
    ],
)
def test_energies_and_forces_are_those_of_openmm(name, relative):
    given = model(name)
    wanted, pushes = openmm_says(given)
    ff = md.from_openmm(given.system)
    both = eqx.filter_jit(
        lambda p, x: (ff.potential.components(p, x, ff.box), ff.potential.forces(p, x, ff.box))
    )
    parts, forces = both(ff.params, given.positions)
    found = dict.fromkeys(wanted, 0.0)
    for term, energy in parts.items():
        found[NAMES[term]] += float(energy)
    for force, energy in wanted.items():
        near = relative if force == "NonbondedForce" else 1e-9
        assert found[force] == pytest.approx(energy, rel=near), force
    assert sum(found.values()) == pytest.approx(sum(wanted.values()), rel=relative)
    np.testing.assert_allclose(forces, pushes, atol=10 * relative * np.abs(pushes).max())


def test_gradients_in_every_table_against_differences():
    given = model("dipeptide")
    ff = md.from_openmm(given.system)
    energy = eqx.filter_jit(lambda p: ff.potential.energy(p, given.positions, ff.box))
    slopes = eqx.filter_jit(eqx.filter_grad(lambda p: energy(p)))(ff.params)
    assert sorted(ff.params) == sorted(ff.potential.parameter_units()) and len(ff.params) == 9
    for k, (name, value) in enumerate(ff.params.items()):
        along = jnp.asarray(np.random.default_rng(k).normal(0, 1, value.shape))
        # an ε of 0 has no slope: the root of a product
        along = along * (value if name == "lj_epsilon" else jnp.abs(value).max())
        up, down = (energy({**ff.params, name: value + s * along}) for s in (1e-5, -1e-5))
        slope = float(up - down) / 2e-5
        np.testing.assert_allclose(jnp.vdot(slopes[name], along), slope, rtol=1e-5, err_msg=name)


@pytest.mark.slow
def test_rigid_molecules_run_at_constant_energy():
    given = model("dipeptide")
    ff = md.from_openmm(given.system)
    assert ff.constraints is not None
    sim = md.NVE(ff.potential, 0.0005, units="gromacs", constraints=ff.constraints)
    state = sim.init(
        ff.params,
        jax.random.key(0),
        positions=given.positions,
        box=ff.box,
        masses=ff.masses,
        temperature=300.0,
    )
    found = ds.solve(sim, ff.params, state, schedule=ds.Schedule(steps=50, save_every=10))
    total, kinetic = (np.asarray(found.observables[k]) for k in ("total_energy", "kinetic_energy"))
    assert np.ptp(total) < 5e-4 * kinetic.mean()


def test_a_file_holds_the_same(tmp_path):
    openmm: Any = pytest.importorskip("openmm")
    file = tmp_path / "system.xml"
    for text in ("no xml", openmm.XmlSerializer.serialize(openmm.VerletIntegrator(0.001))):
        file.write_text(text)
        with pytest.raises(ConfigError, match=r"system.xml: .*XmlSerializer"):
            md.from_openmm(file)
    given = model("argon").system
    file.write_text(openmm.XmlSerializer.serialize(given))
    one, other = md.from_openmm(given), md.from_openmm(str(file))
    assert all(bool(jnp.all(one.params[k] == other.params[k])) for k in one.params)
    np.testing.assert_array_equal(one.box, other.box)

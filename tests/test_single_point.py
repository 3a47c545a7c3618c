"""Energies, forces and virials of given structures as targets, and the files that hold them."""

import ase
import ase.io
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from ase.calculators.singlepoint import SinglePointCalculator

import diffsim as ds
from diffsim import ConfigError, Parameter, Problem, Schedule, Target, md
from problems import liquid, pair_by_pair, parameters

TRUTH = {"epsilon": 0.0103, "sigma": 3.4}
POTENTIAL = md.LennardJones(5.0, "switch")


def argon(seed):
    positions, box = liquid(16, 0.015, seed)
    return positions, box


def written(path, frames=4, zero=-0.5):
    """Argon with the energies, forces and stresses of a Lennard-Jones potential, by definition."""
    out = []
    for seed in range(frames):
        positions, box = argon(seed)
        energy, virial, forces = pair_by_pair(POTENTIAL, TRUTH, positions, box)
        atoms = ase.Atoms("Ar16", positions=positions, cell=box, pbc=True)
        stress = -virial / 3 / np.prod(box) * np.array([1.0, 1, 1, 0, 0, 0])
        atoms.calc = SinglePointCalculator(
            atoms, energy=energy + 16 * zero, forces=forces, stress=stress
        )
        out.append(atoms)
    ase.io.write(path, out, format="extxyz")
    return path


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return written(tmp_path_factory.mktemp("structures") / "argon.extxyz")


def test_structures_come_back_from_a_file(file):
    read = md.load_structures(file)
    positions, box = argon(2)
    np.testing.assert_allclose(read.positions[2], positions, atol=1e-7)
    np.testing.assert_allclose(read.box[2], box, atol=1e-7)
    energy, virial, forces = pair_by_pair(POTENTIAL, TRUTH, positions, box)
    assert read.energy is not None and read.forces is not None and read.virial is not None
    assert read.energy[2] == pytest.approx(energy - 8, rel=1e-6)
    np.testing.assert_allclose(read.forces[2], forces, atol=1e-7)
    assert read.virial[2] == pytest.approx(virial, rel=1e-4)
    assert read.species == ("Ar",) * 16
    nm = md.load_structures(file, "gromacs")
    np.testing.assert_allclose(nm.positions, read.positions / 10)
    assert nm.forces is not None
    np.testing.assert_allclose(nm.forces, read.forces * 964.853321, rtol=1e-7)
    assert md.structure_data(file, "box").shape == (4, 3)


def test_a_fit_to_energies_forces_and_virials_finds_the_potential(file):
    """With the zero of energy, in one loss; without a trajectory."""
    read = md.load_structures(file)
    assert read.energy is not None
    problem = Problem(
        md.SinglePoint(POTENTIAL, "metal", offset="zero"),
        {
            "epsilon": Parameter(0.012, unit="eV", transform="positive"),
            "sigma": Parameter(3.3, unit="angstrom", transform="positive"),
            "zero": Parameter(0.0, unit="eV"),
        },
        [
            Target("energy_per_atom", read.energy / 16, 1e-3, unit="eV"),
            Target("forces", read.forces, 1e-2, unit="eV/angstrom"),
            Target("virial", read.virial, 0.1, unit="eV", weight=0.5),
        ],
        Schedule(steps=1),
        {"positions": read.positions, "box": read.box},
    )
    problem.check()
    fitted = ds.least_squares(problem)
    assert float(fitted.values["epsilon"]) == pytest.approx(0.0103, rel=1e-5)
    assert float(fitted.values["sigma"]) == pytest.approx(3.4, rel=1e-6)
    assert float(fitted.values["zero"]) == pytest.approx(-0.5, abs=1e-5)


def targets_of(path, observable, data, **words):
    """A problem of 12 atoms with one target, `path` the potential's."""
    positions, box = md.lattice(12, density=0.1)
    potential, moving = md.LennardJones(2.0, path=path), observable == "velocities"
    given = {"positions": positions[None], "box": box[None]}
    simulation = md.NVE(potential, 0.003) if moving else md.SinglePoint(potential)
    given |= {"temperature": np.ones(1)} if moving else {}
    names = {name: Parameter(1.0) for name in ("epsilon", "sigma")}
    target = Target(observable, data, **words)
    return Problem(simulation, names, [target], Schedule(steps=2, save_every=1), given)


@pytest.mark.parametrize("path", ["auto", "list", "tiles", "dense"])
@pytest.mark.parametrize(
    ("observable", "shape", "words", "says"),
    [
        ("forces", (1, 5, 3), {}, "(1, 12, 3)"),
        ("forces", (1, 12), {}, "(1, 12, 3)"),
        ("potential_energy", (1, 12), {}, "(1,)"),
        ("forces", (1, 12, 3), {"sigma": np.ones((5, 3))}, "forces.sigma"),
        ("velocities", (1, 2, 5, 3), {"statistic": "each"}, "(1, 2, 12, 3)"),
        ("velocities", (1, 5, 3), {}, "(1, 12, 3)"),
    ],
    ids=str,
)
def test_data_of_another_shape_than_what_is_observed(path, observable, shape, words, says):
    problem = targets_of(path, observable, np.zeros(shape), **words)
    with pytest.raises(ConfigError) as caught:
        problem.check()
    assert says in str(caught.value)


@pytest.mark.parametrize("path", ["auto", "dense"])
def test_data_of_the_shape_of_what_is_observed(path):
    targets_of(path, "forces", np.zeros((1, 12, 3)), sigma=np.ones(3)).check()
    targets_of(path, "velocities", np.zeros((1, 2, 12, 3)), statistic="each").check()


def test_what_is_observed_is_what_the_potential_says():
    positions, box = liquid(32, 0.6)
    potential = md.LennardJones(2.0, "shift", tail=True)
    point = md.SinglePoint(potential)
    state = point.init(parameters(), jax.random.key(0), positions=positions, box=box)
    seen = point.observe(parameters(), point.step(parameters(), state))
    thermo = potential.thermo(parameters(), positions, box)
    assert seen["potential_energy"] == thermo.energy
    assert seen["virial"] == thermo.virial
    assert seen["pressure"] == pytest.approx(float(thermo.virial) / 3 / np.prod(box), rel=1e-12)
    np.testing.assert_array_equal(seen["forces"], potential.forces(parameters(), positions, box))


def test_what_cannot_be_is_refused(file, tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        md.load_structures(tmp_path / "none.xyz")
    bad = tmp_path / "bad.xyz"
    bad.write_text("3\nnothing\n")
    with pytest.raises(ConfigError, match="not an extended xyz"):
        md.load_structures(bad)
    with pytest.raises(ConfigError, match="no such array"):
        md.structure_data(file, "charges")
    mixed, bare = tmp_path / "mixed.xyz", tmp_path / "bare.xyz"
    one, two = ase.Atoms("Ar", cell=[5, 5, 5], pbc=True), ase.Atoms("Ar2", cell=[5, 5, 5], pbc=True)
    two.positions[1] = 2.0
    ase.io.write(mixed, [one, two], format="extxyz")
    with pytest.raises(ConfigError, match="other atoms"):
        md.load_structures(mixed)
    ase.io.write(bare, [one], format="extxyz")
    with pytest.raises(ConfigError, match="no energy"):
        md.structure_data(bare, "energy")
    point = md.SinglePoint(POTENTIAL, offset="zero")
    with pytest.raises(ConfigError, match="offset"):
        point.check(parameters(), positions=jnp.zeros((1, 3)), box=np.full(3, 20.0))


KINDS = np.arange(32) % 2
MIXED = [(0, 0), (0, 1), (1, 1)]


def of_three(numbers):
    """Tables of the numbers of the three kinds of pairs."""
    tables = np.zeros((2, 2, 2))
    for k, (a, b) in enumerate(MIXED):
        tables[:, a, b] = tables[:, b, a] = numbers[k], numbers[3 + k]
    return tables


def table_forces(numbers, x, box):
    """-∂U/∂x of Lennard-Jones pairs of two kinds, cut at 1.7, pair by pair."""
    epsilon, sigma = (t[KINDS][:, KINDS] for t in of_three(numbers))
    d = x[:, None] - x[None]
    d = d - box * np.round(d / box)
    r = np.sqrt(np.sum(d * d, axis=2)) + 9 * np.eye(len(x))
    s = (sigma / r) ** 6
    f = np.where(r < 1.7, 24 * epsilon * (2 * s * s - s) / r**2, 0)
    return np.sum(f[..., None] * d, axis=1)


@pytest.mark.parametrize("fit", [ds.least_squares, pytest.param(ds.fit, marks=pytest.mark.slow)])
def test_a_table_of_pairs_is_fitted_as_the_numbers_that_it_holds(fit):
    truth = np.array([1.1, 0.7, 1.0, 1.02, 0.93, 0.92])
    frames = [liquid(32, 0.8, seed) for seed in (1, 2)]
    data = np.array([table_forces(truth, *frame) for frame in frames])
    noise = 0.1
    data = data + noise * np.random.default_rng(0).normal(size=data.shape)

    def residuals(numbers):
        return np.ravel([table_forces(numbers, *frame) for frame in frames] - data) / noise

    oracle = scipy.optimize.least_squares(residuals, truth, xtol=1e-14, ftol=1e-14)
    covariance = np.linalg.inv(oracle.jac.T @ oracle.jac)
    if fit is ds.least_squares:
        covariance = covariance * 2 * oracle.cost / (data.size - 6)
    start = of_three([1.0, 0.8, 1.2, 1.0, 0.95, 0.9])
    problem = Problem(
        md.SinglePoint(md.LennardJones(1.7, "cut", species=KINDS)),
        {"epsilon": Parameter(start[0]), "sigma": Parameter(start[1])},
        [Target("forces", data, noise)],
        Schedule(steps=1),
        conditions={"positions": [x for x, _ in frames], "box": [box for _, box in frames]},
    )
    found = (
        fit(problem) if fit is ds.least_squares else fit(problem, steps=300, uncertainty="laplace")
    )
    values = np.stack([found.values[name] for name in ("epsilon", "sigma")])
    np.testing.assert_allclose(values, of_three(oracle.x), rtol=1e-3)
    np.testing.assert_allclose(values, np.swapaxes(values, 1, 2), rtol=1e-9)
    errors = np.sqrt(np.diag(found.uncertainty.covariance)).reshape(2, 2, 2)
    np.testing.assert_allclose(errors, of_three(np.sqrt(np.diag(covariance))), rtol=0.02)

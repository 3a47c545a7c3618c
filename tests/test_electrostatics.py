"""Coulomb's energy by Ewald and particle mesh: NIST's water, a crystal, derivatives."""

import math
from typing import Any

import ase
import ase.io
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from diffsim import ConfigError, convert, md
from diffsim.md._coulomb import _error_function, _series
from problems import DATA

# NIST's reference for configuration 1: energies over kB in K, 10 angstrom, α = 5.6/L, k² < 27.
NIST = {
    "dispersion": 99538.7,
    "tail": -823.715,
    "real": -558889.0,
    "fourier": 6270.09,
    "self": -2.84469e6,
    "intramolecular": 2.80999e6,
}
KELVIN = 1 / md.unit_system("metal").boltzmann
MOLECULES = 100


def nist_water(reciprocal, **options):
    return md.Water(
        MOLECULES, 10.0, reciprocal, alpha=5.6 / 20, units="metal", path="dense", **options
    )


PARAMS = {k: jnp.asarray(v) for k, v in md.water_parameters("SPC/E", "metal").items()}


@pytest.fixture(scope="module")
def water():
    structure = md.load_structure(DATA / "nist_spce_config1.xyz")
    return jnp.asarray(structure.positions), jnp.asarray(structure.box)


def test_nist_components(water):
    x, box = water
    potential = nist_water(md.Ewald(5, 27))
    parts: Any = potential.parts()

    @jax.jit
    def energies(x):
        real, _, lj = potential.terms(PARAMS, x, box)
        _, rest, pairs = parts
        _, charges, tails = potential.shared(PARAMS)
        smooth = rest.energies(charges, x, box)
        tail = pairs.tail_correction(tails, len(x), box)[0]
        return {"dispersion": lj.energy - tail, "tail": tail, "real": real.energy, **smooth}

    found = {name: float(value) * KELVIN for name, value in energies(x).items()}
    for name, wanted in NIST.items():
        assert found[name] == pytest.approx(wanted, rel=1e-5), name
    assert found["background"] == pytest.approx(0, abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("path", ["tiles", "list"])
def test_pairs_of_every_path_and_one_pass_for_both(water, path):
    """Forces of Lennard-Jones and Coulomb together against the gradient of all pairs."""
    x, box = water
    dense = nist_water(md.Ewald(5, 27))
    other = md.Water(
        MOLECULES, 8.5, md.Ewald(5), alpha=0.33, units="metal", path=path, skin=1.0, tail=False
    )
    whole = md.Water(
        MOLECULES, 8.5, md.Ewald(5), alpha=0.33, units="metal", path="dense", tail=False
    )
    assert dense.groups == other.groups == ((0, 2), (1,))
    made = other.allocate(PARAMS, x, box)
    assert not other.overflowed(made) and other.path_taken(made) == path
    numbers = jax.jit(lambda p, x: (whole.energy(p, x, box), whole.forces(p, x, box)))
    found = jax.jit(lambda p, x: (other.energy(p, x, box, made), other.forces(p, x, box, made)))
    for a, b in zip(found(PARAMS, x), numbers(PARAMS, x), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-11 * np.abs(b).max())


SMALL = 2


@pytest.fixture(scope="module")
def few():
    """Two molecules that are bent out of shape, some of them across the boundary."""
    conditions = md.water_box(SMALL, density=120.0, units="metal", seed=3)
    x = conditions["positions"] + np.random.default_rng(0).normal(0, 0.05, (3 * SMALL, 3))
    return jnp.asarray(x - 1.1), jnp.asarray(conditions["box"])


def flexible(reciprocal):
    # a cutoff where pairs are left out would make the virial that of a cut potential
    return md.Water(
        SMALL, 3.9, reciprocal, alpha=0.9, units="metal", flexible=True, truncation="switch",
        tail=False, path="dense",
    )  # fmt: skip


SPRINGS = {
    k: jnp.asarray(v) for k, v in md.water_parameters("TIP3P", "metal", flexible=True).items()
}


@pytest.fixture(scope="module")
def everything():
    potentials = {"ewald": flexible(md.Ewald(9)), "pme": flexible(md.PME(24, 6))}

    def numbers(params, x, box, kind):
        potential = potentials[kind]
        thermo = potential.thermo(params, x, box)
        back = potential.pullback(params, x, box, jnp.cos(x))
        return (
            thermo,
            potential.forces(params, x, box),
            back,
            jax.grad(potential.energy)(params, x, box),
        )

    return jax.jit(numbers, static_argnums=3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ewald", "pme"])
def test_derivatives_against_differences(everything, few, kind):
    x, box = few
    thermo, forces, back, grads = everything(SPRINGS, x, box, kind)
    w, h = jnp.cos(x), 1e-5
    size = float(jnp.abs(forces).max())
    up, down = (everything(SPRINGS, x + s * h * w, box, kind) for s in (1, -1))
    slope = -(up[0].driving - down[0].driving) / (2 * h)
    np.testing.assert_allclose(jnp.vdot(w, forces), slope, rtol=1e-6, atol=1e-7 * size)
    np.testing.assert_allclose(back[1], (up[1] - down[1]) / (2 * h), atol=1e-4 * size)
    # the box: real pairs, waves, self-energy and mesh together
    up, down = (everything(SPRINGS, (1 + s * h) * x, (1 + s * h) * box, kind) for s in (1, -1))
    slope = -(up[0].driving - down[0].driving) / (2 * h)
    np.testing.assert_allclose(thermo.virial, slope, rtol=1e-6, atol=1e-6 * size)
    for key, value in SPRINGS.items():
        d = h * float(value)
        at = [everything({**SPRINGS, key: value + s * d}, x, box, kind) for s in (1, -1)]
        slope = (at[0][0].energy - at[1][0].energy) / (2 * d)
        np.testing.assert_allclose(grads[key], slope, rtol=1e-6, atol=1e-7 * size)
        slope = jnp.vdot(w, at[0][1] - at[1][1]) / (2 * d)
        np.testing.assert_allclose(back[0][key], slope, rtol=1e-5, atol=1e-6 * size)


@pytest.mark.slow
def test_mesh_and_waves_agree(everything, few):
    x, box = few
    exact, meshed = (everything(SPRINGS, x, box, kind) for kind in ("ewald", "pme"))
    np.testing.assert_allclose(meshed[0].energy, exact[0].energy, atol=1e-3)  # of some 10 eV
    np.testing.assert_allclose(meshed[1], exact[1], atol=3e-4 * float(jnp.abs(exact[1]).max()))


def test_a_fine_mesh_has_the_energy_and_forces_of_waves(water):
    x, box = water
    charges = jnp.tile(jnp.asarray([-0.8476, 0.4238, 0.4238]), MOLECULES)

    @jax.jit
    def both(x):
        fine = lambda r: jax.value_and_grad(r.energy, argnums=1)(charges, x, box, 0.28)  # noqa: E731
        return fine(md.Ewald(8)), fine(md.PME(40, 8))

    (exact, force), (found, meshed) = both(x)
    np.testing.assert_allclose(found, exact, rtol=1e-6)
    np.testing.assert_allclose(meshed, force, atol=1e-6 * float(jnp.abs(force).max()))


@pytest.mark.slow
def test_madelung_constant_of_rock_salt():
    """-1.747564594633 for the nearest distance: whatever the splitting, and the mesh."""
    n = np.stack(np.meshgrid(*[np.arange(4)] * 3, indexing="ij"), -1).reshape(-1, 3)
    species, x = n.sum(1) % 2, jnp.asarray(n * 1.0)
    box, params = jnp.full(3, 4.0), {"charge": jnp.asarray([1.0, -1.0])}
    for alpha, reciprocal in ((2.6, md.Ewald(14)), (2.2, md.Ewald(12)), (2.2, md.PME(48, 8))):
        potential = md.Coulomb(2.0, species, reciprocal, alpha=alpha, path="dense")
        energy = eqx.filter_jit(potential.energy)(params, x, box) / 64
        forces = eqx.filter_jit(potential.forces)(params, x, box)
        assert energy == pytest.approx(-1.747564594633 / 2, rel=2e-7)
        assert float(jnp.abs(forces).max()) < 1e-9


def test_two_charges_in_a_large_box_are_alone():
    potential = md.Coulomb(40.0, [0, 1], md.Ewald(12), units="metal", path="dense")
    x, box = jnp.asarray([[1.0, 2, 3], [2.5, 2, 3]]), jnp.full(3, 81.0)
    params = {"charge": jnp.asarray([0.7, -0.7])}
    constant = md.coulomb_constant("metal")
    both = jax.jit(lambda *given: (potential.energy(*given), potential.forces(*given)))
    energy, forces = both(params, x, box)
    assert energy == pytest.approx(-0.49 * constant / 1.5, rel=1e-4)
    assert forces[0, 0] == pytest.approx(0.49 * constant / 1.5**2, rel=1e-4)


def test_constants_and_published_models():
    assert md.coulomb_constant("real") == pytest.approx(332.06371, rel=1e-7)
    assert md.coulomb_constant("gromacs") == pytest.approx(138.935458, rel=1e-7)
    spce = md.water_parameters("spce", "gromacs")
    assert convert(spce["epsilon"], "kJ/mol", "K") == pytest.approx(78.1974, rel=1e-5)
    assert spce["sigma"] == pytest.approx(0.316555789)
    conditions = md.water_box(5, units="gromacs")
    oh = conditions["positions"].reshape(5, 3, 3)
    bonds = np.linalg.norm(oh[:, 1:] - oh[:, :1], axis=-1)
    np.testing.assert_allclose(bonds, 0.1, rtol=1e-12)
    np.testing.assert_allclose(
        np.linalg.norm(oh[:, 1] - oh[:, 2], axis=-1), 0.2 * math.sqrt(2 / 3), rtol=1e-12
    )
    density = 5 * 18.0154 / np.prod(conditions["box"])
    assert convert(density, "dalton/nm^3", "kg/m^3") == pytest.approx(997.0, rel=1e-6)


@pytest.mark.parametrize("reach", [2.0, 3.2, 5.0])
@pytest.mark.parametrize(("small", "close", "most"), [(1e-17, 2e-14, 32), (6e-9, 1e-8, 22)])
def test_the_error_function_is_a_short_series(reach, small, close, most):
    """To rounding, and no longer than it takes: eighty terms took six times as long."""
    y = np.linspace(1.5, reach**2, 50)
    root, t = np.sqrt(y), jnp.asarray(2 * y / reach**2 - 1)
    value = special.erf(root) / root
    slope = (2 / math.sqrt(math.pi) * np.exp(-y) - value) / (2 * y) * reach**2 / 2
    for derivative, wanted in ((False, value), (True, slope)):
        terms = _error_function(reach**2, derivative, small)
        assert 8 < len(terms) <= most
        np.testing.assert_allclose(_series(terms, t), wanted, rtol=0, atol=close)


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="alpha: leaves charges unscreened"):
        md.Coulomb(3.0, [0, 1], alpha=0.3)
    potential = md.Coulomb(3.0, [0, 1])
    with pytest.raises(ConfigError, match="charge: must be 2"):
        potential.check({"charge": np.asarray([1.0])}, np.full(3, 9.0))
    with pytest.raises(ConfigError, match="reciprocal: has too few waves"):
        potential.check({"charge": np.asarray([1.0, -1.0])}, np.full(3, 90.0))
    with pytest.raises(ConfigError, match="order"):
        md.PME(24, 5)
    with pytest.raises(ConfigError, match="no such water"):
        md.water_parameters("SPC/F")
    with pytest.raises(ConfigError, match="needs the parameters"):
        md.Water(2, 3.0).check({"epsilon": 1.0}, np.full(3, 9.0))


def test_states_of_water_start_from_a_lattice_or_a_file(tmp_path):
    given = md.water_states(
        molecules=8, temperature=[280.0, 300.0], pressure=0.1, pressure_unit="MPa", units="metal"
    )
    shapes = {key: value.shape for key, value in given.items()}
    assert shapes == dict(
        positions=(2, 24, 3), box=(2, 3), masses=(2, 24), temperature=(2,), pressure=(2,)
    )
    np.testing.assert_allclose(given["pressure"], 1.0)
    assert np.any(given["positions"][0] != given["positions"][1])
    atoms = ase.Atoms("OHH" * 8, positions=given["positions"][1], cell=given["box"][1], pbc=True)
    file = tmp_path / "start.extxyz"
    ase.io.write(file, atoms, format="extxyz")
    again = md.water_states(molecules=8, temperature=300.0, units="gromacs", start=file)
    np.testing.assert_allclose(again["positions"][0], given["positions"][1] / 10, atol=1e-8)
    np.testing.assert_allclose(again["box"][0], given["box"][1] / 10)
    with pytest.raises(ConfigError, match="24 atoms for 9 molecules"):
        md.water_states(molecules=9, temperature=300.0, start=file)
    with pytest.raises(ConfigError, match="must be positive"):
        md.water_states(molecules=8, temperature=[300.0, -1.0])

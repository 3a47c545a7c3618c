"""Lennard-Jones energies, forces and virials: NIST, exact results, invariances, derivatives."""

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq

from diffsim import ConfigError, md
from diffsim.md import _pairs
from problems import NIST, UNIT, nist, pair_by_pair, parameters, slow_but, unchecked

TRUNCATIONS = {
    "cut": md.LennardJones(1.9, "cut"),
    "shift": md.LennardJones(1.9, "shift"),
    "force_shift": md.LennardJones(1.9, "force_shift"),
    "switch": md.LennardJones(1.9, "switch"),
    "switch, early": md.LennardJones(1.9, "switch", onset=0.4),
}
WIDE = np.full(3, 200.0)
BOX = np.array([3.8, 4.3, 4.7])


@eqx.filter_jit
def thermo(potential, params, positions, box):
    """Energies and virial."""
    positions = jnp.asarray(positions)
    return potential.thermo(params, positions, jnp.asarray(box, positions.dtype))


@eqx.filter_jit
def sums(potential, params, positions, box):
    """Energies and virial, and forces."""
    positions, box = jnp.asarray(positions), jnp.asarray(box)
    return potential.thermo(params, positions, box), potential.forces(params, positions, box)


def pairs(r):
    """Two atoms at each of the distances `r`, shape (distances, 2, 3)."""
    r = jnp.atleast_1d(jnp.asarray(r))
    return jnp.zeros((len(r), 2, 3)).at[:, 1, 0].set(r) + jnp.asarray([0.3, -0.2, 0.1])


@eqx.filter_jit
def pair_curves(potential, r):
    """φ, -φ' and -φ'' from the potential's own energy and forces of two atoms."""

    def energy(x):
        return potential.energy(parameters(), x, jnp.asarray(WIDE))

    def force(x):
        return potential.forces(parameters(), x, jnp.asarray(WIDE))[1, 0]

    x = pairs(r)
    return jax.vmap(energy)(x), jax.vmap(force)(x), jax.vmap(jax.grad(force))(x)[:, 1, 0]


EACH = [(row, dtype) for row in NIST for dtype in ("float64", "float32")]


@pytest.mark.parametrize(("row", "dtype"), slow_but([*EACH[::4], EACH[3], EACH[7]], EACH))
def test_nist(row, dtype):
    case = NIST[row]
    positions, box = nist(case.config)
    tolerance = 1e-10 if dtype == "float64" else 1e-5
    positions = jnp.asarray(positions, dtype)
    potential = md.LennardJones(case.cutoff, case.truncation)  # pyright: ignore
    found = thermo(potential, parameters(), positions, box)
    assert found.energy.dtype == found.virial.dtype == dtype
    assert found.energy == pytest.approx(case.energy, rel=tolerance)
    assert found.virial == pytest.approx(case.virial, rel=tolerance)
    if case.truncation != "cut":
        return
    tailed = md.LennardJones(case.cutoff, tail=True)
    energy, virial = tailed.tail_correction(UNIT, len(positions), jnp.asarray(box, dtype))
    assert energy == pytest.approx(case.tail, rel=tolerance)
    if row == "3, 4":
        total = thermo(tailed, parameters(), positions, box)
        assert total.energy == pytest.approx(case.energy + case.tail, rel=tolerance)
        assert total.virial == pytest.approx(case.virial + float(virial), rel=tolerance)


def test_numbers_and_numpy_arrays_will_do():
    case = NIST["3, 3"]
    positions, box = nist(case.config)
    potential: Any = md.LennardJones(3.0)
    assert potential.energy(UNIT, positions, box) == pytest.approx(case.energy, rel=1e-10)
    assert potential.virial(UNIT, positions, box) == pytest.approx(case.virial, rel=1e-10)
    assert potential.forces(UNIT, positions, box).shape == positions.shape


def test_mixed_precision_against_nist():
    """Pairs in float32, states and sums in float64: energies to 1e-6, forces to 1e-4."""
    case = NIST["1, 3"]
    positions, box = nist(case.config)
    positions = positions + 1000 * box  # far from the origin, where float32 alone would fail
    mixed = md.LennardJones(3.0, precision="mixed")
    found, force = sums(mixed, parameters(), positions, box)
    assert found.energy == pytest.approx(case.energy, rel=1e-6)
    assert found.virial == pytest.approx(case.virial, rel=1e-5)
    _, _, expected = pair_by_pair(mixed, UNIT, positions, box)
    assert force.dtype == "float64"
    assert np.abs(force - expected).max() < 1e-4 * np.abs(expected).max()


def test_fcc_lattice_energy():
    """-8.610200 ε an atom at the distance of least energy, 1.090173 σ."""
    cells, edge = 10, 1.090173 * math.sqrt(2)
    positions, box = md.lattice(4 * cells**3, box=np.full(3, cells * edge), kind="fcc")
    potential = md.LennardJones(cells * edge / 2, tail=True)
    energy = thermo(potential, parameters(), positions, box).energy / len(positions)
    assert energy == pytest.approx(-8.610200, rel=1e-4)  # the tail of a crystal is not uniform
    # The same sum shell by shell, so far out that the tail's error is of order 1e-7.
    half = np.arange(-40, 41)
    sites = np.stack(np.meshgrid(half, half, half), axis=-1).reshape(-1, 3)
    squares, counts = np.unique(
        (sites**2).sum(axis=1)[sites.sum(axis=1) % 2 == 0], return_counts=True
    )
    near = (squares > 0) & (squares < 40**2)
    r = np.sqrt(squares[near] / 2) * 1.090173
    reach, density = 40 / math.sqrt(2) * 1.090173, 4 / edge**3
    shells = 0.5 * float(counts[near] @ np.asarray(pair_curves(md.LennardJones(90.0), r)[0]))
    assert shells - 8 / 3 * math.pi * density * reach**-3 == pytest.approx(-8.610200, abs=1e-6)


def panels(edges):
    """Nodes and weights of Gauss and Legendre between each two of the edges."""
    nodes, weights = np.polynomial.legendre.leggauss(200)
    low, width = np.asarray(edges)[:-1, None], np.diff(edges)[:, None]
    return (low + width * (nodes + 1) / 2).ravel(), (width / 2 * weights).ravel()


def second_virial(temperature):
    """B₂ = -2π ∫ (exp(-φ/T) - 1) r² dr, by quadrature of the energy of two atoms."""
    r, w = panels([0.0, 0.8, 1.0, 1.5, 3.0, 10.0, 90.0])
    # What is nearer than 0.1 σ has a Boltzmann factor of zero, and energies of 1e12.
    phi = np.asarray(pair_curves(md.LennardJones(90.0), np.maximum(r, 0.1))[0])
    inside = -2 * math.pi * np.sum(w * r**2 * np.expm1(-phi / temperature))
    return inside - 2 * math.pi * 4 / (3 * 90.0**3 * temperature)


def test_second_virial_coefficient():
    assert second_virial(1.0) == pytest.approx(-5.31574508, abs=1e-7)
    assert second_virial(2.0) == pytest.approx(-1.31449530, abs=1e-7)
    assert brentq(second_virial, 3.0, 4.0, xtol=1e-10) == pytest.approx(3.41792798, abs=1e-7)


# Which of energy, force and slope of the force go on without a jump at the cutoff.
SMOOTHNESS = {"cut": 0, "shift": 1, "force_shift": 2, "switch": 3, "switch, early": 3}


@pytest.mark.parametrize("name", slow_but(["force_shift", "switch, early"], TRUNCATIONS))
def test_smoothness_at_the_cutoff(name):
    potential = TRUNCATIONS[name]
    beside = potential.cutoff * (1 + np.array([-1e-9, 1e-9]))
    curves = [np.abs(curve) for curve in pair_curves(potential, beside)]
    assert all(curve[1] == 0 for curve in curves)
    assert all(curve[0] < 1e-6 for curve in curves[: SMOOTHNESS[name]])
    assert all(curve[0] > 1e-3 for curve in curves[SMOOTHNESS[name] :])


@pytest.mark.parametrize("name", [name for name in TRUNCATIONS if "switch" in name])
def test_switch_starts_smoothly(name):
    potential = TRUNCATIONS[name]
    beside = potential._onset() * (1 + np.array([-1e-8, 1e-8]))
    plain = pair_curves(md.LennardJones(90.0), beside)
    for switched, curve in zip(pair_curves(potential, beside), plain, strict=True):
        np.testing.assert_allclose(switched, curve, rtol=1e-6)


def small_liquid(seed, atoms=10):
    """Atoms that keep some distance in a box of three different edges, so that no axis can stand in
    for another."""
    positions, _ = md.lattice(atoms, box=BOX)
    return positions + np.random.default_rng(seed).uniform(-0.2, 0.2, positions.shape)


def check_against_definition(name, positions):
    potential, params = TRUNCATIONS[name], parameters(0.7, 0.95)
    energy, virial, expected = pair_by_pair(potential, params, positions, BOX)
    driving = energy
    if name == "cut":
        driving = pair_by_pair(md.LennardJones(1.9, "shift"), params, positions, BOX)[0]
    found, force = sums(potential, params, positions, BOX)
    scale = 1e-11 * max(1.0, abs(energy))
    assert found.energy == pytest.approx(energy, abs=scale)
    assert found.driving == pytest.approx(driving, abs=scale)
    assert found.virial == pytest.approx(virial, abs=10 * scale)
    np.testing.assert_allclose(force, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", TRUNCATIONS)
def test_sums_are_those_of_the_definition(name):
    check_against_definition(name, small_liquid(0))


@pytest.mark.parametrize("atoms", [1, 2, 7, 12, 13])
def test_all_sizes_of_tiles(monkeypatch, atoms):
    """Numbers of atoms that fill the engine's blocks of rows, and that do not."""
    monkeypatch.setattr(_pairs, "BLOCK", 6)
    check_against_definition("switch", small_liquid(atoms, atoms))


class Derivatives(NamedTuple):
    forces: Any
    minus_gradient: Any
    virial: Any
    minus_strain: Any
    pullback: Any  # of the forces, in parameters and positions, by the potential's own method
    transpose: Any  # by autodiff
    others: Any  # gradients of reported energy and virial


@eqx.filter_jit
def derivatives(potential, params, x):
    box = jnp.asarray(BOX)
    w = jnp.sin(1 + jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape)

    def driving(x, scale):
        return potential.driving_energy(params, scale * x, scale * box)

    def reported(params, x):
        found = potential.thermo(params, x, box)
        return found.energy + 2 * found.virial

    gradient, strain = jax.grad(driving, argnums=(0, 1))(x, 1.0)
    forces, transpose = jax.vjp(lambda p, x: potential.forces(p, x, box), params, x)
    return Derivatives(
        forces,
        -gradient,
        potential.virial(params, x, box),
        -strain,
        potential.pullback(params, x, box, w),
        transpose(w),
        jax.grad(reported, argnums=(0, 1))(params, x),
    )


@pytest.mark.parametrize("name", slow_but(["force_shift", "switch, early"], TRUNCATIONS))
def test_forces_and_virial_are_derivatives_of_the_driving_energy(name):
    found = derivatives(TRUNCATIONS[name], parameters(0.7, 0.95), jnp.asarray(small_liquid(1, 6)))
    assert np.abs(found.forces).max() > 0.1
    np.testing.assert_allclose(found.forces, found.minus_gradient, rtol=1e-10, atol=1e-10)
    assert found.virial == pytest.approx(float(found.minus_strain), rel=1e-10)
    ours, theirs = jax.tree.leaves(found.pullback), jax.tree.leaves(found.transpose)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "name", slow_but(["shift", "switch, early"], ["cut", "shift", "switch", "switch, early"])
)
def test_tail_is_what_the_truncation_leaves_out(name):
    """2πNρ ∫ (φ_full - φ) r² dr and the same of the virial, with g(r) = 1; for a shifted potential
    as for a cut one, by convention."""
    potential = TRUNCATIONS["cut" if name == "shift" else name]
    atoms, box = 100, np.array([4.0, 5.0, 6.0])
    density = atoms / np.prod(box)

    r, w = panels([potential._onset(), potential.cutoff, 2 * potential.cutoff, 8.0, 30.0, 90.0])

    def missing(of):
        full, own = pair_curves(md.LennardJones(90.0), r), pair_curves(potential, r)
        return 2 * math.pi * atoms * density * np.sum(w * r**2 * np.asarray(of(full) - of(own)))

    own = TRUNCATIONS[name]
    energy, virial = own.tail_correction(parameters(), atoms, jnp.asarray(box))
    beyond = 2 * math.pi * atoms * density * 4 / 3 * 90.0**-3
    assert energy == pytest.approx(missing(lambda curves: curves[0]) - beyond, rel=1e-8)
    by_virial = missing(lambda curves: r * curves[1])
    assert virial == pytest.approx(by_virial - 6 * beyond, rel=1e-8)
    with pytest.raises(ConfigError, match="tail"):
        md.LennardJones(1.9, "force_shift", tail=True)


SPECIAL = [0.0, 0.4, 0.8 * 1.9, 1.9, math.nextafter(1.9, 0), math.nextafter(1.9, 2), 2 ** (1 / 6)]


@pytest.mark.parametrize("name", TRUNCATIONS)
@given(
    r=st.one_of(st.sampled_from(SPECIAL), st.floats(0.05, 4.0)),
    epsilon=st.floats(1e-3, 1e3),
    sigma=st.floats(0.5, 2.0),
    third=st.sampled_from([(2.0, 2.2, 2.4), (0.0, 0.0, 0.0), (0.0, 1.9, 0.0)]),
)
def test_derivatives_are_finite_everywhere(name, r, epsilon, sigma, third):
    """The third atom far away, in the place of the first, or at the cutoff from it."""
    x = jnp.asarray([*small_liquid(2, 6)[:3], (0.0, 0.0, 0.0), (r, 0.0, 0.0), third])
    found = derivatives(TRUNCATIONS[name], parameters(epsilon, sigma), x)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(found))


@pytest.mark.parametrize("name", TRUNCATIONS)
def test_empty_neighbourhoods(name):
    """Six atoms in the three places of the box that are farther apart than the cutoff."""
    x = jnp.asarray([(0.0, 0.0, 0.0), (1.9, 2.1, 0.0), (0.0, 2.1, 2.3)] * 2)
    found = derivatives(TRUNCATIONS[name], parameters(), x)
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(found))


# Invariances.
def everything(name, positions):
    found, force = sums(TRUNCATIONS[name], parameters(0.8, 0.97), positions, BOX)
    return np.array([found.energy, found.driving, found.virial]), np.asarray(force)


seeds = st.integers(0, 10**6)
names = st.sampled_from(list(TRUNCATIONS))


@given(seed=seeds, name=names, shift=st.tuples(*[st.floats(-50, 50)] * 3))
def test_translation(seed, name, shift):
    numbers, force = everything(name, small_liquid(seed))
    moved, same = everything(name, small_liquid(seed) + np.array(shift))
    np.testing.assert_allclose(moved, numbers, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(same, force, rtol=1e-9, atol=1e-9)


@given(seed=seeds, name=names, order=st.permutations(range(10)))
def test_permutation(seed, name, order):
    order = np.array(order)
    numbers, force = everything(name, small_liquid(seed))
    permuted, same = everything(name, small_liquid(seed)[order])
    np.testing.assert_allclose(permuted, numbers, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(same, force[order], rtol=1e-11, atol=1e-11)


@given(seed=seeds, name=names, images=st.lists(st.integers(-3, 3), min_size=30, max_size=30))
def test_box_images(seed, name, images):
    numbers, force = everything(name, small_liquid(seed))
    moved, same = everything(name, small_liquid(seed) + np.array(images).reshape(10, 3) * BOX)
    np.testing.assert_allclose(moved, numbers, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(same, force, rtol=1e-10, atol=1e-10)


@given(seed=seeds, name=names)
def test_forces_sum_to_zero(seed, name):
    _, force = everything(name, small_liquid(seed))
    np.testing.assert_allclose(force.sum(axis=0), 0, atol=1e-12 * np.abs(force).max())


@pytest.mark.parametrize("name", slow_but(["switch"], ["cut", "force_shift", "switch"]))
def test_scaling(name):
    """U(ε, σ; σ x, σ L, σ rc) = ε U(1, 1; x, L, rc): corresponding states."""
    x, tail = small_liquid(3), name != "force_shift"
    reduced = sums(md.LennardJones(1.9, name, tail), parameters(), x, BOX)  # pyright: ignore
    large = md.LennardJones(1.9 * 3.4, name, tail)  # pyright: ignore
    real = sums(large, parameters(2.5, 3.4), 3.4 * x, 3.4 * BOX)
    for a, b in zip(jax.tree.leaves(reduced[0]), jax.tree.leaves(real[0]), strict=True):
        assert b == pytest.approx(2.5 * float(a), rel=1e-10)
    np.testing.assert_allclose(real[1], 2.5 / 3.4 * reduced[1], rtol=1e-9, atol=1e-9)


REFUSED = {
    "cutoff": (dict(cutoff=-1.0), "cutoff: must be positive"),
    "nan cutoff": (dict(cutoff=math.nan), "cutoff: must be positive"),
    "truncation": (dict(cutoff=2.0, truncation="swich"), "did you mean switch"),
    "precision": (dict(cutoff=2.0, precision="mixd"), "did you mean mixed"),
    "onset": (dict(cutoff=2.0, truncation="switch", onset=2.0), "onset: must lie between"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_options_are_refused(name):
    options, message = REFUSED[name]
    with unchecked(), pytest.raises(ConfigError, match=message):
        md.LennardJones(**options)


@pytest.mark.parametrize(
    ("params", "box", "message"),
    [
        (UNIT, [3.7, 9.0, 9.0], r"cutoff: is over half the box \(1.85\).*did you mean 1.85"),
        (UNIT, [math.nan, 9.0, 9.0], "box"),
        ({"epsilon": -1.0, "sigma": 1.0}, [9.0] * 3, "epsilon: must not be negative"),
        ({"epsilon": 1.0, "sigma": 0.0}, [9.0] * 3, "sigma: must be positive"),
        ({"eps": 1.0, "sigma": 1.0}, [9.0] * 3, "epsilon and sigma"),
    ],
)
def test_bad_conditions_are_refused(params, box, message):
    with pytest.raises(ConfigError, match=message):
        TRUNCATIONS["cut"].check(params, np.asarray(box))

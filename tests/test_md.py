"""Lennard-Jones energies, forces and virials: NIST, exact results, invariances, safe derivatives."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.optimize import brentq

from diffsim import ConfigError, md
from problems import NIST, UNIT, liquid, nist, pair_by_pair, parameters

TRUNCATIONS = {
    "cut": md.LennardJones(1.9, "cut"),
    "shift": md.LennardJones(1.9, "shift"),
    "force_shift": md.LennardJones(1.9, "force_shift"),
    "switch": md.LennardJones(1.9, "switch"),
    "switch, early": md.LennardJones(1.9, "switch", onset=0.4),
}
WIDE = np.full(3, 200.0)


@eqx.filter_jit
def thermo(potential, params, positions, box):
    return potential.thermo(params, jnp.asarray(positions), jnp.asarray(box, positions.dtype))


@eqx.filter_jit
def forces(potential, params, positions, box):
    return potential.forces(params, jnp.asarray(positions), jnp.asarray(box, positions.dtype))


def pairs(r):
    """Two atoms at each of the distances `r`, shape (distances, 2, 3)."""
    r = jnp.atleast_1d(jnp.asarray(r))
    return jnp.zeros((len(r), 2, 3)).at[:, 1, 0].set(r) + jnp.asarray([0.3, -0.2, 0.1])


@eqx.filter_jit
def pair_energy(potential, r):
    """The potential's own energy of two atoms a distance r apart."""
    return jax.vmap(lambda x: potential.energy(parameters(), x, jnp.asarray(WIDE)))(pairs(r))


@eqx.filter_jit
def pair_force(potential, r):
    """-φ'(r)."""
    return jax.vmap(lambda x: potential.forces(parameters(), x, jnp.asarray(WIDE))[1, 0])(pairs(r))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("row", NIST)
def test_nist(row, dtype):
    case = NIST[row]
    positions, box = nist(case.config)
    tolerance = 1e-10 if dtype == "float64" else 1e-5
    has_tail = case.truncation == "cut"
    positions = jnp.asarray(positions, dtype)
    potential = md.LennardJones(case.cutoff, case.truncation)  # pyright: ignore
    found = thermo(potential, parameters(), positions, box)
    assert found.energy.dtype == found.virial.dtype == dtype
    assert found.energy == pytest.approx(case.energy, rel=tolerance)
    assert found.virial == pytest.approx(case.virial, rel=tolerance)
    if has_tail:
        corrected = md.LennardJones(case.cutoff, case.truncation, tail=True)  # pyright: ignore
        more = corrected.tail_correction(UNIT, len(positions), jnp.asarray(box, dtype))
        assert more[0] == pytest.approx(case.tail, rel=tolerance)
        total = thermo(corrected, parameters(), positions, box)
        assert total.energy == pytest.approx(case.energy + case.tail, rel=tolerance)
        assert total.virial == pytest.approx(case.virial + float(more[1]), rel=tolerance)


def test_numbers_and_numpy_arrays_will_do():
    case = NIST["3, 3"]
    positions, box = nist(case.config)
    potential = md.LennardJones(3.0)
    assert potential.energy(UNIT, positions, box) == pytest.approx(case.energy, rel=1e-10)
    assert potential.virial(UNIT, positions, box) == pytest.approx(case.virial, rel=1e-10)
    assert potential.forces(UNIT, positions, box).shape == positions.shape


def test_mixed_precision_against_nist():
    """Pairs in float32, states in float64: energies to 1e-10 all the same, forces to 1e-4."""
    case = NIST["1, 3"]
    positions, box = nist(case.config)
    positions = positions + 1000 * box  # far from the origin, where float32 alone would fail
    mixed = md.LennardJones(3.0, precision="mixed")
    found = thermo(mixed, parameters(), positions, box)
    assert found.energy == pytest.approx(case.energy, rel=1e-10)
    found = forces(mixed, parameters(), positions, box)
    _, _, expected = pair_by_pair(mixed, UNIT, positions, box)
    assert found.dtype == "float64"
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


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
    squares, counts = np.unique((sites**2).sum(axis=1)[sites.sum(axis=1) % 2 == 0], return_counts=True)
    near = (squares > 0) & (squares < 40**2)
    r = np.sqrt(squares[near] / 2) * 1.090173
    reach, density = 40 / math.sqrt(2) * 1.090173, 4 / edge**3
    shells = 0.5 * float(counts[near] @ np.asarray(pair_energy(md.LennardJones(90.0), r)))
    assert shells - 8 / 3 * math.pi * density * reach**-3 == pytest.approx(-8.610200, abs=1e-6)


def second_virial(temperature):
    """B₂ = -2π ∫ (exp(-φ/T) - 1) r² dr, by quadrature of the energy of two atoms."""
    nodes, weights = np.polynomial.legendre.leggauss(200)
    edges = np.array([0.0, 0.8, 1.0, 1.5, 3.0, 10.0, 90.0])
    low, width = edges[:-1, None], np.diff(edges)[:, None]
    r, w = (low + width * (nodes + 1) / 2).ravel(), (width / 2 * weights).ravel()
    # What is nearer than 0.1 σ has a Boltzmann factor of zero, and energies of 1e12.
    phi = np.asarray(pair_energy(md.LennardJones(90.0), np.maximum(r, 0.1)))
    inside = -2 * math.pi * np.sum(w * r**2 * np.expm1(-phi / temperature))
    return inside - 2 * math.pi * 4 / (3 * 90.0**3 * temperature)


def test_second_virial_coefficient():
    assert second_virial(1.0) == pytest.approx(-5.31574508, abs=1e-7)
    assert second_virial(2.0) == pytest.approx(-1.31449530, abs=1e-7)
    assert brentq(second_virial, 3.0, 4.0, xtol=1e-10) == pytest.approx(3.41792798, abs=1e-7)


# Which of energy, force and slope of the force go on without a jump at the cutoff.
SMOOTHNESS = {"cut": 0, "shift": 1, "force_shift": 2, "switch": 3, "switch, early": 3}


@pytest.mark.parametrize("name", TRUNCATIONS)
def test_smoothness_at_the_cutoff(name):
    potential = TRUNCATIONS[name]
    below, above = potential.cutoff * (1 - 1e-9), potential.cutoff * (1 + 1e-9)

    def slope(r):
        return jax.grad(lambda r: pair_force(potential, r)[0])(r)

    jumps = []
    for quantity in (lambda r: pair_energy(potential, r)[0], lambda r: pair_force(potential, r)[0]):
        assert quantity(above) == 0
        jumps.append(abs(float(quantity(below))))
    jumps.append(abs(float(slope(jnp.asarray(below)))))
    smooth = SMOOTHNESS[name]
    assert all(jump < 1e-6 for jump in jumps[:smooth])
    assert all(jump > 1e-3 for jump in jumps[smooth:])


@pytest.mark.parametrize("name", [name for name in TRUNCATIONS if "switch" in name])
def test_switch_starts_smoothly(name):
    potential = TRUNCATIONS[name]
    onset = potential._onset()
    r = np.array([onset * (1 - 1e-7), onset * (1 + 1e-7)])
    plain = md.LennardJones(90.0)
    np.testing.assert_allclose(pair_energy(potential, r), pair_energy(plain, r), rtol=1e-9)
    np.testing.assert_allclose(pair_force(potential, r), pair_force(plain, r), rtol=1e-9)


@pytest.mark.parametrize("atoms", [1, 2, 31, 53, 101])
@pytest.mark.parametrize("name", TRUNCATIONS)
def test_sums_are_those_of_the_definition(name, atoms):
    """Numbers of atoms that fill the engine's tiles, and that do not; a box with three edges."""
    if atoms > 53 and name != "switch":
        pytest.skip("the tiles are the same for all truncations")
    potential, params = TRUNCATIONS[name], parameters(0.7, 0.9)
    positions, _ = liquid(atoms, 0.3, seed=atoms)
    box = np.array([3.9, 4.4, 5.1]) * max(1.0, (atoms / 53) ** (1 / 3))
    energy, virial, expected = pair_by_pair(potential, params, positions, box)
    found = thermo(potential, params, positions, box)
    driving = energy
    if name == "cut":
        driving = pair_by_pair(md.LennardJones(1.9, "shift"), params, positions, box)[0]
    scale = max(1.0, abs(energy))
    assert found.energy == pytest.approx(energy, abs=1e-11 * scale)
    assert found.driving == pytest.approx(driving, abs=1e-11 * scale)
    assert found.virial == pytest.approx(virial, abs=1e-10 * scale)
    np.testing.assert_allclose(
        forces(potential, params, positions, box), expected, rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("tail", [False, True])
@pytest.mark.parametrize("name", TRUNCATIONS)
def test_forces_and_virial_are_derivatives_of_the_driving_energy(name, tail):
    if tail and name == "force_shift":
        pytest.skip("refused")
    kind = TRUNCATIONS[name]
    potential = md.LennardJones(kind.cutoff, kind.truncation, tail, onset=kind.onset)
    params = parameters(0.7, 0.95)
    positions, box = liquid(32, 0.55, seed=3)
    box = jnp.asarray(box)

    @jax.jit
    def both(x):
        def driving(x, scale):
            return potential.driving_energy(params, scale * x, scale * box)

        gradient, strain = jax.grad(driving, argnums=(0, 1))(x, 1.0)
        return potential.forces(params, x, box), gradient, potential.virial(params, x, box), strain

    force, gradient, virial, strain = both(jnp.asarray(positions))
    np.testing.assert_allclose(force, -gradient, rtol=1e-10, atol=1e-10)
    if tail:
        virial = virial - potential.tail_correction(params, 32, box)[1]
    assert virial == pytest.approx(float(-strain), rel=1e-10)
    np.testing.assert_allclose(np.sum(force, axis=0), 0, atol=1e-11)


@pytest.mark.parametrize("name", TRUNCATIONS)
def test_pullback_is_that_of_autodiff(name):
    potential, params = TRUNCATIONS[name], parameters(0.7, 0.95)
    positions, box = liquid(32, 0.55, seed=4)
    w = np.random.default_rng(5).standard_normal(positions.shape)

    @jax.jit
    def both(x):
        _, transpose = jax.vjp(lambda p, x: potential.forces(p, x, jnp.asarray(box)), params, x)
        return transpose(jnp.asarray(w)), potential.pullback(params, x, jnp.asarray(box), jnp.asarray(w))

    (by_params, by_x), (fast_params, fast_x) = both(jnp.asarray(positions))
    np.testing.assert_allclose(fast_x, by_x, rtol=1e-9, atol=1e-8)
    for key in params:
        assert fast_params[key] == pytest.approx(float(by_params[key]), rel=1e-10)


@pytest.mark.parametrize("name", ["cut", "shift", "switch", "switch, early"])
def test_tail_is_what_the_truncation_leaves_out(name):
    """2πNρ ∫ (φ_full - φ) r² dr and the same of the virial, with g(r) = 1; for a shifted potential
    as for a cut one, by convention."""
    potential = TRUNCATIONS["cut" if name == "shift" else name]
    atoms, box = 100, np.array([4.0, 5.0, 6.0])
    density = atoms / np.prod(box)

    def missing(of):
        def integrand(r):
            return r**2 * float(of(md.LennardJones(90.0), r)[0] - of(potential, r)[0])

        low, rc = potential._onset(), potential.cutoff
        parts = [(low, rc), (rc, 3 * rc), (3 * rc, 90.0)]
        total = sum(quad(integrand, a, b, epsabs=1e-11, epsrel=1e-10)[0] for a, b in parts)
        return 2 * math.pi * atoms * density * total

    own = TRUNCATIONS[name]
    energy, virial = own.tail_correction(UNIT, atoms, jnp.asarray(box))
    beyond = 2 * math.pi * atoms * density * 4 / 3 * 90.0**-3
    assert energy == pytest.approx(missing(pair_energy) - beyond, rel=1e-8)
    by_virial = missing(lambda potential, r: r * pair_force(potential, r))
    assert virial == pytest.approx(by_virial - 6 * beyond, rel=1e-8)
    with pytest.raises(ConfigError, match="tail"):
        md.LennardJones(1.9, "force_shift", tail=True)


SPECIAL = [0.0, 0.4, 0.8 * 1.9, 1.9, math.nextafter(1.9, 0), math.nextafter(1.9, 2), 2 ** (1 / 6)]


@eqx.filter_jit
def all_derivatives(potential, params, x):
    box = jnp.asarray([4.0, 4.5, 5.0])

    def everything(params, x):
        t = potential.thermo(params, x, box)
        w = jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape)
        return t.energy + t.driving + t.virial + jnp.sum(w * potential.forces(params, x, box))

    w = jnp.sin(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape)
    reverse = jax.grad(everything, argnums=(0, 1))(params, x)
    forward = jax.jvp(everything, (params, x), (params, w))
    return reverse, forward, potential.pullback(params, x, box, w)


@pytest.mark.parametrize("name", TRUNCATIONS)
@given(
    r=st.one_of(st.sampled_from(SPECIAL), st.floats(0.05, 4.0)),
    epsilon=st.floats(1e-3, 1e3),
    sigma=st.floats(0.5, 2.0),
    crowd=st.sampled_from(["far", "same place", "at the cutoff"]),
)
def test_derivatives_are_finite_everywhere(name, r, epsilon, sigma, crowd):
    third = {"far": [2.0, 2.2, 2.4], "same place": [0.0] * 3, "at the cutoff": [0.0, 1.9, 0.0]}
    x = jnp.asarray([[0.0, 0.0, 0.0], [r, 0.0, 0.0], third[crowd]])
    out = all_derivatives(TRUNCATIONS[name], parameters(epsilon, sigma), x)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(out))


@pytest.mark.parametrize("name", TRUNCATIONS)
@pytest.mark.parametrize("atoms", [1, 2])
def test_empty_neighbourhoods(name, atoms):
    x = jnp.asarray([[0.0, 0.0, 0.0], [2.0, 2.2, 2.4]])[:atoms]
    (reverse, forward, pullback) = all_derivatives(TRUNCATIONS[name], parameters(), x)
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves((reverse, forward, pullback)))


# Invariances. The box has three different edges, so that no axis can stand in for another.
BOX = np.array([3.9, 4.4, 5.1])


def everything(name, positions):
    potential, params = TRUNCATIONS[name], parameters(0.8, 0.97)
    found = thermo(potential, params, positions, BOX)
    numbers = np.array([found.energy, found.driving, found.virial])
    return numbers, np.asarray(forces(potential, params, positions, BOX))


def crowd(seed):
    """Twenty atoms that keep their distance, somewhere around a crystal."""
    positions, _ = md.lattice(20, box=BOX)
    return positions + np.random.default_rng(seed).uniform(-0.15, 0.15, positions.shape)


seeds = st.integers(0, 10**6)
names = st.sampled_from(list(TRUNCATIONS))


@given(seed=seeds, name=names, shift=st.tuples(*[st.floats(-50, 50)] * 3))
def test_translation(seed, name, shift):
    numbers, force = everything(name, crowd(seed))
    moved, same = everything(name, crowd(seed) + np.array(shift))
    np.testing.assert_allclose(moved, numbers, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(same, force, rtol=1e-9, atol=1e-9)


@given(seed=seeds, name=names, order=st.permutations(range(20)))
def test_permutation(seed, name, order):
    order = np.array(order)
    numbers, force = everything(name, crowd(seed))
    permuted, same = everything(name, crowd(seed)[order])
    np.testing.assert_allclose(permuted, numbers, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(same, force[order], rtol=1e-11, atol=1e-11)


@given(seed=seeds, name=names, images=st.lists(st.integers(-3, 3), min_size=60, max_size=60))
def test_box_images(seed, name, images):
    numbers, force = everything(name, crowd(seed))
    moved, same = everything(name, crowd(seed) + np.array(images).reshape(20, 3) * BOX)
    np.testing.assert_allclose(moved, numbers, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(same, force, rtol=1e-10, atol=1e-10)


@given(seed=seeds, name=names)
def test_forces_sum_to_zero(seed, name):
    _, force = everything(name, crowd(seed))
    np.testing.assert_allclose(force.sum(axis=0), 0, atol=1e-12 * np.abs(force).max())


@pytest.mark.parametrize("epsilon", [0.3, 2.5])
def test_scaling(epsilon):
    """U(ε, σ; σ x, σ L, σ rc) = ε U(1, 1; x, L, rc): corresponding states."""
    positions, box = liquid(32, 0.55, seed=6)
    for name, truncation in (("cut", True), ("switch", True), ("force_shift", False)):
        one = md.LennardJones(1.9, name, truncation)  # pyright: ignore
        large = md.LennardJones(1.9 * 3.4, name, truncation)  # pyright: ignore
        reduced = thermo(one, parameters(), positions, box)
        real = thermo(large, parameters(epsilon, 3.4), 3.4 * positions, 3.4 * box)
        for a, b in zip(jax.tree.leaves(reduced), jax.tree.leaves(real), strict=True):
            assert b == pytest.approx(float(epsilon * a), rel=1e-10)


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
    with pytest.raises(ConfigError, match=message):
        md.LennardJones(**options)


@pytest.mark.parametrize(
    ("params", "box", "message"),
    [
        (UNIT, [3.7, 9.0, 9.0], r"cutoff: is over half the box \(1.85\).*did you mean 1.85"),
        (UNIT, [math.nan, 9.0, 9.0], "box"),
        ({"epsilon": -1.0, "sigma": 1.0}, [9.0] * 3, "epsilon: must be positive"),
        ({"epsilon": 1.0, "sigma": 0.0}, [9.0] * 3, "sigma: must be positive"),
        ({"eps": 1.0, "sigma": 1.0}, [9.0] * 3, "epsilon and sigma"),
    ],
)
def test_bad_conditions_are_refused(params, box, message):
    with pytest.raises(ConfigError, match=message):
        TRUNCATIONS["cut"].check(params, np.asarray(box))

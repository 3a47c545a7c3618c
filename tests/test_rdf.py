import math
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.special import ndtr

from diffsim._errors import ConfigError
from diffsim.md import _rdf
from diffsim.md._rdf import RadialDistribution, radial_distribution
from diffsim.md._structures import lattice


def gas(seed, atoms=60, box=(5.0, 6.0, 7.0)):
    box = np.asarray(box)
    return np.random.default_rng(seed).uniform(0, 1, (atoms, 3)) * box, box


def counted(positions, box, bins, r_max):
    """The definition, pair by pair."""
    n = len(positions)
    d = positions[:, None] - positions
    d -= box * np.round(d / box)
    r = np.sqrt((d**2).sum(axis=-1))[np.triu_indices(n, 1)]
    counts, edges = np.histogram(r, bins, (0, r_max))
    return 2 * counts * np.prod(box) / (n * (n - 1) * 4 / 3 * np.pi * np.diff(edges**3))


@pytest.mark.parametrize("atoms", [2, 3, 60, 61])
@pytest.mark.parametrize("block", [2**20, 1000])
def test_counts_are_those_of_the_definition(monkeypatch, atoms, block):
    monkeypatch.setattr(_rdf, "BLOCK", block)
    bins = 23 if block == 1000 else 24  # or the other block's compilation would serve
    positions, box = gas(0, atoms)
    r, g = radial_distribution(positions - 3 * box, box, bins=bins, r_max=2.4)
    np.testing.assert_allclose(g, counted(positions, box, bins, 2.4), rtol=1e-10)
    np.testing.assert_allclose(r, (np.arange(bins) + 0.5) * 2.4 / bins, rtol=1e-12)


@pytest.mark.parametrize("between", [(0, 0), (1, 1), (0, 1), (1, 0), (0, 2)])
def test_counts_between_kinds(between):
    """Pair by pair; smeared by little they are the same in wide bins; of the kind of one too."""
    positions, box = gas(3, 30)
    species = np.array([0] * 12 + [1] * 17 + [2])
    a, b = (np.flatnonzero(species == kind) for kind in between)
    d = positions[a][:, None] - positions[b]
    d -= box * np.round(d / box)
    r = np.sqrt((d**2).sum(axis=-1))
    counts, edges = np.histogram(r[r > 0], 12, (0, 2.4))
    ordered = len(a) * (len(b) - (between[0] == between[1]))
    wanted = counts * np.prod(box) / (ordered * 4 / 3 * np.pi * np.diff(edges**3))
    kinds: dict[str, Any] = dict(bins=12, r_max=2.4, species=species, between=between)
    np.testing.assert_allclose(radial_distribution(positions, box, **kinds)[1], wanted, rtol=1e-10)
    seen = RadialDistribution(**{**kinds, "species": list(species)})
    state = types.SimpleNamespace(positions=jnp.asarray(positions), box=jnp.asarray(box))
    np.testing.assert_allclose(seen({}, state), wanted, rtol=1e-10)
    smeared = radial_distribution(positions, box, width=1e-6, **kinds)[1]
    np.testing.assert_allclose(smeared, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        (dict(between=(0, 1)), "needs the species"),
        (dict(species=np.zeros(60, int), between=(0, 1)), "no such kind"),
        (dict(species=np.zeros(6, int), between=(0, 0)), "6 entries for 60 atoms"),
    ],
)
def test_kinds_that_are_not_there_are_refused(kinds, message):
    with pytest.raises(ConfigError, match=message):
        radial_distribution(*gas(0), r_max=2.4, **kinds)


@pytest.mark.parametrize(("atoms", "width"), [(2, 0.0), (300, 0.0), (20, 0.1)])
def test_an_ideal_gas_gives_one(atoms, width):
    """Within 4 standard errors in every bin, and within 1 % where counts are many."""
    pairs = 2e5 if width else 2e6
    frames = int(pairs / (atoms * (atoms - 1) / 2) / 10) * 10
    box = np.array([5.0, 6.0, 7.0])
    x = np.random.default_rng(1).uniform(0, 1, (frames, atoms, 3)) * box
    one = jax.jit(jax.vmap(lambda x: radial_distribution(x, box, bins=20, width=width)[1]))
    g = np.mean([np.asarray(one(part)).mean(axis=0) for part in np.split(x, 10)], axis=0)
    edges = np.linspace(0, 2.5, 21)
    counts = frames * atoms * (atoms - 1) / 2 * np.diff(edges**3) * 4 / 3 * np.pi / np.prod(box)
    # Pairs that share an atom are uncorrelated in a gas, so that counts are Poisson's.
    error = 1 / np.sqrt(counts)
    assert np.all(np.abs(g - 1) < 4 * error)
    assert np.all(np.abs(g - 1)[error < 0.0025] < 0.01)
    shells = np.diff(edges**3)
    assert np.sum(shells * g) / np.sum(shells) == pytest.approx(1, abs=5 / np.sqrt(counts.sum()))


@pytest.mark.parametrize("width", [0.02, 0.1])
def test_the_smeared_shells_are_those_of_quadrature(width):
    half = np.array([2.5, 2.5, 3.0])
    edges = np.array([0.0, 0.1, 1.0, 2.4, 2.5])
    volumes = _rdf._smeared_volume(jnp.asarray(edges), jnp.asarray(half), width)

    def area(r):
        return 4 * math.pi * (r**2 - np.sum(np.where(r > half, r * (r - half), 0)))

    for edge, volume in zip(edges, volumes, strict=True):
        low, high = max(0.0, edge - 9 * width), edge + 9 * width
        near = quad(lambda r, e=edge: area(r) * ndtr((e - r) / width), low, high, points=[2.5])[0]
        assert volume == pytest.approx(near + 4 / 3 * math.pi * low**3, rel=1e-9)


@pytest.mark.parametrize("width", [0.0, 0.02])
def test_shells_of_a_crystal(width):
    """fcc has 12, 6, 24, 12 neighbours at d, √2 d, √3 d, 2 d."""
    positions, box = lattice(500, density=1.0)
    d = 2 ** (1 / 6)
    # The far faces of the bins, 0.05 wide, stand clear of the shells.
    r, g = radial_distribution(positions, box, bins=76, r_max=3.8, width=width)
    volume = 4 / 3 * math.pi * np.diff(np.linspace(0, 3.8, 77) ** 3)
    neighbours = np.asarray(g) * volume * 499 / np.prod(box)
    for shell, number in ((1, 12), (2, 6), (3, 24), (4, 12)):
        near = np.abs(np.asarray(r) - d * shell**0.5) < 0.15
        assert neighbours[near].sum() == pytest.approx(number, rel=2e-3 if width else 1e-9)
    between = (np.asarray(r) > 0.3) & (np.asarray(r) < 0.9)
    assert np.all(np.abs(np.asarray(g)[between]) < 1e-6)


def test_a_narrow_width_counts():
    positions, box = gas(2)
    _, hard = radial_distribution(positions, box, bins=20, r_max=2.4)
    _, soft = radial_distribution(positions, box, bins=20, r_max=2.4, width=1e-5)
    # A pair may lie on the face between two bins.
    assert np.sum(np.abs(hard - soft) > 1e-3) <= 4
    shells = np.diff(np.linspace(0, 2.4, 21) ** 3)
    np.testing.assert_allclose(np.sum(shells * hard), np.sum(shells * soft), rtol=1e-3)


vectors = st.tuples(*[st.floats(-20, 20)] * 3)


@given(seed=st.integers(0, 10**6), shift=vectors)
def test_translation(seed, shift):
    positions, box = gas(seed, 20)
    _, g = radial_distribution(positions, box, bins=10, width=0.1)
    _, moved = radial_distribution(positions + np.array(shift), box, bins=10, width=0.1)
    np.testing.assert_allclose(g, moved, atol=1e-9)


@given(seed=st.integers(0, 10**6), order=st.permutations(range(20)))
def test_permutation(seed, order):
    positions, box = gas(seed, 20)
    _, g = radial_distribution(positions, box, bins=10)
    _, permuted = radial_distribution(positions[np.array(order)], box, bins=10)
    np.testing.assert_array_equal(g, permuted)


@given(seed=st.integers(0, 10**6), image=st.integers(-3, 3), atom=st.integers(0, 19))
def test_images(seed, image, atom):
    positions, box = gas(seed, 20)
    moved = positions.copy()
    moved[atom] += image * box
    _, g = radial_distribution(positions, box, bins=10, width=0.1)
    np.testing.assert_allclose(radial_distribution(moved, box, bins=10, width=0.1)[1], g, atol=1e-9)


def test_gradient_is_that_of_finite_differences(monkeypatch):
    monkeypatch.setattr(_rdf, "BLOCK", 2000)
    positions, edges = gas(3, 21)  # a size of its own, so that no other test has compiled it
    direction = np.random.default_rng(4).standard_normal(positions.shape)
    target = np.linspace(0, 2, 15)

    @jax.jit
    def loss(positions, scale):
        box = edges * scale
        g = radial_distribution(positions, box, bins=15, r_max=2.3, width=0.15)[1]
        return jnp.sum((g - target) ** 2)

    h = 1e-5
    slope = (loss(positions + h * direction, 1.0) - loss(positions - h * direction, 1.0)) / (2 * h)
    stretch = (loss(positions, 1 + h) - loss(positions, 1 - h)) / (2 * h)
    gradient, by_scale = jax.jit(jax.grad(loss, argnums=(0, 1)))(positions, 1.0)
    np.testing.assert_allclose(jnp.sum(gradient * direction), slope, rtol=1e-6)
    np.testing.assert_allclose(by_scale, stretch, rtol=1e-6)


def test_atoms_in_one_place_count_and_have_a_finite_gradient():
    positions, box = gas(5, 10)
    positions[1] = positions[0]
    for width in (0.0, 0.1):

        def first(positions, width=width):
            return radial_distribution(positions, box, bins=10, width=width)[1][0]

        assert first(positions) > 1
        assert np.all(np.isfinite(jax.grad(first)(positions)))


def test_precision_follows_the_positions():
    positions, box = gas(6)
    double = radial_distribution(positions, box, width=0.1)[1]
    single = radial_distribution(positions.astype("f"), box.astype("f"), width=0.1)[1]
    assert single.dtype == np.float32
    assert double.dtype == np.float64
    np.testing.assert_allclose(single, double, atol=2e-3)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"r_max": 2.6}, "r_max"),
        ({"r_max": -1.0}, "r_max"),
        ({"r_max": math.nan}, "r_max"),
        ({"bins": 0}, "bins"),
        ({"width": -0.1}, "width"),
        ({"width": 0.5}, "width"),
    ],
)
def test_refusals(options, word):
    positions, box = gas(7)
    with pytest.raises(ConfigError, match=word) as error:
        radial_distribution(positions, box, **options)
    assert "\n" not in str(error.value)


def test_a_traced_box_that_is_too_small_gives_nan():
    positions, box = gas(8)
    scaled = jax.jit(jax.vmap(lambda s: radial_distribution(positions * s, box * s, r_max=2.4)[1]))
    g = scaled(jnp.array([1.0, 0.9]))
    assert np.all(np.isfinite(g[0]))
    assert np.all(np.isnan(g[1]))


def test_observable():
    positions, box = gas(9)
    rdf = RadialDistribution(bins=40, r_max=2.4)
    state = types.SimpleNamespace(positions=jnp.asarray(positions), box=jnp.asarray(box))
    r, g = radial_distribution(positions, box, bins=40, r_max=2.4)
    np.testing.assert_array_equal(rdf({}, state), g)
    np.testing.assert_allclose(rdf.centres(), r, rtol=1e-12)
    assert (rdf.name, rdf.unit) == ("rdf", "1")
    assert not jax.tree.leaves(rdf)
    with pytest.raises(ConfigError, match="bins"):
        RadialDistribution(bins=0, r_max=2.4)

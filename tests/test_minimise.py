"""Minima, and how they move with the parameters."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffsim as ds
from diffsim import md

DESCENTS = {"fire": md.FIRE(dt=0.02), "lbfgs": md.LBFGS()}


def cluster(name: str) -> tuple[Any, Any]:
    """Lennard-Jones clusters of known energy, shaken, in a large box."""
    edge = 2 ** (1 / 6)
    if name == "tetrahedron":
        x = edge / np.sqrt(8) * np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    else:  # 13 atoms, an icosahedron
        g = (1 + np.sqrt(5)) / 2
        corners = [(0, s, t * g) for s in (1, -1) for t in (1, -1)]
        shell = np.concatenate([np.roll(corners, k, axis=1) for k in range(3)])
        x = np.concatenate([np.zeros((1, 3)), shell * edge / np.sqrt(1 + g * g)])
    return jnp.asarray(x + np.random.default_rng(0).normal(0, 0.03, x.shape)), jnp.full(3, 60.0)


LJ = md.LennardJones(25.0, path="dense")
UNIT = {"epsilon": jnp.asarray(1.0), "sigma": jnp.asarray(1.0)}
# Hoare & Pal 1971; Wales & Doye 1997, doi:10.1021/jp970984n.
ENERGIES = {"tetrahedron": -6.0, "icosahedron": -44.326801}


@pytest.mark.parametrize(
    ("name", "descent"),
    [
        ("tetrahedron", "lbfgs"),
        pytest.param("icosahedron", "fire", marks=pytest.mark.slow),
        ("tetrahedron", "fire"),
        pytest.param("icosahedron", "lbfgs", marks=pytest.mark.slow),
    ],
)
def test_clusters_have_their_known_energies(name, descent):
    x, box = cluster(name)
    found = md.minimise(LJ, UNIT, x, box, descent=DESCENTS[descent], tolerance=1e-8).check()
    # the cutoff of 25 leaves out nothing of the digits
    assert float(found.energy) == pytest.approx(ENERGIES[name], abs=1e-6)
    assert float(found.largest_force) < 1e-8
    assert int(found.steps) < (3000 if descent == "fire" else 200)


MORSE = md.Pair(md.Morse(), 20.0, path="dense")
GIVEN = {"epsilon": jnp.asarray(1.2), "alpha": jnp.asarray(2.0), "r0": jnp.asarray(1.1)}


@pytest.mark.slow  # to compile
def test_a_minimum_moves_with_the_parameters_as_differences_say():
    """Of five atoms, whose bonds are strained: the structure, and the energy by its envelope."""
    x = jnp.asarray(np.random.default_rng(4).normal(0, 0.7, (5, 3)))
    box = jnp.full(3, 50.0)
    start = md.minimise(MORSE, GIVEN, x, box, tolerance=1e-10).check().positions

    def measured(params):
        found = md.minimise(MORSE, params, start, box, tolerance=1e-11)
        d = found.positions[:, None] - found.positions[None]
        return jnp.stack([jnp.sum(jnp.sin(jnp.sum(d * d, axis=-1))), found.energy])

    both = jax.jit(lambda p: (measured(p), jax.jacrev(measured)(p)))
    _, slopes = both(GIVEN)
    for key, at in GIVEN.items():
        h = 1e-4
        up, down = (both({**GIVEN, key: at + s * h})[0] for s in (1, -1))
        np.testing.assert_allclose(slopes[key], (up - down) / (2 * h), rtol=1e-6, atol=1e-7)


@pytest.mark.slow
def test_a_descent_that_has_not_arrived_says_so():
    x, box = cluster("icosahedron")
    early = md.minimise(LJ, UNIT, x, box, max_steps=3)
    with pytest.raises(ds.SimulationError, match="stopped at a force"):
        early.check()
    place = lambda p: md.minimise(LJ, p, x, box, max_steps=3).positions[0, 0]  # noqa: E731
    assert np.isnan(jax.jit(jax.grad(place))(UNIT)["sigma"])


@pytest.mark.slow
def test_elastic_constants_of_springs_are_their_own():
    """Simple cubic, springs k to nearest neighbours only: C₁₁ = k/a, C₁₂ = 0; with diagonals of
    k' at √2 a: C₁₁ = (k + 2k')/a, C₁₂ = k'/a."""
    a, k, side = 1.0, 30.0, 3
    x, box = md.lattice(27, box=np.full(3, side * a), kind="sc")
    index = np.arange(27).reshape(3, 3, 3)
    near = [(index.ravel(), np.roll(index, 1, axis).ravel()) for axis in range(3)]
    far = [
        (index.ravel(), np.roll(index, (1, s), axes).ravel())
        for axes in ((0, 1), (0, 2), (1, 2))
        for s in (1, -1)
    ]
    joined = lambda pairs: np.concatenate([np.stack(p, 1) for p in pairs])  # noqa: E731
    potential = md.Sum({"near": md.Bonds(joined(near)), "far": md.Bonds(joined(far))})
    constants = jax.jit(lambda params: md.elastic_constants(potential, params, x, box))
    for other in (0.0, 8.0):
        params = {"near_k": k, "near_r0": a, "far_k": other, "far_r0": np.sqrt(2) * a}
        params = {key: jnp.asarray(v) for key, v in params.items()}
        found = constants(params)
        wanted = np.full((3, 3), other / a) + np.eye(3) * (k + other) / a
        np.testing.assert_allclose(found, wanted, atol=1e-7 * k)


@pytest.mark.slow
def test_elastic_constants_of_silicon():
    """Stillinger and Weber's: C₁₁ = 151.4, C₁₂ = 76.4 GPa (Balamane et al. 1992)."""
    x, box = md.lattice(64, box=np.full(3, 2 * 5.4309), kind="diamond")
    params = {k: jnp.asarray(v) for k, v in md.stillinger_weber_silicon().items()}
    found = md.elastic_constants(md.StillingerWeber(3.78), params, x, box, tolerance=1e-5)
    found = found * md.unit_system("metal").pressure_factor / 1e4
    np.testing.assert_allclose(np.diag(found), 151.4, rtol=5e-3)
    np.testing.assert_allclose(found[0, 1], 76.4, rtol=5e-3)

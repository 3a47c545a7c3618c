"""Boxes of lattice vectors that a pressure shears: a cell of known distribution, and a crystal."""

import functools
import itertools
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import diffsim as ds
from diffsim import RESULTS, Schedule, md
from diffsim.md._box import volume
from problems import parameters
from test_ensembles import equilibrium, replicas
from test_triclinic import ATOMS, EDGES, KEY, LEANING, X


def confining(positions, box, kappa):
    """½κ Σ h²: a spring on each lattice vector, whose cell is a matrix of Wishart's."""
    return 0.5 * kappa * jnp.sum(box**2) + 0 * jnp.sum(positions)


@functools.cache
def cells(rigid):
    """Atoms without forces in a cell of springs, without pressure: rigid pairs count once."""
    bodies, kT, kappa = 6, 1.3, 0.8
    atoms = 2 * bodies if rigid else bodies
    held = md.Constraints(np.arange(atoms).reshape(-1, 2), 0.5) if rigid else None
    npt = md.NPT(md.Potential(confining, triclinic=True), 0.02, 1.0, 1.0, 1.0, every=1,
                 shape="triclinic", constraints=held)  # fmt: skip
    x = np.random.default_rng(0).uniform(size=(atoms, 3)) * 2
    if rigid:
        x[1::2] = x[::2] + np.array([0.3, 0, 0.4])
    start = dict(positions=x, box=np.full(3, 2.5), temperature=kT, pressure=0.0)
    params = {"kappa": jnp.asarray(kappa)}
    states = replicas(npt, params, 64, **start)
    names = ("box", "volume", "density", "pressure", "pressure_tensor")
    found = equilibrium(npt, params, states, 400, 4000, 50, names)
    return bodies, kT, kT / kappa, {name: np.asarray(value) for name, value in found.items()}


def off(values, exact):
    """By how many standard errors the mean over replicas is off."""
    each = values.mean(axis=1)
    return abs(each.mean() - exact) / (each.std(ddof=1) / np.sqrt(len(each)))


@pytest.mark.slow  # to compile
@pytest.mark.parametrize("rigid", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_cell_has_its_distribution(rigid):
    """V^N/(b_y c_z²) exp(-½κ Σ h²/kT) over the six numbers: tilts are normal, the squares of a_x,
    b_y and c_z have gamma distributions of (N + 1)/2, N/2 and (N - 1)/2."""
    n, _, spread, found = cells(rigid)
    h = found["box"]
    for a, b in ((1, 0), (2, 0), (2, 1)):
        assert off(h[..., a, b], 0) < 4
        assert off(h[..., a, b] ** 2, spread) < 4
    for k, shape in enumerate(((n + 1) / 2, n / 2, (n - 1) / 2)):
        exact = stats.gamma(shape, scale=2 * spread)
        assert off(h[..., k, k] ** 2, exact.mean()) < 4
        assert off((h[..., k, k] ** 2 - exact.mean()) ** 2, exact.var()) < 4
        assert stats.kstest(h[:, ::20, k, k].ravel() ** 2, exact.cdf).pvalue > 1e-3
    assert np.all(h[..., [0, 0, 1], [1, 2, 2]] == 0)
    np.testing.assert_allclose(found["volume"], np.linalg.det(h), rtol=1e-10)
    np.testing.assert_allclose(found["density"] * found["volume"], n * (1 + rigid), rtol=1e-12)


def test_the_pressure_is_the_one_that_is_held():
    """⟨P_ab⟩ = P δ_ab, but for what turning back makes of xx and zz, -+2kT⟨1/V⟩."""
    _, kT, _, found = cells(False)
    held = 2 * kT * np.mean(1 / found["volume"]) * np.diag([-1, 0, 1])
    for a, b in itertools.product(range(3), range(3)):
        assert off(found["pressure_tensor"][..., a, b], held[a, b]) < 4
    assert off(found["pressure"], 0) < 4
    trace = np.trace(found["pressure_tensor"], axis1=-2, axis2=-1) / 3
    np.testing.assert_allclose(found["pressure"], trace, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_a_crystal_keeps_its_angles():
    """Lennard-Jones, face-centred cubic: no tilt on average, the pressure in all directions."""
    potential = md.LennardJones(2.2, "switch")
    x, box = md.lattice(108, density=1.05)
    npt = md.NPT(potential, 0.004, 1.0, 0.5, 0.02, every=2, shape="triclinic")
    start = dict(positions=x, box=box, temperature=0.6, pressure=3.0)
    states = replicas(npt, parameters(), 8, **start)
    names = ("box", "pressure_tensor", "volume")
    found = equilibrium(npt, parameters(), states, 1000, 6000, 20, names)
    h, p = np.asarray(found["box"]), np.asarray(found["pressure_tensor"])
    for a, b in ((1, 0), (2, 0), (2, 1)):
        assert off(h[..., a, b], 0) < 4 and h[..., a, b].std() > 0.02
    held = 3 * np.eye(3) - 1.2 * np.mean(1 / np.asarray(found["volume"])) * np.diag([1, 0, -1])
    for a, b in itertools.product(range(3), range(3)):
        assert off(p[..., a, b], held[a, b]) < 4
    edges = np.diagonal(h, axis1=-2, axis2=-1).mean(axis=(0, 1))
    np.testing.assert_allclose(edges, edges.mean(), rtol=0.01)


@pytest.mark.slow  # to compile
def test_constant_pressure_starts_from_either_box():
    """Edges become their matrix; a triclinic box that only grows keeps its shape; the energy over
    kT holds P V and N ln V; a box that flattens ends the run."""
    potential, params = md.LennardJones(1.9, "switch"), parameters()
    given: dict[str, Any] = dict(positions=X, temperature=1.0, pressure=0.5)
    sheared = md.NPT(potential, 0.004, 1.0, 0.5, 0.1, shape="triclinic")
    state = sheared.init(params, KEY, box=EDGES, **given)
    np.testing.assert_array_equal(state.box, np.diag(EDGES))
    wider = eqx.tree_at(lambda s: (s.box, s.positions), state, (1.1 * state.box, 1.1 * X))
    u = [sheared.reduced_energy(params, s) for s in (state, wider)]
    e = [potential.driving_energy(params, s.positions, s.box) for s in (state, wider)]
    v = [float(volume(s.box)) for s in (state, wider)]
    work = 0.5 * (v[1] - v[0]) - ATOMS * np.log(v[1] / v[0])
    assert float(u[1] - u[0]) == pytest.approx(float(e[1] - e[0]) + work)
    scaled = md.NPT(potential, 0.004, 1.0, 0.5, 0.1)
    state = scaled.init(params, KEY, box=LEANING, **given)
    sol = ds.solve(scaled, params, state, schedule=Schedule(steps=20))
    ratio = np.asarray(sol.state.box)[np.tril_indices(3)] / LEANING[np.tril_indices(3)]
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-12)
    assert abs(ratio[0] - 1) > 1e-4
    flat = eqx.tree_at(lambda s: s.box, state, state.box.at[2, 2].set(3.0))
    assert bool(scaled.status(flat) == RESULTS.box_too_small)

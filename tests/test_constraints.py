"""Rigid distances: a dimer and water that stay rigid, and move as rigid bodies do."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffsim as ds
from diffsim import ConfigError, Schedule, md
from test_ensembles import equilibrium, replicas

WATER = np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [-1 / 3, np.sqrt(8) / 3, 0.0]])
TRIANGLE = [[0, 1], [0, 2], [1, 2]]
LENGTHS = [1.0, 1.0, float(np.linalg.norm(WATER[1] - WATER[2]))]
MASSES = np.array([15.999, 1.008, 1.008])
BOX = np.full(3, 12.0)


def pulled(positions, box, strength):
    """Every atom by a spring of its own, so that molecules turn, bend their paths and shake."""
    del box
    stiffness = jnp.arange(1, len(positions) + 1) * strength
    return 0.5 * jnp.sum(stiffness[:, None] * positions**2)


PARAMS = {"strength": jnp.asarray(1.0)}


def molecules(count=2):
    """Water, a dimer and an atom that is free, and their constraints."""
    offsets = 3.0 * np.arange(count)[:, None, None] * np.array([1.0, 0.5, 0.2])
    x = (WATER + offsets).reshape(-1, 3)
    pairs = [[3 * k + i, 3 * k + j] for k in range(count) for i, j in TRIANGLE]
    lengths = LENGTHS * count
    x = np.concatenate([x, [[0.0, -3.0, 0.0], [0.0, -3.0, 1.2], [2.0, -4.0, 1.0]]])
    masses = np.concatenate([np.tile(MASSES, count), [2.0, 3.0, 1.0]])
    rigid = md.Constraints([*pairs, [3 * count, 3 * count + 1]], [*lengths, 1.2])
    return x, masses, rigid


def distances(rigid, positions):
    i, j = rigid.ends
    return np.linalg.norm(positions[..., i, :] - positions[..., j, :], axis=-1)


@pytest.fixture(scope="module", params=["NVE", "NVT"])
def run(request):
    x, masses, rigid = molecules()
    more = {"friction": 1.0} if request.param == "NVT" else {}
    sim = getattr(md, request.param)(md.Potential(pulled), 0.01, constraints=rigid, **more)
    state = sim.init(
        PARAMS, jax.random.key(0), positions=1.01 * x, box=BOX, masses=masses, temperature=1.5
    )
    go = eqx.filter_jit(
        lambda s: ds.solve(sim, PARAMS, s, schedule=Schedule(steps=2000, save_every=10))
    )
    return sim, state, go(state).check()


def test_distances_stay(run):
    sim, state, sol = run
    rigid = sim.constraints
    for positions in (state.positions, np.asarray(sol.observables["positions"])):
        np.testing.assert_allclose(
            distances(rigid, positions) - np.asarray(rigid.lengths), 0, atol=1e-10
        )
    i, j = rigid.ends
    x, v = (np.asarray(sol.observables[n]) for n in ("positions", "velocities"))
    along = np.sum((x[:, i] - x[:, j]) * (v[:, i] - v[:, j]), axis=-1)
    np.testing.assert_allclose(along, 0, atol=1e-10)


def test_rigid_bodies_conserve_their_energy(run):
    """At constant energy, to second order; and each distance takes a degree of freedom."""
    sim, state, sol = run
    seen = sim.observe(PARAMS, state)
    taken = 7 + (3 if isinstance(sim, md.NVE) else 0)
    expected = 2 * float(seen["kinetic_energy"]) / (27 - taken)
    assert seen["temperature"] == pytest.approx(expected, rel=1e-12)
    if not isinstance(sim, md.NVE):
        return
    energy = np.asarray(sol.observables["total_energy"])
    finer = sim.with_time_step(0.005)
    half = eqx.filter_jit(
        lambda s: ds.solve(finer, PARAMS, s, schedule=Schedule(steps=400, save_every=2))
    )(state)
    scatter = [np.std(energy[:20]), np.std(np.asarray(half.observables["total_energy"])[:100])]
    assert scatter[0] < 2e-3 * energy[0]
    assert np.std(energy) < 2e-3 * energy[0]
    assert scatter[1] < 0.35 * scatter[0]


def test_a_free_rotor_turns_as_it_should():
    """Two atoms about their centre, without forces: exact but for the step's phase, O(h²)."""
    rigid = md.Constraints([[0, 1]], 2.0)
    nve = md.NVE(md.Potential(pulled), 0.01, constraints=rigid)
    still = {"strength": jnp.asarray(0.0)}
    state = nve.init(
        still,
        jax.random.key(0),
        positions=np.array([[1.0, 0, 0], [-1.0, 0, 0]]),
        velocities=np.array([[0, 0.7, 0], [0, -0.7, 0]]),
        box=BOX,
    )
    sol = ds.solve(nve, still, state, schedule=Schedule(steps=300))
    angle = 0.7 * 3.0
    expected = [np.cos(angle), np.sin(angle), 0]
    np.testing.assert_allclose(sol.state.positions[0], expected, atol=1e-4)
    # what holds it: m v²/r on each, r·f = -2 m v² in all
    seen = nve.observe(still, sol.state)
    assert seen["pressure"] == pytest.approx(0, abs=1e-12)  # 2K/3V - m v² 2/3V


@functools.cache
def thermal_water():
    x, masses, rigid = molecules()
    nvt = md.NVT(md.Potential(pulled), 0.05, friction=1.0, constraints=rigid)
    start = dict(positions=x, box=BOX, temperature=1.5, masses=masses)
    states = replicas(nvt, PARAMS, 32, **start)
    names = ("kinetic_energy", "potential_energy", "pressure")
    return equilibrium(nvt, PARAMS, states, 400, 8000, 20, names)


@pytest.mark.slow
def test_rigid_molecules_are_at_their_temperature():
    """27 coordinates less 7 distances share kT/2 each; what a wall of springs holds is N kT."""
    seen = {name: np.asarray(value) for name, value in thermal_water().items()}
    each = seen["kinetic_energy"].mean(axis=1)
    error = each.std(ddof=1) / np.sqrt(len(each))
    assert abs(each.mean() - 10 * 1.5) < 4 * error + 0.01 < 0.3
    kinetic = seen["kinetic_energy"][:, ::2].ravel()
    assert np.var(kinetic) == pytest.approx(10 * 1.5**2, rel=0.1)


@pytest.mark.slow
def test_gradients_pass_through_rigid_distances():
    x, masses, rigid = molecules(1)
    nve = md.NVE(md.Potential(pulled), 0.02, constraints=rigid)
    start = dict(positions=x, box=BOX, masses=masses, temperature=1.5)

    def end(strength):
        params = {"strength": strength}
        state = nve.init(params, jax.random.key(0), **start)
        sol = ds.solve(nve, params, state, schedule=Schedule(steps=40), observables=())
        return jnp.sum(sol.state.positions**2)

    one, step = jnp.asarray(1.0), 1e-5
    slope = float(jax.jit(jax.grad(end))(one))
    go = jax.jit(end)
    finite = (float(go(one + step)) - float(go(one - step))) / (2 * step)
    assert slope == pytest.approx(finite, rel=1e-6)
    assert float(jax.jit(jax.jacfwd(end))(one)) == pytest.approx(slope, rel=1e-9)


def test_what_cannot_be_is_refused():
    for pairs, lengths, words in (
        ([[0, 0]], 1.0, "2 different"),
        ([[0, 1], [1, 0]], 1.0, "twice"),
        ([[0, 1, 2]], 1.0, r"\(terms, 2\)"),
        ([[0, 1]], -1.0, "lengths"),
    ):
        with pytest.raises(ConfigError, match=words):
            md.Constraints(pairs, lengths)
    start = dict(positions=WATER, box=BOX, temperature=1.0)
    for pairs, length, words in (([[0, 1]], 1.2, "off their distance"), ([[0, 3]], 1.0, "beyond")):
        nve = md.NVE(md.Potential(pulled), 0.01, constraints=md.Constraints(pairs, length))
        with pytest.raises(ConfigError, match=words):
            nve.init(PARAMS, jax.random.key(0), **start)
    nve = md.NVE(md.Potential(pulled), 0.01, constraints=md.Constraints([[0, 1]], 1.0))
    state = nve.init(PARAMS, jax.random.key(0), **start)
    with pytest.raises(ConfigError, match="rigid"):
        nve.to_exact(PARAMS, state, 1)


def test_centres_of_molecules_and_free_atoms():
    """By hand; a molecule that lies across the boundary is whole, and motion stays continuous."""
    x, masses, rigid = molecules()
    box = np.full(3, 9.0)
    found = rigid.centres(jnp.asarray(x), jnp.asarray(masses), jnp.asarray(box))
    bodies: dict[int, list[int]] = {}
    molecule = {atom: atom for atom in range(len(x))}
    for _ in range(len(x)):
        for a, b in rigid.pairs:
            molecule[a] = molecule[b] = min(molecule[a], molecule[b])
    for atom, body in molecule.items():
        bodies.setdefault(body, []).append(atom)
    wanted = [np.average(x[atoms], axis=0, weights=masses[atoms]) for atoms in bodies.values()]
    np.testing.assert_allclose(found, wanted, atol=1e-12)
    shift = np.array([4.0, 0.0, 0.0])
    wrapped = np.mod(x + shift, box)
    first = [atoms[0] for atoms in bodies.values()]
    jumped = (wrapped - x - shift)[first]
    again = rigid.centres(jnp.asarray(wrapped), jnp.asarray(masses), jnp.asarray(box))
    np.testing.assert_allclose(again, wanted + shift + jumped, atol=1e-12)

"""The tiled pair engine: the numbers of all pairs, however atoms lie, move and differ."""

import dataclasses
import functools
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import diffsim as ds
from diffsim import ConfigError, md
from diffsim.md._chosen import chosen
from diffsim.md._cluster_pairs import SPAN, _settled, _total, _words
from diffsim.md._cluster_plan import LANES, ROW, TILE, ClusterPlan
from diffsim.md._clusters import Clusters, _built_once, fractions, make_clusters
from diffsim.md._pair_engines import chosen_path
from problems import NIST, UNIT, liquid, nist, parameters, slow_but

PARAMS = {"epsilon": jnp.asarray(1.3), "sigma": jnp.asarray(0.9)}
TABLES = {
    "epsilon": jnp.asarray([[1.0, 1.5], [1.5, 0.5]]),
    "sigma": jnp.asarray([[1.0, 0.8], [0.8, 0.88]]),
}
ATOMS = 60
KINDS = np.arange(ATOMS) % 5 == 0
RC, SKIN = 1.2, 0.2
PLAIN = md.LennardJones(RC, "force_shift", path="tiles", skin=SKIN)
MIXED = md.LennardJones(RC, "switch", path="tiles", skin=SKIN, species=KINDS)


def close(got: Any, wanted: Any, tolerance: float = 1e-12) -> None:
    for a, b in zip(*map(jax.tree.leaves, (got, wanted)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * (1e-30 + np.max(np.abs(b))))


@functools.partial(jax.jit, static_argnums=0)
def numbers_of(law, params, x, box, structure, species):
    """Energies and virial, forces, and the pullback of forces."""
    potential = eqx.tree_at(lambda p: p.species, law, species, is_leaf=lambda x: x is None)
    given = params, x, box
    return (
        potential.thermo(*given, structure),
        potential.forces(*given, structure),
        potential.pullback(*given, jnp.cos(x), structure),
    )


def numbers(potential: md.LennardJones, params: Any, x: Any, box: Any, structure: Any) -> Any:
    law = eqx.tree_at(lambda p: p.species, potential, None, is_leaf=lambda x: x is None)
    return numbers_of(law, params, x, box, structure, potential.species)


WHOLE = ClusterPlan((2, 2, 2), 4, 8, 64, 64, RC, SKIN)


def structure(x: Any, box: Any) -> Clusters:
    """With room for everything: all structures of these tests share compiled code."""
    made = _built_once(WHOLE, jnp.asarray(x), jnp.asarray(box))
    assert not made.overflowed
    return made


# All pairs, wherever the atoms are.


@st.composite
def configurations(draw):
    """Boxes from barely twice the cutoff, densities of 0.01 to 1.2, the atoms anywhere or crowded
    into a corner, in any image of the box."""
    seed = draw(st.integers(0, 2**31))
    rng = np.random.default_rng(seed)
    density = draw(st.sampled_from([0.01, 0.1, 0.6, 1.2]))
    edge = max((ATOMS / density) ** (1 / 3), 2 * RC + 1e-9)
    box = np.array([edge, edge * draw(st.sampled_from([1.0, 1.3])), edge])
    part = draw(st.sampled_from([1.0, 1.0, 0.25]))
    x = rng.uniform(0, part, (ATOMS, 3)) + rng.integers(-2, 3, (ATOMS, 3))
    return x * box, box


def spread(x: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Atoms pushed apart: one pair that touches would hide the errors of all others."""
    for _ in range(40):
        d = x[:, None] - x[None]
        d -= box * np.round(d / box)
        r = np.linalg.norm(d, axis=-1) + np.eye(len(x))
        push = np.clip(0.3 - r, 0, None)[..., None] * d / r[..., None]
        x = x + push.sum(1)
    return x


@settings(max_examples=12)
@given(configurations())
def test_tiles_and_all_pairs_agree(given_):
    x, box = given_
    x = jnp.asarray(spread(x, box))
    edges = jnp.asarray(box)
    for potential, params in ((PLAIN, PARAMS), (MIXED, TABLES)):
        tiled = numbers(potential, params, x, edges, structure(x, edges))
        close(tiled, numbers(potential, params, x, edges, None))


@pytest.mark.parametrize("row", slow_but(["3, 3"], NIST))
def test_nist(row):
    case = NIST[row]
    positions, box = nist(case.config)
    potential = md.LennardJones(case.cutoff, case.truncation, path="tiles")  # pyright: ignore
    made = potential.allocate(UNIT, positions, box)
    assert isinstance(made, Clusters) and not made.overflowed
    found = jax.jit(potential.thermo)(parameters(), positions, box, made)
    assert found.energy == pytest.approx(case.energy, rel=1e-12)
    assert found.virial == pytest.approx(case.virial, rel=1e-12)
    single = jnp.asarray(positions, jnp.float32)
    found = jax.jit(potential.thermo)(UNIT, single, jnp.asarray(box, jnp.float32), made)
    assert found.energy.dtype == jnp.float32
    assert found.energy == pytest.approx(case.energy, rel=1e-5)


# The structure: what it holds, when it is built anew, what it lacks.


@settings(max_examples=25)
@given(seed=st.integers(0, 2**31), share=st.floats(0, 1), room=st.integers(1, 70))
def test_what_is_chosen_is_what_is_true(seed, share, room):
    mask = np.random.default_rng(seed).uniform(size=(3, 70)) < share
    found, most = jax.jit(chosen, static_argnums=1)(jnp.asarray(mask), 70)
    assert most == mask.sum(1).max()
    for row, wanted in zip(np.asarray(found), mask, strict=True):
        np.testing.assert_array_equal(row[row >= 0], np.flatnonzero(wanted))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_fractions_of_the_box_wrap_around(dtype):
    box = jnp.asarray([3.0, 5.0, 7.0], dtype)
    x = jnp.asarray(np.random.default_rng(0).uniform(size=(20, 3)), dtype) * box
    apart = (fractions(x[1:], box) - fractions(x[:-1], box)) * (box * 2.0**-32)
    wanted = x[1:] - x[:-1]
    wanted = wanted - box * jnp.round(wanted / box)
    np.testing.assert_allclose(apart, wanted, atol=1e-8 if dtype == "float64" else 3e-6)
    there = fractions(x + 3 * box, box)
    np.testing.assert_allclose((there - fractions(x, box)) * 2.0**-32, 0, atol=1e-6)


def walk(potential, x, box, steps, reach, follow=True):
    """Largest error of the energy, and rebuilds, over a random walk."""

    def step(carry, key):
        x, made = carry
        x = x + reach * jax.random.normal(key, x.shape)
        made = potential.update(made, x, box) if follow else made
        tiled, dense = (potential.driving_energy(PARAMS, x, box, m) for m in (made, None))
        return (x, made), jnp.abs(tiled - dense) / jnp.abs(dense)

    keys = jax.random.split(jax.random.key(0), steps)
    start = (x, structure(x, box))
    (_, made), errors = jax.jit(lambda c: jax.lax.scan(step, c, keys))(start)
    return errors, made


def test_a_pair_is_missed_without_rebuilds_and_never_with_them():
    x, box = map(jnp.asarray, liquid(ATOMS, 0.8, seed=3))
    errors, made = walk(PLAIN, x, box, 40, 0.02)
    assert np.max(errors) < 1e-11
    assert 5 <= int(made.rebuilds) < 40 and not made.overflowed
    errors, made = walk(PLAIN, x, box, 40, 0.02, follow=False)
    assert int(made.rebuilds) == 0
    assert np.max(errors) > 1e-4


def test_a_rebuild_comes_when_an_atom_has_gone_half_the_skin():
    x, box = map(jnp.asarray, liquid(ATOMS, 0.8, seed=3))
    made = structure(x, box)
    for distance, rebuilds in ((0.49, 0), (0.51, 1)):
        moved = made.updated(x.at[7, 1].add(distance * SKIN), box)
        assert int(moved.rebuilds) == rebuilds


@pytest.mark.parametrize(
    ("path", "least", "most"),
    [
        pytest.param(lambda t: t, 1.7, 2.0, id="straight on"),
        pytest.param(lambda t: 20 * np.sin(t / 20), 1.2, 2.0, id="to and fro"),
        pytest.param(lambda t: t % 2, 0.0, 0.0, id="on the spot"),
    ],
)
def test_lists_are_made_for_where_atoms_are_going(path, least, most):
    """They last up to twice as long as lists for where atoms are, and never less long."""
    x, box = map(jnp.asarray, liquid(ATOMS, 0.8, seed=3))
    direction = jnp.asarray(np.random.default_rng(0).normal(0, 0.005, x.shape))
    steps = 400
    ways = jnp.asarray([path(t) for t in range(steps)])

    def step(made, way):
        made = made.updated(x + way * direction, box)
        return made, made.reference

    made, reference = jax.jit(lambda made: jax.lax.scan(step, made, ways))(structure(x, box))
    rebuilds, then = 0, ways[0]
    for way in ways:  # as if the reference were where atoms are
        if (way - then) ** 2 * np.max(np.sum(direction**2, axis=1)) > (SKIN / 2) ** 2:
            rebuilds, then = rebuilds + 1, way
    gone = jnp.linalg.norm(x + ways[:, None, None] * direction - reference, axis=2)
    assert np.max(gone) <= SKIN / 2
    assert least * int(made.rebuilds) <= rebuilds <= most * int(made.rebuilds)


@pytest.mark.slow
@pytest.mark.parametrize("part", [1.0, 0.4], ids=["even", "crowded"])
def test_atoms_that_leave_their_tile_and_cross_the_box_keep_their_pairs(part):
    """Tiles are kept for some rebuilds: their atoms drift apart, over the edges of the box too."""
    atoms, box = 640, np.full(3, 9.0)
    rng = np.random.default_rng(5)
    x = part * rng.uniform(size=(atoms, 3)) * box
    made = make_clusters(jnp.asarray(x), box, RC, SKIN)
    # twice the room: both grow as tiles do
    made = make_clusters(jnp.asarray(x), box, RC, SKIN, made)
    assert math.prod(made.plan.grid[:2]) > 9
    move, sorts = jax.jit(lambda made, x: made.updated(x, jnp.asarray(box))), 0
    for _ in range(12):
        x = x + rng.uniform(-0.07, 0.07, x.shape)
        before, made = made, move(made, jnp.asarray(x))
        sorts += int(not np.array_equal(before.order, made.order))
        d = x[:, None] - x[None]
        d -= box * np.round(d / box)
        i, j = np.nonzero(np.sum(d * d, axis=-1) < RC**2)
        order, place, at = map(np.asarray, (made.order, made.place, made.at))
        near = np.concatenate([rows_of(n, len(order)) for n in made.near], axis=1)
        assert np.all(near.reshape(-1, len(order) + 1)[at[i] // ROW, place[j]])
        assert np.array_equal(made.own[at], np.arange(atoms))
        assert np.array_equal(np.sort(order), np.arange(len(order)))
    assert 0 < sorts < int(made.rebuilds) and not made.overflowed


def rows_of(near: Any, slots: int) -> np.ndarray:
    """Which slots are listed, (blocks, rows, slots + 1)."""
    listed = np.zeros((*near.shape[:2], slots + 1), bool)
    np.put_along_axis(listed, np.asarray(near), True, axis=2)
    return listed


def test_too_little_room_is_a_flag_and_nan_and_its_remedy_is_more():
    x, box = map(jnp.asarray, liquid(ATOMS, 0.8, seed=3))
    tight = dataclasses.replace(WHOLE, tiles=4, atoms=16, few=16)
    small = _built_once(tight, x, box)
    assert small.overflowed
    found = numbers(PLAIN, PARAMS, x, box, small)
    assert all(np.isnan(leaf).all() for leaf in jax.tree.leaves(found))
    assert small.updated(x + 1.0, box).overflowed  # for as long as it lives
    larger = PLAIN.allocate(PARAMS, x, box, small)
    assert isinstance(larger, Clusters) and not larger.overflowed
    assert all(a >= 1.5 * b or a in (4, 8) for a, b in zip(larger.room, small.room, strict=True))
    close(numbers(PLAIN, PARAMS, x, box, larger), numbers(PLAIN, PARAMS, x, box, None))


@pytest.mark.slow  # to compile
def test_rows_with_much_near_them_have_longer_lists():
    """The same to the bit as where all lists are as long; a flag where too many rows have much."""
    x, box = map(jnp.asarray, liquid(640, 0.8, seed=6))
    potential = md.LennardJones(2.0, "shift", path="tiles", skin=0.3)
    made = make_clusters(x, box, 2.0, 0.3)
    (rows, few), (long, atoms) = made.plan.groups
    assert [near.shape for near in made.near] == [(1, rows, few), (1, long, atoms)]
    assert few < atoms and 0 < long < rows / 6
    counts = [np.sum(np.asarray(near) < made.plan.slots, axis=2).ravel() for near in made.near]
    assert np.sum(np.concatenate(counts) > made.needed[3]) <= long
    assert np.sum(np.concatenate(counts) > made.needed[3] - 4) > long
    assert np.max(np.concatenate(counts)) == made.needed[2]
    alike = _built_once(dataclasses.replace(made.plan, few=atoms), x, box)
    assert len(alike.near) == 1
    one, other = (numbers(potential, PARAMS, x, box, each) for each in (made, alike))
    np.testing.assert_array_equal(one[1], other[1])
    close(one, other)
    close(one, numbers(potential, PARAMS, x, box, None))
    tight = _built_once(dataclasses.replace(made.plan, few=few - 2 * LANES), x, box)
    assert tight.overflowed and not np.any(made.overflowed)
    assert np.isnan(potential.forces(PARAMS, x, box, tight)).all()


def test_equal_systems_get_equal_shapes():
    x, box = liquid(500, 0.8)
    plans = [make_clusters(x + 0.01 * k, box, 2.0, 0.3).plan for k in range(3)]
    assert plans[0] == plans[1] == plans[2]
    assert plans[0].slots - 500 < 5 * TILE


# Sums that do not depend on the structure.


@pytest.mark.parametrize("precision", slow_but(["mixed"], ["float64", "mixed", "float32"]))
def test_forces_are_the_same_to_the_bit_for_every_structure(precision):
    x, box = map(jnp.asarray, liquid(ATOMS, 0.8, seed=4))
    potential = md.LennardJones(RC, "shift", path="tiles", skin=SKIN, precision=precision)
    before = structure(x - 0.04 * jnp.sin(9 * x), box)  # still valid: under half the skin
    plan = dataclasses.replace(WHOLE, grid=(1, 4, 2), atoms=80, few=80, skin=SKIN + 0.1)
    wider = _built_once(plan, x + 3 * box, box)
    found = [numbers(potential, PARAMS, x, box, m)[:2] for m in (before, structure(x, box), wider)]
    assert np.any(before.near[0] != structure(x, box).near[0])
    for other in found[1:]:
        for a, b in zip(*map(jax.tree.leaves, (found[0], other)), strict=True):
            np.testing.assert_array_equal(a, b)
    if precision == "float32":
        return  # the result is rounded: Newton's third law holds to its last digits only
    assert np.abs(np.sum(found[0][1], axis=0)).max() < 1e-12 * np.abs(found[0][1]).max() * ATOMS


@jax.jit
def integer_sum(terms):
    def add(tops, nothing):
        grid = tops[0] * 2.0 ** -(51 if terms.dtype == "float64" else 20)
        words = _words(terms / grid, nothing)
        sums = tuple(jnp.sum(w, dtype=w.dtype) for w in words)
        return _total(sums, terms.size, jnp.float64) * grid, jnp.max(jnp.abs(terms))[None]

    return _settled(add, jnp.ones(1, terms.dtype), SPAN)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@given(seed=st.integers(0, 2**31), power=st.integers(-60, 60))
def test_integer_sums_are_exact_whatever_the_size_and_order(dtype, seed, power):
    terms = (np.random.default_rng(seed).normal(size=90) * 2.0**power).astype(dtype)
    one, other = (float(integer_sum(jnp.asarray(t))) for t in (terms, terms[::-1]))
    assert one == other
    exact = math.fsum(terms.tolist())
    rounding = 1e-12 if dtype == "float64" else 1e-8
    assert abs(one - exact) < 90 * np.abs(terms).max() * rounding


# The choice of path and precision.


def test_the_path_is_chosen_by_size_can_be_forced_and_is_reported():
    box = np.full(3, 20.0)
    assert chosen_path("auto", 400, box, 2.9) == "dense"
    assert chosen_path("auto", 6400, box, 2.9) == "tiles"
    assert chosen_path("auto", 6400, box, 8.0) == "dense"
    assert chosen_path("list", 6400, box, 2.9) == "list"
    x, edges = liquid(ATOMS, 0.8)
    for path in ("dense", "tiles", "list"):
        sim = md.NVE(md.LennardJones(RC, path=path, skin=SKIN), 0.004)
        state = sim.init(UNIT, jax.random.key(0), positions=x, box=edges, temperature=1.0)
        assert sim.choices(state) == {"pairs": path}


@pytest.mark.parametrize(
    ("params", "species", "message"),
    [
        (TABLES, None, "epsilon: is a table"),
        (TABLES, np.arange(ATOMS) % 3, "one row and column for each of 3"),
        ({**TABLES, "sigma": np.asarray([[1.0, 0.9], [0.8, 1.0]])}, KINDS, "sigma: .*symmetric"),
    ],
)
def test_tables_that_do_not_fit_are_refused(params, species, message):
    potential = md.LennardJones(RC, species=species)
    with pytest.raises(ConfigError, match=message):
        potential.check(params, np.full(3, 9.0))


@pytest.mark.slow  # to compile
def test_one_kind_of_atom_in_a_table_is_no_table():
    x, box = map(jnp.asarray, liquid(ATOMS, 0.8, seed=5))
    same = {k: jnp.full((2, 2), v) for k, v in PARAMS.items()}
    made = structure(x, box)
    tables = numbers(MIXED, same, x, box, made)
    alone = md.LennardJones(RC, "switch", path="tiles", skin=SKIN)
    plain = numbers(alone, PARAMS, x, box, made)
    close(tables[:2], plain[:2])
    np.testing.assert_allclose(tables[2][0]["sigma"].sum(), plain[2][0]["sigma"], rtol=1e-10)
    tailed = md.LennardJones(RC, "switch", True, species=KINDS)
    bare = md.LennardJones(RC, "switch", True)
    close(tailed.tail_correction(same, ATOMS, box), bare.tail_correction(PARAMS, ATOMS, box))


# Dynamics.

HOT = {"epsilon": jnp.asarray(1.0), "sigma": jnp.asarray(1.0)}
WCA = md.LennardJones(2 ** (1 / 6), "switch", path="tiles", skin=SKIN)


@pytest.fixture(scope="module")
def start():
    x, box = liquid(ATOMS, 0.6, seed=1)
    sim = md.NVE(WCA, 0.004)
    bare = md.NVE(dataclasses.replace(WCA, path="dense"), 0.004)
    state = bare.init(HOT, jax.random.key(0), positions=x, box=box, temperature=1.2)
    made = _built_once(dataclasses.replace(WHOLE, cutoff=WCA.cutoff), state.positions, state.box)
    with_tiles = eqx.tree_at(lambda s: s.neighbours, state, made, is_leaf=lambda x: x is None)
    return sim, bare, state, sim.prepare(HOT, with_tiles)


def test_a_trajectory_with_rebuilds_is_reversed_to_the_last_bit(start):
    sim, _, _, state = start

    @jax.jit
    def there_and_back(state):
        exact = sim.to_exact(HOT, state, 300)
        on = lambda e, _: (sim.exact_step(HOT, e), None)  # noqa: E731
        off = lambda e, _: (sim.exact_unstep(HOT, e), None)  # noqa: E731
        there, _ = jax.lax.scan(on, exact, length=200)
        back, _ = jax.lax.scan(off, there, length=200)
        return exact, there, back

    exact, there, back = there_and_back(state)
    rebuilds = [int(e.rest.neighbours.rebuilds) for e in (exact, there, back)]
    assert rebuilds[0] + 5 < rebuilds[1] and rebuilds[1] + 5 < rebuilds[2]
    assert int(jnp.max(jnp.abs(there.positions - exact.positions))) > 2**37
    np.testing.assert_array_equal(back.positions, exact.positions)
    np.testing.assert_array_equal(back.velocities, exact.velocities)


@pytest.mark.slow  # to compile
def test_every_adjoint_has_the_gradient_of_all_pairs(start):
    sim, bare, dense, tiled = start
    schedule = ds.Schedule(steps=30, save_every=30)

    def loss(params, adjoint, sim, state):
        solution = ds.solve(
            sim, params, state, schedule=schedule, adjoint=adjoint, observables=("positions",)
        )
        return jnp.sum(jnp.sin(solution.observables["positions"])), solution.state.neighbours

    gradient = eqx.filter_jit(eqx.filter_grad(loss, has_aux=True))
    wanted, _ = gradient(HOT, ds.Direct(), bare, dense)
    for adjoint in (ds.Direct(), ds.RecursiveCheckpoint(), ds.Reversible()):
        got, after = gradient(HOT, adjoint, sim, tiled)
        assert int(after.rebuilds) > 0
        close(got, wanted, 1e-8)


def test_a_batch_is_its_members_one_by_one(start):
    sim, _, _, state = start
    batch = jax.tree.map(lambda x: jnp.stack([x, x]), state)
    faster = eqx.tree_at(lambda s: s.velocities, batch, batch.velocities.at[1].multiply(1.5))

    def run(state):
        schedule = ds.Schedule(steps=40, save_every=40)
        return ds.solve(sim, HOT, state, schedule=schedule, observables=("total_energy",)).state

    together = jax.jit(jax.vmap(run))(faster)
    alone = [jax.jit(run)(jax.tree.map(lambda x: x[k], faster)) for k in range(2)]  # noqa: B023
    rebuilds = [int(one.neighbours.rebuilds) for one in alone]
    assert 0 < rebuilds[0] < rebuilds[1]
    np.testing.assert_array_equal(together.neighbours.rebuilds, rebuilds)
    for k in range(2):
        np.testing.assert_allclose(together.positions[k], alone[k].positions, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "precision", "drift"),
    [
        ("float64", "state", 1e-5),
        ("float64", "mixed", 2e-5),
        ("float64", "float32", 2e-5),
        ("float32", "state", 1e-3),
    ],
)
def test_energy_does_not_drift_at_any_precision(kind, precision, drift):
    """Over 10⁴ steps of a liquid, of the kinetic energy; the second half against the first."""
    x, box = liquid(500, 0.8)
    potential = md.LennardJones(2.5, "switch", path="tiles", precision=precision)
    sim = md.NVE(potential, 0.002)
    given = {"positions": jnp.asarray(x, kind), "box": jnp.asarray(box, kind)}
    state = sim.init(HOT, jax.random.key(0), temperature=1.0, **given)
    schedule = ds.Schedule(steps=10_000, save_every=20)
    solution = jax.jit(
        lambda s: ds.solve(
            sim, HOT, s, schedule=schedule, observables=("total_energy", "kinetic_energy")
        )
    )(state)
    solution.check()
    energy, kinetic = (solution.observables[k] for k in ("total_energy", "kinetic_energy"))
    first, second = (np.mean(half) for half in np.split(np.asarray(energy, float), 2))
    assert abs(second - first) < drift * np.mean(np.asarray(kinetic, float))
    assert int(solution.state.neighbours.rebuilds) > 100

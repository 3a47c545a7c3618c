"""Neighbour lists: the same numbers as all pairs, for as long and as crowded as it gets."""

import functools
import itertools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import diffsim as ds
from diffsim import md
from diffsim._adjoint._base import Health, march
from diffsim._drive import View, drive
from diffsim.md._list_pairs import sum_in_any_order
from diffsim.md._neighbours import Neighbours, list_functions, make
from problems import slow_but

PARAMS = {"epsilon": jnp.asarray(1.3), "sigma": jnp.asarray(0.9)}
WCA = 2 ** (1 / 6)


def _random(atoms: int, box: np.ndarray, seed: int) -> jax.Array:
    """Atoms in and around the box, no two closer than touching would forbid a comparison."""
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.uniform(-1.0, 2.0, (atoms, 3)) * box)


def _padded(neighbours: Neighbours, slots: int) -> Neighbours:
    """The same pairs in a list of `slots`, so that one compilation serves every list."""
    index = neighbours.list.idx
    pad = ((0, 0), (0, slots - index.shape[1]))
    frozen = neighbours.list.set(
        idx=jnp.pad(index, pad, constant_values=index.shape[0]),
        max_occupancy=slots,
        cell_list_capacity=None,
        cell_list_fn=None,
        cell_size=None,
        update_fn=None,
    )
    return Neighbours(frozen, neighbours.rebuilds)


def _close(got, wanted, tolerance: float = 1e-12) -> None:
    for a, b in zip(*map(jax.tree.leaves, (got, wanted)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * (1e-30 + np.max(np.abs(b))))


# The sums.


@given(
    seed=st.integers(0, 2**31),
    scale=st.sampled_from([1e-250, 1e-8, 1.0, 1e12, 1e250]),
    zeros=st.sampled_from([0, 23]),
)
def test_a_sum_in_any_order_is_the_same_to_the_bit(seed, scale, zeros):
    rng = np.random.default_rng(seed)
    terms = scale * rng.normal(size=(3, 50)) * 10 ** rng.uniform(-12, 6, (3, 50))
    mixed = np.concatenate([terms, np.zeros((3, zeros))], axis=1)
    mixed = rng.permuted(mixed, axis=1)
    total = sum_in_any_order(jnp.asarray(terms), 1)
    np.testing.assert_array_equal(total, sum_in_any_order(jnp.asarray(mixed), 1))
    exact = np.abs(terms).max(axis=1) * 50
    np.testing.assert_array_less(np.abs(total - terms.sum(axis=1)), 1e-14 * exact)


def test_a_sum_in_any_order_keeps_what_is_not_finite_and_has_a_derivative():
    x = jnp.asarray([[1.0, jnp.nan, 2.0], [1.0, jnp.inf, 2.0], [0.0, 0.0, 0.0]])
    total = sum_in_any_order(x, 1)
    assert not np.isfinite(total[:2]).any()
    assert total[2] == 0
    assert sum_in_any_order(jnp.zeros((4, 0)), 1).tolist() == [0, 0, 0, 0]
    one = jnp.asarray([1.0, 2.0, 3.0])
    np.testing.assert_allclose(jax.grad(lambda x: sum_in_any_order(x**2, 0))(one), 2 * one)
    np.testing.assert_allclose(jax.jvp(lambda x: sum_in_any_order(x, 0), (one,), (one,))[1], 6)


ATOMS = 60
CUT = md.LennardJones(1.2, "force_shift", path="list", skin=0.2)


@functools.partial(jax.jit, static_argnums=0)
def _numbers(potential, x, box, neighbours):
    return (
        potential.thermo(PARAMS, x, box, neighbours),
        potential.forces(PARAMS, x, box, neighbours),
        potential.pullback(PARAMS, x, box, jnp.cos(x), neighbours),
    )


# Barely over 2 (cutoff + skin), where all pairs are candidates; with cells; long.
BOXES = ((2.81, 2.85, 2.9), (3.5, 5.0, 4.3), (9.0, 9.0, 9.0), (4.3, 4.5, 17.0))


@settings(max_examples=8)
@given(seed=st.integers(0, 2**31), edges=st.sampled_from(BOXES))
def test_list_and_dense_paths_agree(seed, edges):
    x, box = _random(ATOMS, np.asarray(edges), seed), jnp.asarray(edges)
    neighbours = CUT.allocate(PARAMS, x, box)
    assert neighbours is not None and not neighbours.overflowed
    listed = _numbers(CUT, x, box, _padded(neighbours, ATOMS - 1))
    _close(listed, _numbers(CUT, x, box, None))


EITHER = [("cut", "state"), ("switch", "mixed")]


@pytest.mark.parametrize(("truncation", "precision"), slow_but(EITHER[1:], EITHER))
def test_a_potential_gives_the_same_on_both_paths(truncation, precision):
    edges = np.asarray([6.0, 6.5, 7.0])
    grid, _ = md.lattice(200, box=edges, kind="fcc")
    x = jnp.asarray(grid + np.random.default_rng(0).normal(0, 0.05, grid.shape))
    box = jnp.asarray(edges)
    potential = md.LennardJones(2.3, truncation, True, path="list", precision=precision)
    neighbours = potential.allocate(PARAMS, x, box)
    listed, dense = (_numbers(potential, x, box, n) for n in (neighbours, None))
    _close(listed, dense, 1e-12 if precision == "state" else 2e-5)


def test_derivatives_are_finite_with_empty_slots_and_touching_atoms():
    box = jnp.full(3, 6.0)
    x = _random(ATOMS, np.asarray(box), 3).at[1].set(0.5).at[2].set(0.5)  # two at one place
    neighbours = CUT.allocate(PARAMS, x, box)

    @jax.jit
    def derivatives(params, x):
        u = lambda p, x: CUT.energy(p, x, box, neighbours)  # noqa: E731
        f = lambda p, x: jnp.sum(jnp.sin(x) * CUT.forces(p, x, box, neighbours))  # noqa: E731
        return jax.grad(u, (0, 1))(params, x), jax.grad(f, (0, 1))(params, x)

    slope, curvature = derivatives(PARAMS, x)
    for leaf in jax.tree.leaves((slope, curvature)):
        assert np.isfinite(leaf).all()
    _close(-slope[1], CUT.forces(PARAMS, x, box))
    dense = jax.jit(CUT.pullback)(PARAMS, x, box, jnp.sin(x))
    _close(curvature[0], dense[0], 1e-9)


# The list: when it is rebuilt, what it misses.


def test_a_list_is_rebuilt_by_displacement_and_always_holds_every_pair():
    box = jnp.full(3, 7.0)
    x = _random(ATOMS, np.asarray(box), 5)
    start = CUT.allocate(PARAMS, x, box)
    assert start is not None
    start = make(list_functions((7.0,) * 3, 1.2, 0.2)[0], x, box, start)

    def walk(carry, key):
        x, neighbours = carry
        x = x + 0.02 * jax.random.normal(key, x.shape)
        neighbours = CUT.update(neighbours, x, box)
        listed = CUT.driving_energy(PARAMS, x, box, neighbours)
        return (x, neighbours), (neighbours.rebuilds, listed, CUT.driving_energy(PARAMS, x, box))

    keys = jax.random.split(jax.random.key(0), 40)
    (_, end), (rebuilds, listed, dense) = jax.jit(lambda c: jax.lax.scan(walk, c, keys))((x, start))
    assert not end.overflowed
    assert 5 <= int(end.rebuilds) < 40
    assert set(np.diff(rebuilds)) == {0, 1}
    np.testing.assert_allclose(listed, dense, rtol=1e-11)


@pytest.mark.slow  # a fault of jax-md that may be mended
def test_jax_md_loses_pairs_of_atoms_outside_of_the_box():
    """jax-md#171: once this fails, `wrapped` can go."""
    functions, cells = list_functions((9.0,) * 3, 1.2, 0.2)
    assert cells is not None
    x = jnp.asarray([[-0.2, 4.0, 4.0], [7.45, 4.0, 4.0], [3.0, 3.0, 3.0]])
    assert make(functions, x, jnp.full(3, 9.0)).list.idx[0, 0] == 1
    assert 1 not in functions.allocate(x, extra_capacity=1).idx[0]


def test_jax_md_mixes_integers_of_two_sizes():
    """Once this fails, `mixed_integers` can go."""
    functions, cells = list_functions((3.0,) * 3, 1.2, 0.2)
    assert cells is None
    with pytest.warns(FutureWarning, match="scatter inputs have incompatible types"):
        functions.allocate(_random(10, np.full(3, 3.0), 0))


def test_lists_of_equal_boxes_share_compiled_code():
    box = jnp.full(3, 9.0)
    one = CUT.allocate(PARAMS, _random(ATOMS, np.asarray(box), 1), box)
    assert one is not None
    other = CUT.allocate(PARAMS, one.list.reference_position, box)
    assert jax.tree.structure(one) == jax.tree.structure(other)
    assert hash(jax.tree.structure(one)) == hash(jax.tree.structure(other))


@pytest.mark.slow  # to compile
def test_room_grows_at_every_enlargement_up_to_all_pairs():
    box = jnp.full(3, 9.0)
    x, _ = md.lattice(8, box=[9.0] * 3, kind="sc")  # nobody has a neighbour
    rooms: list[Any] = [CUT.allocate(PARAMS, jnp.asarray(x), box)]
    assert rooms[0].room[0] == 4
    for _ in range(3):
        rooms.append(CUT.allocate(PARAMS, jnp.asarray(x), box, rooms[-1]))
    slots, cell = zip(*(r.room for r in rooms), strict=True)
    assert all(b > a or a == 7 for a, b in itertools.pairwise(slots))
    assert all(b > a for a, b in itertools.pairwise(cell))
    assert slots[-1] == 7


# Dynamics with lists.

HOT = {"epsilon": jnp.asarray(1.0), "sigma": jnp.asarray(1.0)}


def _fluid(path: Any, atoms: int = 64, **options):
    """A soft fluid that starts so thin that its list has four slots, and needs more."""
    x, box = md.lattice(atoms, density=0.45, kind="sc")
    sim = md.NVE(md.LennardJones(WCA, "shift", path=path, **options), 0.004)
    start = sim.init(HOT, jax.random.key(0), positions=x, box=box, temperature=1.5)
    return sim, start


def test_an_overflow_is_a_code_and_nan_and_its_remedy_is_more_room():
    sim, start = _fluid("list", skin=0.12)
    assert start.neighbours.room[0] == 4
    run = eqx.filter_jit(
        lambda s: ds.solve(sim, HOT, s, schedule=ds.Schedule(steps=200, save_every=20))
    )
    solution = run(start)
    with pytest.raises(ds.SimulationError, match="neighbour list overflowed"):
        solution.check()
    energies = solution.observables["potential_energy"]
    assert np.isnan(energies[-1]) and np.isfinite(energies[0])
    state = solution.state
    assert np.isnan(state.forces).all()
    arguments = (HOT, start.positions, state.box, start.forces, state.neighbours)
    for leaf in jax.tree.leaves(jax.jit(sim.potential.pullback)(*arguments)):
        assert np.isnan(leaf).all()
    mended = sim.enlarge(HOT, eqx.tree_at(lambda s: s.positions, state, start.positions))
    assert mended.neighbours.room[0] > 4 and not mended.neighbours.overflowed
    np.testing.assert_array_equal(mended.forces, start.forces)


@pytest.fixture(scope="module")
def driven():
    """Final states of a run that overflows, by the steps between two looks of the host."""
    sim, start = _fluid("list", skin=0.12)
    batch = jax.tree.map(lambda x: x[None] if eqx.is_array(x) else x, start)
    ends = {}
    for chunk in (200, 40):
        view = View(("potential_energy", "total_energy"))
        pieces = list(drive(sim, HOT, batch, steps=200, save_every=20, chunk=chunk, view=view))
        assert all(piece.check() for piece in pieces)
        seen = [piece.seen["observables"] for piece in pieces]
        ends[chunk] = pieces[-1].state, jax.tree.map(lambda *x: np.concatenate(x, 1), *seen)
    return sim, start, ends


def test_a_chunk_that_overflowed_is_run_again_and_chunks_do_not_matter_to_the_bit(driven):
    _, _, ends = driven
    (one, seen), (other, also_seen) = ends[200], ends[40]
    assert one.neighbours.room[0] > 4
    for name in ("positions", "velocities", "forces"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    for name in seen:
        assert np.isfinite(seen[name]).all()
        np.testing.assert_array_equal(seen[name], also_seen[name])


def test_dynamics_with_a_list_is_dynamics_without(driven):
    _, _, ends = driven
    sim, start = _fluid("dense")
    schedule = ds.Schedule(steps=200, save_every=20)
    solution = ds.solve(sim, HOT, start, schedule=schedule, observables=("total_energy",))
    end = ends[200][0]
    np.testing.assert_allclose(end.positions[0], solution.state.positions, atol=1e-8)
    energies = ends[200][1]["total_energy"][0]
    np.testing.assert_allclose(energies, solution.observables["total_energy"], rtol=1e-9)


def test_a_trajectory_with_rebuilds_is_reversed_to_the_last_bit(driven):
    sim, _, ends = driven
    start = jax.tree.map(lambda x: x[0] if eqx.is_array(x) else x, ends[200][0])

    @eqx.filter_jit
    def there_and_back(state):
        exact = sim.to_exact(HOT, state, 300)
        on = lambda e, _: (sim.exact_step(HOT, e), None)  # noqa: E731
        off = lambda e, _: (sim.exact_unstep(HOT, e), None)  # noqa: E731
        there, _ = jax.lax.scan(on, exact, length=300)
        back, _ = jax.lax.scan(off, there, length=300)
        return exact, there, back

    exact, there, back = there_and_back(start)
    rebuilds = [int(e.rest.neighbours.rebuilds) for e in (exact, there, back)]
    assert rebuilds[0] + 10 < rebuilds[1] and rebuilds[1] + 10 < rebuilds[2]
    assert not bool(back.rest.neighbours.overflowed)
    assert int(jnp.max(jnp.abs(there.positions - exact.positions))) > 2**40
    np.testing.assert_array_equal(back.positions, exact.positions)
    np.testing.assert_array_equal(back.velocities, exact.velocities)
    # The lists of the two ways differ: the forces do not notice.
    old, new = (e.rest.neighbours.list.idx for e in (exact, back))
    assert not np.array_equal(old, new)


@pytest.mark.slow  # to compile
def test_gradients_through_rebuilds_agree(driven):
    _, _, ends = driven
    start = jax.tree.map(lambda x: x[0] if eqx.is_array(x) else x, ends[200][0])
    schedule = ds.Schedule(steps=60, save_every=60)

    def loss(params, adjoint, sim, state):
        solution = ds.solve(
            sim, params, state, schedule=schedule, adjoint=adjoint, observables=("positions",)
        )
        return jnp.sum(jnp.sin(solution.observables["positions"]))

    listed = md.NVE(md.LennardJones(WCA, "shift", path="list", skin=0.12), 0.004)
    dense = md.NVE(md.LennardJones(WCA, "shift", path="dense"), 0.004)
    bare = eqx.tree_at(lambda s: s.neighbours, start, None, is_leaf=lambda x: x is None)
    gradient = eqx.filter_jit(eqx.filter_grad(loss))
    wanted = gradient(HOT, ds.Direct(), dense, bare)
    for adjoint in (ds.Direct(), ds.Reversible()):
        got = gradient(HOT, adjoint, listed, start)
        for name in HOT:
            np.testing.assert_allclose(got[name], wanted[name], rtol=1e-6)


@pytest.mark.slow  # to compile
def test_a_state_goes_on_from_its_arrays(driven):
    sim, _, ends = driven
    state = jax.tree.map(lambda x: x[0] if eqx.is_array(x) else x, ends[200][0])
    arrays, static = eqx.partition(state, eqx.is_array)
    leaves = [
        np.asarray(jax.random.key_data(x) if _is_key(x) else x) for x in jax.tree.leaves(arrays)
    ]
    revived = jax.tree.unflatten(jax.tree.structure(arrays), list(map(jnp.asarray, leaves)))
    again = eqx.combine(revived, static)
    # The list itself need not be kept: one made anew gives the same forces.
    anew = eqx.tree_at(
        lambda s: s.neighbours, state, sim.potential.allocate(HOT, state.positions, state.box)
    )
    on = eqx.filter_jit(lambda s: march(sim, HOT, (s, Health.good()), 0, 50)[0])
    ends = [on(s) for s in (state, again, anew)]
    for end in ends[1:]:
        np.testing.assert_array_equal(end.positions, ends[0].positions)
        np.testing.assert_array_equal(end.velocities, ends[0].velocities)


def _is_key(x) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


# The choice.


def test_size_chooses_the_path():
    auto = md.LennardJones(2.5)
    assert auto.allocate(PARAMS, jnp.zeros((256, 3)), jnp.full(3, 30.0)) is None
    assert auto.allocate(PARAMS, jnp.zeros((5000, 3)), jnp.full(3, 8.0)) is None
    grid, box = md.lattice(600, density=0.1)
    assert auto.allocate(PARAMS, jnp.asarray(grid), jnp.asarray(box)) is not None
    dense = md.LennardJones(2.5, path="dense")
    assert dense.allocate(PARAMS, jnp.asarray(grid), jnp.asarray(box)) is None
    sims = {p: md.NVE(md.LennardJones(2.5, path=p), 0.002) for p in ("auto", "list", "dense")}
    assert [sims[p].traceable_init() for p in sims] == [False, False, True]


@pytest.mark.parametrize("transform", [jax.jit, jax.vmap])
def test_positions_that_are_traced_take_all_pairs(transform):
    sim, _ = _fluid("list")
    x, box = md.lattice(64, density=0.45, kind="sc")

    def begin(x):
        return sim.init(HOT, jax.random.key(0), positions=x, box=jnp.asarray(box), temperature=1.5)

    state = transform(begin)(jnp.asarray(x)[None] if transform is jax.vmap else jnp.asarray(x))
    assert state.neighbours is None
    assert np.isfinite(state.forces).all()


def test_bad_options_are_refused():
    for skin in (0.0, float("nan")):
        with pytest.raises(ds.ConfigError, match="skin"):
            md.LennardJones(2.5, skin=skin)


# Where atoms may start.


@pytest.mark.parametrize("batched", [False, True])
def test_atoms_at_one_place_are_refused(batched):
    x, box = md.lattice(32, density=0.5)
    x[7] = x[3] + box * np.asarray([1, 0, -2])  # another image of the same place
    sim = md.NVE(md.LennardJones(1.5), 0.002)
    conditions = dict(positions=x, box=box, temperature=1.0)
    if batched:
        good, _ = md.lattice(32, density=0.5)
        conditions = dict(positions=np.stack([good, x]), box=np.stack([box, box]), temperature=1.0)
    with pytest.raises(ds.SimulationError, match="atoms 3 and 7 overlap") as failure:
        sim.check(HOT, **conditions)
    assert failure.value.step == 0
    assert ("member 1" in str(failure.value)) == batched

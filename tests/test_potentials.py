"""Any JAX-MD energy, Equinox module or function as a potential: silicon and a small network."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffsim as ds
from diffsim import md
from diffsim._drive import View, drive

# As Any: JAX-MD declares arrays where it takes numbers too.
energy: Any = pytest.importorskip("jax_md.energy")
partition: Any = pytest.importorskip("jax_md.partition")
space: Any = pytest.importorskip("jax_md.space")

SILICON = 28.0855
LATTICE = 5.431
EPSILON = 2.16826


def _silicon(cells: int) -> tuple[np.ndarray, np.ndarray]:
    atoms = 8 * cells**3
    return md.lattice(atoms, box=[cells * LATTICE] * 3, kind="diamond")


def _moved(x: np.ndarray, by: float, seed: int = 0) -> jax.Array:
    return jnp.asarray(x + np.random.default_rng(seed).normal(0, by, x.shape))


# Stillinger-Weber silicon: an energy whose parameters JAX-MD takes when it is made.


def _stillinger_weber(box: np.ndarray):
    displacement, _ = space.periodic(box)
    return lambda x, epsilon: energy.stillinger_weber(displacement, epsilon=epsilon)(x)


def _stillinger_weber_list(box: np.ndarray, **options) -> md.Potential:
    displacement, _ = space.periodic(box)

    def make(epsilon):
        return energy.stillinger_weber_neighbor_list(
            displacement, box, epsilon=epsilon, dr_threshold=0.4, **options
        )

    def energy_fn(x, neighbor, epsilon):
        return make(epsilon)[1](x, neighbor)

    return md.Potential(energy_fn, neighbor_fn=make(EPSILON)[0])


@pytest.fixture(scope="module")
def silicon():
    x, box = _silicon(2)
    return x, box, {"epsilon": jnp.asarray(EPSILON)}


def test_an_energy_is_taken_as_it_is(silicon):
    x, box, _ = silicon
    plain = md.Potential(energy.stillinger_weber(space.periodic(box)[0]))
    per_atom = jax.jit(plain.energy)({}, jnp.asarray(x), jnp.asarray(box)) / len(x)
    # The cohesive energy that Stillinger and Weber fitted their potential to.
    np.testing.assert_allclose(per_atom, -2 * EPSILON, rtol=1e-4)
    forces = jax.jit(plain.forces)({}, jnp.asarray(x), jnp.asarray(box))
    assert np.abs(forces).max() < 1e-3
    assert np.isnan(plain.virial({}, jnp.asarray(x), jnp.asarray(box)))


@pytest.mark.slow  # to compile; below: the energies of a list, a gradient through one
def test_a_neighbour_list_changes_nothing(silicon):
    x, box, params = silicon
    x, box = _moved(x, 0.1), jnp.asarray(box)
    whole, listed = md.Potential(_stillinger_weber(silicon[1])), _stillinger_weber_list(silicon[1])
    neighbours = listed.allocate(params, x, box)
    w = jnp.cos(x)
    np.testing.assert_allclose(
        listed.energy(params, x, box), jax.jit(whole.energy)(params, x, box), rtol=1e-12
    )
    for a, b in zip(
        jax.tree.leaves(jax.jit(listed.pullback)(params, x, box, w, neighbours)),
        jax.tree.leaves(jax.jit(whole.pullback)(params, x, box, w)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9 * np.abs(b).max())


def _pull(
    sim: md.NVE, start: md.State, truth: dict, guess: dict, steps: int, save_every: int
) -> ds.Problem:
    """Find the parameters of a short trajectory from where the atoms went."""
    schedule = ds.Schedule(steps=steps, save_every=save_every)
    laws = (ds.Conserved("total_energy", rtol=2e-3),)
    run = eqx.filter_jit(lambda s: ds.solve(sim, truth, s, schedule=schedule, laws=laws))
    reference = run(start)
    assert reference.check().ledger.ok.all()
    data = np.asarray(reference.observables["positions"])
    assert np.abs(data[-1] - np.asarray(start.positions)).max() > 0.05
    given = dict(
        positions=start.positions,
        velocities=start.velocities,
        box=start.box,
        masses=start.masses / sim.unit_system.mass_factor,
    )
    return ds.Problem(
        sim,
        guess,
        [ds.Target("positions", data[None], sigma=0.01, statistic="each")],
        schedule,
        conditions={k: np.asarray(v)[None] for k, v in given.items()},
    )


@pytest.fixture(scope="module")
def moving(silicon):
    """Silicon in motion, with a neighbour list."""
    x, box, truth = silicon
    sim = md.NVE(_stillinger_weber_list(box), 0.001, "metal")
    return sim, sim.init(
        truth, jax.random.key(1), positions=x, box=box, temperature=900.0, masses=SILICON
    )


@pytest.mark.slow  # to compile; a gradient through the list follows
def test_silicon_conserves_energy_with_and_without_a_list(silicon, moving):
    sim, start = moving
    bare = eqx.tree_at(lambda s: s.neighbours, start, None)
    whole = md.NVE(md.Potential(_stillinger_weber(silicon[1])), 0.001, "metal")
    laws = (ds.Conserved("total_energy", rtol=2e-3),)
    names = ("positions", "temperature")
    ends = []
    for which, state, steps in ((sim, start, 40), (whole, bare, 10)):
        schedule = ds.Schedule(steps=steps, save_every=10)
        run = eqx.filter_jit(lambda s, which=which, **kw: ds.solve(which, silicon[2], s, **kw))
        ends.append(run(state, schedule=schedule, laws=laws, observables=names).check())
        assert ends[-1].ledger.ok.all()
    assert int(ends[0].state.neighbours.rebuilds) >= 1
    listed, dense = (end.observables for end in ends)
    np.testing.assert_allclose(listed["positions"][0], dense["positions"][0], atol=1e-11)
    # Half of what the atoms were given goes into the bonds.
    assert 300 < float(listed["temperature"][-1]) < 700


@pytest.mark.slow
def test_a_parameter_of_silicon_is_found_from_where_atoms_go(silicon, moving):
    sim, start = moving
    guess = {"epsilon": ds.Parameter(2.05, transform="positive")}
    problem = _pull(sim, start, silicon[2], guess, steps=10, save_every=5)
    found = ds.least_squares(problem, steps=6)
    np.testing.assert_allclose(found.values["epsilon"], EPSILON, rtol=1e-6)


@pytest.mark.slow  # to compile
def test_the_gradient_of_a_silicon_trajectory(moving):
    sim, start = moving
    schedule = ds.Schedule(steps=20, save_every=20)

    @jax.jit
    @jax.value_and_grad
    def loss(epsilon):
        adjoint = ds.RecursiveCheckpoint(4)
        run = ds.solve(
            sim,
            {"epsilon": epsilon},
            start,
            schedule=schedule,
            adjoint=adjoint,
            observables=("positions",),
        )
        return jnp.sum(jnp.sin(run.observables["positions"]))

    h = 1e-3
    (up, _), (down, _), (_, slope) = (loss(jnp.asarray(EPSILON + s * h)) for s in (1, -1, 0))
    np.testing.assert_allclose(slope, (up - down) / (2 * h), rtol=1e-5)


# A list that overflows.


@pytest.mark.slow
def test_a_list_of_another_energy_is_enlarged_too():
    """Atoms that start far apart and are drawn together."""
    x, box = md.lattice(27, box=[9.0] * 3, kind="sc")
    displacement, _ = space.periodic(box)
    neighbor_fn, energy_fn = energy.morse_neighbor_list(
        displacement, box, epsilon=2.0, alpha=1.5, r_onset=2.2, r_cutoff=2.9, dr_threshold=0.2,
        format=partition.Dense, capacity_multiplier=1.0,
    )  # fmt: skip
    sim = md.NVE(md.Potential(energy_fn, neighbor_fn=neighbor_fn), 0.01)
    start = sim.init({}, jax.random.key(0), positions=_moved(x, 0.1), box=box, temperature=1.0)
    with pytest.raises(ds.ConfigError, match="order of a neighbour list"):
        ds.solve(sim, {}, start, schedule=ds.Schedule(steps=2), adjoint=ds.Reversible())
    batch = jax.tree.map(lambda x: x[None] if eqx.is_array(x) else x, start)
    view = View(("total_energy", "positions"))
    pieces = list(drive(sim, {}, batch, steps=200, save_every=100, chunk=100, view=view))
    assert all(piece.check() for piece in pieces)
    end = jax.tree.map(lambda x: x[0] if eqx.is_array(x) else x, pieces[-1].state)
    assert end.neighbours.room[0] > start.neighbours.room[0]
    whole = md.Potential(
        energy.morse_pair(displacement, epsilon=2.0, alpha=1.5, r_onset=2.2, r_cutoff=2.9)
    )
    np.testing.assert_allclose(
        sim.potential.energy({}, end.positions, end.box, end.neighbours),
        whole.energy({}, end.positions, end.box),
        rtol=1e-12,
    )


# A network.


class PairNetwork(eqx.Module):
    """U = Σ_{i<j} c(r_ij) MLP(e^(-r_ij)), c → 0 smoothly at the reach."""

    layers: list[eqx.nn.Linear]
    reach: float = eqx.field(static=True)

    def __init__(self, key: jax.Array, reach: float = 2.5):
        first, second = jax.random.split(key)
        self.layers = [eqx.nn.Linear(1, 8, key=first), eqx.nn.Linear(8, 1, key=second)]
        self.reach = reach

    def __call__(self, positions: jax.Array, box: jax.Array) -> jax.Array:
        i, j = np.triu_indices(positions.shape[0], 1)
        d = positions[i] - positions[j]
        d = d - box * jnp.round(d / box)
        r = jnp.sqrt(jnp.sum(d * d, axis=-1))
        hidden = jnp.tanh(jax.vmap(self.layers[0])(jnp.exp(-r)[:, None]))
        pair = jax.vmap(self.layers[1])(hidden)[:, 0]
        return jnp.sum(jnp.where(r < self.reach, (1 - (r / self.reach) ** 2) ** 3, 0) * pair)


def _network_system():
    x, box = md.lattice(16, density=0.5)
    net = PairNetwork(jax.random.key(7))
    return _moved(x, 0.05), box, net


@pytest.mark.slow  # to compile
def test_a_network_moves_atoms_and_is_found_from_where_they_go():
    x, box, net = _network_system()
    sim = md.NVE(md.Potential(net, module="net"), 0.01)
    start = sim.init({"net": net}, jax.random.key(2), positions=x, box=box, temperature=0.2)
    shifted = jax.tree.map(lambda w: 1.1 * w if eqx.is_array(w) else w, net)
    guess = {"net": ds.Parameter(shifted)}
    problem = _pull(sim, start, {"net": net}, guess, steps=30, save_every=10)
    found = ds.fit(problem, steps=8, adjoint=ds.RecursiveCheckpoint())
    losses = [row["loss"] for row in found.history]
    assert min(losses) < 3e-2 * losses[0]
    prediction = found.values["net"](x, jnp.asarray(box))
    np.testing.assert_allclose(prediction, net(x, jnp.asarray(box)), rtol=0.05)


@pytest.mark.slow  # to compile; of Flax: tests/test_many_body.py
def test_a_behler_parrinello_network_of_jax_md_is_a_potential():
    x, box = md.lattice(16, density=0.5)
    x = x + 0.05 * np.random.default_rng(0).normal(size=x.shape)
    displacement, _ = space.periodic(np.asarray(box))
    made = energy.behler_parrinello(displacement, key=jax.random.key(0), mlp_sizes=(5, 5))
    model: Any = made.model
    potential = md.FlaxModule(model, lambda net, x, box: net(x))
    weights = jax.tree.map(lambda w: w.astype(float), md.FlaxModule.initial(model))
    value = jax.jit(lambda net, x: potential.energy({"net": net}, x, jnp.asarray(box)))
    assert float(value(weights, x)) == pytest.approx(
        float(jax.jit(made)(jnp.asarray(x))), rel=1e-12
    )
    noise = np.random.default_rng(1)
    along = jax.tree.map(lambda w: jnp.asarray(noise.normal(size=w.shape)), (weights, x))
    slope = jax.jvp(value, (weights, jnp.asarray(x)), along)[1]
    h = 1e-4
    ahead, behind = (
        value(*jax.tree.map(lambda w, v, s=s: w + s * h * v, (weights, x), along)) for s in (1, -1)
    )
    assert float(ahead - behind) / (2 * h) == pytest.approx(float(slope), rel=1e-6)
    assert abs(float(slope)) > 1e-3


def test_ways_to_give_parameters():
    x, box, net = _network_system()
    box = jnp.asarray(box)
    wanted = net(x, box)
    arrays, static = eqx.partition(net, eqx.is_array)
    apply = lambda arrays, x, box: eqx.combine(arrays, static)(x, box)  # noqa: E731
    ways = {
        "as it is": (md.Potential(net), {}),
        "module": (md.Potential(net, module="net"), {"net": net}),
        "first argument": (md.Potential(apply, pass_params=True), arrays),
        "keyword": (md.Potential(lambda x, box, net: net(x, box)), {"net": net}),
        "box forced": (md.Potential(lambda x, **named: net(x, **named), pass_box=True), None),
    }
    virial = md.Potential(net).virial({}, x, box)
    for name, (potential, params) in ways.items():
        np.testing.assert_allclose(potential.energy(params, x, box), wanted, err_msg=name)
        np.testing.assert_allclose(potential.virial(params, x, box), virial, err_msg=name)
    # W = Σ r·f: scaling the box with the atoms in it.
    h = 1e-5
    slope = (net((1 + h) * x, (1 + h) * box) - net((1 - h) * x, (1 - h) * box)) / (2 * h)
    np.testing.assert_allclose(virial, -slope, rtol=1e-7)


def test_bad_functions_are_refused():
    x, box, net = _network_system()
    with pytest.raises(ds.ConfigError, match="one number"):
        md.Potential(lambda x: jnp.sum(x, axis=1)).energy({}, x, jnp.asarray(box))
    with pytest.raises(ds.ConfigError, match="neighbor_fn"):
        md.Potential(net, neighbor_fn=3)
    with pytest.raises(ds.ConfigError, match="module"):
        md.Potential(net, module="net", pass_params=True)
    with pytest.raises(ds.ConfigError, match="net"):
        md.NVE(md.Potential(net, module="net"), 0.01).check(
            {"nett": net}, box=box, positions=x, temperature=1.0
        )


def test_a_list_for_positions_that_are_traced_has_room_for_every_pair(silicon):
    x, box, params = silicon
    potential = _stillinger_weber_list(box)
    moved = jnp.stack([_moved(x, 0.1), _moved(x, 0.2, 1)])
    sim = md.NVE(potential, 0.001, "metal")
    assert not sim.traceable_init()

    @jax.jit
    @jax.vmap
    def energies(x):
        state = sim.init(
            params, jax.random.key(0), positions=x, box=box, temperature=300.0, masses=SILICON
        )
        return potential.energy(params, x, state.box, state.neighbours)

    whole = md.Potential(_stillinger_weber(box))
    wanted = [jax.jit(whole.energy)(params, x, jnp.asarray(box)) for x in moved]
    np.testing.assert_allclose(energies(moved), wanted, rtol=1e-12)
    with pytest.raises(ds.ConfigError, match="not traced"):
        jax.eval_shape(
            lambda x: potential.allocate(params, x, jnp.asarray(box)),
            jax.ShapeDtypeStruct((1000, 3), float),
        )


@pytest.mark.slow  # a fault of jax-md that may be mended
def test_parameters_of_jax_md_s_lennard_jones_have_nan_gradients():
    """jax-md#258: once this fails, the note in `Potential` can go."""
    x, box = md.lattice(32, density=0.8)
    displacement, _ = space.periodic(box)
    lj = energy.lennard_jones_pair(displacement)
    slope = jax.grad(lambda e, s: lj(jnp.asarray(x), epsilon=e, sigma=s), argnums=(0, 1))
    assert np.isnan(slope(1.0, 1.0)).all()
    ours = md.LennardJones(1.5, "switch")
    params = {"epsilon": jnp.asarray(1.0), "sigma": jnp.asarray(1.0)}
    mine = jax.grad(ours.energy)(params, jnp.asarray(x), jnp.asarray(box))
    assert np.isfinite(jax.tree.leaves(mine)).all()

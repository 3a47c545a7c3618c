"""Constant pressure: volumes of ideal systems, densities of an equation of state, neighbours in a
box that changes."""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import diffsim as ds
from diffsim import RESULTS, ConfigError, Schedule, SimulationError, blocking, md
from diffsim.md._changing_box import ChangingBox
from problems import liquid, parameters, slow_but, unchecked
from test_ensembles import equation_of_state, equilibrium, replicas

FULL = pytest.param("full", marks=pytest.mark.slow)


def on_volume(positions, box, strength):
    """An energy of the volume alone, which shifts the exponent of its distribution."""
    return strength * jnp.sum(jnp.log(box)) + 0 * jnp.sum(positions)


def ideal(strength=0.0, shape="isotropic", **options):
    given: dict[str, Any] = dict(friction=1.0, relaxation=1.0, compressibility=0.5, every=1)
    given |= {"shape": shape} | options
    npt = md.NPT(md.Potential(on_volume), 0.02, **given)
    return npt, {"strength": jnp.asarray(strength)}


ATOMS, KT, PRESSURE = 8, 1.5, 2.0
COUNTS = {"small": (64, 4_000), "full": (256, 20_000)}


@functools.cache
def volumes(size, strength=0.0, shape="isotropic"):
    count, steps = COUNTS[size]
    npt, params = ideal(strength, shape)
    x = np.random.default_rng(0).uniform(size=(ATOMS, 3)) * 2
    start = dict(positions=x, box=np.full(3, 2.0), temperature=KT, pressure=PRESSURE)
    states = replicas(npt, params, count, **start)
    seen = equilibrium(npt, params, states, 400, steps, 50, ("volume", "pressure", "density"))
    return {name: np.asarray(value) for name, value in seen.items()}


def off(values, exact):
    """By how many standard errors the mean over replicas is off."""
    each = values.mean(axis=1)
    return abs(each.mean() - exact) / (each.std(ddof=1) / np.sqrt(len(each)))


SHAPES = [(shape, strength) for shape in ("isotropic", "anisotropic") for strength in (0.0, 3.0)]


@pytest.mark.slow  # to compile
@pytest.mark.parametrize(("shape", "strength"), slow_but([SHAPES[0], SHAPES[3]], SHAPES))
@pytest.mark.parametrize("size", ["small", FULL])
def test_volumes_have_a_gamma_distribution(size, shape, strength):
    """exp(-P V/kT) V^(N - c/kT), of an energy c ln V; and ⟨P_int⟩ = P."""
    seen, exponent = volumes(size, strength, shape), ATOMS + 1 - strength / KT
    exact = stats.gamma(exponent, scale=KT / PRESSURE)
    assert off(seen["volume"], exact.mean()) < 4
    assert off((seen["volume"] - exact.mean()) ** 2, exact.var()) < 4
    assert off(seen["pressure"], PRESSURE) < 4
    np.testing.assert_allclose(seen["density"] * seen["volume"], ATOMS)
    assert stats.kstest(seen["volume"][:, ::20].ravel(), exact.cdf).pvalue > 0.001


def test_the_wrong_exponent_is_seen():
    """The test above tells N + 1 from N."""
    seen = volumes("small")
    assert off(seen["volume"], ATOMS * KT / PRESSURE) > 5
    assert (
        stats.kstest(seen["volume"][:, ::20].ravel(), stats.gamma(8, scale=0.75).cdf).pvalue < 1e-3
    )


@pytest.mark.slow  # to compile
def test_reweighting_knows_of_the_volume():
    """d⟨V⟩/dc = -1/P exactly, of an energy c ln V; and the reduced energy holds P V and N ln V."""
    npt, params = ideal(1.0)
    x = np.random.default_rng(0).uniform(size=(ATOMS, 3)) * 2
    start = dict(positions=x, box=np.full(3, 2.0), temperature=KT, pressure=PRESSURE)
    states = replicas(npt, params, 64, **start)

    def mean(params):
        def one(state):
            schedule = Schedule(steps=4000, save_every=50)
            sol = ds.solve(npt, params, state, schedule=schedule, adjoint=ds.Reweight())
            return jnp.mean(sol.observables["volume"])

        return jax.vmap(one)(states)

    slopes = np.asarray(eqx.filter_jit(jax.jacfwd(mean))(params)["strength"])
    error = slopes.std(ddof=1) / 8
    assert abs(slopes.mean() + 1 / PRESSURE) < 4 * error < 0.2
    one = jax.tree.map(lambda x: x[0], states)
    wider = eqx.tree_at(lambda s: s.box, one, 1.1 * one.box)
    volume = np.asarray([8.0, 8 * 1.1**3])
    u = [float(npt.reduced_energy(params, state)) for state in (one, wider)]
    expected = (np.log(volume) + PRESSURE * volume) / KT - ATOMS * np.log(volume)
    np.testing.assert_allclose(u, expected, rtol=1e-12)


def test_the_tail_is_in_the_reduced_energy():
    """Its derivative in the volume is the internal pressure."""
    positions, box = liquid(32, 0.6)
    potential = md.LennardJones(float(box[0]) / 2.2, "switch", tail=True)
    npt = md.NPT(potential, 0.005, 1.0, 1.0, 0.1)
    start = dict(positions=positions, box=box, temperature=1.2, pressure=0.7)
    state = npt.init(parameters(), jax.random.key(0), **start)

    def reduced(scale):
        where = lambda s: (s.positions, s.box)  # noqa: E731
        values = scale * state.positions, scale * state.box
        return npt.reduced_energy(parameters(), eqx.tree_at(where, state, values))

    volume = float(np.prod(box))
    slope = float(jax.jit(jax.grad(reduced))(jnp.ones(()))) / (3 * volume) * 1.2
    pressure = float(eqx.filter_jit(npt.observe)(parameters(), state)["pressure"])
    # V held back by P and N ln V: -dΦ/dV = W/3V
    assert 0.7 - slope == pytest.approx(pressure, rel=1e-9)


MIE = {"epsilon": 0.8, "sigma": 1.1, "n": 13.0, "m": 6.5}
KINDS = jnp.asarray([0, 1, 0, 1, 1, 0, 0, 1])
TABLES = {"epsilon": jnp.asarray([1.0, 0.5]), "sigma": jnp.asarray([1.0, 0.9])}
TAILED: dict[str, tuple[Any, dict[str, Any]]] = {
    "cut": (lambda tail: md.LennardJones(2.0, "cut", tail), parameters()),
    "shift": (lambda tail: md.LennardJones(2.0, "shift", tail), parameters()),
    "mixture": (lambda tail: md.LennardJones(2.0, "switch", tail, species=KINDS), TABLES),
    "pair": (lambda tail: md.Pair(md.Mie(), 2.0, "switch", tail), MIE),
    "sum": (
        lambda tail: md.Sum(
            {"lj": md.LennardJones(2.0, "cut", tail), "mie": md.Pair(md.Mie(), 1.8, "shift", tail)}
        ),
        {"lj": parameters(), "mie": MIE},
    ),
}


@pytest.mark.parametrize("name", TAILED)
def test_every_tail_has_an_energy_of_the_volume(name):
    """W_A = -3V dA/dV is the virial that the tail adds; without one there is no A."""
    made, params = TAILED[name]
    x, box = liquid(8, 0.1)
    params, x, box = jax.tree.map(lambda v: jnp.asarray(v, float), (params, x, box))

    @jax.jit
    def both(params, scale):
        added = made(True).virial(params, x, box) - made(False).virial(params, x, box)
        energy = lambda c: ChangingBox(made(True)).volume_energy(params, 8, c * box)  # noqa: E731
        return added, -jax.grad(energy)(scale), made(False).volume_energy(params, 8, box)

    added, expected, none = map(float, both(params, jnp.ones(())))
    assert added == pytest.approx(expected, rel=1e-8) and abs(added) > 1e-3
    assert none == 0


def lennard_jones(path, pressure, atoms=600, **options):
    positions, box = liquid(atoms, 0.5)
    potential = md.LennardJones(2.0, "switch", path=path, skin=0.5)
    npt = md.NPT(potential, 0.004, 1.0, 0.5, 0.2, **options)
    start = dict(positions=positions + 40.0, box=box, temperature=1.5, pressure=pressure)
    return npt, npt.init(parameters(), jax.random.key(3), **start)


@eqx.filter_jit
def course(npt, state):
    schedule = Schedule(steps=120, save_every=20)
    names = ("volume", "potential_energy")
    return ds.solve(npt, parameters(), state, schedule=schedule, observables=names)


@pytest.mark.parametrize(
    ("pressure", "shape"),
    [
        pytest.param(6.0, "isotropic", marks=pytest.mark.slow),
        pytest.param(-3.0, "isotropic", marks=pytest.mark.slow),
        pytest.param(6.0, "anisotropic", marks=pytest.mark.slow),
    ],
)
def test_neighbours_follow_the_box(pressure, shape):
    """Tiles give what all pairs give, while the box shrinks or grows by a tenth and more."""
    npt, state = lennard_jones("tiles", pressure, shape=shape, every=2)
    for _ in range(2):  # room for the denser liquid to come
        state = npt.enlarge(parameters(), state)
    sol = course(npt, state).check()
    expected = course(*lennard_jones("dense", pressure, shape=shape, every=2)).check().observables
    for name, values in sol.observables.items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-7)
    assert abs(float(expected["volume"][-1]) / 1200 - 1) > 0.1
    followed = sol.state.neighbours
    assert int(followed.structure.rebuilds) >= 1
    assert not np.allclose(followed.box, 1200 ** (1 / 3), rtol=1e-3)


@pytest.mark.slow  # to compile
def test_a_structure_is_kept_while_only_the_box_moves():
    """A box that changes a little, with its atoms, needs no rebuild; one that shrinks far does."""
    positions, box = liquid(600, 0.5)
    potential = ChangingBox(md.LennardJones(2.0, "switch", path="tiles", skin=0.5))
    dense = md.LennardJones(2.0, "switch", path="dense")
    positions, box = jnp.asarray(positions) + 100.0, jnp.asarray(box)
    update = eqx.filter_jit(potential.update)
    exact = jax.jit(lambda x, box: dense.energy(parameters(), x, box))
    built = potential.allocate(parameters(), positions, box)
    for scale, count in ((1.0, 0), (0.9, 0), (1.2, 0), (0.78, 1)):
        now = scale * positions, scale * box
        after = update(built, *now)
        assert int(after.structure.rebuilds) == count, scale
        if count:  # with more atoms in reach than there was room for
            assert potential.overflowed(after)
            after = potential.allocate(parameters(), *now, after)
        found, expected = potential.energy(parameters(), *now, after), exact(*now)
        assert float(found) == pytest.approx(float(expected), rel=1e-9)
    moved = positions.at[7].add(0.3)
    assert int(update(built, moved, box).structure.rebuilds) == 1


def test_a_box_that_shrinks_too_far_ends_the_run():
    positions, box = liquid(32, 0.3)
    npt = md.NPT(md.LennardJones(2.3), 0.004, 1.0, 0.1, 0.5)
    start = dict(positions=positions, box=box, temperature=1.5, pressure=30.0)
    state = npt.init(parameters(), jax.random.key(0), **start)
    sol = ds.solve(npt, parameters(), state, schedule=Schedule(steps=100), observables=())
    assert bool(sol.result == RESULTS.box_too_small)
    with pytest.raises(SimulationError, match="twice the cutoff"):
        sol.check()


def test_what_cannot_be_is_refused():
    potential = md.LennardJones(2.0)
    good: dict[str, Any] = dict(dt=0.005, friction=1.0, relaxation=1.0, compressibility=0.1)
    for key, value in {
        "dt": 0.0,
        "friction": -1.0,
        "relaxation": 0.01,
        "compressibility": 0.0,
        "every": 0,
        "shape": "cubic",
    }.items():
        with unchecked(), pytest.raises(ConfigError, match=key):
            md.NPT(potential, **(good | {key: value}))
    positions, box = liquid(32, 0.3)
    start = dict(positions=positions, box=box, temperature=1.5)
    with pytest.raises(ConfigError, match="pressure"):
        md.NPT(potential, **good).init(
            parameters(), jax.random.key(0), pressure=float("nan"), **start
        )
    bare = md.Potential(lambda positions: jnp.sum(positions**2))
    with pytest.raises(ConfigError, match="no virial"):
        md.NPT(bare, **good).init({}, jax.random.key(0), pressure=1.0, **start)
    listed = md.LennardJones(1.5, path="list")
    with pytest.raises(ConfigError, match="one box only"):
        ChangingBox(listed).allocate(parameters(), jnp.asarray(positions), jnp.asarray(box))


@pytest.mark.slow
def test_a_run_at_constant_energy_goes_on_from_its_end():
    npt, state = lennard_jones("tiles", 5.0)
    state = npt.enlarge(parameters(), state)
    end = ds.solve(npt, parameters(), state, schedule=Schedule(steps=40)).check().state
    nve = md.NVE(md.LennardJones(2.0, "switch", path="tiles", skin=0.5), 0.004)
    begun = nve.continue_from(parameters(), end)
    bare = md.LennardJones(2.0, "switch", path="dense")
    expected = bare.forces(parameters(), end.positions, end.box)
    np.testing.assert_allclose(begun.forces, expected, atol=1e-9)
    assert begun.bath is None and begun.kT is None


SIZES = {"small": (64, 4_000, 0.03), "full": (500, 40_000, 0.003)}


@pytest.mark.parametrize(
    ("size", "density"),
    [
        pytest.param("small", 0.7, marks=pytest.mark.slow),
        pytest.param("full", 0.5, marks=pytest.mark.slow),
        pytest.param("full", 0.7, marks=pytest.mark.slow),
    ],
)
def test_densities_are_those_of_the_equation_of_state(size, density):
    """At the pressure that it has there: within 3 standard errors and 0.003 in the full size."""
    atoms, steps, more = SIZES[size]
    pressure, _ = equation_of_state(2.0, density)
    positions, box = md.lattice(atoms, density=density)
    longest = 3.5 if size == "full" else 0.47 * float(box[0])
    potential = md.LennardJones(min(longest, 0.47 * float(box[0])), tail=True)
    npt = md.NPT(potential, 0.005, 1.0, 1.0, 0.2)
    start = dict(positions=positions, box=box, temperature=2.0, pressure=pressure)
    state = npt.init(parameters(), jax.random.key(1), **start)
    names = ("density", "pressure")
    seen = equilibrium(npt, parameters(), state, steps // 10, steps, 10, names)
    found, held = (blocking(np.asarray(seen[name])) for name in names)
    assert abs(found.mean - density) < 3 * found.stderr + more
    assert abs(held.mean - pressure) < 4 * held.stderr
    assert found.stderr < 2 * more

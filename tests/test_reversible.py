"""Reversible: to the last bit there and back, memory that does not grow, NaN rather than wrong."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffsim as ds
from diffsim import ConfigError, RecursiveCheckpoint, Reversible, Schedule, SimulationError, md
from problems import argon_box, parameters, slow_but, springs

STEPS = 5000


@eqx.filter_jit
def there_and_back(simulation, params, state, steps):
    start = simulation.to_exact(params, state, steps)

    def forward(exact, _):
        return simulation.exact_step(params, exact), None

    def backward(exact, _):
        return simulation.exact_unstep(params, exact), None

    end = jax.lax.scan(forward, start, length=steps)[0]
    return start, end, jax.lax.scan(backward, end, length=steps)[0]


def bound():
    nve = springs(0.1)
    x = np.random.default_rng(0).standard_normal((2, 4, 3))
    params = {"stiffness": jnp.asarray(1.7)}
    start = dict(positions=x[0], velocities=x[1], box=np.full(3, 9.0))
    return nve, params, nve.init(params, jax.random.key(0), **start)


LIQUIDS = {
    "switch": lambda: argon_box(atoms=32, density=0.8, dt=0.005, temperature=2.0),
    "cut": lambda: argon_box(atoms=8, density=0.4, dt=0.005, truncation="cut"),
    "odd masses": lambda: heavy(argon_box(atoms=8, density=0.4, dt=0.005)),
    "springs": bound,
}


def heavy(system):
    nve, params, state = system
    masses = jnp.asarray(np.random.default_rng(1).uniform(0.5, 3.0, state.atoms))
    return nve, params, eqx.tree_at(lambda s: s.masses, state, masses)


@pytest.mark.parametrize("name", slow_but(LIQUIDS.keys() - {"cut"}, LIQUIDS))
def test_the_way_back_ends_on_the_start(name):
    """Bit by bit in integers, after 5,000 steps of a chaotic liquid."""
    nve, params, state = LIQUIDS[name]()
    start, end, back = there_and_back(nve, params, state, STEPS)
    assert start.positions.dtype == start.velocities.dtype == "int64"
    assert not np.array_equal(start.positions, end.positions)
    assert np.array_equal(start.positions, back.positions)
    assert np.array_equal(start.velocities, back.velocities)
    assert nve.same(start, back) and not nve.same(start, end)
    assert back.rest.step == 0 and end.rest.step == STEPS
    moved = np.abs(nve.from_exact(end).positions - state.positions).max()
    assert moved > 0.1
    np.testing.assert_allclose(nve.from_exact(start).positions, state.positions, atol=2**-40)


def test_the_exact_steps_follow_the_floating_ones():
    nve, params, state = bound()
    _, end, _ = there_and_back(nve, params, state, 50)
    sol = ds.solve(nve, params, state, schedule=Schedule(steps=50))
    found = nve.from_exact(end)
    np.testing.assert_allclose(found.positions, sol.state.positions, atol=1e-9)
    np.testing.assert_allclose(found.velocities, sol.state.velocities, atol=1e-9)


def final(params, simulation, state, steps, adjoint, save_every=None):
    schedule = Schedule(steps=steps, save_every=save_every)
    names = ["potential_energy", "positions"]
    sol = ds.solve(simulation, params, state, schedule=schedule, adjoint=adjoint, observables=names)
    return jnp.sum(sol.observables["positions"] ** 2) + jnp.sum(sol.observables["potential_energy"])


def gradient(system, adjoint, steps, save_every=None):
    simulation, params, state = system
    one = functools.partial(final, simulation=simulation, steps=steps, adjoint=adjoint)
    one = functools.partial(one, save_every=save_every)
    return eqx.filter_jit(jax.value_and_grad(one, argnums=0))(params, state=state)


def test_a_long_gradient_is_right():
    """5,000 steps of oscillators, which are not chaotic."""
    value, slope = gradient(bound(), Reversible(), STEPS, 1000)
    expected_value, expected = gradient(bound(), RecursiveCheckpoint(), STEPS, 1000)
    assert value == pytest.approx(float(expected_value), rel=1e-7)
    assert slope["stiffness"] == pytest.approx(float(expected["stiffness"]), rel=1e-6)


def test_memory_does_not_grow_with_the_steps():
    """Compiled only, not run: temporary bytes of the gradient at 500 and 50,000 steps."""
    simulation, params, state = argon_box(atoms=8, density=0.4)

    def temp_bytes(adjoint, steps):
        one = functools.partial(final, simulation=simulation, steps=steps, adjoint=adjoint)
        compiled = jax.jit(jax.grad(lambda p, s: one(p, state=s))).lower(params, state).compile()
        memory = compiled.memory_analysis()
        assert memory is not None
        return memory.temp_size_in_bytes

    short, long = (temp_bytes(Reversible(), steps) for steps in (500, 50_000))
    assert short == long < 500 * state.positions.nbytes


class Fault(md.NVE):
    """Its way back is off by one unit in the last place, once."""

    def exact_unstep(self, params, exact):
        back = super().exact_unstep(params, exact)
        once = jnp.where(back.rest.step == 3, 1, 0)
        return eqx.tree_at(lambda e: e.positions, back, back.positions.at[0, 0].add(once))


def test_a_way_back_that_errs_gives_nan():
    nve, params, state = bound()
    fault = Fault(nve.potential, nve.dt)  # pyright: ignore[reportCallIssue]
    value, slope = gradient((fault, params, state), Reversible(), 10)
    expected_value, expected = gradient((nve, params, state), Reversible(), 10)
    assert value == expected_value
    assert all(np.isnan(leaf) for leaf in jax.tree.leaves(slope))
    assert all(np.isfinite(leaf) for leaf in jax.tree.leaves(expected))


def test_a_run_that_fails_says_so():
    nve, params, state = argon_box(atoms=8, density=0.4)
    close = state.positions.at[1].set(state.positions[0] + 0.05)
    state = eqx.tree_at(lambda s: s.positions, state, close)
    sol = ds.solve(nve, params, state, schedule=Schedule(steps=20), adjoint=Reversible())
    with pytest.raises(SimulationError, match=r"blew up.* at step 1;"):
        sol.check()


def test_single_precision_states_are_exact_too():
    nve, _, state = argon_box(atoms=8, density=0.4)
    single = jax.tree.map(lambda x: x.astype("float32") if x.dtype == "float64" else x, state)
    start, end, back = there_and_back(nve, parameters(), single, 500)
    assert end.rest.forces.dtype == "float32"
    assert nve.same(start, back)


def test_without_64_bits_it_is_refused():
    nve, params, state = argon_box(atoms=8, density=0.4)
    with (
        jax.enable_x64(False),
        pytest.raises(ConfigError, match=r"needs 64-bit integers.*Recursive"),
    ):
        nve.to_exact(params, state, 1)


class Leaking(ds.AbstractReversible):
    """x' = θ x / 3, whose inverse in floating point misses the last bits."""

    def init(self, params, key, **conditions):
        return jnp.asarray(conditions["x"])

    def step(self, params, state):
        return params["theta"] * state / 3

    def unstep(self, params, state):
        return 3 * state / params["theta"]

    def observe(self, params, state):
        return {"x": state}


def test_a_fit_falls_back_to_checkpoints_and_says_so():
    target = ds.Target("x", np.asarray([[[0.8**k] for k in (5, 10)]]), 0.01, statistic="each")
    problem = ds.Problem(
        Leaking(),
        {"theta": ds.Parameter(2.0)},
        [target],
        Schedule(steps=10, save_every=5),
        {"x": np.ones((1, 1))},
    )
    warned = []
    note = lambda event, facts: warned.append(facts["text"]) if event == "warning" else None  # noqa: E731
    fitted = ds.least_squares(problem, adjoint=Reversible(), watch=note)
    assert float(fitted.values["theta"]) == pytest.approx(2.4, rel=1e-8)
    facts = fitted.adjoint()
    assert facts["name"] == "RecursiveCheckpoint"
    assert warned == [facts["why"]] and "does not end on the start" in facts["why"]

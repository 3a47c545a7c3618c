"""Velocity Verlet keeps the laws of mechanics; integrators with a planted fault break them."""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import diffsim as ds
from diffsim import (
    AbstractSimulation,
    ConfigError,
    Conserved,
    FunctionSimulation,
    Schedule,
    SimulationError,
    md,
)
from diffsim._drive import drive
from problems import argon_box, parameters, set_in_motion, springs, unchecked

OMEGA = 1.3


class Watched(AbstractSimulation):
    """A simulation with another step, or with further observables."""

    inner: Any
    steps: Callable = eqx.field(static=True)
    watch: Callable | None = eqx.field(static=True, default=None)

    def init(self, params, key, **conditions):
        return self.inner.init(params, key, **conditions)

    def step(self, params, state):
        return self.steps(self.inner, params, state)

    def observe(self, params, state):
        more = {} if self.watch is None else {"watched": self.watch(self.inner, params, state)}
        return self.inner.observe(params, state) | more

    def time_step(self):
        return self.inner.time_step()


def verlet(nve, params, state):
    return nve.step(params, state)


def moved(nve, params, state, positions, velocities):
    forces, _ = nve.moved(params, state, positions)
    where = lambda s: (s.positions, s.velocities, s.forces, s.step)  # noqa: E731
    return eqx.tree_at(where, state, (positions, velocities, forces, state.step + 1))


def euler(nve, params, state):
    velocities = state.velocities + nve.dt * state.forces / state.masses[:, None]
    return moved(nve, params, state, state.positions + nve.dt * state.velocities, velocities)


def wrong_sign(nve, params, state):
    return nve.step(params, eqx.tree_at(lambda s: s.forces, state, -state.forces))


def rounded(nve, params, state):
    """dt in single precision, as the drift takes it."""
    exact = nve.step(params, state)
    half = 0.5 * nve.dt / state.masses[:, None]
    velocities = state.velocities + half * state.forces
    positions = state.positions + float(np.float32(nve.dt)) * velocities
    return moved(nve, params, exact, positions, velocities + half * exact.forces)


def one_kick(nve, params, state):
    """The second half of the kick is forgotten for one atom: Newton's third law fails."""
    new = nve.step(params, state)
    return eqx.tree_at(
        lambda s: s.velocities,
        new,
        new.velocities.at[0].add(-0.5 * nve.dt / state.masses[0] * new.forces[0]),
    )


def shadow_energy(nve, params, state):
    """p²/2 + ω² q² (1 - ω² h²/4)/2, which velocity Verlet conserves to rounding."""
    k, m, h = params["stiffness"], state.masses[:, None], nve.dt
    p2, q2 = m * state.velocities**2, k * state.positions**2
    return 0.5 * jnp.sum(p2 + q2 * (1 - k / m * h**2 / 4))


def oscillators(dt):
    """Three oscillators of frequency ω along each axis, each with a mass of its own."""
    nve = springs(dt)
    rng = np.random.default_rng(0)
    params = {"stiffness": jnp.asarray(OMEGA**2)}
    state = nve.init(
        params,
        jax.random.key(0),
        positions=rng.standard_normal((3, 3)),
        velocities=rng.standard_normal((3, 3)),
        box=np.full(3, 10.0),
        masses=np.array([1.0, 0.5, 2.0]),
    )
    return nve, params, state


@eqx.filter_jit
def run(simulation, params, state, schedule, laws=(), observables=None):
    return ds.solve(
        simulation, params, state, schedule=schedule, laws=laws, observables=observables
    )


LAWS = {
    "momentum": Conserved("momentum", atol=1e-11),
    "energy": Conserved("total_energy", rtol=0.03),
    "shadow energy": Conserved("watched", rtol=1e-12),
}
ALL = set(LAWS)

# Integrator, and the laws that it breaks.
INTEGRATORS = {
    "velocity Verlet": (verlet, set()),
    "explicit Euler": (euler, {"energy", "shadow energy"}),
    "wrong sign": (wrong_sign, {"energy", "shadow energy"}),
    "dt in float32": (rounded, {"shadow energy"}),
    "a kick without its counterpart": (one_kick, ALL),
}


@pytest.mark.parametrize("name", INTEGRATORS)
def test_integrators_keep_and_break_the_laws(name):
    """Momentum and energy of a liquid, the shadow energy of oscillators."""
    step, expected = INTEGRATORS[name]
    nve, params, state = argon_box(atoms=8, density=0.4, dt=0.004)
    laws = (LAWS["momentum"], LAWS["energy"])
    liquid = run(Watched(nve, step), params, state, Schedule(steps=100, save_every=10), laws, ())
    nve, params, state = oscillators(0.1)
    watched = Watched(nve, step, shadow_energy)
    bound = run(
        watched, params, state, Schedule(steps=1000, save_every=10), (LAWS["shadow energy"],), ()
    )
    held = dict(zip(LAWS, [*liquid.ledger.ok, *bound.ledger.ok], strict=True))
    assert {law for law, ok in held.items() if not ok} == expected, liquid.ledger.rows()


@pytest.mark.parametrize(("dt", "steps"), [(0.01, 1000), (0.3, 1000), (1.0, 40)])
def test_oscillators_follow_the_discrete_solution(dt, steps):
    """q_n = q_0 cos nφ + v_0 h sin nφ/sin φ with cos φ = 1 - ω² h²/2: nothing rounds dt."""
    nve, params, state = oscillators(dt)
    # Each mass has its own frequency.
    omega = OMEGA / np.sqrt(np.asarray(state.masses))[:, None]
    phi = np.arccos(1 - (omega * dt) ** 2 / 2)
    sol = run(nve, params, state, Schedule(steps=steps, save_every=steps // 20))
    n = np.asarray(sol.steps)[:, None, None]
    swing = dt * np.asarray(state.velocities) / np.sin(phi) * np.sin(n * phi)
    expected = np.asarray(state.positions) * np.cos(n * phi) + swing
    np.testing.assert_allclose(sol.observables["positions"], expected, atol=1e-11)
    assert sol.times is not None
    np.testing.assert_allclose(sol.times, n.ravel() * dt, rtol=1e-14)


def test_beyond_the_stability_limit_it_blows_up():
    """ω h > 2 for the lightest mass."""
    nve, params, state = oscillators(2.01 / (OMEGA * math.sqrt(2)))
    sol = run(nve, params, state, Schedule(steps=8000, save_every=80))
    assert np.nanmax(np.abs(sol.observables["positions"])) > 1e6
    with pytest.raises(SimulationError, match=r"non-finite number appeared at step \d+; reduce"):
        sol.check()


def test_the_energy_error_falls_as_the_square_of_the_step():
    """Fourfold, within 15 %, each time that dt halves, in a liquid with a switched cutoff."""
    spread = []
    for halvings in range(3):
        dt = 0.004 / 2**halvings
        nve, params, state = argon_box(atoms=32, density=0.6, dt=dt)
        schedule = Schedule(steps=500 * 2**halvings, save_every=2**halvings)
        sol = run(nve, params, state, schedule, (), ("total_energy",))
        assert sol.first_bad_step == -1
        spread.append(float(np.std(sol.observables["total_energy"])))
    ratios = np.array(spread[:-1]) / spread[1:]
    np.testing.assert_allclose(ratios, 4, rtol=0.15)


def test_step_and_unstep_undo_each_other():
    nve, params, state = argon_box(atoms=8, density=0.4)
    there = jax.jit(nve.step)(params, state)
    back = jax.jit(nve.unstep)(params, there)
    np.testing.assert_allclose(back.positions, state.positions, atol=1e-14)
    np.testing.assert_allclose(back.velocities, state.velocities, atol=1e-13)
    assert back.step == state.step == 0
    assert there.step == 1


@given(seed=st.integers(0, 10**6), hot=st.floats(0.1, 2.0))
def test_momentum_is_conserved(seed, hot):
    """Whatever the masses and velocities; the total momentum need not be zero."""
    rng = np.random.default_rng(seed)
    simulation, params, state = argon_box(atoms=8, density=0.4, dt=0.004)
    state = set_in_motion(state, hot * rng.standard_normal((8, 3)))
    state = eqx.tree_at(lambda s: s.masses, state, jnp.asarray(rng.uniform(0.5, 2.0, 8)))
    laws = (Conserved("momentum", atol=1e-11),)
    sol = run(simulation, params, state, Schedule(steps=50, save_every=10), laws, ())
    assert sol.ledger.ok.all()


# Health: where a run went wrong, and since when.
def square():
    return FunctionSimulation(lambda params, x: x * x)


def test_the_step_of_the_first_failure_is_known():
    """2, 4, 16, ... passes the largest number at the tenth step."""
    sol = run(square(), {}, jnp.asarray(2.0), Schedule(steps=15, save_every=5))
    assert sol.first_bad_step == 10
    with pytest.raises(SimulationError, match="non-finite number appeared at step 10; reduce") as e:
        sol.check()
    assert e.value.step == 10 and "time step" in e.value.advice
    assert run(square(), {}, jnp.asarray(0.5), Schedule(steps=15)).check().first_bad_step == -1


@pytest.mark.parametrize("adjoint", [ds.Direct(), ds.RecursiveCheckpoint(3)], ids=str)
def test_every_adjoint_reports_health(adjoint):
    sol = ds.solve(square(), {}, jnp.asarray(2.0), schedule=Schedule(steps=12), adjoint=adjoint)
    assert sol.first_bad_step == 10


def test_the_first_to_fail_of_a_batch_is_named():
    starts = jnp.asarray([0.5, 2.0, 4.0])
    sol = eqx.filter_vmap(lambda x: run(square(), {}, x, Schedule(steps=15)))(starts)
    assert sol.first_bad_step.tolist() == [-1, 10, 9]
    with pytest.raises(SimulationError, match="in member 2 of the batch at step 9"):
        sol.check()


def test_steps_are_counted_over_chunks():
    chunks = drive(square(), {}, jnp.asarray([0.5, 2.0]), steps=16, save_every=2, chunk=4)
    for number, chunk in enumerate(chunks):
        if number < 2:
            chunk.check()
            continue
        with pytest.raises(SimulationError, match="in member 1 of the batch at step 10"):
            chunk.check()
        break


@pytest.mark.parametrize("kind", [md.NVE, md.NVT])
def test_overlapping_atoms_blow_up_at_the_first_step(kind):
    nve, params, state = argon_box(
        atoms=8, density=0.4, kind=kind, **({"friction": 1.0} if kind is md.NVT else {})
    )
    positions = state.positions.at[1].set(state.positions[0] + 0.1)
    state = eqx.tree_at(lambda s: s.positions, state, positions)
    sol = run(nve, params, state, Schedule(steps=20))
    with pytest.raises(SimulationError, match=r"blew up.*at step 1; reduce the time step"):
        sol.check()


def test_a_nan_in_the_state_is_found():
    nve, params, state = argon_box(atoms=8, density=0.4)
    state = set_in_motion(state, state.velocities.at[3, 1].set(jnp.nan))
    sol = run(nve, params, state, Schedule(steps=5))
    with pytest.raises(SimulationError, match="non-finite number appeared at step 1;"):
        sol.check()


@pytest.mark.parametrize("dt", [0.0, -0.1, math.nan, math.inf, "0.1", None])
@pytest.mark.parametrize("ensemble", [md.NVE, lambda potential, dt: md.NVT(potential, dt, 1.0)])
def test_time_steps_that_are_none(ensemble, dt):
    with unchecked(), pytest.raises(ConfigError, match="dt: must be a positive, finite number"):
        ensemble(md.LennardJones(2.5), dt)


STARTS: dict[str, tuple[dict[str, Any], str]] = {
    "cold": (dict(temperature=-1.0), "temperature: must be positive"),
    "at rest or warm": (dict(temperature=None), "velocities: give velocities or a temperature"),
    "lost": (dict(positions=np.full((2, 3), math.nan)), "positions: must be finite"),
    "weightless": (dict(masses=np.array([1.0, 0.0])), "masses: must be positive"),
    "small box": (dict(box=np.full(3, 4.0)), "cutoff: is over half the box"),
}


@pytest.mark.parametrize("name", STARTS)
def test_starts_that_cannot_be_right(name):
    given: dict[str, Any] = dict(
        positions=np.array([[0.0, 0.0, 0.0], [1.2, 0.0, 0.0]]),
        box=np.full(3, 6.0),
        temperature=1.0,
    )
    more, message = STARTS[name]
    with pytest.raises(ConfigError, match=message):
        md.NVE(md.LennardJones(2.5), 0.005).init(parameters(), jax.random.key(0), **(given | more))


def test_velocities_must_be_finite():
    x, box = np.array([[0.0, 0.0, 0.0], [1.2, 0.0, 0.0]]), np.full(3, 6.0)
    nve = md.NVE(md.LennardJones(2.5), 0.005)
    with pytest.raises(ConfigError, match="velocities: must be finite"):
        nve.init(
            parameters(),
            jax.random.key(0),
            positions=x,
            box=box,
            velocities=np.full((2, 3), np.nan),
        )

"""Reweight: gradients of averages that are known exactly, and those of long runs."""

import functools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffsim as ds
from diffsim import AbstractEquilibrium, Direct, Reweight, Schedule, md
from problems import argon_box, springs

KT, K = 1.7, 2.3
REPLICAS, SAVES = 16, 400


class Walk(AbstractEquilibrium):
    """Independent draws of N(a, s²): u = (x - a)²/(2 s²)."""

    def init(self, params, key, **conditions):
        return {"x": jnp.asarray(0.0), "key": key, "count": jnp.asarray(0)}

    def step(self, params, state):
        xi = jax.random.normal(jax.random.fold_in(state["key"], state["count"]))
        return {**state, "x": params["a"] + params["s"] * xi, "count": state["count"] + 1}

    def observe(self, params, state):
        return {"x": state["x"], "x2": state["x"] ** 2, "scaled": params["s"] * state["x"]}

    def reduced_energy(self, params, state):
        return (state["x"] - params["a"]) ** 2 / (2 * params["s"] ** 2)


def draws(saves=20_000):
    params = {"a": jnp.asarray(0.4), "s": jnp.asarray(1.3)}
    state = Walk().init(params, jax.random.key(0))
    return Walk(), params, state, Schedule(steps=saves, save_every=1)


@functools.cache
def drawn():
    walk, params, state, schedule = draws()
    return eqx.filter_jit(ds.solve)(walk, params, state, schedule=schedule, adjoint=Reweight())


@eqx.filter_jit
def averages(params, samples):
    walk, _, state, schedule = draws()
    adjoint = Reweight(samples)
    sol = ds.solve(walk, params, state, schedule=schedule, adjoint=adjoint)
    return {name: jnp.mean(value) for name, value in sol.observables.items()}, sol


def test_values_at_the_sampling_parameters_are_the_samples():
    walk, params, state, schedule = draws()
    plain = ds.solve(walk, params, state, schedule=schedule, adjoint=Direct())
    sol = drawn()
    for name, value in plain.observables.items():
        np.testing.assert_allclose(sol.observables[name], value, rtol=1e-12)
    assert sol.stats["ess"] == pytest.approx(1, rel=1e-12)
    np.testing.assert_allclose(sol.stats["weights"], 1, rtol=1e-12)
    assert sol.samples is not None and sol.samples.count == 20_000
    assert eqx.tree_equal(sol.state["x"], plain.state["x"])


def test_the_gradient_is_the_fluctuation_formula():
    """d⟨x²⟩/da = 2a, d⟨x²⟩/ds = 2s, and with an explicit part d⟨s x⟩/ds = a, within 4 errors."""
    _, params, _, _ = draws()
    sol = drawn()
    x = np.asarray(sol.observables["x"])
    a, s = float(params["a"]), float(params["s"])
    slope_u = {"a": -(x - a) / s**2, "s": -((x - a) ** 2) / s**3}
    exact = {"x2": {"a": 2 * a, "s": 2 * s}, "scaled": {"a": s, "s": a}, "x": {"a": 1, "s": 0}}
    found = jax.jit(jax.jacrev(lambda p: averages(p, sol.samples)[0]))(params)
    for name, slopes in exact.items():
        value = np.asarray(sol.observables[name])
        for key, answer in slopes.items():
            explicit = np.mean(x) if (name, key) == ("scaled", "s") else 0.0
            terms = -(value - value.mean()) * (slope_u[key] - slope_u[key].mean())
            assert found[name][key] == pytest.approx(explicit + terms.mean(), rel=1e-9)
            assert abs(found[name][key] - answer) < 4 * np.hypot(
                terms.std(), float(explicit != 0) * x.std()
            ) / math.sqrt(len(x))


@pytest.mark.parametrize(
    "shift", [{"a": 0.2, "s": 0.0}, {"a": 0.0, "s": -0.2}, {"a": -0.3, "s": -0.1}]
)
def test_averages_at_shifted_parameters(shift):
    """⟨x⟩ = a and ⟨x²⟩ = a² + s² elsewhere, from the same samples, with their gradients."""
    _, params, _, _ = draws()
    moved = {key: params[key] + shift[key] for key in params}
    found, sol = averages(moved, drawn().samples)
    weights = np.asarray(sol.stats["weights"])
    assert weights.mean() == pytest.approx(1, rel=1e-12)
    assert sol.stats["ess"] == pytest.approx(1 / np.mean(weights**2), rel=1e-12)
    assert 0.3 < sol.stats["ess"] < 0.99
    x, a, s = np.asarray(drawn().observables["x"]), float(moved["a"]), float(moved["s"])
    for value, answer in ((x, a), (x**2, a**2 + s**2)):
        error = np.std(weights * (value - answer)) / math.sqrt(len(x))
        assert abs(np.mean(weights * value) - answer) < 4 * error
    np.testing.assert_allclose(found["x2"], np.mean(weights * x**2), rtol=1e-12)
    slopes = jax.jit(jax.grad(lambda p: averages(p, drawn().samples)[0]["x2"]))(moved)
    h = 1e-5
    for key in params:
        up, down = ({**moved, key: moved[key] + c * h} for c in (1, -1))
        rise = averages(up, drawn().samples)[0]["x2"] - averages(down, drawn().samples)[0]["x2"]
        assert slopes[key] == pytest.approx(float(rise) / (2 * h), rel=1e-7)


def test_forward_and_reverse_modes_agree():
    _, params, _, _ = draws()
    one = lambda p: averages(p, drawn().samples)[0]["x2"]  # noqa: E731
    reverse, forward = jax.jit(jax.grad(one))(params), jax.jit(jax.jacfwd(one))(params)
    for key in params:
        assert forward[key] == pytest.approx(float(reverse[key]), rel=1e-10)


def test_what_is_sampled_has_no_gradient():
    """Through the samples themselves and the start nothing flows: chaos has no way in."""
    walk, params, state, schedule = draws(50)

    def mean(x):
        start = {**state, "x": x}
        sol = ds.solve(walk, params, start, schedule=schedule, adjoint=Reweight())
        return jnp.mean(sol.observables["x2"])

    assert jax.grad(mean)(jnp.asarray(0.3)) == 0


# Molecular dynamics: oscillators in a thermostat, where ⟨x²⟩ = kT/k whatever the time step.


@functools.cache
def thermal_oscillators():
    """Replicas of two atoms, equilibrated; a step large enough to make errors show."""
    nvt = springs(0.4, md.NVT, friction=2.0)
    params = {"stiffness": jnp.asarray(K)}

    def one(key):
        x = jnp.asarray([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
        state = nvt.init(params, key, positions=x, box=jnp.full(3, 50.0), temperature=KT)
        return ds.solve(nvt, params, state, schedule=Schedule(steps=100)).state

    states = eqx.filter_jit(eqx.filter_vmap(one))(jax.random.split(jax.random.key(3), REPLICAS))
    return nvt, params, states


def mean_energy(params, state, samples):
    """⟨U⟩ of one replica, and its solution; `samples`: reuse these."""
    nvt, _, _ = thermal_oscillators()
    sol = ds.solve(
        nvt,
        params,
        state,
        schedule=Schedule(steps=8 * SAVES, save_every=8),
        adjoint=Reweight(samples),
        observables=["potential_energy"],
    )
    return jnp.mean(sol.observables["potential_energy"]), sol


@eqx.filter_jit
def mean_energies(params, states, samples=None):
    return eqx.filter_vmap(lambda s, old: mean_energy(params, s, old))(states, samples)


def close(values, exact, relative):
    """Replicas agree with an exact value within 4 standard errors, which are small."""
    values = np.asarray(values)
    error = values.std(ddof=1) / math.sqrt(len(values))
    assert abs(values.mean() - exact) < 4 * error, (values.mean(), error, exact)
    assert error < relative * abs(exact)


def test_thermal_oscillators():
    """⟨U⟩ = kT/2 for each of six coordinates, at the k of the samples and at another."""
    _, params, states = thermal_oscillators()
    found, sol = mean_energies(params, states)
    close(found, 6 * KT / 2, 0.02)
    stiffer = {"stiffness": params["stiffness"] * 1.2}
    found, again = mean_energies(stiffer, states, sol.samples)
    close(found, 6 * KT / 2, 0.03)
    assert np.all((again.stats["ess"] > 0.5) & (again.stats["ess"] < 0.99))


def test_gradients_of_thermal_oscillators():
    """d⟨x²⟩/dk = -kT/k² and d⟨U⟩/dk = 0, each replica by its own fluctuations."""
    _, params, states = thermal_oscillators()
    samples = mean_energies(params, states)[1].samples

    def averages(params, state, samples):
        energy, _ = mean_energy(params, state, samples)
        return 2 * energy / params["stiffness"] / 6, energy

    slopes = eqx.filter_vmap(jax.jacrev(averages), in_axes=(None, 0, 0))
    by_x2, by_energy = eqx.filter_jit(slopes)(params, states, samples)
    close(by_x2["stiffness"], -KT / K**2, 0.05)
    zero = np.asarray(by_energy["stiffness"])
    assert abs(zero.mean()) < 4 * zero.std(ddof=1) / math.sqrt(REPLICAS)


# A liquid: ⟨U⟩ and ⟨p⟩ by long runs at two values of each parameter.


@functools.cache
def warm_liquid():
    nvt, params, _ = argon_box(
        atoms=16,
        density=0.5,
        dt=0.008,
        kind=md.NVT,
        friction=2.0,
        temperature=2.0,
        truncation="cut",
    )
    positions, box = md.lattice(16, density=0.5)

    @eqx.filter_jit
    @functools.partial(eqx.filter_vmap, in_axes=(None, 0))
    def ready(params, key):
        state = nvt.init(params, key, positions=positions, box=box, temperature=2.0)
        return ds.solve(nvt, params, state, schedule=Schedule(steps=500)).state

    return nvt, params, ready(params, jax.random.split(jax.random.key(4), REPLICAS))


@eqx.filter_jit
def liquid_averages(params, states):
    """Of each replica, with their gradients."""
    nvt, _, _ = warm_liquid()
    schedule, names = Schedule(steps=10 * SAVES, save_every=10), ["residual_energy", "pressure"]

    def averages(params, state):
        run = functools.partial(ds.solve, nvt, params, state, schedule=schedule)
        sol = run(adjoint=Reweight(), observables=names)
        means = {name: jnp.mean(value) for name, value in sol.observables.items()}
        return means, means

    both = jax.jacrev(averages, has_aux=True)
    return eqx.filter_vmap(both, in_axes=(None, 0))(params, states)


@pytest.mark.slow
def test_gradients_of_a_liquid_are_those_of_long_runs():
    """A plainly cut potential, whose forces sample the shifted energy."""
    _, params, states = warm_liquid()
    slopes, _ = liquid_averages(params, states)
    for key, h in {"epsilon": 0.1, "sigma": 0.03}.items():
        shifted = ({**params, key: params[key] + c * h} for c in (1, -1))
        up, down = (liquid_averages(moved, states)[1] for moved in shifted)
        for name in up:
            # A step this large makes an error of its own, a few per cent at most.
            rise = (np.asarray(up[name]) - np.asarray(down[name])) / (2 * h)
            slope = np.asarray(slopes[name][key])
            spread = math.hypot(rise.std(ddof=1), slope.std(ddof=1))
            error = spread / math.sqrt(REPLICAS)
            assert abs(slope.mean() - rise.mean()) < 4 * error + 0.04 * abs(rise.mean())
            assert error < 0.15 * abs(rise.mean()) + 0.1

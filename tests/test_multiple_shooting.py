"""Multiple shooting: chaotic and stiff fits from starts where one trajectory is lost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffsim as ds
from diffsim import ConfigError, Schedule, ode

LORENZ = {"sigma": 10.0, "rho": 28.0, "beta": 8 / 3}
SEEN = lambda p, x: {"state": jnp.asarray(x)}  # noqa: E731
START = np.array([-5.9, -5.5, 24.6])


def lorenz(adaptive=False):
    """Ten time units of all three components, seen through noise of one."""
    equation = ode.DifferentialEquation(ode.Lorenz63(), dt=0.01)
    ts = 0.1 * np.arange(1, 101)
    state = equation.init(LORENZ, y0=START)
    y = ds.solve(equation, LORENZ, state, schedule=Schedule(ts=ts)).observables["y"]
    data = (np.asarray(y) + np.random.default_rng(0).normal(size=y.shape))[None]
    if adaptive:
        equation = ode.DifferentialEquation(ode.Lorenz63(), max_steps=1000)
    free = {"rho": 20.0, "sigma": 8.0, "beta": 2.0}
    return ds.Problem(
        equation,
        {name: ds.Parameter(v) for name, v in free.items()},
        [ds.Target("y", data, 1.0, statistic="each")],
        Schedule(ts=ts),
        conditions={"y0": START[None]},
    )


def tightened(problem, segments, gaps, **options):
    """One fit a gap, each from where the one before ended."""
    nodes = found = None
    for gap in gaps:
        split = ds.multiple_shooting(problem, segments, nodes=nodes, gap=gap)
        found = ds.least_squares(
            split, adjoint=ds.ForwardMode(), damping=1e-12, steps=60, **options
        )
        nodes = found.values["nodes"]
        problem = problem.starting_at({k: found.values[k] for k in problem.free})
    assert found is not None
    return found, problem


@pytest.mark.slow  # to compile
def test_lorenz_is_found_where_one_trajectory_is_lost():
    problem = lorenz()
    lost = ds.least_squares(problem, adjoint=ds.ForwardMode(), steps=30)
    assert lost.loss > 3000
    found, there = tightened(problem, 20, (1e-1, 1e-4))
    assert found.loss == pytest.approx(0.5 * 297, rel=0.15)  # ½ χ² of 300 values, 3 parameters
    for name, truth in LORENZ.items():
        assert abs(found.values[name] - truth) < 4 * found.stderr(name) < 1.0
    # it is the minimum of the one trajectory, too
    again = ds.least_squares(there, adjoint=ds.ForwardMode(), steps=5)
    assert again.loss == pytest.approx(found.loss, rel=0.01)
    for name in LORENZ:
        assert abs(again.values[name] - found.values[name]) < 0.3 * found.stderr(name)


@pytest.mark.slow
def test_adaptive_steps_find_the_same():
    found, _ = tightened(lorenz(adaptive=True), 20, (1e-1, 1e-4))
    for name, truth in LORENZ.items():
        assert abs(found.values[name] - truth) < 4 * found.stderr(name) < 1.0


@pytest.mark.slow  # to compile
def test_lotka_volterra_from_a_far_start():
    """Over 30 time units a wrong period loses the trajectory of another phase."""
    system = ode.LotkaVolterra()
    equation = ode.DifferentialEquation(system, dt=0.05)
    truth = {"alpha": 1.5, "beta": 1.0, "gamma": 3.0, "delta": 1.0}
    schedule = Schedule(steps=600, save_every=10)
    state = equation.init(truth, y0=jnp.ones(2))
    y = np.asarray(ds.solve(equation, truth, state, schedule=schedule).observables["y"])
    far = {"alpha": 0.7, "beta": 0.5, "gamma": 1.4, "delta": 0.5}
    problem = ds.Problem(
        equation,
        {name: ds.Parameter(v, transform="positive") for name, v in far.items()},
        [ds.Target("y", y[None], 0.05, statistic="each")],
        schedule,
        conditions={"y0": np.ones((1, 2))},
    )
    lost = ds.least_squares(problem, adjoint=ds.ForwardMode(), steps=40)
    found, _ = tightened(problem, 15, (1e-1, 1e-4))
    assert lost.loss > 100 * max(found.loss, 1.0)
    for name, value in truth.items():
        assert found.values[name] == pytest.approx(value, rel=1e-3)


def test_any_simulation_and_several_conditions():
    """A map without a clock: the segments of each condition make its whole trajectory."""
    step = lambda p, x: x + 0.1 * (p["b"] - p["a"] * x**2)  # noqa: E731
    simulation = ds.FunctionSimulation(step, SEEN)
    params, schedule = {"a": 1.3, "b": 0.7}, Schedule(steps=40, save_every=5)
    starts = np.array([[1.5], [0.2]])
    run = lambda x: ds.solve(simulation, params, x, schedule=schedule).observables["state"]  # noqa: E731
    data = np.asarray(jax.vmap(run)(jnp.asarray(starts)))
    problem = ds.Problem(
        simulation,
        {"a": ds.Parameter(1.0), "b": ds.Parameter(1.0)},
        [ds.Target("state", data, 0.01, statistic="each")],
        schedule,
        {"state": starts},
    )
    split = ds.multiple_shooting(problem, 4)
    assert split.batch == 8 and split.schedule.steps == 10
    assert np.shape(split.parameters["nodes"].init) == (2, 3, 1)
    np.testing.assert_array_equal(split.parameters["nodes"].init, data[:, [1, 3, 5]])
    found = ds.least_squares(split, damping=1e-12)
    assert found.loss < 1e-12
    assert found.values["a"] == pytest.approx(1.3, rel=1e-6)


@pytest.mark.slow  # to compile
def test_nodes_are_simulated_where_they_are_not_measured():
    system = ode.LotkaVolterra()
    equation = ode.DifferentialEquation(system, dt=0.05)
    data = np.full((1, 6, 1), 1.0)
    problem = ds.Problem(
        equation,
        {name: ds.Parameter(v) for name, v in system.defaults().items()},
        [ds.Target(system.components[0], data[..., 0], 0.1, statistic="each")],
        Schedule(t0=1.0, ts=1.0 + 0.5 * np.arange(1, 7)),
        conditions={"y0": np.ones((1, 2))},
    )
    split = ds.multiple_shooting(problem, 3)
    state = equation.init(system.defaults(), y0=jnp.ones(2))
    whole = ds.solve(
        equation, system.defaults(), state, schedule=problem.schedule, observables=("y",)
    ).observables["y"]
    np.testing.assert_allclose(
        split.parameters["nodes"].init[0], np.asarray(whole)[[1, 3]], rtol=1e-10
    )
    # every node on the trajectory: no gap, and the residuals are those of the whole
    theta = split.initial()
    prediction = split.predict(theta, split.states(theta, jax.random.key(0)))
    residuals = np.asarray(split.residuals(theta, prediction))
    ours = problem.initial()
    single = problem.predict(ours, problem.states(ours, jax.random.key(0)))
    expected = np.asarray(problem.residuals(ours, single))
    np.testing.assert_allclose(np.sum(residuals**2), np.sum(expected**2), rtol=1e-8)


REFUSED = {
    "segments": (dict(segments=1), "segments: must be a whole number of at least 2"),
    "divisor": (dict(segments=6), r"segments: must divide the 100 saves.*did you mean 5"),
    "gap": (dict(segments=2, gap=0.0), "gap: must be positive"),
    "nodes": (dict(segments=2, nodes=np.zeros((3, 3))), r"nodes: have the shape \(1, 3, 3\)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_mistakes_are_refused(name):
    options, message = REFUSED[name]
    problem = lorenz()
    if name == "divisor":
        simulation = ds.FunctionSimulation(lambda p, x: p["k"] * x, SEEN)
        target = ds.Target("state", np.ones((1, 100, 1)), 1.0, statistic="each")
        schedule, start = Schedule(steps=100, save_every=1), {"state": np.ones((1, 1))}
        problem = ds.Problem(simulation, {"k": ds.Parameter(0.9)}, [target], schedule, start)
    with pytest.raises(ConfigError, match=message):
        ds.multiple_shooting(problem, **options)


def test_a_mean_has_no_segments():
    simulation = ds.FunctionSimulation(lambda p, x: p["k"] * x, SEEN)
    target = ds.Target("state", np.ones((1, 1)), 1.0)
    problem = ds.Problem(
        simulation,
        {"k": ds.Parameter(0.9)},
        [target],
        Schedule(steps=4, save_every=1),
        {"state": np.ones((1, 1))},
    )
    with pytest.raises(ConfigError, match=r"statistic: a mean over the run.*each"):
        ds.multiple_shooting(problem, 2)

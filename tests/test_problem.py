"""What a problem refuses before anything is traced, and whose value a parameter takes."""

from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffsim as ds
from diffsim import ConfigError, ode
from problems import slow_but

TIMES = np.linspace(0.5, 5.0, 10)
DATA = 2 * np.exp(-0.7 * TIMES)
RATE = {"k": ds.Parameter(0.3, transform="positive", unit="1/hour")}


def problem(parameters: Any = None, conditions: Any = None, **target: Any):
    sim = ode.DifferentialEquation(
        lambda t, y, args: -args["k"] * y, dt=0.1, components=["x"], unit_names={"x": "m"}
    )
    targets = [ds.Target(**target)] if target else []
    given = {"y0": [[2.0]]} if conditions is None else conditions
    return ds.Problem(sim, parameters or RATE, targets, ds.Schedule(ts=TIMES), given)


REFUSED = [
    (dict(observable="x", data=DATA[None, :, None], statistic="each"), "x.data: has the shape"),
    (dict(observable="y", data=DATA[None], statistic="each"), "y.data: has the shape"),
    (dict(observable="x", data=DATA[None]), 'did you mean statistic="each"'),
    (dict(observable="x", data=DATA[None, :7], statistic="each"), "(1, 10)"),
    (dict(observable="x", data=DATA[None], sigma=np.ones(3), statistic="each"), "x.sigma"),
    (dict(observable="z", data=DATA[None], statistic="each"), "no such observable"),
    (dict(conditions={"Y0": [[2.0]]}), "conditions.Y0: no such condition"),
    (dict(conditions={"y0": [[2.0], [1.0, 1.0]]}), "rows of different lengths"),
    (dict(parameters={"k": ds.Parameter(0.3, tied="k")}), "is tied to itself"),
]


@pytest.mark.parametrize(("words", "message"), REFUSED, ids=[m for _, m in REFUSED])
def test_what_cannot_be_meant_is_refused(words, message):
    with pytest.raises(ConfigError) as caught:
        problem(**words).check()
    assert message in str(caught.value)


def test_what_fits_is_taken():
    problem(observable="x", data=DATA[None], sigma=0.1, statistic="each").check()
    problem(observable="y", data=DATA[None, :, None], statistic="each").check()
    problem(observable="x", data=np.array([0.5])).check()


def test_ties_lead_to_one_value():
    parameters = {
        "k": ds.Parameter(0.1, tied="b"),
        "b": ds.Parameter(0.5, tied="c"),
        "c": ds.Parameter(0.9),
    }
    values = problem(parameters).values({"c": jnp.asarray(0.7)})
    assert values == {"k": 0.7, "b": 0.7, "c": 0.7}


def test_a_noise_parameter_is_converted_to_the_unit_of_what_was_measured():
    parameters = RATE | {"s": ds.Parameter(5.0, transform="positive", unit="mm")}
    words = dict(observable="x", data=DATA[None], sigma="s", statistic="each")
    given = problem(parameters, **words)
    (sigma,) = given.sigmas(given.initial())
    assert abs(sigma - 0.005) < 1e-12


def test_conditions_may_be_trees():
    spring = lambda t, y, args: {"x": y["v"], "v": -args["k"] * y["x"]}  # noqa: E731
    sim = ode.DifferentialEquation(spring, dt=0.1)
    seen = ds.Target("x", np.zeros((2, 1)), statistic="each")
    start = {"y0": {"x": np.array([1.0, 2.0]), "v": np.zeros(2)}}
    given = ds.Problem(sim, RATE, [seen], ds.Schedule(t1=1.0), start)
    given.check()
    theta = given.initial()
    found = given.predict(theta, given.states(theta, jax.random.key(0))).values[0]
    wanted = np.array([1.0, 2.0]) * np.cos(np.sqrt(0.3))
    np.testing.assert_allclose(found[:, 0], wanted, rtol=1e-8)


# What depends on where the clock starts, and on the loop inside a solver's step.


def decay(**options):
    return ode.DifferentialEquation(lambda t, y, args: -args["k"] * y + 0 * t, **options)


@pytest.mark.parametrize("t0", slow_but([1900.0], [-1.0, 1900.0]))
@pytest.mark.parametrize(
    "adjoint",
    [pytest.param(ds.Direct(), marks=pytest.mark.slow), ds.Backsolve(), ds.RecursiveCheckpoint()],
)
def test_the_start_of_the_clock_changes_no_decay(adjoint, t0):
    sim, params = decay(dt=0.1), {"k": jnp.asarray(0.7)}
    schedule = ds.Schedule(t0=t0, ts=[t0 + 1, t0 + 2])

    def end(params):
        start = sim.init(params, y0=[1.0])
        sol = ds.solve(sim, params, start, schedule=schedule, adjoint=adjoint)
        return sol.observables["y"][-1, 0]

    value, slope = jax.jit(jax.value_and_grad(end))(params)
    assert abs(value - np.exp(-1.4)) < 1e-7
    assert abs(slope["k"] + 2 * np.exp(-1.4)) < 1e-6


def test_backsolve_runs_beyond_the_last_save():
    sim, params = decay(rtol=1e-9), {"k": jnp.asarray(0.7)}
    schedule = ds.Schedule(ts=[1.0], t1=2.0)

    def end(params):
        start = sim.init(params, y0=[1.0])
        return ds.solve(sim, params, start, schedule=schedule, adjoint=ds.Backsolve()).state.y[0]

    assert abs(jax.jit(jax.grad(end))(params)["k"] + 2 * np.exp(-1.4)) < 1e-6


def test_implicit_and_stochastic_solvers_are_differentiated_both_ways():
    noisy = ode.StochasticDifferentialEquation(
        lambda t, y, args: -args["k"] * y,
        lambda t, y, args: 0.1 * jnp.ones_like(y),
        dt=0.1,
        solver=diffrax.ShARK(),
        interpretation="stratonovich",
    )
    params = {"k": jnp.asarray(0.7)}
    for sim in (decay(solver=diffrax.Kvaerno3(), dt=0.1), noisy):

        def end(params, adjoint, sim=sim):
            start = sim.init(params, jax.random.key(0), y0=[1.0])
            schedule = ds.Schedule(steps=10)
            return ds.solve(sim, params, start, schedule=schedule, adjoint=adjoint).state.y[0]

        forward = jax.jit(jax.jacfwd(lambda p: end(p, ds.ForwardMode())))(params)["k"]
        backward = jax.jit(jax.grad(lambda p: end(p, ds.Direct())))(params)["k"]
        assert abs(forward - backward) < 1e-12


def test_a_schedule_in_steps_has_no_start_of_its_own():
    with pytest.raises(ConfigError, match="begins when its state is"):
        ds.Schedule(steps=2, t0=5.0)
    sim = decay(dt=0.1)
    state = sim.init({"k": 0.7}, y0=[1.0], t0=5.0)
    sol = ds.solve(sim, {"k": 0.7}, state, schedule=ds.Schedule(steps=2, save_every=1))
    np.testing.assert_allclose(np.asarray(sol.times), [5.1, 5.2])
    np.testing.assert_allclose(sol.observables["t"], [5.1, 5.2])


def test_a_single_precision_start_takes_the_parameters_precision():
    sim, params = decay(dt=0.1), {"k": jnp.float64(0.7)}
    state = sim.init(params, y0=np.array([1.0], np.float32))
    assert state.y.dtype == jnp.float64
    end = ds.solve(sim, params, state, schedule=ds.Schedule(steps=10)).state.y
    np.testing.assert_allclose(end, np.exp(-0.7), rtol=1e-7)


def test_a_symplectic_run_from_rest_or_zero_is_reversed():
    spring = ode.Separable(lambda p, args: 0.5 * jnp.sum(p**2), lambda q, args: 0.5 * jnp.sum(q**2))
    sim = ode.HamiltonianDynamics(spring, 0.1)
    for y0 in ([1e-5, 1.0], [1.0, 0.0], [0.0, 1.0]):
        start = sim.init({}, y0=y0)
        ends = [
            ds.solve(sim, {}, start, schedule=ds.Schedule(steps=200), adjoint=adjoint).check()
            for adjoint in (ds.Direct(), ds.Reversible())
        ]
        np.testing.assert_allclose(ends[0].state.q, ends[1].state.q, atol=1e-11)


@pytest.mark.slow  # to compile
def test_a_network_with_its_activations_is_a_parameter():
    """dy/dt = net(y), learned from an exponential."""
    system = ode.NeuralODE(names=("x",))
    sim = ode.DifferentialEquation(system, dt=0.25)
    net = ds.Parameter(system.network(jax.random.key(1), width=8, depth=1))
    seen = ds.Target("x", DATA[None], 0.05, statistic="each")
    given = ds.Problem(sim, {"net": net}, [seen], ds.Schedule(ts=TIMES), {"y0": [[2.0]]})
    fitted = ds.fit(given, steps=60)
    assert fitted.loss < 0.2 * fitted.history[0]["loss"]
    assert abs(fitted.values["net"](jnp.array([1.0]))[0] + 0.7) < 0.2


def test_what_was_not_measured_makes_no_error_bar_smaller():
    """Half of the points masked out: the same answer and error as without them."""
    half = np.arange(10) % 2 == 0
    noisy = DATA + 0.02 * np.random.default_rng(0).normal(size=10)
    words: dict[str, Any] = dict(observable="x", sigma=0.02, statistic="each")
    masked = problem(data=noisy[None], mask=half[None], **words)
    sim, start = masked.simulation, {"y0": [[2.0]]}
    alone = [ds.Target(data=noisy[None, half], **words)]
    fewer = ds.Problem(sim, RATE, alone, ds.Schedule(ts=TIMES[half]), start)
    one, other = ds.least_squares(masked), ds.least_squares(fewer)
    assert abs(one.values["k"] - other.values["k"]) < 1e-9
    assert abs(one.stderr("k") / other.stderr("k") - 1) < 1e-6


def test_rows_of_a_target_with_lists_as_a_configuration_has_them():
    """Data and sigma, one list a condition."""
    target = ds.Target("y", [[1.0, 2.0], [3.0, 4.0]], [[0.1, 0.2], [0.3, 0.4]])
    second = target.rows(np.array([1]))
    np.testing.assert_array_equal(second.data, [[3.0, 4.0]])
    np.testing.assert_array_equal(second.sigma, [[0.3, 0.4]])
    one = ds.Target("y", 2.0, 0.1).rows(np.array([1]))
    assert (one.data, one.sigma) == (2.0, 0.1)

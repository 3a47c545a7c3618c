"""Fits at the edges: what data leave open, bounds, failed trials, kinks and single precision."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffsim as ds
from diffsim import ConfigError, Parameter, Problem, Schedule, SimulationError, Target
from diffsim._parameter._transform import Interval, Positive, Simplex
from diffsim._store.json_text import to_json
from problems import slow_but

TIMES = 0.5 * np.arange(1, 7)


def problem(step, data, conditions=None, **parameters):
    """y(t + 1/2) = step(θ, y, t), y(0) = 1, seen with sigma 0.01."""
    advance = lambda p, state: (step(p, *state), state[1] + 0.5)  # noqa: E731
    start = lambda p, key, y0=1.0: (jnp.asarray(y0) + 0.0 * sum(map(jnp.sum, p.values())), 0.0)  # noqa: E731
    simulation = ds.FunctionSimulation(advance, lambda p, s: {"y": s[0]}, start, dt=0.5)
    target = Target("y", np.broadcast_to(data, (1, 6)), 0.01, statistic="each")
    return Problem(simulation, parameters, [target], Schedule(ts=TIMES), conditions)


def decay(p, y, t):
    return y * jnp.exp(-0.5 * p["k"])


def power(p, y, t):
    """y' = k y² solved: infinite at t = 1/k."""
    rest = 1 - p["k"] * (t + 0.5)
    return jnp.where(rest > 0, 1 / rest, jnp.nan)


WAVY = np.exp(-0.7 * TIMES) * (1 + 0.01 * np.cos(9 * TIMES))
UNKNOWN = {
    "absent": (decay, {"q"}),
    "a sum": (lambda p, y, t: decay({"k": p["k"] + p["q"]}, y, t), {"k", "q"}),
    "badly scaled": (lambda p, y, t: decay(p, y, t) + 1e-17 * p["q"] * t, set()),
}


@pytest.mark.parametrize("kind", UNKNOWN)
def test_what_the_data_leave_open_has_an_infinite_error(kind):
    step, unknown = UNKNOWN[kind]
    result = ds.least_squares(problem(step, WAVY, k=Parameter(0.3), q=Parameter(1.0)))
    errors = {name: result.stderr(name) for name in "kq"}
    assert {name for name, error in errors.items() if math.isinf(error)} == unknown
    assert all(error > 1e-4 for error in errors.values())
    assert result.uncertainty is not None
    assert set(np.flatnonzero(np.isinf(np.diag(result.uncertainty.covariance)))) == {
        "kq".index(name) for name in unknown
    }
    written = json.loads(to_json(result.uncertainty.total))
    assert {name for name, error in written.items() if error is None} == unknown


def two_rates(p, y, t):
    return y * jnp.exp(-0.5 * jnp.sum(p["k"] * jnp.asarray([1.0, t > 1.4])))


def bent(p, y, t):
    return y * jnp.exp(-0.5 * (p["a"] + jnp.where(t > 1.4, p["b"], 0.0)))


def test_each_entry_of_an_array_has_its_error():
    """Those of the same parameters as numbers; a number keeps a float."""
    apart = ds.least_squares(problem(bent, WAVY, a=Parameter(0.5), b=Parameter(0.1)))
    whole = ds.least_squares(problem(two_rates, WAVY, k=Parameter(np.array([0.5, 0.1]))))
    errors = whole.stderr("k")
    assert isinstance(errors, np.ndarray) and errors.shape == (2,)
    assert all(isinstance(apart.stderr(name), float) for name in "ab")
    np.testing.assert_allclose(errors, [apart.stderr("a"), apart.stderr("b")], rtol=1e-5)


def first_alone(p, y, t):
    return y * jnp.exp(-0.5 * p["k"][0])


def all_alike(p, y, t):
    return y * jnp.exp(-jnp.sum(p["k"]))


@pytest.mark.parametrize(
    ("step", "init", "transform", "open_"),
    [
        (first_alone, np.array([0.5, 0.1]), "positive", [False, True]),
        (
            all_alike,
            np.full((2, 2), 0.1),
            None,
            np.ones((2, 2)),
        ),
        (first_alone, np.array([0.5, 0.3, 0.2]), "simplex", np.ones(3)),
        (first_alone, np.array([0.5]), None, [False]),
    ],
)
def test_entries_that_the_data_leave_open_are_infinite(step, init, transform, open_):
    found = ds.least_squares(problem(step, WAVY, k=Parameter(init, transform=transform)))
    np.testing.assert_array_equal(np.isinf(found.stderr("k")), open_)


@pytest.mark.parametrize(
    "solve", slow_but([ds.least_squares], [ds.least_squares, ds.fit]), ids=["least_squares", "fit"]
)
def test_a_step_to_where_the_trajectory_fails_is_shortened(solve):
    data = 1 / (1 - 0.3 * TIMES)
    result = solve(problem(power, data, k=Parameter(0.001, transform="positive")))
    assert result.converged
    assert float(result.values["k"]) == pytest.approx(0.3, rel=1e-5)


def nowhere(p, y, t):
    return jnp.where(p["k"] == 0.5, y - 0.1 * p["k"], jnp.nan)


NOWHERE = {"every trial": (ds.least_squares, 0.5), "the start": (ds.fit, 0.6)}


@pytest.mark.parametrize("kind", NOWHERE)
def test_a_fit_without_any_step_raises_the_failure(kind):
    solve, start = NOWHERE[kind]
    with pytest.raises(SimulationError, match="finite"):
        solve(problem(nowhere, WAVY, k=Parameter(start)), steps=60)


def test_a_line_search_with_nowhere_to_go_has_not_converged():
    result = ds.fit(problem(nowhere, WAVY, k=Parameter(0.5)), steps=60)
    assert not result.converged and len(result.history) < 20


def test_a_fit_goes_back_from_where_the_trajectory_fails():
    data, beyond = 1 / (1 - 0.3 * TIMES), optax.chain(optax.lbfgs(), optax.scale(3.0))
    result = ds.fit(problem(power, data, k=Parameter(0.1)), beyond, steps=12)
    assert 2 < len(result.history) < 12  # some iterates have no record
    assert result.loss < result.history[0]["loss"]


def test_an_optimiser_without_a_line_search_raises_the_failure():
    data = 1 / (1 - 0.3 * TIMES)
    with pytest.raises(SimulationError):
        ds.fit(problem(power, data, k=Parameter(0.1)), optax.sgd(1e6), steps=3)


def test_a_kink_names_the_derivative():
    step = lambda p, y, t: y + jnp.sqrt(p["k"])  # noqa: E731
    with pytest.raises(SimulationError, match=r"derivative .* sqrt"):
        ds.least_squares(problem(step, WAVY, k=Parameter(0.0)))


BOUNDS = {
    "above": (decay, np.exp(-2 * TIMES), (0.0, 1.0), 1.0),
    "below": (decay, np.exp(2 * TIMES), (0.0, 1.0), 0.0),
    "zero": (decay, np.exp(2 * TIMES), "positive", 0.0),
}


@pytest.mark.parametrize("solve", [ds.least_squares, ds.fit], ids=["least_squares", "fit"])
@pytest.mark.parametrize("kind", slow_but(["above", "zero"], BOUNDS))
def test_a_fit_that_runs_to_a_bound_ends_inside_of_it(kind, solve):
    step, data, transform, bound = BOUNDS[kind]
    given = problem(step, data, k=Parameter(0.3, transform=transform))
    result = solve(given)
    assert result.converged
    value = np.asarray(result.values["k"])
    assert value != bound and abs(value - bound) < 1e-5
    again = given.starting_at({"k": value})
    assert float(again.values(again.initial())["k"]) == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize(
    "transform", [Positive(), Interval(0.0, 1.0), Interval(-2.0, 0.3), Interval(0.7, 3.0)], ids=str
)
def test_transforms_stay_inside_and_keep_their_slope(transform, dtype):
    far = jnp.asarray([-1e4, -800.0, -100.0, -40.0, 0.3], dtype)
    far = far if isinstance(transform, Positive) else jnp.concatenate([far, -far])
    values = np.asarray(jax.jit(transform.forward)(far))
    assert transform.fault(values.astype(float)) is None and values.dtype == dtype
    assert np.all(np.isfinite(jax.jit(transform.inverse)(values)))
    slope = jax.vmap(jax.grad(transform.forward))
    assert np.all(np.isfinite(slope(far)))
    near = jnp.asarray([-3.0, 0.0, 2.0], dtype)
    stretched = np.sum(np.log(slope(near)))
    assert stretched == pytest.approx(float(transform.log_det(near)), rel=1e-5)


def test_shares_stay_positive():
    values = Simplex().forward(jnp.asarray([900.0, -400.0]))
    assert Simplex().fault(np.asarray(values)) is None


def test_a_fit_ends_by_itself_where_the_slope_vanishes():
    result = ds.fit(problem(decay, np.exp(-2 * TIMES), k=Parameter(0.3)))
    assert result.converged and len(result.history) < 40
    assert float(result.values["k"]) == pytest.approx(2.0, abs=1e-6)
    whole = ds.fit(problem(decay, WAVY, k=Parameter(0.3)), optax.sgd(1e-9), steps=15, tol=0.0)
    assert not whole.converged and len(whole.history) == 15


def test_least_squares_ends_in_single_precision():
    start = np.asarray(0.3, np.float32)
    with jax.enable_x64(False):
        result = ds.least_squares(problem(decay, WAVY, k=Parameter(start), q=Parameter(start)))
        assert result.theta["k"].dtype == jnp.float32
        assert result.converged and len(result.history) < 15
        assert result.stderr("q") == math.inf
    assert float(result.values["k"]) == pytest.approx(0.7, abs=0.02)


@pytest.mark.parametrize("solve", [ds.least_squares, ds.fit], ids=["least_squares", "fit"])
def test_a_mask_of_the_wrong_length_is_refused(solve):
    with pytest.raises(ConfigError, match="use: must have 1 entries"):
        solve(problem(decay, WAVY, k=Parameter(0.3)), use=[True, False])


def seen(function, data, start):
    """y = function(k), of a simulation that never fails."""
    simulation = ds.FunctionSimulation(
        lambda p, x: x, lambda p, x: {"y": function(p["k"])}, lambda p, key: 0.0 * p["k"]
    )
    return Problem(simulation, {"k": Parameter(start)}, [Target("y", data, 0.1)], Schedule(steps=1))


def test_a_descent_says_which_target_was_lost():
    """NaN without a failure of the simulation: no optimiser can go on from there."""
    with pytest.raises(SimulationError, match=r"loss is not a finite .* iteration 0: y came out"):
        ds.fit(seen(jnp.sqrt, 0.5, -1.0), steps=3)
    with pytest.raises(SimulationError, match="gradient is not a finite number in iteration 0;"):
        ds.fit(seen(jnp.sqrt, 0.5, 0.0), steps=3)


def test_a_descent_goes_back_from_where_a_target_is_lost():
    """Gradient descent of a logarithm would stride into NaN; a search keeps clear of it."""
    found = ds.fit(seen(jnp.log, math.log(0.01), 3.0), steps=60)
    assert found.values["k"] == pytest.approx(0.01, rel=1e-6)
    with pytest.raises(SimulationError, match="iteration 1: y came out"):
        ds.fit(seen(jnp.log, math.log(0.01), 3.0), optax.sgd(1.0), steps=3)

"""Truncated, implicit and chosen gradients; the planner's predictions against compiled sizes."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffsim as ds
from diffsim import ConfigError, Schedule, cfd, ode
from diffsim._adjoint._auto import Choice, _Fewer
from diffsim._adjoint._bytes import parsed_bytes
from diffsim._adjoint._plan import recomputed
from diffsim._fit._planned import planned
from problems import argon_box, slow_but

LOTKA = ode.LotkaVolterra()


def lotka(steps=1000, save_every=50):
    equation = ode.DifferentialEquation(LOTKA, dt=0.01)
    params = {name: jnp.asarray(v) for name, v in LOTKA.defaults().items()}
    state = equation.init(params, y0=jnp.ones(2))
    return equation, params, state, Schedule(steps=steps, save_every=save_every), ("y",)


def many(steps=120, save_every=20):
    equation = ode.DifferentialEquation(lambda t, y, p: jnp.sin(y) - p["k"] * y, dt=0.01)
    params = {"k": jnp.asarray(1.0)}
    state = equation.init(params, y0=jnp.linspace(0, 1, 1000))
    return equation, params, state, Schedule(steps=steps, save_every=save_every), ("y",)


def both_ways(steps=600):
    equation = ode.DifferentialEquation(lambda t, y, p: jnp.sin(y) - p["k"] * y, dt=0.01)
    simulation = ode.AlgebraicallyReversible(equation)
    params = {"k": jnp.asarray(1.0)}
    state = simulation.init(params, y0=jnp.linspace(0.1, 1, 1000))
    return simulation, params, state, Schedule(steps=steps, save_every=100), ("y",)


def liquid():
    simulation, params, state = argon_box(64)
    schedule = Schedule(steps=200, save_every=20)
    return simulation, params, state, schedule, ("pressure", "total_energy")


def flow():
    simulation = cfd.IncompressibleFlow(cfd.Grid((32, 32)), 0.01, method="rk3")
    params = {"viscosity": jnp.asarray(1e-2)}
    velocity = tuple(np.asarray(u[0]) for u in cfd.random_velocity(simulation, 4.0, 1.0))
    state = simulation.init(params, jax.random.key(0), velocity=velocity)
    return simulation, params, state, Schedule(steps=80, save_every=20), ("kinetic_energy",)


SYSTEMS = {"ode": lotka, "large ode": many, "both ways": both_ways, "liquid": liquid, "flow": flow}


def gradient(system, adjoint, names=None):
    simulation, params, state, schedule, seen = system

    def loss(params):
        sol = ds.solve(
            simulation, params, state, schedule=schedule, adjoint=adjoint, observables=seen
        )
        return sum(jnp.sum(x**2) for x in sol.observables.values()), sol.stats.get("plan")

    return jax.jit(jax.grad(loss, has_aux=True))(params)


def flat(tree):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


# Each system under budgets that ask for each of its adjoints, and which that is.
BUDGETS = [
    ("ode", None, "Direct"),
    ("ode", "50kB", "RecursiveCheckpoint"),
    ("large ode", "1MB", "RecursiveCheckpoint"),
    ("large ode", "1GB", "Direct"),
    ("both ways", "350kB", "Reversible"),
    ("liquid", "1GB", "Direct"),
    ("liquid", "600kB", "Reversible"),
    ("flow", "1GB", "Direct"),
    ("flow", "1200kB", "RecursiveCheckpoint"),
]


@pytest.mark.parametrize(("name", "memory", "chosen"), slow_but([BUDGETS[1], BUDGETS[3]], BUDGETS))
def test_auto_stays_in_its_budget_and_predicts_it(name, memory, chosen):
    system = SYSTEMS[name]()
    found, plan = gradient(system, ds.Auto(memory=memory))
    assert plan.chosen.startswith(chosen), str(plan)
    row = next(row for row in plan.candidates if row.verdict == "chosen")
    assert row.measured <= plan.budget
    assert row.predicted == pytest.approx(row.measured, rel=0.2)
    expected, none = gradient(system, ds.Direct())
    assert none is None
    rtol = 1e-8 if chosen == "Reversible" else 1e-10
    np.testing.assert_allclose(flat(found), flat(expected), rtol=rtol)
    assert "chosen" in str(plan) and plan.rows()[0]["name"]
    assert not jax.tree.leaves(eqx.filter(plan, eqx.is_array))


def test_auto_refuses_what_nothing_fits():
    with pytest.raises(ConfigError, match=r"no adjoint fits 100 B; the least.*did you mean"):
        gradient(lotka(), ds.Auto(memory="100B"))
    with pytest.raises(ConfigError, match=r"no adjoint fits.*2 forward runs"):
        gradient(lotka(), ds.Auto(time=2.0))


def test_auto_steps_down_where_a_prediction_was_wrong(monkeypatch):
    """A prediction of Direct that is far too small: the compiled size decides."""
    from diffsim._adjoint import _auto

    right = _auto.predictions

    def wrong(*args):
        return [(a, 10 if isinstance(a, ds.Direct) else b, c) for a, b, c in right(*args)]

    monkeypatch.setattr(_auto, "predictions", wrong)
    _, plan = gradient(lotka(), ds.Auto(memory="60kB"))
    verdicts = {row.name.split("(")[0]: row.verdict for row in plan.candidates}
    assert verdicts["Direct"] == "compiled to more than the budget"
    assert verdicts["RecursiveCheckpoint"] == "chosen"


@pytest.mark.slow  # to compile
def test_auto_in_forward_mode_never_meets_a_reverse_rule():
    simulation, params, state, schedule, seen = lotka(200)

    def final(params):
        adjoint = ds.Auto(memory="30kB", mode="forward")
        sol = ds.solve(simulation, params, state, schedule=schedule, adjoint=adjoint)
        return jnp.sum(sol.observables["y"] ** 2)

    pushed = jax.jit(jax.jacfwd(final))(params)
    expected, _ = gradient((simulation, params, state, schedule, seen), ds.Direct())
    np.testing.assert_allclose(flat(pushed), flat(expected), rtol=1e-10)


@pytest.mark.parametrize(
    ("memory", "count"),
    [("2GB", 2 * 10**9), ("1.5 MiB", 1.5 * 2**20), ("300 kb", 300_000), (5e6, 5_000_000)],
)
def test_memory_is_read_as_people_write_it(memory, count):
    assert parsed_bytes(memory) == count


@pytest.mark.parametrize("memory", ["lots", "2 GHz", "-1MB", "MB", -1.0, "1..5MB"])
def test_no_amount_of_memory(memory):
    with pytest.raises(ConfigError, match=r"is no amount of memory.*kB.*did you mean 2GB"):
        ds.Auto(memory=memory)


def test_options_of_auto():
    assert parsed_bytes(None) > 2**20
    with pytest.raises(ConfigError, match="mode: unknown mode"):
        ds.Auto(mode="backward")
    with pytest.raises(ConfigError, match="time: must be positive"):
        ds.Auto(time=0.0)


def test_recomputation_is_that_of_the_binomial_schedule():
    """md.md and platform.md: totals over T of 4.64 and 2.954 evaluations for 10 and 44 slots."""
    assert 1 + recomputed(1000, 10) + 1 == pytest.approx(4.64 + 1 - 0.0, abs=0.35)
    assert recomputed(1000, 1000) == 0
    assert recomputed(1000, 10) > recomputed(1000, 44) > recomputed(1000, 200)


def measured(statistic="each"):
    simulation, params, state, _, _ = lotka()
    schedule = Schedule(steps=300, save_every=50)
    y = ds.solve(simulation, params, state, schedule=schedule).observables["y"]
    free = {name: ds.Parameter(1.05 * float(v)) for name, v in params.items()}
    target = ds.Target("y", np.asarray(y)[None], 0.1, statistic=statistic)
    return ds.Problem(simulation, free, [target], schedule, {"y0": np.ones((1, 2))})


@pytest.mark.parametrize(
    "method", slow_but(["least squares"], ["least squares", "descent", "laplace"])
)
def test_fits_follow_auto(method):
    problem = measured()
    if method == "least squares":
        found = ds.least_squares(problem, adjoint=ds.Auto(memory="1MB"))
        assert found.adjoint()["name"] == "ForwardMode"  # four parameters, twelve residuals
    elif method == "descent":
        found = ds.fit(problem, adjoint=ds.Auto(memory="1MB"), steps=200)
    else:
        found = ds.posterior(problem, ds.Laplace(), adjoint=ds.Auto(), starts=1)
        assert set(found.draws) >= set(LOTKA.defaults())
        return
    facts = found.adjoint()
    assert facts["plan"] and facts["temp_bytes"] <= facts["budget"] == 10**6
    for name, value in LOTKA.defaults().items():
        assert found.values[name] == pytest.approx(float(value), rel=1e-3)


@pytest.mark.slow  # to compile
def test_averages_at_equilibrium_are_reweighted():
    from diffsim import md

    simulation, params, _ = argon_box(atoms=32, kind=md.NVT, friction=2.0)
    positions, box = md.lattice(32, density=0.6)
    free = {name: ds.Parameter(float(v)) for name, v in params.items()}
    target = ds.Target("pressure", np.array([0.5]), 0.1)
    conditions = {"positions": positions[None], "box": box[None], "temperature": np.ones(1)}
    schedule = Schedule(steps=100, save_every=10)
    problem = ds.Problem(simulation, free, [target], schedule, conditions)
    found = ds.least_squares(problem, adjoint=ds.Auto(), steps=2)
    assert found.adjoint()["name"] == "Reweight" and found.samples is not None


# The last steps alone.
@pytest.mark.slow  # to compile
def test_a_window_that_is_the_whole_run_is_exact():
    system = lotka(200)
    expected, _ = gradient(system, ds.Direct())
    for window in (200, 1000):
        found, _ = gradient(system, ds.Truncated(window))
        np.testing.assert_allclose(flat(found), flat(expected), rtol=1e-12)


@pytest.mark.parametrize("window", slow_but([120], [1, 30, 50, 120]))
def test_a_window_is_the_gradient_of_what_starts_there(window):
    """The head is run first, without a gradient; the rest is a run of its own."""
    simulation, params, state, _, _ = lotka()
    run = lambda p, s, n, adjoint=None: ds.solve(  # noqa: E731
        simulation, p, s, schedule=Schedule(steps=n), adjoint=adjoint
    )
    halfway = run(params, state, 200 - window).state
    by_hand = jax.jit(jax.grad(lambda p: jnp.sum(run(p, halfway, window).observables["y"] ** 2)))(
        params
    )
    schedule = Schedule(steps=200, save_every=50)

    def last(params):
        sol = ds.solve(simulation, params, state, schedule=schedule, adjoint=ds.Truncated(window))
        return jnp.sum(sol.observables["y"][-1] ** 2), sol.stats["biased"]

    found, biased = jax.jit(jax.grad(last, has_aux=True))(params)
    assert bool(biased)
    np.testing.assert_allclose(flat(found), flat(by_hand), rtol=1e-10)
    pushed = jax.jit(jax.jacfwd(lambda p: last(p)[0]))(params)
    np.testing.assert_allclose(flat(pushed), flat(found), rtol=1e-10)


def test_windows_are_whole_numbers():
    for bad in (0, -1, True):
        with pytest.raises(ConfigError, match="window: must be a whole number"):
            ds.Truncated(bad)


# Fixed points.
def linear(rate=0.1):
    """x' = x + rate (b - A x): the solution of A x = b."""
    simulation = ds.FunctionSimulation(lambda p, x: x + rate * (p["b"] - p["A"] @ x))
    params = {"A": jnp.array([[2.0, 0.3], [0.1, 1.0]]), "b": jnp.array([1.0, -0.5])}
    return simulation, params


def at_rest(simulation, params, steps, adjoint):
    schedule = Schedule(steps=steps, save_every=steps // 2)
    return ds.solve(simulation, params, jnp.zeros(2), schedule=schedule, adjoint=adjoint)


@pytest.mark.slow  # to compile
def test_a_fixed_point_is_differentiated_twice_and_both_ways():
    simulation, params = linear()
    run = lambda p: jnp.sum(  # noqa: E731
        at_rest(simulation, p, 2000, ds.Implicit()).observables["state"][-1] ** 3
    )
    exact = lambda p: jnp.sum(jnp.linalg.solve(p["A"], p["b"]) ** 3)  # noqa: E731
    for way in (jax.grad, jax.jacfwd, jax.hessian):
        np.testing.assert_allclose(
            flat(jax.jit(way(run))(params)), flat(way(exact)(params)), rtol=1e-9, atol=1e-12
        )


def test_an_unconverged_run_is_refused():
    simulation, params = linear()
    short = at_rest(simulation, params, 20, ds.Implicit())
    with pytest.raises(ds.SimulationError, match=r"did not end at a fixed point.*step 20"):
        short.check()
    end = lambda p: at_rest(simulation, p, 20, ds.Implicit()).observables["state"][-1]  # noqa: E731
    slope = jax.jit(jax.grad(lambda p: jnp.sum(end(p))))(params)
    assert np.all(np.isnan(flat(slope)))
    assert float(short.stats["distance"]) > 1e-3
    at_rest(simulation, params, 20, ds.Implicit(rtol=0.5)).check()


def test_the_stationary_state_of_an_equation():
    """A logistic equation with harvest: x* = (1 + √(1 - 4h/r))/2, its clock left out of it."""
    equation = ode.DifferentialEquation(lambda t, y, p: p["r"] * y * (1 - y) - p["h"], dt=0.1)
    params = {"r": jnp.asarray(2.0), "h": jnp.asarray(0.3)}
    state = equation.init(params, y0=jnp.ones(1))

    def rest(params):
        sol = ds.solve(equation, params, state, schedule=Schedule(steps=600), adjoint=ds.Implicit())
        return sol.observables["y"][-1, 0]

    exact = lambda p: 0.5 * (1 + jnp.sqrt(1 - 4 * p["h"] / p["r"]))  # noqa: E731
    value, slope = jax.jit(jax.value_and_grad(rest))(params)
    assert value == pytest.approx(float(exact(params)), rel=1e-12)
    np.testing.assert_allclose(flat(slope), flat(jax.grad(exact)(params)), rtol=1e-9)


def test_a_direction_that_nothing_moves_stays():
    """Diffusion keeps the mean: the system is singular there, and the gradient is right."""

    def step(params, u):
        return u + 0.2 * (jnp.roll(u, 1) - 2 * u + jnp.roll(u, -1)) + 0.1 * params["q"]

    source = jnp.cos(2 * jnp.pi * jnp.arange(16) / 16)
    simulation = ds.FunctionSimulation(lambda p, u: step({"q": p["a"] * source}, u))

    def amplitude(params, adjoint):
        sol = ds.solve(
            simulation, params, jnp.zeros(16), schedule=Schedule(steps=2000), adjoint=adjoint
        )
        return jnp.vdot(source, sol.state)

    params = {"a": jnp.asarray(1.0)}
    slope = jax.jit(jax.grad(amplitude), static_argnums=1)
    found, expected = (slope(params, a)["a"] for a in (ds.Implicit(), ds.Direct()))
    assert found == pytest.approx(float(expected), rel=1e-8)


def test_tangents_in_chunks_are_the_tangents():
    problem = measured()
    whole = ds.least_squares(problem, adjoint=ds.ForwardMode())
    parts = ds.least_squares(problem, adjoint=ds.ForwardMode(chunk=3))
    for name in LOTKA.defaults():
        assert parts.values[name] == pytest.approx(float(whole.values[name]), rel=1e-9)
    for memory, chosen in (("4kB", "ForwardMode(3)"), ("1MB", "ForwardMode")):
        fitted = ds.least_squares(problem, adjoint=ds.ForwardMode(memory=memory))
        (row,) = fitted.adjoint()["plan"]
        assert row["name"] == chosen
        assert row["measured"] <= fitted.adjoint()["budget"] == parsed_bytes(memory)
        assert fitted.values["alpha"] == pytest.approx(float(whole.values["alpha"]), rel=1e-9)
    with pytest.raises(ConfigError, match="chunk: must be at least 1"):
        ds.ForwardMode(chunk=0)
    with pytest.raises(ConfigError, match="memory: give one of the two"):
        ds.ForwardMode(chunk=2, memory="1GB")


@pytest.mark.slow  # to compile
def test_stats_are_attributes_and_adaptive_solvers_choose_their_own():
    simulation, params, state, schedule, _ = lotka(100)
    sol = ds.solve(simulation, params, state, schedule=schedule, adjoint=ds.Auto())
    assert sol.stats.plan is sol.stats["plan"] and sol.stats.plan.chosen == "Direct"
    with pytest.raises(AttributeError, match="no ess among plan"):
        _ = sol.stats.ess
    adaptive = ode.DifferentialEquation(LOTKA)
    for mode, take in (("reverse", jax.grad), ("forward", jax.jacfwd)):
        end = lambda p, mode=mode: jnp.sum(  # noqa: E731
            ds.solve(
                adaptive, p, state, schedule=Schedule(t1=1.0), adjoint=ds.Auto(mode=mode)
            ).state.y
        )
        assert np.all(np.isfinite(flat(jax.jit(take(end))(params))))


def test_runs_beyond_their_horizon_are_treated_as_told():
    """Lorenz over 12 Lyapunov times: a hundredfold growth takes five."""
    equation = ode.DifferentialEquation(ode.Lorenz63(), dt=0.02)
    start = np.asarray([[-5.0, -6.0, 22.0]])
    schedule = Schedule(steps=700, save_every=100)
    free = {"sigma": ds.Parameter(10.0), "rho": ds.Parameter(28.0), "beta": ds.Parameter(2.66)}
    target = ds.Target("y", np.zeros((1, 7, 3)), 1.0)
    problem = ds.Problem(equation, free, [target], schedule, {"y0": start})
    chosen, choice, plan = planned(problem, ds.Auto(memory="1GB"), "reverse")
    assert isinstance(chosen, ds.Direct) and choice is not None and plan is not None
    assert "multiple_shooting" in plan.why
    window, _, plan = planned(problem, ds.Auto(chaos="window"), "reverse")
    assert isinstance(window, ds.Truncated) and 100 < window.window < 500
    assert plan is not None and "biased" in plan.why and "noise beyond a horizon" in plan.why
    with pytest.raises(ConfigError, match=r"adjoint.chaos: .*noise beyond.*Reweight"):
        planned(problem, ds.Auto(chaos="refuse"), "reverse")
    with pytest.raises(ConfigError, match=r"chaos: unknown choice.*window"):
        ds.Auto(chaos="ignore")


@pytest.mark.parametrize(
    ("predicted", "compiled", "taken"),
    [(105, 99, "Direct"), (105, 101, "RecursiveCheckpoint"), (115, 99, "RecursiveCheckpoint")],
)
def test_what_is_predicted_close_to_the_budget_is_compiled_to_see(predicted, compiled, taken):
    found = [(ds.RecursiveCheckpoint(5), 50, 5.0), (ds.Direct(), predicted, 3.0)]
    choice = Choice.of(found, 100, None, _Fewer(10, 10))
    if isinstance(choice.adjoint, ds.Direct):
        choice = choice.measure(compiled) or choice
    assert type(choice.adjoint).__name__ == taken

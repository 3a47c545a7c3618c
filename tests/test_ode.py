"""Differential equations through `solve`: orders, adjoints, symplectic methods, refusals."""

import functools
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffsim as ds
from diffsim import ConfigError, Schedule, SimulationError, ode
from problems import slow_but

LV = {"alpha": 1.5, "beta": 1.0, "gamma": 3.0, "delta": 1.0}
# prey at t = 10 from (1, 1), and its derivatives; ode.DifferentialEquation's reference problem
LV_PREY = 1.026344767575089
LV_SLOPES = dict(
    zip(
        LV,
        (2.160557523562618, 0.188568777078059, 0.563182794168198, 0.939651287153080),
        strict=True,
    )
)
TEN = Schedule(ts=[5.0, 10.0])


def arrays(values):
    return jax.tree.map(jnp.asarray, values)


@eqx.filter_jit
def run(sim, params, y0, schedule, adjoint=None):
    return ds.solve(sim, params, sim.init(params, y0=y0), schedule=schedule, adjoint=adjoint)


def lotka(**options):
    return ode.DifferentialEquation(ode.LotkaVolterra(), **options)


ADAPTIVE = lotka(rtol=1e-10, atol=1e-10)
FIXED = lotka(dt=0.0025)


GRADIENTS = {
    f"{steps}-{type(adjoint).__name__}": (sim, adjoint)
    for steps, sim in (("adaptive", ADAPTIVE), ("fixed", FIXED))
    for adjoint in (ds.Direct(), ds.RecursiveCheckpoint(), ds.ForwardMode(), ds.Backsolve())
}
QUICK = ("adaptive-RecursiveCheckpoint", "adaptive-Backsolve", "fixed-Direct", "fixed-ForwardMode")


@pytest.mark.parametrize("name", slow_but(QUICK, GRADIENTS))
def test_every_adjoint_gives_the_published_gradient(name):
    sim, adjoint = GRADIENTS[name]

    def prey(params):
        sol = ds.solve(sim, params, sim.init(params, y0=jnp.ones(2)), schedule=TEN, adjoint=adjoint)
        return sol.observables["prey"][-1]

    both = jax.value_and_grad(prey)
    if "reverse" not in adjoint.modes:
        both = lambda p: (prey(p), jax.jacfwd(prey)(p))  # noqa: E731
    value, slopes = jax.jit(both)(arrays(LV))
    assert abs(value - LV_PREY) < 1e-8
    for name, wanted in LV_SLOPES.items():
        assert abs(slopes[name] - wanted) < 1e-7 * max(1, abs(wanted)), name


def test_forward_mode_refuses_to_go_backwards():
    def prey(params):
        state = FIXED.init(params, y0=jnp.ones(2))
        sol = ds.solve(FIXED, params, state, schedule=Schedule(steps=4), adjoint=ds.ForwardMode())
        return sol.observables["prey"][-1]

    with pytest.raises(RuntimeError, match="jacfwd, or another adjoint"):
        jax.grad(prey)(arrays(LV))


# y' = -y² cos t - y/2 has order conditions of every kind: it depends on t and is not linear.
def bent(t, y, args):
    return -args["k"] * y**2 * jnp.cos(t) - 0.5 * y


METHODS = [
    (diffrax.Euler(), 1),
    (diffrax.ImplicitEuler(), 1),
    (diffrax.Heun(), 2),
    (diffrax.Midpoint(), 2),
    (diffrax.Ralston(), 2),
    (diffrax.Bosh3(), 3),
    (diffrax.Kvaerno3(), 3),
    (diffrax.Kvaerno4(), 4),
    (diffrax.Dopri5(), 5),
    (diffrax.Tsit5(), 5),
    (diffrax.Kvaerno5(), 5),
    (diffrax.Dopri8(), 8),
]


@functools.cache
def bent_end():
    tight = ode.DifferentialEquation(bent, diffrax.Dopri8(), rtol=1e-14, atol=1e-14)
    return run(tight, {"k": jnp.asarray(1.0)}, jnp.array([1.0]), Schedule(t1=2.0)).state.y


@pytest.mark.parametrize(
    ("solver", "order"),
    slow_but([*METHODS[:6], *METHODS[8:]], METHODS),
    ids=lambda x: type(x).__name__,
)
def test_fixed_steps_converge_with_the_order_of_the_method(solver, order):
    coarse = {1: 64, 2: 32, 3: 16, 4: 16, 5: 8, 8: 4}[order]
    errors = []
    for steps in (coarse, 2 * coarse):
        sim = ode.DifferentialEquation(bent, solver, dt=2.0 / steps, rtol=1e-11, atol=1e-13)
        end = run(sim, {"k": jnp.asarray(1.0)}, jnp.array([1.0]), Schedule(steps=steps)).state.y
        errors.append(float(jnp.abs(end - bent_end())[0]))
    assert order - 0.35 < np.log2(errors[0] / errors[1]) < order + 1.8, errors


COMPOSITIONS = [
    ode.VelocityVerlet(),
    ode.ForestRuth(),
    ode.Yoshida4(),
    ode.Yoshida6(),
    ode.Yoshida8(),
]


def pendulum(dt, method):
    """H = p²/2 - cos q, from (1, 0.3)."""
    system = ode.Separable(
        lambda p, args: 0.5 * jnp.sum(p**2) / args["m"], lambda q, args: -jnp.sum(jnp.cos(q))
    )
    return ode.HamiltonianDynamics(system, dt, method)


SWING, MASS = jnp.array([1.0, 0.3]), {"m": jnp.asarray(1.3)}


@functools.cache
def swung():
    field = pendulum(1.0, ode.VelocityVerlet()).system
    tight = ode.DifferentialEquation(field, diffrax.Dopri8(), rtol=1e-14, atol=1e-14)
    return run(tight, MASS, SWING, Schedule(t1=3.2)).state.y


@pytest.mark.parametrize("method", COMPOSITIONS, ids=lambda m: type(m).__name__)
def test_symplectic_methods_converge_with_their_order(method):
    coarse = {2: 32, 4: 16, 6: 16, 8: 8}[method.order]
    errors = []
    for steps in (coarse, 2 * coarse):
        sol = run(pendulum(3.2 / steps, method), MASS, SWING, Schedule(steps=steps))
        errors.append(float(jnp.linalg.norm(sol.observables["y"][-1] - swung())))
    assert abs(np.log2(errors[0] / errors[1]) - method.order) < 0.35, errors


@pytest.mark.parametrize("method", COMPOSITIONS, ids=lambda m: type(m).__name__)
def test_symplectic_motion_is_reversed_to_the_last_bit(method):
    sim = pendulum(0.1, method)

    @jax.jit
    def there_and_back(state):
        exact = sim.to_exact(MASS, state, 5000)
        on = lambda e, _: (sim.exact_step(MASS, e), None)  # noqa: E731
        off = lambda e, _: (sim.exact_unstep(MASS, e), None)  # noqa: E731
        there, _ = jax.lax.scan(on, exact, length=5000)
        back, _ = jax.lax.scan(off, there, length=5000)
        return exact, there, back

    exact, there, back = there_and_back(sim.init(MASS, y0=SWING))
    assert sim.same(exact, back) and not sim.same(exact, there)


@pytest.mark.parametrize(
    "method",
    [pytest.param(ode.VelocityVerlet(), marks=pytest.mark.slow), ode.ForestRuth()],
    ids=["kick", "drift"],
)
def test_symplectic_gradients_agree_and_are_those_of_finite_differences(method):
    sim, schedule = pendulum(0.05, method), Schedule(steps=60, save_every=20)

    def loss(params, y0, adjoint):
        sol = ds.solve(sim, params, sim.init(params, y0=y0), schedule=schedule, adjoint=adjoint)
        return jnp.sum(sol.observables["y"] ** 2 * jnp.arange(1.0, 4.0)[:, None])

    slopes = [
        jax.jit(jax.grad(loss, argnums=(0, 1)), static_argnums=2)(MASS, SWING, adjoint)
        for adjoint in (ds.Direct(), ds.RecursiveCheckpoint(checkpoints=4), ds.Reversible())
    ]
    step = 1e-5
    bump = jax.jit(lambda s: loss({"m": MASS["m"] + s}, SWING, ds.Direct()))
    difference = (bump(step) - bump(-step)) / (2 * step)
    assert abs(slopes[0][0]["m"] - difference) < 1e-7 * abs(difference)
    for other in slopes[1:]:
        np.testing.assert_allclose(other[0]["m"], slopes[0][0]["m"], rtol=1e-9)
        np.testing.assert_allclose(other[1], slopes[0][1], rtol=1e-9)


def test_symplectic_energy_errors_stay_where_they_are():
    kepler = ode.Kepler()
    params = arrays(kepler.defaults())
    sim = ode.HamiltonianDynamics(kepler, 2 * np.pi / 400, ode.VelocityVerlet())
    law = ds.Conserved("energy", rtol=0.02, relative_to="energy")
    schedule = Schedule(steps=400 * 200, save_every=400 * 20)
    sol = ds.solve(sim, params, sim.init(params), schedule=schedule, laws=(law,))
    sol.check()
    off = np.abs(np.asarray(sol.observables["energy"]) + 0.5)
    assert off.max() < 3 * off[0] + 1e-6


def test_masses_far_apart_keep_their_own_resolution():
    """Coordinates of 1e11 and momenta of 1e30: the exact representation follows the start."""
    system = ode.Separable(
        lambda p, args: 0.5 * jnp.sum(p**2) / 1e24, lambda q, args: 5e-7 * jnp.sum(q**2) * 1e10
    )
    sim = ode.HamiltonianDynamics(system, 1e5)
    state = sim.init({}, y0=jnp.array([1.5e11, 2e28]))
    exact = sim.to_exact({}, state, 1)
    back = sim.from_exact(exact)
    np.testing.assert_allclose(back.q, state.q, rtol=1e-13)
    np.testing.assert_allclose(back.p, state.p, rtol=1e-13)


# What a run looks like.


def test_times_of_data_are_met_and_saved():
    ts = np.array([1900.0, 1900.7, 1903.1])
    field = lambda t, y, args: jnp.cos(t) * jnp.ones_like(y)  # noqa: E731
    for sim in (
        ode.DifferentialEquation(field, rtol=1e-10, atol=1e-12),
        ode.DifferentialEquation(field, dt=0.1),
    ):
        sol = run(sim, {}, jnp.zeros(1), Schedule(t0=1899.0, ts=ts, t1=1905.0)).check()
        np.testing.assert_allclose(np.asarray(sol.times), ts)
        wanted = np.sin(ts) - np.sin(1899.0)
        np.testing.assert_allclose(sol.observables["y"][:, 0], wanted, atol=1e-6)
        np.testing.assert_allclose(sol.observables["t"], ts)
        np.testing.assert_allclose(sim.time(sol.state), 1905.0)
        np.testing.assert_allclose(sol.state.y[0], np.sin(1905.0) - np.sin(1899.0), atol=1e-6)


def test_fixed_steps_refuse_times_between_them():
    with pytest.raises(ConfigError, match="not a whole number of steps"):
        run(FIXED, arrays(LV), jnp.ones(2), Schedule(ts=[0.001]))


@pytest.mark.parametrize(
    ("y0", "names"),
    [
        ({"a": 1.0, "b": jnp.ones(2)}, {"a", "b", "t"}),
        ((1.0, jnp.ones(3)), {"y0", "y1", "t"}),
        (jnp.ones((2, 2)), {"y", "t"}),
    ],
    ids=["dict", "tuple", "matrix"],
)
@pytest.mark.parametrize(
    "options",
    slow_but([{"dt": 0.01}], [{"dt": 0.01}, {"rtol": 1e-9, "atol": 1e-9}]),
    ids=["dt", "tol"],
)
def test_states_may_be_any_tree(y0, names, options):
    decay = lambda t, y, args: jax.tree.map(lambda x: -args["k"] * x, y)  # noqa: E731
    sim = ode.DifferentialEquation(decay, **options)
    sol = run(sim, {"k": jnp.asarray(2.0)}, y0, Schedule(t1=1.0)).check()
    assert set(sol.observables) == names
    for end, start in zip(jax.tree.leaves(sol.state.y), jax.tree.leaves(y0), strict=True):
        np.testing.assert_allclose(end, np.asarray(start) * np.exp(-2.0), rtol=1e-7)


def test_an_event_ends_a_run():
    """A stone from 1 m with no speed falls for √(2/9.81) s."""
    fall = lambda t, y, args: jnp.stack([y[1], -9.81 + 0 * y[1]])  # noqa: E731
    ground = diffrax.Event(lambda t, y, args, **_: y[0], diffrax_root())
    sim = ode.DifferentialEquation(fall, event=ground, rtol=1e-9, atol=1e-9)
    sol = run(sim, {}, jnp.array([1.0, 0.0]), Schedule(ts=[0.2, 1.0])).check()
    assert abs(sol.stats["event_time"] - np.sqrt(2 / 9.81)) < 1e-7
    assert np.isfinite(sol.observables["y"][0]).all() and np.isnan(sol.observables["y"][1]).all()
    assert abs(sol.state.y[0]) < 1e-7


def diffrax_root() -> Any:
    import optimistix

    return optimistix.Newton(1e-10, 1e-10)


def test_split_and_implicit_solvers_take_diffrax_terms():
    explicit = diffrax.ODETerm(lambda t, y, args: jnp.sin(t) * jnp.ones_like(y))
    stiff = diffrax.ODETerm(lambda t, y, args: -50.0 * y)
    both = lambda t, y, args: jnp.sin(t) - 50.0 * y  # noqa: E731
    split = ode.DifferentialEquation(
        diffrax.MultiTerm(explicit, stiff), diffrax.KenCarp4(), rtol=1e-8, atol=1e-8
    )
    whole = ode.DifferentialEquation(both, diffrax.Kvaerno5(), rtol=1e-8, atol=1e-8)
    ends = [run(s, {}, jnp.ones(1), Schedule(t1=1.0)).check().state.y for s in (split, whole)]
    np.testing.assert_allclose(ends[0], ends[1], atol=1e-6)
    pair = (
        diffrax.ODETerm(lambda t, p, args: p),
        diffrax.ODETerm(lambda t, q, args: -q),
    )
    leap = ode.DifferentialEquation(pair, diffrax.SemiImplicitEuler(), dt=1e-3)
    q, _ = run(leap, {}, (jnp.ones(1), jnp.zeros(1)), Schedule(t1=1.0)).check().state.y
    np.testing.assert_allclose(q, np.cos(1.0), atol=2e-3)


@pytest.mark.slow  # to compile
def test_dense_output_and_tight_steps():
    params, start = arrays(LV), ADAPTIVE.init(arrays(LV), y0=jnp.ones(2))
    dense = ADAPTIVE.dense(params, start, 10.0)
    sol = run(ADAPTIVE, params, jnp.ones(2), TEN)
    np.testing.assert_allclose(dense(5.0), sol.observables["y"][0], rtol=1e-9)
    tight = ADAPTIVE.tightened(params, start, TEN)
    assert int(sol.stats["num_steps"]) < tight.max_steps < 2 * int(sol.stats["num_steps"]) + 8
    np.testing.assert_array_equal(run(tight, params, jnp.ones(2), TEN).state.y, sol.state.y)


@pytest.mark.parametrize("options", [{"dt": 0.01}, {"rtol": 1e-4, "atol": 1e-4}], ids=["dt", "tol"])
def test_single_precision_stays_single(options):
    sim = lotka(**options)
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), LV)
    sol = run(sim, params, jnp.ones(2, jnp.float32), Schedule(t1=1.0)).check()
    assert sol.state.y.dtype == sol.observables["prey"].dtype == jnp.float32


def test_a_run_in_pieces_is_the_same_run():
    params = arrays(LV)
    whole = run(FIXED, params, jnp.ones(2), Schedule(steps=400)).state
    half = run(FIXED, params, jnp.ones(2), Schedule(steps=200)).state
    rest = ds.solve(FIXED, params, half, schedule=Schedule(steps=200)).state
    np.testing.assert_array_equal(rest.y, whole.y)
    assert float(FIXED.time(rest)) == float(FIXED.time(whole)) == 1.0


# What is refused, and how a run fails.


def wrong(**options):
    return ode.DifferentialEquation(lambda t, y, args: y, **options)


BAD: list[tuple[Any, str]] = [
    (lambda: wrong(dt=0.0), "dt: must be positive"),
    (lambda: wrong(dt=float("nan")), "dt: must be positive"),
    (lambda: wrong(rtol=0.0), "rtol: must be positive"),
    (lambda: wrong(atol=-1.0), "atol: must be positive"),
    (lambda: wrong(max_steps=0), "max_steps: must be a whole number"),
    (lambda: wrong(solver=diffrax.Euler()), "solver: Euler estimates no error"),
    (lambda: wrong(components=("x", "y")), "components: must be different names"),
    (lambda: ode.DifferentialEquation(3), "vector_field: must be a function"),
    (lambda: wrong(dt=0.1).init({}), "y0: must be given"),
    (lambda: wrong(dt=0.1).init({}, y0="one"), "y0: must hold numbers"),
    (lambda: wrong(components=("a", "b")).init({}, y0=jnp.ones(3)), "y0: has the shape"),
    (
        lambda: ode.DifferentialEquation(lambda t, y, a: y[:1]).init({}, y0=jnp.ones(2)),
        "vector_field: returns",
    ),
    (
        lambda: lotka().init({"alpha": 1.0}, y0=jnp.ones(2)),
        "reads the parameter or component 'beta'",
    ),
    (lambda: wrong().check({}, y0=np.array([[1.0, np.nan]])), "conditions.y0: must be finite"),
    (
        lambda: run(wrong(rtol=1e-3), {}, jnp.ones(1), Schedule(steps=3)),
        "schedule.steps: an adaptive solver takes times",
    ),
    (
        lambda: run(wrong(), {}, jnp.ones(1), Schedule(t1=1.0), ds.Reversible()),
        "adjoint: Reversible needs an AbstractReversible",
    ),
    (lambda: Schedule(ts=[1.0, 0.5]), "ts: must be finite, increasing"),
    (lambda: ode.HamiltonianDynamics(ode.Kepler(), -0.1), "dt: must be positive"),
    (
        lambda: ode.HamiltonianDynamics(ode.DoublePendulum(), 0.1),  # pyright: ignore
        "must be separable",
    ),
    (lambda: pendulum(0.1, None).init(MASS, y0=jnp.ones(3)), "y0: must be"),
]


@pytest.mark.parametrize(("make", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_input_is_refused_in_one_line(make, message):
    with pytest.raises(ConfigError) as caught:
        make()
    assert message in str(caught.value) and "\n" not in str(caught.value)


FAILURES = [
    (lambda t, y, args: y**2, {"rtol": 1e-6}, "max_steps|could not go on|non-finite"),
    (lambda t, y, args: y**2, {"dt": 0.05}, "non-finite number appeared at step"),
    (lambda t, y, args: -1e6 * (y - jnp.cos(t)), {"rtol": 1e-6, "max_steps": 200}, "max_steps"),
    (lambda t, y, args: jnp.sqrt(0.5 - t) + 0 * y, {"rtol": 1e-6}, "max_steps|go on|non-finite"),
]


@pytest.mark.parametrize(("field", "options", "message"), FAILURES)
def test_failures_are_data_that_check_raises(field, options, message):
    sol = run(ode.DifferentialEquation(field, **options), {}, jnp.ones(1), Schedule(t1=3.0))
    with pytest.raises(SimulationError, match=message):
        sol.check()

"""Our own Runge-Kutta kernels: orders, references, gradients, and one lane like many."""

import functools

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffsim import RESULTS, ConfigError
from diffsim._simulation import RESULT_NAMES
from diffsim.ode._lanes import ensemble, rk_step
from problems import slow_but

ORDERS = [
    (diffrax.Heun(), 2),
    (diffrax.Midpoint(), 2),
    (diffrax.Ralston(), 2),
    (diffrax.Bosh3(), 3),
    (diffrax.Tsit5(), 5),
    (diffrax.Dopri5(), 5),
    (diffrax.Dopri8(), 8),
]
SOLVERS = [solver for solver, _ in ORDERS]


def name(solver) -> str:
    return type(solver).__name__


def lotka_volterra(t, y, args):
    a, b, c, d = args
    return jnp.stack([a * y[0] - b * y[0] * y[1], -c * y[1] + d * y[0] * y[1]])


LV = (1.5, 1.0, 3.0, 1.0)
LV_END = np.array([1.026344767575089, 0.909691078136042])  # t = 10, from (1, 1)


def forced(t, y, args):
    """y = sin(t²) + exp(-t): the times of the stages matter."""
    return -y + jnp.sin(t * t) + 2 * t * jnp.cos(t * t)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def steps_of_lotka_volterra(solver, t1, steps):
    """The end of so many equal steps, each given the last derivative of the one before."""
    h = t1 / steps

    def body(carry, _):
        y, k = carry
        y, _, k = rk_step(solver.tableau, lambda t, y: lotka_volterra(t, y, LV), 0.0, y, h, k)
        return (y, lotka_volterra(0.0, y, LV) if k is None else k), None

    start = jnp.ones(2)
    return jax.lax.scan(body, (start, lotka_volterra(0.0, start, LV)), length=steps)[0][0]


@pytest.mark.parametrize(("solver", "order"), ORDERS, ids=map(name, SOLVERS))
def test_order_of_a_step_by_halving(solver, order):
    t1, steps = {2: (10, 1600), 3: (10, 800), 5: (3, 400), 8: (10, 100)}[order]
    # order 5 shows its asymptote where errors are 1e-12, so early that there is no printed value
    exact = LV_END if t1 == 10 else steps_of_lotka_volterra(diffrax.Dopri8(), t1, 400)
    coarse, fine = (
        np.max(abs(steps_of_lotka_volterra(solver, t1, n) - exact)) for n in (steps, 2 * steps)
    )
    assert np.log2(coarse / fine) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("solver", SOLVERS, ids=map(name, SOLVERS))
def test_step_and_error_are_those_of_diffrax(solver):
    y, t, h = jnp.array([1.3, 0.7]), 0.4, 0.1
    term = diffrax.ODETerm(forced)
    state = solver.init(term, t, t + h, y, None)
    expected, error, *_ = solver.step(term, t, t + h, y, None, state, made_jump=False)
    mine = rk_step(solver.tableau, lambda t, y: forced(t, y, None), t, y, h)
    np.testing.assert_allclose(mine[0], expected, rtol=1e-14)
    np.testing.assert_allclose(abs(mine[1]), abs(error), rtol=0, atol=1e-15)
    if mine[2] is not None:
        np.testing.assert_allclose(mine[2], forced(t + h, mine[0], None), rtol=1e-14)


def test_a_step_keeps_single_precision_and_takes_any_tree():
    y = {"a": jnp.ones(3, jnp.float32), "b": jnp.float32(2)}
    end, error, k = rk_step(
        diffrax.Tsit5.tableau, lambda t, y: jax.tree.map(lambda x: -x, y), 0.0, y, 0.1
    )
    assert {x.dtype for x in jax.tree.leaves((end, error, k))} == {jnp.dtype("float32")}
    np.testing.assert_allclose(end["b"], 2 * np.exp(-0.1), rtol=1e-6)


# Ensembles


def ends(sol) -> list[str]:
    """How each lane ended."""
    reached = {name: np.asarray(sol.result == getattr(RESULTS, name)) for name in RESULT_NAMES}
    return [next(n for n in reached if reached[n][i]) for i in range(len(sol.ys))]


def lorenz(t, y, args):
    s, r, b = args["sigma"], args["rho"], args["beta"]
    return jnp.stack([s * (y[1] - y[0]), y[0] * (r - y[2]) - y[1], y[0] * y[1] - b * y[2]])


def lorenz_problem(lanes):
    """Starts around (1, 1, 1), ρ of each lane's own, the other parameters shared."""
    y0 = 1 + 0.3 * jax.random.normal(jax.random.key(0), (lanes, 3))
    args = {"sigma": 10.0, "rho": jnp.linspace(20.0, 30.0, lanes), "beta": jnp.asarray(8 / 3)}
    return y0, args, {"sigma": None, "rho": 0, "beta": None}


def with_diffrax(f, y0, args, axes, ts, solver, tol) -> jax.Array:
    def one(y0, args) -> jax.Array:
        return diffrax.diffeqsolve(
            diffrax.ODETerm(f),
            solver,
            0.0,
            ts[-1],
            None,
            y0,
            args,
            saveat=diffrax.SaveAt(ts=jnp.asarray(ts)),
            stepsize_controller=diffrax.PIDController(rtol=tol, atol=tol),
            adjoint=diffrax.DirectAdjoint(),
            max_steps=2000,
        ).ys  # pyright: ignore[reportReturnType]

    return jax.vmap(one, in_axes=(0, axes))(y0, args)


# dx/d(a, b, c, d) and dy/d(a, b, c, d) at t = 10
LV_BY_PARAMETER = np.array(
    [
        [2.160557523562618, 0.188568777078059, 0.563182794168198, 0.939651287153080],
        [-6.256770517220816, -0.697977588989358, -1.709017680597935, -2.743979155920181],
    ]
)


@pytest.mark.parametrize(
    ("gradient", "steps"),
    [
        ("reverse", {"rtol": 1e-10, "atol": 1e-12}),
        ("forward", {"dt": 0.01}),
        pytest.param("reverse", {"dt": 0.01}, marks=pytest.mark.slow),
        pytest.param("forward", {"rtol": 1e-10, "atol": 1e-12}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_lotka_volterra_and_its_sensitivities(gradient, steps):
    def end(args):
        sol = ensemble(
            lotka_volterra, jnp.ones((1, 2)), args, ts=[10.0], gradient=gradient, **steps
        )
        return sol.ys[0, 0]

    args = tuple(map(jnp.asarray, LV))
    jacobian = jax.jit((jax.jacrev if gradient == "reverse" else jax.jacfwd)(end))(args)
    np.testing.assert_allclose(end(args), LV_END, rtol=1e-8)
    np.testing.assert_allclose(np.stack(jacobian, axis=1), LV_BY_PARAMETER, rtol=0, atol=1e-6)


def arenstorf(t, y, mu):
    x, v = y[:2], y[2:]
    far, near = x + jnp.stack([mu, 0 * mu]), x - jnp.stack([1 - mu, 0 * mu])
    pull = -(1 - mu) * far / (far @ far) ** 1.5 - mu * near / (near @ near) ** 1.5
    return jnp.concatenate([v, x + pull + 2 * jnp.stack([v[1], -v[0]])])


def test_arenstorf_orbit_returns():
    start = jnp.array([[0.994, 0, 0, -2.00158510637908252240537862224]])
    period, tol = 17.0652165601579625588917206249, 1e-13
    sol = ensemble(arenstorf, start, 0.012277471, ts=[period], rtol=tol, atol=tol, max_steps=4000)
    assert ends(sol) == ["successful"]
    np.testing.assert_allclose(sol.ys[0, 0], start[0], atol=1e-6)


@pytest.mark.parametrize("solver", SOLVERS[3:], ids=map(name, SOLVERS[3:]))
def test_adaptive_ensembles_are_those_of_diffrax(solver):
    y0, args, axes = lorenz_problem(7)
    ts = [0.0, 0.01, 0.5, 1.0]
    expected = with_diffrax(lorenz, y0, args, axes, ts, diffrax.Dopri8(), 1e-12)
    tol = 1e-8 if solver.order(None) == 3 else 1e-11
    sol = ensemble(
        lorenz,
        y0,
        args,
        args_axes=axes,
        ts=ts,
        solver=solver,
        rtol=tol,
        atol=tol,
        block=4,
        max_steps=3000,
    )
    np.testing.assert_allclose(sol.ys, expected, atol=2000 * tol)
    np.testing.assert_array_equal(sol.ys[:, 0], y0)


def test_error_follows_the_tolerance():
    errors = []
    for tol in (1e-4, 1e-6, 1e-8):
        sol = ensemble(lotka_volterra, jnp.ones((1, 2)), LV, ts=[10.0], rtol=tol, atol=tol)
        errors.append(np.max(abs(sol.ys[0, 0] - LV_END)) / tol)
    assert min(errors) > 0.1 and max(errors) < 100


def test_steps_cut_at_saves_are_taken_up_again():
    few, many = (
        ensemble(lotka_volterra, jnp.ones((1, 2)), LV, ts=ts) for ts in ([10.0], [4.0, 4.01, 10.0])
    )
    assert int(many.accepted[0]) <= int(few.accepted[0]) + 4
    np.testing.assert_allclose(many.ys[0, -1], few.ys[0, -1], rtol=1e-5)


@pytest.mark.slow  # to compile
@pytest.mark.parametrize("steps", slow_but([{}], [{}, {"dt": 0.01}]), ids=["adaptive", "equal"])
def test_one_lane_is_like_many(steps):
    """Whatever the block: alone, in a block that fills up, in one of several."""
    y0, args, axes = lorenz_problem(5)
    solve = functools.partial(ensemble, lorenz, ts=[0.5, 1.0], args_axes=axes, **steps)
    together = solve(y0, args, block=2)
    np.testing.assert_allclose(solve(y0, args).ys, together.ys, rtol=1e-12)
    for i in (0, 4):
        alone = solve(y0[i : i + 1], args | {"rho": args["rho"][i : i + 1]})
        np.testing.assert_allclose(alone.ys[0], together.ys[i], rtol=1e-12)
        assert int(alone.accepted[0]) == int(together.accepted[i])


FINE, EQUAL = {"rtol": 1e-11, "atol": 1e-11}, {"dt": 0.01}


@pytest.mark.slow  # to compile
@pytest.mark.parametrize("steps", slow_but([EQUAL], [FINE, EQUAL]), ids=str)
def test_gradients_of_ensembles(steps):
    """Reverse, forward, Diffrax and finite differences, for shared and for own parameters, through
    saves on the way."""
    y0, args, axes = lorenz_problem(5)
    ts = [0.3, 0.6]
    weights = jax.random.normal(jax.random.key(1), (5, 2, 3))

    def loss(y0, args, gradient="reverse"):
        sol = ensemble(lorenz, y0, args, args_axes=axes, ts=ts, block=2, gradient=gradient, **steps)
        return jnp.sum(weights * sol.ys)

    def expected(y0, args):
        return jnp.sum(weights * with_diffrax(lorenz, y0, args, axes, ts, diffrax.Tsit5(), 1e-11))

    args = jax.tree.map(jnp.asarray, args)
    reverse = jax.jit(jax.grad(loss, argnums=(0, 1)))(y0, args)
    direction = jax.tree.map(lambda x: jnp.cos(jnp.arange(x.size)).reshape(x.shape), (y0, args))
    along = sum(
        jnp.sum(a * b)
        for a, b in zip(jax.tree.leaves(reverse), jax.tree.leaves(direction), strict=True)
    )
    forward_loss = functools.partial(loss, gradient="forward")
    _, forward = jax.jit(lambda *x: jax.jvp(forward_loss, x, direction))(y0, args)
    np.testing.assert_allclose(forward, along, rtol=1e-9)
    _, theirs = jax.jit(lambda *x: jax.jvp(expected, x, direction))(y0, args)
    np.testing.assert_allclose(theirs, along, rtol=1e-6)
    step = 1e-5
    value = jax.jit(loss)
    either = [
        value(*jax.tree.map(lambda x, d, s=s: x + s * step * d, (y0, args), direction))
        for s in (1, -1)
    ]
    np.testing.assert_allclose((either[0] - either[1]) / (2 * step), along, rtol=1e-6)


def test_what_a_field_holds_has_a_gradient_too():
    def end(rate):
        sol = ensemble(lambda t, y, args: -rate * y, jnp.array([[1.0], [2.0]]), ts=[1.0])
        return jnp.sum(sol.ys)

    value, slope = jax.jit(jax.value_and_grad(end))(0.5)
    np.testing.assert_allclose([value, slope], [3 * np.exp(-0.5), -3 * np.exp(-0.5)], rtol=1e-5)


def test_failures_are_data():
    """A lane that fails gives NaN and says why; the others and their gradients stay good."""

    def end(y0):
        sol = ensemble(lambda t, y, args: y * y, y0, ts=[0.5, 1.5])
        return jnp.nansum(sol.ys), sol

    y0 = jnp.array([[0.5], [1.0], [jnp.nan]])
    (_, sol), slope = jax.value_and_grad(end, has_aux=True)(y0)
    assert ends(sol) == ["successful", "solver_failed", "nonfinite"]
    np.testing.assert_allclose(sol.ys[0, :, 0], [2 / 3, 2.0], rtol=1e-5)
    np.testing.assert_allclose(sol.ys[1, :, 0], [2.0, np.nan], rtol=1e-5)
    assert np.all(np.isnan(sol.ys[2]))
    # y(t) = 1 / (1 / y0 - t), dy/dy0 = (y / y0)²
    np.testing.assert_allclose(slope[:, 0], [16 / 9 + 16.0, 4.0, 0.0], rtol=1e-4)


def test_max_steps_is_reported():
    sol = ensemble(lotka_volterra, jnp.ones((1, 2)), LV, ts=[0.1, 10.0], max_steps=12)
    assert ends(sol) == ["max_steps_reached"]
    assert np.all(np.isfinite(sol.ys[0, 0])) and np.all(np.isnan(sol.ys[0, 1]))
    assert int(sol.accepted[0] + sol.rejected[0]) == 12


def test_single_precision_stays():
    y0 = jnp.ones((2, 2), jnp.float32)
    sol = ensemble(lotka_volterra, y0, LV, ts=[10.0], rtol=1e-5, atol=1e-5)
    assert sol.ys.dtype == jnp.float32
    np.testing.assert_allclose(sol.ys[1, 0], LV_END, rtol=1e-3)


KEEP = jnp.array([0.5, -0.3, 0.2, 0.1])
# each exercises operations of its own; every one takes y: (4,) and p: (4,)
FIELDS = {
    "arithmetic": lambda t, y, p: jnp.sin(t) * y**2 / p - jnp.exp(-y) + y[::-1] ** 3,
    "matrices": lambda t, y, p: (y.reshape(2, 2) @ p.reshape(2, 2).T).ravel() * (y @ p),
    "choices": lambda t, y, p: jnp.where(y > p, y * KEEP, jnp.minimum(y, KEEP)),
    "pieces": lambda t, y, p: jnp.concatenate([*jnp.split(y * p, 2)[::-1]]) + jnp.roll(y, 1),
    "calls": lambda t, y, p: jnp.where(y > p, jax.nn.softplus(y), jnp.minimum(y, KEEP)),
    "others": lambda t, y, p: jnp.cumsum(jnp.sort(y)) + jnp.linalg.norm(p) + jnp.max(y),
    "batches": lambda t, y, p: jnp.einsum(
        "bij,bj->bi", jnp.stack([y, p, p, y]).reshape(2, 2, 4)[..., :2], y.reshape(2, 2)
    ).ravel(),
    "indexing": lambda t, y, p: y[jnp.array([2, 0, 3, 1])] * p + jnp.eye(4)[1] * t,
    "large": lambda t, y, p: jnp.tanh(jnp.outer(jnp.arange(40.0), y)).sum(0) * p,
}


@pytest.mark.parametrize("field", FIELDS.values(), ids=FIELDS)
def test_fields_taken_apart_are_themselves(field):
    """One equal step of Euler's kind shows the field and its gradient."""
    y, p = jax.random.normal(jax.random.key(2), (2, 6, 4))
    weights = jnp.cos(jnp.arange(24.0)).reshape(6, 4)

    def one(y, p):
        sol = ensemble(
            field, y, p, args_axes=0, ts=[1.1], t0=1.0, dt=0.1, solver=diffrax.Midpoint()
        )
        return jnp.sum(weights * sol.ys[:, 0])

    def expected(y, p):
        f = jax.vmap(field, in_axes=(None, 0, 0))
        return jnp.sum(weights * (y + 0.1 * f(1.05, y + 0.05 * f(1.0, y, p), p)))

    mine, theirs = (jax.jit(jax.value_and_grad(f, argnums=(0, 1)))(y, p) for f in (one, expected))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), mine, theirs)


BAD = [
    (dict(y0=jnp.ones(2)), "y0"),
    (dict(ts=[1.0, 0.5]), "ts"),
    (dict(ts=[-1.0]), "ts"),
    (dict(ts=[]), "ts"),
    (dict(rtol=0.0), "rtol"),
    (dict(max_steps=0), "max_steps"),
    (dict(solver=diffrax.Kvaerno3()), "solver"),
    (dict(gradient="backward"), "gradient"),
    (dict(dt=0.3), "dt"),
    (dict(args=jnp.ones(3), args_axes=0), "args"),
    (dict(vector_field=lambda t, y, args: y[:1]), "vector_field"),
]


@pytest.mark.parametrize(("change", "key"), BAD, ids=[key for _, key in BAD])
def test_bad_input_is_refused_before_tracing(change, key):
    given = dict(vector_field=lotka_volterra, y0=jnp.ones((2, 2)), args=LV, ts=[1.0]) | change
    with pytest.raises(ConfigError) as caught:
        ensemble(given.pop("vector_field"), given.pop("y0"), given.pop("args"), **given)
    assert caught.value.key == key

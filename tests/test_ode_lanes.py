"""Our own Runge-Kutta kernels: orders, references, gradients, and one lane like many."""

import functools

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffsim.ode._lanes import rk_step

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

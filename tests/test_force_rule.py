"""The derivative of pair forces that knows its transpose, against what JAX finds by itself."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from diffsim import md
from diffsim.md._force_rule import forces_with_pullback
from problems import liquid, parameters, slow_but

POTENTIAL = md.LennardJones(1.7, "switch")
X, BOX = map(jnp.asarray, liquid(12, 0.4))
START, UNRAVEL = ravel_pytree((parameters(1.1, 0.98), X, BOX))


def plain(flat):
    """The forces as JAX differentiates them, of parameters, positions and box in one vector."""
    params, x, box = UNRAVEL(flat)
    return POTENTIAL._forces(params, x, box, (None, None))


def ruled(flat):
    params, x, box = UNRAVEL(flat)
    return POTENTIAL.forces(params, x, box)


def directions(seed, count=2):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.standard_normal((count, START.size)))


W = jnp.asarray(np.random.default_rng(9).standard_normal(X.shape))


def push(fn, at, along):
    return jax.jvp(fn, (at,), (along,))[1]


def pull(fn, at):
    return jax.vjp(fn, at)[1](W)[0]


def curve(fn, at, along):
    """Forward over reverse."""
    return jax.jvp(lambda x: pull(fn, x), (at,), (along,))[1]


def bend(fn, at, along):
    """Forward over forward."""
    return push(lambda x: push(fn, x, along), at, along)


def slope_of_slope(fn, at, along):
    """Reverse over forward."""
    return jax.grad(lambda x: jnp.vdot(W, push(fn, x, along)))(at)


def slope_twice(fn, at, along):
    """Reverse over reverse."""
    return jax.grad(lambda x: jnp.vdot(along, pull(fn, x)))(at)


DERIVATIVES = {
    "push": push,
    "pull": lambda fn, at, along: pull(fn, at + 0.01 * along),
    "forward over reverse": curve,
    "forward over forward": bend,
    "reverse over forward": slope_of_slope,
    "reverse over reverse": slope_twice,
}


QUICK = ("push", "pull")


@pytest.mark.parametrize("name", slow_but(QUICK, DERIVATIVES))
def test_every_derivative_is_that_of_the_plain_sum(name):
    """Alone, and side by side."""
    along = directions(1)
    found, wanted = (
        jax.jit(jax.vmap(functools.partial(DERIVATIVES[name], fn, START)))(along)
        for fn in (ruled, plain)
    )
    np.testing.assert_allclose(found, wanted, atol=1e-11 * np.max(np.abs(wanted)))
    alone = jax.jit(functools.partial(DERIVATIVES[name], ruled))(START, along[1])
    np.testing.assert_allclose(alone, found[1], atol=1e-12 * np.max(np.abs(wanted)))


@pytest.mark.slow  # to compile
def test_parameters_and_positions_that_are_batched_or_not():
    params, x, box = UNRAVEL(START)
    both = jnp.stack([x, x + 0.01 * W])
    forces = lambda p, x: jnp.vdot(W, POTENTIAL.forces(p, x, box))  # noqa: E731
    plainly = lambda p, x: jnp.vdot(W, POTENTIAL._forces(p, x, box, (None, None)))  # noqa: E731
    # the parameters' gradient of each, then of their sum
    each = lambda f: jax.jit(jax.vmap(jax.grad(f, (0, 1)), (None, 0)))(params, both)  # noqa: E731
    summed = lambda f: lambda p: jnp.sum(jax.vmap(f, (None, 0))(p, both))  # noqa: E731
    total = lambda f: jax.jit(jax.grad(summed(f)))(params)  # noqa: E731
    for way in (each, total):
        for a, b in zip(*map(jax.tree.leaves, (way(forces), way(plainly))), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-11 * np.max(np.abs(b)))


def test_the_pullback_that_is_given_is_the_one_that_runs():
    """Planted: a pullback of zeros for the positions."""

    def forces(params, x, box, rest):
        return params["k"] * x

    def wrong(params, x, box, rest, w):
        return {"k": jnp.vdot(x, w)}, jnp.zeros_like(x)

    fn = lambda x: jnp.sum(forces_with_pullback(forces, wrong, {"k": 2.0}, x, BOX, None))  # noqa: E731
    np.testing.assert_array_equal(jax.grad(fn)(X), 0.0)
    np.testing.assert_array_equal(jax.jacfwd(fn)(X), 2.0)

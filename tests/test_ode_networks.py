"""Networks in vector fields: the same from Equinox and from Flax, with exact gradients."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import diffsim as ds
from diffsim import ode
from problems import slow_but


@eqx.filter_jit
def learned(system, params):
    """Where the system ends from a fixed start, and the gradient of a loss by all parameters."""
    equation = ode.DifferentialEquation(system, dt=0.05)
    y0 = jnp.array([1.0, 0.5])

    def loss(params):
        sol = ds.solve(equation, params, equation.init(params, y0=y0), schedule=ds.Schedule(t1=1.0))
        return jnp.sum(sol.observables["y"] ** 2), sol.observables

    (value, seen), gradient = eqx.filter_value_and_grad(loss, has_aux=True)(params)
    return value, seen, gradient


class Net(nnx.Module):
    """Flax's own network, given the weights of one of Equinox."""

    def __init__(self, like):
        self.layers = nnx.List(
            nnx.Linear(*layer.weight.T.shape, param_dtype=layer.weight.dtype, rngs=nnx.Rngs(0))
            for layer in like.layers
        )
        for mine, layer in zip(self.layers, like.layers, strict=True):
            mine.kernel[...] = layer.weight.T
            assert mine.bias is not None
            mine.bias[...] = layer.bias

    def __call__(self, x):
        for layer in self.layers[:-1]:
            x = jnp.tanh(layer(x))
        return self.layers[-1](x)


@pytest.mark.parametrize("kind", slow_but(["universal"], ["neural", "universal"]))
def test_networks_of_equinox_and_flax_are_the_same_in_the_same_place(kind):
    known = {"alpha": 1.1, "beta": 0.4, "gamma": 0.9, "delta": 0.3}
    neural = kind == "neural"
    system = ode.NeuralODE(("u", "v")) if neural else ode.UniversalEquation(ode.LotkaVolterra())
    params: dict[str, Any] = {} if neural else known
    net = system.network(jax.random.key(3), width=6, depth=1)
    # Away from its start, where the last layer is near zero and so are most gradients.
    net = jax.tree.map(lambda x: x + 0.1 if eqx.is_inexact_array(x) else x, net)
    value, seen, gradient = learned(system, {**params, "net": net})
    other, _, of_flax = learned(system, {**params, "net": Net(net)})
    np.testing.assert_allclose(other, value, rtol=1e-13)
    first = gradient["net"].layers[0].weight
    np.testing.assert_allclose(of_flax["net"].layers[0].kernel[...], first.T, rtol=1e-10)

    step = 1e-5 * jax.random.normal(jax.random.key(0), first.shape)
    moved = [
        learned(system, {**params, "net": eqx.tree_at(lambda n: n.layers[0].weight, net, w)})[0]
        for w in (net.layers[0].weight - step, net.layers[0].weight + step)
    ]
    np.testing.assert_allclose(moved[1] - moved[0], 2 * jnp.vdot(step, first), rtol=1e-6)
    assert set(seen) >= ({"u", "v"} if neural else {"prey", "predator", "term"})
    if not neural:
        np.testing.assert_allclose(seen["term"][0], net(seen["y"][0]), rtol=1e-12)


def test_a_universal_equation_is_its_known_part_and_a_term():
    known, y = ode.LotkaVolterra(), jnp.array([2.0, 0.5])
    params = known.defaults()
    silent = ode.UniversalEquation(known, lambda t, y, args: jnp.zeros(2))
    np.testing.assert_array_equal(silent(0.0, y, params), known(0.0, y, params))
    assert silent.components == known.components and silent.laws() == ()
    # Growth and death are known, the interaction is not: a term that is right restores the whole.
    alone = ode.UniversalEquation(
        lambda t, y, args: jnp.stack([args["alpha"], -args["gamma"]]) * y,
        lambda t, y, args: jnp.stack([-args["beta"], args["delta"]]) * y[0] * y[1],
        names=("prey", "predator"),
    )
    np.testing.assert_allclose(alone(0.0, y, params), known(0.0, y, params), rtol=1e-15)
    fresh = ode.UniversalEquation(known)
    start = fresh(0.0, y, {**fresh.defaults(), **params})
    np.testing.assert_allclose(start, known(0.0, y, params), atol=0.05)


def test_a_field_with_time():
    system = ode.NeuralODE(("u",), timed=True)
    net = lambda x: x[:1] * x[1:]  # noqa: E731
    np.testing.assert_array_equal(system(3.0, jnp.array([2.0]), {"net": net}), [6.0])
    assert system.network(jax.random.key(0))(jnp.array([2.0, 3.0])).shape == (1,)

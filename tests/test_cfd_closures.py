"""Closures that are learned: what holds whatever the weights, and their gradients."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import diffsim as ds
from diffsim import cfd
from flows import BOXES, KEY, random_start
from problems import slow_but

SIZE = {"interpolation": (2, 24), "correction": (2, 2), "viscosity": (2, 1)}
CLOSURES = {
    "interpolation": cfd.LearnedInterpolation(),
    "correction": cfd.LearnedCorrection(),
    "viscosity": cfd.LearnedViscosity(),
}


def network(name, seed=0, periodic=True, size=0.05):
    """Away from its start, where the last layer is near zero."""
    net = cfd.FieldNetwork(*SIZE[name], width=6, depth=1, periodic=periodic, seed=seed)
    last = size * jax.random.normal(jax.random.key(seed), net.weights[-1].shape)
    return eqx.tree_at(lambda n: n.weights[-1], net, last)


def flow_of(name, box="periodic", shape=(12, 12), **further):
    grid = cfd.Grid(shape)
    return cfd.IncompressibleFlow(
        grid, 0.02, boundaries=BOXES[box], closure=CLOSURES[name], method="rk2", **further
    )


def params_of(name, box="periodic", **further):
    net = network(name, periodic=box == "periodic", **further)
    return {"viscosity": 0.02, "net": net, "lid": 0.5}


def zero(net):
    return jax.tree.map(jnp.zeros_like, net)


@pytest.mark.parametrize("name", CLOSURES)
def test_a_silent_network_changes_nothing(name):
    flow, params = flow_of(name), params_of(name)
    plain = eqx.tree_at(
        lambda f: f.closure,
        flow,
        cfd.Smagorinsky() if name == "viscosity" else None,
        is_leaf=lambda x: x is None,
    )
    params |= {"net": zero(params["net"])}
    state = random_start(flow, params)
    found, wanted = (eqx.filter_jit(f.step)(params, state).velocity for f in (flow, plain))
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-14)


@pytest.mark.parametrize("shape", [pytest.param((8, 8), marks=pytest.mark.slow), (6, 8, 4)])
def test_interpolation_lets_a_uniform_flow_pass_and_keeps_momentum(shape):
    box, closure = cfd.Box(cfd.Grid(shape)), cfd.LearnedInterpolation()
    n = len(shape)
    net = cfd.FieldNetwork(n, closure.outputs(n), axes=n, width=4, depth=1, reach=1)
    net = jax.tree.map(lambda x: x + 0.1, net)
    uniform = tuple(jnp.full(shape, v) for v in (1.0, -2.0, 0.5)[:n])
    tendency = jax.jit(functools.partial(closure.tendency, box))
    for change in tendency({"net": net}, uniform):
        np.testing.assert_allclose(change, 0, atol=1e-13)
    rng = np.random.default_rng(0)
    fields = tuple(jnp.asarray(rng.standard_normal(shape)) for _ in range(n))
    for change in tendency({"net": net}, fields):
        assert np.max(np.abs(change)) > 0.1
        assert abs(np.mean(change)) < 1e-14


def test_interpolation_can_be_of_fourth_order():
    """Weights 1/16 and -1/16 of the outer differences are Lagrange's: convection of a steady shear
    u = U + sin(y) carried by v = V along y then comes out as by (-1, 9, 9, -1)/16."""
    errors = []
    for n in (16, 32):
        grid = cfd.Grid((n, n))
        box, closure = cfd.Box(grid), cfd.LearnedInterpolation()
        each = jnp.asarray([1 / 16, 0.0, -1 / 16])
        params = {
            "net": lambda x, each=each: jnp.broadcast_to(jnp.tile(each, 8), (*x.shape[:2], 24))
        }
        y = box.coordinates(0)[1]
        u, v = jnp.sin(jnp.asarray(y)), jnp.ones((n, n))
        wide = jnp.pad(u, ((0, 0), (2, 2)), mode="wrap")
        face = (-wide[:, :-3] + 9 * wide[:, 1:-2] + 9 * wide[:, 2:-1] - wide[:, 3:]) / 16
        exact = np.sin(y - grid.spacing[1] / 2)
        errors.append(np.max(np.abs(face[:, :-1] - exact)))
        wanted = -jnp.diff(face, axis=1) / grid.spacing[1]
        flow = cfd.IncompressibleFlow(grid, 0.01)
        unviscous = jax.jit(functools.partial(flow.tendency, viscous=False))
        central = unviscous({"viscosity": 0.0}, ((u, v), {}), 0.0)[0]
        added = jax.jit(lambda *given: closure.tendency(box, params, given))(u, v)  # noqa: B023
        found = central[0] + added[0]
        np.testing.assert_allclose(found, wanted, atol=1e-13)
    assert errors[0] / errors[1] == pytest.approx(16, rel=0.02)


@pytest.mark.parametrize("name", CLOSURES)
def test_a_closure_goes_with_the_flow_where_it_goes(name):
    """The same flow elsewhere gets the same acceleration there."""
    flow, params = flow_of(name), params_of(name)
    velocity = random_start(flow, params).velocity
    moved = tuple(jnp.roll(u, (3, 5), (0, 1)) for u in velocity)
    tendency = jax.jit(functools.partial(CLOSURES[name].tendency, flow.box))
    here, there = tendency(params, velocity), tendency(params, moved)
    for a, b in zip(here, there, strict=True):
        np.testing.assert_allclose(jnp.roll(a, (3, 5), (0, 1)), b, atol=1e-12)


@eqx.filter_jit
def pushed(flow, params, velocity):
    return flow.closure.tendency(flow.box, params, velocity)


@pytest.mark.parametrize("box", ["periodic", "channel", "slip"])
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**16))
def test_a_learned_viscosity_never_drives_the_flow(box, seed):
    flow = flow_of("viscosity", box)
    params = params_of("viscosity", box, seed=seed, size=1.0)
    velocity = random_start(flow, params, seed).velocity
    force = pushed(flow, params, velocity)
    work = sum(float(jnp.vdot(u, f)) for u, f in zip(velocity, force, strict=True))
    assert work < 0


CASES = [
    ("interpolation", "periodic"),
    ("correction", "cavity"),
    ("viscosity", "cavity"),
]


@pytest.mark.slow  # to compile
@pytest.mark.parametrize(("name", "box"), slow_but(CASES[1:2], CASES))
def test_gradients_in_the_weights(name, box):
    flow, params = flow_of(name, box), params_of(name, box)
    state = random_start(flow, params)
    schedule = ds.Schedule(steps=4)

    def energy(net, adjoint):
        given = params | {"net": net}
        sol = ds.solve(
            flow, given, state, schedule=schedule, adjoint=adjoint, observables=("kinetic_energy",)
        )
        return sol.observables["kinetic_energy"][-1]

    value = eqx.filter_jit(energy)
    gradient = eqx.filter_jit(eqx.filter_grad(energy))
    found = gradient(params["net"], ds.Direct())
    other = gradient(params["net"], ds.RecursiveCheckpoint(2))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-13)
    leaves, tree = jax.tree.flatten(params["net"])
    keys = jax.random.split(KEY, len(leaves))
    way = tree.unflatten([jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)])
    slope = sum(
        float(jnp.vdot(a, b))
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(way), strict=True)
    )
    h = 1e-5
    ends = [
        value(jax.tree.map(lambda x, d, s=s: x + s * h * d, params["net"], way), ds.Direct())
        for s in (1, -1)
    ]
    assert (ends[0] - ends[1]) / (2 * h) == pytest.approx(slope, rel=1e-6)


class Flax(nnx.Module):
    """Flax's convolutions, with the weights of a `FieldNetwork`."""

    def __init__(self, like):
        self.layers = nnx.List()
        for weight, bias in zip(like.weights, like.biases, strict=True):
            # patches come with y outside, channels inside
            taps = weight.shape[0] // 9
            layer = nnx.Conv(
                taps,
                weight.shape[1],
                (3, 3),
                padding="CIRCULAR",
                param_dtype=weight.dtype,
                rngs=nnx.Rngs(0),
            )
            layer.kernel[...] = jnp.swapaxes(weight.reshape(3, 3, taps, -1), 0, 1)
            assert layer.bias is not None
            layer.bias[...] = bias
            self.layers.append(layer)

    def __call__(self, x):
        for i, layer in enumerate(self.layers):
            x = layer(jax.nn.gelu(x) if i else x)
        return x


@pytest.mark.slow  # to compile
def test_a_module_of_flax_in_the_same_place():
    flow, params = flow_of("interpolation"), params_of("interpolation")
    state = random_start(flow, params)
    flax = params | {"net": Flax(params["net"])}
    for a, b in zip(
        flow.step(params, state).velocity, flow.step(flax, state).velocity, strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("reach", [0, 1, 2])
@pytest.mark.parametrize("periodic", [True, False, (True, False)])
def test_a_network_is_a_convolution(reach, periodic):
    net = cfd.FieldNetwork(2, 3, width=4, depth=1, reach=reach, periodic=periodic, scale=2.0)
    x = jax.random.normal(KEY, (7, 9, 2))
    ways = (periodic,) * 2 if isinstance(periodic, bool) else periodic
    y, taps = x / 2.0, 2 * reach + 1
    for i, (weight, bias) in enumerate(zip(net.weights, net.biases, strict=True)):
        y = jax.nn.gelu(y) if i else y
        for axis, wraps in enumerate(ways):
            widths = [(0, 0)] * 3
            widths[axis] = (reach, reach)
            y = jnp.pad(y, widths, mode="wrap" if wraps else "edge")
        kernel = jnp.swapaxes(weight.reshape(taps, taps, -1, weight.shape[1]), 0, 1)
        y = jax.lax.conv_general_dilated(
            y[None], kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )[0]
        y = y + bias
    np.testing.assert_allclose(net(x), y, atol=1e-12)


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (dict(width=0), "width"),
        (dict(depth=0), "depth"),
        (dict(reach=-1), "reach"),
        (dict(scale=0.0), "scale"),
    ],
)
def test_networks_that_cannot_be_are_refused(words, key):
    with pytest.raises(ds.ConfigError, match=key):
        cfd.FieldNetwork(2, 2, **words)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ds.ConfigError, match="periodic box"):
        flow_of("interpolation", "channel")
    flow = flow_of("interpolation")
    for net, words in (
        (network("correction"), r"to \(12, 12, 24\)"),
        (1.0, "function of a field"),
    ):
        params = {"viscosity": 0.02, "net": net}
        state = flow.init(params, KEY)
        with pytest.raises(ds.ConfigError, match=words):
            flow.step(params, state)
    with pytest.raises(ds.ConfigError, match="net"):
        flow.init({"viscosity": 0.02}, KEY)

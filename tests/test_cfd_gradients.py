"""The linear pieces of the flow solver, their transposes, and gradients through it."""

import functools
import itertools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffsim as ds
from diffsim import cfd
from diffsim.cfd._convection import laplacian
from diffsim.cfd._spectra import diagonally, inverse_laplacian, pressure_spectra, velocity_spectra
from diffsim.cfd._stencil import average, cut, difference, extended, second_difference
from flows import BOXES, KEY, STILL, random_start, taylor_green

# The linear pieces


def _extended(x, axis, low, high, width):
    return extended(x, axis, low, high, width)


KINDS = [None, "wrap", "even", "odd", "zero", "through"]
MAPS = {
    "average": average,
    "difference": difference,
    "second difference": second_difference,
    **{
        f"{low}, {high}, {width}": functools.partial(_extended, low=low, high=high, width=width)
        for low, high in [*zip(KINDS, KINDS, strict=True), ("odd", "even"), (None, "wrap")]
        for width in (1, 2)
        if width == 1 or "through" not in (low, high)
    },
}


@pytest.mark.parametrize("A", MAPS.values(), ids=MAPS)
@pytest.mark.parametrize("axis", [0, 1])
def test_maps_and_their_transposes(A, axis):
    """<A x, y> = <x, Aᵀ y>, forward, backward, batched and twice."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((5, 6)))
    y = jnp.asarray(rng.standard_normal(A(x, axis).shape))
    of = lambda x: A(x, axis)  # noqa: E731

    @jax.jit
    def derivatives(x, y):
        transposed = jax.vjp(of, x)[1](y)[0], jax.linear_transpose(of, x)(y)[0]
        return of(x), *transposed, jax.jacfwd(of)(x), jax.jacrev(of)(x)

    value, back, again, dense, by_rows = map(np.asarray, derivatives(x, y))
    np.testing.assert_allclose(np.tensordot(dense, x, 2), value, atol=1e-13)
    np.testing.assert_allclose(np.tensordot(y, dense, 2), back, atol=1e-13)
    np.testing.assert_allclose(by_rows, dense, atol=1e-14)
    np.testing.assert_allclose(again, back)


@pytest.mark.parametrize("name", BOXES)
def test_projection_is_orthogonal(name):
    flow = cfd.IncompressibleFlow(cfd.Grid((12, 9)), 0.01, boundaries=BOXES[name])
    still = {"viscosity": 0.0, "lid": 0.0}
    rng = np.random.default_rng(0)
    a, b = (tuple(map(rng.standard_normal, flow.velocity_shapes())) for _ in range(2))
    zero = flow.project(tuple(map(jnp.zeros, flow.velocity_shapes())), still)[0]
    P = lambda u: [x - z for x, z in zip(flow.project(u, still)[0], zero, strict=True)]  # noqa: E731
    dot = lambda a, b: sum(float(jnp.vdot(x, y)) for x, y in zip(a, b, strict=True))  # noqa: E731
    assert dot(P(a), b) == pytest.approx(dot(a, P(b)), rel=1e-10)
    assert dot(P(a), P(b)) == pytest.approx(dot(P(a), b), rel=1e-10)


@pytest.mark.parametrize("name", BOXES)
def test_transforms_solve_the_equations_they_stand_for(name):
    box = cfd.Box(cfd.Grid((12, 9)), BOXES[name])
    rng = np.random.default_rng(1)
    p = jnp.asarray(rng.standard_normal(box.grid.shape))
    p = p - jnp.mean(p) if box.closed else p
    still = {"lid": 0.0}
    zero = tuple(jnp.zeros(box.shape(c)) for c in range(2))
    open_sides = box.divergence(zero, still)
    source = box.divergence(box.gradient(p), still) - open_sides
    got = diagonally(source, pressure_spectra(box), inverse_laplacian)
    np.testing.assert_allclose(got - got.mean(), p - p.mean(), atol=1e-11)
    for component in range(2):
        u = jnp.asarray(rng.standard_normal(box.shape(component)))
        pair = [z if c != component else u for c, z in enumerate(zero)]
        edges = laplacian(box, zero, still)[component]
        smooth = u - 0.3 * (laplacian(box, pair, still)[component] - edges)
        back = diagonally(smooth, velocity_spectra(box, component), lambda k: 1 / (1 + 0.3 * k))
        np.testing.assert_allclose(back, u, atol=1e-11)


def test_cosine_transforms_take_over_where_grids_are_large():
    box = cfd.Box(cfd.Grid((200, 6)), (STILL, "periodic"))
    assert [s.kind for s in pressure_spectra(box)] == ["cosine", "fourier"]
    p = jnp.asarray(np.random.default_rng(0).standard_normal((200, 6)))
    source = box.divergence(box.gradient(p), {})
    got = diagonally(source, pressure_spectra(box), inverse_laplacian)
    np.testing.assert_allclose(got, p - p.mean(), atol=1e-10)


# Gradients

SIMULATIONS = {
    "central": dict(boundaries="periodic"),
    "van Leer": dict(boundaries="periodic", convection="van_leer"),
    "cavity": dict(boundaries=BOXES["cavity"]),
    "cavity, implicit": dict(boundaries=BOXES["cavity"], diffusion="implicit"),
    "through, with all": dict(
        boundaries=BOXES["through"],
        closure=cfd.Smagorinsky("smagorinsky"),
        scalars=cfd.Scalar("heat", "kappa", sides=(None, (1.0, 0.0))),
        forcing=(cfd.Buoyancy("heat", "beta"), cfd.LinearDrag(0.3)),
        body=cfd.Cylinder((3.0, 3.0), 1.7, 0.05),
    ),
    "sub-steps": dict(boundaries="periodic", max_substeps=3, cfl_limit=0.05),
}
PARAMS = {"viscosity": 0.05, "lid": 0.8, "smagorinsky": 0.2, "kappa": 0.05, "beta": 0.7}


@functools.cache
def gradients(name: str):
    """Value, directional derivative by finite differences, and gradients by every exact adjoint."""
    flow = cfd.IncompressibleFlow(cfd.Grid((10, 8)), 0.02, **SIMULATIONS[name])
    params = {k: jnp.asarray(v) for k, v in PARAMS.items() if k in flow.parameters()}
    state = random_start(flow, params, size=0.4)
    weights = [np.random.default_rng(7).standard_normal(u.shape) for u in state.velocity]

    def loss(adjoint, params, velocity):
        start = eqx.tree_at(lambda s: s.velocity, state, velocity)
        schedule = ds.Schedule(steps=6)
        sol = ds.solve(
            flow, params, start, schedule=schedule, adjoint=adjoint, observables=["kinetic_energy"]
        )
        seen = [jnp.vdot(w, u) for w, u in zip(weights, sol.state.velocity, strict=True)]
        return sol.observables["kinetic_energy"][-1] + 0.1 * sum(seen)

    where = (params, state.velocity)
    by = {
        adjoint.__class__.__name__: jax.jit(
            jax.grad(functools.partial(loss, adjoint), argnums=(0, 1))
        )(*where)
        for adjoint in (ds.Direct(), ds.RecursiveCheckpoint(checkpoints=2))
    }
    rng = np.random.default_rng(3)
    direction = jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape)), where)
    tangent = jax.jit(lambda w, d: jax.jvp(functools.partial(loss, ds.ForwardMode()), w, d)[1])(
        where, direction
    )
    value = jax.jit(functools.partial(loss, ds.Direct()))
    eps = 1e-5

    def beyond(step):
        return value(*jax.tree.map(lambda x, d: x + step * d, where, direction))

    return by, direction, float(tangent), float(beyond(eps) - beyond(-eps)) / (2 * eps)


LONG = {"cavity, implicit", "central", "van Leer", "sub-steps", "through, with all"}  # to compile


@pytest.mark.slow  # to compile
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in LONG else n for n in SIMULATIONS]
)
def test_gradients_by_every_exact_adjoint(name):
    by, direction, tangent, difference_quotient = gradients(name)
    dots = {
        k: float(
            sum(jnp.vdot(a, b) for a, b in zip(*map(jax.tree.leaves, (g, direction)), strict=True))
        )
        for k, g in by.items()
    }
    assert tangent == pytest.approx(difference_quotient, rel=1e-6)
    for value in dots.values():
        assert value == pytest.approx(tangent, rel=1e-9)
    for a, b in itertools.pairwise(by.values()):
        for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-8, atol=1e-12)


@pytest.mark.slow
def test_hessian_vector_products_and_batches():
    flow = cfd.IncompressibleFlow(cfd.Grid((8, 8)), 0.05)
    u, v = taylor_green(flow.box)
    state = flow.init({"viscosity": 0.1}, KEY, velocity=(u, v))

    def energy(nu):
        sol = ds.solve(flow, {"viscosity": nu}, state, schedule=ds.Schedule(steps=4))
        return sol.observables["kinetic_energy"][-1]

    nus = jnp.asarray([0.05, 0.1])
    second = jax.vmap(jax.hessian(energy))(nus)
    h = flow.grid.spacing[0]
    rate = 2 * 2 * (2 - 2 * math.cos(h)) / h**2 * 0.2
    np.testing.assert_allclose(second, rate**2 * jax.vmap(energy)(nus), rtol=2e-4)


def test_cut_takes_a_range():
    assert cut(jnp.arange(12).reshape(3, 4), 1, 1, -1).tolist() == [[1, 2], [5, 6], [9, 10]]

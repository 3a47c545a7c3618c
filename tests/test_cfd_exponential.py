"""Exponential steps and the transforms between points and modes, each for itself."""

import decimal
import itertools
import math
from decimal import Decimal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffsim import cfd
from diffsim.cfd._exponential import ETDRK2, ETDRK4, STEPPERS, Exact, phi_functions
from diffsim.cfd._spectral_modes import MirroredModes, PeriodicModes


def off(found, expected):
    """The largest difference."""
    return float(np.max(np.abs(np.asarray(found) - np.asarray(expected))))


def in_fifty_digits(z):
    """φ₁ … φ₃ of real numbers."""
    with decimal.localcontext(prec=200):
        found = []
        for x in (Decimal(float(x)) for x in z):
            value, row = x.exp(), []
            for n in (1, 1, 2):
                value = (value - Decimal(1) / n) / x
                row.append(float(value))
            found.append(row)
    return np.array(found).T


def by_circle(z):
    """φ₁ … φ₃ of complex numbers by Cauchy's integral over a circle around each."""
    points = z[:, None] + 0.6 * np.exp(2j * np.pi * (np.arange(64) + 0.5) / 64)
    value, found = np.exp(points), []
    for n in (1, 1, 2):
        value = (value - 1 / n) / points
        found.append(np.mean(value, axis=1))
    return found


@pytest.mark.parametrize("dtype", ["float64", "float32", "complex128"])
def test_phi_functions_are_good_to_rounding(dtype):
    z = np.concatenate([-np.logspace(-9, 2, 60), [1e-30, 0.3, 1.0, 4.0]])
    z = (z * np.exp(0.4j) if dtype == "complex128" else z).astype(dtype)
    found = jax.jit(phi_functions)(jnp.asarray(z))
    expected = by_circle(z) if dtype == "complex128" else in_fifty_digits(z)
    # on the circle around z lies a number that is almost zero
    rest = np.abs(np.abs(z) - 0.6) > 0.1 if dtype == "complex128" else slice(None)
    tolerance = 8 * float(np.finfo(dtype).eps) * (10 if dtype == "complex128" else 1)
    for name, value in zip(("one", "two", "three"), expected, strict=True):
        assert off(getattr(found, name)[rest] / value[rest], 1) < tolerance, name
    assert np.all(np.abs(found.exp - np.exp(z)) <= 100 * tolerance * np.abs(np.exp(z)) + 1e-37)


def test_phi_functions_are_differentiable_at_zero():
    slopes = jax.jit(jax.jacfwd(lambda z: jnp.stack(phi_functions(z)[:4])))
    for z in (0.0, 1e-12, -0.999999, -1.0, -30.0):
        found, values = slopes(jnp.asarray(z)), phi_functions(jnp.asarray(z))
        if z == 0:
            assert off(found, [1, 1 / 2, 1 / 6, 1 / 24]) < 1e-15
        # φₙ' = φₙ - n φₙ₊₁
        assert found[1] == pytest.approx(float(values.one - values.two), rel=1e-12)
        assert found[2] == pytest.approx(float(values.two - 2 * values.three), rel=1e-12)


@pytest.mark.parametrize("method", STEPPERS)
@pytest.mark.parametrize("linear", [-1.5, -0.5 + 2j], ids=["real", "complex"])
def test_steps_have_their_order(method, linear):
    """u' = λ u + cos t - u²/2 as a pair of real and imaginary part, by halving h."""
    stepper = STEPPERS[method]
    diagonal = (jnp.asarray(linear),)

    def change(u, t):
        (z,) = u
        square = jnp.stack([z[0] ** 2 - z[1] ** 2, 2 * z[0] * z[1]])
        return (jnp.stack([jnp.cos(t), jnp.sin(2 * t)]) - 0.5 * square,)

    @jax.jit
    def end(steps):
        h = 1.0 / steps

        def step(i, u):
            return stepper(diagonal, change, change(u, i * h), u, i * h, h)

        return jax.lax.fori_loop(0, steps, step, (jnp.array([0.3, 0.1]),))[0]

    best = end(512 if method == "etdrk4" else 8192)
    errors = [float(jnp.max(jnp.abs(end(n) - best))) for n in (16, 32, 64)]
    orders = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert orders[-1] == pytest.approx(stepper.order, abs=0.15), orders


def test_steps_without_a_nonlinear_part_are_exact():
    u = (jnp.array([0.3, 0.1]),)
    expected = np.exp((-0.5 + 2j) * 0.7) * (0.3 + 0.1j)
    nothing = lambda u, t: (0 * u[0],)  # noqa: E731
    for stepper in (ETDRK2(), ETDRK4(), Exact()):
        t, h = jnp.asarray(0.0), jnp.asarray(0.7)
        found = stepper((jnp.asarray(-0.5 + 2j),), nothing, nothing(u, t), u, t, h)[0]
        assert off(found, [expected.real, expected.imag]) < 1e-15


# Transforms


@pytest.mark.parametrize(
    ("shape", "dealias"),
    [((9,), "2/3"), ((8, 7), "none"), ((6, 8), "2/3"), ((5, 6, 8), "none")],
    ids=str,
)
def test_transforms_and_their_transposes(shape, dealias):
    modes = PeriodicModes(cfd.Grid(shape), dealias)
    rng = np.random.default_rng(0)
    field = jnp.asarray(rng.standard_normal((2, *shape)))
    other = jnp.asarray(rng.standard_normal((2, 2, *modes.shape)))

    def transposed(function, x, y):
        pushed, pull = jax.vjp(function, x)
        (pulled,) = pull(y)
        (again,) = jax.vjp(lambda y: pull(y)[0], y)[1](x)
        rows = jax.vmap(function, in_axes=1, out_axes=1)(jnp.stack([x, 2 * x], axis=1))
        return pushed, pulled, again, rows[:, 1]

    @jax.jit
    def everything(field, other):
        spectrum = modes.modes(field)
        kept = modes.points(spectrum)
        return (
            (modes.mean(spectrum), jnp.mean(field, modes.axes)),
            (modes.points(modes.modes(kept)), kept),
            (modes.mean_product(spectrum, spectrum), jnp.mean(kept**2, modes.axes)),
        ), (
            (transposed(modes.modes, field, other), field, other),
            (transposed(modes.points, other, field), other, field),
        )

    equal, maps = everything(field, other)
    for a, b in equal:
        assert off(a, b) < 1e-13
    for (pushed, pulled, again, row), x, y in maps:
        assert np.vdot(pushed, y) == pytest.approx(np.vdot(x, pulled), rel=1e-12)
        assert off(again, pushed) < 1e-12
        assert off(row, 2 * pushed) < 1e-12


def test_walls_are_mirrors():
    modes = MirroredModes(cfd.Grid((8, 6), (1.0, 2.0)), ("fixed", "insulated"))
    x, y = modes.coordinates()
    assert (x[0, 0], y[0, 0]) == (1 / 16, 1 / 6)
    field = np.sin(2 * np.pi * x) * np.cos(np.pi * y)
    assert off(modes.points(modes.modes(jnp.asarray(field))), field) < 1e-14

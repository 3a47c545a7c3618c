"""Stochastic equations: the noise, its solvers' orders, moments, gradients of a path, refusals."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffsim as ds
from diffsim import ConfigError, Schedule, ode
from diffsim.ode._noise import normals, threefry
from problems import slow_but

# Known answers of Random123: (key, counter) -> words.
KNOWN = [
    ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
    ((0xFFFFFFFF,) * 2, (0xFFFFFFFF,) * 2, (0x1CB996FC, 0xBB002BE7)),
    ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
]


@pytest.mark.parametrize(("key", "counter", "words"), KNOWN)
def test_the_generator_gives_its_published_words(key, counter, words):
    found = threefry(*(jnp.uint32(x) for x in (*key, *counter)))
    assert tuple(map(int, found)) == words


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_noise_is_normal_and_independent(dtype):
    draw = jax.jit(jax.vmap(lambda k: normals(jax.random.key(7), k, 3, dtype)))
    z = np.asarray(draw(jnp.arange(200_000, dtype=jnp.int32)), dtype=float)
    count = z.size
    assert draw(jnp.arange(2, dtype=jnp.int32)).dtype == dtype
    for power, moment, spread in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(np.mean(z**power) - moment) < 4.5 * np.sqrt(spread / count), power
    lagged = [z[1:, 0] * z[:-1, 0], z[:, 0] * z[:, 1], z[:, 1] * z[:, 2]]
    assert all(abs(np.mean(product)) < 4.5 / np.sqrt(len(product)) for product in lagged)


# Geometric Brownian motion: dy = μ y dt + s y dW has y(1) = exp(μ - s²/2 + s W(1)) in Itô's sense,
# exp(μ + s W(1)) in Stratonovich's.
GBM = {"mu": jnp.asarray(0.3), "s": jnp.asarray(0.8)}


def geometric(dt, solver, interpretation, noise="diagonal"):
    wide = (lambda g: g) if noise == "diagonal" else (lambda g: g[:, None])
    return ode.StochasticDifferentialEquation(
        lambda t, y, args: args["mu"] * y,
        lambda t, y, args: wide(args["s"] * y),
        dt=dt,
        solver=solver,
        interpretation=interpretation,
        noise=noise,
    )


@eqx.filter_jit
def strong_error(sim, steps, paths=400):
    def one(key):
        path = diffrax.VirtualBrownianTree(
            0.0, 1.0, tol=2.0**-8, shape=(1,), key=key, levy_area=diffrax.SpaceTimeLevyArea
        )
        state = sim.init(GBM, key, y0=jnp.ones(1), path=path)
        end = ds.solve(sim, GBM, state, schedule=Schedule(steps=steps)).state.y
        ito = 0.5 * GBM["s"] ** 2 if sim.interpretation == "ito" else 0.0
        return end - jnp.exp(GBM["mu"] - ito + GBM["s"] * jnp.asarray(path.evaluate(0.0, 1.0)))

    return jnp.sqrt(jnp.mean(jax.vmap(one)(jax.random.split(jax.random.key(1), paths)) ** 2))


SOLVERS = [
    (diffrax.Euler(), "ito", "diagonal", 0.5),
    (diffrax.ItoMilstein(), "ito", "diagonal", 1.0),
    (diffrax.ItoMilstein(), "ito", "general", 1.0),
    (diffrax.StratonovichMilstein(), "stratonovich", "diagonal", 1.0),
    (diffrax.EulerHeun(), "stratonovich", "diagonal", 1.0),
    (diffrax.GeneralShARK(), "stratonovich", "general", 1.0),
    (diffrax.SlowRK(), "stratonovich", "diagonal", 1.5),
]


@pytest.mark.slow  # to compile
@pytest.mark.parametrize(
    ("solver", "interpretation", "noise", "order"),
    slow_but(SOLVERS[:1], SOLVERS),
    ids=[f"{type(s[0]).__name__}-{s[2]}" for s in SOLVERS],
)
def test_paths_converge_with_the_strong_order_of_the_solver(solver, interpretation, noise, order):
    coarse, fine = (
        float(strong_error(geometric(1 / n, solver, interpretation, noise), n)) for n in (8, 32)
    )
    assert abs(np.log2(coarse / fine) / 2 - order) < 0.17, (coarse, fine)


@pytest.mark.parametrize(
    ("solver", "interpretation"),
    [
        (diffrax.Euler(), "ito"),
        (diffrax.ItoMilstein(), "ito"),
        (diffrax.StratonovichMilstein(), "stratonovich"),
    ],
)
def test_our_steps_are_those_of_diffrax(solver, interpretation):
    """Two components whose noises do not mix, so that the methods written out are the general
    ones."""
    sim = ode.StochasticDifferentialEquation(
        lambda t, y, args: -y + jnp.cos(t),
        lambda t, y, args: args["s"] * jnp.sin(y) + 0.1 * t,
        dt=0.05,
        solver=solver,
        interpretation=interpretation,
    )
    y, t = jnp.array([0.7, -1.2]), jnp.asarray(0.3)
    increment = diffrax.BrownianIncrement(dt=jnp.asarray(0.05), W=jnp.array([0.2, -0.35]))
    ours = sim._taylor(GBM, t, y, increment.W)
    np.testing.assert_allclose(ours, sim._by_diffrax(GBM, t, y, increment), rtol=1e-13)


def process(dt=0.02):
    return ode.StochasticDifferentialEquation(ode.OrnsteinUhlenbeck(), dt=dt)


OU = {"theta": jnp.asarray(1.5), "mu": jnp.asarray(0.5), "sigma": jnp.asarray(0.7)}


def test_an_ornstein_uhlenbeck_process_has_its_mean_and_variance():
    """The scheme's own moments are known too: h = 0.02 shifts the variance by θh/2 of itself."""
    sim, system, paths = process(), ode.OrnsteinUhlenbeck(), 20_000

    def one(key):
        state = sim.init(OU, key, y0=jnp.array([2.0]))
        sol = ds.solve(sim, OU, state, schedule=Schedule(ts=[0.4, 1.0]), observables=["x"])
        return sol.observables["x"]

    x = np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(3), paths)))
    for i, t in enumerate((0.4, 1.0)):
        variance = float(system.variance(t, OU))
        assert abs(x[:, i].mean() - system.mean(t, 2.0, OU)) < 4 * np.sqrt(variance / paths) + 0.02
        assert abs(x[:, i].var() / variance - 1) < 4 * np.sqrt(2 / paths) + 0.02
    covariance = np.mean((x[:, 0] - x[:, 0].mean()) * (x[:, 1] - x[:, 1].mean()))
    assert abs(covariance - float(system.covariance(0.4, 1.0, OU))) < 0.006


ADJOINTS = [ds.Direct(), ds.RecursiveCheckpoint(checkpoints=3), ds.ForwardMode()]


@pytest.mark.parametrize("adjoint", slow_but(ADJOINTS[1:], ADJOINTS))
def test_the_gradient_of_a_path_is_that_of_finite_differences(adjoint):
    sim = process()

    def end(params):
        state = sim.init(params, jax.random.key(5), y0=jnp.array([2.0]))
        return ds.solve(sim, params, state, schedule=Schedule(steps=50), adjoint=adjoint).state.y[0]

    derivative = jax.grad if "reverse" in adjoint.modes else jax.jacfwd
    slopes, value = jax.jit(derivative(end))(OU), jax.jit(end)
    for name in OU:
        shifted = [value(OU | {name: OU[name] + s}) for s in (1e-5, -1e-5)]
        assert abs(slopes[name] - (shifted[0] - shifted[1]) / 2e-5) < 1e-8


def test_a_path_is_the_same_in_pieces_and_another_with_another_key():
    sim, key = process(), jax.random.key(8)
    start = sim.init(OU, key, y0=jnp.ones(1))
    go = eqx.filter_jit(lambda state, n: ds.solve(sim, OU, state, schedule=Schedule(steps=n)).state)
    whole, parts = go(start, 40), go(go(start, 15), 25)
    np.testing.assert_array_equal(whole.y, parts.y)
    other = go(sim.init(OU, jax.random.key(9), y0=jnp.ones(1)), 40)
    assert not np.array_equal(whole.y, other.y)


still = lambda t, y, args: y  # noqa: E731
BAD = [
    (lambda: ode.StochasticDifferentialEquation(still, still, dt=0.0), "dt: must be positive"),
    (lambda: ode.StochasticDifferentialEquation(still, dt=0.1), "diffusion: must be given"),
    (
        lambda: ode.StochasticDifferentialEquation(still, still, dt=0.1, solver=diffrax.Heun()),
        "solver: Heun is not made for ito",
    ),
    (
        lambda: ode.StochasticDifferentialEquation(
            still, still, dt=0.1, solver=diffrax.Euler(), interpretation="stratonovich"
        ),
        "solver: Euler is not made for stratonovich",
    ),
    (
        lambda: ode.StochasticDifferentialEquation(still, still, dt=0.1, noise="full"),
        "noise: no such choice",
    ),
    (
        lambda: ode.StochasticDifferentialEquation(still, still, dt=0.1, noise="general").check(
            {}, y0=np.ones((1, 2))
        ),
        "diffusion: returns (2,)",
    ),
    (
        lambda: ode.StochasticDifferentialEquation(lambda t, y, args: y[:1], still, dt=0.1).check(
            {}, y0=np.ones((1, 2))
        ),
        "vector_field: returns (1,)",
    ),
    (lambda: process().check(OU, y0=np.full((1, 1), np.inf)), "y0: must be finite"),
]


@pytest.mark.parametrize(("make", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_input_is_refused(make, message):
    with pytest.raises(ConfigError) as caught:
        make()
    assert message in str(caught.value)

"""The systems of differential equations: right-hand sides, invariants, laws.

Every right-hand side against another one written in plain NumPy, every invariant's rate of change
along it, and every law along a solution that keeps it and along a disturbed one that breaks it.
"""

import math
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats

import diffsim as ds
from diffsim import ConfigError, ode
from problems import slow_but

DOPRI8 = diffrax.Dopri8()


def lotka_volterra(t, y, alpha, beta, gamma, delta):
    x, p = y
    return [alpha * x - beta * x * p, delta * x * p - gamma * p]


def lorenz(t, y, sigma, rho, beta):
    return [sigma * (y[1] - y[0]), rho * y[0] - y[1] - y[0] * y[2], y[0] * y[1] - beta * y[2]]


def robertson(t, y, k1, k2, k3):
    rates = np.array([k1 * y[0], k2 * y[1] * y[2], k3 * y[1] * y[1]])
    return np.array([[-1, 1, 0], [1, -1, -1], [0, 0, 1]]) @ rates


def fitzhugh_nagumo(t, y, a, b, tau, current):
    return [y[0] * (1 - y[0] ** 2 / 3) - y[1] + current, (y[0] + a) / tau - b / tau * y[1]]


def kepler(t, y, mu):
    r = math.hypot(y[0], y[1])
    return [y[2], y[3], -mu * y[0] / r**3, -mu * y[1] / r**3]


def pulls(places, masses, G, softening=0.0):
    """The acceleration of each body, pair by pair."""
    pull = np.zeros_like(places)
    for i in range(len(places)):
        for j in range(len(places)):
            if i != j:
                apart = places[j] - places[i]
                pull[i] += G * masses[j] * apart / (apart @ apart + softening**2) ** 1.5
    return pull


def n_body(t, y, G, masses, dimension=2, softening=0.0):
    q, p = np.reshape(y, (2, -1, dimension))
    pull = pulls(q, masses, G, softening)
    return np.concatenate([np.ravel(p / masses[:, None]), np.ravel(masses[:, None] * pull)])


def pleiades(t, y, G, masses):
    x, z, vx, vz = np.reshape(y, (4, 7))
    pull = pulls(np.stack([x, z], axis=1), masses, G)
    return np.concatenate([vx, vz, pull[:, 0], pull[:, 1]])


def arenstorf(t, y, mu):
    place, speed = np.array([y[0], y[1]]), np.array([y[2], y[3]])
    earth, moon = place - [-mu, 0], place - [1 - mu, 0]
    pull = -(1 - mu) * earth / np.linalg.norm(earth) ** 3 - mu * moon / np.linalg.norm(moon) ** 3
    turning = 2 * np.array([speed[1], -speed[0]]) + place  # Coriolis and centrifugal
    return [*speed, *(pull + turning)]


@jax.jit
def double_pendulum(t, y, m1, m2, l1, l2, g):
    """Euler and Lagrange's equations of L = T - V, differentiated by machine."""

    def lagrangian(q, w):
        u = l1 * w[0] * jnp.array([jnp.cos(q[0]), jnp.sin(q[0])])
        v = u + l2 * w[1] * jnp.array([jnp.cos(q[1]), jnp.sin(q[1])])
        height = -l1 * jnp.cos(q[0])
        potential = m1 * g * height + m2 * g * (height - l2 * jnp.cos(q[1]))
        return (m1 * u @ u + m2 * v @ v) / 2 - potential

    q, w = y[:2], y[2:]
    mass = jax.hessian(lagrangian, 1)(q, w)
    mixed = jax.jacfwd(jax.grad(lagrangian, 1), 0)(q, w) @ w
    rate = jnp.linalg.solve(mass, jax.grad(lagrangian, 0)(q, w) - mixed)
    return jnp.concatenate([w, rate])


def seir(t, y, beta, gamma, kappa, population=1000.0):
    force = beta * y[2] / population
    flow = np.array([force * y[0], kappa * y[1], gamma * y[2]])
    return np.diff([0, *flow, 0]) * -1


def sir(t, y, beta, gamma, population=1000.0):
    flow = np.array([beta * y[1] / population * y[0], gamma * y[1]])
    return np.diff([0, *flow, 0]) * -1


# A system, the same right-hand side written anew, and whether its state must stay positive.
SYSTEMS: dict[str, tuple[ode.AbstractSystem, Any, bool]] = {
    "lotka-volterra": (ode.LotkaVolterra(), lotka_volterra, True),
    "lorenz": (ode.Lorenz63(), lorenz, False),
    "van der pol": (
        ode.VanDerPol(),
        lambda t, y, eps: [y[1], (y[1] - y[0] ** 2 * y[1] - y[0]) / eps],
        False,
    ),
    "van der pol, classical": (
        ode.VanDerPol(stiff=False),
        lambda t, y, mu: [y[1], mu * y[1] - mu * y[0] ** 2 * y[1] - y[0]],
        False,
    ),
    "fitzhugh-nagumo": (ode.FitzHughNagumo(), fitzhugh_nagumo, False),
    "robertson": (ode.Robertson(), robertson, True),
    "kepler": (ode.Kepler(), kepler, False),
    "three bodies": (ode.NBody(), n_body, False),
    "four bodies in space": (
        ode.NBody(4, 3, softening=0.3),
        lambda t, y, **args: n_body(t, y, **args, dimension=3, softening=0.3),
        False,
    ),
    "pleiades": (ode.Pleiades(), pleiades, False),
    "arenstorf": (ode.Arenstorf(), arenstorf, False),
    "double pendulum": (ode.DoublePendulum(), double_pendulum, False),
    "sir": (ode.SIR(), sir, True),
    "seir": (ode.SEIR(), seir, True),
    "ornstein-uhlenbeck": (
        ode.OrnsteinUhlenbeck(),
        lambda t, y, theta, mu, sigma: theta * mu - theta * y,
        False,
    ),
}
LAWFUL = [name for name, (system, _, _) in SYSTEMS.items() if system.laws()]


def near(name, number):
    """Random states and parameters around the textbook's."""
    system, _, positive = SYSTEMS[name]
    rng = np.random.default_rng(number)
    y = np.asarray(system.start())
    y = y * (1 + 0.2 * rng.normal(size=y.shape)) + 0.2 * rng.normal(size=y.shape)
    params = {k: v * rng.uniform(0.5, 1.5, np.shape(v)) for k, v in system.defaults().items()}
    return (np.abs(y) if positive else y), params


@pytest.mark.parametrize("name", SYSTEMS)
def test_right_hand_sides(name):
    system, other, _ = SYSTEMS[name]
    for number in range(5):
        y, params = near(name, number)
        got, wanted = system(0.0, y, params), np.asarray(other(0.0, y, **params))
        np.testing.assert_allclose(got, wanted, rtol=1e-12, atol=1e-12 * np.abs(wanted).max())


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_system_knows_its_parts(name):
    system, _, _ = SYSTEMS[name]
    names = system.components
    assert system.start().shape == (len(names),)
    assert len(set(names)) == len(names)
    seen = system.observe(0.0, system.start(), system.defaults())
    # `t` and `y` are the time and the whole state, whatever the system calls its parts.
    assert not {"t", "y"} & {*names, *seen} and not set(names) & set(seen)
    assert {law.observable for law in system.laws()} <= set(seen)


@pytest.mark.parametrize("name", LAWFUL)
def test_invariants_have_no_rate_of_change(name):
    """∇I·f = 0 to rounding, where the terms of the sum are not."""
    system, _, _ = SYSTEMS[name]

    @jax.jit
    def derivatives(y, params):
        return system(0.0, y, params), jax.jacfwd(lambda y: system.observe(0.0, y, params))(y)

    for number in range(5):
        y, params = near(name, number)
        slope, gradients = derivatives(jnp.asarray(y), params)
        for law in system.laws():
            terms = np.asarray(gradients[law.observable] * slope)
            size = np.abs(terms).sum()
            assert size > 1e-3
            assert np.abs(terms.sum(axis=-1)).max() <= 1e-12 * size, law.observable


class Disturbed(ode.AbstractSystem):
    """f(t, y) + `size` · (a fixed vector): any system with a term that does not belong there."""

    system: ode.AbstractSystem
    size: Any

    @property
    def components(self):
        return self.system.components

    def __call__(self, t, y, args):
        numbers = jnp.arange(y.shape[0])
        return self.system(t, y, args) + self.size * (2 + jnp.cos(numbers * numbers))

    def observe(self, t, y, args):
        return self.system.observe(t, y, args)

    def defaults(self):
        return self.system.defaults()

    def start(self):
        return self.system.start()


@eqx.filter_jit
def kept(system, size, until, solver):
    equation = ode.DifferentialEquation(
        Disturbed(system, size), solver, rtol=1e-10, atol=1e-13, max_steps=2000
    )
    params = jax.tree.map(jnp.asarray, system.defaults())
    schedule = ds.Schedule(ts=np.linspace(0.0, until, 6)[1:])
    return ds.solve(
        equation,
        params,
        equation.init(params),
        schedule=schedule,
        adjoint=ds.ForwardMode(),
        laws=system.laws(rtol=1e-7),
        observables=(),
    )


QUICK = ("lotka-volterra", "robertson", "kepler", "double pendulum")


@pytest.mark.parametrize("name", slow_but(QUICK, LAWFUL))
def test_laws_hold_and_a_wrong_equation_breaks_them(name):
    system, _, _ = SYSTEMS[name]
    solver = diffrax.Kvaerno5() if name == "robertson" else DOPRI8
    until = {"pleiades": 0.5, "double pendulum": 2.0, "arenstorf": 6.0}.get(name, 5.0)
    right, wrong = (kept(system, jnp.asarray(size), until, solver) for size in (0.0, 1e-4))
    right.check()
    assert right.ledger.ok.all(), right.ledger.rows()
    wrong.check()
    assert not wrong.ledger.ok.any(), wrong.ledger.rows()


# Without an invariant to go by: the same equation by SciPy, from the right-hand side above.
ORACLES = {"fitzhugh-nagumo": 60.0, "van der pol, classical": 12.0, "double pendulum": 3.0}


@pytest.mark.parametrize("name", slow_but(["double pendulum"], ORACLES))
def test_solutions_are_those_of_scipy(name):
    system, other, _ = SYSTEMS[name]
    params, end = system.defaults(), ORACLES[name]
    wanted = integrate.solve_ivp(
        lambda t, y: np.asarray(other(t, y, **params)),
        (0, end),
        np.asarray(system.start()),
        method="DOP853",
        rtol=1e-11,
        atol=1e-11,
    ).y[:, -1]
    equation = ode.DifferentialEquation(system, DOPRI8, rtol=1e-11, atol=1e-11)
    sol = ds.solve(equation, params, equation.init(params), schedule=ds.Schedule(t1=end))
    np.testing.assert_allclose(sol.observables["y"][-1], wanted, rtol=0, atol=1e-7)
    for i, component in enumerate(system.components):
        assert sol.observables[component][-1] == sol.observables["y"][-1, i]


def test_van_der_pol_in_both_scalings():
    """d²x/ds² with t = μ s and ε = 1/μ² is μ² d²x/dt²."""
    mu, place, speed = 5.0, 0.7, -0.3
    stiff = ode.VanDerPol()(0.0, np.array([place, mu * speed]), {"eps": mu**-2})
    classical = ode.VanDerPol(stiff=False)(0.0, np.array([place, speed]), {"mu": mu})
    np.testing.assert_allclose(stiff, mu * np.array([1.0, mu]) * classical, rtol=1e-14)


def test_lorenz_contracts_and_is_symmetric():
    lorenz, params = ode.Lorenz63(), {"sigma": 9.0, "rho": 25.0, "beta": 2.0}
    y, turn = jnp.array([1.0, -2.0, 20.0]), jnp.array([-1.0, -1.0, 1.0])
    divergence = jnp.trace(jax.jacfwd(lorenz, 1)(0.0, y, params))
    np.testing.assert_allclose(divergence, -(9.0 + 1.0 + 2.0), rtol=1e-15)
    np.testing.assert_array_equal(lorenz(0.0, turn * y, params), turn * lorenz(0.0, y, params))


@pytest.mark.parametrize(("current", "v"), [(0.33128, -1), (1.41872, 1)])
def test_fitzhugh_nagumo_begins_and_ends_to_fire(current, v):
    """Hopf: at rest with v² = 1 - b/τ the real part of both eigenvalues is zero."""
    params = {**ode.FitzHughNagumo().defaults(), "current": current}
    rest = v * math.sqrt(1 - params["b"] / params["tau"])
    y = jnp.array([rest, (rest + params["a"]) / params["b"]])
    np.testing.assert_allclose(ode.FitzHughNagumo()(0.0, y, params), 0, atol=1e-5)
    eigenvalues = np.linalg.eigvals(jax.jacfwd(ode.FitzHughNagumo(), 1)(0.0, y, params))
    assert np.abs(eigenvalues.real).max() < 1e-14 < np.abs(eigenvalues.imag).min()


def test_a_double_pendulum_swings_in_its_normal_modes():
    """Equal masses and rods: ω² = (g/l) (2 ± √2)."""
    pendulum = ode.DoublePendulum()
    jacobian = jax.jacfwd(pendulum, 1)(0.0, jnp.zeros(4), pendulum.defaults())
    modes = np.sort(np.linalg.eigvals(-jacobian[2:, :2]))
    np.testing.assert_allclose(modes, 9.81 * (2 + np.sqrt(2) * np.array([-1, 1])), rtol=1e-12)


@pytest.mark.parametrize(
    "name", slow_but(["kepler", "three bodies"], ["kepler", "three bodies", "four bodies in space"])
)
def test_velocities_and_forces_are_the_gradients_of_the_energy(name):
    system = SYSTEMS[name][0]
    assert isinstance(system, ode.AbstractHamiltonian)
    y, params = near(name, 1)
    q, p = np.split(y, 2)
    by_q, by_p = np.split(jax.grad(lambda y: system.observe(0.0, y, params)["energy"])(y), 2)
    np.testing.assert_allclose(system.velocity(p, params), by_p, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(system.force(q, params), -by_q, rtol=1e-12, atol=1e-14)


coordinates = st.floats(-5, 5).map(lambda x: round(x, 3))


@st.composite
def bodies(draw):
    count, dimension = draw(st.integers(2, 5)), draw(st.sampled_from([2, 3]))
    size = 2 * count * dimension
    y = np.array(draw(st.lists(coordinates, min_size=size, max_size=size)))
    masses = np.array(draw(st.lists(st.floats(0.01, 100), min_size=count, max_size=count)))
    return ode.NBody(count, dimension, softening=0.5), y, {"G": 1.3, "masses": masses}


@given(bodies(), st.floats(-10, 10), st.floats(-np.pi, np.pi))
def test_bodies_push_each_other_alone(drawn, shift, angle):
    """No net force and no torque, whatever the masses; the same forces elsewhere, turned forces in
    a turned place."""
    system, y, params = drawn
    places = np.split(y, 2)[0].reshape(-1, system.dimension)
    force = lambda x: np.asarray(system.force(x.ravel(), params)).reshape(x.shape)  # noqa: E731
    here = force(places)
    scale = np.abs(here).sum() + 1e-12
    np.testing.assert_allclose(here.sum(axis=0), 0, atol=1e-13 * scale)
    torque = places[:, 0] * here[:, 1] - places[:, 1] * here[:, 0]
    np.testing.assert_allclose(torque.sum(), 0, atol=1e-12 * scale)
    np.testing.assert_allclose(force(places + shift), here, atol=1e-11 * scale)
    turn = np.eye(system.dimension)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    np.testing.assert_allclose(force(places @ turn.T), here @ turn.T, atol=1e-11 * scale)


def test_two_bodies_are_keplers():
    """Their distance obeys Kepler's equation with μ = G (m1 + m2)."""
    masses, G, (q, v) = np.array([2.0, 0.5]), 1.7, np.array([[0.3, 1.1], [-0.4, 0.2]])
    # Around the common centre of mass.
    shares = np.array([masses[1], -masses[0]])[:, None] / masses.sum()
    y = np.concatenate([(shares * q).ravel(), (masses[:, None] * shares * v).ravel()])
    slope = ode.NBody(2)(0.0, y, {"G": G, "masses": masses}).reshape(2, 2, 2)
    relative = slope[1, 0] / masses[0] - slope[1, 1] / masses[1]
    wanted = ode.Kepler().force(q, {"mu": G * masses.sum()})
    np.testing.assert_allclose(relative, wanted, rtol=1e-13)


@pytest.mark.parametrize("count", [2, 3, 5, 8])
def test_a_ring_of_bodies_is_at_rest_in_its_turning_frame(count):
    system = ode.NBody(count, softening=0.2)
    q, p = np.split(system.start(), 2)
    force, rate = system.force(q, system.defaults()), np.hypot(p[0], p[1])
    np.testing.assert_allclose(force, -(rate**2) * q, atol=1e-13)


OU = {"theta": 0.7, "mu": 1.5, "sigma": 0.4}


def test_ornstein_uhlenbeck_knows_its_own_statistics():
    """Moments by their equations m' = θ(μ - m), V' = σ² - 2θV; a path's density as a multivariate
    normal one."""
    process = ode.OrnsteinUhlenbeck()
    for t in (1e-9, 0.3, 20.0):
        rate = jax.grad(process.mean)(t, 3.0, OU)
        drift = process.drift(t, process.mean(t, 3.0, OU)[None], OU)
        np.testing.assert_allclose(rate, drift[0], rtol=1e-12, atol=1e-15)
        growth = jax.grad(process.variance)(t, OU)
        np.testing.assert_allclose(
            growth, 0.16 - 1.4 * process.variance(t, OU), rtol=1e-12, atol=1e-15
        )
    np.testing.assert_allclose(process.variance(1e-9, OU), 0.16e-9, rtol=1e-8)
    np.testing.assert_allclose(process.variance(1e3, OU), 0.16 / 1.4, rtol=1e-14)
    np.testing.assert_array_equal(process.diffusion(0.0, np.array([5.0]), OU), [0.4])

    ts, path = np.array([0.0, 0.2, 0.9, 1.0, 3.0]), np.array([3.0, 2.6, 2.2, 2.3, 1.4])
    steps = process.log_density(np.diff(ts), path[:-1], path[1:], OU)
    mean = np.asarray(process.mean(ts[1:], 3.0, OU))
    covariance: Any = np.asarray(process.covariance(ts[1:, None], ts[1:], OU))
    whole = stats.multivariate_normal(mean, covariance).logpdf(path[1:])
    np.testing.assert_allclose(jnp.sum(steps), whole, rtol=1e-12)


BAD = {
    "eccentricity: must be at least 0": lambda: ode.Kepler(1.0),
    "bodies: must be at least 2": lambda: ode.NBody(1),
    "dimension: must be 2 or 3": lambda: ode.NBody(3, 4),
    "softening: must be finite": lambda: ode.NBody(3, softening=-0.1),
    "population: must be finite and above 1": lambda: ode.SIR(0.0),
    "population: must be finite": lambda: ode.SEIR(math.nan),
    "names: one name a component": lambda: ode.NeuralODE(("u", "u")),
    "names: t and y name": lambda: ode.NeuralODE(("x", "y")),
    "names: one name a component, each once": lambda: ode.UniversalEquation(lambda t, y, args: y),
}


@pytest.mark.parametrize("message", BAD)
def test_what_cannot_be_is_refused(message):
    with pytest.raises(ConfigError, match=message):
        BAD[message]()

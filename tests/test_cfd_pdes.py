"""Equations of scalar fields: exact solutions, invariants, orders, gradients."""

import functools
import math
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffsim as ds
from diffsim import cfd
from diffsim.cfd import _pdes as pdes
from diffsim.cfd._exponential import ETDRK4, AbstractStepper
from diffsim.cfd._spectral_modes import PeriodicModes, rotated
from problems import slow_but

KEY = jax.random.key(0)
METHODS = ("etdrk4", "etdrk2", "cn_rk4")


def off(found, expected):
    """The largest difference."""
    return float(np.max(np.abs(np.asarray(found) - np.asarray(expected))))


@eqx.filter_jit
def solved(pde, params, start, schedule, observables=None, laws=()):
    state = pde.init(params, KEY, **start)
    return ds.solve(pde, params, state, schedule=schedule, observables=observables, laws=laws)


def run(pde, params, time, observables=None, laws=(), **start):
    """The last save of every observable, after `time`."""
    pde.check(params, **start)
    schedule = ds.Schedule(steps=round(time / pde.dt))
    start = {name: jnp.asarray(field) for name, field in start.items()}
    sol = solved(pde, params, start, schedule, observables, tuple(laws)).check()
    assert all(row["ok"] for row in sol.ledger.rows()), sol.ledger.rows()
    return {name: value[-1] for name, value in sol.observables.items()}


# Linear equations: each a field at time t, from parameters


def heat_wave(x, t, kappa):
    return 1.5 + math.exp(-kappa * (3 * np.pi) ** 2 * t) * np.cos(3 * np.pi * x[0])


def insulated_wave(x, t, kappa):
    return 1.5 + math.exp(-kappa * (1.5 * np.pi) ** 2 * t) * np.cos(1.5 * np.pi * x[0])


def fixed_wave(x, t, kappa):
    return math.exp(-kappa * (1.5 * np.pi) ** 2 * t) * np.sin(1.5 * np.pi * x[0])


def mixed_wave(x, t, kappa):
    rate = (1.5**2 + 0.5**2 + 1) * np.pi**2
    across = np.sin(0.5 * np.pi * x[1]) * np.cos(np.pi * x[2])
    return math.exp(-kappa * rate * t) * np.cos(1.5 * np.pi * x[0]) * across


def drifting_wave(x, t, kappa):
    (x, y), rate = (x[0] - 0.3 * t, x[1] + 0.7 * t), (4 + 9) * np.pi**2
    return 1 + math.exp(-kappa * rate * t) * np.sin(2 * np.pi * x) * np.cos(3 * np.pi * y)


LINE, KAPPA = cfd.Grid((12,), 2.0), 0.02
EXACT = {
    "heat": (pdes.Heat(LINE, 0.1), {}, heat_wave),
    "insulated": (pdes.Heat(LINE, 0.1, sides="insulated"), {}, insulated_wave),
    "fixed": (pdes.Heat(LINE, 0.1, sides="fixed"), {}, fixed_wave),
    "mixed": (
        pdes.Heat(cfd.Grid((8, 7, 6), 2.0), 0.1, sides=("insulated", "fixed", "periodic")),
        {},
        mixed_wave,
    ),
    "advected": (
        pdes.AdvectionDiffusion(cfd.Grid((8, 11), 2.0), 0.1),
        {"velocity": np.array([0.3, -0.7])},
        drifting_wave,
    ),
    "reacting": (
        pdes.ReactionDiffusion(LINE, 0.1, lambda params, u: 0 * u, method="etdrk2"),
        {},
        heat_wave,
    ),
}


@pytest.mark.parametrize("name", EXACT)
def test_linear_equations_are_exact_in_time(name):
    pde, extra, solution = EXACT[name]
    points, params = pde.points(), {"diffusivity": KAPPA, **extra}
    seen = run(pde, params, 1.0, u=solution(points, 0.0, KAPPA))
    expected = solution(points, 1.0, KAPPA)
    assert off(seen["u"], expected) < 1e-14
    assert off(seen["mass"], np.mean(expected)) < 1e-14
    assert off(seen["energy"], np.mean(expected**2) / 2) < 1e-14
    assert off(seen["time"], 1.0) < 1e-14


def test_a_wave_comes_round_unchanged():
    """A period of advection without diffusion: nothing but the shortest wave may change."""
    pde = pdes.AdvectionDiffusion(cfd.Grid((15,), 3.0, lower=-1.0), 0.1)
    field = np.random.default_rng(0).standard_normal(15)
    laws = (ds.Conserved("mass", rtol=1e-13), ds.Conserved("energy", rtol=1e-13))
    seen = run(pde, {"velocity": 1.5, "diffusivity": 0.0}, 2.0, laws=laws, u=field)
    assert off(seen["u"], field) < 1e-13


def test_walls_keep_what_they_insulate():
    pde = pdes.Heat(cfd.Grid((9, 6)), 0.1, sides="insulated")
    laws = (ds.Conserved("mass", rtol=1e-13), ds.Monotone("energy"))
    field = np.random.default_rng(0).standard_normal((9, 6))
    seen = run(pde, {"diffusivity": 4.0}, 20.0, laws=laws, u=field)
    kept = pde.modes.points(pde.modes.modes(jnp.asarray(field)))
    assert off(seen["u"], np.mean(kept)) < 1e-6


# Equations that are not linear


@pytest.mark.parametrize("method", METHODS)
def test_burgers_is_cole_and_hopfs(method):
    pde = pdes.Burgers(cfd.Grid((128,)), 0.01, method=method)
    (x,) = pde.points()
    laws = (ds.Conserved("mass", atol=1e-15), ds.Monotone("energy"))
    seen = run(pde, {"viscosity": 0.1}, 1.0, ("u",), laws, u=np.sin(x))
    tolerance = 1e-8 if method == "etdrk4" else 1e-4
    assert x[32] == pytest.approx(np.pi / 2)
    assert off(seen["u"][np.array([32, 48])], [0.71086832, 0.90080728]) < tolerance


def test_burgers_keeps_its_energy_without_viscosity():
    pde = pdes.Burgers(cfd.Grid((48,)), 0.01)
    (x,) = pde.points()
    laws = (ds.Conserved("energy", rtol=1e-8),)
    run(pde, {"viscosity": 0.0}, 0.5, (), laws, u=np.sin(x))


@pytest.mark.parametrize("method", METHODS)
def test_orders_by_halving_the_step(method):
    """Of Burgers' equation, from its own solution by many steps."""
    order = {"etdrk4": 4, "etdrk2": 2, "cn_rk4": 2}[method]

    def end(dt, method):
        pde = pdes.Burgers(cfd.Grid((32,)), dt, method=method)
        return run(pde, {"viscosity": 0.2}, 1.0, ("u",), u=np.sin(pde.points()[0]))["u"]

    best = end(1 / 400, "etdrk4")
    errors = [off(end(dt, method), best) for dt in (1 / 20, 1 / 40)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.15), errors


def test_kuramoto_sivashinsky_grows_and_saturates():
    """A small wave k grows as exp((k² - k⁴) t); later the mean stays and the field is bounded."""
    pde, params = (
        pdes.KuramotoSivashinsky(cfd.Grid((48,), 22.0), 0.1),
        dict(growth=1.0, damping=1.0),
    )
    (x,) = pde.points()
    k = 2 * 2 * np.pi / 22.0
    seen = run(pde, params, 1.0, u=1e-6 * np.cos(k * x))
    assert off(seen["u"], 1e-6 * math.exp(k**2 - k**4) * np.cos(k * x)) < 1e-11
    start = 0.3 + np.cos(2 * np.pi * x / 22) * (1 + np.sin(4 * np.pi * x / 22))
    laws = (ds.Conserved("mass", rtol=1e-12), ds.Bounded("u", lower=-5.0, upper=5.0))
    seen = run(pde, params, 60.0, ("energy",), laws, u=start)
    assert 0.5 < seen["energy"] < 3


def test_kuramoto_sivashinsky_converges_before_chaos():
    def end(points, dt):
        pde = pdes.KuramotoSivashinsky(cfd.Grid((points,), 22.0), dt)
        x = pde.points()[0] * 2 * np.pi / 22
        start = np.cos(x) * (1 + np.sin(2 * x))
        return run(pde, dict(growth=1.0, damping=1.0), 10.0, ("u",), u=start)["u"]

    best = end(64, 0.0125)
    assert off(end(64, 0.1), best) < 5e-5
    assert off(end(128, 0.0125)[::2], best) < 3e-8


class KortewegDeVries(pdes.AbstractPDE):
    """∂u/∂t + 3 ∂(u²)/∂x + a ∂³u/∂x³ = 0: an equation of a user, with a complex linear part."""

    modes: PeriodicModes
    dt: float
    method: AbstractStepper = ETDRK4()

    def parameters(self) -> tuple[str, ...]:
        return ("dispersion",)

    def linear(self, params, dtype):
        k = jnp.asarray(self.modes.wavenumbers()[0], dtype)
        return jax.lax.complex(jnp.zeros_like(k), jnp.asarray(params["dispersion"], dtype) * k**3)

    def nonlinear(self, params, spectrum, t):
        (k,) = self.modes.wavenumbers()
        return rotated(-3 * k, self.modes.modes(self.modes.points(spectrum) ** 2))


def test_an_equation_of_a_users_own_moves_a_soliton():
    pde = KortewegDeVries(PeriodicModes(cfd.Grid((128,), 40.0, lower=-20.0)), 0.01)
    (x,) = pde.points()
    soliton = lambda t: 0.75 / np.cosh(np.sqrt(1.5) / 2 * (x - 1.5 * t)) ** 2  # noqa: E731
    laws = (ds.Conserved("mass", rtol=1e-13), ds.Conserved("energy", rtol=1e-7))
    seen = run(pde, {"dispersion": 1.0}, 4.0, laws=laws, u=soliton(0.0))
    assert off(seen["u"], soliton(4.0)) < 1e-6


def by_differences(reaction, start, diffusivity, size, time):
    """The same equation on a line by diffrax: derivatives by a matrix made of Fourier modes."""
    n = start.shape[-1]
    k = 2 * np.pi / size * np.fft.fftfreq(n, 1 / n)
    matrix = np.fft.ifft(-(k[:, None] ** 2) * np.fft.fft(np.eye(n), axis=0), axis=0).real
    diffused = jnp.asarray(np.multiply.outer(diffusivity, matrix))

    def rate(t, fields, args):
        return jnp.einsum("fij,fj->fi", diffused, fields) + jnp.stack(reaction(*fields))

    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(rate),
        diffrax.Tsit5(),
        0.0,
        time,
        time / 100,
        jnp.asarray(start),
        stepsize_controller=diffrax.PIDController(rtol=1e-11, atol=1e-12),
        max_steps=100_000,
    )
    assert solution.ys is not None
    return solution.ys[-1]


def test_fisher_and_the_general_reaction_agree_with_diffrax():
    params = {"diffusivity": 0.7, "growth": 1.3}
    grid = cfd.Grid((48,), 20.0)
    fisher = pdes.FisherKPP(grid, 0.02)
    (x,) = fisher.points()
    start = np.exp(-((x - 10) ** 2) / 4)
    seen = run(fisher, params, 2.0, u=start)
    reaction = lambda u: (1.3 * u * (1 - u),)  # noqa: E731
    expected = by_differences(reaction, start[None], [0.7], 20.0, 2.0)[0]
    assert off(seen["u"], expected) < 1e-7
    general = pdes.ReactionDiffusion(
        grid, 0.02, lambda p, u: p["growth"] * u * (1 - u), needs=("growth",)
    )
    assert off(run(general, params, 2.0, u=start)["u"], seen["u"]) < 1e-14


def test_gray_scott_agrees_with_diffrax():
    params = dict(diffusivity_u=2e-3, diffusivity_v=1e-3, feed=0.04, kill=0.06)
    pde = pdes.GrayScott(cfd.Grid((64,), 1.0), 0.25, dealias="1/2")
    (x,) = pde.points()
    bump = np.sin(np.pi * x) ** 16
    start = np.stack([1 - 0.5 * bump, 0.25 * bump])
    seen = run(pde, params, 20.0, u=start[0], v=start[1])

    def reaction(u, v):
        return -u * v**2 + 0.04 * (1 - u), u * v**2 - 0.1 * v

    expected = by_differences(reaction, start, [2e-3, 1e-3], 1.0, 20.0)
    assert off(np.stack([seen["u"], seen["v"]]), expected) < 1e-8
    assert off(seen["mass"], np.mean(expected, axis=1)) < 1e-8
    assert seen["energy"].shape == (2,)


def test_a_pattern_in_two_dimensions_keeps_the_symmetry_of_its_start():
    pde = pdes.GrayScott(cfd.Grid((24, 24), 0.6), 1.0)
    x, y = pde.points()
    bump = np.exp(-((x - 0.3) ** 2 + (y - 0.3) ** 2) / 0.01)
    params = dict(diffusivity_u=8e-5, diffusivity_v=4e-5, feed=0.04, kill=0.06)
    seen = run(pde, params, 100.0, ("u", "v"), u=1 - 0.5 * bump, v=0.25 * bump)
    assert off(seen["v"], np.transpose(seen["v"])) < 1e-13
    assert off(seen["v"][1:], seen["v"][:0:-1]) < 1e-13
    assert 0.1 < float(jnp.max(seen["v"])) < 0.6


# Gradients


class Case(NamedTuple):
    pde: Any
    params: dict[str, Any]


LITTLE = cfd.Grid((10,), 6.0)
CASES = {
    "heat": Case(pdes.Heat(LITTLE, 0.1, sides="fixed"), {"diffusivity": 0.3}),
    "advection": Case(
        pdes.AdvectionDiffusion(cfd.Grid((6, 5)), 0.1),
        {"velocity": np.array([0.3, -0.7]), "diffusivity": 0.1},
    ),
    **{
        f"burgers {m}": Case(pdes.Burgers(LITTLE, 0.1, method=m), {"viscosity": 0.2})
        for m in METHODS
    },
    "kuramoto": Case(pdes.KuramotoSivashinsky(LITTLE, 0.1), {"growth": 1.0, "damping": 0.5}),
    "fisher": Case(pdes.FisherKPP(LITTLE, 0.1), {"diffusivity": 0.3, "growth": 0.8}),
    "gray_scott": Case(
        pdes.GrayScott(LITTLE, 0.1, method="etdrk2"),
        dict(diffusivity_u=0.2, diffusivity_v=0.1, feed=0.3, kill=0.2),
    ),
    "reaction": Case(
        pdes.ReactionDiffusion(
            LITTLE,
            0.1,
            lambda p, a, b: (p["rate"] * b - a * b, a - b**2),
            names=("a", "b"),
            needs=("rate",),
            method="etdrk2",
        ),
        {"diffusivity": np.array([0.2, 0.1]), "rate": 0.7},
    ),
}


def begin(name):
    pde, params = CASES[name]
    rng = np.random.default_rng(5)
    start = {field: 0.5 * rng.standard_normal(pde.grid.shape) for field in pde.names()}
    return jax.tree.map(jnp.asarray, (params, start))


def loss_of(name, adjoint):
    """Of parameters and first fields: every number of the last fields and every save counts."""
    pde = CASES[name].pde

    def loss(params, start):
        state = pde.init(params, KEY, **start)
        schedule, names = ds.Schedule(steps=6, save_every=2), (*pde.names(), "energy")
        sol = ds.solve(pde, params, state, schedule=schedule, adjoint=adjoint, observables=names)
        weights = np.random.default_rng(3).standard_normal(pde.grid.shape)
        last = sum(jnp.sum(weights * sol.observables[field][-1]) for field in pde.names())
        return last + jnp.sum(sol.observables["energy"])

    return loss


@functools.cache
def gradient(name, adjoint):
    return jax.jit(jax.grad(loss_of(name, adjoint), argnums=(0, 1)))(*begin(name))


QUICK = ("advection", "burgers etdrk4")


@pytest.mark.parametrize("name", slow_but(QUICK, CASES))
def test_gradients_are_those_of_finite_differences(name):
    at = begin(name)
    loss, slopes = jax.jit(loss_of(name, ds.Direct())), gradient(name, ds.Direct())
    rng = np.random.default_rng(7)
    leaves, tree = jax.tree.flatten(at)
    for i, slope in enumerate(jax.tree.leaves(slopes)):
        along = rng.standard_normal(slope.shape)

        def moved(step, i=i, along=along):
            parts = [x + step * along if i == j else x for j, x in enumerate(leaves)]
            return loss(*tree.unflatten(parts))

        difference = float(moved(1e-5) - moved(-1e-5)) / 2e-5
        assert np.vdot(slope, along) == pytest.approx(difference, rel=1e-6, abs=1e-9), i


@pytest.mark.parametrize("name", slow_but(QUICK[1:], (*QUICK, "gray_scott")))
def test_adjoints_agree(name):
    direct, checkpointed = gradient(name, ds.Direct()), gradient(name, ds.RecursiveCheckpoint(2))
    for a, b in zip(*map(jax.tree.leaves, (direct, checkpointed)), strict=True):
        assert off(a, b) < 1e-12
    pushed = jax.jit(jax.jacfwd(loss_of(name, ds.ForwardMode())))(*begin(name))
    for key, value in pushed.items():
        assert off(value, direct[0][key]) < 1e-11, key


# Transformations, precision, failure


def test_a_batch_is_its_members():
    pde, viscosities = CASES["burgers etdrk4"].pde, jnp.array([0.1, 0.3])
    starts = jnp.asarray(np.random.default_rng(0).standard_normal((2, 10)))

    def one(viscosity, u):
        return solved(pde, {"viscosity": viscosity}, {"u": u}, ds.Schedule(steps=5)).observables

    batch = jax.vmap(one)(viscosities, starts)
    for i in (0, 1):
        single = one(viscosities[i], starts[i])
        assert all(off(batch[name][i], single[name]) < 1e-14 for name in single)


@pytest.mark.parametrize("name", ["advection", "gray_scott"])
def test_single_precision_stays_single(name):
    params, start = begin(name)
    short = {field: x.astype(jnp.float32) for field, x in start.items()}
    found = solved(CASES[name].pde, params, short, ds.Schedule(steps=10))
    kinds = {str(x.dtype) for x in jax.tree.leaves((found.state, found.observables))}
    assert kinds == {"float32"}
    double = solved(CASES[name].pde, params, start, ds.Schedule(steps=10))
    assert off(found.state.spectrum, double.state.spectrum) < 1e-5


def test_what_blows_up_is_reported():
    pde = pdes.ReactionDiffusion(LITTLE, 0.5, lambda params, u: u**3)
    start, params = {"u": jnp.full(10, 2.0)}, {"diffusivity": jnp.asarray(0.1)}
    sol = solved(pde, params, start, ds.Schedule(steps=30), ("mass",))
    assert sol.result == ds.RESULTS.nonfinite
    assert 1 < sol.first_bad_step < 30


U = np.zeros(10)
BURGERS, GRAY_SCOTT = functools.partial(pdes.Burgers, dt=0.1), CASES["gray_scott"]
WRONG = {
    "axes": (lambda: pdes.Burgers(cfd.Grid((8, 8)), 0.1), {}, {}, "a grid of one axis"),
    "step": (lambda: pdes.Heat(LITTLE, 0.0), {}, {}, "dt: must be positive"),
    "method": (lambda: pdes.FisherKPP(LITTLE, 0.1, method="rk4"), {}, {}, "method: unknown"),
    "sides": (lambda: pdes.Heat(LITTLE, 0.1, sides="wall"), {}, {}, "allowed: periodic, insulated"),
    "entries": (lambda: pdes.Heat(LITTLE, 0.1, sides=("fixed",) * 2), {}, {}, "needs 1 entries"),
    "names": (
        lambda: pdes.ReactionDiffusion(LITTLE, 0.1, lambda p, u: u, names=("u", "mass")),
        {},
        {},
        "must differ",
    ),
    "parameter": (lambda: BURGERS(LITTLE), {"nu": 0.1}, {"u": U}, "viscosity: missing parameter"),
    "sign": (lambda: BURGERS(LITTLE), {"viscosity": -1.0}, {"u": U}, "must not be negative"),
    "infinite": (lambda: BURGERS(LITTLE), {"viscosity": np.inf}, {"u": U}, "must be finite"),
    "field": (lambda: BURGERS(LITTLE), {"viscosity": 0.1}, {"v": U}, "v: no such field"),
    "missing": (lambda: GRAY_SCOTT.pde, GRAY_SCOTT.params, {"u": U}, "v: missing condition"),
    "shape": (lambda: BURGERS(LITTLE), {"viscosity": 0.1}, {"u": U[1:]}, "needs shape"),
    "nan": (lambda: BURGERS(LITTLE), {"viscosity": 0.1}, {"u": U + np.nan}, "u: must be finite"),
    "velocity": (
        lambda: pdes.AdvectionDiffusion(LITTLE, 0.1),
        {"velocity": np.zeros(2), "diffusivity": 0.1},
        {"u": U},
        "velocity: needs 1 components",
    ),
    "diffusivity": (
        lambda: CASES["reaction"].pde,
        {"diffusivity": np.zeros(3), "rate": 0.1},
        {"a": U, "b": U},
        "diffusivity: needs 2 components",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_input_is_refused_before_anything_is_traced(name):
    build, params, start, message = WRONG[name]

    def begin():
        pde = build()
        pde.init(params, KEY, **start)

    with pytest.raises(ds.ConfigError, match=message):
        begin()


def test_a_reaction_must_return_a_rate_for_each_field():
    pde = pdes.ReactionDiffusion(LITTLE, 0.1, lambda p, u, v: (u,), names=("u", "v"))
    params = {"diffusivity": 0.1}
    state = pde.init(params, KEY, u=U, v=U)
    with pytest.raises(ds.ConfigError, match="must return 2 rates"):
        pde.step(params, state)

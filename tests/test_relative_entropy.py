"""Relative entropy: gradients and minima that are known exactly, alone and beside other targets."""

import dataclasses
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffsim as ds
from diffsim import ConfigError, md
from diffsim._fit._evaluate import Evaluator, loss_and_gradient
from problems import slow_but

A, S = 0.7, 0.8  # of the reference
SAVES, FRAMES = 4000, 3000


class Well(ds.AbstractEquilibrium):
    """Independent draws from a harmonic well, u = (x - a)²/(2 s²)."""

    def init(self, params, key, x=0.0, **conditions):
        return {"x": jnp.asarray(x, float), "key": key, "count": jnp.asarray(0)}

    def step(self, params, state):
        xi = jax.random.normal(jax.random.fold_in(state["key"], state["count"]))
        return {**state, "x": params["a"] + params["s"] * xi, "count": state["count"] + 1}

    def observe(self, params, state):
        return {"x": state["x"], "x2": state["x"] ** 2}

    def reduced_energy(self, params, state):
        return (state["x"] - params["a"]) ** 2 / (2 * params["s"] ** 2)


def frames(seed: int = 7) -> np.ndarray:
    """Configurations of the reference, their mean and variance exactly those of it."""
    x = np.random.default_rng(seed).normal(size=FRAMES)
    return A + S * (x - x.mean()) / x.std()


def well(a: float, s: float, *targets: Any, batch: int = 1, **options: Any) -> ds.Problem:
    reference = ds.Configurations(x=np.tile(frames(), (batch, 1)))
    start = {"x": np.zeros(batch)}
    parameters = {"a": ds.Parameter(a), "s": ds.Parameter(s, transform="positive")}
    entropy = ds.RelativeEntropy(reference, **options)
    schedule = ds.Schedule(steps=2 * SAVES, save_every=2)
    return ds.Problem(Well(), parameters, (*targets, entropy), schedule, start)


def evaluator(problem: ds.Problem, seed: int = 0) -> Evaluator:
    return Evaluator(problem, ds.Reweight(), jax.random.key(seed), loss_and_gradient)


def exact(a: float, s: float) -> tuple[float, np.ndarray]:
    """S_rel between normal distributions, and its slopes in a and ln s."""
    off = (S**2 + (A - a) ** 2) / s**2
    return math.log(s / S) + off / 2 - 0.5, np.array([(a - A) / s**2, 1 - off])


@pytest.mark.parametrize(("a", "s"), [(0.7, 0.8), (0.3, 0.9), (1.2, 0.6)])
def test_the_gradient_is_the_closed_form(a: float, s: float):
    """∇S = ⟨∂u/∂θ⟩_ref - ⟨∂u/∂θ⟩_θ, within four errors of the model's average."""
    at = evaluator(well(a, s))
    _, gradient, prediction, _ = at.at(at.start, np.ones(1))
    assert at.samples is not None
    x = np.asarray(at.samples.states["x"])[0]
    slopes = np.stack([-(x - a) / s**2, -((x - a) ** 2) / s**2])  # ∂u/∂a, ∂u/∂ln s
    reference = np.stack([-(frames() - a) / s**2, -((frames() - a) ** 2) / s**2])
    identity = reference.mean(axis=1) - slopes.mean(axis=1)
    np.testing.assert_allclose(gradient, identity, rtol=1e-9, atol=1e-12)
    error = slopes.std(axis=1) / math.sqrt(SAVES)
    assert np.all(np.abs(np.asarray(gradient) - exact(a, s)[1]) < 4 * error)
    assert prediction.solution.stats["free_energy"] == pytest.approx(0, abs=1e-12)


def test_values_differ_as_the_closed_form_says():
    """S(θ) - S(θ₀), from samples of θ₀ alone, and their slope by finite differences."""
    problem = well(0.5, 0.9)
    at = evaluator(problem)
    first = float(at.at(at.start, np.ones(1))[0])
    for a, s in ((0.6, 0.85), (0.4, 1.0)):
        z = jnp.asarray([a, math.log(s)])
        value, gradient, prediction, facts = at.at(z, np.ones(1))
        assert not facts["resampled"]
        weights = np.asarray(prediction.solution.stats["weights"])
        error = weights.std() / math.sqrt(SAVES)  # of ⟨exp(-Δu)⟩, relative
        assert abs(value - first - exact(a, s)[0] + exact(0.5, 0.9)[0]) < 4 * error
        for k in range(2):
            h = 1e-5 * np.eye(2)[k]
            rise = at.at(z + h, np.ones(1))[0] - at.at(z - h, np.ones(1))[0]
            assert gradient[k] == pytest.approx(float(rise) / 2e-5, rel=1e-6)


def test_the_second_derivative_is_the_covariance():
    """∂²S/∂a² = Var(∂u/∂a) = 1/s² where u is linear in a apart from a², which has no x."""
    at = evaluator(well(A, S))
    at.at(at.start, np.ones(1))
    run = at.run(np.ones(1), at.start)
    curvature = jax.jit(jax.jacfwd(jax.jacfwd(lambda z: run.loss(at.unravel(z))[0])))(at.start)
    assert at.samples is not None
    x = np.asarray(at.samples.states["x"])[0]
    assert curvature[0, 0] == pytest.approx(1 / S**2 - (1 / S**2 - x.var() / S**4), rel=1e-9)
    assert abs(float(curvature[0, 0]) * S**2 - 1) < 4 * math.sqrt(2 / SAVES)


def test_the_minimum_is_at_the_true_parameters():
    """From far, with samples drawn anew on the way; errors are those of reference and model."""
    problem = well(-0.8, 0.6, weight=float(FRAMES))
    options: dict[str, Any] = {"uncertainty": "laplace", "steps": 60, "explore": 0.5}
    found = ds.fit(problem, adjoint=ds.Reweight(), **options)
    assert found.converged
    assert sum(record["resampled"] for record in found.history) > 2
    u = found.uncertainty
    assert u is not None
    expected = {"a": S, "s": S / math.sqrt(2)}  # times 1/√n
    for name, true in (("a", A), ("s", S)):
        assert u.model[name] == pytest.approx(expected[name] / math.sqrt(FRAMES), rel=0.1)
        assert u.statistical[name] == pytest.approx(expected[name] / math.sqrt(SAVES), rel=0.35)
        assert abs(float(found.values[name]) - true) < 4 * u.statistical[name]


def test_it_adds_to_the_loss_of_other_targets():
    """A measured ⟨x⟩ that contradicts the reference: the minimum is the weighted mean."""
    other, sigma, weight = 1.1, 0.04, 500.0
    problem = well(0.6, S, ds.Target("x", [other], sigma), weight=weight)
    fixed = dataclasses.replace(problem.parameters["s"], fixed=True)
    problem = dataclasses.replace(problem, parameters={**problem.parameters, "s": fixed})
    found = ds.fit(problem, adjoint=ds.Reweight(), steps=40)
    ours, theirs = weight / S**2, 1 / sigma**2
    mean = (ours * A + theirs * other) / (ours + theirs)
    assert abs(float(found.values["a"]) - mean) < 4 * S / math.sqrt(SAVES)
    assert len(found.residuals) == 1


@pytest.mark.slow  # to compile
def test_the_audit_finds_nothing():
    """Taylor remainder and central differences of a loss with a target and an entropy."""
    problem = well(0.5, 0.9, ds.Target("x2", [1.2], 0.1), weight=20.0)
    assert ds.audit(problem, adjoint=ds.Reweight()).verdict == "pass"


def test_conditions_count_as_they_are_used():
    """Of two conditions one, and rows by themselves, have that one's share."""
    problem = well(0.3, 0.9, batch=2)
    at = evaluator(problem)
    both = float(at.at(at.start, np.ones(2))[0])
    parts = [float(at.at(at.start, np.eye(2)[k])[0]) for k in range(2)]
    assert both == pytest.approx(sum(parts), rel=1e-12)
    one = problem.rows(np.asarray([1]))
    assert one.batch == 1 and one.entropies[0].reference.batch == 1
    assert problem.data_points == 2


# What is refused, before anything is traced.


def test_a_simulation_without_an_equilibrium_is_refused():
    reference = ds.Configurations(x=np.zeros((1, 5)))
    sim = ds.FunctionSimulation(lambda params, state: state)
    with pytest.raises(ConfigError, match="needs an AbstractEquilibrium and FunctionSimulation"):
        ds.Problem(sim, {}, [ds.RelativeEntropy(reference)], ds.Schedule(steps=1))


def test_other_adjoints_and_least_squares_are_refused():
    problem = well(A, S)
    with pytest.raises(ConfigError, match="made of samples, which Direct has none of"):
        ds.fit(problem, adjoint=ds.Direct())
    with pytest.raises(ConfigError, match="no sum of squares"):
        ds.least_squares(problem, adjoint=ds.Reweight())
    with pytest.raises(ConfigError, match="made of samples"):
        ds.posterior(problem)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: ds.Configurations(x=np.zeros(5)), "two leading axes"),
        (lambda: ds.Configurations(x=np.full((1, 5), np.nan)), "finite"),
        (lambda: well(A, S, weight=-1.0), "must not be negative"),
        (lambda: well(A, S, batch=2).entropies[0].check(Well(), 3), "2 rows for 3 conditions"),
        (lambda: ds.Configurations(y=np.zeros((1, 5))).check(fluid(2.0)), "no such"),
        (lambda: md.PairStatistics([0.1, 0.3, 0.7], np.ones(3)), "equal width"),
        (lambda: md.PairStatistics([0.1, 0.3, 0.5], -np.ones(3)), "negative"),
        (lambda: md.PairStatistics([0.1, 0.3, 0.5], np.ones(4)), "shape"),
        (lambda: md.PairStatistics([0.1, 0.3], np.ones(2)).check(fluid(2.0)), "last bin"),
        (lambda: md.PairStatistics([0.1, 0.3], np.ones(2)).check(Well()), "one g"),
    ],
)
def test_what_does_not_fit_is_refused(make, match):
    with pytest.raises(ConfigError, match=match):
        make()


# Molecular dynamics: a table of pair energies, and the pairs of a liquid.


def fluid(cutoff: float, truncation: str = "shift", **options: Any) -> md.NVT:
    law: Any = md.Tabulated(12, 0.8, cutoff, closed=True)
    pair = md.Pair(law, cutoff, truncation, path="dense")  # pyright: ignore
    return md.NVT(pair, dt=0.005, friction=1.0, **options)


def curve(r: np.ndarray) -> np.ndarray:
    return 4 * (0.95 / r) ** 9 - 3 * (0.95 / r) ** 6


@pytest.fixture(scope="module")
def configurations() -> dict[str, Any]:
    """Frames of 32 atoms that are not equilibrium of anything, and their pair statistics."""
    points = md.state_points(atoms=32, temperature=[1.3], density=[0.35])
    noise = np.random.default_rng(3).normal(size=(6, 32, 3))
    frames = points["positions"][0] + 0.12 * noise
    box = points["box"][0]
    g = [md.radial_distribution(x, box, bins=400, r_max=2.2) for x in frames]
    r, g = np.asarray(g[0][0]), np.mean([np.asarray(each[1]) for each in g], axis=0)
    return {"points": points, "frames": frames[None], "r": r, "g": g}


@pytest.mark.parametrize(
    "truncation", slow_but(["force_shift"], ["cut", "shift", "force_shift", "switch"])
)
def test_features_of_a_table_tell_all_energies(configurations, truncation):
    sim = fluid(2.2, truncation)
    x, box = configurations["frames"][0, 0], configurations["points"]["box"][0]
    law: Any = sim.potential.law  # pyright: ignore
    params = {"values": jnp.asarray(curve(law.distances[:-1]))}
    kept = jax.jit(sim.potential.features)(x, box)
    found = sim.potential.thermo(params, x, box, features=kept)
    for one, other in zip(
        *map(jax.tree.leaves, (found, sim.potential.thermo(params, x, box))), strict=True
    ):
        assert one == pytest.approx(float(other), rel=1e-10)


def test_a_closed_table_ends_at_zero():
    law = md.Tabulated(8, 1.0, 2.4, closed=True)
    params = {"values": jnp.arange(7.0)}
    assert law.energy(law.prepare(params), jnp.asarray(2.4)) == pytest.approx(0, abs=1e-14)
    np.testing.assert_array_equal(law.at_knots(params), [*range(7), 0])
    with pytest.raises(ConfigError, match="7 numbers"):
        law.check({"values": np.zeros(8)}, 2.4)


def test_pair_statistics_stand_for_the_configurations(configurations):
    """⟨u_θ⟩ and its gradient from g(r) alone and from the frames behind it."""
    sim, points = fluid(2.2), configurations["points"]
    law: Any = sim.potential.law  # pyright: ignore
    values = jnp.asarray(curve(law.distances[:-1]))
    given = {name: x[0] for name, x in points.items()}
    state = sim.init({"values": values}, jax.random.key(0), **given)
    whole = ds.Configurations(positions=configurations["frames"])
    pairs = md.PairStatistics(configurations["r"], configurations["g"])
    whole.check(sim)
    pairs.check(sim)

    def mean(values, reference):
        one = jax.tree.map(lambda x: jnp.asarray(x[0]), reference)
        return one.reduced_energy(sim, {"values": values}, state, given)

    slopes = [eqx.filter_jit(jax.value_and_grad(mean))(values, each) for each in (whole, pairs)]
    assert slopes[1][0] == pytest.approx(float(slopes[0][0]), rel=2e-3)
    np.testing.assert_allclose(slopes[1][1], slopes[0][1], atol=2e-3 * np.abs(slopes[0][1]).max())

"""Likelihoods, transforms and fits of problems whose answers are known in closed form."""

import contextlib
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimistix
import pytest
from scipy import stats

import diffsim as ds
from diffsim import HalfNormal, LogNormal, Normal, Parameter, Problem, Schedule, Target
from problems import slow_but

SAVES = 6
TIMES = 0.5 * np.arange(1, SAVES + 1)
RNG = np.random.default_rng(5)


def line(params, state):
    return state + params["slope"] * 0.5


def simulation(**options):
    """y(t) = offset + slope t, by steps of 1/2."""
    init = lambda params, key: jnp.asarray(params["offset"]) + 0.0  # noqa: E731
    return ds.FunctionSimulation(line, lambda p, y: {"y": y}, init, dt=0.5, **options)


DATA = 1.0 + 2.0 * TIMES + 0.1 * RNG.standard_normal(SAVES)
MASK = np.array([[True, True, False, True, False, True]])
PRIORS = {"slope": Normal(1.5, 0.7), "offset": Normal(0.0, 2.0)}


def problem(target=None, transform=None, **parameters):
    target = target or Target("y", DATA[None], 0.1, statistic="each")
    found = {k: Parameter(1.0, prior=PRIORS[k], transform=transform) for k in PRIORS}
    return Problem(simulation(), found | parameters, [target], Schedule(ts=TIMES))


def predicted(given, **values):
    given = given.starting_at(values)
    theta = given.initial()
    return given, theta, given.predict(theta, given.states(theta, jax.random.key(0)))


def mean_at(values):
    return values["offset"] + values["slope"] * TIMES


def normal(values, sigma):
    return stats.norm.logpdf(DATA, mean_at(values), sigma)


def lognormal(values, sigma):
    return stats.lognorm.logpdf(DATA, s=sigma, scale=mean_at(values))


POSITIVE = Parameter(0.3, transform="positive", prior=LogNormal(-1.0, 1.0))
EACH: dict[str, Any] = {"statistic": "each"}
LIKELIHOODS = {
    "normal": (Target("y", DATA[None], 0.1, **EACH), lambda v: normal(v, 0.1).sum()),
    "weighted": (
        Target("y", DATA[None], 0.1, weight=4.0, **EACH),
        lambda v: normal(v, 0.05).sum(),
    ),
    "of no weight": (Target("y", DATA[None], 0.1, weight=0.0, **EACH), lambda v: 0.0),
    "a sigma each": (
        Target("y", DATA[None], 0.1 + TIMES[None], **EACH),
        lambda v: normal(v, 0.1 + TIMES).sum(),
    ),
    "lognormal": (
        Target("y", DATA[None], 0.2, noise="lognormal", **EACH),
        lambda v: lognormal(v, 0.2).sum(),
    ),
    "sigma a parameter": (
        Target("y", DATA[None], "noise", **EACH),
        lambda v: normal(v, v["noise"]).sum(),
    ),
    "lognormal, sigma a parameter": (
        Target("y", DATA[None], "noise", noise="lognormal", **EACH),
        lambda v: lognormal(v, v["noise"]).sum(),
    ),
    "masked": (
        Target("y", np.where(MASK, DATA, np.nan), "noise", mask=MASK, **EACH),
        lambda v: normal(v, v["noise"])[MASK[0]].sum(),
    ),
    "an average": (
        Target("y", [3.0], "noise"),
        lambda v: stats.norm.logpdf(3.0, mean_at(v).mean(), v["noise"]),
    ),
}
PLACES = ({"slope": 2.1, "offset": 0.7, "noise": 0.2}, {"slope": 1.4, "offset": 1.6, "noise": 0.5})


@pytest.mark.parametrize("kind", LIKELIHOODS)
def test_likelihoods_are_normalised_and_the_loss_is_the_posterior(kind):
    target, expected = LIKELIHOODS[kind]
    gap = []
    for values in PLACES:
        given, theta, prediction = predicted(problem(target, noise=POSITIVE), **values)
        found = float(given.log_likelihood(theta, prediction))
        assert found == pytest.approx(expected(values), rel=1e-12, abs=1e-12)
        prior = sum(stats.norm.logpdf(values[k], p.loc, p.scale) for k, p in PRIORS.items())
        prior += stats.lognorm.logpdf(values["noise"], s=1.0, scale=math.exp(-1))
        assert float(given.log_prior(theta)) == pytest.approx(prior, rel=1e-12)
        gap.append(float(given.loss(theta, prediction)) + found + prior)
    assert gap[0] == pytest.approx(gap[1], abs=1e-10)  # a constant


def test_what_cannot_be_is_far_off_and_finite():
    target = Target("y", DATA[None], 0.2, noise="lognormal", statistic="each")
    given, theta, prediction = predicted(problem(target), slope=-9.0, offset=1.0)
    assert 1e5 < float(given.loss(theta, prediction)) < math.inf


def test_noise_stays_with_the_measurement():
    """The simulation gets its own parameters; a noise has the unit of its target."""
    noise = Parameter(5.0, unit="cm", transform="positive")
    target = Target("y", 100 * DATA[None], "noise", unit="mm", statistic="each")
    given = Problem(
        simulation(unit_names={"y": "m"}),
        {k: Parameter(1.0) for k in PRIORS} | {"noise": noise},
        [target],
        Schedule(ts=TIMES),
    )
    theta = given.initial()
    assert set(given.params(theta)) == {"slope", "offset"}
    assert float(given.sigmas(theta)[0]) == pytest.approx(50.0)
    assert given.noises == given.free_noises == ("noise",)


TRANSFORMS = {
    None: np.array([-2.0, 0.5]),
    "positive": np.array([0.02, 3.0]),
    (-1.0, 4.0): np.array([-0.9, 2.0]),
    "simplex": np.array([0.1, 0.2, 0.3, 0.4]),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transforms(transform):
    """There and back, within bounds wherever z is, and the volume that the Jacobian has."""
    parameter = Parameter(TRANSFORMS[transform], transform=transform)
    z = parameter.unconstrained()
    np.testing.assert_allclose(parameter.constrain(z), TRANSFORMS[transform], rtol=1e-12)
    jacobian = np.asarray(jax.jacfwd(parameter.constrain)(z))[: z.size]
    assert float(parameter.log_det(z)) == pytest.approx(np.linalg.slogdet(jacobian)[1], abs=1e-10)
    far = Parameter(parameter.constrain(z + 20), transform=transform)  # accepted as a start
    assert np.all(np.isfinite(far.unconstrained()))


def test_shares_sum_to_one_and_none_is_singled_out():
    middle = Parameter([0.25] * 4, transform="simplex")
    np.testing.assert_allclose(middle.unconstrained(), 0, atol=1e-12)
    x = Parameter(TRANSFORMS["simplex"], transform="simplex").constrain(jnp.asarray([3.0, -2, 0.5]))
    assert float(x.sum()) == pytest.approx(1) and bool(jnp.all(x > 0))


PRIOR_TABLE = {
    "normal": (Normal(1.0, 0.5), stats.norm(1.0, 0.5)),
    "half normal": (HalfNormal(0.5), stats.halfnorm(scale=0.5)),
    "lognormal": (LogNormal(0.3, 0.5), stats.lognorm(s=0.5, scale=math.exp(0.3))),
}


@pytest.mark.parametrize("name", PRIOR_TABLE)
def test_priors(name):
    prior, exact = PRIOR_TABLE[name]
    assert float(prior.log_prob(0.7)) == pytest.approx(exact.logpdf(0.7), rel=1e-12)


REFUSALS = {
    "unknown sigma": (lambda: problem(Target("y", DATA[None], "nois", **EACH)), "sigma", "slope"),
    "sigma without a bound": (
        lambda: problem(Target("y", DATA[None], "noise", **EACH), noise=Parameter(0.3)),
        "transform",
        "positive",
    ),
    "negative lognormal data": (
        lambda: Target("y", [-1.0], noise="lognormal"),
        "data",
        "positive where",
    ),
    "unknown noise": (lambda: Target("y", [1.0], noise="poisson"), "noise", "lognormal"),
    "not a number": (lambda: Target("y", [math.nan]), "data", "mask="),
    "measured and not a number": (
        lambda: Target("y", [math.nan], mask=[True]),
        "data",
        "must be finite",
    ),
    "a mask of another shape": (
        lambda: Target("y", [1.0, 2.0], mask=[True]),
        "mask",
        "has shape (1,)",
    ),
    "shares beyond one": (lambda: Parameter([0.5, 0.6], transform="simplex"), "init", "sum is 1"),
    "one share": (lambda: Parameter(1.0, transform="simplex"), "init", "at least two"),
    "an empty interval": (lambda: Parameter(1.0, transform=(2.0, 0.0)), "transform", "increase"),
    "outside the interval": (lambda: Parameter(3.0, transform=(0.0, 2.0)), "init", "inside"),
    "squares of a free sigma": (
        lambda: ds.least_squares(problem(Target("y", DATA[None], "n", **EACH), n=POSITIVE)),
        "parameters.n",
        "diffsim.posterior",
    ),
    "another method": (
        lambda: ds.least_squares(problem(), method=optax.adam(0.1)),
        "method",
        "Levenberg",
    ),
    "another uncertainty": (
        lambda: ds.fit(problem(), uncertainty="exact"),  # pyright: ignore[reportArgumentType]
        "uncertainty",
        "laplace",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(case):
    import problems

    make, key, says = REFUSALS[case]
    loose = problems.unchecked() if case == "another uncertainty" else contextlib.nullcontext()
    with loose, pytest.raises(ds.ConfigError) as error:
        make()
    assert key in str(error.value) and says in str(error.value)


def exact() -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of (offset, slope), ordered by name, for sigma 0.1 and the priors."""
    design = np.stack([np.ones(SAVES), TIMES], axis=1) / 0.1
    precision = design.T @ design + np.diag([1 / 2.0**2, 1 / 0.7**2])
    covariance = np.linalg.inv(precision)
    right = design.T @ (DATA / 0.1) + np.array([0.0, 1.5 / 0.7**2])
    return covariance @ right, covariance


ADJOINTS = (ds.Direct(), ds.RecursiveCheckpoint(), ds.ForwardMode())
OPTIMISERS = {
    "adam with a cosine schedule": (optax.adam(optax.cosine_decay_schedule(0.3, 400)), 400, 1e-3),
    "clipped adam": (
        optax.chain(
            optax.clip_by_global_norm(1.0), optax.adam(optax.exponential_decay(0.1, 100, 0.5))
        ),
        500,
        1e-3,
    ),
    "lbfgs": (optax.lbfgs(), 40, 1e-6),
}


@pytest.mark.parametrize("name", slow_but(["lbfgs"], OPTIMISERS))
def test_optimisers(name):
    optimiser, steps, atol = OPTIMISERS[name]
    result = ds.fit(problem(), optimiser, steps=steps, tol=1e-9)
    mean, _ = exact()
    np.testing.assert_allclose([result.values[k] for k in sorted(PRIORS)], mean, atol=atol)
    losses = [record["loss"] for record in result.history]
    assert min(losses) == result.loss < losses[0]


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=lambda a: type(a).__name__)
def test_laplace_of_a_linear_model_is_exact(adjoint):
    """By forward over forward, and by differences of the gradient where there is no other way."""
    result = ds.fit(problem(), steps=40, tol=1e-9, adjoint=adjoint, uncertainty="laplace")
    mean, covariance = exact()
    np.testing.assert_allclose([result.values[k] for k in sorted(PRIORS)], mean, atol=1e-6)
    assert result.uncertainty is not None
    np.testing.assert_allclose(result.uncertainty.covariance, covariance, rtol=1e-5, atol=1e-9)
    assert result.stderr("slope") == pytest.approx(math.sqrt(covariance[1, 1]), rel=1e-5)


def test_laplace_in_the_parameters_own_units():
    """The error of a positive parameter is that of its logarithm times its value."""
    result = ds.fit(problem(transform="positive"), steps=60, tol=1e-9, uncertainty="laplace")
    _, covariance = exact()
    assert result.stderr("slope") == pytest.approx(math.sqrt(covariance[1, 1]), rel=1e-4)
    assert result.stderr("offset") == pytest.approx(math.sqrt(covariance[0, 0]), rel=1e-4)


SOLVERS = {
    "ours": None,
    "LevenbergMarquardt": optimistix.LevenbergMarquardt(1e-10, 1e-10),
    "GaussNewton": optimistix.GaussNewton(1e-10, 1e-10),
    "Dogleg": optimistix.Dogleg(1e-10, 1e-10),
}


BY_NAME = {type(adjoint).__name__: adjoint for adjoint in ADJOINTS}
TOGETHER = [(name, adjoint) for name in SOLVERS for adjoint in BY_NAME]


@pytest.mark.parametrize(("name", "adjoint"), slow_but(TOGETHER[::4] + TOGETHER[9:10], TOGETHER))
def test_every_solver_of_least_squares_goes_with_every_adjoint(name, adjoint):
    result = ds.least_squares(
        problem(transform="positive"), method=SOLVERS[name], adjoint=BY_NAME[adjoint], steps=60
    )
    mean, covariance = exact()
    np.testing.assert_allclose([result.values[k] for k in sorted(PRIORS)], mean, atol=1e-6)
    assert result.converged
    residuals = np.asarray(result.residuals)
    scale = math.sqrt(float(residuals @ residuals) / (len(residuals) - 2))
    assert result.stderr("slope") == pytest.approx(scale * math.sqrt(covariance[1, 1]), rel=1e-3)

"""Posteriors that are known: in closed form, by quadrature, and from the literature."""

import functools
import math
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffsim as ds
from conftest import CHECKOUT
from diffsim import NUTS, SVI, Laplace, LogNormal, Normal, Parameter, Problem, Schedule, Target
from diffsim._fit._density import Density
from diffsim._fit._diagnostics import bulk_ess, split_rhat
from diffsim._fit._posterior import _fault
from diffsim._report import Console, write_report
from diffsim._store import RunDirectory
from diffsim._store.draws import read_draws
from problems import slow_but

pytest.importorskip("numpyro")

RNG = np.random.default_rng(3)
X = np.linspace(-1.0, 2.0, 12)
Y = 0.5 + 1.3 * X + 0.4 * RNG.standard_normal(12)
FIRST = Schedule(steps=1)


def function(observe, **options):
    """A simulation that is one evaluation: its state is what `observe` makes of the parameters."""
    return ds.FunctionSimulation(
        lambda p, state: state, lambda p, state: observe(p), lambda p, key: jnp.zeros(()), **options
    )


def line():
    """Y = a + b X with noise of 0.4 and normal priors: a normal posterior."""
    return Problem(
        function(lambda p: {"y": p["a"] + p["b"] * X}),
        {
            "a": Parameter(0.0, prior=Normal(0.0, 1.0)),
            "b": Parameter(0.0, prior=Normal(1.0, 0.5)),
        },
        [Target("y", Y[None], 0.4)],
        FIRST,
    )


def line_exactly():
    design = np.stack([np.ones(12), X], axis=1) / 0.4
    covariance = np.linalg.inv(design.T @ design + np.diag([1.0, 1 / 0.5**2]))
    return covariance @ (design.T @ (Y / 0.4) + np.array([0.0, 1 / 0.5**2])), covariance


SHORT = functools.partial(NUTS, warmup=200, draws=400, chains=4)
METHODS = {
    "NUTS of numpyro": SHORT(),
    "NUTS of blackjax": SHORT(backend="blackjax"),
    "SVI, full": SVI(steps=600, draws=4000),
    "Laplace": Laplace(draws=4000),
}


def check(found: ds.PosteriorResult, name: str, mean: float, sd: float, slack: float = 0.0):
    """Within five standard errors of what is known, and of `slack` standard deviations."""
    ess = float(np.min(found.ess[name]))
    assert found.mean(name) == pytest.approx(mean, abs=(5 / math.sqrt(ess) + slack) * sd)
    assert found.sd(name) == pytest.approx(sd, rel=5 / math.sqrt(ess) + slack)


PARALLEL = """
import jax, numpy as np
jax.config.update("jax_enable_x64", True)
import diffsim as ds
from test_posterior import NUTS, line
assert jax.local_device_count() == 2
for backend in ("numpyro", "blackjax"):
    draws = {}
    for method in ("vectorized", "parallel"):
        nuts = NUTS(warmup=50, draws=50, chains=4, backend=backend, chain_method=method)
        draws[method] = ds.posterior(line(), nuts, starts=1).draws["a"]
    np.testing.assert_allclose(draws["vectorized"], draws["parallel"], rtol=1e-8)
try:
    NUTS(chains=3, chain_method="parallel").check()
except ds.ConfigError as error:
    assert "chains=4" in str(error), error
else:
    raise AssertionError("three chains over two devices")
"""


@pytest.mark.slow
def test_chains_in_parallel_are_the_chains_side_by_side():
    pytest.importorskip("blackjax")
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    done = subprocess.run(
        [sys.executable, "-c", PARALLEL],
        capture_output=True,
        text=True,
        env=os.environ | flags,
        cwd=CHECKOUT / "tests",
        check=False,
    )
    assert done.returncode == 0, done.stderr


@functools.cache
def sampled_line(kind="NUTS of numpyro"):
    return ds.posterior(line(), METHODS[kind], starts=1)


@pytest.mark.parametrize("kind", slow_but(("NUTS of numpyro", "Laplace"), METHODS))
def test_a_linear_model(kind):
    if "blackjax" in kind:
        pytest.importorskip("blackjax")
    found = sampled_line(kind)
    mean, covariance = line_exactly()
    slack = 0.05 if "SVI" in kind else 0.0  # the guide is fitted by noisy gradients
    for i, name in enumerate(("a", "b")):
        check(found, name, mean[i], math.sqrt(covariance[i, i]), slack)
    both = np.stack([found.draws[n].ravel() for n in ("a", "b")])
    exact = covariance[0, 1] / math.sqrt(covariance[0, 0] * covariance[1, 1])
    assert np.corrcoef(both)[0, 1] == pytest.approx(exact, abs=0.1)
    assert found.converged and not found.reason
    assert found.mode["a"] == pytest.approx(mean[0], abs=1e-4)
    assert found.quantile("a", 0.05) == found.table()[0]["q05"]


def test_predictions_have_the_models_spread_and_the_noise():
    """Var y = σ² + x Σ xᵀ."""
    mean, covariance = line_exactly()
    design = np.stack([np.ones(12), X], axis=1)
    spread = np.sqrt(np.einsum("ij,jk,ik->i", design, covariance, design))
    for noise, sd in ((False, spread), (True, np.hypot(spread, 0.4))):
        y = sampled_line().predictive(draws=1600, noise=noise)["y"]
        assert y.shape == (1600, 1, 12)
        np.testing.assert_allclose(y[:, 0].mean(axis=0), design @ mean, atol=0.15 * np.max(sd))
        np.testing.assert_allclose(y[:, 0].std(axis=0), sd, rtol=0.15)


def noisy():
    """Factors of unknown median m and scatter s, and shares of which nothing was measured."""
    distributions = pytest.importorskip("numpyro.distributions")
    data = 3.0 * np.exp(0.3 * np.random.default_rng(1).standard_normal(10))
    given = Problem(
        function(lambda p: {"x": p["m"] * jnp.ones(10), "share": p["shares"][0]}),
        {
            "m": Parameter(1.0, transform="positive", prior=LogNormal(0.0, 1.0)),
            "s": Parameter(1.0, transform=(0.0, 5.0), prior=Normal(0.0, 0.5)),
            "shares": Parameter(
                [0.3, 0.3, 0.4],
                transform="simplex",
                prior=distributions.Dirichlet(jnp.asarray(DIRICHLET)),
            ),
        },
        [Target("x", data[None], "s", noise="lognormal"), Target("share", [0.5], weight=0.0)],
        FIRST,
    )
    return given, data


DIRICHLET = np.array([2.0, 5.0, 3.0])


@functools.cache
def sampled_noise():
    return ds.posterior(noisy()[0], SHORT(), starts=2)


@pytest.mark.slow
def test_an_unknown_lognormal_noise():
    """Against quadrature over (log m, s), the prior of s a normal distribution cut off at 0."""
    _, data = noisy()
    logm, s = np.linspace(-0.5, 2.5, 601)[:, None], np.linspace(0.05, 2.0, 801)[None]
    z = (np.log(data)[:, None, None] - logm) / s
    density = -0.5 * np.sum(z**2, axis=0) - 10 * np.log(s) - 0.5 * logm**2 - 0.5 * (s / 0.5) ** 2
    weight = np.exp(density - density.max())
    weight /= weight.sum()
    for name, x in (("m", np.exp(logm)), ("s", s)):
        mean = float(np.sum(weight * x))
        sd = math.sqrt(float(np.sum(weight * (x - mean) ** 2)))
        check(sampled_noise(), name, mean, sd, slack=0.02)
    assert sampled_noise().converged


@pytest.mark.slow  # to compile
def test_shares_with_a_prior_of_dirichlets():
    """With no data the posterior is the prior: means a/Σa, Var = m(1 - m)/(Σa + 1)."""
    found, mean = sampled_noise(), DIRICHLET / DIRICHLET.sum()
    np.testing.assert_allclose(found.mean("shares"), mean, atol=0.02)
    sd = np.sqrt(mean * (1 - mean) / (DIRICHLET.sum() + 1))
    np.testing.assert_allclose(found.sd("shares"), sd, rtol=0.15)
    np.testing.assert_allclose(found.draws["shares"].sum(axis=2), 1, rtol=1e-12)
    names = [row["name"] for row in found.table()]
    assert names == ["m", "s", "shares[0]", "shares[1]", "shares[2]"]


def squares(scale=0.1):
    return Problem(
        function(lambda p: {"y": p["x"] ** 2}),
        {"x": Parameter(0.0)},
        [Target("y", [4.0], scale)],
        FIRST,
    )


@pytest.mark.slow  # to compile
def test_separate_modes_do_not_count_as_converged():
    """x² = 4 ± 0.1 has two answers, and no chain crosses between them."""
    found = ds.posterior(squares(), NUTS(warmup=100, draws=100), starts=8)
    assert {-1.0, 1.0} == set(np.unique(np.sign(found.draws["x"])))
    assert not found.converged and "R-hat of x" in found.reason


FAULTS = {
    "": (1.0, 500.0, 0.0, ""),
    "R-hat of x is 1.020": (1.02, 500.0, 0.0, ""),
    "R-hat of x is nan": (math.nan, 500.0, 0.0, ""),
    "x has 100 effective draws": (1.0, 100.0, 0.0, ""),
    "2 % of the draws diverged": (1.0, 500.0, 0.02, ""),
    "the method knows": (1.0, 500.0, 0.0, "the method knows"),
}


@pytest.mark.parametrize("says", FAULTS)
def test_what_counts_as_converged(says):
    rhat, ess, diverging, trouble = FAULTS[says]
    found = _fault({"x": np.array(rhat)}, {"x": np.array(ess)}, diverging, trouble)
    assert says in found and bool(says) == bool(found)


def autoregressive(rho, chains=4, draws=4000):
    noise = np.random.default_rng(2).standard_normal((chains, draws))
    x = np.empty_like(noise)
    x[:, 0] = noise[:, 0]
    for t in range(1, draws):
        x[:, t] = rho * x[:, t - 1] + math.sqrt(1 - rho**2) * noise[:, t]
    return x


@pytest.mark.parametrize("rho", [0.0, 0.6, 0.9, -0.5])
def test_effective_samples_of_a_known_correlation(rho):
    """N (1 - ρ)/(1 + ρ)."""
    x = autoregressive(rho)
    assert float(bulk_ess(x)) == pytest.approx(x.size * (1 - rho) / (1 + rho), rel=0.12)
    assert float(split_rhat(x)) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("wrong", ["elsewhere", "wider", "drifting"])
def test_chains_that_disagree(wrong):
    x = autoregressive(0.0, draws=500)
    if wrong == "elsewhere":
        x[0] += 1.0
    elif wrong == "wider":
        x[0] *= 3.0
    else:
        x += np.linspace(0, 1, 500)
    assert float(split_rhat(x)) > 1.02


@pytest.mark.slow  # to compile
def test_derivatives_are_taken_as_the_adjoint_can():
    """Forward by default for few parameters, in reverse where there is no other mode: the same."""
    key = jax.random.key(0)
    found = {}
    for adjoint in (None, ds.ForwardMode(), ds.RecursiveCheckpoint()):
        density = Density(line(), adjoint, key)
        assert density.forward == (not isinstance(adjoint, ds.RecursiveCheckpoint))
        target = density.whitened(density.modes(key)[0])
        u = jnp.asarray([0.3, -0.7])
        found[type(adjoint)] = np.asarray(jax.grad(target.potential)(u))
        np.testing.assert_allclose(found[type(adjoint)], u, rtol=1e-3)  # whitened: U = u²/2
    many = Problem(
        function(lambda p: {"y": p["x"]}),
        {"x": Parameter(np.zeros(101), prior=Normal(0.0, 1.0))},
        [Target("y", np.zeros((1, 101)))],
        FIRST,
    )
    assert not Density(many, None, key).forward


@pytest.mark.slow  # to compile
def test_trajectories_that_fail_have_no_density():
    """x > 1 overflows: the posterior is the prior up to there, and nothing is raised."""
    grow = ds.FunctionSimulation(
        lambda p, x: jnp.where(p["x"] > 1, jnp.inf, x), None, lambda p, key: p["x"] + 0.0
    )
    given = Problem(
        grow, {"x": Parameter(0.0, prior=Normal(0.0, 1.0))}, [Target("state", [0.0], 10.0)], FIRST
    )
    found = ds.posterior(given, SHORT(), starts=4)
    assert float(np.max(found.draws["x"])) <= 1.0
    assert found.mean("x") == pytest.approx(-0.287, abs=0.1)  # -φ(1)/Φ(1)


REFUSALS = {
    "method": (lambda: ds.posterior(line(), "nuts"), "NUTS, SVI, Laplace"),  # pyright: ignore
    "starts": (lambda: ds.posterior(line(), starts=0), "at least 1"),
    "chains": (lambda: NUTS(chains=0), "whole number"),
    "target_accept": (lambda: NUTS(target_accept=1.0), "(0, 1)"),
    "chain_method": (lambda: NUTS(chain_method="pmap"), "vectorized, parallel"),  # pyright: ignore
    "backend": (lambda: NUTS(backend="stan"), "numpyro, blackjax"),  # pyright: ignore
    "guide": (lambda: SVI(guide="flow"), "lowrank"),  # pyright: ignore
    "adjoint": (lambda: ds.posterior(line(), adjoint=ds.Reweight()), "runs the trajectory"),
    "parameters": (
        lambda: ds.posterior(
            Problem(function(lambda p: {"y": p["x"]}), {"x": Parameter(1.0, fixed=True)}, [], FIRST)
        ),
        "at least one free",
    ),
}


@pytest.mark.parametrize("key", REFUSALS)
def test_refusals(key):
    import problems

    make, says = REFUSALS[key]
    with problems.unchecked(), pytest.raises(ds.ConfigError) as error:
        make()
    assert key in str(error.value) and says in str(error.value)


def test_a_start_without_a_density_is_said():
    with pytest.raises(ds.SimulationError, match="density at the start is not finite"):
        ds.posterior(squares(1e-200), Laplace())


@pytest.mark.slow  # to compile
def test_nothing_global_changes():
    """In a fresh process at single precision: no option of jax differs after a posterior."""
    code = """
import jax, jax.numpy as jnp, numpy as np, warnings
warnings.simplefilter("error")
import diffsim as ds
sim = ds.FunctionSimulation(lambda p, s: s, lambda p, s: {"y": p["x"]}, lambda p, k: jnp.zeros(()))
x = {"x": ds.Parameter(0.5, prior=ds.Normal(0.0, 1.0))}
given = ds.Problem(sim, x, [ds.Target("y", [0.3], 0.1)], ds.Schedule(steps=1))
before = dict(jax.config.values)
found = ds.posterior(given, ds.NUTS(warmup=20, draws=20, chains=2), starts=1)
assert found.draws["x"].dtype == np.float32
after = dict(jax.config.values)
assert before == after, [k for k in after if after[k] != before.get(k)]
"""
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.slow  # to compile
def test_an_experiment_leaves_its_draws_and_figures(tmp_path):
    """Growth by a rate, seen twice: the table, the file of draws, and bands around the data."""
    grow = ds.FunctionSimulation(
        lambda p, x: x * jnp.exp(0.25 * p["rate"]),
        lambda p, x: {"x": x},
        lambda p, key, start: jnp.asarray(start) + 0.0 * p["rate"],
        dt=0.25,
    )
    times = np.array([0.0, 1.0, 2.0, 3.0])
    data = np.array([[1.0], [2.0]]) * np.exp(0.5 * times)
    data *= np.exp(0.05 * np.random.default_rng(4).standard_normal((2, 4)))
    rate = Parameter(1.0, unit="1/s", transform="positive", prior=Normal(1.0, 1.0))
    experiment = ds.Experiment(
        name="growth",
        simulation=grow,
        schedule=Schedule(ts=times),
        parameters={"rate": rate, "noise": Parameter(0.1, None, (0.01, 1.0))},
        conditions={"start": np.array([1.0, 2.0])},
        targets=[Target("x", data, "noise", noise="lognormal", statistic="each")],
        fit=ds.PosteriorFit(method=Laplace(draws=1000), starts=1),
    )
    directory = RunDirectory.create(tmp_path / "run", "name: growth")
    objective = experiment.run(directory, Console())
    result = directory.read_result()
    assert result is not None and math.isfinite(objective)
    found = result["parameters"]["rate"]
    assert found["value"] == pytest.approx(0.5, abs=0.05) and found["unit"] == "1/s"
    assert found["q05"] < found["value"] < found["q95"]
    assert {"rate", "noise"} == {row["name"] for row in result["measured"]["posterior"]["table"]}
    draws = read_draws(directory.path / "posterior.h5")
    assert draws["rate"].shape == (1, 1000)
    assert np.std(draws["rate"], ddof=1) == pytest.approx(found["stderr"])
    (series,) = result["measured"]["series"]
    assert len(series["curves"]) == 2 and series["times"] == list(times)
    for curve, measured in zip(series["curves"], data, strict=True):
        assert curve["data"] == pytest.approx(measured)
        assert curve["fit"][-1] == pytest.approx(measured[-1], rel=0.3)
        model, predictive = np.array(curve["model"]), np.array(curve["predictive"])
        assert np.all(predictive[0] < model[0]) and np.all(model[1] < predictive[1])
    page = write_report(directory.path).read_text()
    for name in ("series", "pairs", "traces"):
        assert (directory.path / "figures" / f"{name}.png").exists()
    assert re.findall("the figure [^<]*", page) == [] and "Effective draws" in page


REFERENCE = {  # mean and sd of 5,000 draws with the priors of Carpenter's case study (2018)
    "alpha": (0.5470, 0.0638),
    "beta": (0.02775, 0.00417),
    "gamma": (0.7999, 0.0899),
    "delta": (0.02411, 0.00358),
    "sigma_hare": (0.248, 0.043),
    "sigma_lynx": (0.251, 0.044),
    "hare0": (34.03, 2.94),
    "lynx0": (5.93, 0.53),
}
PELTS = np.array(  # hare and lynx, thousands, 1900 to 1920 (Hewitt 1921)
    """30.0 4.0 47.2 6.1 70.2 9.8 77.4 35.2 36.3 59.4 20.6 41.7 18.1 19.0 21.4 13.0 22.0 8.3
    25.4 9.1 27.1 7.4 40.3 8.0 57.0 12.3 76.6 19.5 52.3 45.7 19.5 51.1 11.2 29.7 7.6 15.8
    14.6 9.7 16.2 10.1 24.7 8.6""".split(),
    dtype=float,
).reshape(21, 2)


def lynx_hare():
    """hare' = (α - β lynx) hare, lynx' = (-γ + δ hare) lynx by Runge-Kutta's steps of a tenth of a
    year, from the centres of the priors."""
    dt = 0.1

    def slope(p, y):
        return jnp.stack(
            [(p["alpha"] - p["beta"] * y[1]) * y[0], (-p["gamma"] + p["delta"] * y[0]) * y[1]]
        )

    def step(p, y):
        k1 = slope(p, y)
        k2 = slope(p, y + dt / 2 * k1)
        k3 = slope(p, y + dt / 2 * k2)
        k4 = slope(p, y + dt * k3)
        return y + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)

    simulation = ds.FunctionSimulation(
        step,
        lambda p, y: {"hare": y[0], "lynx": y[1]},
        lambda p, key: jnp.stack([p["hare0"], p["lynx0"]]),
        dt=dt,
    )
    rate, factor = Normal(1.0, 0.5), Normal(0.05, 0.05)
    start, noise = LogNormal(math.log(10), 1.0), LogNormal(-1.0, 1.0)
    priors = dict(alpha=rate, beta=factor, gamma=rate, delta=factor, hare0=start, lynx0=start)
    centres = dict(alpha=1.0, beta=0.05, gamma=1.0, delta=0.05, hare0=30.0, lynx0=4.0)
    parameters = {
        k: Parameter(centres[k], transform="positive", prior=priors[k]) for k in priors
    } | {f"sigma_{k}": Parameter(0.5, None, "positive", noise) for k in ("hare", "lynx")}
    targets = [
        Target(k, PELTS[None, :, i], f"sigma_{k}", noise="lognormal", statistic="each")
        for i, k in enumerate(("hare", "lynx"))
    ]
    return Problem(simulation, parameters, targets, Schedule(ts=np.arange(21.0)))


@pytest.mark.slow  # to compile
def test_lynx_and_hare_find_their_mode():
    """From the priors' centres, where most periods are wrong; rough numbers by Laplace."""
    found = ds.posterior(lynx_hare(), Laplace())
    for name in ("alpha", "beta", "gamma", "delta", "hare0", "lynx0"):
        mean, sd = REFERENCE[name]
        assert found.mean(name) == pytest.approx(mean, abs=0.2 * sd)


@pytest.mark.slow
def test_lynx_and_hare():
    """Within 0.15 posterior standard deviations of the reference."""
    found = ds.posterior(lynx_hare(), NUTS())
    assert found.converged, found.reason
    for name, (mean, sd) in REFERENCE.items():
        assert found.mean(name) == pytest.approx(mean, abs=0.15 * sd)
        assert found.sd(name) == pytest.approx(sd, rel=0.1)

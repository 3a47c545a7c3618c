"""Curve fits by nlsq: right numbers, and none of its settings left behind."""

import os
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import curve_fit as scipy_curve_fit

import diffsim as ds

SETTINGS = """
import os, logging, jax
before = dict(jax.config.values), dict(os.environ), logging.getLogger().level
import jax.numpy as jnp, numpy as np, diffsim as ds
x = np.linspace(0, 4, 50)
fit = ds.curve_fit(lambda p, x: p["a"] * jnp.exp(-p["b"] * x), x, 2 * np.exp(-x) + 1e-3 * np.cos(x),
                   {"a": ds.Parameter(1.0), "b": ds.Parameter(0.5, transform="positive")})
assert abs(fit.values["b"] - 1) < 1e-2, fit.values
assert (dict(jax.config.values), dict(os.environ), logging.getLogger().level) == before
assert jnp.ones(2).dtype == jnp.float32
"""


def decay(p, x):
    return p["a"] * jnp.exp(-p["b"] * x) + p["c"]


def noisy(n: int) -> tuple[np.ndarray, np.ndarray]:
    x = np.linspace(0, 4, n)
    noise = np.random.default_rng(0).normal(size=n)
    return x, 2.5 * np.exp(-1.3 * x) + 0.5 + 0.01 * noise


def start(**changes) -> dict[str, ds.Parameter]:
    parameters = {
        "a": ds.Parameter(1.0),
        "b": ds.Parameter(1.0, transform="positive"),
        "c": ds.Parameter(0.3, transform=(0.0, 1.0)),
    }
    return parameters | changes


def test_importing_nlsq_changes_no_setting_of_the_program() -> None:
    pytest.importorskip("nlsq", reason="the extra diffsim[nlsq], Python 3.12 and later")
    plain = {k: v for k, v in os.environ.items() if k != "JAX_ENABLE_X64"}
    done = subprocess.run(
        [sys.executable, "-c", SETTINGS], capture_output=True, text=True, env=plain, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("sigma", [0.01, None], ids=["sigma", "from the scatter"])
def test_parameters_and_errors_are_those_of_scipy(sigma) -> None:
    pytest.importorskip("nlsq")
    x, y = noisy(2000)
    got = ds.curve_fit(decay, x, y, start(), sigma=sigma)
    best, covariance = scipy_curve_fit(
        lambda x, a, b, c: a * np.exp(-b * x) + c,
        x,
        y,
        p0=[1, 1, 0.3],
        sigma=None if sigma is None else np.full(x.size, sigma),
        absolute_sigma=sigma is not None,
    )
    np.testing.assert_allclose([got.values[k] for k in "abc"], best, rtol=1e-6)
    np.testing.assert_allclose(
        [got.stderr[k] for k in "abc"], np.sqrt(np.diag(covariance)), rtol=1e-4
    )


@pytest.mark.slow
def test_fixed_parameters_stay_and_ten_million_points_fit() -> None:
    pytest.importorskip("nlsq")
    x, y = noisy(10_000_000)
    got = ds.curve_fit(decay, x, y, start(c=ds.Parameter(0.5, fixed=True)), sigma=0.01)
    assert got.values["c"] == 0.5
    assert "c" not in got.stderr
    for name, truth in (("a", 2.5), ("b", 1.3)):
        assert got.stderr[name] < 1e-4
        assert abs(got.values[name] - truth) < 4 * got.stderr[name]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"y": np.array([1.0, np.nan])}, "finite"),
        ({"sigma": -1.0}, "positive"),
        ({"parameters": {"a": ds.Parameter(1.0, fixed=True)}}, "nothing is free"),
        ({"parameters": {"a": ds.Parameter(1.0, prior=ds.Normal(0.0, 1.0))}}, "no priors"),
        ({"parameters": {"a": ds.Parameter(1.0, tied="b"), "c": ds.Parameter(1.0)}}, "no such"),
    ],
)
def test_bad_input_is_refused_before_nlsq_is_imported(change, told) -> None:
    given = {"y": np.array([1.0, 2.0]), "parameters": {"a": ds.Parameter(1.0)}} | change
    y, parameters = given.pop("y"), given.pop("parameters")
    with pytest.raises(ds.ConfigError, match=told):
        ds.curve_fit(lambda p, x: p["a"] * x, np.ones(2), y, parameters, **given)

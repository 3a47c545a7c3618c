"""Copies of a stochastic system: their moments against the closed form of a transition."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffsim as ds
from diffsim import ode

PARAMS = {"theta": 1.3, "mu": 0.7, "sigma": 0.4}
COPIES = 20_000


@pytest.fixture(scope="module")
def moments():
    """Mean and variance at t = 0.5 from x = 2."""
    system = ode.Copies(ode.OrnsteinUhlenbeck(), COPIES)
    sim = ode.StochasticDifferentialEquation(
        system, dt=0.125, solver=diffrax.ShARK(scan_kind="lax"), interpretation="stratonovich"
    )
    schedule = ds.Schedule(t0=0.0, ts=[0.5])
    key, y0 = jax.random.key(1), ode.copied(np.array([2.0]), COPIES)[0]

    def run(params):
        solution = ds.solve(sim, params, sim.init(params, key, y0=y0), schedule=schedule)
        return {k: solution.observables[k][-1] for k in ("x_mean", "x_variance")}

    params = {k: jnp.asarray(v) for k, v in PARAMS.items()}
    return run(params), jax.jacfwd(run)(params)


def exact(params):
    process = ode.OrnsteinUhlenbeck()
    return {
        "x_mean": process.mean(0.5, 2.0, params),
        "x_variance": process.variance(0.5, params),
    }


def test_moments_are_those_of_the_transition(moments):
    truth = exact(PARAMS)
    spread = float(np.sqrt(truth["x_variance"] / COPIES))
    assert float(moments[0]["x_mean"]) == pytest.approx(float(truth["x_mean"]), abs=4 * spread)
    assert float(moments[0]["x_variance"]) == pytest.approx(
        float(truth["x_variance"]), rel=4 * np.sqrt(2 / COPIES)
    )


@pytest.mark.parametrize("name", ["x_mean", "x_variance"])
def test_slopes_are_those_of_the_transition(moments, name):
    params = {k: jnp.asarray(v) for k, v in PARAMS.items()}
    # The mean's slope in sigma is zero but for the copies' mean noise over sigma.
    noise = 4 * float(np.sqrt(exact(PARAMS)["x_variance"] / COPIES)) / PARAMS["sigma"]
    for key, slope in jax.jacfwd(exact)(params)[name].items():
        close = pytest.approx(float(slope), rel=0.06, abs=noise if name == "x_mean" else 1e-12)
        assert float(moments[1][name][key]) == close


def test_copied_repeats_rows():
    rows = np.array([[1.0, 2.0], [3.0, 4.0]])
    assert ode.copied(rows, 2).tolist() == [[1, 2, 1, 2], [3, 4, 3, 4]]
    assert ode.copied(np.array([5.0, 6.0])).tolist() == [[5], [6]]
    with pytest.raises(ds.ConfigError, match="rows"):
        ode.copied(np.zeros((2, 2, 2)))


@pytest.mark.parametrize(
    ("system", "copies", "key"),
    [
        (ode.LotkaVolterra(), 5, "system"),
        (ode.OrnsteinUhlenbeck(), 1, "copies"),
        (ode.Copies(ode.OrnsteinUhlenbeck(), 2), 2, "system"),
    ],
)
def test_what_cannot_be_copied_is_refused(system, copies, key):
    with pytest.raises(ds.ConfigError, match=key):
        ode.Copies(system, copies)

"""Segments of one trajectory: they meet where it passes, and fit what one trajectory fits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffsim as ds
from diffsim import ode

RATES = {"sigma": 10.0, "rho": 28.0, "beta": 8.0 / 3.0}
APART, SEGMENTS = 0.1, 12
STARTS = ode.SegmentStarts(["X_0", "Y_0", "Z_0"])


@pytest.fixture(scope="module")
def points():
    """A trajectory at the ends of segments, by small steps: (segments + 1, 3)."""
    sim = ode.DifferentialEquation(ode.Lorenz63(), dt=0.005)
    params = {k: jnp.asarray(v) for k, v in RATES.items()}
    state = sim.init(params, None, y0=jnp.array([-5.0, -7.0, 18.0]))
    schedule = ds.Schedule(t0=0.0, ts=APART * np.arange(SEGMENTS + 1))
    return np.asarray(ds.solve(sim, params, state, schedule=schedule).observables["y"])


def segmented():
    field = ode.Shooting(ode.Lorenz63(), STARTS)
    return ode.DifferentialEquation(field, dt=0.005, initial=STARTS)


def placed(points):
    first = dict(zip(("X_0", "Y_0", "Z_0"), map(float, points[0]), strict=True))
    return RATES | first | {"nodes": jnp.asarray(points[1:-1])}


def test_segments_of_a_trajectory_meet(points):
    sim, params = segmented(), placed(points)
    state = sim.init(params, None)
    schedule = ds.Schedule(t0=0.0, ts=[APART])
    seen = ds.solve(sim, params, state, schedule=schedule).observables
    np.testing.assert_allclose(seen["points"][0], points, rtol=1e-10)
    assert seen["gaps"].shape == (1, SEGMENTS - 1, 3)
    assert float(jnp.max(jnp.abs(seen["gaps"]))) < 1e-10
    moved = params | {"nodes": jnp.asarray(points[1:-1]).at[4].add(1.0)}
    gaps = ds.solve(sim, moved, sim.init(moved, None), schedule=schedule).observables["gaps"][0]
    np.testing.assert_allclose(gaps[4], -1.0, rtol=1e-9)  # the segment before misses it
    assert float(jnp.max(jnp.abs(gaps[5]))) > 0.1  # and its own end is elsewhere


def test_a_far_start_finds_the_trajectory(points):
    seen = points + 0.1 * np.random.default_rng(0).normal(size=points.shape)
    parameters = {
        "rho": ds.Parameter(24.0),
        **{k: ds.Parameter(RATES[k], fixed=True) for k in ("sigma", "beta")},
        **{k: ds.Parameter(v) for k, v in (("X_0", -3.0), ("Y_0", -5.0), ("Z_0", 20.0))},
        "nodes": ds.Parameter(seen[1:-1]),
    }
    targets = [
        ds.Target("points", seen[None, None], 0.1, statistic="each"),
        ds.Target("gaps", np.zeros((1, 1, SEGMENTS - 1, 3)), 1e-4, statistic="each"),
    ]
    problem = ds.Problem(segmented(), parameters, targets, ds.Schedule(t0=0.0, ts=[APART]))
    found = ds.least_squares(problem, adjoint=ds.ForwardMode(), damping=1e-12)
    assert found.converged
    freedom = 3 * (SEGMENTS + 1) - 4
    assert 0.4 < 2 * found.loss / freedom < 1.8
    for name, truth in (("rho", 28.0), *zip(("X_0", "Y_0", "Z_0"), points[0], strict=True)):
        assert abs(float(found.values[name]) - truth) < 4 * found.stderr(name)
    # The error bar is that of one trajectory, whose Jacobian is taken here by itself.
    sim = ode.DifferentialEquation(
        ode.Lorenz63(), dt=0.005, initial=ode.InitialState(("X_0", "Y_0", "Z_0"))
    )
    schedule = ds.Schedule(t0=0.0, ts=APART * np.arange(SEGMENTS + 1))

    def one(free):
        params = RATES | dict(zip(("rho", "X_0", "Y_0", "Z_0"), free, strict=True))
        y = ds.solve(sim, params, sim.init(params, None), schedule=schedule).observables["y"]
        return jnp.ravel(y) / 0.1

    best = jnp.stack([jnp.asarray(found.values[k]) for k in ("rho", "X_0", "Y_0", "Z_0")])
    jacobian = np.asarray(jax.jacfwd(one)(best))
    covariance = 2 * found.loss / freedom * np.linalg.inv(jacobian.T @ jacobian)
    assert found.stderr("rho") == pytest.approx(np.sqrt(covariance[0, 0]), rel=1e-3)


@pytest.mark.parametrize(
    ("change", "key"),
    [({"nodes": None}, "nodes"), ({"X_0": None}, "names"), ({"nodes": jnp.zeros((4, 2))}, "nodes")],
)
def test_starts_that_do_not_fit_are_refused(points, change, key):
    params = {k: v for k, v in (placed(points) | change).items() if v is not None}
    with pytest.raises(ds.ConfigError, match=key):
        STARTS(params)

"""Both forms of a schedule: which steps are saved, and what is refused with which advice."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import diffsim as ds
from diffsim import ConfigError, FunctionSimulation, Schedule


def clock(dt=0.1):
    """A state that counts steps, and tells the time."""
    return FunctionSimulation(
        lambda params, count: count + 1.0,
        lambda params, count: {"count": count, "time": count * (dt or 1.0)},
        dt=dt,
    )


def run(schedule, dt=0.1, **options):
    return ds.solve(clock(dt), {}, jnp.asarray(0.0), schedule=schedule, **options)


# Schedule, time step, steps in all, steps saved.
PLANS = {
    "steps": (dict(steps=12), None, 12, [12]),
    "one step": (dict(steps=1), None, 1, [1]),
    "saves": (dict(steps=12, save_every=4), None, 12, [4, 8, 12]),
    "every step": (dict(steps=3, save_every=1), 0.1, 3, [1, 2, 3]),
    "numpy's numbers": (dict(steps=np.int64(6), save_every=np.int32(3)), None, 6, [3, 6]),
    "an end": (dict(t1=1.0), 0.1, 10, [10]),
    "times": (dict(ts=[0.2, 0.6, 1.2]), 0.1, 12, [2, 6, 12]),
    "times and an end": (dict(t1=2.0, ts=[0.4, 1.2]), 0.1, 20, [4, 12]),
    "the start": (dict(ts=[0.0, 0.3, 0.5]), 0.1, 5, [0, 3, 5]),
    "the start alone": (dict(t1=0.3, ts=[0.0]), 0.1, 3, [0]),
    "from another time": (dict(t0=5.0, ts=[5.0, 5.5, 7.0]), 0.5, 4, [0, 1, 4]),
    "before zero": (dict(t0=-1.0, t1=1.0, ts=(-0.5, 0.0)), 0.25, 8, [2, 4]),
    "thirds": (dict(ts=[1 / 3, 2 / 3, 1.0]), 1 / 3, 3, [1, 2, 3]),
    "tenths that are none in binary": (dict(ts=np.arange(1, 8) * 0.1), 0.1, 7, list(range(1, 8))),
}


@pytest.mark.parametrize("name", PLANS)
def test_what_is_saved(name):
    options, dt, steps, saved = PLANS[name]
    schedule = Schedule(**options)
    plan = schedule.plan(dt)
    assert plan.steps == steps
    np.testing.assert_array_equal(plan.saved_steps(), saved)
    sol = run(schedule, dt)
    assert sol.state == steps
    np.testing.assert_array_equal(sol.steps, saved)
    np.testing.assert_array_equal(sol.observables["count"], saved)
    if dt is None:
        assert sol.times is None
    else:
        assert sol.times is not None
        start = options.get("t0", 0.0)
        np.testing.assert_allclose(sol.times, start + sol.observables["time"], rtol=1e-14)
        if "ts" in options:
            np.testing.assert_allclose(sol.times, options["ts"], atol=1e-12)


@pytest.mark.parametrize("adjoint", [ds.Direct(), ds.RecursiveCheckpoint(2)], ids=lambda a: str(a))
def test_adjoints_save_the_same(adjoint):
    for options, dt, _, saved in PLANS.values():
        sol = run(Schedule(**options), dt, adjoint=adjoint)
        np.testing.assert_array_equal(sol.observables["count"], saved)


@given(
    steps=st.lists(st.integers(0, 60), min_size=1, max_size=6, unique=True).map(sorted),
    beyond=st.integers(0, 5),
    dt=st.sampled_from([0.1, 0.3, 1 / 7, 2.0**-5, 3.7]),
    start=st.sampled_from([0.0, -2.5, 100.0]),
)
def test_times_are_hit(steps, beyond, dt, start):
    if steps[-1] + beyond == 0:
        beyond = 1
    ts = [start + k * dt for k in steps]
    plan = Schedule(t0=start, t1=start + (steps[-1] + beyond) * dt, ts=ts).plan(dt)
    np.testing.assert_array_equal(plan.saved_steps(), steps)
    assert plan.steps == steps[-1] + beyond


REFUSED = {
    "nothing": ({}, "either steps"),
    "both forms": (dict(steps=10, t1=1.0), "either steps"),
    "no step": (dict(steps=0), "steps: must be a whole number of at least 1"),
    "fewer": (dict(steps=-3), "steps: must be a whole number"),
    "a flag": (dict(steps=True), "steps: must be a whole number"),
    "saves at zero": (dict(steps=10, save_every=0), "save_every: must be a whole number"),
    "rest": (dict(steps=10, save_every=3), r"save_every=3 \(got 10\); did you mean 9 or 12\?"),
    "rest below": (dict(steps=2, save_every=3), r"did you mean 3\?"),
    "order": (dict(ts=[0.2, 0.1]), "ts: must be finite, increasing"),
    "twice": (dict(ts=[0.2, 0.2]), "ts: must be finite, increasing"),
    "past": (dict(t0=1.0, ts=[0.5]), "not before t0"),
    "nan": (dict(ts=[0.1, math.nan]), "ts: must be finite"),
    "endless": (dict(t1=math.inf), "must be finite"),
    "early end": (dict(t1=0.1, ts=[0.2]), "t1: must be finite and not before the last of ts"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name):
    options, message = REFUSED[name]
    with pytest.raises(ConfigError, match=message) as caught:
        Schedule(**options)
    assert "\n" not in str(caught.value)


# Schedule, time step, message, and whether the step that it suggests must do.
UNFIT = {
    "between the steps": (dict(ts=[0.25]), 0.1, "time 0.25 is not a whole number of steps", True),
    "the end between": (dict(t1=1.05, ts=[0.5]), 0.1, "time 1.05 is not a whole number", True),
    "late start": (dict(t0=10.0, ts=[10.25]), 0.1, "time 10.25 is not a whole number", True),
    "no time step": (dict(ts=[0.25]), None, "has no time step: use steps=", False),
}


@pytest.mark.parametrize("name", UNFIT)
def test_times_that_no_step_hits_are_refused(name):
    options, dt, message, suggests = UNFIT[name]
    with pytest.raises(ConfigError, match=message) as caught:
        run(Schedule(**options), dt)
    if not suggests:
        return
    text = str(caught.value)
    suggested = float(text.rpartition("dt = ")[2].rstrip("?"))
    assert 0.4 * dt < suggested < dt, f"hardly the nearest time step: {text}"
    assert Schedule(**options).plan(suggested).steps > 0


def test_an_end_at_the_start_is_refused():
    """No step at all: steps=0 is refused, and so is the same in times."""
    with pytest.raises(ConfigError, match="t1"):
        run(Schedule(t0=1.0, t1=1.0))
    with pytest.raises(ConfigError, match="ts"):
        run(Schedule(ts=[0.0]))


def test_only_what_was_asked_for():
    sol = run(Schedule(steps=4, save_every=2), observables=["time"])
    assert list(sol.observables) == ["time"]
    with pytest.raises(
        ConfigError, match=r"tme: no such observable; allowed: count, time; .* time"
    ):
        run(Schedule(steps=4), observables=["tme"])

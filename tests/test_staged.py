"""Fits in stages, and what they predict of data they were not given."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffsim as ds
from diffsim._report import Console
from diffsim._store import RunDirectory

X = np.array([0.5, 1.0, 2.0, 3.0])
SLOPE = 1.5
LINE = ds.FunctionSimulation(
    lambda p, x: x,
    lambda p, x: {"y": p["slope"] * x, "square": p["slope"] ** 2 * x},
    lambda p, key, at: jnp.asarray(at) + 0.0 * p["slope"],
    dt=1.0,
)
STAGES = ds.StagedFit(
    first=ds.LeastSquaresFit(),
    then=ds.OptaxFit(optax.lbfgs(), steps=50, tol=1e-10),
    targets=["y"],
)


def target(name: str, data) -> ds.Target:
    return ds.Target(name, data, 0.1)


def line(fit, studies=()) -> ds.Experiment:
    """y = slope x, and squares of a slope that is twice as large."""
    return ds.Experiment(
        name="line",
        simulation=LINE,
        schedule=ds.Schedule(steps=1),
        parameters={"slope": ds.Parameter(0.7)},
        conditions={"at": X},
        targets=[target("y", SLOPE * X), target("square", (2 * SLOPE) ** 2 * X)],
        fit=fit,
        studies=studies,
    )


@pytest.mark.slow  # to compile
def test_the_last_stage_starts_where_the_first_ended_and_sees_all(tmp_path):
    """And the study tells both ends apart, for data that the fit has not seen."""
    far = np.array([10.0, 20.0, 30.0])
    unseen = [target("y", SLOPE * far), ds.Target("square", 4 * SLOPE**2)]
    study = ds.UnseenStudy(conditions={"at": far}, targets=unseen)
    directory = RunDirectory.create(tmp_path / "run", "name: line")
    line(STAGES, [study]).run(directory, Console())
    found = directory.read_result()
    assert found is not None
    whole = found["parameters"]["slope"]["value"]
    slope = np.linspace(SLOPE, 2 * SLOPE, 200_001)
    squares = np.sum(X**2) * ((slope - SLOPE) ** 2 + (slope**2 - 4 * SLOPE**2) ** 2)
    assert whole == pytest.approx(slope[np.argmin(squares)], abs=1e-5)
    measured = found["measured"]
    assert measured["y_before"] == pytest.approx(0, abs=1e-6)
    rms = np.sqrt(np.mean(far**2))
    assert measured["y_after"] == pytest.approx(rms * (whole - SLOPE), rel=1e-6)
    assert measured["square_before"] == pytest.approx(SLOPE**2 * 20, rel=1e-6)
    assert measured["square_after"] == pytest.approx(whole**2 * 20, rel=1e-6)
    error, value = measured["unseen"]
    assert (error["kind"], value["kind"]) == ("error", "value")
    assert value["reference"] == 4 * SLOPE**2 and error["reference"] is None
    each = whole**2 * far
    assert value["after_stderr"] == pytest.approx(np.std(each, ddof=1) / np.sqrt(3))


def test_a_stage_asks_for_what_its_fits_ask():
    assert STAGES.modes == ("forward", "reverse")
    assert dataclasses.replace(STAGES, first=STAGES.then).modes == ("reverse",)


@pytest.mark.parametrize("names", [[], ["y", "square"], ["z"], ["y", "z"]])
def test_stages_refuse_what_is_no_part_of_the_targets(names):
    with pytest.raises(ds.ConfigError, match=r"some of the targets, not all.*allowed: y, square"):
        line(dataclasses.replace(STAGES, targets=names))


@pytest.mark.parametrize("kind", [ds.LeastSquaresFit, ds.OptaxFit])
def test_a_fit_without_steps_is_refused_when_it_is_made(kind):
    with pytest.raises(ds.ConfigError, match="steps: must be at least 1"):
        kind(steps=0)

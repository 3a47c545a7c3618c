"""Fits in which a few conditions at a time stand for all, growing horizons, and what they keep."""

from typing import Any

import jax
import numpy as np
import optax
import pytest

import diffsim as ds
from diffsim import cfd, ode

STARTS = np.linspace(0.5, 2.0, 12)[:, None]
TIMES = [0.25, 0.5, 0.75, 1.0]


def decays(rate=0.7, noise=0.0):
    """y' = -k y from twelve starts, the same k."""
    exact = STARTS[:, None] * np.exp(-rate * np.asarray(TIMES))[:, None]
    scatter = np.random.default_rng(0).standard_normal(exact.shape)
    field = ode.DifferentialEquation(lambda t, y, args: -args["k"] * y, dt=0.05)
    target = ds.Target("y", exact + noise * scatter, 0.1, statistic="each")
    parameters = {"k": ds.Parameter(0.2)}
    return ds.Problem(field, parameters, [target], ds.Schedule(ts=TIMES), {"y0": STARTS})


def descend(problem, **given):
    words: dict[str, Any] = dict(optimiser=optax.adam(0.05), steps=80, adjoint=ds.Direct()) | given
    return ds.fit(problem, **words)


def test_a_batch_of_all_is_all():
    few = dict(optimiser=optax.sgd(0.02), steps=4)
    whole, batch = descend(decays(), **few), descend(decays(), batch=12, **few)
    for a, b in zip(whole.history, batch.history, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-10)
        assert b["parameters"]["k"] == pytest.approx(a["parameters"]["k"], rel=1e-12)


def test_batches_find_what_all_find():
    slower = optax.adam(optax.cosine_decay_schedule(0.05, 200))
    result = descend(decays(noise=0.1), batch=3, steps=200, optimiser=slower)
    best = ds.least_squares(decays(noise=0.1))
    assert abs(result.values["k"] - best.values["k"]) < best.stderr("k")
    assert result.converged
    assert not descend(decays(), batch=12, steps=40, optimiser=optax.adam(0.01)).converged
    assert result.prediction.values[0].shape == (12, 4, 1)
    assert result.loss == pytest.approx(best.loss, rel=0.1)


def test_the_loss_of_a_batch_is_that_of_all_on_average():
    """With a step of zero every iteration is a draw of the loss at one place."""
    problem = decays()
    still = dict(optimiser=optax.sgd(0.0), steps=200)
    whole = descend(problem, **still | dict(steps=1)).history[0]["loss"]
    draws = [r["loss"] for r in descend(problem, batch=4, **still).history]
    error = np.std(draws, ddof=1) / np.sqrt(len(draws))
    assert 0 < error < 0.05 * whole
    assert abs(np.mean(draws) - whole) < 4 * error


def test_conditions_that_are_not_used_are_not_drawn():
    use = np.arange(12) < 4
    problem = decays()
    data = np.array(problem.targets[0].data)
    data[4:] = 100.0
    wrong = ds.Problem(
        problem.simulation,
        problem.parameters,
        [ds.Target("y", data, 0.1, statistic="each")],
        problem.schedule,
        problem.conditions,
    )
    found = descend(wrong, batch=2, use=use, steps=120).values["k"]
    assert float(found) == pytest.approx(0.7, abs=0.02)


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (dict(batch=13), "1 to 12"),
        (dict(batch=0), "1 to 12"),
        (dict(batch=3, use=np.arange(12) < 2), "1 to 2"),
        (dict(batch=3, optimiser=None), "optax.adam"),
    ],
)
def test_batches_that_cannot_be_are_refused(words, match):
    with pytest.raises(ds.ConfigError, match=match):
        descend(decays(), **words)


def test_a_batch_cannot_tell_the_noise():
    problem = decays()
    target = ds.Target("y", problem.targets[0].data, "spread", statistic="each")
    parameters = {**problem.parameters, "spread": ds.Parameter(0.1, transform="positive")}
    unknown = ds.Problem(
        problem.simulation, parameters, [target], problem.schedule, problem.conditions
    )
    with pytest.raises(ds.ConfigError, match="noise"):
        descend(unknown, batch=3)


def test_rows_of_a_problem():
    problem = decays()
    some = problem.rows(np.array([5, 2]))
    assert some.conditions is not None
    np.testing.assert_array_equal(some.conditions["y0"], STARTS[[5, 2]])
    np.testing.assert_array_equal(some.targets[0].data, problem.targets[0].data[[5, 2]])
    each = ds.Target("y", problem.targets[0].data, np.arange(1.0, 13)[:, None, None],
                     statistic="each", mask=np.ones((12, 4, 1), bool))  # fmt: skip
    np.testing.assert_array_equal(np.ravel(each.rows(np.array([3])).sigma), [4.0])
    assert each.rows(np.array([3, 4])).mask.shape == (2, 4, 1)


def test_what_a_fit_found_starts_the_next(tmp_path):
    net = cfd.FieldNetwork(2, 3, width=4, depth=1, seed=5)
    path = tmp_path / "parameters.h5"
    from diffsim._store import write_parameters

    write_parameters(path, {"net": net, "k": np.float64(0.5)})
    like = cfd.FieldNetwork(2, 3, width=4, depth=1, seed=6)
    found = ds.fitted(path, "net", like=like)
    for a, b in zip(jax.tree.leaves(net), jax.tree.leaves(found), strict=True):
        np.testing.assert_array_equal(a, b)
    assert float(ds.fitted(path, "k")) == 0.5
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        (dict(name="nets"), "net"),
        (dict(name="net", like=cfd.FieldNetwork(2, 4, width=4, depth=1)), "shape"),
        (dict(name="net", like=cfd.FieldNetwork(2, 3, width=4, depth=2)), "weights"),
    )
    for words, match in cases:
        with pytest.raises(ds.ConfigError, match=match):
            ds.fitted(path, **words)
    with pytest.raises(ds.ConfigError, match="file"):
        ds.fitted(tmp_path / "none.h5", "net")

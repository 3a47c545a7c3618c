"""`measured.series`: what was measured over time beside what the fit says, for the report."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import equinox as eqx
import numpy as np
from jax.flatten_util import ravel_pytree

from .._fit import FitResult, PosteriorResult
from .._problem import Problem, Target
from .._schedule import Schedule

if TYPE_CHECKING:
    from ._experiment import Experiment

POINTS = 200  # of a smooth curve
CURVES = 12  # of a target: conditions times components
COMPONENTS = 6  # of an observable that is shown
DRAWS = 400  # behind a band
BAND = (0.05, 0.95)


def series(
    experiment: Experiment, result: FitResult, posterior: PosteriorResult | None = None
) -> list[dict[str, Any]]:
    """An entry a target that was measured at every save: its times, data, fitted curves and bands,
    `model` of what it depends on and `predictive` of what one would measure."""
    problem = experiment.problem
    shown = [(i, t) for i, t in enumerate(problem.targets) if _shown(t)]
    if not shown:
        return []
    finer = _finer(problem)
    fitted = _predicted(finer, result)
    bands = {} if posterior is None else _bands(posterior, finer)
    return [
        {
            "name": t.label,
            "observable": t.observable,
            "unit": t.unit or problem.simulation.units().get(t.observable, "1"),
            "time": "time" if problem.simulation.time_step() or problem.schedule.ts else "step",
            "noise": t.noise,
            "logarithmic": over_decades(problem.times()),
            "times": problem.times().tolist(),
            "curve_times": finer.times().tolist(),
            "curves": _curves(experiment, t, fitted[i], {k: v[i] for k, v in bands.items()}),
        }
        for i, t in shown
    ]


def _shown(target: Target) -> bool:
    rest = np.shape(target.data)[2:]
    small = math.prod(rest) <= COMPONENTS
    return target.statistic == "each" and np.ndim(target.data) >= 2 and small


def _finer(problem: Problem) -> Problem:
    """The same with more saves, where the schedule is in time and no sigma is one a save."""
    schedule, dt = problem.schedule, problem.simulation.time_step()
    sigmas = [np.ndim(t.sigma) for t in problem.targets if not isinstance(t.sigma, str)]
    if schedule.ts is None or any(sigmas) or len(schedule.ts) >= POINTS:
        return problem
    t0, end = schedule.t0, schedule.ts[-1]
    if dt is None and over_decades(schedule.ts):
        times = np.geomspace(schedule.ts[0], end, POINTS)
    elif dt is None:
        times = np.linspace(t0, end, POINTS)[1:]
    else:
        steps = round((end - t0) / dt)
        times = t0 + dt * np.unique(np.linspace(0, steps, min(POINTS, steps + 1)).round())
    return dataclasses.replace(problem, schedule=Schedule(t0=t0, ts=times))


def over_decades(times: Sequence[float] | np.ndarray) -> bool:
    """Whether times are spread over decades, so that a logarithmic axis shows them."""
    t = np.asarray(times)
    return bool(len(t) > 3 and t[0] > 0 and t[-1] > 100 * t[0] and np.median(t) < 0.1 * t[-1])


def _predicted(problem: Problem, result: FitResult) -> tuple[np.ndarray, ...]:
    """The curves of the fit, from the states that it started from."""
    flat, _ = ravel_pytree(result.theta)
    run = result.evaluator.run(np.ones(problem.batch), flat)
    run = dataclasses.replace(run, problem=problem)
    values = eqx.filter_jit(lambda run, theta: run.predict(theta).values)(run, result.theta)
    return tuple(np.asarray(v) for v in values)


def _bands(posterior: PosteriorResult, problem: Problem) -> dict[str, list[np.ndarray]]:
    """Quantiles of the model and of measurements, (2, conditions, saves, ...) a target."""
    out = {}
    for name, noise in (("model", False), ("predictive", True)):
        drawn = posterior.predictive(DRAWS, noise=noise, schedule=problem.schedule, shared=True)
        out[name] = [np.quantile(drawn[t.label], BAND, axis=0) for t in problem.targets]
    return out


def _curves(
    experiment: Experiment, target: Target, fitted: np.ndarray, bands: dict[str, np.ndarray]
) -> list[dict[str, Any]]:
    data = np.asarray(target.data, dtype=float)
    if target.mask is not None:
        data = np.where(np.asarray(target.mask, bool), data, np.nan)
    places = [(c, index) for c in range(data.shape[0]) for index in np.ndindex(data.shape[2:])]
    several = data.shape[0] > 1
    curves = []
    for c, index in places[:CURVES]:
        at = (c, slice(None), *index)
        label = experiment.labels[c] if experiment.labels else f"condition {c}" if several else ""
        parts = [label, f"component {','.join(map(str, index))}" if index else ""]
        curves.append(
            {
                "label": ", ".join(part for part in parts if part),
                "used": bool(experiment.used[c]),
                "data": [x if np.isfinite(x) else None for x in data[at].tolist()],
                "fit": fitted[at].tolist(),
                **{k: band[(slice(None), *at)].tolist() for k, band in bands.items()},
            }
        )
    return curves

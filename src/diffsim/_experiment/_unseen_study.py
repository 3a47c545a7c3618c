"""How well a fit predicts what it was not given, before its last stage and after it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import numpy as np

from .._errors import ConfigError
from .._problem import Problem, Target
from ._session import Session
from ._studies import AbstractStudy

if TYPE_CHECKING:
    from ._experiment import Experiment


class UnseenStudy(AbstractStudy):
    """√<(A(θ) - data)²> of `targets` at `conditions` that the fit has not seen; where the data are
    one number, A(θ) itself.

    At two θ: where the last stage of the fit began (of a `StagedFit`, what the first ones found)
    and where it ended: what a correction mends, and what it costs elsewhere.

    `measured.unseen` gets a row a target: `name`, `unit`, `kind` ("error" or "value"), `before`,
    `after`, their `before_stderr` and `after_stderr`, from the scatter of the conditions as if each
    were independent (none where all tell the same), and of a value the `reference`.
    `measured.<name>_before` and `measured.<name>_after` are the same numbers.
    """

    conditions: Mapping[str, Any]
    targets: tuple[Target, ...] = eqx.field(converter=tuple)

    def run(
        self, experiment: Experiment, session: Session, pieces: dict[str, Any]
    ) -> dict[str, Any]:
        fit = pieces["fit"]
        problem = dataclasses.replace(
            experiment.problem, conditions=dict(self.conditions), targets=self.targets
        )
        try:
            problem.check()
        except ConfigError as error:
            raise ConfigError(f"of what is unseen: {error}", key="studies") from error
        thetas = fit.evaluator.problem.initial(), fit.theta
        found = [self._predicted(problem, theta, experiment, session) for theta in thetas]
        units = problem.simulation.units()
        rows = []
        for i, target in enumerate(self.targets):
            (before, low), (after, high) = (_told(target, values[i]) for values in found)
            row = {
                "name": target.label,
                "unit": target.unit or units.get(target.observable, "1"),
                "kind": "error" if np.ndim(target.data) else "value",
                "before": before,
                "before_stderr": low,
                "after": after,
                "after_stderr": high,
                "reference": None if np.ndim(target.data) else float(target.data),
            }
            rows.append(row)
            what = "" if row["reference"] is None else f", of {row['reference']:g}"
            session.console.say(
                f"  {row['name']}, unseen: {before:.4g}, then {after:.4g} {row['unit']}{what}"
            )
        numbers = {f"{r['name']}_{when}": r[when] for r in rows for when in ("before", "after")}
        return {"answers": _answers(rows), "unseen": rows, **numbers}

    def _predicted(
        self, problem: Problem, theta: Any, experiment: Experiment, session: Session
    ) -> list[np.ndarray]:
        session.poll()
        states = problem.states(theta, jax.random.key(experiment.seed))
        prediction = _predict(problem, theta, states)
        prediction.solution.check()
        return [np.asarray(x) for x in problem.placement.fetch(prediction.values)]


@eqx.filter_jit
def _predict(problem: Problem, theta: Any, states: Any) -> Any:
    return problem.predict(theta, states)


def _told(target: Target, values: np.ndarray) -> tuple[float, float | None]:
    """The error, or of one number the value, and how sure it is; `values`: (conditions, ...)."""
    data = np.asarray(target.data, dtype=float)
    if not data.ndim:
        each = values.reshape(len(values), -1).mean(axis=1)
        return float(np.mean(each)), _stderr(each)
    measured = np.ones(data.shape, bool) if target.mask is None else np.asarray(target.mask, bool)
    off = np.where(measured, values - np.where(measured, data, 0.0), 0.0) ** 2
    count = np.maximum(measured.reshape(len(off), -1).sum(axis=1), 1)
    squares = off.reshape(len(off), -1).sum(axis=1) / count
    rms = float(np.sqrt(np.sum(off) / max(1, measured.sum())))
    error = _stderr(squares)
    return rms, None if error is None or rms == 0 else error / (2 * rms)


def _stderr(each: np.ndarray) -> float | None:
    """Of a mean; None where all are the same or there is but one."""
    if len(each) < 2 or np.ptp(each) <= 1e-9 * np.max(np.abs(each)):
        return None
    return float(np.std(each, ddof=1) / np.sqrt(len(each)))


def _answers(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "label": f"{row['name']}, error" if row["kind"] == "error" else row["name"],
            "unit": row["unit"],
            "value": float(f"{row['after']:.4g}"),
            "stderr": row["after_stderr"],
        }
        for row in rows[:6]
    ]

"""How long flows on coarse grids stay with a resolved one."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._errors import ConfigError
from .._schedule import Schedule
from .._solve import solve
from ..cfd import (
    IncompressibleFlow,
    coarsened,
    corner_vorticity,
    vorticity_correlation,
)
from ._flow_reference import FlowReference
from ._session import Session
from ._studies import AbstractStudy

if TYPE_CHECKING:
    from ._experiment import Experiment


class DecorrelationStudy(AbstractStudy):
    """τ: the time until the vorticity's correlation with a resolved flow, averaged over samples,
    falls under `threshold`; of the fitted flow and of `rivals`, from the same starts.

    Kochkov et al. 2021, doi:10.1073/pnas.2101784118, with 0.95. All fields are averaged onto the
    grid of the `reference`, whose seeds the fit must not have seen; a rival on a finer grid starts
    from the reference's first field there. `rivals`: name -> an `IncompressibleFlow` without
    closure; parameters are the fit's.

    `measured.decorrelation` gets a row each: `name`, `cells` an axis, `time` τ (`at_least` where
    the correlation never fell so low), `stderr` (of the samples' own times, over the root of their
    number), `samples`, `seconds`, of wall time a unit of time and sample, and `gain`, τ over that
    of the `plain` rival. `measured.gain` is that of the fitted flow, `measured.series` gets the
    curves.
    """

    reference: FlowReference
    rivals: Mapping[str, IncompressibleFlow]
    plain: str
    threshold: float = 0.95

    def __check_init__(self):
        if self.plain not in self.rivals:
            raise ConfigError(
                "no such rival", key="studies.plain", value=self.plain, allowed=tuple(self.rivals)
            )
        if not 0 < self.threshold < 1:
            raise ConfigError("must lie between 0 and 1", key="threshold", value=self.threshold)
        kept = [g.shape for g in (self.reference.grid, *self.reference.finer)]
        for name, flow in self.rivals.items():
            if flow.grid.shape not in kept:
                raise ConfigError(
                    "the reference keeps no start on this grid",
                    key=f"studies.rivals.{name}.grid",
                    value=flow.grid.shape,
                    allowed=map(str, kept),
                )
            _steps(flow, self.reference, f"studies.rivals.{name}.dt")

    def run(
        self, experiment: Experiment, session: Session, pieces: dict[str, Any]
    ) -> dict[str, Any]:
        fitted = experiment.simulation
        if not isinstance(fitted, IncompressibleFlow):
            raise ConfigError("needs an IncompressibleFlow", key="simulation")
        params = experiment.problem.params(pieces["fit"].theta)
        truth = self.reference.vorticity()[:, 1:]
        rows, curves = [], {}
        for name, flow in {"fitted": fitted, **self.rivals}.items():
            session.poll()
            found, seconds = self._followed(flow, params)
            curve = np.asarray(vorticity_correlation(jnp.asarray(found), jnp.asarray(truth)))
            curves[name] = np.nan_to_num(curve, nan=0.0)
            rows.append(self._row(name, flow, curves[name], seconds))
        plain = next(row["time"] for row in rows if row["name"] == self.plain)
        for row in rows:
            row["gain"] = row["time"] / plain
            more = " or more" if row["at_least"] else ""
            session.console.say(
                f"  {row['name']}, {row['cells']}: correlated for {row['time']:.3g}"
                f"({row['stderr']:.1g}){more}, {row['gain']:.2g} times {self.plain}"
            )
        series = [*pieces["measured"].get("series", []), self._series(curves)]
        answers = [
            {
                "label": f"correlation time, {row['name']}",
                "value": row["time"],
                "stderr": row["stderr"],
            }
            for row in rows
        ]
        return {
            "answers": answers,
            "gain": rows[0]["gain"],
            "correlation_time": rows[0]["time"],
            "decorrelation": rows,
            "series": series,
        }

    def _followed(self, flow: IncompressibleFlow, params: Any) -> tuple[np.ndarray, float]:
        """The vorticity on the reference's grid, (seeds, saves, *grid.shape), and the seconds a
        unit of time."""
        reference, out = self.reference, []
        steps = _steps(flow, reference, "simulation.dt")
        starts, seconds = reference.first(flow.grid), 0.0
        for start in zip(*starts, strict=True):
            state, fields = flow.init(params, jax.random.key(0), velocity=start), []
            for save in range(reference.saves):
                began = time.perf_counter()
                state = jax.block_until_ready(_run(flow, params, state, steps))
                seconds += (time.perf_counter() - began) if save else 0.0  # the first compiles
                fields.append(coarsened(state.velocity, reference.grid))
            out.append(
                corner_vorticity([np.stack(u) for u in zip(*fields, strict=True)], reference.grid)
            )
        span = max(1, len(out) * (reference.saves - 1)) * reference.every
        return np.stack(out), seconds / span

    def _row(self, name: str, flow: IncompressibleFlow, curve: np.ndarray, seconds: float) -> Any:
        """`curve`: (seeds, saves)."""
        times = [self._until(c) for c in curve]
        mean = self._until(curve.mean(axis=0))
        return {
            "name": name,
            "cells": flow.grid.shape[0],
            "time": mean,
            "stderr": float(np.std(times, ddof=1) / np.sqrt(len(times))) if len(times) > 1 else 0.0,
            "at_least": bool(np.all(curve.mean(axis=0) >= self.threshold)),
            "samples": times,
            "seconds": seconds,
        }

    def _until(self, curve: np.ndarray) -> float:
        """When a correlation, 1 at the start, first crosses the threshold, between two saves."""
        values = np.concatenate([[1.0], curve])
        under = np.flatnonzero(values < self.threshold)
        if not len(under):
            return self.reference.every * len(curve)
        i = under[0]
        share = (values[i - 1] - self.threshold) / (values[i - 1] - values[i])
        return float(self.reference.every * (i - 1 + share))

    def _series(self, curves: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """The panel of the report: each flow's mean correlation over time."""
        times = (self.reference.every * np.arange(1, self.reference.saves + 1)).tolist()
        return {
            "name": "correlation with the resolved vorticity",
            "observable": "vorticity correlation",
            "unit": "1",
            "time": "time",
            "noise": "normal",
            "times": times,
            "curve_times": times,
            "curves": [
                {
                    "label": name,
                    "used": name == "fitted",
                    "data": [None] * len(times),
                    "fit": curve.mean(axis=0).tolist(),
                }
                for name, curve in curves.items()
            ],
        }


def _steps(flow: IncompressibleFlow, reference: FlowReference, key: str) -> int:
    """Steps of a flow between two fields of the reference."""
    ratio = reference.every / flow.dt
    if not (ratio > 0.5 and abs(ratio - round(ratio)) < 1e-4 * ratio):
        raise ConfigError(
            f"must divide the {reference.every:g} between two fields", key=key, value=flow.dt
        )
    return round(ratio)


@eqx.filter_jit
def _run(flow: IncompressibleFlow, params: Any, state: Any, steps: int) -> Any:
    return solve(flow, params, state, schedule=Schedule(steps=steps), observables=()).state

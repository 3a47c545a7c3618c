"""Numbers read off a run: values of its observables, and their frequencies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .._errors import ConfigError
from .._store import Series, read_trajectory
from ._session import Session
from ._studies import AbstractStudy

if TYPE_CHECKING:
    from ._experiment import Experiment

STATISTICS = ("last", "min", "max", "mean")


class ValuesStudy(AbstractStudy):
    """Named numbers of a run beside known ones: in `measured` each by its name, and in
    `measured.values` a row each with `value`, `reference` and `relative_error`.

    **Arguments:** `values`: name -> a mapping with `observable`; `statistic`: "last" (the default;
    the value at the end), "min", "max" or "mean" over the components at that time; `at`: a time of
    a save in place of the end; `reference`: the number it should be.
    """

    values: Mapping[str, Mapping[str, Any]]

    def __check_init__(self):
        known = ("observable", "statistic", "at", "reference")
        for name, entry in self.values.items():
            for key in entry:
                if key not in known:
                    raise ConfigError("unknown key", key=f"values.{name}.{key}", allowed=known)
            if "observable" not in entry:
                raise ConfigError("must be given", key=f"values.{name}.observable")
            statistic = entry.get("statistic", "last")
            if statistic not in STATISTICS:
                raise ConfigError(
                    "unknown", key=f"values.{name}.statistic", value=statistic, allowed=STATISTICS
                )

    def run(
        self, experiment: Experiment, session: Session, pieces: dict[str, Any]
    ) -> dict[str, Any]:
        recorded = read_trajectory(session.directory.trajectory, particles=False).observables
        rows = [self._row(name, entry, recorded) for name, entry in self.values.items()]
        return {row["name"]: row["value"] for row in rows} | {"values": rows}

    def _row(
        self, name: str, entry: Mapping[str, Any], recorded: Mapping[str, Series]
    ) -> dict[str, Any]:
        series = recorded_series(recorded, entry["observable"], f"values.{name}.observable")
        value = np.asarray(series.value)[_save(series, entry.get("at"), name)]
        statistic = entry.get("statistic", "last")
        if statistic == "last" and value.size > 1:
            raise ConfigError(
                f"{entry['observable']} has {value.size} components",
                key=f"values.{name}.statistic",
                allowed=STATISTICS[1:],
            )
        found = float(value.ravel()[0] if statistic == "last" else getattr(np, statistic)(value))
        row: dict[str, Any] = {"name": name, "value": found}
        reference = entry.get("reference")
        if reference is not None:
            off = found - reference
            row |= {"reference": reference, "relative_error": off / reference if reference else off}
        return row


def _save(series: Series, at: float | None, name: str) -> int:
    if at is None:
        return -1
    times = np.asarray(series.time)
    nearest = int(np.argmin(np.abs(times - at)))
    if abs(times[nearest] - at) > 1e-9 * max(1.0, abs(at)):
        raise ConfigError(
            "is not the time of a save",
            key=f"values.{name}.at",
            value=at,
            suggestion=f"{times[nearest]:g}",
        )
    return nearest


class FrequencyStudy(AbstractStudy):
    """f = 1/T of an oscillating observable, from the times at which it rises through its mean.

    `measured` gets `name` (the frequency times `scale`), `<name>_stderr` from the scatter of the
    periods, and `<name>_periods`, their number. `after`: the time from which it is periodic.
    """

    observable: str
    name: str = "frequency"
    after: float = 0.0
    scale: float = 1.0

    def run(
        self, experiment: Experiment, session: Session, pieces: dict[str, Any]
    ) -> dict[str, Any]:
        recorded = read_trajectory(session.directory.trajectory, particles=False).observables
        series = recorded_series(recorded, self.observable, "observable")
        time, value = np.asarray(series.time), np.asarray(series.value, dtype=float)
        if value.ndim != 1:
            raise ConfigError("must be one number a save", key="observable", value=self.observable)
        late = time >= self.after
        none = {self.name: None, f"{self.name}_stderr": None, f"{self.name}_periods": 0}
        if np.count_nonzero(late) < 2:
            return none
        time, value = time[late], value[late] - np.mean(value[late])
        rises = np.flatnonzero((value[:-1] < 0) & (value[1:] >= 0))
        share = -value[rises] / (value[rises + 1] - value[rises])
        periods = np.diff(time[rises] + share * (time[rises + 1] - time[rises]))
        if len(periods) < 2:
            return none
        mean = float(np.mean(periods))
        error = float(np.std(periods, ddof=1) / np.sqrt(len(periods)))
        return {
            self.name: self.scale / mean,
            f"{self.name}_stderr": self.scale * error / mean**2,
            f"{self.name}_periods": len(periods),
        }


def recorded_series(recorded: Mapping[str, Series], observable: str, key: str) -> Series:
    """What the trajectory holds of an observable."""
    if observable not in recorded:
        raise ConfigError("no such observable", key=key, value=observable, allowed=tuple(recorded))
    return recorded[observable]

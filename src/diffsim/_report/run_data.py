"""What the files of a run directory say, in the form that figures and pages are made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .._errors import ConfigError
from .._store import RunDirectory, Series, read_trajectory
from .._store.draws import read_draws
from .numbers import number

_TRAJECTORY_BYTES = 512 * 2**20


@dataclass(frozen=True)
class RunData:
    """One run: what its files hold, empty where one is missing; `notes` tell what is unreadable."""

    name: str
    config: str = ""
    status: Mapping[str, Any] = field(default_factory=dict)
    result: Mapping[str, Any] = field(default_factory=dict)
    metrics: tuple[Mapping[str, Any], ...] = ()
    series: Mapping[str, Series] = field(default_factory=dict)
    draws: Mapping[str, np.ndarray] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @classmethod
    def load(cls, path: Path) -> RunData:
        """Read the run directory at `path`; what is damaged is noted, never raised."""
        run, notes, series = RunDirectory(path), [], {}
        if run.trajectory.exists():
            try:
                read = read_trajectory(
                    run.trajectory, particles=False, limit_bytes=_TRAJECTORY_BYTES
                )
                series = read.observables
            except ConfigError as error:
                cause = error.cause.replace(f"{str(run.trajectory)!r} ", "")
                notes.append(f"trajectory.h5 {cause}")
        draws = _draws(run.path / "posterior.h5", notes)
        result = run.read_result()
        if result is None and run.result_file.exists():
            notes.append("result.json is damaged")
        config = run.config.read_text("utf-8", "replace") if run.config.is_file() else ""
        status = run.read_status()
        name = text(result or {}, "experiment") or text(status, "experiment") or _named_in(config)
        return cls(
            name=name or "run",
            config=config,
            status=status,
            result=result or {},
            metrics=tuple(run.metrics()),
            series=series,
            draws=draws,
            notes=tuple(notes),
        )

    @property
    def state(self) -> str:
        """done, or why there is no result: failed, law_broken, interrupted, running."""
        state = text(self.status, "state")
        if self.result and state in ("", "running"):
            return "done"
        return state or "running"

    @property
    def parameters(self) -> dict[str, Mapping[str, Any]]:
        return {name: p for name, p in mapping(self.result, "parameters").items() if is_map(p)}

    @property
    def measured(self) -> Mapping[str, Any]:
        return mapping(self.result, "measured")

    @property
    def laws(self) -> list[Mapping[str, Any]]:
        return rows(self.result, "laws")

    @property
    def targets(self) -> list[Mapping[str, Any]]:
        """Targets with at least one state that has a measured and a predicted value."""
        return [t for t in rows(self.measured, "targets") if self.compared(text(t, "name"))]

    @property
    def states(self) -> list[Mapping[str, Any]]:
        return rows(self.measured, "states")

    def compared(self, target: str) -> list[Mapping[str, Any]]:
        """The states where `target` is both predicted and measured."""
        wanted = (target, f"{target}_target")
        return [s for s in self.states if all(number(s.get(key)) is not None for key in wanted)]


def mapping(parent: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = parent.get(key)
    return value if isinstance(value, Mapping) else {}


def rows(parent: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    value = parent.get(key)
    return [row for row in value if is_map(row)] if isinstance(value, list) else []


def text(parent: Mapping[str, Any], key: str) -> str:
    value = parent.get(key)
    return value if isinstance(value, str) else ""


def is_map(value: Any) -> bool:
    return isinstance(value, Mapping)


def numbers(parent: Mapping[str, Any], key: str) -> list[float]:
    """The list under `key`, empty where one of its entries is not a finite number."""
    value = parent.get(key)
    found = [number(item) for item in value] if isinstance(value, list) else []
    return [] if None in found else [item for item in found if item is not None]


def _draws(path: Path, notes: list[str]) -> dict[str, np.ndarray]:
    """Every number that was drawn: `name`, or `name[i]` of an array -> (chains, draws)."""
    out: dict[str, np.ndarray] = {}
    if not path.exists():
        return out
    try:
        found = read_draws(path)
    except ConfigError as error:
        notes.append(f"posterior.h5: {error.cause}")
        return out
    for name, values in found.items():
        for index in np.ndindex(values.shape[2:]):
            label = f"{name}[{','.join(map(str, index))}]" if index else name
            chains = values[(slice(None), slice(None), *index)]
            if chains.size and np.all(np.isfinite(chains)):
                out[label] = chains
    return out


def _named_in(config: str) -> str:
    for line in config.splitlines():
        key, colon, value = line.partition(":")
        if colon and key in ("experiment", "name"):
            return value.strip().strip("'\"")
    return ""

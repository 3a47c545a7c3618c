"""Rows, times side by side, the machine they were taken on, and the table."""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any


@dataclass(frozen=True)
class Row:
    """One figure: diffsim's `value` and the peer's, and how many times better diffsim is."""

    system: str
    size: str
    metric: str
    value: float
    unit: str
    peer: str | None = None
    peer_value: float | None = None
    ratio: float | None = None
    note: str = ""


def less_is_better(
    system: str, size: str, metric: str, value: float, unit: str, peer: str, peer_value: float
) -> Row:
    """A row of times or errors."""
    return Row(system, size, metric, value, unit, peer, peer_value, peer_value / value)


def more_is_better(
    system: str, size: str, metric: str, value: float, unit: str, peer: str, peer_value: float
) -> Row:
    """A row of rates."""
    return Row(system, size, metric, value, unit, peer, peer_value, value / peer_value)


def seconds(tasks: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median wall time of each task. They take turns, so that a busy machine slows all alike;
    the first round, which may compile, does not count."""
    taken: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(repeats + 1):
        for name, task in tasks.items():
            start = time.perf_counter()
            _wait(task())
            taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(times[1:]) for name, times in taken.items()}


def fastest(
    tasks: Mapping[Any, Callable[[], Any]], repeats: int, budget: float
) -> dict[Any, float]:
    """The shortest wall time of each task. They take turns, a first round not counted, until each
    has run `repeats` times or, slow ones, for `budget` seconds in all."""
    best, spent = dict.fromkeys(tasks, float("inf")), dict.fromkeys(tasks, 0.0)
    for turn in range(repeats + 1):
        for name, task in tasks.items():
            if turn > 1 and spent[name] > budget:
                continue
            start = time.perf_counter()
            _wait(task())
            took = time.perf_counter() - start
            spent[name] += took
            best[name] = min(best[name], took) if turn else best[name]
    return best


def _wait(result: Any) -> None:
    if result is not None and not isinstance(result, int | float):
        import jax

        jax.block_until_ready(result)


def machine() -> dict[str, Any]:
    """Where the figures come from."""
    import jax

    device = jax.devices()[0]
    return {
        "device": f"{device.platform} {device.device_kind}",
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "load": [round(x, 2) for x in os.getloadavg()],
        "python": platform.python_version(),
        "versions": {
            name: _version(name) for name in ("diffsim", "jax", "jaxlib", "diffrax", "jax-md")
        },
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(
                line.split(":")[1].strip() for line in lines if line.startswith("model name")
            )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def table(name: str, purpose: str, where: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """The rows for people."""
    from rich.console import Console
    from rich.table import Table

    # a pipe has no width of its own
    console = Console() if sys.stdout.isatty() else Console(width=120)
    console.print(f"[bold]{name}[/]: {purpose.strip().splitlines()[0]}")
    console.print(
        f"{where['device']}, {where['processor']}, {where['cores']} cores, load "
        f"{where['load'][0]}; Python {where['python']}, "
        + ", ".join(f"{k} {v}" for k, v in where["versions"].items() if v)
    )
    shown = Table("system", "size", "metric", "diffsim", "unit", "peer", "its value", "ratio")
    for row in rows:
        peer_value = "" if row.peer_value is None else f"{row.peer_value:.4g}"
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        cells = row.system, row.size, row.metric, f"{row.value:.4g}", row.unit, row.peer or ""
        shown.add_row(*cells, peer_value, ratio)
    console.print(shown)
    for note in dict.fromkeys(row.note for row in rows if row.note):
        console.print(note)

"""Figures of a sweep: objective and parameters against what was swept, and how a search went."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .._report.numbers import pretty_name, pretty_unit
from .._report.style import (
    BLUE,
    FAINT,
    GREEN,
    MUTED,
    ORANGE,
    PAPER,
    new_figure,
    plain,
    power_ticks,
)
from .summary import Row, Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS, ROWS = 4, 6  # keys and quantities that are drawn
_POINTS: dict[str, Any] = {"fmt": "o", "markersize": 5.5, "markeredgecolor": PAPER}
_POINTS |= {"markeredgewidth": 0.5, "elinewidth": 1.0, "capsize": 0, "zorder": 3}


def against(summary: Summary) -> Figure | None:
    """The objective and each parameter with its error bar, against each swept key."""
    keys = [key for key in summary.keys if len(_positions(summary, key)[1]) > 1][:COLUMNS]
    names = [name for name in ("", *summary.parameters) if _any(summary, name)][:ROWS]
    if not keys or not names:
        return None
    figure = new_figure(max(7.6, 3.5 * len(keys)), 0.7 + 1.75 * len(names))
    grid = figure.subplots(len(names), len(keys), squeeze=False, sharex="col", sharey="row")
    for i, name in enumerate(names):
        for j, key in enumerate(keys):
            _panel(grid[i, j], summary, name, key)
            if j == 0:
                grid[i, j].set_ylabel(plain(_label(summary, name)))
    for j, key in enumerate(keys):
        grid[-1, j].set_xlabel(plain(key if len(key) < 44 else f"…{key[-42:]}"))
        _x_axis(grid[-1, j], summary, key)
    return figure


def history(summary: Summary) -> Figure | None:
    """The objective of each trial of a search, and the best until then."""
    found = [(i, row.objective) for i, row in enumerate(summary.rows) if row.objective is not None]
    if not summary.search or len(found) < 2:
        return None
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(7.6, 2.9)
    axes = figure.subplots()
    numbers, values = zip(*found, strict=True)
    pick = max if summary.search.get("direction") == "maximize" else min
    best = [pick(values[: i + 1]) for i in range(len(values))]
    axes.step(numbers, best, where="post", color=GREEN, label="best until then", zorder=2)
    axes.plot(numbers, values, "o", color=BLUE, markersize=4.5, markeredgecolor=PAPER, zorder=3)
    lost = [i for i, row in enumerate(summary.rows) if row.objective is None]
    _failures(axes, lost)
    _logarithmic(axes, values)
    axes.set_xlabel("Trial")
    axes.set_ylabel(_label(summary, ""))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="upper right")
    return figure


def _panel(axes: Axes, summary: Summary, name: str, key: str) -> None:
    places, _ = _positions(summary, key)
    shown = [(places[i], *_value(row, name)) for i, row in enumerate(summary.rows) if row.done]
    points = [(x, y, error or 0.0) for x, y, error in shown if x is not None and y is not None]
    spread = summary.spread(name) if name and not summary.search else None
    if spread is not None and spread.sd is not None:
        axes.axhspan(spread.mean - spread.sd, spread.mean + spread.sd, color=FAINT, lw=0, zorder=0)
        axes.axhline(spread.mean, color=MUTED, linewidth=0.8, zorder=1)
    if points:
        x, y, error = (list(column) for column in zip(*points, strict=True))
        best = summary.best
        axes.errorbar(x, y, error if any(error) else None, color=BLUE, **_POINTS)
        if best is not None and (place := places[summary.rows.index(best)]) is not None:
            value = _value(best, name)[0]
            if value is not None:
                axes.plot([place], [value], "o", color=GREEN, markersize=8, zorder=4)
        if not name:
            _logarithmic(axes, y)
    _failures(axes, [places[i] for i, row in enumerate(summary.rows) if not row.done])


def _failures(axes: Axes, places: Sequence[float | None]) -> None:
    """Jobs without a result, at the foot of the axes."""
    at = [place for place in places if place is not None]
    if at:
        style: dict[str, Any] = {"color": ORANGE, "markersize": 5, "clip_on": False, "zorder": 4}
        axes.plot(at, [0.03] * len(at), "x", transform=axes.get_xaxis_transform(), **style)


def _positions(summary: Summary, key: str) -> tuple[list[float | None], list[Any]]:
    """Where each row stands along a key, and the values in order: numbers, or texts in a row."""
    texts = [row.overrides.get(key) for row in summary.rows]
    values = [_number(text) for text in texts if text is not None]
    if None not in values:
        numbers = [None if text is None else _number(text) for text in texts]
        return numbers, sorted({n for n in numbers if n is not None})
    names = list(dict.fromkeys(text for text in texts if text is not None))
    return [None if text is None else float(names.index(text)) for text in texts], names


def _x_axis(axes: Axes, summary: Summary, key: str) -> None:
    _, values = _positions(summary, key)
    if all(isinstance(value, str) for value in values):
        axes.set_xticks(range(len(values)), [plain(v[:16]) for v in values])
        axes.margins(x=0.15)
    elif _wide(values):
        axes.set_xscale("log")
        power_ticks(axes.xaxis)
    elif len(values) <= 8 and all(float(value).is_integer() for value in values):
        axes.set_xticks(values, [f"{value:g}" for value in values])


def _logarithmic(axes: Axes, values: Sequence[float]) -> None:
    if _wide(values):
        axes.set_yscale("log")
        power_ticks(axes.yaxis)


def _wide(values: Sequence[float]) -> bool:
    return min(values) > 0 and max(values) / min(values) > 60


def _value(row: Row, name: str) -> tuple[float | None, float | None]:
    return row.value(name) if name else (row.objective, None)


def _any(summary: Summary, name: str) -> bool:
    return any(_value(row, name)[0] is not None for row in summary.rows if row.done)


def _label(summary: Summary, name: str) -> str:
    if not name:
        return pretty_name(str(summary.search.get("objective") or "objective")).capitalize()
    unit = pretty_unit(summary.unit(name))
    return pretty_name(name) + (f" [{unit}]" if unit else "")


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None

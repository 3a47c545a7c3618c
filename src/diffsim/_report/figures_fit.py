"""Figures of a fit: parity, loss, parameters, and what the ways to take the gradient cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .numbers import human_bytes, human_time, number, pretty_name, pretty_unit, with_error
from .run_data import RunData, is_map, rows, text
from .style import (
    BLUE,
    FAINT,
    GREEN,
    INK,
    MUTED,
    ORANGE,
    PAPER,
    SERIES,
    SOFT,
    label_line,
    new_figure,
    plain,
    power_ticks,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def parity(run: RunData) -> Figure | None:
    """Predicted against measured for each target, and the residuals in units of its sigma below."""
    targets = run.targets[:4]
    if not targets:
        return None
    figure = new_figure(4.9 * max(len(targets), 1.45), 5.0)
    grid = figure.subplots(2, len(targets), squeeze=False, sharex="col", height_ratios=[2.6, 1])
    for column, target in enumerate(targets):
        _parity_column(run, target, grid[0, column], grid[1, column])
    return figure


def _parity_column(run: RunData, target: Mapping[str, Any], top: Axes, bottom: Axes) -> None:
    name, sigma = text(target, "name"), number(target.get("sigma")) or 0.0
    label = pretty_name(text(target, "observable") or name).capitalize()
    unit = pretty_unit(text(target, "unit"))
    unit = f" [{unit}]" if unit else ""
    states = run.compared(name)
    column = {
        key: np.array([number(s.get(name + key)) or 0.0 for s in states])
        for key in ("", "_target", "_stderr")
    }
    used = np.array([s.get("used") is not False for s in states])
    span = np.array([column["_target"].min(), column["_target"].max()])
    top.plot(span, span, color=MUTED, linewidth=0.8, zorder=1)
    bottom.axhline(0, color=MUTED, linewidth=0.8, zorder=1)
    if sigma:
        bottom.axhspan(-1, 1, color=FAINT, linewidth=0, alpha=0.6, zorder=0)
    groups = [("fitted", used, BLUE, "o"), ("held out", ~used, ORANGE, "D")]
    for what, chosen, color, marker in groups:
        if not chosen.any():
            continue
        measured, predicted, error = (column[k][chosen] for k in ("_target", "", "_stderr"))
        style: dict[str, Any] = {"fmt": marker, "color": color, "markeredgecolor": PAPER}
        style |= {"markersize": 5.5, "markeredgewidth": 0.5, "elinewidth": 1.0, "capsize": 0}
        shown = f"{what} ({chosen.sum()})" if not used.all() else f"{chosen.sum()} states"
        top.errorbar(measured, predicted, error, label=shown, zorder=3, **style)
        scale = sigma or 1.0
        bottom.errorbar(measured, (predicted - measured) / scale, error / scale, zorder=3, **style)
    top.legend(loc="upper left", handletextpad=0.2, borderaxespad=0.1)
    top.set_ylabel(plain(f"{label}, predicted{unit}"))
    bottom.set_xlabel(plain(f"{label}, measured{unit}"))
    bottom.set_ylabel(
        f"Residual / {with_error(sigma, None, text(target, 'unit'))}"
        if sigma
        else f"Residual{unit}"
    )
    largest = max(1.3, *(abs(v) for v in bottom.get_ylim()))
    bottom.set_ylim(-largest, largest)


def loss(run: RunData) -> Figure | None:
    """Loss against iteration, where the samples were renewed, and the effective sample fraction."""
    found = [(r["iteration"], r["loss"], r) for r in run.metrics if _plottable(r, "loss")]
    if len(found) < 2:
        return None
    iteration, value = np.array([f[0] for f in found]), np.array([f[1] for f in found], float)
    effective = np.array([number(f[2].get("ess")) or np.nan for f in found])
    renewed = np.array([f[2].get("resampled") is True for f in found])
    below = bool(np.isfinite(effective).any())
    figure = new_figure(4.9, 3.4)
    panels = figure.subplots(
        2 if below else 1, 1, squeeze=False, sharex=True, height_ratios=[2.4, 1][: 1 + below]
    )
    axes = panels[0, 0]
    axes.plot(iteration, value, color=BLUE, marker="o" if len(value) < 60 else "", markersize=3.5)
    if (value > 0).all() and value.max() > 10 * value.min():  # else no power of ten is in sight
        axes.set_yscale("log")
        power_ticks(axes.yaxis)
    axes.set_ylabel("Loss")
    if renewed.any():
        style: dict[str, Any] = {
            "facecolors": "none",
            "edgecolors": ORANGE,
            "linewidths": 1.2,
            "zorder": 4,
        }
        axes.scatter(iteration[renewed], value[renewed], s=46, label="samples renewed", **style)
        axes.legend(loc="upper right", handletextpad=0.2, borderaxespad=0.1)
    if below:
        panels[1, 0].plot(
            iteration, effective, color=GREEN, marker="o" if len(value) < 60 else "", markersize=3
        )
        panels[1, 0].set_ylim(0, 1.05)
        panels[1, 0].set_ylabel("Effective\nsamples")
    _iterations(panels[-1, 0])
    return figure


def parameters(run: RunData) -> Figure | None:
    """Each parameter against iteration, and beside it the end against the final standard error."""
    lines = [r for r in run.metrics if number(r.get("iteration")) is not None]
    lines = [r for r in lines if is_map(r.get("parameters"))]
    names = list(dict.fromkeys(name for r in lines for name in r["parameters"]))
    names = [name for name in names if not run.parameters.get(name, {}).get("fixed")][:8]
    if len(lines) < 2 or not names:
        return None
    closeup = any(len(_near_the_end(run, name, lines)) > 1 for name in names)
    figure = new_figure(4.9, max(3.4, 1.25 * len(names) + 0.5))
    widths = [1.5, 1] if closeup else [1]
    panels = figure.subplots(
        len(names), len(widths), squeeze=False, sharex="col", width_ratios=widths
    )
    for row, name, color in zip(panels, names, SERIES * 2, strict=False):
        final = run.parameters.get(name, {})
        unit = pretty_unit(text(final, "unit"))
        row[0].set_ylabel(plain(f"{pretty_name(name)} [{unit}]" if unit else pretty_name(name)))
        _parameter_line(row[0], name, color, lines)
        if closeup:
            _parameter_line(row[1], name, color, _near_the_end(run, name, lines))
            _final_band(row[1], final, color)
    for axes in panels[-1]:
        _iterations(axes)
    return figure


def _near_the_end(run: RunData, name: str, lines: list[Any]) -> list[Any]:
    """The last lines, as far back as they lie within six standard errors of the answer."""
    final = run.parameters.get(name, {})
    best, error = number(final.get("value")), number(final.get("stderr"))
    if best is None or not error:
        return []
    near: list[Any] = []
    for line in reversed(lines):
        value = number(line["parameters"].get(name))
        if value is None or abs(value - best) > 6 * error:
            break
        near.insert(0, line)
    return near


def _parameter_line(axes: Axes, name: str, color: str, lines: list[Any]) -> None:
    found = [
        (r["iteration"], r["parameters"][name])
        for r in lines
        if number(r["parameters"].get(name)) is not None
    ]
    if found:
        marker = "o" if len(found) < 60 else ""
        axes.plot(*zip(*found, strict=True), color=color, marker=marker, markersize=3.5)


def _final_band(axes: Axes, final: Mapping[str, Any], color: str) -> None:
    best, error = number(final.get("value")), number(final.get("stderr"))
    if best is None or not error:
        return
    axes.axhspan(best - error, best + error, color=color, alpha=0.15, linewidth=0)
    axes.axhline(best, color=color, linewidth=0.7, alpha=0.6)
    low, high = axes.get_ylim()
    reach = 1.15 * max(2 * error, best - low, high - best)
    axes.set_ylim(best - reach, best + reach)
    note = with_error(best, error, text(final, "unit"))
    axes.set_title(plain(note), color=color, fontsize=8, loc="right", pad=3)


def adjoints(run: RunData) -> Figure | None:
    """Time and memory of one gradient by each adjoint that was compared, the chosen one in blue."""
    compared = rows(run.measured, "adjoints")
    panels = [
        (key, title, show)
        for key, title, show in (
            ("iteration_s", "Time of one iteration", human_time),
            ("temp_bytes", "Temporary memory", human_bytes),
        )
        if any(number(row.get(key)) is not None for row in compared)
    ]
    if len(compared) < 2 or not panels:
        return None
    chosen = text(run.result["adjoint"], "name") if is_map(run.result.get("adjoint")) else ""
    figure = new_figure(4.9, 0.9 + 0.42 * len(compared))
    grid = figure.subplots(1, len(panels), squeeze=False, sharey=True)
    for axes, (key, title, show) in zip(grid[0], panels, strict=True):
        values = [number(row.get(key)) or 0.0 for row in compared]
        names = [text(row, "name") for row in compared]
        colors = [BLUE if name == chosen or not chosen else SOFT for name in names]
        axes.barh(range(len(values)), values, height=0.55, color=colors, linewidth=0)
        for i, value in enumerate(values):
            label_line(axes, value, float(i), show(value), INK)
        axes.set_yticks(range(len(names)), [plain(name) for name in names])
        axes.tick_params(axis="y", length=0, labelcolor=INK, labelsize=8)
        axes.set_title(title, fontsize=8.5, color=INK, loc="left")
        axes.set_xlim(0, max(values) * 1.45 or 1)
        axes.xaxis.set_visible(False)
        axes.spines["bottom"].set_visible(False)
    grid[0, 0].invert_yaxis()
    return figure


def _plottable(row: Mapping[str, Any], key: str) -> bool:
    return number(row.get("iteration")) is not None and number(row.get(key)) is not None


def _iterations(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("Iteration")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))

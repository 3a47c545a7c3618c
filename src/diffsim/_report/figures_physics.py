"""Figures of the physics: observables, structure, conservation of energy, order in time."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from .._store import Series
from .numbers import (
    number,
    pretty_label,
    pretty_name,
    pretty_unit,
    significant,
    superscript,
    with_error,
)
from .run_data import RunData, mapping, numbers, rows, text
from .style import (
    BLUE,
    FAINT,
    INK,
    MUTED,
    ORANGE,
    label_line,
    new_figure,
    plain,
    power_ticks,
    shades,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ROUNDING = 1e-16  # the least error that is drawn
_POINTS = 2000  # a line in a figure shows no more


def observables(run: RunData) -> Figure | None:
    """Observables over time with their means; of a batch of conditions each as a thin line."""
    if run.parameters:
        return None  # of a fit, the averages matter and stand in its table
    names = [name for name, s in run.series.items() if s.value.ndim <= 2 and len(s.step) > 2]
    averaged = mapping(run.measured, "observables")
    names = [*filter(names.__contains__, averaged), *(n for n in names if n not in averaged)][:6]
    if not names:
        return None
    columns = min(len(names), 3)
    lines = -(-len(names) // columns)
    figure = new_figure(9.8, 0.5 + 2.0 * lines)
    panels = figure.subplots(lines, columns, squeeze=False)
    for axes in panels.flat[len(names) :]:
        axes.remove()
    for axes, name in zip(panels.flat, names, strict=False):
        _observable_panel(axes, name, run.series[name], mapping(averaged, name))
    return figure


def _observable_panel(axes: Axes, name: str, series: Series, average: Any) -> None:
    time, value = _thinned(series)
    many = value.ndim == 2 and value.shape[1] > 1
    axes.plot(time, value, color=BLUE, linewidth=0.7, alpha=0.45 if many else 0.9)
    mean, error = number(average.get("mean")), number(average.get("stderr"))
    unit = series.unit or text(average, "unit")
    if mean is not None and not many:
        axes.axhline(mean, color=ORANGE, linewidth=1.2)
        note = with_error(mean, error, unit)
        axes.set_title(plain(note), fontsize=8, color=ORANGE, loc="right", pad=3)
    axes.set_ylabel(plain(_with_unit(pretty_name(name).capitalize(), unit)))
    axes.set_xlabel(_time_label(series))


def rdf(run: RunData) -> Figure | None:
    """g(r) of each condition."""
    data = mapping(run.measured, "rdf")
    r = numbers(data, "r")
    curves = [(text(c, "label"), numbers(c, "g")) for c in rows(data, "curves")]
    curves = [(label, g) for label, g in curves if len(g) == len(r)]
    if len(r) < 2 or not curves:
        return None
    figure = new_figure(4.9, 3.4)
    axes = figure.subplots()
    axes.axhline(1, color=MUTED, linewidth=0.7, linestyle=(0, (4, 3)), zorder=0)
    few = len(curves) <= 6
    for (label, g), color in zip(curves, shades(len(curves)), strict=True):
        axes.plot(
            r, g, color=color, linewidth=1.3 if few else 0.8, label=plain(pretty_label(label))
        )
    if few and any(label for label, _ in curves):
        axes.legend(loc="upper right", labelcolor="linecolor", handlelength=1.2)
    elif not few:
        first, last = (plain(pretty_label(curves[i][0])) for i in (0, -1))
        note = f"{len(curves)} conditions, dark to light:\n{first} … {last}"
        axes.text(0.98, 0.97, note, transform=axes.transAxes, ha="right", va="top", fontsize=7.5)
    axes.set_xlabel(plain(_with_unit("r", text(data, "r_unit"))))
    axes.set_ylabel("g(r)")
    axes.set_xlim(0, r[-1])
    axes.set_ylim(0, None)
    return figure


def energy(run: RunData) -> Figure | None:
    """Total energy against time, from its start and relative to the mean kinetic energy."""
    total, kinetic = run.series.get("total_energy"), run.series.get("kinetic_energy")
    if (
        total is None
        or kinetic is None
        or len(total.step) < 3
        or kinetic.value.shape != total.value.shape
    ):
        return None
    time, value = _thinned(total)
    scale = np.abs(kinetic.value.mean(axis=0))
    if not (np.isfinite(value).all() and (scale > 0).all()):
        return None
    drift = (value - value[0]) / scale
    largest = float(np.abs(drift).max())
    power = math.floor(math.log10(largest)) if largest > 0 else 0
    many = drift.ndim == 2 and drift.shape[1] > 1
    figure = new_figure(4.9, 3.4)
    axes = figure.subplots()
    axes.axhline(0, color=MUTED, linewidth=0.7, zorder=0)
    axes.plot(time, drift / 10.0**power, color=BLUE, linewidth=0.8, alpha=0.5 if many else 1)
    axes.set_xlabel(_time_label(total))
    axes.set_ylabel(f"(E − E(0)) / mean kinetic energy  [10{superscript(power)}]")
    _tolerance(run, axes, largest, 10.0**power)
    return figure


def _tolerance(run: RunData, axes: Axes, largest: float, scale: float) -> None:
    """The band that the law allows, drawn where it can be seen and told where it cannot."""
    laws = [law for law in run.laws if text(law, "name") == "total_energy"]
    limit = next((value for law in laws if (value := number(law.get("tolerance")))), None)
    if limit is None:
        return
    note = f"tolerance ±{significant(limit, 2)}"
    if limit < 5 * largest:
        axes.axhspan(-limit / scale, limit / scale, color=FAINT, alpha=0.6, linewidth=0, zorder=-1)
        note = f"shaded: {note}"
    elif largest > 0:
        note = f"{note}: {significant(limit / largest, 2)} times the largest"
    axes.set_title(note, fontsize=7.5, color=MUTED, loc="right", pad=3)


def drift(run: RunData) -> Figure | None:
    """How far each integrator lets the invariants go: the largest error in windows of time."""
    found = {key: rows(run.measured, key) for key in run.measured if key.endswith("_drift")}
    panels = {key: _envelopes(entries) for key, entries in found.items()}
    panels = {key: lines for key, lines in panels.items() if lines}
    if not panels:
        return None
    figure = new_figure(1.6 + 4.0 * len(panels), 3.4)
    grid = figure.subplots(1, len(panels), squeeze=False)
    for axes, (key, lines) in zip(grid.flat, panels.items(), strict=True):
        for (label, time, error), color in zip(lines, shades(len(lines)), strict=True):
            axes.loglog(time, np.maximum(error, _ROUNDING), color=color, linewidth=1.2, label=label)
        name = pretty_name(key.removesuffix("_drift"))
        axes.set_ylabel(plain(f"Relative error of the {name}"))
        axes.set_xlabel(plain(_with_unit("Time", text(run.measured, "time_unit"))))
        power_ticks(axes.yaxis)
    grid.flat[-1].legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def _envelopes(entries: list[Any]) -> list[tuple[str, Any, Any]]:
    lines = []
    for entry in entries:
        time, error = numbers(entry, "times"), numbers(entry, "envelope")
        if len(time) == len(error) > 1 and min(time) > 0:
            lines.append((text(entry, "name"), np.asarray(time), np.asarray(error)))
    return lines


def convergence(run: RunData) -> Figure | None:
    """Standard deviation of the energy against the time step: slope 2 for a second-order step."""
    data = mapping(run.measured, "convergence")
    dt, std = numbers(data, "dt"), numbers(data, "std_total_energy")
    if len(dt) < 2 or len(dt) != len(std) or min(*dt, *std) <= 0:
        return None
    order = np.argsort(dt)
    x, y = np.array(dt)[order], np.array(std)[order]
    figure = new_figure(4.9, 3.4)
    axes = figure.subplots()
    axes.loglog(x, y[0] * (x / x[0]) ** 2, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
    label_line(axes, x[-1], y[0] * (x[-1] / x[0]) ** 2, "slope 2", MUTED)
    axes.loglog(x, y, color=BLUE, marker="o", markersize=5, linewidth=1.2)
    for i in range(len(x) - 1):
        middle = (np.sqrt(x[i] * x[i + 1]), np.sqrt(y[i] * y[i + 1]))
        options: dict[str, Any] = {"textcoords": "offset points", "ha": "right", "va": "bottom"}
        axes.annotate(
            f"× {y[i + 1] / y[i]:.2f}", middle, xytext=(-6, 3), color=INK, fontsize=8, **options
        )
    power_ticks(axes.yaxis)
    axes.minorticks_off()
    axes.set_xticks(x, [significant(v, 3) for v in x])
    axes.set_xlabel(plain(_with_unit("Time step", text(data, "dt_unit"))))
    energy_unit = text(data, "energy_unit")
    axes.set_ylabel(plain(_with_unit("Std. deviation of the total energy", energy_unit)))
    return figure


def _thinned(series: Series) -> tuple[Any, Any]:
    every = max(1, len(series.step) // _POINTS)
    return series.time[::every], series.value[::every]


def _time_label(series: Series) -> str:
    return plain(_with_unit("Time", series.time_unit))


def _with_unit(label: str, unit: str) -> str:
    printed = pretty_unit(unit)
    return f"{label} [{printed}]" if printed else label

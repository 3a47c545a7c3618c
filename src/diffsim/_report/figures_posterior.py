"""Figures of series and posteriors: data with fit and bands, pairs of parameters, traces."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .numbers import number, pretty_name, pretty_unit, with_error
from .run_data import RunData, is_map, mapping, rows, text
from .style import BLUE, INK, MUTED, PAPER, SERIES, new_figure, plain, shades

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST = 8  # parameters in a figure
POINTS = 2000  # draws in a panel


def series(run: RunData) -> Figure | None:
    """What was measured over time, with the fitted curve; of a posterior the 90 % bands of the
    model (dark) and of measurements (light). A panel a target, conditions in their colours."""
    shown = [s for s in rows(run.measured, "series") if rows(s, "curves")][:6]
    if not shown:
        return None
    columns = 2 if len(shown) > 2 else 1
    lines = -(-len(shown) // columns)
    figure = new_figure(7.2, max(2.5 * lines, 2.9))
    grid = figure.subplots(lines, columns, squeeze=False, sharex=columns == 1)
    for axes, entry in zip(grid.flat, shown, strict=False):
        _panel(axes, entry)
    for axes in grid.flat[len(shown) :]:
        axes.set_visible(False)
    if any(c.get("predictive") for c in rows(shown[0], "curves")):
        note = "bands: 90 % of the model (dark) and of measurements (light)"
        grid[0, 0].set_title(note, fontsize=7, loc="right", pad=3, color=MUTED)
    for axes in grid[-1] if columns == 1 else grid.flat:
        unit = pretty_unit(text(run.measured, "time_unit"))
        word = (text(shown[0], "time") or "time").capitalize()
        axes.set_xlabel(plain(f"{word} [{unit}]" if unit else word))
    return figure


def _panel(axes: Axes, entry: Mapping[str, Any]) -> None:
    curves = rows(entry, "curves")
    times, fine = _array(entry.get("times")), _array(entry.get("curve_times"))
    for curve, color in zip(curves, shades(len(curves)), strict=True):
        for name, alpha in (("predictive", 0.15), ("model", 0.35)):
            band = _array(curve.get(name))
            if band.shape == (2, fine.size):
                axes.fill_between(fine, *band, color=color, alpha=alpha, linewidth=0)
        fit, data = _array(curve.get("fit")), _array(curve.get("data"))
        if fit.shape == fine.shape:
            dashed = "--" if curve.get("used") is False else "-"
            axes.plot(fine, fit, dashed, color=color, linewidth=1.2, zorder=3)
        if data.shape == times.shape:
            style: dict[str, Any] = {"markeredgecolor": PAPER, "markeredgewidth": 0.5, "zorder": 4}
            label = text(curve, "label") or None
            axes.plot(times, data, "o", color=color, markersize=4.5, label=label, **style)
    if len(curves) > 1 and any(text(c, "label") for c in curves):
        axes.legend(loc="best", ncols=2 if len(curves) > 4 else 1, handletextpad=0.2)
    unit = pretty_unit(text(entry, "unit"))
    name = pretty_name(text(entry, "name") or text(entry, "observable"))
    name = name[:1].upper() + name[1:]
    axes.set_ylabel(plain(f"{name} [{unit}]" if unit else name))
    if text(entry, "noise") == "lognormal":
        axes.set_ylim(bottom=0)
    if entry.get("logarithmic") is True and np.all(fine > 0):
        axes.set_xscale("log")


def phase(run: RunData) -> Figure | None:
    """The first two series against each other: the fitted orbit, and the points measured on it."""
    shown = [s for s in rows(run.measured, "series") if rows(s, "curves")]
    if len(shown) < 2 or _array(shown[0].get("times")).size < 6:
        return None
    first, second = shown[:2]
    both = list(zip(rows(first, "curves"), rows(second, "curves"), strict=False))[:6]
    figure = new_figure(4.4, 3.9)
    axes = figure.subplots()
    for (a, b), color in zip(both, shades(len(both)), strict=True):
        orbit = _array(a.get("fit")), _array(b.get("fit"))
        points = _array(a.get("data")), _array(b.get("data"))
        if orbit[0].shape != orbit[1].shape or points[0].shape != points[1].shape:
            return None
        axes.plot(*orbit, color=color, linewidth=1.2)
        axes.plot(*points, "o", color=color, markersize=4, markeredgecolor=PAPER)
    for entry, label in ((first, axes.set_xlabel), (second, axes.set_ylabel)):
        unit = pretty_unit(text(entry, "unit"))
        name = pretty_name(text(entry, "name") or text(entry, "observable"))
        label(plain(f"{name[:1].upper()}{name[1:]} [{unit}]" if unit else name))
    return figure


def pairs(run: RunData) -> Figure | None:
    """Every two parameters against each other, with the regions that hold 50 and 90 % of the draws,
    and along the diagonal each by itself."""
    names = list(run.draws)[:MOST]
    if not names:
        return None
    n = len(names)
    size = max(4.9, 1.12 * n)
    figure = new_figure(size, size)
    grid = figure.subplots(n, n, squeeze=False, sharex="col")
    figure.set_layout_engine(None)
    margin = 0.55 / size  # of half an inch, whatever the number of panels
    figure.subplots_adjust(1.3 * margin, 1.3 * margin, 1 - 0.3 * margin, 1 - 0.6 * margin, 0.1, 0.1)
    draws = [_thinned(run.draws[name]) for name in names]
    for i in range(n):
        for j in range(n):
            axes = grid[i, j]
            if j > i:
                axes.set_visible(False)
                continue
            if i == j:
                _alone(axes, run.draws[names[i]].ravel())
            else:
                _together(axes, draws[j], draws[i])
            _pair_labels(axes, run, names, i, j)
    return figure


def _alone(axes: Axes, x: np.ndarray) -> None:
    low, middle, high = np.quantile(x, (0.05, 0.5, 0.95))
    axes.hist(x, bins=30, color=BLUE, alpha=0.3, histtype="stepfilled", linewidth=0)
    axes.hist(x, bins=30, color=BLUE, histtype="step", linewidth=0.9)
    for value, style in ((low, ":"), (middle, "-"), (high, ":")):
        axes.axvline(value, color=INK, linewidth=0.8, linestyle=style)
    axes.set_title(with_error(np.mean(x), np.std(x)), fontsize=7, pad=3)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)


def _together(axes: Axes, x: np.ndarray, y: np.ndarray) -> None:
    axes.plot(x, y, ".", color=BLUE, markersize=1.6, alpha=0.25, markeredgewidth=0, rasterized=True)
    density, xs, ys = _density(x, y)
    if density is not None:
        levels = sorted({_level(density, share) for share in (0.9, 0.5)})
        axes.contour(xs, ys, density.T, levels=levels, colors=INK, linewidths=[0.7, 1.0])


def _density(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray | None, np.ndarray, np.ndarray]:
    """Draws counted on a grid and smoothed by a normal kernel a third of their spread wide."""
    if np.std(x) == 0 or np.std(y) == 0:
        return None, x, y
    counts, xs, ys = np.histogram2d(x, y, bins=48, range=[_reach(x), _reach(y)])
    for axis, (values, edges) in enumerate(((x, xs), (y, ys))):
        width = 0.33 * np.std(values) / (edges[1] - edges[0])
        offsets = np.arange(-int(4 * width) - 1, int(4 * width) + 2)
        kernel = np.exp(-0.5 * (offsets / width) ** 2)
        lines = [np.convolve(line, kernel, mode="same") for line in np.moveaxis(counts, axis, 0).T]
        counts = np.moveaxis(np.stack(lines, axis=-1), 0, axis)
    return counts, 0.5 * (xs[1:] + xs[:-1]), 0.5 * (ys[1:] + ys[:-1])


def _reach(x: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(x, (0.001, 0.999))
    return low - 0.15 * (high - low), high + 0.15 * (high - low)


def _level(density: np.ndarray, share: float) -> float:
    """The density above which `share` of the draws lie."""
    ordered = np.sort(density.ravel())[::-1]
    inside = np.searchsorted(np.cumsum(ordered), share * ordered.sum())
    return float(ordered[min(inside, ordered.size - 1)])


def _pair_labels(axes: Axes, run: RunData, names: list[str], i: int, j: int) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=3))
    axes.tick_params(labelsize=6.5, length=2)
    axes.set_xlim(_reach(run.draws[names[j]].ravel()))
    if i != j:
        axes.yaxis.set_major_locator(MaxNLocator(nbins=3))
        axes.set_ylim(_reach(run.draws[names[i]].ravel()))
    if j == 0 and i > 0:
        axes.set_ylabel(_label(run, names[i]), fontsize=7.5)
    elif i != j:
        axes.tick_params(labelleft=False)
    if i == len(names) - 1:
        axes.set_xlabel(_label(run, names[j]), fontsize=7.5)
        axes.tick_params(axis="x", rotation=40)
    else:
        axes.tick_params(labelbottom=False)


def traces(run: RunData) -> Figure | None:
    """Each parameter draw by draw, a line a chain, and its distribution in each chain."""
    names = list(run.draws)[:MOST]
    if not names:
        return None
    found = {text(row, "name"): row for row in rows(mapping(run.measured, "posterior"), "table")}
    figure = new_figure(7.2, 0.95 * len(names) + 0.6)
    grid = figure.subplots(len(names), 2, squeeze=False, sharex="col", width_ratios=[4.5, 1])
    for (left, right), name in zip(grid, names, strict=True):
        chains = run.draws[name]
        step = max(1, chains.shape[1] // 1000)
        bins = np.histogram_bin_edges(chains, bins=24)
        for chain, color in zip(chains, shades(len(chains)), strict=True):
            at = np.arange(0, chains.shape[1], step)
            left.plot(at, chain[::step], color=color, linewidth=0.35, alpha=0.8, rasterized=True)
            counts, _ = np.histogram(chain, bins)
            right.stairs(counts, bins, orientation="horizontal", color=color, linewidth=0.9)
        left.set_ylabel(_label(run, name), fontsize=7.5)
        left.set_xlim(0, chains.shape[1])
        right.set_ylim(left.get_ylim())
        right.tick_params(labelleft=False, labelbottom=False, bottom=False)
        right.spines["bottom"].set_visible(False)
        _diagnosis(left, found.get(name, {}))
    grid[-1, 0].set_xlabel("Draw")
    return figure


def _diagnosis(axes: Axes, row: Mapping[str, Any]) -> None:
    rhat, ess = number(row.get("rhat")), number(row.get("ess"))
    if rhat is None or ess is None:
        return
    color = SERIES[1] if rhat > 1.01 or ess < 400 else MUTED
    note = f"R-hat {rhat:.3f}, {ess:.0f} effective draws"
    axes.set_title(note, fontsize=7, loc="right", pad=2, color=color)


def _label(run: RunData, name: str) -> str:
    unit = pretty_unit(text(run.parameters.get(name.partition("[")[0], {}), "unit"))
    return plain(f"{pretty_name(name)} [{unit}]" if unit else pretty_name(name))


def _thinned(chains: np.ndarray) -> np.ndarray:
    flat = chains.ravel()
    return flat[np.linspace(0, flat.size - 1, min(POINTS, flat.size)).astype(int)]


def _array(values: Any) -> np.ndarray:
    """Numbers as an array, NaN for what is none; empty where it is no table of numbers."""
    if not isinstance(values, list):
        return np.empty(0)
    if values and all(isinstance(row, list) for row in values):
        inner = [_array(row) for row in values]
        same = len({row.shape for row in inner}) == 1
        return np.stack(inner) if same else np.empty(0)
    found = [None if is_map(v) else number(v) for v in values]
    return np.array([np.nan if v is None else v for v in found], dtype=float)

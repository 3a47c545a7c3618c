"""Figures of a flow: its vorticity, still and moving, and where in scale its energy is."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from .._store import Series
from .film import film
from .numbers import pretty_unit, significant
from .run_data import RunData
from .style import MUTED, label_line, new_figure, plain, power_ticks, shades

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOMENTS = 4
_CELLS = 256  # along an edge of a picture; finer fields are thinned
_FRAMES = 40  # of a film
_FILM_BYTES = 1_000_000  # a third more in the page


def vorticity(run: RunData) -> Figure | None:
    """The vorticity of a plane flow at up to four times, on one scale."""
    found = _shown(run, _MOMENTS)
    if found is None:
        return None
    series, moments, shown, most = found
    nx, ny = shown[0].shape
    width = 2.5 * max(1.0, nx / ny)
    figure = new_figure(0.7 + width * len(shown), 0.55 + width * ny / nx)
    grid: Any = figure.subplots(1, len(shown), squeeze=False)[0]
    image: Any = None
    for axes, field, moment in zip(grid, shown, moments, strict=True):
        every = max(1, max(field.shape) // _CELLS)
        image = axes.imshow(
            field[::every, ::every].T, origin="lower", cmap="RdBu_r", vmin=-most, vmax=most
        )
        axes.set_axis_off()
        unit = pretty_unit(series.time_unit)
        time = significant(series.time[moment], 3)
        axes.set_title(plain(f"t = {time} {unit}".strip()), fontsize=8)
    bar = figure.colorbar(image, ax=list(grid), shrink=0.8, pad=0.01)
    bar.outline.set_visible(False)
    return figure


def vorticity_film(run: RunData) -> bytes | None:
    """The vorticity of a plane flow as a GIF, on one scale: fewer frames where they are hard to
    compress."""
    count = _FRAMES
    while (found := _shown(run, count)) is not None and len(found[1]) > 1:
        series, moments, shown, most = found
        gif = film(shown, _clock(series.time[moments], series.time_unit), most)
        if len(gif) <= _FILM_BYTES:
            return gif
        count = len(moments) // 2
    return None


def _clock(times: np.ndarray, unit: str) -> list[str]:
    """The times in figures of one length."""
    digits = max(0, 1 - math.floor(math.log10(np.min(np.diff(times)))))
    width = len(f"{times[-1]:.{digits}f}")
    return [f"t = {time:{width}.{digits}f} {pretty_unit(unit)}".rstrip() for time in times]


def _shown(run: RunData, count: int) -> tuple[Series, np.ndarray, list[np.ndarray], float] | None:
    """Up to `count` moments of the vorticity of a plane flow, evenly over its time: the series,
    their numbers, the fields (x, y), and the end of a scale for all."""
    series = run.series.get("vorticity")
    if series is None or series.value.ndim not in (3, 4) or not len(series.step):
        return None
    fields = series.value if series.value.ndim == 3 else series.value[:, 0]
    moments = np.unique(np.linspace(0, len(fields) - 1, count).round().astype(int))
    shown = [np.asarray(fields[i], dtype=float) for i in moments]
    if not all(np.isfinite(field).all() for field in shown):
        return None
    # the corners of a box with a lid are singular: they would take the whole scale
    most = max(float(np.quantile(np.abs(field), 0.995)) for field in shown) or 1.0
    return series, moments, shown, most


def spectrum(run: RunData) -> Figure | None:
    """E(k) at the end of a flow in a periodic box, and at its start as saved."""
    series = run.series.get("spectrum")
    if series is None or series.value.ndim not in (2, 3) or not len(series.step):
        return None
    values = series.value if series.value.ndim == 2 else series.value.mean(axis=1)
    moments = np.unique(np.linspace(0, len(values) - 1, _MOMENTS).round().astype(int))
    figure = new_figure(4.9, 3.4)
    axes = figure.subplots()
    k = np.arange(values.shape[1])
    floor = 1e-12 * float(values.max())
    seen = False
    for moment, color in zip(moments, shades(len(moments)), strict=True):
        energy = np.asarray(values[moment], dtype=float)
        kept = (k > 0) & np.isfinite(energy) & (energy > floor)
        if np.count_nonzero(kept) < 2:
            continue
        seen = True
        label = f"t = {significant(series.time[moment], 3)}"
        axes.loglog(k[kept], energy[kept], color=color, linewidth=1.2, label=label)
    if not seen:
        return None
    if values.shape[1] > 16:
        guide = np.array([6.0, values.shape[1] / 2.5])
        height = 3 * float(np.max(values[-1])) * (guide / guide[0]) ** -3
        axes.loglog(guide, height, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
        label_line(axes, guide[1], height[1], "k⁻³", MUTED)
    axes.set_xlabel("Wave number, 2π/L")
    axes.set_ylabel("Energy in a shell")
    power_ticks(axes.yaxis)
    axes.legend()
    return figure

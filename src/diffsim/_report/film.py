"""Moving pictures: a field of two axes over time, as a GIF."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .style import INK, PAPER, new_figure, plain

if TYPE_CHECKING:
    from PIL.Image import Image

_PIXELS = 320  # along the longer edge
_DPI = 100
_COLOURS, _GREYS = 80, 16
_MILLISECONDS = 100  # a frame


def film(fields: Sequence[np.ndarray], labels: Sequence[str], most: float) -> bytes:
    """A GIF that repeats: fields (x, y) on a scale from -most to most, a label in the corner.

    A cell is a whole number of pixels (finer fields are thinned) and has one of a few colours, the
    same in all frames: nothing flickers, and the file is small.
    """
    import matplotlib as mpl

    every = -(-max(fields[0].shape) // _PIXELS)
    thin = [field[::every, ::every].T for field in fields]
    ny, nx = thin[0].shape
    scale = max(1, _PIXELS // max(nx, ny)) / _DPI
    figure = new_figure(nx * scale, ny * scale)
    figure.set_dpi(_DPI)
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    colours = mpl.colormaps["RdBu_r"].resampled(_COLOURS)
    options: Any = dict(cmap=colours, vmin=-most, vmax=most, origin="lower", aspect="auto")
    image = axes.imshow(thin[0], interpolation="nearest", **options)
    box = dict(facecolor=PAPER, linewidth=0, boxstyle="round,pad=0.3")
    clock = axes.text(0.03, 0.03, "", transform=axes.transAxes, color=INK, bbox=box)
    palette, frames = _palette(colours), []
    for field, label in zip(thin, labels, strict=True):
        image.set_data(field)
        clock.set_text(plain(label))
        frames.append(_frame(figure.canvas, palette))
    out = io.BytesIO()
    first, *rest = frames
    first.save(
        out,
        "GIF",
        save_all=True,
        append_images=rest,
        duration=_MILLISECONDS,
        loop=0,
        optimize=False,
    )
    return out.getvalue()


def _frame(canvas: Any, palette: Image) -> Image:
    from PIL import Image

    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
    return picture.quantize(palette=palette, dither=Image.Dither.NONE)


def _palette(colours: Any) -> Image:
    """The colours of the field, and those between ink and paper."""
    from matplotlib.colors import LinearSegmentedColormap
    from PIL import Image

    greys = LinearSegmentedColormap.from_list("greys", [INK, PAPER])
    both = [colours(np.arange(_COLOURS)), greys(np.linspace(0, 1, _GREYS))]
    palette = Image.new("P", (1, 1))
    palette.putpalette(np.rint(255 * np.concatenate(both)[:, :3]).astype(np.uint8).tobytes())
    return palette

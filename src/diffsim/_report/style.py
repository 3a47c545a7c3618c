"""The look of every figure: one palette, one typography, and SVG in the colours of its page."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .numbers import superscript

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Each colour has a second value for dark pages, in page.css under the same name. The hues are told
# apart with any colour vision (after Okabe and Ito, 2008).
INK = "#1c2530"
MUTED = "#66717e"
FAINT = "#dde2e8"
PAPER = "#ffffff"
BLUE = "#0a6db4"
ORANGE = "#cf5a0c"
GREEN = "#0b8a6a"
PURPLE = "#9a4f95"
GOLD = "#a8790a"
SKY = "#4a9fd0"
SOFT = "#b3bcc7"
SERIES = (BLUE, ORANGE, GREEN, PURPLE, GOLD, SKY)

_VARIABLES = {
    INK: "ink",
    MUTED: "muted",
    FAINT: "faint",
    PAPER: "paper",
    BLUE: "blue",
    ORANGE: "orange",
    GREEN: "green",
    PURPLE: "purple",
    GOLD: "gold",
    SKY: "sky",
    SOFT: "soft",
}
_RC = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.labelsize": 8.5,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "axes.formatter.useoffset": False,
    "axes.formatter.limits": (-4, 5),
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "xtick.major.size": 3.0,
    "ytick.major.size": 3.0,
    "lines.linewidth": 1.3,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "legend.fontsize": 7.5,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "svg.fonttype": "path",
    "path.simplify": True,
}


@contextmanager
def house_style(salt: str) -> Iterator[None]:
    """Draw and save within this: `salt` makes the ids in an SVG its own, and the same each time."""
    import matplotlib as mpl

    settings: Any = {**_RC, "svg.hashsalt": salt}
    with mpl.rc_context(settings):
        yield


def new_figure(width: float, height: float) -> Figure:
    """An empty figure [inch] on the Agg canvas, apart from pyplot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.06, h_pad=0.05, wspace=0.03, hspace=0.03)  # type: ignore[union-attr]
    FigureCanvasAgg(figure)
    return figure


def plain(text: str) -> str:
    """`text` without mathematics: a dollar sign is a dollar sign."""
    return str(text).replace("$", r"\$")


def label_line(axes: Axes, x: float, y: float, text: str, color: str, **options: Any) -> None:
    """`text` right behind the end of a line, in its colour."""
    axes.annotate(
        plain(text),
        (x, y),
        xytext=(5, 0),
        textcoords="offset points",
        color=color,
        va="center",
        fontsize=7.5,
        annotation_clip=False,
        **options,
    )


def power_ticks(axis: Any) -> None:
    """Ticks of a logarithmic axis as `10⁻³`, in plain text: mathematics is slow to set."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    def label(value: float, _: int) -> str:
        power = round(math.log10(value)) if value > 0 else 0
        return f"{value:g}" if 0 <= power <= 3 else f"10{superscript(power)}"

    axis.set_major_locator(LogLocator(numticks=8))
    axis.set_major_formatter(FuncFormatter(label))
    axis.set_minor_formatter(NullFormatter())


def shades(count: int) -> Sequence[Any]:
    """`count` colours: of the palette where it has enough, else a sequence from blue to gold."""
    if count <= len(SERIES):
        return SERIES[:count]
    import matplotlib as mpl

    return [mpl.colormaps["viridis"](0.15 + 0.7 * i / (count - 1)) for i in range(count)]


def save_png(figure: Figure, path: Path) -> None:
    figure.savefig(path, format="png", dpi=200, facecolor=PAPER)
    figure.set_layout_engine("none")  # laid out once: the SVG keeps what this found


def inline_svg(figure: Figure, title: str) -> str:
    """The figure as an SVG element for an HTML page, its colours as the page's variables."""
    from html import escape

    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg\b[^>]*?) (?:width|height)="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg\b[^>]*?) (?:width|height)="[^"]*"', r"\1", svg, count=1)
    for color, name in _VARIABLES.items():
        svg = svg.replace(color, f"var(--{name})")
    # Presentation attributes do not know variables: as declarations of a style they do.
    svg = re.sub(r'\b(fill|stroke)="(var\([^"]*\))"', r'style="\1: \2"', svg)
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(title)}"', 1).strip()

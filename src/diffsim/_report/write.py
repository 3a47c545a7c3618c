"""Writes the report of a run directory from the files in it: figures as PNG and GIF, and one HTML
page."""

from __future__ import annotations

import base64
from pathlib import Path

from .._store.json_text import write_atomically
from .figures import FIGURES, FigureOf
from .html import page
from .markup import Html, element
from .run_data import RunData


def write_report(run_dir: Path) -> Path:
    """Write the figures and `report.html` of the run in `run_dir` and return the page's path.

    A pure function of `config.yaml`, `result.json`, `metrics.jsonl`, `status.json` and
    `trajectory.h5`, each of which may be missing or damaged: the page of a run that failed says
    how, and shows how far it came.
    """
    run_dir = Path(run_dir)
    run = RunData.load(run_dir)
    folder = run_dir / "figures"
    folder.mkdir(exist_ok=True)
    drawn: list[tuple[FigureOf, Html]] = []
    notes = list(run.notes)
    for figure in FIGURES:
        try:
            svg = _draw(figure, run, folder / f"{figure.name}.{figure.suffix}")
        except Exception as error:  # a figure must not cost the run its report
            notes.append(
                f"the figure {figure.name} could not be drawn: {type(error).__name__}: {error}"
            )
            continue
        if svg is not None:
            drawn.append((figure, svg))
    report = run_dir / "report.html"
    write_atomically(report, page(run, drawn, notes))
    return report


def _draw(figure: FigureOf, run: RunData, file: Path) -> Html | None:
    from .style import house_style, inline_svg, save_png

    with house_style(figure.name):
        drawing = figure.draw(run)
        if drawing is None:
            file.unlink(missing_ok=True)
            return None
        if isinstance(drawing, bytes):
            file.write_bytes(drawing)
            source = f"data:image/gif;base64,{base64.b64encode(drawing).decode()}"
            return element("img", src=source, alt=figure.title)
        save_png(drawing, file)
        return Html(inline_svg(drawing, figure.title))

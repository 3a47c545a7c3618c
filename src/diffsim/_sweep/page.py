"""sweep.html: what came of a sweep on one page, with a link to the report of each job."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from .. import _report
from .._report import pretty_unit, with_error
from .._report.html import POLICY
from .._report.markup import Html, element, section, table
from .._report.numbers import human_time, pretty_name, significant
from .._report.style import house_style, inline_svg, save_png
from .._secrets import scrub
from .._store.json_text import write_atomically
from . import figures
from .record import Record
from .summary import Row, Summary, spread_text

_FIGURES = (
    ("sweep", "Against what was swept", figures.against),
    ("history", "Trial after trial", figures.history),
)
_STATES = {"done": "ok", "failed": "broken", "law_broken": "broken"}
MOST_ROWS = 2000


def write_page(record: Record, summary: Summary) -> Path:
    """Draw the figures and write the page; its path."""
    folder = record.path / "figures"
    folder.mkdir(exist_ok=True)
    drawn, notes = [], []
    for name, title, draw in _FIGURES:
        try:
            with house_style(name):
                figure = draw(summary)
                if figure is not None:
                    save_png(figure, folder / f"{name}.png")
                    caption = element("figcaption", title)
                    svg = Html(inline_svg(figure, title))
                    drawn.append(element("figure", caption, svg, class_="wide"))
        except Exception as error:  # a figure must not cost the sweep its page
            notes.append(f"the figure {name} could not be drawn: {type(error).__name__}: {error}")
    path = record.path / "sweep.html"
    write_atomically(path, scrub(_page(summary, drawn, notes)))
    return path


def _page(summary: Summary, drawn: Sequence[Html], notes: Sequence[str]) -> str:
    css = Path(_report.__file__).with_name("page.css").read_text(encoding="utf-8")
    body = element(
        "main",
        _header(summary),
        section("Figures", element("div", drawn, class_="figures")) if drawn else None,
        section("Jobs", _jobs(summary), _too_many(summary)),
        section("What failed", _failed(summary)),
        section("Notes", [element("p", note) for note in notes]),
    )
    head = element(
        "head",
        Html('<meta charset="utf-8">'),
        Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'),
        element("title", f"sweep of {summary.name} · diffsim"),
        element("style", Html(css)),
    )
    return "<!DOCTYPE html>\n" + element("html", head, element("body", body), lang="en") + "\n"


def _header(summary: Summary) -> Html:
    counts = ", ".join(f"{count} {state}" for state, count in summary.counts.items())
    kind = "ok" if set(summary.counts) == {"done"} else "open"
    what = "Search" if summary.search else "Sweep"
    keys = ", ".join(summary.keys)
    over = [
        element("b", "diffsim"),
        element("span", summary.name),
        element("span", counts, class_=f"pill {kind}"),
    ]
    lead = [f"{len(summary.rows)} jobs. "]
    lead += [f"{pretty_name(name)}: {spread_text(s)}. " for name, s in _spreads(summary)]
    return element(
        "header",
        element("div", over, class_="over"),
        element("h1", f"{what} over {keys}" if keys else what),
        _answers(summary),
        element("p", *lead, class_="lead"),
    )


def _answers(summary: Summary) -> Html | None:
    """Of a search the best settings; of a sweep the parameters over its jobs."""
    best = summary.best
    if best is not None:
        cards = [("objective of the best", significant(best.objective, 5), "")]
        cards += [(key, _short(value), "") for key, value in best.overrides.items()]
    else:
        cards = [(pretty_name(n), with_error(s.mean, s.sd), s.unit) for n, s in _spreads(summary)]
    shown = [
        element(
            "div",
            element("div", label, class_="name"),
            element("div", value, element("small", f" {pretty_unit(unit)}"), class_="value"),
        )
        for label, value, unit in cards[:8]
    ]
    return element("div", shown, class_="answers") if shown else None


def _spreads(summary: Summary):
    if summary.search:
        return []
    found = [(name, summary.spread(name)) for name in summary.parameters[:8]]
    return [(name, spread) for name, spread in found if spread is not None and spread.jobs > 1]


def _jobs(summary: Summary) -> Html:
    keys, names = summary.keys, summary.parameters[:8]
    head = ["Job", *keys, "", "Objective", *map(pretty_name, names), "Time"]
    numeric = range(len(keys) + 2, len(head))
    rows = summary.rows[:MOST_ROWS]
    return table(head, [_line(summary, row, names) for row in rows], numeric=tuple(numeric))


def _line(summary: Summary, row: Row, names: Sequence[str]) -> list[object]:
    made = row.state not in ("missing", "running")
    link = element("a", row.folder, href=f"{quote(row.folder)}/report.html") if made else row.folder
    ending = element("b", row.state.replace("_", " "), class_=_STATES.get(row.state, "open"))
    fitted = [with_error(*row.value(name), summary.unit(name)) for name in names]
    values = [_short(row.overrides.get(key, "")) for key in summary.keys]
    return [link, *values, ending, significant(row.objective, 6), *fitted, human_time(row.seconds)]


def _failed(summary: Summary) -> Html | None:
    body = [
        [row.folder, " ".join(f"{k}={v}" for k, v in row.overrides.items()), row.code, row.message]
        for row in summary.rows[:MOST_ROWS]
        if row.state not in ("done", "missing")
    ]
    return table(["Job", "Settings", "Exit code", "Why"], body, kind="tight") if body else None


def _too_many(summary: Summary) -> Html | None:
    if len(summary.rows) <= MOST_ROWS:
        return None
    return element("p", f"{len(summary.rows)} jobs in all: sweep.csv has every one.", class_="note")


def _short(value: str) -> str:
    """A number as a person reads it; texts as they are, cut."""
    try:
        number = float(value)
    except ValueError:
        return value if len(value) < 60 else f"{value[:58]}…"
    return value if len(value) < 8 else significant(number, 5)

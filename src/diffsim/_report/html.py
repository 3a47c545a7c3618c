"""The page: the answer first, then how well it holds, what it rests on, and where it comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from .figures import FigureOf
from .headline import header
from .markup import Html, element, facts, markup, section, table
from .numbers import (
    human_bytes,
    human_time,
    number,
    pretty_name,
    significant,
    with_error,
)
from .run_data import RunData, is_map, mapping, rows, text
from .states import states_table

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_PLACES = {
    "parity": "fit",
    "series": "fit",
    "phase": "fit",
    "loss": "fit",
    "parameters": "fit",
    "pairs": "posterior",
    "traces": "posterior",
    "adjoints": "gradient",
}
_KNOWN = {
    "time_unit",
    "refitted_on",
    "series",
    "posterior",
    "targets",
    "states",
    "rdf",
    "adjoints",
    "convergence",
    "observables",
    "answers",
}
_MOST_ROWS = 40
Drawn = Sequence[tuple[FigureOf, Html]]


def page(run: RunData, figures: Drawn, notes: Sequence[str]) -> str:
    """The whole report as one HTML document that loads nothing."""
    css = Path(__file__).with_name("page.css").read_text(encoding="utf-8")

    def gallery(place: str) -> Html:
        return _gallery([(f, svg) for f, svg in figures if _PLACES.get(f.name, "physics") == place])

    body = element(
        "main",
        header(run),
        section("Fit", _uncertainties(run), gallery("fit")),
        section("Posterior", _posterior(run), gallery("posterior")),
        section("Every state", states_table(run)),
        section("Averages", _observables(run)),
        section("Physics", gallery("physics")),
        section("Also measured", _scalars(run), _tables(run)),
        section("Laws", _laws(run)),
        section(_cost_title(run), _cost(run), gallery("gradient")),
        section("Where it comes from", _provenance(run)),
        section("Configuration", _config(run)),
        section("Notes", [element("p", note) for note in notes]),
        _footer(run),
    )
    head = element(
        "head",
        Html('<meta charset="utf-8">'),
        Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'),
        element("title", f"{run.name} · diffsim"),
        element("style", Html(css)),
    )
    return "<!DOCTYPE html>\n" + element("html", head, element("body", body), lang="en") + "\n"


def _gallery(figures: Drawn) -> Html:
    """Figures two abreast; a wide one, and one that would stand alone in its row, gets the row."""
    items = [
        element("figure", element("figcaption", f.title), svg, class_="wide" if f.wide else "")
        for f, svg in figures
    ]
    return element("div", items, class_="figures") if items else Html("")


def _uncertainties(run: RunData) -> Html | None:
    """Each parameter with the parts of its standard error."""
    parts = ("statistical", "model", "systematic")
    shown = [p for p in parts if any(number(q.get(p)) is not None for q in run.parameters.values())]
    if not run.parameters or not (shown or len(run.parameters) > 8):
        return None
    body = [
        [
            text(p, "label") or pretty_name(name),
            with_error(p.get("value"), p.get("stderr"), text(p, "unit")),
            *(significant(p.get(part), 2, zeros=True) for part in shown),
        ]
        for name, p in run.parameters.items()
    ]
    head = ["Parameter", "Value ± standard error", *(part.capitalize() for part in shown)]
    numeric = range(1, 2 + len(shown))
    meaning = {
        "statistical": "statistical: length of the simulations (blocking)",
        "model": "model: scatter of the residuals",
        "systematic": "systematic: settings of the simulation, such as size, cutoff and time step",
    }
    note = "; ".join(meaning[part] for part in shown)
    lines = element("p", f"Parts of the standard error: {note}.", class_="note") if note else None
    return Html(markup([table(head, body, kind="tight", numeric=tuple(numeric)), lines]))


def _posterior(run: RunData) -> Html | None:
    """Every parameter's distribution, and whether the draws stand for it."""
    found = mapping(run.measured, "posterior")
    body = [
        [
            pretty_name(text(row, "name")),
            with_error(row.get("mean"), row.get("sd"), ""),
            *(significant(row.get(q), 3) for q in ("q05", "q50", "q95")),
            "–" if number(row.get("rhat")) is None else f"{number(row.get('rhat')):.3f}",
            significant(row.get("ess"), 3),
        ]
        for row in rows(found, "table")
    ]
    if not body:
        return None
    head = ["Parameter", "Mean ± sd", "5 %", "Median", "95 %", "R-hat", "Effective draws"]
    counts = [number(found.get(key)) for key in ("chains", "draws", "divergences")]
    lead = f"{text(found, 'method')}"
    if None not in counts:
        lead += f", {counts[0]:.0f} × {counts[1]:.0f} draws, {counts[2]:.0f} divergences"
    verdict = "converged" if found.get("converged") is True else "not converged"
    reason = text(found, "reason")
    line = element("p", f"{lead}: {verdict}{': ' + reason if reason else ''}.", class_="note")
    return Html(markup([table(head, body, kind="tight", numeric=tuple(range(1, 7))), line]))


def _observables(run: RunData) -> Html | None:
    body = [
        [
            pretty_name(name).capitalize(),
            with_error(o.get("mean"), o.get("stderr"), text(o, "unit")),
            significant(o.get("correlation_time"), 3, zeros=True),
            significant(o.get("effective_samples"), 3),
        ]
        for name, o in mapping(run.measured, "observables").items()
        if is_map(o)
    ]
    head = ["Observable", "Mean ± standard error", "Correlation time", "Effective samples"]
    return table(head, body, kind="tight", numeric=(1, 2, 3)) if body else None


def _scalars(run: RunData) -> Html:
    """Single numbers and texts that an experiment adds of its own."""
    return facts(
        (
            pretty_name(key).capitalize(),
            significant(value, 6) if number(value) is not None else value,
        )
        for key, value in run.measured.items()
        if key not in _KNOWN and isinstance(value, (str, int, float))
    )


def _tables(run: RunData) -> list[Html]:
    """What an experiment adds as rows of numbers and texts."""
    found = []
    for key in run.measured:
        body = [] if key in _KNOWN else rows(run.measured, key)[:_MOST_ROWS]
        names = [n for n in dict.fromkeys(n for row in body for n in row) if _shown(body, n)]
        if names:
            cells = [[_cell(row.get(name)) for name in names] for row in body]
            numeric = [
                i for i, n in enumerate(names) if any(number(r.get(n)) is not None for r in body)
            ]
            head = [pretty_name(name).capitalize() for name in names]
            title = element("h3", pretty_name(key).capitalize())
            found += [title, table(head, cells, kind="tight", numeric=tuple(numeric))]
    return found


def _shown(body: Sequence[Mapping[str, Any]], name: str) -> bool:
    """Whether a column holds single numbers or texts."""
    return all(isinstance(row.get(name), (str, int, float, type(None))) for row in body)


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and number(value) is not None:
        return significant(value, 4, zeros=True)
    return str(value) if isinstance(value, (str, int)) else "–"


def _laws(run: RunData) -> Html | None:
    body = [
        [
            pretty_name(text(law, "name")).capitalize(),
            significant(law.get("worst"), 3),
            significant(law.get("tolerance"), 3),
            "–" if number(law.get("step")) is None else f"{number(law.get('step')):.0f}",
            _verdict(law.get("ok")),
        ]
        for law in run.laws
    ]
    head = ["Law", "Worst", "Tolerance", "At step", ""]
    return table(head, body, kind="tight", numeric=(1, 2, 3)) if body else None


def _verdict(ok: Any) -> Html:
    kind, label = {True: ("ok", "✓ held"), False: ("broken", "✗ broken")}.get(
        ok, ("open", "unknown")
    )
    return element("b", label, class_=kind)


def _cost_title(run: RunData) -> str:
    gradient = text(mapping(run.result, "adjoint"), "name") and run.parameters
    return "How the gradient was taken, and what it cost" if gradient else "Cost"


def _cost(run: RunData) -> Html | None:
    adjoint, timing = mapping(run.result, "adjoint"), mapping(run.result, "timing")
    compared = rows(run.measured, "adjoints")
    name = text(adjoint, "name")
    pairs = [
        ("Adjoint", element("b", name) if name else None),
        ("Why", text(adjoint, "why")),
        ("Temporary memory", human_bytes(adjoint.get("temp_bytes"))),
        ("Peak memory", human_bytes(run.result.get("peak_bytes"))),
        ("Compilation", human_time(timing.get("compile_s"))),
        ("One iteration", human_time(timing.get("iteration_s"))),
        ("Whole run", human_time(timing.get("total_s"))),
        ("Agreement", _agreement(compared)),
    ]
    parts = [facts(pairs), _profile(run), _plan(adjoint), _comparison(compared), _audit(run)]
    return Html(markup(parts))


def _profile(run: RunData) -> Html | None:
    """Where the time went, of a run with `profile=true`."""
    found = mapping(run.result, "profile")
    body = [
        [
            text(row, "what"),
            human_time(row.get("seconds")),
            significant(row.get("count"), 6),
            human_bytes(row.get("bytes")),
        ]
        for row in rows(found, "rows")
    ]
    return table(["", "Time", "Times", "Memory"], body, numeric=(1, 2, 3)) if body else None


def _plan(adjoint: Mapping[str, Any]) -> Html | None:
    """The candidates of `Auto`, what each would take, and which was taken."""
    body = [
        [
            text(row, "name"),
            human_bytes(row.get("predicted")),
            human_bytes(row.get("measured")),
            significant(row.get("cost"), 3),
            text(row, "verdict"),
        ]
        for row in rows(adjoint, "plan")
    ]
    head = ["Adjoint", "Predicted memory", "Measured", "Forward runs", ""]
    return table(head, body, kind="tight", numeric=(1, 2, 3)) if body else None


def _audit(run: RunData) -> Html | None:
    """The checks of the gradient, with their verdicts."""
    audit = mapping(run.result, "audit")
    body = [
        [
            text(row, "check"),
            significant(row.get("value"), 3),
            text(row, "expected"),
            _verdict(row.get("ok")),
        ]
        for row in rows(audit, "rows")
    ]
    if not body:
        return None
    title = element("h3", f"Audit of the gradient: {text(audit, 'verdict')}")
    head = ["Check", "Found", "Expected", ""]
    return Html(markup([title, table(head, body, kind="tight", numeric=(1,))]))


def _comparison(compared: list[Mapping[str, Any]]) -> Html | None:
    if len(compared) < 2:
        return None
    names = list(dict.fromkeys(n for row in compared for n in mapping(row, "parameters")))[:4]
    slopes = list(dict.fromkeys(n for row in compared for n in mapping(row, "gradient")))[:4]
    body = [
        [
            text(row, "name"),
            *(significant(mapping(row, "parameters").get(n), 9) for n in names),
            *(significant(mapping(row, "gradient").get(n), 9) for n in slopes),
            human_time(row.get("compile_s")),
            human_time(row.get("iteration_s")),
            human_bytes(row.get("temp_bytes")),
        ]
        for row in compared
    ]
    head = ["Adjoint", *map(pretty_name, names), *(f"∂loss/∂{pretty_name(n)}" for n in slopes)]
    head += ["Compilation", "Iteration", "Memory"]
    return table(head, body, numeric=tuple(range(1, len(head))))


def _agreement(compared: list[Mapping[str, Any]]) -> str:
    """The largest relative difference between the gradients by any two adjoints."""
    gradients = [mapping(row, "gradient") for row in compared if mapping(row, "gradient")]
    worst = None
    for one, other in combinations(gradients, 2):
        for name in one:
            a, b = number(one[name]), number(other.get(name))
            if a is not None and b is not None and max(abs(a), abs(b)) > 0:
                worst = max(worst or 0.0, abs(a - b) / max(abs(a), abs(b)))
    if worst is None:
        return ""
    return f"the gradients differ by at most {significant(worst, 2)} (relative)"


def _provenance(run: RunData) -> Html:
    found = dict(mapping(run.result, "provenance"))
    versions, data = found.pop("versions", {}), found.pop("data", {})
    commit, dirty = found.pop("git_commit", None), found.pop("git_dirty", None)
    pairs: list[tuple[str, Any]] = []
    if command := found.pop("command", None):
        pairs.append(("Command", element("code", command)))
    if isinstance(commit, str):
        note = " (with uncommitted changes)" if dirty else ""
        pairs.append(("Commit", [element("code", commit[:12]), note]))
    for key, value in found.items():
        if isinstance(value, bool):
            value = "yes" if value else "no"
        if isinstance(value, (str, int, float)):
            pairs.append((pretty_name(key).capitalize(), str(value)))
    if is_map(versions):
        pairs.append(
            ("Versions", ", ".join(f"{name} {version}" for name, version in versions.items()))
        )
    if is_map(data):
        pairs += [
            (f"Data: {name}", element("code", f"sha256 {digest}")) for name, digest in data.items()
        ]
    return facts(pairs)


def _config(run: RunData) -> Html | None:
    if not run.config:
        return None
    return element(
        "details", element("summary", "config.yaml, as resolved"), element("pre", run.config)
    )


def _footer(run: RunData) -> Html:
    version = text(mapping(mapping(run.result, "provenance"), "versions"), "diffsim")
    return element("footer", f"diffsim {version} · this page needs no network".replace("  ", " "))

"""The table of every state: what was measured, what the fit predicts, and their distance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .markup import Html, element, markup
from .numbers import number, pretty_label, pretty_name, pretty_unit, significant, with_error
from .run_data import RunData, text

_WIDEST = 3.0  # z where the bar in a cell ends


def states_table(run: RunData) -> Html | None:
    """A row a state; z is (predicted − measured) / σ with the target's σ."""
    targets, states = run.targets, run.states
    if not states or not targets:
        return None
    time_unit = pretty_unit(text(run.measured, "time_unit"))
    time_unit = f" [{time_unit}]" if time_unit else ""
    extra = [
        (key, title)
        for key, title in (
            ("correlation_time", f"Correlation time{time_unit}"),
            ("effective_samples", "Effective samples"),
        )
        if any(number(s.get(key)) is not None for s in states)
    ]
    top = [element("th", "State", rowspan="2")]
    below = []
    for target in targets:
        unit = pretty_unit(text(target, "unit"))
        name = pretty_name(text(target, "observable") or text(target, "name")).capitalize()
        top.append(element("th", f"{name} [{unit}]" if unit else name, colspan="3", class_="first"))
        below += [
            element("th", "measured", class_="n first"),
            element("th", "predicted", class_="n"),
            element("th", "z", class_="n"),
        ]
    top += [element("th", title, rowspan="2", class_="n narrow") for _, title in extra]
    head = element("thead", element("tr", top), element("tr", below))
    body = element("tbody", [_row(state, targets, extra) for state in states])
    table = element("div", element("table", head, body, class_="states"), class_="scroll")
    sigmas = ", ".join(
        with_error(t.get("sigma"), None, text(t, "unit")) for t in targets if number(t.get("sigma"))
    )
    note = f"z = (predicted − measured) / σ with σ = {sigmas}. " if sigmas else ""
    note += "± is the standard error of the simulated average."
    return Html(markup([table, element("p", note, class_="note")]))


def _row(
    state: Mapping[str, Any], targets: list[Mapping[str, Any]], extra: list[tuple[str, str]]
) -> Html:
    held = state.get("used") is False
    label = [
        pretty_label(text(state, "label")),
        element("span", "held out", class_="tag") if held else None,
    ]
    cells = [element("td", label)]
    for target in targets:
        cells += _cells(state, text(target, "name"), number(target.get("sigma")))
    cells += [
        element("td", significant(state.get(key), 3, zeros=key == "correlation_time"), class_="n")
        for key, _ in extra
    ]
    return element("tr", cells, class_="held" if held else "")


def _cells(state: Mapping[str, Any], name: str, sigma: float | None) -> list[Html]:
    predicted, measured = number(state.get(name)), number(state.get(f"{name}_target"))
    shown = with_error(predicted, state.get(f"{name}_stderr"))
    z = (predicted - measured) / sigma if None not in (predicted, measured) and sigma else None  # type: ignore[operator]
    return [
        element("td", _like(measured, shown), class_="n first"),
        element("td", shown, class_="n"),
        _bar(z),
    ]


def _like(value: float | None, shown: str) -> str:
    """`value` with the decimals of the prediction beside it, and one more."""
    digits = shown.partition(" ± ")[0].partition(".")[2]
    if value is None or not digits.isdigit():
        return significant(value, 6)
    return f"{value:.{len(digits) + 1}f}".replace("-", "−")


def _bar(z: float | None) -> Html:
    if z is None:
        return element("td", "–", class_="z")
    reach = 50 * min(abs(z), _WIDEST) / _WIDEST
    start = 50 if z >= 0 else 50 - reach
    bar = element("i", style=f"--from:{start:.1f}%;--wide:{reach:.1f}%")
    return element("td", bar, f"{z:+.2f}".replace("-", "−"), class_="z")

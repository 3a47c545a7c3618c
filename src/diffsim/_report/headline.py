"""The top of the page: the question, the answer, and in two sentences how good it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .markup import Html, element, facts
from .numbers import human_time, number, pretty_name, pretty_unit, significant, with_error
from .run_data import RunData, is_map, mapping, rows, text

_STATES = {
    "done": ("ok", "done"),
    "running": ("open", "not finished"),
    "interrupted": ("open", "interrupted"),
    "failed": ("broken", "failed"),
    "law_broken": ("broken", "law broken"),
}
_ALERTS = {
    "running": "This run has no result yet",
    "interrupted": "This run was interrupted",
    "failed": "This run failed",
    "law_broken": "This run was stopped by a law",
}


def header(run: RunData) -> Html:
    kind, label = _STATES.get(run.state, ("open", run.state))
    laws = [law for law in run.laws if law.get("ok") is False]
    if run.state == "done" and laws:
        kind, label = "broken", "done, a law is broken"
    question = text(run.result, "question") or text(run.status, "question")
    over = element(
        "div",
        element("b", "diffsim"),
        run.name if question else None,
        element("span", label, class_=f"pill {kind}"),
        class_="over",
    )
    title = question or run.name
    lead = " ".join(_sentences(run))
    return element(
        "header",
        over,
        element("h1", title),
        _alert(run, kind),
        _answers(run),
        element("p", lead, class_="lead") if lead else None,
    )


def _answers(run: RunData) -> Html | None:
    cards = [
        _card(text(a, "label"), "", a.get("value"), a.get("stderr"), text(a, "unit"))
        for a in rows(run.measured, "answers")
    ]
    cards += [
        _card(
            text(p, "label") or pretty_name(name),
            name,
            p.get("value"),
            p.get("stderr"),
            text(p, "unit"),
        )
        for name, p in run.parameters.items()
        if not p.get("fixed")
    ]
    if not cards:
        averages = mapping(run.measured, "observables")
        cards = [
            _card(
                pretty_name(name).capitalize(), "", o.get("mean"), o.get("stderr"), text(o, "unit")
            )
            for name, o in averages.items()
            if is_map(o)
        ]
    return element("div", cards, class_="answers") if 0 < len(cards) <= 8 else None


def _card(label: str, name: str, value: Any, error: Any, unit: str) -> Html:
    shown, _, spread = with_error(value, error).partition(" ± ")
    about = element("span", f" ± {spread}", class_="pm") if spread else None
    printed = pretty_unit(unit)
    behind = element("small", f" {printed}") if printed else None
    named = [label, f" · {name}" if name and name != label else ""]
    return element(
        "div",
        element("div", named, class_="name"),
        element("div", shown, about, behind, class_="value"),
    )


def _alert(run: RunData, kind: str) -> Html | None:
    title = _ALERTS.get(run.state)
    if title is None:
        return None
    status = run.status
    step = number(status.get("step"))
    cause = next((text(status, k) for k in ("message", "cause", "error") if text(status, k)), "")
    if cause and step is not None and f"step {step:.0f}" not in cause:
        cause = f"{cause.rstrip('.')}, at step {step:.0f}."
    lines = [cause[:1].upper() + cause[1:], text(status, "advice")]
    if run.state == "running":
        lines.append(
            "It is still going on, or it was killed. What follows is what it wrote until now."
        )
    if run.state in ("running", "interrupted"):
        lines.append("To continue: python -m diffsim.run resume=RUN_DIRECTORY")
    code = number(status.get("code"))
    if code is not None:
        title = f"{title} (exit code {code:.0f})"
    paragraphs = [element("p", line) for line in lines if line]
    return element(
        "div", element("strong", title), paragraphs, _so_far(run), class_=f"alert {kind}"
    )


def _so_far(run: RunData) -> Html | None:
    """The last line of the metrics."""
    if not run.metrics:
        return element("p", "It wrote no metrics.")
    last = run.metrics[-1]
    pairs: list[tuple[str, Any]] = []
    for key, value in last.items():
        if is_map(value):
            pairs += [(pretty_name(str(name)), significant(v, 6)) for name, v in value.items()]
        elif key == "seconds":
            pairs.append(("Time", human_time(value)))
        elif number(value) is not None:
            label = {"ess": "Effective samples"}.get(key) or pretty_name(key).capitalize()
            pairs.append((label, significant(value, 6)))
    return element("div", element("h3", "Last line of the metrics"), facts(pairs))


def _sentences(run: RunData) -> list[str]:
    return [s for s in (_basis(run), _validation(run), _lawful(run), _effort(run)) if s]


def _basis(run: RunData) -> str:
    states = run.states
    if not run.parameters or not states:
        return ""
    held = sum(s.get("used") is False for s in states)
    names = _joined([pretty_name(text(t, "observable") or text(t, "name")) for t in run.targets])
    of = f" to {names}" if names else ""
    again = number(run.measured.get("refitted_on"))
    if held:
        ending = "" if again is None else f", and the answer is refitted on all {again:.0f}"
        return f"Fitted{of} at {len(states) - held} states; {held} more were held out{ending}."
    return f"Fitted{of} at {len(states)} states."


def _validation(run: RunData) -> str:
    validation = mapping(run.result, "validation")
    if not validation:
        return ""
    units = {text(t, "name"): t for t in run.targets}
    parts = []
    for name, rms in mapping(validation, "rms").items():
        target: Mapping[str, Any] = units.get(name, {})
        label = pretty_name(text(target, "observable") or name)
        unit = pretty_unit(text(target, "unit"))
        parts.append(f"{label} to {significant(rms, 2)} {unit}".rstrip())
    chi2 = number(validation.get("chi2_per_point"))
    if chi2 is not None:
        parts.append(f"χ² per point {significant(chi2, 2)}")
    rows = validation.get("rows")
    count = (
        f"the {len(rows)} held-out states" if isinstance(rows, list) and rows else "held-out states"
    )
    if not parts:
        return ""
    ending = ", with " + parts.pop() if chi2 is not None and len(parts) > 1 else ""
    return f"It predicts {count} (rms): {_joined(parts)}{ending}."


def _lawful(run: RunData) -> str:
    broken = [pretty_name(text(law, "name")) for law in run.laws if law.get("ok") is False]
    if broken:
        laws, are = ("laws", "are") if len(broken) > 1 else ("law", "is")
        return f"The {laws} of {_joined(broken)} {are} broken."
    count = len(run.laws)
    return {0: "", 1: "Its law held.", 2: "Both laws held."}.get(count, f"All {count} laws held.")


def _effort(run: RunData) -> str:
    total = number(mapping(run.result, "timing").get("total_s"))
    device = text(mapping(run.result, "provenance"), "device")
    cores = number(mapping(run.result, "provenance").get("cores"))
    if total is None:
        return ""
    if device == "cpu" and cores:
        device = f"{cores:.0f} CPU core{'s' if cores > 1 else ''}"
    return f"It took {human_time(total)}" + (f" on {device}." if device else ".")


def _joined(names: Sequence[str]) -> str:
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"

"""HTML that is safe by default: text is escaped, what `element` made is taken as markup."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any


class Html(str):
    """Markup; a plain `str` is text."""

    __slots__ = ()


def element(tag: str, *children: Any, **attributes: str) -> Html:
    """`<tag attributes>children</tag>`: children that are not `Html` are escaped."""
    inside = "".join(markup(child) for child in children)
    names = "".join(f' {k.rstrip("_")}="{escape(v)}"' for k, v in attributes.items() if v)
    return Html(f"<{tag}{names}>{inside}</{tag}>")


def markup(child: Any) -> str:
    if child is None:
        return ""
    if isinstance(child, Html):
        return child
    if isinstance(child, (list, tuple)):
        return "".join(markup(item) for item in child)
    return escape(str(child))


def section(title: str, *children: Any) -> Html:
    """A section with its heading, nothing where it has no content."""
    if not any(markup(child) for child in children):
        return Html("")
    return element("section", element("h2", title), *children)


def table(
    head: Sequence[Any],
    body: Iterable[Sequence[Any]],
    *,
    kind: str = "",
    numeric: Sequence[int] = (),
) -> Html:
    """A table; the columns in `numeric` are set flush right. Cells may be text or elements `td`."""

    def cell(tag: str, content: Any, column: int) -> Any:
        if isinstance(content, Html) and content.startswith("<td"):
            return content
        return element(tag, content, class_="n" if column in numeric else "")

    lines = [element("tr", [cell("td", c, i) for i, c in enumerate(row)]) for row in body]
    heading = (
        element("thead", element("tr", [cell("th", c, i) for i, c in enumerate(head)]))
        if head
        else None
    )
    return element(
        "div", element("table", heading, element("tbody", lines), class_=kind), class_="scroll"
    )


def facts(pairs: Iterable[tuple[str, Any]]) -> Html:
    """A table of names and values, without those that have none."""
    lines = [
        element("tr", element("th", name, scope="row"), element("td", value))
        for name, value in pairs
        if value not in (None, "", "–")
    ]
    return element("table", element("tbody", lines), class_="facts") if lines else Html("")

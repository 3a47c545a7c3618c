"""What devices say to each other, read from a compiled program."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

WORDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
    "send",
    "recv",
)
_HEAD = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\{$")
_COLLECTIVE = re.compile(rf" = (.+?) ({'|'.join(WORDS)})(?:-start)?\(")
_CALLED = re.compile(
    r"(?:body|condition|calls|to_apply|\w+_computations?)=(?:\{([^}]*)\}|(%?[\w.-]+))"
)
_LOOP = re.compile(r" while\(.*?(?:body|condition)=")
_ARRAY = re.compile(r"(pred|bf16|[sufc]\d+)(?:e\w+)?\[([\d,]*)\]")


class Collective(NamedTuple):
    """One operation between devices: its word, the bytes of its result on each, and whether it
    stands in a loop (where it is counted once, however often the loop turns)."""

    word: str
    bytes: int
    in_loop: bool


def collectives(text: str) -> list[Collective]:
    """The operations between devices in the text of a compiled program
    (`jax.jit(f).lower(x).compile().as_text()`)."""
    computations = dict(_computations(text))
    looped = _looped(computations)
    return [
        Collective(found[2], _size(found[1]), name in looped)
        for name, lines in computations.items()
        for line in lines
        if (found := _COLLECTIVE.search(line))
    ]


def _computations(text: str) -> Iterator[tuple[str, list[str]]]:
    """Each computation by name, with its lines."""
    name, lines = "", []
    for line in text.splitlines():
        if head := _HEAD.match(line):
            name, lines = head[1], []
        elif line.startswith("}") and name:
            yield name, lines
            name = ""
        elif name:
            lines.append(line)


def _looped(computations: dict[str, list[str]]) -> set[str]:
    """The computations that a loop runs, at whatever depth."""
    open_ = [name for lines in computations.values() for line in lines
             if _LOOP.search(line) for name in _named(line)]  # fmt: skip
    seen: set[str] = set()
    while open_:
        name = open_.pop()
        if name not in seen and name in computations:
            seen.add(name)
            open_.extend(called for line in computations[name] for called in _named(line))
    return seen


def _named(line: str) -> list[str]:
    """The computations that a line calls."""
    groups = ((found[1] or found[2]).split(",") for found in _CALLED.finditer(line))
    return [name.strip().lstrip("%") for group in groups for name in group]


def _size(shape: str) -> int:
    """The bytes of a shape, of a tuple of them together."""
    total = 0
    for kind, dims in _ARRAY.findall(shape):
        count = 1
        for dim in filter(None, dims.split(",")):
            count *= int(dim)
        bits = 8 if kind == "pred" else int(re.sub(r"\D", "", kind))
        total += count * bits // 8
    return total

"""Amounts of memory: as people write them, as the device has them."""

from __future__ import annotations

import math
import os
import re

import jax

from .._errors import ConfigError

UNITS = {"B": 1, **{f"{p}B": 1000**i for i, p in enumerate("kMGT", 1)}}
UNITS |= {f"{p}iB": 1024**i for i, p in enumerate("KMGT", 1)}


def parsed_bytes(memory: str | float | None) -> int:
    """ "2GB" in bytes; None: what the first device has free."""
    if memory is None:
        return free_bytes()
    if isinstance(memory, (int, float)) and not isinstance(memory, bool):
        amount, unit = float(memory), "B"
    else:
        match = re.fullmatch(r"\s*([0-9.eE+]+)\s*([A-Za-z]+)\s*", str(memory))
        amount, unit = (0.0, "") if match is None else (_number(match[1]), match[2])
    known = {name.lower(): size for name, size in UNITS.items()}
    if unit.lower() not in known or not (math.isfinite(amount) and amount > 0):
        raise ConfigError(
            "is no amount of memory",
            key="memory",
            value=memory,
            allowed=", ".join(UNITS),
            suggestion="2GB",
        )
    return int(amount * known[unit.lower()])


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def free_bytes() -> int:
    """What the first device has free; of a CPU the machine's available memory."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def shown(count: int | None) -> str:
    """Bytes for a person."""
    if count is None:
        return ""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} B"

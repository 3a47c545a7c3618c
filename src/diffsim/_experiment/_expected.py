"""expected.json: what the results of an experiment should be, and within what."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .._errors import ConfigError
from .._files import unreadable

GOALS = ("parameters", "measured")


def read_expected(path: str | None) -> dict[str, Any]:
    """The content of the file: `parameters` and `measured` hold by name a `value` and its
    `tolerance`, `systematic` an error for each parameter."""
    if path is None:
        return {}
    content: Any = {}
    cause = unreadable(path)
    if cause is None:
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            cause = _fault(content)
        except (OSError, ValueError, RecursionError) as error:
            cause = f"cannot be read: {error}"
    if cause is not None:
        raise ConfigError(cause, key="expected", value=path)
    return content


def _fault(content: Any) -> str | None:
    if not isinstance(content, Mapping):
        return "is no mapping of names to what they should be"
    for part in (*GOALS, "systematic"):
        if not isinstance(content.get(part, {}), Mapping):
            return f"{part} is no mapping"
    for part in GOALS:
        for name, goal in content.get(part, {}).items():
            numbers = goal if isinstance(goal, Mapping) else {}
            if not all(_is_number(numbers.get(key)) for key in ("value", "tolerance")):
                return f"{part}.{name} needs a value and a tolerance, both numbers"
    errors = content.get("systematic", {})
    wrong = next((name for name, error in errors.items() if not _is_number(error)), None)
    return None if wrong is None else f"systematic.{wrong} must be a number"


def _is_number(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value)

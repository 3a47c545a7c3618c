"""The space of a search, as a configuration writes it, and its settings: checked before anything
starts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .._errors import ConfigError

SAMPLERS = ("tpe", "random")
DIRECTIONS = ("minimize", "maximize")
WORDS = ("log", "int")
_FORMS = "[low, high], [low, high, log], [low, high, int] or {choice: [one, other]}"


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; evenly in their logarithm with `log`."""

    low: int | float
    high: int | float
    log: bool = False
    whole: bool = False

    def ends(self) -> tuple[Any, ...]:
        return (self.low, self.high)


@dataclass(frozen=True)
class Choice:
    """One of some values."""

    values: tuple[Any, ...]

    def ends(self) -> tuple[Any, ...]:
        return self.values


Space = Mapping[str, Range | Choice]


@dataclass(frozen=True)
class Settings:
    """The keys of the group `search`."""

    sampler: Literal["tpe", "random"]
    trials: int
    space: Space
    startup: int
    parallel: int | None
    direction: Literal["minimize", "maximize"]
    objective: str | None
    seed: int


def settings(node: Mapping[str, Any]) -> Settings | None:
    """The search that a configuration asks for; None where it asks for none."""
    known = tuple(Settings.__dataclass_fields__)
    for key in node:
        if key not in known:
            raise ConfigError("unknown key", key=f"search.{key}", allowed=known)
    if node.get("trials") is None:
        if node.get("space"):
            raise ConfigError("a search needs a number of runs", key="search.trials")
        return None
    for key, allowed in (("sampler", SAMPLERS), ("direction", DIRECTIONS)):
        if node.get(key) not in allowed:
            raise _refused(key, "unknown", node.get(key), allowed)
    for key, least in (("trials", 1), ("startup", 1), ("seed", 0), ("parallel", 1)):
        value = node.get(key)
        optional = key == "parallel" and value is None
        if not optional and not (type(value) is int and least <= value < 2**31):
            raise _refused(key, f"must be a whole number of at least {least}", value)
    objective = node.get("objective")
    if not isinstance(objective, str | None):
        raise _refused("objective", "must be the name of a number of result.json", objective)
    return Settings(**{**node, "space": space(node.get("space"))})


def space(node: Any) -> dict[str, Range | Choice]:
    """The ranges and choices by key; what is wrong is a `ConfigError` with the key."""
    if not isinstance(node, Mapping) or not node:
        cause = "must name what is searched"
        raise _refused("space", cause, node or None, "{KEY: " + _FORMS + "}")
    return {str(key): _one(f"space.{key}", value) for key, value in node.items()}


def _one(key: str, node: Any) -> Range | Choice:
    name = key.removeprefix("space.")
    if name.lstrip("+~").split(".")[0] in ("hydra", "search") or name.startswith("hydra/"):
        raise _refused(key, "is no setting of the runs", None)
    if isinstance(node, Mapping):
        return _choice(key, node)
    if not isinstance(node, list) or len(node) < 2:
        raise _refused(key, "does not read as a range", node, _FORMS)
    low, high, *words = node
    for word in words:
        if word not in WORDS:
            raise _refused(key, "unknown word of a range", word, WORDS)
    if not all(type(end) in (int, float) and math.isfinite(end) for end in (low, high)):
        raise _refused(key, "needs finite numbers from low to high", node, _FORMS)
    whole = "int" in words or (type(low) is int and type(high) is int)
    if "int" in words and not (type(low) is int and type(high) is int):
        raise _refused(key, "needs whole numbers", node)
    if not low < high:
        raise _refused(key, "low must be below high", node)
    if "log" in words and not low > 0:
        raise _refused(key, "a logarithmic range starts above 0", node)
    return Range(low, high, "log" in words, whole)


def _choice(key: str, node: Mapping[Any, Any]) -> Choice:
    values = node.get("choice")
    if set(node) != {"choice"} or not isinstance(values, list) or not values:
        raise _refused(key, "does not read as a choice", dict(node), _FORMS)
    for value in values:
        if not isinstance(value, str | int | float | bool | None):
            raise _refused(key, "a choice is a number, a text, true, false or null", value)
    if len(set(map(repr, values))) < len(values):
        raise _refused(key, "has a value twice", values)
    return Choice(tuple(values))


def _refused(key: str, cause: str, value: Any, allowed: Any = None) -> ConfigError:
    return ConfigError(cause, key=f"search.{key}", value=value, allowed=allowed)

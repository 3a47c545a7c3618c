"""From the plain values of a configuration to the objects of an experiment."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ._errors import ConfigError
from ._targets import check_target, construct, first_line

if TYPE_CHECKING:
    from ._experiment import Experiment

PRECISIONS = ("float32", "float64")
MISSING = "???"

# The keys of an experiment, each with what it has to be: "object" stands for a `_target_`.
KEYS = {
    "name": "name",
    "question": "text or null",
    "seed": "seed",
    "precision": "precision",
    "simulation": "object",
    "parameters": "mapping",
    "conditions": "object, mapping or null",
    "targets": "list",
    "held_out": "rows",
    "columns": "mapping",
    "label": "text or null",
    "equilibration": "count",
    "thermostat": "object or null",
    "schedule": "object",
    "laws": "list",
    "adjoint": "object or null",
    "fit": "object or null",
    "placement": "object",
    "studies": "list",
    "audit": "true or false",
    "chunk": "positive",
    "frames": "mapping or null",
    "expected": "text or null",
    "data_files": "list",
}
_GROUPS = ("adjoint", "fit", "placement")


def validate(config: Mapping[str, Any]) -> None:
    """Refuse what can be seen to be wrong before anything is imported or built."""
    for key in config:
        if key not in KEYS:
            raise ConfigError("unknown key", key=str(key), allowed=KEYS)
    for key, kind in KEYS.items():
        if key not in config and kind == "true or false":
            continue  # a run from before there was such a key
        value = config.get(key, MISSING)
        if isinstance(value, str) and value == MISSING:
            raise ConfigError("must be given", key=key)
        _check_kind(key, kind, value)
    for key, node in walk(config):
        if node == MISSING:
            raise ConfigError("must be given", key=key)
        if isinstance(node, Mapping):
            _check_mapping(key, node)


def build(config: Mapping[str, Any]) -> Experiment:
    """The experiment that a composed configuration describes. Writes nothing.

    Raises `ConfigError` with the key that is wrong, as the command line writes it
    (`targets.0.sigma`).
    """
    validate(config)
    values = {key: build_value(value, key) for key, value in config.items()}
    from ._experiment import Experiment

    try:
        return Experiment(**values)
    except (TypeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        cause = f"does not make an experiment: {first_line(error)}"
        raise ConfigError(cause, key="configuration") from error


def build_value(value: Any, key: str = "") -> Any:
    """`value` with every mapping that has a `_target_` replaced by what it names, inside out."""
    if isinstance(value, list):
        return [build_value(item, _join(key, i)) for i, item in enumerate(value)]
    if not isinstance(value, Mapping):
        return value
    _check_mapping(key, value)
    built = {k: build_value(v, _join(key, k)) for k, v in value.items() if k != "_target_"}
    if "_target_" not in value:
        return built
    try:
        return construct(value["_target_"], built)
    except ConfigError as error:
        raise error.under(key) if key else error from None


def _check_mapping(key: str, node: Mapping[Any, Any]) -> None:
    for name in node:
        if not isinstance(name, str):
            raise ConfigError("must have names as keys", key=key, value=name)
        if name.startswith("_") and name != "_target_":
            raise ConfigError("is no key of diffsim's", key=_join(key, name), allowed=("_target_",))
    if "_target_" in node:
        try:
            check_target(node["_target_"])
        except ConfigError as error:
            raise error.under(key) if key else error from None


def _check_kind(key: str, kind: str, value: Any) -> None:
    cause = {
        "name": "must be letters, digits, dots, dashes and underscores",
        "seed": "must be a whole number from 0 to 2^32 - 1",
        "count": "must be a whole number of at least 0",
        "positive": "must be a whole number of at least 1",
        "rows": "must be a list of row numbers",
    }.get(kind, f"must be {kind}")
    if kind == "precision":
        if value not in PRECISIONS:
            raise ConfigError("unknown precision", key=key, value=value, allowed=PRECISIONS)
        return
    if not _is_kind(kind, value):
        hint = None
        if kind.startswith("object"):
            choose = f", chosen with {key}=NAME" if key in _GROUPS else ""
            cause = f"must be something to build, with a _target_{choose}"
            if isinstance(value, Mapping):
                value = ", ".join(map(str, value))
        elif isinstance(value, float) and math.isfinite(value) and value == int(value):
            hint = str(int(value))
        shown = "null" if value is None else value
        raise ConfigError(cause, key=key, value=shown, suggestion=hint)


def _is_kind(kind: str, value: Any) -> bool:
    if kind == "true or false":
        return isinstance(value, bool)
    if kind == "rows":
        return isinstance(value, list) and all(_is_count(row, 0) for row in value)
    tests = {
        "name": lambda: isinstance(value, str) and bool(re.fullmatch(r"\w[\w.-]{0,99}", value)),
        "text": lambda: isinstance(value, str),
        "seed": lambda: _is_count(value, 0) and value < 2**32,
        "count": lambda: _is_count(value, 0),
        "positive": lambda: _is_count(value, 1),
        "object": lambda: isinstance(value, Mapping) and "_target_" in value,
        "mapping": lambda: isinstance(value, Mapping),
        "list": lambda: isinstance(value, list),
        "null": lambda: value is None,
    }
    return any(tests[each]() for each in re.split(r", | or ", kind))


def _is_count(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def walk(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every value below, with its key."""
    items: Any = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for name, item in items:
        yield _join(key, name), item
        yield from walk(item, _join(key, name))


def _join(key: str, name: object) -> str:
    return f"{key}.{name}" if key else str(name)

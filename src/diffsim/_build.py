"""From the plain values of a configuration to the objects of an experiment."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ._errors import ConfigError
from ._files import unreadable
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
    "frames": "condition",
    "expected": "text or null",
    "data_files": "list",
    "restart_seconds": "seconds",
    "compilation_cache": "true or false",
    "profile": "true or false",
    "scale": "processes",
}
_INNER = {"processes": "positive", "condition": "count"}  # the one key of a mapping
# which a run from before there was such a key lacks
_LATER = ("audit", "restart_seconds", "compilation_cache", "profile", "scale")
_GROUPS = ("adjoint", "fit", "placement")


def validate(config: Mapping[str, Any]) -> None:
    """Refuse what can be seen to be wrong before anything is imported or built."""
    for key in config:
        if key not in KEYS:
            raise ConfigError("unknown key", key=str(key), allowed=KEYS)
    for key, kind in KEYS.items():
        if key not in config and key in _LATER:
            continue
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
    from ._store import is_full

    validate(config)
    _check_data_files(config)
    values = {key: build_value(value, key) for key, value in config.items() if key != "scale"}
    from ._experiment import Experiment

    _check_kinds(values)
    try:
        return Experiment(**values)
    except ConfigError as error:
        raise _placed(error, config) from error
    except Exception as error:  # nothing ran yet: what is wrong is what was asked for
        if is_full(error):
            raise
        cause = f"does not make an experiment: {first_line(error)}"
        raise ConfigError(cause, key="configuration") from error


def _placed(error: ConfigError, config: Mapping[str, Any]) -> ConfigError:
    """What a part says of itself (`cutoff`, `epsilon`, `target pressure.data`), with the key that
    the configuration has for it: of several the first."""
    key = error.key or "configuration"
    if match := re.fullmatch(r"target (.+)\.(\w+)", key):
        for i, target in enumerate(config["targets"]):
            if match[1] in (target.get("name"), target.get("observable")):
                return error.renamed(f"targets.{i}.{match[2]}")
    parts, known = key.split("."), [name for name, _ in walk(config)]
    if parts[0] in config:
        return error
    for count in range(len(parts), 0, -1):
        ending = "." + ".".join(parts[:count])
        place = next((name for name in known if name.endswith(ending)), None)
        if place is not None:
            return error.renamed(".".join((place, *parts[count:])))
    return error


def _check_data_files(config: Mapping[str, Any]) -> None:
    """What is hashed of them is all that is in them: regular files, or what a `file` key names,
    which may be a folder (Zarr) and is for its reader to refuse."""
    named = [value for key, value in walk(config) if key.endswith(".file")]
    for i, file in enumerate(config["data_files"]):
        key = f"data_files.{i}"
        if not isinstance(file, str):
            raise ConfigError("must be the name of a file", key=key, value=file)
        if file not in named and (cause := unreadable(file)) is not None:
            raise ConfigError(f"{file!r} {cause}", key=key, allowed="a regular file")


def _check_kinds(values: Mapping[str, Any]) -> None:
    """What was built is what the experiment needs there."""
    from ._adjoint import AbstractAdjoint
    from ._experiment._fits import AbstractFitTask
    from ._experiment._studies import AbstractStudy
    from ._laws import AbstractLaw
    from ._parameter import Parameter
    from ._placement import AbstractPlacement
    from ._problem import RelativeEntropy, Target
    from ._schedule import Schedule
    from ._simulation import AbstractSimulation

    single = {"simulation": AbstractSimulation, "thermostat": AbstractSimulation}
    single |= {"schedule": Schedule, "placement": AbstractPlacement, "fit": AbstractFitTask}
    single |= {"adjoint": AbstractAdjoint, "conditions": Mapping}
    several: dict[str, Any] = {"parameters": Parameter, "targets": (Target, RelativeEntropy)}
    several |= {"laws": AbstractLaw, "studies": AbstractStudy}
    found: list[Any] = [(key, values.get(key), kind) for key, kind in single.items()]
    found = [each for each in found if each[1] is not None]
    for key, kind in several.items():
        items = values.get(key) or ()
        pairs = items.items() if isinstance(items, Mapping) else enumerate(items)
        found += [(_join(key, name), item, kind) for name, item in pairs]
    for key, item, kind in found:
        if not isinstance(item, kind):
            first = kind[0] if isinstance(kind, tuple) else kind
            made = first.__name__.removeprefix("Abstract").lower()
            cause = f"must be something to build, a {made}"
            shown = "null" if item is None else type(item).__name__
            raise ConfigError(cause, key=key, value=shown)


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
        "seconds": "must be a number of seconds of at least 0",
    }.get(kind, f"must be {kind}")
    if kind in _INNER:
        _check_inner(key, kind, value)
        return
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


def _check_inner(key: str, only: str, value: Any) -> None:
    """A mapping with one key, which may be left out."""
    if value is None and key == "frames":
        return
    if not isinstance(value, Mapping):
        raise ConfigError(f"must be a mapping with the key {only}", key=key, value=value)
    for name in value:
        if name != only:
            cause = "unknown key"
            raise ConfigError(cause, key=_join(key, name), allowed=(only,), suggestion=only)
    if only in value:
        _check_kind(_join(key, only), _INNER[only], value[only])


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
        "seconds": lambda: _is_seconds(value),
        "object": lambda: isinstance(value, Mapping) and "_target_" in value,
        "mapping": lambda: isinstance(value, Mapping),
        "list": lambda: isinstance(value, list),
        "null": lambda: value is None,
    }
    return any(tests[each]() for each in re.split(r", | or ", kind))


def _is_count(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_seconds(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value) and value >= 0


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

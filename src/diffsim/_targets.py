"""What a configuration may build: `_target_` names on a list, refused before anything is imported.

The list: public names of diffsim and its backends; classes defined in diffrax, optimistix, lineax
and equinox; classes and functions defined in optax and numpyro.distributions; the same of a user's
own packages, where they are installed with an entry point in the group `diffsim.plugins` or named
in the environment variable `DIFFSIM_TRUSTED` (separated by commas).
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import os
import re
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ._errors import ConfigError, nearest

BACKENDS = ("md", "cfd", "ode")
CLASSES_OF = ("diffrax", "optimistix", "lineax", "equinox")
CLASSES_AND_FUNCTIONS_OF = ("optax", "numpyro.distributions")
PLUGINS = "diffsim.plugins"
TRUSTED = "DIFFSIM_TRUSTED"

_PATH = re.compile(r"[A-Za-z]\w*(\.[A-Za-z]\w*)+", re.ASCII)
_HERE = Path(__file__).parent
_KINDS = {float: "a number", int: "a whole number", bool: "true or false", str: "text"}


def check_target(target: object) -> str:
    """The package that a `_target_` names, if the list has it. Imports nothing."""
    if not isinstance(target, str) or not _PATH.fullmatch(target):
        raise _refusal(target, "is not the dotted name of something to build")
    head, *rest = target.split(".")
    if head == "diffsim":
        return _check_own(target, rest)
    for package in (*CLASSES_OF, *CLASSES_AND_FUNCTIONS_OF, *trusted_packages()):
        if target.startswith(package + "."):
            return package
    raise _refusal(target, "is not on the list of what a configuration may build")


def find_target(target: object) -> Callable[..., Any]:
    """What a `_target_` names: a class or function that its package itself defines."""
    package = check_target(target)
    assert isinstance(target, str)
    folder, _, name = target.rpartition(".")
    try:
        importlib.import_module(package)
        module = importlib.import_module(folder)
    except ModuleNotFoundError as error:
        missing = error.name or package
        if missing.split(".")[0] != package.split(".")[0]:
            raise
        cause = f"has no module {missing!r} here (is the package installed?)"
        raise _refusal(target, cause) from error
    found = getattr(module, name, None)
    if found is None:
        close = nearest(name, _public(module))
        raise _refusal(target, f"has no {name!r}", close and f"{folder}.{close}")
    functions = package not in CLASSES_OF
    right_kind = inspect.isclass(found) or (functions and inspect.isfunction(found))
    if not right_kind or not f"{found.__module__}.".startswith(f"{package}."):
        cause = f"is nothing that {package} defines for a configuration to build"
        raise _refusal(target, cause)
    return found


def construct(target: object, arguments: Mapping[str, Any]) -> Any:
    """`target(**arguments)`; whatever is wrong with the arguments is a `ConfigError`."""
    builder = find_target(target)
    arguments = _checked(builder, arguments)
    try:
        return builder(**arguments)
    except ConfigError:
        raise
    except Exception as error:
        from ._store import is_full

        if is_full(error):
            raise
        raise ConfigError(f"{target} refuses this: {first_line(error)}") from error


def trusted_packages() -> tuple[str, ...]:
    """The user's own packages that a configuration may build from."""
    named = os.environ.get(TRUSTED, "").split(",")
    entries = (entry.value.partition(":")[0] for entry in metadata.entry_points(group=PLUGINS))
    return tuple(dict.fromkeys(name.strip() for name in (*named, *entries) if name.strip()))


def public_names() -> tuple[str, ...]:
    """Every name of diffsim that a configuration may build, read from the source."""
    own = _exported(_HERE)
    inner = [(b, _exported(_HERE / b)) for b in BACKENDS if b in own]
    names = [f"diffsim.{name}" for name in own if name not in BACKENDS]
    return (*names, *(f"diffsim.{backend}.{name}" for backend, found in inner for name in found))


def _check_own(target: str, rest: list[str]) -> str:
    public = public_names()
    if target not in public:
        names = {name.rpartition(".")[2]: name for name in public}
        # The name may stand in another room of the house: `diffsim.NVE` for `diffsim.md.NVE`.
        close = nearest(rest[-1], names) if len(rest) < 3 else None
        allowed = ", ".join(public) if close is None else "public names"
        cause = "is no public name of diffsim"
        raise _refusal(target, cause, names[close] if close else None, allowed)
    return "diffsim"


def _exported(folder: Path) -> tuple[str, ...]:
    """The names that a package's `__init__` passes on, without loading it."""
    stub, source = folder / "__init__.pyi", folder / "__init__.py"
    tree = ast.parse((stub if stub.exists() else source).read_text(encoding="utf-8"))
    passed = [
        a.asname or a.name for n in tree.body if isinstance(n, ast.ImportFrom) for a in n.names
    ]
    return tuple(name for name in passed if not name.startswith("_"))


def _public(module: types.ModuleType) -> list[str]:
    return [name for name in dir(module) if not name.startswith("_")]


def _refusal(
    target: object, cause: str, suggestion: str | None = None, allowed: str | None = None
) -> ConfigError:
    if allowed is None:
        others = ", ".join((*CLASSES_AND_FUNCTIONS_OF, *CLASSES_OF))
        allowed = f"public names of diffsim, constructors of {others}, packages in {TRUSTED}"
    return ConfigError(
        f"{target!r} {cause}", key="_target_", value=target, allowed=allowed, suggestion=suggestion
    )


def _checked(builder: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments, if the signature takes them."""
    try:
        parameters = inspect.signature(builder).parameters
    except (TypeError, ValueError):
        return dict(arguments)
    usual = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    known = {name: p for name, p in parameters.items() if p.kind in usual}
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    hints = _hints(builder)
    for name, value in arguments.items():
        if name in known and value is not known[name].default:
            _check_plain(name, value, hints.get(name, Any))
        elif name not in known and not open_ended:
            raise ConfigError("unknown key", key=str(name), allowed=tuple(known) or "no key at all")
    for name, parameter in known.items():
        if parameter.default is parameter.empty and name not in arguments:
            raise ConfigError("must be given", key=name)
    return {name: _as_asked(value, hints.get(name, Any)) for name, value in arguments.items()}


def _as_asked(value: Any, hint: Any) -> Any:
    """YAML has no tuples, and writes 1 for 1.0: these become what the signature asks for."""
    each = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    kinds = [get_origin(one) or one for one in each]
    if isinstance(value, list) and tuple in kinds and list not in kinds:
        return tuple(value)
    if type(value) is int and float in kinds and int not in kinds:
        return float(value)
    return value


def _hints(builder: Callable[..., Any]) -> dict[str, Any]:
    """The types of the arguments; a number that goes through a converter is one all the same, and
    so is a tuple."""
    module = vars(sys.modules[builder.__module__])
    try:
        if not inspect.isclass(builder):
            return get_type_hints(builder, module)
        hints = get_type_hints(vars(builder).get("__init__"), module)
        fields = get_type_hints(builder)
    except (NameError, TypeError, SyntaxError, AttributeError):  # names for type checkers alone
        return {}
    plain = _made_tuples(builder) | {n for n, kind in fields.items() if kind in (float, int)}
    return {
        name: fields.get(name, hint) if hint is Any and name in plain else hint
        for name, hint in hints.items()
    }


def _made_tuples(builder: type) -> set[str]:
    """Fields that take what has elements and make a tuple of it."""
    fields = dataclasses.fields(builder) if dataclasses.is_dataclass(builder) else ()
    return {field.name for field in fields if field.metadata.get("converter") is tuple}


def _check_plain(name: str, value: Any, hint: Any) -> None:
    """Numbers written as text and their like: only what YAML writes is looked at, in lists too."""
    if isinstance(value, list):
        for i, item in enumerate(value):
            _check_plain(f"{name}.{i}", item, _element(hint))
    if isinstance(value, Mapping) and not _fits(value, hint):
        cause = f"must be {_described(hint)}, built with a _target_"
        raise ConfigError(cause, key=name, value=", ".join(map(str, value)))
    plain = value is None or isinstance(value, (str, bool, int, float, list))
    if plain and not _fits(value, hint):
        suggestion = None
        if isinstance(value, float) and value.is_integer() and "whole" in _described(hint):
            suggestion = str(int(value))
        allowed = tuple(map(str, get_args(hint))) if get_origin(hint) is Literal else None
        cause = f"must be {_described(hint)}" if allowed is None else "no such choice"
        shown = "null" if value is None else value
        raise ConfigError(cause, key=name, value=shown, allowed=allowed, suggestion=suggestion)


def _fits(value: Any, hint: Any) -> bool:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, each) for each in get_args(hint))
    if origin is Literal:
        return value in get_args(hint)
    kind = origin or hint
    if kind in (None, Any, object, inspect.Parameter.empty):
        return hint is not None or value is None
    if not inspect.isclass(kind) or kind.__name__ == "PyTree":
        return True  # a type variable, or a name that only type checkers know
    if value is None:
        return kind is type(None)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind.__module__.split(".")[0] in ("jax", "jaxlib", "jaxtyping", "numpy"):
        return not isinstance(value, (str, Mapping))  # a number serves as an array
    try:
        return isinstance(tuple(value) if kind is tuple and type(value) is list else value, kind)
    except TypeError:  # a protocol that cannot be looked for
        return True


def _element(hint: Any) -> Any:
    """The type of what a list for `hint` holds, where all of it has one."""
    each = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    several = [one for one in each if one is not type(None)]
    if len(several) != 1 or get_origin(several[0]) not in (tuple, list, Sequence):
        return Any
    first, *more = get_args(several[0])
    return first if more in ([], [Ellipsis]) else Any


def _described(hint: Any) -> str:
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_described(each) for each in get_args(hint)))
    if get_origin(hint) is Literal:
        return " or ".join(map(str, get_args(hint)))
    if hint in (None, type(None)):
        return "null"
    if hint in _KINDS:
        return _KINDS[hint]
    return getattr(hint, "__name__", str(hint))


def first_line(error: Exception) -> str:
    """What an error says, short; of one that is not about values, its name too."""
    kind = "" if isinstance(error, (TypeError, ValueError)) else type(error).__name__
    lines = str(error).strip().splitlines()[:1] or ([] if kind else [type(error).__name__])
    return ": ".join(text[:200] for text in (kind, *lines) if text)

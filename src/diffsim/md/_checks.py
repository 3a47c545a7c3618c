"""What is refused before it is used: conditions and series of other shapes, numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from .._errors import ConfigError


def check_start(
    given: Mapping[str, Any], needed: Sequence[str] = (), batched: bool = False
) -> None:
    """Refuse a condition that is missing, and one that is not of as many atoms as `positions`.

    positions: (atoms, 3); velocities: (atoms, 3); masses: () or (atoms,); temperature and pressure:
    (). `batched`: positions may have leading axes, and the others the same. Only shapes are looked
    at, so that it works inside jit too.
    """
    for key in needed:
        if given.get(key) is None:
            raise ConfigError("is not given, and this simulation needs it", key=key)
    found = _shape("positions", given["positions"])
    if len(found) < 2 or found[-1] != 3 or (len(found) > 2 and not batched):
        raise ConfigError(f"has the shape {found}", key="positions", allowed="(atoms, 3)")
    batch, atoms = found[:-2], found[-2]
    for key, shapes in {
        "velocities": [(atoms, 3)],
        "masses": [(), (atoms,)],
        "temperature": [()],
        "pressure": [()],
    }.items():
        shape = _shape(key, given.get(key))
        every = [*shapes, *((*batch, *own) for own in shapes)]
        if given.get(key) is not None and shape not in every:
            cause = f"has the shape {shape} where positions have {found}"
            raise ConfigError(cause, key=key, allowed=list(dict.fromkeys(map(str, every))))


def _shape(key: str, value: Any) -> tuple[int, ...]:
    try:
        return np.shape(value)
    except ValueError:
        raise ConfigError("holds rows of different lengths", key=key) from None


def checked_array(key: str, values: Any, *wanted: str | int, least: int = 1) -> np.ndarray:
    """Numbers of a shape, where a name stands for any length: checked_array("dipole", M, "saves",
    3); the first axis has `least` entries or more."""
    try:
        x = np.asarray(values, dtype=float)
    except (TypeError, ValueError):
        raise ConfigError("must be an array of numbers", key=key) from None
    fits = x.ndim == len(wanted) and all(
        isinstance(own, str) or n == own for n, own in zip(x.shape, wanted, strict=True)
    )
    if not fits:
        allowed = f"({', '.join(map(str, wanted))}{',' if len(wanted) == 1 else ''})"
        raise ConfigError(f"has the shape {x.shape}", key=key, allowed=allowed)
    if len(x) < least:
        raise ConfigError(f"has {len(x)} entries", key=key, allowed=f"{least} or more")
    return x


def check_lengths(**series: np.ndarray) -> None:
    """Refuse series of different lengths."""
    first, *others = series
    for key in others:
        if len(series[key]) != len(series[first]):
            cause = f"has {len(series[key])} entries where {first} has {len(series[first])}"
            raise ConfigError(cause, key=key)


def check_positive(**values: Any) -> None:
    """Refuse what is not a positive, finite number."""
    for key, value in values.items():
        number = np.shape(value) == () and np.asarray(value).dtype.kind in "iuf"
        if not number or not 0 < float(value) < math.inf:
            raise ConfigError("must be a positive, finite number", key=key, value=value)


def check_sign(key: str, value: Any, vanishing: bool = False, signed: bool = False) -> None:
    """Refuse parameters, numbers or tables, that are not finite, or not positive; `vanishing` ones
    may be 0, `signed` ones negative."""
    values = np.asarray(value)
    low = not signed and np.any(values < 0 if vanishing else values <= 0)
    if low or not np.all(np.isfinite(values)):
        cause = ("must not be negative" if vanishing else "must be positive") if low else ""
        raise ConfigError(cause or "must be finite", key=key, value=float(np.min(values)))


def checked_count(key: str, value: Any, least: int = 1) -> int:
    """A whole number, not under `least`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ConfigError(f"must be a whole number of at least {least}", key=key, value=value)
    return int(value)


def checked_atoms(key: str, atoms: Any, count: int) -> np.ndarray:
    """So many different atoms each, by number from 0 on: (terms, count); none at all are (0,
    count)."""
    none = isinstance(atoms, (list, tuple)) and not atoms
    rows = np.zeros((0, count)) if none else atoms
    given = checked_array(key, rows, "terms", count, least=0)
    wrong = (given < 0) | (given != np.round(given))
    if np.any(wrong):
        raise ConfigError("must be numbers of atoms, from 0 on", key=key, value=given[wrong][0])
    ordered = np.sort(given, axis=1)
    twice = np.any(ordered[:, 1:] == ordered[:, :-1], axis=1)
    if np.any(twice):
        row = given[twice][0].astype(int).tolist()
        raise ConfigError(f"must be {count} different atoms each", key=key, value=row)
    return given.astype(np.int32)


def check_atoms(potential: Any, atoms: int) -> None:
    """Refuse a potential that is of other atoms: kinds of another number of them, and terms that
    name one beyond the last, which an array would take for the last."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(potential):
        name = getattr(path[-1], "name", None) if path else None
        if name == "species" and np.shape(leaf) != (atoms,):
            cause = f"has {np.size(leaf)} entries for {atoms} atoms"
            raise ConfigError(cause, key="potential.species")
        if name in ("atoms", "pairs") and np.issubdtype(getattr(leaf, "dtype", float), np.integer):
            check_numbers(f"potential{jax.tree_util.keystr(path)}", leaf, atoms)


def check_numbers(key: str, numbers: Any, atoms: int) -> None:
    """Refuse numbers of atoms that do not exist; traced ones were looked at before."""
    if isinstance(numbers, Tracer):
        return
    most = int(np.max(np.asarray(numbers), initial=-1))
    if most >= atoms:
        raise ConfigError(f"names atom {most} of {atoms}", key=key, allowed=f"0 to {atoms - 1}")

"""Conditions of a batch of runs: what `init` takes, with a leading axis."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from .._errors import ConfigError
from .._simulation import AbstractSimulation


def arrays(conditions: Mapping[str, Any]) -> dict[str, Any]:
    """Lists, which is what configurations hold, as arrays."""
    try:
        return {k: np.asarray(v) if isinstance(v, list) else v for k, v in conditions.items()}
    except ValueError:
        raise ConfigError("holds rows of different lengths", key="conditions") from None


def check_lengths(conditions: Mapping[str, Any]) -> None:
    """Refuse conditions, trees of arrays each, that do not share a leading axis."""
    lengths = {
        k: sorted({np.shape(x)[:1] for x in jax.tree.leaves(v)}) for k, v in conditions.items()
    }
    found = {length for each in lengths.values() for length in each}
    if len(found) > 1 or () in found:
        raise ConfigError(
            f"must share a leading axis, not have lengths {lengths}", key="conditions"
        )


def check_names(simulation: AbstractSimulation, conditions: Mapping[str, Any]) -> None:
    """Refuse a condition that `init` does not take, and none where it needs one."""
    known = inspect.signature(simulation.init).parameters
    usual = {n: p for n, p in known.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    for name, each in usual.items():
        if each.default is each.empty and name not in ("params", "key", *conditions):
            raise ConfigError("must be given", key=f"conditions.{name}")
    names = tuple(n for n, p in known.items() if p.kind is not p.VAR_KEYWORD)
    if len(names) < len(known):  # it takes any
        return
    names = tuple(n for n in names if n not in ("params", "key"))
    for key in conditions:
        if key not in names:
            raise ConfigError("no such condition", key=f"conditions.{key}", allowed=names)

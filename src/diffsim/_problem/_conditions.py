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


def check_names(
    simulation: AbstractSimulation, conditions: Mapping[str, Any], whole: bool = True
) -> None:
    """Refuse a condition that `init` does not take; if these are the `whole` of them, also the lack
    of one that it cannot do without."""
    known = inspect.signature(simulation.init).parameters
    own = {n: p for n, p in known.items() if n not in ("params", "key")}
    names = tuple(n for n, p in own.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL))
    for key in names if whole else ():
        if own[key].default is inspect.Parameter.empty and key not in conditions:
            raise ConfigError(
                f"is not given, and {type(simulation).__name__} needs it", key=f"conditions.{key}"
            )
    if any(p.kind is p.VAR_KEYWORD for p in own.values()):  # it takes any
        return
    for key in conditions:
        if key not in names:
            raise ConfigError("no such condition", key=f"conditions.{key}", allowed=names)

"""Diffrax's adjoints under our names."""

from __future__ import annotations

from typing import Any

import diffrax

from .._adjoint import Backsolve, Direct, ForwardMode, RecursiveCheckpoint
from .._errors import ConfigError


def diffrax_adjoint(adjoint: Any, event: Any = None) -> diffrax.AbstractAdjoint:
    """What takes a gradient through an adaptive solver as `adjoint` says (None: no gradient)."""
    match adjoint:
        case None | ForwardMode():
            return diffrax.ForwardMode()
        case Direct():
            return diffrax.DirectAdjoint()
        case RecursiveCheckpoint():
            return diffrax.RecursiveCheckpointAdjoint(adjoint.checkpoints)
        case Backsolve():
            if event is not None:
                raise ConfigError(
                    "Backsolve cannot run backwards through an event",
                    key="adjoint",
                    allowed="RecursiveCheckpoint, Direct, ForwardMode",
                )
            return diffrax.BacksolveAdjoint()
    raise ConfigError(
        f"{type(adjoint).__name__} does not apply to a solver that chooses its steps",
        key="adjoint",
        allowed="RecursiveCheckpoint, Direct, ForwardMode, Backsolve; or a fixed step, dt=",
    )

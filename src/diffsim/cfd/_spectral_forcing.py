"""What accelerates a spectral flow: drag in the linear part, the rest as accelerations at the
points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ._boundary import value_of
from ._forcing import AbstractForcing, Acceleration, KolmogorovForcing, LinearDrag, Modes
from ._spectral_modes import PeriodicModes

STEADY = (KolmogorovForcing, Modes, Acceleration)  # of the parameters alone

Force = list[Array | None]  # None: the component has none


def drag_of(pieces: Sequence[AbstractForcing], params: Mapping[str, Any], dtype: Any) -> Array:
    """α, the sum of the linear drags."""
    total = jnp.zeros((), dtype)
    for piece in pieces:
        if isinstance(piece, LinearDrag):
            total = total + jnp.asarray(value_of(piece.coefficient, params), dtype)
    return total


def steady_force(
    pieces: Sequence[AbstractForcing], modes: PeriodicModes, params: Mapping[str, Any], dtype: Any
) -> Force:
    """Spectra of what depends neither on the flow nor on time, without parameters computed once,
    while tracing."""
    steady = [piece for piece in pieces if isinstance(piece, STEADY)]
    still = (jnp.zeros(modes.grid.shape, dtype),) * modes.grid.ndim

    def spectra(some: Sequence[AbstractForcing]) -> Force:
        return _spectra(modes, accelerations(some, modes, params, still, 0.0))

    with jax.ensure_compile_time_eval():
        fixed = spectra([piece for piece in steady if not piece.parameters()])
    return added(fixed, spectra([piece for piece in steady if piece.parameters()]))


def varying_force(
    pieces: Sequence[AbstractForcing],
    modes: PeriodicModes,
    params: Mapping[str, Any],
    velocity: Sequence[Array],
    t: Any,
) -> Force:
    """Spectra of the rest, from the velocity at the points."""
    varying = [piece for piece in pieces if not isinstance(piece, (*STEADY, LinearDrag))]
    return _spectra(modes, accelerations(varying, modes, params, velocity, t))


def accelerations(
    pieces: Sequence[AbstractForcing],
    modes: PeriodicModes,
    params: Mapping[str, Any],
    velocity: Sequence[Array],
    t: Any,
) -> Force:
    """The sum of the pieces at the points."""
    total: Force = [None] * modes.grid.ndim
    for piece in pieces:
        force = piece(modes, params, velocity, {}, t)  # pyright: ignore[reportArgumentType]
        found: Force = [
            None
            if isinstance(f, (int, float)) and f == 0
            else jnp.broadcast_to(jnp.asarray(f, u.dtype), u.shape)
            for f, u in zip(force, velocity, strict=True)
        ]
        total = added(total, found)
    return total


def completed(modes: PeriodicModes, force: Force, dtype: Any) -> list[Array] | None:
    """With zeros where a component has none; None where none has any."""
    if all(f is None for f in force):
        return None
    zero = jnp.zeros((2, *modes.shape), dtype)
    return [zero if f is None else f for f in force]


def _spectra(modes: PeriodicModes, force: Force) -> Force:
    return [None if f is None else modes.modes(f) for f in force]


def added(a: Force, b: Force) -> Force:
    """a + b, component by component."""
    return [x if y is None else y if x is None else x + y for x, y in zip(a, b, strict=True)]

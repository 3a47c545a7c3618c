"""Numbers as multiples of 2⁻⁴⁰, for integrators that run backwards to the last bit."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from .._errors import ConfigError
from .._simulation import need_64_bit_integers

RESOLUTION = 2.0**-40  # of a position or velocity in its unit: a range of ±8e6 in 64 bits


def grid(x: Array) -> Array:
    """The nearest multiple of 2⁻⁴⁰, as an integer."""
    return jnp.round(x.astype(jnp.float64) / RESOLUTION).astype(jnp.int64)


def off_grid(x: Array, dtype: Any) -> Array:
    """Back to floating point."""
    return (x * RESOLUTION).astype(dtype)


def check_exact(repeatable: bool) -> None:
    """Refuse to run backwards without 64-bit integers, or with forces that are not the same to the
    last bit on the way back."""
    need_64_bit_integers()
    if not repeatable:
        raise ConfigError(
            "Reversible needs forces that do not depend on the order of a neighbour list, and "
            "those of this potential do",
            key="adjoint",
            allowed="RecursiveCheckpoint, or the energy function without neighbour list",
        )

"""Floating-point numbers as multiples of a power of two, for runs that are exact both ways."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._simulation import need_64_bit_integers

FINE = 48  # bits below the start's magnitude that the exact representation keeps
REACH = 32  # steps of the start's speed that a coordinate which starts at zero is sized by
ROOM = 2**62  # integers beyond this (2¹⁴ times the start's magnitude) are a failure


def spacing(x: Array, motion: Array) -> Array:
    """The power of two that is 2⁻⁴⁸ of the largest entry, or of `REACH` steps of `motion` where
    that is larger (of one where all is zero)."""
    need_64_bit_integers()
    both = jnp.concatenate([jnp.ravel(x), REACH * jnp.ravel(motion)])
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(both))).astype(jnp.float64)
    _, exponent = jnp.frexp(jnp.where(largest > 0, largest, 1.0))
    return jnp.ldexp(jnp.ones((), jnp.float64), exponent - FINE)


def on_grid(x: Array, grid: Array) -> Array:
    """The nearest multiple of `grid`, as an integer."""
    return jnp.round(x.astype(jnp.float64) / grid).astype(jnp.int64)


def off_grid(x: Array, grid: Array, dtype: jnp.dtype) -> Array:
    """Back to floating point; NaN where the integers are about to run out."""
    value = (x * grid).astype(dtype)
    return jnp.where(jnp.abs(x) < ROOM, value, jnp.nan)

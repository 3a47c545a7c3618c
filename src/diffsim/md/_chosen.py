"""Which entries of each row of a mask are set, into arrays of fixed size."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

WORD = 32  # bits


def fetch(values: Array, index: Any) -> Array:
    """values[index], none of it outside or negative: to look costs a pass of its own."""
    return values.at[index].get(mode="promise_in_bounds", wrap_negative_indices=False)


def chosen(mask: Array, room: int) -> tuple[Array, Array]:
    """(rows, room) positions of what is true in each row, -1 as filler, and the most in one row."""
    words = packed(mask)
    return listed(words, room), jnp.max(counted(words))


def packed(mask: Array) -> Array:
    """A mask, (rows, width), as the bits of words, (rows, words)."""
    rows, width = mask.shape
    padded = jnp.pad(mask, ((0, 0), (0, -width % WORD))).reshape(rows, -1, WORD)
    bits = jnp.uint32(1) << jnp.arange(WORD, dtype=jnp.uint32)
    return jnp.sum(jnp.where(padded, bits, jnp.uint32(0)), axis=2, dtype=jnp.uint32)


def counted(words: Array) -> Array:
    """How many bits are set in each row, (rows,)."""
    return jnp.sum(_count(words), axis=1, dtype=jnp.int32)


def listed(words: Array, room: int) -> Array:
    """(rows, room) positions of the bits that are set in each row, -1 as filler.

    A running sum over words tells the word of the n-th that is set, and a table its place in the
    byte. Scattering or sorting single entries took longer.
    """
    ends = jnp.cumsum(_count(words), axis=1, dtype=jnp.int32)
    rank = jnp.arange(room, dtype=jnp.int32)
    which = jnp.sum((ends[:, None, :] <= rank[:, None]).astype(jnp.int32), axis=2, dtype=jnp.int32)
    which = jnp.minimum(which, ends.shape[1] - 1)
    row = np.arange(words.shape[0], dtype=np.int32)[:, None]
    word = fetch(words, (row, which))
    nth = rank - (fetch(ends, (row, which)) - _count(word))
    byte, passed = jnp.zeros_like(nth), jnp.zeros_like(nth)
    for end in (8, 16, 24):
        below = _count(word & jnp.uint32(2**end - 1))
        byte = jnp.where(nth >= below, end, byte)
        passed = jnp.where(nth >= below, below, passed)
    part = ((word >> byte.astype(jnp.uint32)) & jnp.uint32(0xFF)).astype(jnp.int32)
    index = part * 8 + jnp.clip(nth - passed, 0, 7)
    place = which * WORD + byte + fetch(jnp.asarray(_PLACES), index)
    return jnp.where(rank < ends[:, -1:], place, -1)


def _count(words: Array) -> Array:
    return jax.lax.population_count(words).astype(jnp.int32)


def _places() -> np.ndarray:
    """Which bit of a byte is the n-th that is set, (256 * 8,)."""
    places = np.zeros((256, 8), np.int32)
    for byte in range(256):
        bits = [bit for bit in range(8) if byte >> bit & 1]
        places[byte, : len(bits)] = bits
    return places.reshape(-1)


_PLACES = _places()

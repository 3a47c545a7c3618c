"""Normal numbers of a step from a key: a counter in, numbers out, in a few fused operations."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def normals(key: PRNGKeyArray, step: Array, count: int, dtype: Any) -> Array:
    """`count` standard normal numbers of step `step`, the same whenever they are asked for.

    Threefry-2x32 (Salmon et al. 2011, doi:10.1145/2063384.2063405) of the counter (step, i) under
    the key, mapped by the inverse error function. `jax.random` hashes by a rolled loop, which costs
    more than a whole step of a small system; written out, it is part of the step's own kernel.
    """
    words = jax.random.key_data(key).astype(jnp.uint32).ravel()
    first = jnp.full((count,), step, jnp.uint32)
    high, low = threefry(words[-2], words[-1], first, jnp.arange(count, dtype=jnp.uint32))
    if dtype == jnp.float64:
        whole = (high >> 5).astype(dtype) * 2.0**26 + (low >> 6).astype(dtype)
        uniform = (whole + 0.5) * 2.0**-53
    else:
        uniform = ((high >> 8).astype(dtype) + 0.5) * 2.0**-24
    return jnp.asarray(2.0**0.5, dtype) * jax.lax.erf_inv(2 * uniform - 1)


def threefry(k0: Array, k1: Array, x0: Array, x1: Array) -> tuple[Array, Array]:
    """Twenty rounds of Threefry-2x32, unrolled; all of uint32."""
    keys = (k0, k1, k0 ^ k1 ^ jnp.uint32(0x1BD11BDA))
    x0, x1 = x0 + keys[0], x1 + keys[1]
    for block in range(5):
        for rotation in ROTATIONS[block % 2]:
            x0 = x0 + x1
            x1 = ((x1 << rotation) | (x1 >> (32 - rotation))) ^ x0
        x0 = x0 + keys[(block + 1) % 3]
        x1 = x1 + keys[(block + 2) % 3] + jnp.uint32(block + 1)
    return x0, x1

"""What is done differently from jax-md, and why. For each entry a test, in tests/test_neighbours.py
or tests/test_potentials.py, fails once it is fixed upstream.

- jax-md#171: cell lists silently lose the pairs of atoms outside of the box: `wrapped`.
- jax-md#258: derivatives of `energy.lennard_jones*` in ε and σ are NaN, because of the masked pairs
  at r = 0: `LennardJones` masks the distance instead.
- Not reported: with 64-bit types, lists without cells write int64 into int32 arrays, of which JAX
  warns: `mixed_integers`.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def wrapped(
    positions: Float[Array | np.ndarray, "atoms 3"], box: Float[Array | np.ndarray, "3"]
) -> Float[Array, "atoms 3"]:
    """The images of the atoms inside the box, in [0, L)."""
    positions, box = jnp.asarray(positions), jnp.asarray(box)
    inside = positions - box * jnp.floor(positions / box)
    # Rounding takes a tiny negative coordinate to L itself.
    return jnp.where(inside < box, inside, 0)


@contextlib.contextmanager
def mixed_integers() -> Iterator[None]:
    """Without JAX's warning: indices fit into 32 bits."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "scatter inputs have incompatible types", FutureWarning)
        yield

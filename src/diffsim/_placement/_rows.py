"""Functions of one member, over all members of a batch that lie on one device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
from jaxtyping import PyTree


def rows_of(*trees: PyTree) -> int:
    """The length of the leading axis that the arrays in `trees` share."""
    return next(x.shape[0] for x in jax.tree.leaves(trees) if eqx.is_array(x))


def over_batch(fn: Callable[..., Any], *args: PyTree) -> PyTree:
    """`fn` vmapped over the leading axis of the arrays in `args`.

    A batch of one runs alone, so that conditionals (neighbour lists) cost what they cost alone.
    """
    if rows_of(args) > 1:
        return eqx.filter_vmap(fn)(*args)
    out = fn(*jax.tree.map(lambda x: x[0] if eqx.is_array(x) else x, args))
    return jax.tree.map(lambda x: x[None] if eqx.is_array(x) else x, out)

"""What is refused before anything is traced: vector fields, starts and tolerances."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from .._errors import ConfigError


def checked_tolerance(key: str, value: Any) -> float:
    """A positive, finite number."""
    if not isinstance(value, (int, float)) or not (math.isfinite(value) and value > 0):
        raise ConfigError("must be positive and finite", key=key, value=value)
    return float(value)


def checked_y0(y0: Any) -> PyTree:
    """The start as floating-point arrays."""

    def one(x: Any) -> Any:
        if not eqx.is_array_like(x):
            raise ConfigError("must hold numbers", key="y0", value=x)
        x = jnp.asarray(x)
        return x if jnp.issubdtype(x.dtype, jnp.inexact) else x.astype(float)

    return jax.tree.map(one, y0)


def check_field(
    field: Callable[..., Any], y: PyTree, params: PyTree, components: Sequence[str] = ()
) -> None:
    """dy/dt must have the structure, shapes and kind of y, and y as many entries as names."""
    if components and jnp.shape(y) != (len(components),):
        raise ConfigError(
            f"has the shape {_shapes(y)} for {len(components)} components",
            key="y0",
            allowed=", ".join(components),
        )
    t = jax.ShapeDtypeStruct((), jnp.result_type(*jax.tree.leaves(y), float))
    try:
        slope = eqx.filter_eval_shape(field, t, y, params)
    except KeyError as error:
        raise ConfigError(
            f"reads the parameter {error}, which is not there",
            key="vector_field",
            allowed=tuple(params) or "none were given" if isinstance(params, dict) else None,
        ) from error
    if jax.tree.structure(slope) != jax.tree.structure(y) or _shapes(slope) != _shapes(y):
        raise ConfigError(
            f"returns {_shapes(slope)} for a y of {_shapes(y)}: dy/dt must look like y",
            key="vector_field",
        )


def _shapes(tree: PyTree) -> Any:
    return jax.tree.map(lambda x: tuple(jnp.shape(x)), tree)

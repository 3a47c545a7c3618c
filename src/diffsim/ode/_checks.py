"""What is refused before anything is traced: vector fields, starts and tolerances."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .._errors import ConfigError


def checked_tolerance(key: str, value: Any) -> float:
    """A positive, finite number."""
    if not isinstance(value, (int, float)) or not (math.isfinite(value) and value > 0):
        raise ConfigError("must be positive and finite", key=key, value=value)
    return float(value)


def checked_y0(y0: Any) -> PyTree:
    """The start as floating-point arrays."""

    if isinstance(y0, list):  # of numbers, as configurations hold them
        y0 = np.asarray(y0)

    def one(x: Any) -> Any:
        if not eqx.is_array_like(x):
            raise ConfigError("must hold numbers", key="y0", value=x)
        x = jnp.asarray(x)
        return x if jnp.issubdtype(x.dtype, jnp.inexact) else x.astype(float)

    return jax.tree.map(one, y0)


def first_start(y0: Any) -> PyTree:
    """The first of a batch of starts, all of which must be finite."""
    if not all(np.all(np.isfinite(np.asarray(x))) for x in jax.tree.leaves(y0)):
        raise ConfigError("must be finite", key="conditions.y0")
    return checked_y0(jax.tree.map(lambda x: np.asarray(x)[0], y0))


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
    slope = slope_of(field, y, params)
    if jax.tree.structure(slope) != jax.tree.structure(y) or _shapes(slope) != _shapes(y):
        raise ConfigError(
            f"returns {_shapes(slope)} for a y of {_shapes(y)}: dy/dt must look like y",
            key="vector_field",
        )

    for a, b in zip(jax.tree.leaves(slope), jax.tree.leaves(y), strict=True):
        if jnp.result_type(a, b) != b.dtype:
            raise ConfigError(
                f"returns {a.dtype} for a y of {b.dtype}",
                key="vector_field",
                allowed="a start and parameters of one precision",
            )


def slope_of(
    field: Callable[..., Any], y: PyTree, params: PyTree, key: str = "vector_field"
) -> PyTree:
    """The shapes and types of f(t, y, args)."""
    try:
        inspect.signature(field).bind(0, 0, 0)
    except TypeError:
        raise ConfigError("must be a function of (t, y, args)", key=key) from None
    except ValueError:  # a callable without a signature
        pass
    t = jax.ShapeDtypeStruct((), clock_type(y))
    try:
        return eqx.filter_eval_shape(field, t, y, params)
    except KeyError as error:
        raise ConfigError(
            f"reads the parameter or component {error}, which is not there",
            key=key,
            allowed=tuple(params) or "none were given" if isinstance(params, dict) else None,
        ) from error


def promoted(field: Callable[..., Any], y: PyTree, params: PyTree) -> PyTree:
    """The start in the precision in which parameters make its slope."""
    slope = slope_of(field, y, params)
    if jax.tree.structure(slope) != jax.tree.structure(y):
        return y  # refused by `check_field`, with the reason
    return jax.tree.map(lambda a, b: a.astype(jnp.result_type(a, b)), y, slope)


def clock_type(y: PyTree) -> Any:
    """The real type of the time that belongs to y."""
    return jnp.finfo(jnp.result_type(*jax.tree.leaves(y), float)).dtype


def _shapes(tree: PyTree) -> Any:
    return jax.tree.map(lambda x: tuple(jnp.shape(x)), tree)

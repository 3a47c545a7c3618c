"""What is seen of a state of a differential equation, and where one starts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, PyTree

from .._errors import ConfigError
from ._systems import AbstractSystem


def observed(
    field: Any, components: tuple[str, ...], t: Array, y: Any, params: Any
) -> dict[str, Array]:
    """`t`; `y`, or the entries of a dictionary or tuple; the named components; a system's own."""
    seen: dict[str, Array] = {"t": t}
    if isinstance(y, dict):
        seen |= y
    elif isinstance(y, (tuple, list)):
        seen |= {f"y{i}": value for i, value in enumerate(y)}
    else:
        seen |= {"y": y} | {name: y[i] for i, name in enumerate(components)}
    if isinstance(field, AbstractSystem):
        seen |= field.observe(t, y, params)  # pyright: ignore[reportArgumentType]
    return seen


def start_of(field: Any, initial: Callable[[PyTree], PyTree] | None, params: PyTree) -> PyTree:
    """y₀ where no condition gives it: of the parameters, or a system's own."""
    if initial is not None:
        return initial(params)
    if isinstance(field, AbstractSystem):
        return jnp.asarray(field.start())
    raise ConfigError("must be given", key="y0", allowed="a condition y0, or initial=")

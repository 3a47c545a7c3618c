"""Initial states that are parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._errors import ConfigError


class InitialState(eqx.Module):
    """y₀ = (θ[names[0]], θ[names[1]], ...): each entry of the start is a parameter, free or fixed.

    **Arguments:** `names`: of parameters, one an entry of y.
    """

    names: tuple[str, ...] = eqx.field(static=True)

    def __init__(self, names: Sequence[str]):
        self.names = (names,) if isinstance(names, str) else tuple(names)

    def __call__(self, params: Mapping[str, Any]) -> Float[Array, "n"]:
        for name in self.names:
            if name not in params:
                raise ConfigError(
                    "no such parameter", key="initial.names", value=name, allowed=params
                )
        return jnp.stack([jnp.asarray(params[name]) for name in self.names])

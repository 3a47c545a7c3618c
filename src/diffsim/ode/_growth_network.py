"""A network for what populations do to each other."""

from __future__ import annotations

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._errors import ConfigError
from ._systems._networks import _mlp


class GrowthNetwork(eqx.Module):
    """net(y) = y · mlp(y/scale): growth of each population a head, as a network of all of them.

    y: (`size`,) [number, or density]. The factor y keeps positive populations positive and an
    extinct one extinct, whatever the weights. Tanh and a last layer near zero: a fit starts near no
    growth at all. A parameter of `UniversalEquation` or `NeuralODE`.

    **Arguments:** `width` and `depth`: of the hidden layers; `scale`: a typical population, by
    which the network's input is divided; `seed`: of the first weights.
    """

    layers: tuple[eqx.nn.Linear, ...]  # arrays alone, as a fit flattens them
    scale: float = eqx.field(static=True)

    def __init__(
        self, size: int, *, width: int = 16, depth: int = 2, scale: float = 1.0, seed: int = 0
    ):
        for key, value in (("size", size), ("width", width), ("depth", depth)):
            if value < 1:
                raise ConfigError("must be at least 1", key=key, value=value)
        if not (math.isfinite(scale) and scale > 0):
            raise ConfigError("must be positive and finite", key="scale", value=scale)
        self.layers = _mlp(size, size, width, depth, jax.random.key(seed)).layers
        self.scale = float(scale)

    def __call__(self, y: Any) -> Float[Array, "n"]:
        y = jnp.asarray(y)
        x = y / self.scale
        for layer in self.layers[:-1]:
            x = jnp.tanh(layer(x))
        return y * self.layers[-1](x)

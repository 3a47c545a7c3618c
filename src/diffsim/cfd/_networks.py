"""Networks that read a whole field at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._errors import ConfigError


class FieldNetwork(eqx.Module):
    """y = W₃ ∗ σ(W₂ ∗ σ(W₁ ∗ x/scale + b₁) + b₂) + b₃: a convolutional network over a grid.

    x: (*grid, inputs) to (*grid, outputs), channels last, of a grid of any size; σ is GELU. The
    last layer starts near zero, so that a fit starts near the flow without it.

    **Arguments:** `width` and `depth`: channels and number of the hidden layers; `reach`: cells on
    each side that a layer looks at (0: a network of each point by itself); `axes`: of the grid;
    `periodic`: whether the grid goes on at its ends, else the last values do, a truth value an axis
    or one for all; `scale`: of the inputs; `seed`: of the first weights.
    """

    weights: tuple[Array, ...]
    biases: tuple[Array, ...]
    reach: int = eqx.field(static=True)
    periodic: tuple[bool, ...] = eqx.field(static=True)
    scale: float = eqx.field(static=True)

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        width: int = 32,
        depth: int = 3,
        reach: int = 1,
        axes: int = 2,
        periodic: bool | Sequence[bool] = True,
        scale: float = 1.0,
        seed: int = 0,
    ):
        least = dict(inputs=1, outputs=1, width=1, depth=1, reach=0, axes=1)
        given = dict(
            inputs=inputs, outputs=outputs, width=width, depth=depth, reach=reach, axes=axes
        )
        for key, value in given.items():
            if value < least[key]:
                raise ConfigError(f"must be at least {least[key]}", key=key, value=value)
        if not (math.isfinite(scale) and scale > 0):
            raise ConfigError("must be positive and finite", key="scale", value=scale)
        self.reach, self.scale = int(reach), float(scale)
        self.periodic = tuple(map(bool, np.broadcast_to(periodic, (axes,))))
        sizes = [inputs, *[width] * depth, outputs]
        taps = (2 * reach + 1) ** axes
        keys = jax.random.split(jax.random.key(seed), depth + 1)
        gains = [math.sqrt(2.0)] * depth + [1e-2]
        self.weights = tuple(
            gain / math.sqrt(taps * n) * jax.random.normal(key, (taps * n, m))
            for key, gain, n, m in zip(keys, gains, sizes[:-1], sizes[1:], strict=True)
        )
        self.biases = tuple(jnp.zeros(m) for m in sizes[1:])

    def __call__(self, x: Any) -> Array:
        x = jnp.asarray(x) / self.scale
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = jax.nn.gelu(x) if i else x
            x = self._surroundings(x) @ weight.astype(x.dtype) + bias.astype(x.dtype)
        return x

    def _surroundings(self, x: Array) -> Array:
        """What each point and those around it hold, side by side: a convolution is then one product
        of matrices, whose pullback is as quick (that of XLA's convolution on a CPU is not)."""
        for axis, wraps in enumerate(self.periodic):
            x = self._along(x, axis, wraps)
        return x

    def _along(self, x: Array, axis: int, wraps: bool) -> Array:
        if not self.reach:
            return x
        widths = [(0, 0)] * x.ndim
        widths[axis] = (self.reach, self.reach)
        wide, n = jnp.pad(x, widths, mode="wrap" if wraps else "edge"), x.shape[axis]
        shifts = range(2 * self.reach + 1)
        return jnp.concatenate(
            [jax.lax.slice_in_dim(wide, k, k + n, axis=axis) for k in shifts], axis=-1
        )

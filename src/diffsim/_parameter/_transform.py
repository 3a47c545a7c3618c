"""θ = T(z): how the real numbers that fits and samplers move become parameters within bounds."""

from __future__ import annotations

import functools
import math
from abc import abstractmethod

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array


class AbstractTransform(eqx.Module):
    """An invertible map of one array, and the logarithm of how it stretches volumes."""

    @abstractmethod
    def forward(self, z: Array) -> Array:
        """θ of z."""

    @abstractmethod
    def inverse(self, x: Array) -> Array:
        """z of θ."""

    @abstractmethod
    def log_det(self, z: Array) -> Array:
        """log |det dθ/dz|. Shape ()."""

    @abstractmethod
    def fault(self, x: np.ndarray) -> str | None:
        """Why the map does not reach x, None where it does."""


class Identity(AbstractTransform):
    """θ = z."""

    def forward(self, z: Array) -> Array:
        return z

    def inverse(self, x: Array) -> Array:
        return x

    def log_det(self, z: Array) -> Array:
        return jnp.zeros((), z.dtype)

    def fault(self, x: np.ndarray) -> str | None:
        return None


class Positive(AbstractTransform):
    """θ = eᶻ, each entry by itself, and no less than the smallest normal number: a fit that runs
    to zero ends at a value that is positive all the same."""

    def forward(self, z: Array) -> Array:
        return jnp.exp(jnp.maximum(z, math.ceil(math.log(jnp.finfo(z.dtype).tiny))))

    def inverse(self, x: Array) -> Array:
        return jnp.log(x)

    def log_det(self, z: Array) -> Array:
        return jnp.sum(z)

    def fault(self, x: np.ndarray) -> str | None:
        return "must be positive" if np.any(x <= 0) else None


class Interval(AbstractTransform):
    """θ = low + (high - low)/(1 + e⁻ᶻ), each entry by itself; where that rounds to a bound, the
    nearest number inside."""

    low: float = eqx.field(static=True)
    high: float = eqx.field(static=True)

    def forward(self, z: Array) -> Array:
        inside = self.low + (self.high - self.low) * jax.nn.sigmoid(z)
        return jnp.clip(inside, _next(self.low, 1, z.dtype), _next(self.high, -1, z.dtype))

    def inverse(self, x: Array) -> Array:
        return jnp.log((x - self.low) / (self.high - x))

    def log_det(self, z: Array) -> Array:
        width = math.log(self.high - self.low)
        return jnp.sum(width + jax.nn.log_sigmoid(z) + jax.nn.log_sigmoid(-z))

    def fault(self, x: np.ndarray) -> str | None:
        if np.any(x <= self.low) or np.any(x >= self.high):
            return f"must lie inside the interval ({self.low:g}, {self.high:g})"
        return None


class Simplex(AbstractTransform):
    """θ = softmax(V z): k positive shares whose sum is one, from k - 1 real numbers.

    V (k, k - 1) has orthonormal columns that sum to zero, so that no share is singled out and z = 0
    is the centre (isometric log-ratio; Egozcue et al. 2003, doi:10.1023/A:1023818214614). The
    volume is that of the first k - 1 shares, in which densities on the simplex are written.
    """

    def forward(self, z: Array) -> Array:
        shares = jax.nn.softmax(jnp.asarray(_contrasts(z.shape[0] + 1), z.dtype) @ z)
        return jnp.maximum(shares, float(jnp.finfo(z.dtype).tiny))

    def inverse(self, x: Array) -> Array:
        return jnp.asarray(_contrasts(x.shape[0]).T, x.dtype) @ jnp.log(x)

    def log_det(self, z: Array) -> Array:
        shares = jnp.asarray(_contrasts(z.shape[0] + 1), z.dtype) @ z
        return 0.5 * math.log(z.shape[0] + 1) + jnp.sum(jax.nn.log_softmax(shares))

    def fault(self, x: np.ndarray) -> str | None:
        if x.ndim != 1 or x.size < 2:
            return "must be a vector of at least two shares"
        if np.any(x <= 0) or abs(float(np.sum(x)) - 1) > 1e-6:
            return f"must be positive shares whose sum is 1, not {float(np.sum(x)):g}"
        return None


def _next(bound: float, side: int, dtype: np.dtype) -> float:
    """The number next to `bound` above (`side` 1) or below (-1); beside zero the smallest normal
    one, as what is smaller counts as zero in compiled code."""
    if bound == 0:
        return side * float(jnp.finfo(dtype).tiny)
    return float(np.nextafter(np.asarray(bound, dtype), np.asarray(side * np.inf, dtype)))


@functools.cache
def _contrasts(k: int) -> np.ndarray:
    """Helmert's: column j sets the mean of the first j shares against the next one."""
    v = np.zeros((k, k - 1))
    for j in range(1, k):
        v[:j, j - 1], v[j, j - 1] = 1 / j, -1
        v[:, j - 1] *= math.sqrt(j / (j + 1))
    return v

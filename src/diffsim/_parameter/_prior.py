"""Densities of parameters before any data: diffsim's own, beside any of numpyro.distributions."""

from __future__ import annotations

import math
from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array

from .._errors import ConfigError


@runtime_checkable
class Prior(Protocol):
    """Anything with a log density: diffsim's own, or a numpyro distribution."""

    def log_prob(self, value: Any) -> Array: ...


class Normal(eqx.Module):
    """p(x) ∝ exp(-(x - loc)²/(2 scale²)), in the parameter's unit.

    On a positive or bounded parameter it is the normal distribution truncated there: what is cut
    off changes its normalisation only, which no fit and no posterior depends on.
    """

    loc: float
    scale: float

    def __check_init__(self):
        _check_scale(self.scale)

    def log_prob(self, value: Any) -> Array:
        z = self.standardised(value)
        return -0.5 * z**2 - math.log(self.scale * math.sqrt(2 * math.pi))

    def standardised(self, value: Any) -> Array:
        """(x - loc)/scale: the residual that least squares adds."""
        return (jnp.asarray(value) - self.loc) / self.scale


class HalfNormal(eqx.Module):
    """p(x) ∝ exp(-x²/(2 scale²)), x > 0, in the parameter's unit."""

    scale: float

    def __check_init__(self):
        _check_scale(self.scale)

    def log_prob(self, value: Any) -> Array:
        return -0.5 * self.standardised(value) ** 2 - math.log(self.scale * math.sqrt(math.pi / 2))

    def standardised(self, value: Any) -> Array:
        """x/scale."""
        return jnp.asarray(value) / self.scale


class LogNormal(eqx.Module):
    """log x ~ N(loc, scale²), x > 0; loc and scale belong to log x."""

    loc: float
    scale: float

    def __check_init__(self):
        _check_scale(self.scale)

    def log_prob(self, value: Any) -> Array:
        z = self.standardised(value)
        norm = math.log(self.scale * math.sqrt(2 * math.pi))
        return -0.5 * z**2 - jnp.log(value) - norm

    def standardised(self, value: Any) -> Array:
        """(log x - loc)/scale."""
        return (jnp.log(value) - self.loc) / self.scale


def _check_scale(scale: float) -> None:
    if not (math.isfinite(scale) and scale > 0):
        raise ConfigError("must be positive and finite", key="scale", value=scale)

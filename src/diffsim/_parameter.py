"""What is fitted, and what is known of it beforehand."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from ._errors import ConfigError


@runtime_checkable
class Prior(Protocol):
    """Anything with a log density: diffsim's own, or a numpyro distribution."""

    def log_prob(self, value: Any) -> Array: ...


class Normal(eqx.Module):
    """p(x) ∝ exp(-(x - loc)²/(2 scale²)), in the parameter's unit."""

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


class Parameter(eqx.Module):
    """θ = T(z): a quantity to fit, its start, unit, transform and prior.

    **Arguments:** `init`: the starting value in `unit`, a number, an array or a pytree of arrays (a
    network); `unit`: converted to the simulation's unit where it declares one; `transform`: None
    (z = θ), "positive" (θ = eᶻ) or an interval (low, high) (θ = low + (high - low) sigmoid z);
    `prior`: a density over θ: the penalty in `fit`, extra residuals in `least_squares`; `fixed`:
    keep it at `init`; `tied`: the name of the parameter whose value it takes.
    """

    init: Any
    unit: str | None = eqx.field(static=True, default=None)
    transform: Any = eqx.field(static=True, default=None)
    prior: Prior | None = None
    fixed: bool = eqx.field(static=True, default=False)
    tied: str | None = eqx.field(static=True, default=None)

    def __init__(
        self,
        init: Any,
        unit: str | None = None,
        transform: str | tuple[float, float] | list[float] | None = None,
        prior: Prior | None = None,
        fixed: bool = False,
        tied: str | None = None,
    ):
        self.init, self.unit, self.prior, self.fixed, self.tied = init, unit, prior, fixed, tied
        self.transform = tuple(transform) if isinstance(transform, (list, tuple)) else transform

    def __check_init__(self):
        named = self.transform in (None, "positive")
        if not named and not (isinstance(self.transform, tuple) and len(self.transform) == 2):
            raise ConfigError(
                "unknown transform",
                key="transform",
                value=self.transform,
                allowed="positive, [low, high], or none",
            )
        leaves = jax.tree.leaves(eqx.filter(self.init, eqx.is_array_like))
        if not leaves:
            raise ConfigError(
                "must be a number, an array or a tree that holds arrays",
                key="init",
                value=self.init,
            )
        for leaf in leaves:
            self._check_leaf(np.asarray(leaf))

    def _check_leaf(self, value: np.ndarray) -> None:
        if not np.issubdtype(value.dtype, np.number) or not np.all(np.isfinite(value)):
            raise ConfigError("must be finite numbers", key="init", value=self.init)
        if self.transform == "positive" and np.any(value <= 0):
            raise ConfigError("must be positive", key="init", value=self.init)
        if isinstance(self.transform, tuple):
            low, high = self.transform
            if not low < high or np.any(value <= low) or np.any(value >= high):
                raise ConfigError(
                    f"must lie inside the interval ({low:g}, {high:g})", key="init", value=self.init
                )

    def unconstrained(self) -> PyTree:
        """z at `init`."""
        return self._map(self.init, _INVERSE)

    def constrain(self, z: PyTree) -> PyTree:
        """θ = T(z), in `unit`."""
        return self._map(z, _FORWARD)

    def _map(self, tree: PyTree, table: Mapping[str, Any]) -> PyTree:
        kind = "interval" if isinstance(self.transform, tuple) else self.transform or "identity"
        bounds = self.transform if kind == "interval" else ()

        def one(leaf):
            leaf = jnp.asarray(leaf)
            leaf = leaf if jnp.issubdtype(leaf.dtype, jnp.inexact) else leaf.astype(float)
            return table[kind](leaf, *bounds)

        arrays, rest = eqx.partition(tree, eqx.is_array_like)
        return eqx.combine(jax.tree.map(one, arrays), rest)


_FORWARD = {
    "identity": lambda z: z,
    "positive": jnp.exp,
    "interval": lambda z, low, high: low + (high - low) * jax.nn.sigmoid(z),
}
_INVERSE = {
    "identity": lambda x: x,
    "positive": jnp.log,
    "interval": lambda x, low, high: jnp.log((x - low) / (high - x)),
}

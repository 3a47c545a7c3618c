"""A quantity to fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from .._errors import ConfigError
from ._prior import Prior
from ._transform import AbstractTransform, Identity, Interval, Positive, Simplex


class Parameter(eqx.Module):
    """θ = T(z): a quantity to fit, its start, unit, transform and prior.

    **Arguments:** `init`: the starting value in `unit`, a number, an array or a pytree of arrays (a
    network); `unit`: converted to the simulation's unit where it declares one; `transform`: None
    (z = θ), "positive" (θ = eᶻ), an interval (low, high) (θ = low + (high - low) sigmoid z) or
    "simplex" (k shares whose sum is one, from k - 1 numbers: θ = softmax(V z)); `prior`: a density
    over θ: the penalty in `fit`, extra residuals in `least_squares`, the prior in `posterior`;
    `fixed`: keep it at `init`; `tied`: the name of the parameter whose value it takes.
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
        shares = transform == "simplex" and isinstance(init, (list, tuple))
        self.init = np.asarray(init, dtype=float) if shares else init
        self.unit, self.prior, self.fixed, self.tied = unit, prior, fixed, tied
        self.transform = tuple(transform) if isinstance(transform, (list, tuple)) else transform

    def __check_init__(self):
        named = self.transform in (None, "positive", "simplex")
        if not named and not (isinstance(self.transform, tuple) and len(self.transform) == 2):
            raise ConfigError(
                "unknown transform",
                key="transform",
                value=self.transform,
                allowed="positive, simplex, [low, high], or none",
            )
        if isinstance(self.transform, tuple) and not self.transform[0] < self.transform[1]:
            raise ConfigError("must increase", key="transform", value=self.transform)
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
        if fault := self.map.fault(value):
            raise ConfigError(fault, key="init", value=self.init)

    @property
    def map(self) -> AbstractTransform:
        """T, as `transform` names it."""
        if isinstance(self.transform, tuple):
            return Interval(*map(float, self.transform))
        return {None: Identity, "positive": Positive, "simplex": Simplex}[self.transform]()

    def unconstrained(self) -> PyTree:
        """z at `init`: its arrays alone, for what else a network holds cannot be varied."""
        return self._each(self.map.inverse, self.init)

    def constrain(self, z: PyTree) -> PyTree:
        """θ = T(z), in `unit`, with what is no array from `init`."""
        rest = eqx.filter(self.init, eqx.is_array_like, inverse=True)
        return eqx.combine(self._each(self.map.forward, z), rest)

    def log_det(self, z: PyTree) -> Array:
        """log |det dθ/dz|: what turns a density of θ into one of z. Shape ()."""
        stretched = self._each(self.map.log_det, z)
        return sum(jax.tree.leaves(eqx.filter(stretched, eqx.is_array)), jnp.zeros(()))

    def _each(self, fn: Callable[[Array], Array], tree: PyTree) -> PyTree:
        def one(leaf):
            leaf = jnp.asarray(leaf)
            return fn(leaf if jnp.issubdtype(leaf.dtype, jnp.inexact) else leaf.astype(float))

        return jax.tree.map(one, eqx.filter(tree, eqx.is_array_like))

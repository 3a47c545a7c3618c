"""What was measured, how surely, and how a prediction compares with it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from .._errors import ConfigError

STATISTICS = ("mean", "each")
NOISES = ("normal", "lognormal")


def _array(data: Any) -> Any:
    """Lists, of numbers or of columns, as one array."""
    return np.asarray(data, dtype=float) if isinstance(data, (list, tuple)) else data


def _rows(values: Any, conditions: Array | np.ndarray) -> Any:
    """Some rows of an array, as an array of JAX, which a compiled function takes as an argument; of
    a number the number."""
    return jnp.asarray(values[conditions]) if np.ndim(values) else values


class Target(eqx.Module):
    """r = √weight (A(θ) - data)/sigma: a measured value of an observable.

    **Arguments:** `observable`: its name; `data`: measured values in `unit`, shape (conditions,
    ...) for `statistic="mean"` (the average over what the schedule saves) or (conditions, saves,
    ...) for "each" (every save); `sigma`: their uncertainty, or the scale on which a deviation
    matters, in `unit`, or the name of a parameter that is this, to be found with the others;
    `noise`: "normal", or "lognormal" for positive values that scatter by a factor, r = √weight
    (log A - log data)/sigma, sigma then without a unit; `weight`; `unit`: converted to the
    observable's own; `mask`: which entries of `data` were measured (default: all; the others may
    hold anything, NaN too); `name`: how reports call it.
    """

    observable: str = eqx.field(static=True)
    data: Any = eqx.field(converter=_array)
    sigma: Any = eqx.field(default=1.0, converter=_array)
    weight: float = eqx.field(default=1.0, kw_only=True)
    unit: str | None = eqx.field(static=True, default=None, kw_only=True)
    name: str = eqx.field(static=True, default="", kw_only=True)
    statistic: str = eqx.field(static=True, default="mean", kw_only=True)
    noise: str = eqx.field(static=True, default="normal", kw_only=True)
    mask: Any = eqx.field(default=None, kw_only=True)

    def __check_init__(self):
        for key, value, allowed in (
            ("statistic", self.statistic, STATISTICS),
            ("noise", self.noise, NOISES),
        ):
            if value not in allowed:
                raise ConfigError(f"unknown {key}", key=key, value=value, allowed=allowed)
        self._check_data()
        if not isinstance(self.sigma, str):
            sigma = np.asarray(self.sigma, dtype=float)
            if not np.all(np.isfinite(sigma)) or np.any(sigma <= 0):
                raise ConfigError("must be positive", key="sigma", value=self.sigma)
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise ConfigError("must not be negative", key="weight", value=self.weight)

    def _check_data(self) -> None:
        data, key = np.asarray(self.data, dtype=float), "data"
        if self.mask is not None:
            if np.shape(self.mask) != data.shape:
                cause = f"has shape {np.shape(self.mask)} for data of shape {data.shape}"
                raise ConfigError(cause, key="mask")
            data = data[np.asarray(self.mask, dtype=bool)]
        if not np.all(np.isfinite(data)):
            remedy = None if self.mask is not None else "mask= tells which entries were measured"
            raise ConfigError("must be finite numbers", key=key, suggestion=remedy)
        if self.noise == "lognormal" and np.any(data <= 0):
            raise ConfigError(
                "must be positive where the noise is lognormal", key=key, value=np.min(data)
            )

    def until(self, saves: int) -> Target:
        """The same over the first saves alone."""
        if self.statistic != "each":
            raise ConfigError(
                "a mean over the saves has no shorter horizon",
                key=f"target {self.label}.statistic",
                value=self.statistic,
                allowed="each",
            )

        def shorter(values: Any) -> Any:
            per_save = np.ndim(values) >= 2 and np.shape(values)[1] == np.shape(self.data)[1]
            return values[:, :saves] if per_save else values

        changes = {"data": self.data[:, :saves], "mask": shorter(self.mask)}
        if not isinstance(self.sigma, str):
            changes["sigma"] = shorter(self.sigma)
        return dataclasses.replace(self, **changes)

    def rows(self, conditions: Array | np.ndarray) -> Target:
        """The same of some conditions alone."""
        return dataclasses.replace(
            self,
            data=_rows(self.data, conditions),
            mask=None if self.mask is None else _rows(self.mask, conditions),
            sigma=self.sigma if isinstance(self.sigma, str) else self._rows_of_sigma(conditions),
        )

    def _rows_of_sigma(self, conditions: Array | np.ndarray) -> Any:
        per_condition = 0 < np.ndim(self.sigma) == np.ndim(self.data) and len(self.sigma) > 1
        return _rows(self.sigma, conditions) if per_condition else self.sigma

    def check_shapes(self, conditions: int, saves: int, observed: tuple[int, ...]) -> None:
        """Refuse data that would be compared with something else than what they measure."""
        mean = self.statistic == "mean"
        shape = (conditions, *observed) if mean else (conditions, saves, *observed)
        data = np.shape(self.data)
        if data and data != shape:
            what = "(conditions, ...)" if mean else "(conditions, saves, ...)"
            each = mean and data == (conditions, saves, *observed)
            raise ConfigError(
                f"has the shape {data} where the prediction has {shape}, {what}",
                key=f"target {self.label}.data",
                suggestion='statistic="each"' if each else None,
            )
        sigma = () if isinstance(self.sigma, str) else np.shape(self.sigma)
        try:
            fits = np.broadcast_shapes(sigma, shape) == shape
        except ValueError:
            fits = False
        if not fits:
            raise ConfigError(
                f"has the shape {sigma} where the prediction has {shape}",
                key=f"target {self.label}.sigma",
            )

    @property
    def label(self) -> str:
        return self.name or self.observable

    @property
    def count(self) -> int:
        """The number of measured values, for data that are an array."""
        return int(np.size(self.data) if self.mask is None else np.sum(np.asarray(self.mask)))

    def residual(self, value: Array, sigma: Array, use: Array | None = None) -> Array:
        """√weight (A - data)/sigma, or of the logarithms; 0 where nothing counts (`counted`)."""
        return math.sqrt(self.weight) * self.counted(self._deviation(value) / sigma, use)

    def log_density(self, value: Array, sigma: Array, use: Array | None = None) -> Array:
        """log p(data | A, sigma), normalised over data, of each entry: N(data; A, sigma²/weight),
        or lognormal about A. Without a weight there is no measurement: 0."""
        if self.weight == 0:
            return jnp.zeros(())
        sigma = sigma / math.sqrt(self.weight)
        terms = -0.5 * (self._deviation(value) / sigma) ** 2 - jnp.log(sigma)
        terms = terms - 0.5 * math.log(2 * math.pi)
        if self.noise == "lognormal":
            terms = terms - jnp.log(self._measured())  # d log x = dx/x
        return self.counted(terms, use)

    def draw(self, key: PRNGKeyArray, value: Array, sigma: Array, shared: bool = False) -> Array:
        """A measurement of A with its noise; `shared`: by one deviate for all that A holds."""
        sigma = sigma / math.sqrt(self.weight or 1.0)
        noise = sigma * jax.random.normal(key, () if shared else value.shape, value.dtype)
        return value * jnp.exp(noise) if self.noise == "lognormal" else value + noise

    def _deviation(self, value: Array) -> Array:
        data = self._measured()
        if self.noise == "normal":
            return value - data
        # what should be positive and is not is as far off as a number can be, with no slope
        floor = jnp.finfo(value.dtype).tiny
        return jnp.log(jnp.where(value > floor, value, floor)) - jnp.log(data)

    def _measured(self) -> Array:
        """The data, with a one where nothing was measured."""
        if self.mask is None:
            return jnp.asarray(self.data)
        return jnp.where(jnp.asarray(self.mask, bool), jnp.asarray(self.data), 1.0)

    def counted(self, terms: Array, use: Array | None = None) -> Array:
        """`terms` (conditions, ...), zeros where nothing was measured and in the conditions whose
        entry of `use` (conditions,) is 0."""
        if self.mask is not None:
            terms = jnp.where(jnp.asarray(self.mask, bool), terms, 0.0)
        if use is None:
            return terms
        return terms * use.reshape((-1,) + (1,) * (terms.ndim - 1))

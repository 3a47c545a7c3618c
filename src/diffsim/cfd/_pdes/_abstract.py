"""What all of these equations share: modes, steps, conditions, observables."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ..._errors import ConfigError
from ..._simulation import RESULTS, AbstractSimulation
from .._exponential import AbstractStepper
from .._grid import Grid
from .._spectral_modes import PeriodicModes, floating, rotated


class PDEState(eqx.Module):
    """`spectrum`: (2, fields, modes), real and imaginary part of the modes that are kept of each
    field; `time`."""

    spectrum: Float[Array, "2 ..."]
    time: Float[Array, ""]


class AbstractPDE(AbstractSimulation):
    """∂u/∂t = L(θ) u + N(u, t; θ) for fields u on a grid of one to three axes, L diagonal between
    the modes.

    A subclass names its fields and parameters and gives the diagonal of L and, where the equation
    is not linear, N. Modes that grow belong into N in two and three dimensions: L would let the
    rounding errors grow that break û(-k) = û(k)*.

    **Conditions:** each field by its name, at the points that `points` gives.

    Observables: each field by its name; `mass`, its mean, and `energy`, its mean square halved,
    shape () or, of several fields, (fields,); `time`.
    """

    modes: eqx.AbstractVar[Any]  # PeriodicModes or MirroredModes
    dt: eqx.AbstractVar[float]
    method: eqx.AbstractVar[AbstractStepper]

    @abstractmethod
    def parameters(self) -> tuple[str, ...]:
        """The names of the parameters it reads."""

    @abstractmethod
    def linear(self, params: Mapping[str, Any], dtype: Any) -> Array:
        """The diagonal of L, real or complex: (*modes.shape) or (fields, *modes.shape)."""

    def nonlinear(self, params: Mapping[str, Any], spectrum: Array, t: Array) -> Array:
        """N(u, t) between the modes: (2, fields, *modes.shape) -> the same; 0 unless it is said."""
        del params, t
        return jnp.zeros_like(spectrum)

    def names(self) -> tuple[str, ...]:
        """What the fields are called."""
        return ("u",)

    def not_negative(self) -> tuple[str, ...]:
        """The parameters that must not be negative."""
        return ()

    def vectors(self) -> dict[str, int]:
        """The parameters that may have components, and how many; one number stands for all."""
        return {}

    @property
    def grid(self) -> Grid:
        return self.modes.grid

    def points(self) -> tuple[np.ndarray, ...]:
        """Where fields are given and observed, an array an axis: xᵢ = lower + i h along periodic
        axes."""
        return self.modes.coordinates()

    def time_step(self) -> float | None:
        return self.dt

    def time(self, state: PDEState) -> Any:
        return state.time

    def variables(self, state: PDEState) -> PyTree:
        return state.spectrum

    def at_time(self, state: PDEState, t: Any) -> PDEState:
        return eqx.tree_at(lambda s: s.time, state, jnp.full_like(state.time, t))

    def check(self, params: Mapping[str, Any], **conditions: Any) -> None:
        for name in self.parameters():
            if name not in params:
                raise ConfigError(
                    "missing parameter", key=name, allowed=tuple(params) or self.parameters()
                )
            value = np.asarray(params[name])
            if not np.all(np.isfinite(value)):
                raise ConfigError("must be finite", key=name, value=value)
            components = self.vectors().get(name)
            if components and value.ndim and value.shape[-1] != components:
                raise ConfigError(f"needs {components} components", key=name, value=value.shape)
            if name in self.not_negative() and np.any(value < 0):
                raise ConfigError("must not be negative", key=name, value=value)
        for name in conditions:
            if name not in self.names():
                raise ConfigError("no such field", key=name, allowed=self.names())
        for name in self.names():
            self._check_field(name, conditions.get(name))

    def _check_field(self, name: str, field: Any) -> None:
        if field is None:
            raise ConfigError("missing condition", key=name, allowed=self.names())
        field = np.asarray(field)
        if field.shape[-self.grid.ndim :] != self.grid.shape:
            raise ConfigError(f"needs shape {self.grid.shape}", key=name, value=field.shape)
        if not np.all(np.isfinite(field)):
            raise ConfigError("must be finite", key=name)

    def init(self, params: Mapping[str, Any], key: PRNGKeyArray, **conditions: Any) -> PDEState:
        del key
        if not any(isinstance(x, Tracer) for x in jax.tree.leaves((params, conditions))):
            self.check(params, **conditions)
        fields = floating(jnp.stack([jnp.asarray(conditions[name]) for name in self.names()]))
        return PDEState(self.modes.modes(fields), jnp.zeros((), fields.dtype))

    def step(self, params: Mapping[str, Any], state: PDEState) -> PDEState:
        # differentiated, a step keeps its state alone and is computed again
        return eqx.filter_checkpoint(self._step, prevent_cse=False)(params, state)

    def _step(self, params: Mapping[str, Any], state: PDEState) -> PDEState:
        dt = jnp.asarray(self.dt, state.time.dtype)

        def nonlinear(u: tuple[Array, ...], t: Array) -> tuple[Array, ...]:
            return (self.nonlinear(params, u[0], t),)

        u = (state.spectrum,)
        first = nonlinear(u, state.time)
        linear = (self.linear(params, state.time.dtype),)
        (spectrum,) = self.method(linear, nonlinear, first, u, state.time, dt)
        return PDEState(spectrum, state.time + dt)

    def status(self, state: PDEState) -> RESULTS:
        finite = jnp.isfinite(jnp.sum(state.spectrum))
        return RESULTS.where(finite, RESULTS.successful, RESULTS.nonfinite)

    def observe(self, params: Mapping[str, Any], state: PDEState) -> dict[str, Array]:
        del params
        fields = self.modes.points(state.spectrum)
        axes = self.modes.axes
        mass, energy = jnp.mean(fields, axes), 0.5 * jnp.mean(fields**2, axes)
        single = len(self.names()) == 1
        return {
            **dict(zip(self.names(), fields, strict=True)),
            "mass": mass[0] if single else mass,
            "energy": energy[0] if single else energy,
            "time": state.time,
        }


def need_one_axis(grid: Grid) -> None:
    if grid.ndim != 1:
        raise ConfigError("needs a grid of one axis", key="grid", value=grid.shape)


def steepening(modes: PeriodicModes, spectrum: Array) -> Array:
    """-∂(u²/2)/∂x between the modes of a line."""
    (k,) = modes.wavenumbers()
    return rotated(-0.5 * k, modes.modes(modes.points(spectrum) ** 2))

"""Laws that a simulation must keep: policies over named observables, recorded in a ledger."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ._errors import ConfigError

ACTIONS = ("record", "warn", "stop")


class AbstractLaw(eqx.Module):
    """A statement about one observable; `violation` above `tolerance` breaks it.

    `action` is what the host does about a broken law: `record` it in the ledger, `warn`, or `stop`
    the run with its last good restart kept.
    """

    observable: eqx.AbstractVar[str]
    action: eqx.AbstractVar[str]

    @property
    @abstractmethod
    def name(self) -> str:
        """How reports call it."""

    @property
    @abstractmethod
    def tolerance(self) -> float:
        """The largest violation allowed."""

    def needs(self, available: Sequence[str]) -> tuple[str, ...]:
        """The observables it reads."""
        if self.observable not in available:
            raise ConfigError(
                "no such observable", key="laws", value=self.observable, allowed=available
            )
        return (self.observable,)

    @abstractmethod
    def violation(self, start: Mapping[str, Array], series: Mapping[str, Array]) -> Array:
        """How far each saved value is off, shape (saves,), from `series[name]` (saves, ...) and the
        values at the start, `start[name]` (...)."""


def _largest(series: Array) -> Array:
    """Largest component of each save: (saves, ...) -> (saves,)."""
    return jnp.max(jnp.abs(series).reshape(series.shape[0], -1), axis=1)


def _check_action(action: str) -> None:
    if action not in ACTIONS:
        raise ConfigError("unknown action", key="action", value=action, allowed=ACTIONS)


class Conserved(AbstractLaw):
    """max |A(t) - A(0)| / s <= rtol, or max |A(t) - A(0)| <= atol.

    The scale s is the observable `relative_to` at the start; by default an energy is measured
    against the kinetic energy, which does not cross zero, anything else against |A(0)|. Quantities
    that start at zero, such as a total momentum, need `atol` (in the observable's unit).
    """

    observable: str = eqx.field(static=True)
    rtol: float | None = eqx.field(static=True, default=None)
    atol: float | None = eqx.field(static=True, default=None, kw_only=True)
    relative_to: str | None = eqx.field(static=True, default=None, kw_only=True)
    action: str = eqx.field(static=True, default="record", kw_only=True)

    def __check_init__(self):
        if (self.rtol is None) == (self.atol is None):
            raise ConfigError(
                "give exactly one of rtol and atol", key=f"Conserved {self.observable}"
            )
        if not (math.isfinite(self.tolerance) and self.tolerance > 0):
            raise ConfigError("must be positive and finite", key="rtol", value=self.tolerance)
        _check_action(self.action)

    @property
    def name(self) -> str:
        return f"conserved {self.observable}"

    @property
    def tolerance(self) -> float:
        return self.rtol if self.rtol is not None else self.atol  # pyright: ignore[reportReturnType]

    def _scale_name(self, available: Sequence[str]) -> str:
        if self.relative_to is not None:
            return self.relative_to
        energy = self.observable.endswith("energy") and "kinetic_energy" in available
        return "kinetic_energy" if energy else self.observable

    def needs(self, available: Sequence[str]) -> tuple[str, ...]:
        names = super().needs(available)
        scale = self._scale_name(available)
        if scale not in available:
            raise ConfigError(
                "no such observable", key="relative_to", value=scale, allowed=available
            )
        return names if self.rtol is None or scale == self.observable else (*names, scale)

    def violation(self, start: Mapping[str, Array], series: Mapping[str, Array]) -> Array:
        drift = _largest(series[self.observable] - start[self.observable])
        if self.rtol is None:
            return drift
        return drift / jnp.max(jnp.abs(start[self._scale_name(tuple(start))]))


class Bounded(AbstractLaw):
    """lower <= A(t) <= upper, in the observable's unit, for every component and save."""

    observable: str = eqx.field(static=True)
    lower: float = eqx.field(static=True, default=-math.inf, kw_only=True)
    upper: float = eqx.field(static=True, default=math.inf, kw_only=True)
    action: str = eqx.field(static=True, default="record", kw_only=True)

    def __check_init__(self):
        if not self.lower < self.upper:
            raise ConfigError("lower must be below upper", key=f"Bounded {self.observable}")
        _check_action(self.action)

    @property
    def name(self) -> str:
        return f"bounded {self.observable}"

    @property
    def tolerance(self) -> float:
        return 0.0

    def violation(self, start: Mapping[str, Array], series: Mapping[str, Array]) -> Array:
        del start
        values = series[self.observable]
        outside = jnp.maximum(self.lower - values, values - self.upper)
        # NaN stays NaN and breaks the law: a maximum with zero would hide it.
        return _largest(jnp.where(outside <= 0, 0.0, outside))


class Monotone(AbstractLaw):
    """A(t) never grows (`decreasing=True`) or never falls, by more than `atol` between two
    saves."""

    observable: str = eqx.field(static=True)
    decreasing: bool = eqx.field(static=True, default=True, kw_only=True)
    atol: float = eqx.field(static=True, default=0.0, kw_only=True)
    action: str = eqx.field(static=True, default="record", kw_only=True)

    def __check_init__(self):
        if not (math.isfinite(self.atol) and self.atol >= 0):
            raise ConfigError("must be finite and not negative", key="atol", value=self.atol)
        _check_action(self.action)

    @property
    def name(self) -> str:
        return f"monotone {self.observable}"

    @property
    def tolerance(self) -> float:
        return self.atol

    def violation(self, start: Mapping[str, Array], series: Mapping[str, Array]) -> Array:
        values = series[self.observable]
        before = jnp.concatenate([start[self.observable][None], values[:-1]])
        wrong_way = (values - before) if self.decreasing else (before - values)
        return _largest(jnp.where(wrong_way <= 0, 0.0, wrong_way))


class Ledger(eqx.Module):
    """What became of each law: arrays of shape (laws,), with a leading batch axis under vmap."""

    laws: tuple[AbstractLaw, ...] = eqx.field(static=True)
    worst: Array
    first_broken_step: Array

    @property
    def ok(self) -> np.ndarray:
        """Which laws held, shape (laws,), over the whole batch. Host side."""
        return np.asarray([row["ok"] for row in self.rows()], dtype=bool)

    def merge(self, later: Ledger) -> Ledger:
        """The ledger of two consecutive stretches of one run."""
        first = jnp.where(
            self.first_broken_step >= 0, self.first_broken_step, later.first_broken_step
        )
        return Ledger(self.laws, jnp.maximum(self.worst, later.worst), first)

    def rows(self) -> list[dict[str, Any]]:
        """One row a law for people and JSON: name, worst, tolerance, ok, step, action. Host
        side."""
        if not self.laws:
            return []
        worst = np.asarray(self.worst).reshape(-1, len(self.laws))
        steps = np.asarray(self.first_broken_step).reshape(-1, len(self.laws))
        rows = []
        for i, law in enumerate(self.laws):
            broken = steps[:, i][steps[:, i] >= 0]
            rows.append(
                {
                    "name": law.name,
                    "worst": float(np.max(worst[:, i])) if worst.size else 0.0,
                    "tolerance": law.tolerance,
                    "ok": broken.size == 0,
                    "step": int(broken.min()) if broken.size else None,
                    "action": law.action,
                }
            )
        return rows


def observables_of(laws: Sequence[AbstractLaw], available: Sequence[str]) -> tuple[str, ...]:
    """The observables that the laws read, in a fixed order; refuses unknown ones."""
    return tuple(dict.fromkeys(name for law in laws for name in law.needs(available)))


def assess(
    laws: Sequence[AbstractLaw],
    start: Mapping[str, Array],
    series: Mapping[str, Array],
    steps: Array,
    before: Mapping[str, Array] | None = None,
) -> Ledger:
    """The ledger of `laws` over saved `series` at `steps`; outside of every gradient.

    `before`: the values of the save before the first of `series`, if that is not the start.
    """
    start, series, before = jax.lax.stop_gradient((start, series, before or start))
    joined = {k: jnp.concatenate([before[k][None], series[k]]) for k in before}
    worst, first = [], []
    for law in laws:
        off = law.violation(start, joined)[1:]
        broken = ~(off <= law.tolerance)  # so that NaN breaks the law
        worst.append(jnp.max(off))
        first.append(jnp.where(jnp.any(broken), steps[jnp.argmax(broken)], -1))
    if not laws:
        return Ledger((), jnp.zeros((0,)), jnp.zeros((0,), steps.dtype))
    return Ledger(tuple(laws), jnp.stack(worst), jnp.stack(first))

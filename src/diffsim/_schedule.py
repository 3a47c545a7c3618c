"""How long a simulation runs and what is saved on the way."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import numpy as np

from ._errors import ConfigError


class SavePlan(eqx.Module):
    """Steps and saves of a run: `blocks` blocks of `stride` steps, observed after each; of those
    observations the ones numbered `keep` are wanted (None: all), and the start's if `start`."""

    stride: int = eqx.field(static=True)
    blocks: int = eqx.field(static=True)
    keep: tuple[int, ...] | None = eqx.field(static=True, default=None)
    start: bool = eqx.field(static=True, default=False)

    @property
    def steps(self) -> int:
        return self.stride * self.blocks

    def saved_steps(self) -> np.ndarray:
        """The step numbers of what is saved, shape (saves,)."""
        blocks = np.arange(self.blocks) if self.keep is None else np.asarray(self.keep, dtype=int)
        steps = (blocks + 1) * self.stride
        return np.concatenate([[0], steps]) if self.start else steps


class Schedule(eqx.Module):
    """How many steps, or until when, and what is saved at which times.

    `Schedule(steps=2000, save_every=20)` takes fixed steps and observes after every 20th (default:
    after the last only). `Schedule(t1=10.0, ts=times)` is for data with times: adaptive solvers hit
    them, a simulation with a fixed time step lands on them or refuses; times are in its time unit.

    **Raises** `ConfigError` for anything that cannot be scheduled, before tracing.
    """

    steps: int | None = eqx.field(static=True, default=None)
    save_every: int | None = eqx.field(static=True, default=None)
    t0: float = eqx.field(static=True, default=0.0)
    t1: float | None = eqx.field(static=True, default=None)
    ts: tuple[float, ...] | None = eqx.field(static=True, default=None)

    def __init__(
        self,
        *,
        steps: Any = None,
        save_every: Any = None,
        t0: float = 0.0,
        t1: float | None = None,
        ts: Sequence[float] | np.ndarray | None = None,
    ):
        self.steps = _plain("steps", steps)
        self.save_every = _plain("save_every", save_every)
        self.t0, self.t1 = float(t0), None if t1 is None else float(t1)
        self.ts = None if ts is None else tuple(float(t) for t in np.asarray(ts).ravel())

    def __check_init__(self):
        if (self.steps is None) == (self.ts is None and self.t1 is None):
            raise ConfigError("give either steps (and save_every) or t1 and ts", key="steps")
        if self.steps is not None:
            _check_count("steps", self.steps)
            if self.t0 != 0 or self.ts is not None or self.t1 is not None:
                raise ConfigError(
                    "a run in steps begins when its state is: t0, t1 and ts go without steps",
                    key="steps",
                    value=self.steps,
                )
            if self.save_every is not None:
                _check_count("save_every", self.save_every)
                if self.steps % self.save_every:
                    below = self.steps - self.steps % self.save_every
                    near = [n for n in (below, below + self.save_every) if n > 0]
                    raise ConfigError(
                        f"must be a multiple of save_every={self.save_every}",
                        key="steps",
                        value=self.steps,
                        suggestion=" or ".join(map(str, near)),
                    )
            return
        times = np.asarray(self.ts if self.ts is not None else [self.t1], dtype=float)
        if not np.all(np.isfinite(times)) or np.any(np.diff(times) <= 0) or times[0] < self.t0:
            raise ConfigError("must be finite, increasing and not before t0", key="ts")
        if self.t1 is not None and (not math.isfinite(self.t1) or self.t1 < times[-1]):
            raise ConfigError("must be finite and not before the last of ts", key="t1")
        if max(times[-1], self.t1 or times[-1]) <= self.t0:
            key = "ts" if self.t1 is None else "t1"
            raise ConfigError(f"must lie after t0={self.t0:g}: there is no step", key=key)

    def times(self) -> tuple[float, ...]:
        """The times of the saves, for solvers that choose their steps."""
        if self.steps is not None:
            raise ConfigError(
                "an adaptive solver takes times, not steps",
                key="schedule.steps",
                value=self.steps,
                allowed="t1=, ts=; or a fixed step, dt=",
            )
        return self.ts if self.ts is not None else (float(self.t1 or 0.0),)

    @property
    def end(self) -> float:
        """When a schedule in time ends."""
        return max(self.times()[-1], self.t1 if self.t1 is not None else -math.inf)

    def plan(self, dt: float | None) -> SavePlan:
        """The schedule in steps of `dt` (its unit that of ts); refuses times between the steps."""
        if self.steps is not None:
            stride = self.save_every or self.steps
            return SavePlan(stride, self.steps // stride)
        if dt is None:
            raise ConfigError("this simulation has no time step: use steps=", key="schedule.ts")
        end = self.t1 if self.t1 is not None else (self.ts or (0.0,))[-1]
        wanted = np.asarray((*(self.ts or (end,)), end)) - self.t0
        counts = np.rint(wanted / dt).astype(int)
        off = np.abs(wanted - counts * dt)
        if np.any(off > 1e-6 * dt):
            bad = wanted[np.argmax(off)] + self.t0
            fitting = _fitting_step(wanted, dt)
            raise ConfigError(
                f"the time {bad:g} is not a whole number of steps of {dt:g} after t0={self.t0:g}",
                key="schedule.ts",
                suggestion=None if fitting is None else f"dt = {fitting!r}",
            )
        saves = counts[:-1] if self.ts is not None else counts[-1:]
        stride = int(np.gcd.reduce(counts[counts > 0])) if np.any(counts > 0) else 1
        keep = tuple(int(c) // stride - 1 for c in saves if c > 0)
        return SavePlan(stride, int(counts[-1]) // stride, keep, bool(saves[0] == 0))


def _check_count(key: str, value: object) -> None:
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or value < 1:  # pyright: ignore[reportOperatorIssue]
        raise ConfigError("must be a whole number of at least 1", key=key, value=value)


def _plain(key: str, count: Any) -> int | None:
    """A whole number, NumPy's too, as Python's."""
    if count is None:
        return None
    if isinstance(count, bool) or not isinstance(count, (int, np.integer)):
        raise ConfigError("must be a whole number of at least 1", key=key, value=count)
    return int(count)


def _fitting_step(wanted: np.ndarray, dt: float) -> float | None:
    """The largest step below dt of which all times are whole numbers, if one is near."""
    first = float(wanted[wanted > 0][0])
    least = math.ceil(first / dt * (1 + 1e-9))
    for count in range(least, 4 * least + 4):
        step = first / count
        if np.all(np.abs(wanted - np.rint(wanted / step) * step) <= 1e-9 * step):
            return step
    return None

"""What can go wrong, by exit code: bad input (2), numerical failure (3), a broken law (4), a
signal."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, allowed: Iterable[str], least: float = 0.5) -> str | None:
    """The allowed name closest to `name`, or None when nothing is close: `least` of 1 in common."""
    match = difflib.get_close_matches(str(name), [str(a) for a in allowed], n=1, cutoff=least)
    return match[0] if match else None


class ConfigError(ValueError):
    """Bad input: one line with the key, its value, the cause, what is allowed and the nearest name.

    Raised before anything is traced or written. The command line exits with 2.
    """

    def __init__(
        self,
        cause: str,
        *,
        key: str | None = None,
        value: object = None,
        allowed: Iterable[str] | str | None = None,
        suggestion: str | None = None,
    ):
        self.key, self.value, self.cause, self.allowed = key, value, cause, allowed
        if suggestion is None and allowed is not None and not isinstance(allowed, str):
            allowed = tuple(allowed)
            suggestion = nearest(str(value if value is not None else key), allowed)
        self.suggestion = suggestion
        super().__init__(self._line())

    def _line(self) -> str:
        parts = [f"{self.key}: " if self.key else "", self.cause]
        if self.value is not None and repr(self.value) not in self.cause:
            parts.append(f" (got {self.value!r})")
        if self.allowed is not None:
            listed = self.allowed if isinstance(self.allowed, str) else ", ".join(self.allowed)
            parts.append(f"; allowed: {listed}")
        if self.suggestion:
            parts.append(f"; did you mean {self.suggestion}?")
        return " ".join("".join(parts).split())

    def under(self, prefix: str) -> ConfigError:
        """The same error seen from the configuration: its key prefixed by where it stands."""
        return self.renamed(f"{prefix}.{self.key}" if self.key else prefix)

    def renamed(self, key: str) -> ConfigError:
        """The same error about `key`."""
        return ConfigError(
            self.cause,
            key=key,
            value=self.value,
            allowed=self.allowed,
            suggestion=self.suggestion,
        )


class SimulationError(RuntimeError):
    """A simulation failed numerically: what happened, at which step, what to change. Exit code
    3."""

    def __init__(self, cause: str, *, step: int | None = None, advice: str = ""):
        self.cause, self.step, self.advice = cause, step, advice
        where = "" if step is None else f" at step {step}"
        super().__init__(f"{cause}{where}" + (f"; {advice}" if advice else ""))


class LawBroken(SimulationError):
    """A law with `action="stop"` was broken. Exit code 4."""

    def __init__(self, law: str, *, worst: float, tolerance: float, step: int):
        self.law, self.worst, self.tolerance = law, worst, tolerance
        super().__init__(
            f"law {law} broken: {worst:.3g} exceeds {tolerance:.3g}",
            step=step,
            advice="reduce the time step, smooth the cutoff, or relax the tolerance",
        )


class Interrupted(RuntimeError):
    """A signal ended the run between two restart points. Exit code 128 + signal."""

    def __init__(self, signum: int):
        self.signum = signum
        super().__init__(f"interrupted by signal {signum}; resume= goes on from what is saved")

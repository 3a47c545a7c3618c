"""Fits that begin where another ended."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .._errors import ConfigError
from .._fit import FORGETFUL, FitResult, Memory
from .._problem import Problem


def check_steps(steps: int) -> None:
    """Refuse a fit that makes no step."""
    if steps < 1:
        raise ConfigError("must be at least 1", key="steps", value=steps)


def check_horizons(horizons: tuple[int, ...], problem: Problem) -> None:
    """Refuse horizons that the schedule does not have, or that do not grow."""
    for saves in horizons:
        problem.until(saves)
    if list(horizons) != sorted(set(horizons)):
        raise ConfigError("must increase", key="fit.horizons", value=horizons)


def over_horizons(
    solve: Callable[[Problem, Memory], FitResult],
    problem: Problem,
    horizons: tuple[int, ...],
    memory: Memory = FORGETFUL,
) -> FitResult:
    """A fit of each horizon and of the whole, each from where the one before ended."""
    for saves in horizons:
        part = problem.until(saves)
        inner = memory.within(f"until {saves}")

        def fitted(part: Problem = part, inner: Memory = inner) -> dict[str, Any]:
            return found_values(part, solve(part, inner))

        problem = problem.starting_at(memory.once(f"after {saves}", free_values(problem), fitted))
    return solve(problem, memory)


def free_values(problem: Problem) -> dict[str, Any]:
    """The free parameters at their starting values, in their own units."""
    values = problem.values(problem.initial())
    return {name: values[name] for name in problem.free}


def found_values(problem: Problem, found: FitResult) -> dict[str, Any]:
    """The free parameters as a fit found them."""
    return {name: found.values[name] for name in problem.free}

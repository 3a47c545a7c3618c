"""A search by Optuna: it is asked for settings and told what came of them, and everything that it
knows is in the folders of the jobs, so that a search goes on from there."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .._errors import ConfigError
from ..config import quoted
from .space import Choice, Range, Settings, Space
from .summary import Row

if TYPE_CHECKING:
    import optuna

_NAME = re.compile(r"(?!(?:true|false|null|nan|inf|on|off|yes|no)$)[A-Za-z][\w-]*", re.IGNORECASE)


def propose(wanted: Settings, tried: Sequence[tuple[Mapping[str, Any], Row | None]], count: int):
    """The values of the next `count` trials, after those that were `tried` with what came of them.

    Each follows from the trials before it and its number alone, so that a search that was stopped
    goes on as it would have. A run that failed, or has no finite objective, is told as failed.
    """
    with _quiet() as optuna:
        kinds = {key: _distribution(optuna, each) for key, each in wanted.space.items()}
        study = optuna.create_study(direction=wanted.direction)
        for values, row in tried:
            study.add_trial(_told(optuna, _inside(wanted.space, values), row, kinds))
        found = []
        for number in range(len(tried), len(tried) + count):
            study.sampler = _sampler(optuna, wanted, number)
            found.append(dict(study.ask(kinds).params))
        return found


def overrides(values: Mapping[str, Any]) -> list[str]:
    """Values as words of a command line."""
    return [f"{key}={_text(value)}" for key, value in values.items()]


def ends(space: Space) -> Iterator[list[str]]:
    """Words at the ends of the ranges and for each choice, to be checked before a search starts."""
    columns = [each.ends() for each in space.values()]
    for i in range(max(map(len, columns))):
        yield overrides({key: col[min(i, len(col) - 1)] for key, col in zip(space, columns)})  # noqa: B905


def require() -> None:
    """Refuse a search where Optuna is not installed."""
    with _quiet():
        pass


@contextmanager
def _quiet() -> Iterator[Any]:
    """Optuna, without its remarks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import optuna
        except ImportError:
            cause = "a search needs optuna, which is not installed"
            hint = "pip install 'diffsim[optuna]'"
            raise ConfigError(cause, key="search.trials", suggestion=hint) from None
        level = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        try:
            yield optuna
        finally:
            optuna.logging.set_verbosity(level)


def _sampler(optuna: Any, wanted: Settings, number: int) -> optuna.samplers.BaseSampler:
    """The draws of each trial are its own: nothing depends on how many were made before."""
    seed = (wanted.seed * 1_000_003 + number) % 2**32
    if wanted.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    startup = wanted.startup
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup, constant_liar=True)


def _distribution(optuna: Any, each: Range | Choice) -> Any:
    made = optuna.distributions
    if isinstance(each, Choice):
        return made.CategoricalDistribution(each.values)
    kind = made.IntDistribution if each.whole else made.FloatDistribution
    return kind(each.low, each.high, log=each.log)


def _inside(space: Space, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of an earlier trial, which came from a file."""
    for key, each in space.items():
        value = values.get(key)
        ok = value in each.values if isinstance(each, Choice) else _within(each, value)
        if not ok:
            cause = "is not in the space of the search"
            raise ConfigError(cause, key=f"resume: {key}", value=value)
    return {key: values[key] for key in space}


def _within(each: Range, value: Any) -> bool:
    kinds = (int,) if each.whole else (int, float)
    return type(value) in kinds and each.low <= value <= each.high


def _told(optuna: Any, values: dict[str, Any], row: Row | None, kinds: Mapping[str, Any]) -> Any:
    states = optuna.trial.TrialState
    if row is None:
        state, value = states.RUNNING, None
    elif row.objective is None:
        state, value = states.FAIL, None
    else:
        state, value = states.COMPLETE, row.objective
    make = optuna.trial.create_trial
    return make(state=state, params=values, distributions=dict(kinds), value=value)


def _text(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return value if _NAME.fullmatch(value) else quoted(value)
    return repr(value)

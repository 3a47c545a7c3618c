"""What Hydra and OmegaConf say about a bad configuration, as one line with the nearest name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ._errors import ConfigError

_NOT_THERE = re.compile(r"Could not (?:override|delete from config\.) '([^']+)'")
_NO_CHOICE = re.compile(r"You must specify '([^']+)'")
_THERE = re.compile(r"An item is already at '([^']+)'")
_INTERPOLATION = re.compile(r"full_key: (\S+)")
_HYDRAS = (  # what a user of diffsim may want of Hydra
    *("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir", "hydra/launcher"),
    *("hydra.launcher.n_jobs", "hydra.launcher.timeout_min"),
)


@contextmanager
def hydra_errors(keys: Sequence[str] = ()) -> Iterator[None]:
    """Turn whatever a composition raises into a `ConfigError`; `keys`: what a root may hold.

    Everything inside is a user's text in the hands of Hydra, OmegaConf and a YAML parser, which
    name their errors in many ways: none of them is a fault of the program.
    """
    try:
        yield
    except Exception as error:
        raise _translated(error, keys) from error


def _translated(error: Exception, keys: Sequence[str]) -> ConfigError:
    from hydra.errors import MissingConfigException, OverrideParseException

    for each in _chain(error):
        if isinstance(each, ConfigError):
            return each
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        file = error.missing_cfg_file
        group, _, choice = file.partition("/../") if "/../" in file else file.rpartition("/")
        cause = f"has no choice {choice!r}"
        hint = "; install diffsim[joblib]" if choice == "joblib" else ""
        return ConfigError(cause + hint, key=group, value=choice, allowed=error.options or None)
    if isinstance(error, OverrideParseException):
        cause = f"{error.override!r} does not read as KEY=VALUE"
        return ConfigError(f"{cause} ({'; '.join(_lines(error)[:1])})", key="command line")
    text = "\n".join(_lines(error))
    if match := _NO_CHOICE.search(text):
        return ConfigError(f"choose one with {match[1]}=NAME", key=match[1])
    if match := _NOT_THERE.search(text):
        key = match[1]
        if key in keys:  # a group of other experiments
            return ConfigError("is nothing that this experiment chooses", key=key)
        allowed = _HYDRAS if key.startswith("hydra") else keys
        return ConfigError("unknown key", key=key, allowed=allowed or None)
    if match := _THERE.search(text):
        return ConfigError("is there already: set it without the +", key=match[1])
    lines = [line for each in _chain(error) for line in _lines(each)]
    place = _INTERPOLATION.search("\n".join(str(each) for each in _chain(error)))
    cause = "; ".join(dict.fromkeys(lines[:3])) or type(error).__name__
    return ConfigError(cause[:400], key=place[1] if place else "configuration")


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _lines(error: BaseException) -> list[str]:
    """What the error says, without Hydra's advice on its own syntax."""
    dull = (
        "full_key:",
        "object_type=",
        "reference_type=",
        "See https://",
        "To append to",
        "Error merging",
        "^",
    )
    lines = (line.strip() for line in str(error).splitlines())
    return [line for line in lines if line and not line.startswith(dull)]

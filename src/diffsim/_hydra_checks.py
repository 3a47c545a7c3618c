"""What words may begin with, and what a configuration may say to Hydra: which launcher, and where
the folders of the jobs are."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ._build import KEYS, walk
from ._errors import ConfigError, nearest

SWEEPER_HINT = "search.trials=NUMBER"
_SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"  # there by default, never run
_COMMANDS = ("resume", "verify", "hydra")  # words start with them as with a key
# what other programs call it
_CALLED = {
    **dict.fromkeys(("output", "output_dir", "outdir", "out", "run_dir", "dir"), "hydra.run.dir"),
    **{name: f"schedule.{name}" for name in ("steps", "save_every")},
    "dt": "simulation.dt",
    "time_step": "simulation.dt",
    "x64": "precision",
    "processes": "scale.processes",
    "trials": "search.trials",
    "optimizer": "fit",
}


def check_words(words: Sequence[str], experiments: Sequence[str]) -> None:
    """Refuse the bare name of an experiment."""
    for word in words:
        close = nearest(word, experiments, 0.7)
        if close is not None and not re.search("[=~]", word):
            cause, hint = "does not read as KEY=VALUE", f"experiment={close}"
            raise ConfigError(cause, key="command line", value=word, suggestion=hint)


def check_name(key: str, groups: Mapping[str, Sequence[str]]) -> None:
    """Refuse a word that begins with no key of a configuration, and no group of its choices."""
    head = re.split("[./]", key)[0]
    names = tuple(dict.fromkeys(("experiment", *groups, *KEYS, *_COMMANDS)))
    if groups and head not in names:
        close = _CALLED.get(head) or nearest(head, names)
        hint = "" if close is None else close + key.removeprefix(head)
        raise ConfigError("unknown key", key=key, allowed=names, suggestion=hint)


def check_hydra(hydra: Any) -> None:
    """Hydra itself builds its launcher and loggers and makes the folders of the jobs: here, without
    an allow-list, only what is installed as its plugin, and only below the folder of the sweep."""
    folder, below = Path(str(hydra.sweep.dir)), str(hydra.sweep.subdir)
    if not is_inside(folder / below, folder) or not re.fullmatch(r"[^.\s][^\0-\x1f]*", below):
        cause = "must be below the folder of the sweep"
        raise ConfigError(cause, key="hydra.sweep.subdir", value=below)
    check_launcher(container(hydra.launcher))
    sweeper = container(hydra.sweeper)
    if sweeper.get("_target_") != _SWEEPER or sweeper.get("params"):
        cause = "is not for a configuration to set"
        raise ConfigError(cause, key="hydra.sweeper", suggestion=SWEEPER_HINT)
    for key in ("callbacks", "job_logging", "hydra_logging"):
        if set(hydra[key] or ()) - {"version", "root", "disable_existing_loggers"}:
            raise ConfigError("is not for a configuration to set", key=f"hydra.{key}")
    if hydra.job.env_set or hydra.job.chdir:
        raise ConfigError("is not for a configuration to set", key="hydra.job")


def check_launcher(node: Mapping[str, Any]) -> None:
    """Hydra itself builds its launchers, without an allow-list: only what is installed as one."""
    from hydra.core.plugins import Plugins
    from hydra.plugins.launcher import Launcher

    plugins = Plugins.instance().discover(Launcher)
    allowed = {f"{plugin.__module__}.{plugin.__qualname__}" for plugin in plugins}
    for name, value in walk(node):
        if name.rpartition(".")[2] == "_target_" and value not in allowed:
            raise ConfigError("is no plugin of Hydra's", key="hydra.launcher", value=value)


def container(node: Any) -> dict[str, Any]:
    """A node of a composed configuration as plain values."""
    from omegaconf import OmegaConf

    if not OmegaConf.is_dict(node):
        raise ConfigError("must be a mapping", key="search", value=str(node))
    plain: Any = OmegaConf.to_container(node, resolve=True)
    return plain


def is_inside(path: Path, folder: Path) -> bool:
    """Whether `path` is below `folder`, links followed."""
    inner, outer = path.resolve(), folder.resolve()
    return inner != outer and inner.is_relative_to(outer)

"""Going on with a run: what has to be as it was, and what is dropped behind the restart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from . import config
from ._build import walk
from ._errors import ConfigError
from ._outcome import complain

if TYPE_CHECKING:
    from ._store import RunDirectory

HELD = ("diffsim", "jax", "jaxlib")  # another major or minor version of these is refused
SHOWN = 8  # differences in one line


def settled(directory: RunDirectory) -> dict[str, Any]:
    """The configuration of an earlier run, which may go on with it. Writes nothing.

    Refuses, with the differences, a configuration, data, or a version of diffsim or jax that are
    not those of the restart. What may change the last bits alone (a patch, another commit, another
    kind of device) is a warning.
    """
    from ._store import identity

    settings = config.load_saved(directory.config_text())
    saved = _identity(directory)
    if saved is not None:
        now = identity(directory.config_text(), settings["data_files"])
        compare(saved, now, settings)
    return settings


def finished(directory: RunDirectory) -> bool:
    """Whether there is nothing left to do."""
    return directory.read_status().get("state") == "done"


def complete(directory: RunDirectory) -> bool:
    """Whether it is finished and has its report, which is written last."""
    return finished(directory) and directory.report.is_file()


def rewound(directory: RunDirectory) -> bool:
    """Whether there is a restart to go on from, with the frames that it saw still in the
    trajectory. What was written after it, or without one, goes."""
    from ._store import Restarts, changed

    with Restarts(directory.restart, tell=_told) as restarts:
        newest = restarts.newest(lambda meta: changed(directory.trajectory, meta))
        if newest is None:
            directory.truncate_metrics(-1)
            directory.trajectory.unlink(missing_ok=True)
            return False
        step, meta = newest
        restarts.set_aside(after=step)
    directory.truncate_metrics(meta["logged"])
    return True


def compare(saved: Mapping[str, Any], now: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Raise or warn where the run that goes on is not the one that was saved."""
    if saved["config_sha256"] != now["config_sha256"]:
        before = dict(walk(config.load_saved(saved["config"])))
        _refuse("the configuration", changes(before, dict(walk(settings))), "config.yaml as it was")
    _refuse("the data", changes(saved["data"], now["data"]), "the data of the run")
    held = changes(*({k: _minor(x["versions"].get(k)) for k in HELD} for x in (saved, now)))
    needed = ", ".join(f"{k} {saved['versions'].get(k)}" for k in HELD)
    _refuse("the version", held, needed)
    soft = list(changes(saved["versions"], now["versions"]))
    keys = ("python", "platform", "processor", "device", "git_commit")
    soft += changes(*({key: x.get(key) for key in keys} for x in (saved, now)))
    if soft:
        _told(f"{_joined(soft)}: the last bits may differ from those of an uninterrupted run")


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What differs between two flat mappings, a phrase each."""
    return list(_changes(before, after))


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    for key in dict.fromkeys((*before, *after)):
        old, new = before.get(key), after.get(key)
        if old != new and not any(isinstance(x, (Mapping, list)) for x in (old, new)):
            yield f"{key}: {_short(old)} -> {_short(new)}"


def _refuse(what: str, differences: list[str], allowed: str) -> None:
    if differences:
        cause = f"{what} has changed since the restart was saved ({_joined(differences)})"
        raise ConfigError(cause, key="resume", allowed=allowed)


def _joined(differences: list[str]) -> str:
    more = f", and {len(differences) - SHOWN} more" if len(differences) > SHOWN else ""
    return ", ".join(differences[:SHOWN]) + more


def _identity(directory: RunDirectory) -> dict[str, Any] | None:
    """What the newest restart says of the run that saved it."""
    from ._store import Restarts

    with Restarts(directory.restart, tell=lambda _: None) as restarts:
        newest = restarts.newest()
    return None if newest is None else newest[1]["run"]


def _minor(version: str | None) -> str | None:
    return None if version is None else ".".join(version.split(".")[:2])


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _told(text: str) -> None:
    complain(f"warning: {text}")

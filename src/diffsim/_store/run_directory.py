"""The directory of one run: the names of its files, and the text files written while it goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .._errors import ConfigError
from .._files import NO_FILE, unreadable
from .json_text import read_json, to_json, write_atomically


@dataclass(frozen=True)
class RunDirectory:
    """The files that a run leaves under `path`.

    `config.yaml` (as resolved), `metrics.jsonl` (a line an iteration), `result.json`,
    `parameters.h5` of a fit, `trajectory.h5` (of fields beside it `trajectory.xdmf`), `restart/`,
    `figures/`, `report.html` and `status.json`. Make one with `RunDirectory.create` for a new run
    or `RunDirectory.open` for one that goes on. `status.json` and `result.json` are replaced as a
    whole, so that a run that is killed leaves the old file or the new one; `metrics.jsonl` may end
    in a torn line, which readers skip.
    """

    path: Path

    @classmethod
    def create(cls, path: str | os.PathLike[str], config_text: str) -> RunDirectory:
        """A new run directory with its `config.yaml`: an existing one must be empty, no link."""
        path = Path(path)
        if path.is_symlink():
            raise _refuse(
                path,
                "is a symbolic link",
                "a path that is a directory itself or does not exist yet",
            )
        if path.exists() and not path.is_dir():
            raise _refuse(path, "is a file", "a directory that is empty or does not exist yet")
        try:
            path.mkdir(parents=True, exist_ok=True)
            if any(path.iterdir()):
                raise _refuse(
                    path, "is not empty", "an empty directory; to continue a run use resume="
                )
            run = cls(path)
            write_atomically(run.config, config_text)
        except OSError as error:
            raise _refuse(
                path, f"cannot be written: {error.strerror}", "a directory you can write to"
            ) from None
        return run

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> RunDirectory:
        """The existing run directory at `path`: it must hold a `config.yaml`."""
        path = Path(path)
        if not path.is_dir():
            raise _refuse(
                path, "is not a directory", "the directory of an earlier run", key="resume"
            )
        if not (path / "config.yaml").is_file():
            raise _refuse(
                path, "holds no config.yaml", "the directory of an earlier run", key="resume"
            )
        refuse_links(path)
        return cls(path)

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def parameters(self) -> Path:
        return self.path / "parameters.h5"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def result_file(self) -> Path:
        return self.path / "result.json"

    @property
    def status_file(self) -> Path:
        return self.path / "status.json"

    @property
    def trajectory(self) -> Path:
        return self.path / "trajectory.h5"

    @property
    def restart(self) -> Path:
        return self.path / "restart"

    @property
    def figures(self) -> Path:
        return self.path / "figures"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    def config_text(self) -> str:
        """The text of `config.yaml`. Raises `ConfigError` where it is none."""
        try:
            return self.config.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise _refuse(
                self.config, f"cannot be read: {error}", "an intact config.yaml", key="resume"
            ) from None

    def status(self, state: str, code: int | None = None, **info: Any) -> None:
        """Replace `status.json`.

        `state` is running, done, failed, law_broken or interrupted; `code` the exit code; `info`
        what a reader needs: `message`, `step`, `advice`.
        """
        now = datetime.now(UTC).isoformat(timespec="seconds")
        content = {"state": state, "code": code, "updated": now, **info}
        write_atomically(self.status_file, to_json(content, indent=1) + "\n")

    def read_status(self) -> dict[str, Any]:
        """The content of `status.json`, empty where there is none."""
        content = read_json(self.status_file)
        return content if isinstance(content, dict) else {}

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Append one line to `metrics.jsonl`; it is on its way to the disk when this returns."""
        line = to_json(metrics) + "\n"
        with open(self.metrics_file, "a+b") as file:
            if file.tell() and not _ends_line(file):
                line = "\n" + line  # a killed run left a torn line: end it, readers skip it
            file.write(line.encode())

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl` in order, without torn ones."""
        return [row for row, _ in self._metric_lines()]

    def truncate_metrics(self, iteration: int) -> None:
        """Forget the metrics after `iteration` (or after that step, in a plain simulation)."""
        kept = [line for row, line in self._metric_lines() if _counter(row) <= iteration]
        if self.metrics_file.exists():
            write_atomically(self.metrics_file, "".join(line + "\n" for line in kept))

    def result(self, content: Mapping[str, Any]) -> None:
        """Replace `result.json` by `content` as strict JSON."""
        write_atomically(self.result_file, to_json(content, indent=1) + "\n")

    def read_result(self) -> dict[str, Any] | None:
        """The content of `result.json`, None where the run has not finished."""
        content = read_json(self.result_file)
        return content if isinstance(content, dict) else None

    def _metric_lines(self) -> Iterator[tuple[dict[str, Any], str]]:
        if not self.metrics_file.exists():
            return
        for line in self.metrics_file.read_bytes().split(b"\n"):
            try:
                text = line.decode()
                row = json.loads(text)
            except ValueError:
                continue
            if isinstance(row, dict):
                yield row, text


def refuse_links(folder: Path, but: str | None = None) -> None:
    """Refuse a symbolic link anywhere below `folder`: what goes on there would be written where it
    leads; and a device or a pipe, which has no end. `but`: a folder of another program's directly
    below, whose inside is its own business."""
    allowed = "a directory whose files are its own"

    def unsearched(error: OSError) -> None:
        cause = f"cannot be searched for symbolic links: {error.strerror}"
        raise _refuse(Path(error.filename), cause, allowed, key="resume")

    for place, folders, files in os.walk(folder, onerror=unsearched):
        for name in sorted((*folders, *files)):
            path = Path(place, name)
            if path.is_symlink() or unreadable(path) == NO_FILE:
                what = "symbolic link" if path.is_symlink() else "special file"
                cause = f"has the {what} {str(path.relative_to(folder))!r} in it"
                raise _refuse(folder, cause, allowed, key="resume")
        folders[:] = [name for name in folders if name != but or Path(place) != folder]


def _ends_line(file: Any) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


def _counter(row: dict[str, Any]) -> float:
    value = row.get("iteration", row.get("step", 0))
    return float(value) if isinstance(value, (int, float)) else 0.0


def _refuse(path: Path, cause: str, allowed: str, key: str = "run directory") -> ConfigError:
    place = str(path)
    return ConfigError(f"{place!r} {cause}", key=key, value=place, allowed=allowed)

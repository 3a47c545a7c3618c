"""jobs.json: every job of a sweep with its whole configuration, on the disk before it starts, so
that the folder of the sweep is enough to go on from."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from .._errors import ConfigError
from .._store.json_text import to_json, write_atomically

FILE = "jobs.json"
FORMAT = 1
LARGEST = 2**28  # bytes of the file


@dataclass(frozen=True)
class Job:
    """A job: its folder below the sweep's, the overrides that distinguish it, and the text of its
    `config.yaml`; of a search, the `values` that were asked for."""

    folder: str
    overrides: tuple[str, ...]
    config: str
    values: Mapping[str, Any] = field(default_factory=dict)

    @property
    def sha256(self) -> str:
        return sha256(self.config)


@dataclass(frozen=True)
class Record:
    """A sweep in the folder `path`: its jobs, and how they are run.

    `launcher`: the settings of Hydra's launcher; `search`: those of a search, else empty; `words`
    and `config_dir` of the command line, and the sha256 of the configuration that they make: what a
    search composes its next jobs from.
    """

    path: Path
    name: str
    launcher: Mapping[str, Any]
    jobs: tuple[Job, ...] = ()
    search: Mapping[str, Any] = field(default_factory=dict)
    words: tuple[str, ...] = ()
    config_dir: str | None = None
    base: str = ""

    def adding(self, jobs: Iterable[Job]) -> Record:
        """The record with more jobs, on the disk."""
        more = replace(self, jobs=(*self.jobs, *jobs))
        more.save()
        return more

    def save(self) -> None:
        content = {k: v for k, v in asdict(self).items() if k not in ("path", "jobs")}
        jobs = [{**asdict(job), "sha256": job.sha256} for job in self.jobs]
        text = to_json({"format": FORMAT, **content, "jobs": jobs}, indent=1)
        try:
            write_atomically(self.path / FILE, text + "\n")
        except OSError as error:
            cause = f"{str(self.path)!r} cannot be written: {error.strerror}"
            raise ConfigError(cause, key="hydra.sweep.dir") from None

    @classmethod
    def load(cls, path: Path) -> Record:
        """The sweep in the folder `path`; a damaged record is refused with a `ConfigError`."""
        file = path / FILE
        try:
            if file.is_symlink() or not file.is_file() or file.stat().st_size > LARGEST:
                raise ValueError("it is no regular file, or too large")
            content = json.loads(file.read_text(encoding="utf-8"))
            return _record(path, content)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            cause = f"{str(file)!r} is damaged: {str(error)[:100]}"
            raise ConfigError(cause, key="resume") from None


def sha256(text: str) -> str:
    """In hexadecimal, of UTF-8."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _record(path: Path, content: Mapping[str, Any]) -> Record:
    if content["format"] != FORMAT:
        raise ValueError(f"format {content['format']!r} is not known")
    jobs = tuple(_job(each) for each in content["jobs"])
    if len({job.folder for job in jobs}) < len(jobs):
        raise ValueError("two jobs have one folder")
    texts = (content["name"], content["base"], *content["words"])
    maps = (content["launcher"], content["search"])
    place = content["config_dir"]
    if not all(isinstance(text, str) for text in texts) or not isinstance(place, str | None):
        raise TypeError("a text is none")
    if not all(isinstance(each, dict) for each in maps):
        raise TypeError("a mapping is none")
    words = tuple(content["words"])
    return Record(path, content["name"], maps[0], jobs, maps[1], words, place, content["base"])


def _job(node: Mapping[str, Any]) -> Job:
    folder, config = node["folder"], node["config"]
    inside = os.path.normpath(folder)
    if inside != folder or os.path.isabs(folder) or folder.split("/")[0] in ("", ".", ".."):
        raise ValueError(f"{folder!r} is no folder in the sweep's")
    overrides, values = tuple(node["overrides"]), dict(node["values"])
    if not all(isinstance(word, str) for word in (config, *overrides)):
        raise TypeError("a text is none")
    job = Job(folder, overrides, config, values)
    if job.sha256 != node["sha256"]:
        raise ValueError(f"the configuration of job {folder} is not what it was")
    return job

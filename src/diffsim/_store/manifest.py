"""The SHA-256 sums of the files in a folder, by which damage to them is seen."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from .json_text import read_json, to_json, write_atomically
from .provenance import file_sha256

NAME = "manifest.json"


def write_manifest(folder: Path) -> None:
    """Write the sums of all files below `folder`, once they have reached the disk."""
    sums = {}
    for name in _files(folder):
        with open(folder / name, "rb") as file, contextlib.suppress(OSError):
            os.fsync(file.fileno())
        sums[name] = file_sha256(folder / name)
    write_atomically(folder / NAME, to_json({"sha256": sums}, indent=1) + "\n")


def damage(folder: Path) -> str | None:
    """What is wrong with the files in `folder`, None where each has its sum, or where a kill came
    between the last file and the manifest."""
    if not (folder / NAME).exists():
        return None
    read = read_json(folder / NAME)
    sums = read.get("sha256") if isinstance(read, dict) else None
    if not isinstance(sums, dict):
        return f"{NAME} is not readable"
    there = set(_files(folder))
    for name, expected in sums.items():
        if name not in there:
            return f"{name} is missing"
        try:
            if file_sha256(folder / name) != expected:
                return f"{name} has changed"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
    strange = sorted(there - set(sums))
    return f"{strange[0]} was added" if strange else None


def _files(folder: Path) -> list[str]:
    """Names of the files below, relative to it, without the manifest."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    names = (path.relative_to(folder).as_posix() for path in paths)
    return sorted(name for name in names if NAME not in name)

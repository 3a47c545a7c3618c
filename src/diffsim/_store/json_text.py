"""Strict JSON of what runs produce: arrays become numbers, NaN and infinity become null."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Set
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np

from .._secrets import scrub


def to_json(value: Any, *, indent: int | None = None) -> str:
    """`value` as strict JSON text (RFC 8259).

    Arrays become nested lists, scalars of zero dimensions become numbers, NaN and infinity become
    `null`, paths and enumerations their text; secrets of the environment are masked. A complex
    number or an unknown object is a `TypeError` that names its place.
    """
    return json.dumps(_plain(value, "$"), indent=indent, allow_nan=False, ensure_ascii=False)


def _plain(value: Any, where: str) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Enum):
        return _plain(value.value, where)
    if isinstance(value, str):
        return scrub(value.encode("utf-8", "replace").decode("utf-8"))  # no lone surrogates
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, Set):
        return [_plain(item, where) for item in sorted(value, key=str)]
    if isinstance(value, Path):
        return os.fspath(value)
    if isinstance(value, datetime):
        return value.isoformat(timespec="seconds")
    if hasattr(value, "__array__"):
        return _plain_array(np.asarray(value), where)
    raise TypeError(f"{where}: {type(value).__name__} cannot be written as JSON")


def _plain_array(array: np.ndarray, where: str) -> Any:
    if array.dtype.kind in "iub" or array.dtype.kind in "US":
        return _plain(array.tolist(), where)
    try:
        if array.dtype.kind == "c":
            raise TypeError
        return _plain(array.astype(np.float64).tolist(), where)  # also bfloat16
    except (TypeError, ValueError):
        raise TypeError(f"{where}: an array of {array.dtype} cannot be written as JSON") from None


def write_atomically(path: Path, text: str) -> None:
    """Replace the file at `path` by `text`: a reader sees the old one or the new one, whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(temporary, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_json(path: Path) -> Any | None:
    """The JSON in the file at `path`, or None where there is no such file or it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None

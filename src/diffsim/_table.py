"""Measured data from files: columns of a CSV table, arrays of an HDF5 file."""

from __future__ import annotations

import csv
import math
import os
from pathlib import Path

import numpy as np
from jaxtyping import Float

from ._errors import ConfigError, nearest
from ._files import unreadable
from ._hdf5 import RefusedError, check_array, opened


def column(
    file: str | os.PathLike[str], name: str, unit: str | None = None
) -> Float[np.ndarray, "rows"]:
    """The column `name` of a CSV file, row by row as in the file.

    file: text in UTF-8 with commas; the first line holds the names; blank lines and lines that
        start with `#` are passed over. Relative to the working directory.
    name: as in the first line
    unit: what the numbers are in, for the reader of a configuration; they come back unchanged

    Returns finite numbers, shape (rows,).
    Raises `ConfigError` for a file that is missing, not a table or without rows, for a column that
    it does not have (with the nearest name), and for a cell that is no finite number (with its
    line).
    """
    del unit
    path = Path(file)
    names, rows = _read(path)
    if name not in names:
        raise ConfigError(
            f"{_said(path)} has no such column", key="name", value=name, allowed=names
        )
    return _numbers(path, name, names.index(name), rows)


def table(file: str | os.PathLike[str]) -> dict[str, Float[np.ndarray, "rows"]]:
    """Every column of a CSV file, by name; see `column`."""
    path = Path(file)
    names, rows = _read(path)
    return {name: _numbers(path, name, i, rows) for i, name in enumerate(names)}


def dataset(file: str | os.PathLike[str], name: str) -> Float[np.ndarray, "..."]:
    """One array of numbers of an HDF5 file: `dataset("reference.h5", "positions")`.

    Raises `ConfigError` where the file or the array is missing, is not numbers, or is stored
    elsewhere: external files and links are not followed.
    """
    import h5py

    _check(Path(file))
    with opened(file) as found:
        links = {str(key): found.get(key, getlink=True) for key in found}
        if not isinstance(links.get(name), h5py.HardLink):
            raise ConfigError("there is no such array", key="name", value=name, allowed=links)
        values = _numbers_of(found[name], name)
    if not np.all(np.isfinite(values)):
        raise ConfigError("holds numbers that are not finite", key="name", value=name)
    return values


def _read(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The names, and the rows with their line numbers."""
    _check(path)
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, skipinitialspace=True, strict=True)
            lines = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except (OSError, ValueError, csv.Error) as error:
        cause = error.strerror if isinstance(error, OSError) else error
        raise _refuse(path, f"cannot be read as a table ({cause})") from None
    lines = [(n, row) for n, row in lines if any(row) and not row[0].startswith("#")]
    if not lines:
        raise _refuse(path, "is empty")
    (first, names), *rows = lines
    if not rows:
        raise _refuse(path, "has no row under its names")
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise _refuse(path, f"has the column {twice[0]!r} twice in line {first}")
    for line, row in rows:
        if len(row) != len(names):
            cause = f"line {line} has {len(row)} cells under {len(names)} names"
            raise _refuse(path, cause)
    return names, rows


def _numbers(path: Path, name: str, index: int, rows: list[tuple[int, list[str]]]) -> np.ndarray:
    values = np.empty(len(rows))
    for i, (line, row) in enumerate(rows):
        try:
            values[i] = float(row[index])
        except ValueError:
            values[i] = math.nan
        if not math.isfinite(values[i]):
            cause = f"line {line}, column {name!r} is no finite number: {row[index][:40]!r}"
            raise _refuse(path, cause)
    return values


def _numbers_of(found: object, name: str) -> np.ndarray:
    import h5py

    refusal = ConfigError("is no plain array of numbers", key="name", value=name)
    if not isinstance(found, h5py.Dataset) or found.dtype.kind not in "iuf":
        raise refusal
    try:
        check_array(found)
    except RefusedError as error:
        raise ConfigError(f"is no plain array of numbers: it {error}", key="name") from None
    return np.asarray(found[()], dtype=float)


def _check(path: Path) -> None:
    if (cause := unreadable(path)) is not None:
        raise _refuse(path, cause, None if path.exists() else _neighbour(path))


def _neighbour(path: Path) -> str | None:
    """The file in the same folder with the most similar name."""
    try:
        return nearest(path.name, sorted(each.name for each in path.parent.iterdir()))
    except OSError:
        return None


def _refuse(path: Path, cause: str, suggestion: str | None = None) -> ConfigError:
    return ConfigError(f"{_said(path)}: {cause}", key="file", suggestion=suggestion)


def _said(path: Path) -> str:
    return repr(str(path))

"""posterior.h5: draws from a posterior, a dataset a parameter."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from .._errors import ConfigError
from .._hdf5 import check_array, item, opened

LARGEST = 2**30  # bytes that the draws of a parameter may claim


def write_draws(
    path: Path, draws: Mapping[str, np.ndarray], units: Mapping[str, str | None]
) -> None:
    """`draws`: name -> (chains, draws, ...), each with its unit; the file appears as a whole."""
    import h5py

    partial = path.with_suffix(".part")
    with h5py.File(partial, "w") as file:
        group = file.create_group("draws")
        for name, values in draws.items():
            dataset = group.create_dataset(name, data=np.asarray(values))
            dataset.attrs["unit"] = units.get(name) or "1"
            dataset.attrs["axes"] = "chain, draw, entries of the parameter"
    os.replace(partial, path)


def read_draws(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The draws in a file that `write_draws` wrote. Raises `ConfigError` where it holds none."""
    with opened(path, "posterior.h5") as file:
        draws = item(file, "draws")
        return {str(name): _values(str(name), item(draws, name)) for name in draws}


def _values(name: str, found: object) -> np.ndarray:
    import h5py

    if not isinstance(found, h5py.Dataset) or found.dtype.kind not in "iuf" or found.ndim < 2:
        raise ConfigError("is no array of draws", key=f"posterior.h5: {name}")
    check_array(found, LARGEST)
    return np.asarray(found[()], dtype=float)

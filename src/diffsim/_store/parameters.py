"""parameters.h5: what a fit found, networks too, for the next run to start from."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .._errors import ConfigError
from .._hdf5 import check_array, item, opened


def write_parameters(path: Path, values: Mapping[str, Any]) -> None:
    """A group a parameter with a dataset a leaf, named by its place in the tree; the file appears
    as a whole."""
    import h5py
    import jax

    partial = path.with_suffix(".part")
    with h5py.File(partial, "w") as file:
        for name, tree in values.items():
            group = file.create_group(name)
            for place, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
                if not callable(leaf):  # what a network does is in its class, not in the file
                    group.create_dataset(_key(place), data=np.asarray(leaf))
    os.replace(partial, path)


def fitted(file: str | os.PathLike[str], name: str, like: Any = None) -> Any:
    """The parameter `name` as an earlier run found it, from the `parameters.h5` it left:
    `fitted("outputs/closure_fit/.../parameters.h5", "net", like=FieldNetwork(2, 24))`.

    like: a network, or another tree, of the same make, whose arrays are replaced; without it a
        number or an array

    Raises `ConfigError` where the file does not hold such a parameter, or one of another shape.
    """
    import h5py
    import jax

    tree = 0.0 if like is None else like
    places, structure = jax.tree_util.tree_flatten_with_path(tree)
    with opened(file) as held:
        if not isinstance(held.get(name, getlink=True), h5py.HardLink):
            raise ConfigError("no such parameter", key="name", value=name, allowed=held)
        found: list[Any] = [
            x if callable(x) else _leaf(held[name], _key(place), name) for place, x in places
        ]
    for (place, leaf), value in zip(places, found, strict=True):
        if like is not None and not callable(leaf) and np.shape(leaf) != value.shape:
            raise ConfigError(
                f"{_key(place)} has shape {value.shape}", key="like", value=np.shape(leaf)
            )
    arrays = [
        value if like is None or callable(leaf) else _like(value, leaf)
        for (_, leaf), value in zip(places, found, strict=True)
    ]
    return jax.tree_util.tree_unflatten(structure, arrays)


def _like(value: np.ndarray, leaf: Any) -> Any:
    import jax

    return jax.numpy.asarray(value, np.asarray(leaf).dtype)


def _key(place: tuple[Any, ...]) -> str:
    import jax

    return jax.tree_util.keystr(place, simple=True, separator=".") or "value"


def _leaf(group: Any, key: str, name: str) -> np.ndarray:
    import h5py

    if not isinstance(group, h5py.Group):
        raise ConfigError(f"{name} is no parameter", key="name")
    if group.get(key, getlink=True) is None:
        raise ConfigError(f"{name} has no {key}", key="like", allowed=tuple(group))
    found = item(group, key)
    if not isinstance(found, h5py.Dataset) or found.dtype.kind not in "iuf":
        raise ConfigError(f"{name} holds no numbers at {key}", key="file")
    check_array(found)
    return np.asarray(found[()])

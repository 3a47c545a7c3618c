"""Leaves of a restart: what each is, so that what comes back can be held against what was saved."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Label:
    """Where a leaf stands in its tree, its shape and type; `impl` is a random key's generator."""

    path: str
    shape: list[int]
    dtype: str
    impl: str | None = None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def same_as(self, other: Label, resize: bool = False) -> bool:
        """Whether place, type and, unless `resize`, shape are equal."""
        same = (self.path, self.dtype) == (other.path, other.dtype)
        return same and (resize or self.shape == other.shape)

    def blueprint(self) -> Any:
        """Shape and type of the plain array, on the host."""
        import jax

        if self.impl is None:
            return jax.ShapeDtypeStruct(tuple(self.shape), _dtype(self.dtype))
        keys = jax.eval_shape(lambda: jax.random.key(0, impl=self.impl))
        data = jax.eval_shape(jax.random.key_data, keys)
        return jax.ShapeDtypeStruct((*self.shape, *data.shape), data.dtype)

    def __str__(self) -> str:
        return f"{self.path or 'the tree'}: {self.dtype}{self.shape}"


def labelled(tree: Any) -> tuple[list[Label], list[Any]]:
    """Labels and leaves of `tree`; what is not an array is a `TypeError` that names its place."""
    import jax

    labels, leaves = [], []
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = jax.tree_util.keystr(path)
        if not isinstance(leaf, (np.ndarray, np.generic, jax.Array, jax.ShapeDtypeStruct)):
            raise TypeError(
                f"{name or 'the tree'} is {type(leaf).__name__}: only arrays, the rest goes to meta"
            )
        labels.append(Label(name, list(leaf.shape), str(leaf.dtype), _impl(leaf)))
        leaves.append(leaf)
    return labels, leaves


def data_of(leaf: Any) -> Any:
    """The plain array behind a leaf."""
    import jax

    return (
        jax.random.key_data(leaf)
        if is_key(leaf)
        else np.asarray(leaf)
        if isinstance(leaf, np.generic)
        else leaf
    )


def blueprint(leaf: Any, saved: Label) -> Any:
    """Shape and type that were saved, for the devices of a leaf: what Orbax needs."""
    import jax

    if isinstance(leaf, jax.ShapeDtypeStruct):
        sharding = leaf.sharding
    else:
        plain = data_of(leaf)
        sharding = plain.sharding if isinstance(plain, jax.Array) else None
    kept = saved.blueprint()
    return jax.ShapeDtypeStruct(kept.shape, kept.dtype, sharding=sharding)


def revived(data: Any, saved: Label) -> Any:
    """A leaf by its label alone: NumPy, or a typed key."""
    import jax

    plain = saved.blueprint()
    array = np.zeros(plain.shape, plain.dtype) if data is None else np.asarray(data)
    if array.dtype != plain.dtype or array.shape != plain.shape:
        raise ValueError(f"{saved} came back as {array.dtype}{list(array.shape)}")
    if saved.impl is None:
        return array
    return jax.random.wrap_key_data(jax.numpy.asarray(array), impl=saved.impl)


def revive(leaf: Any, data: Any, saved: Label) -> Any:
    """The leaf that `data` was made from: NumPy or a typed key where the template has one."""
    import jax

    plain = blueprint(leaf, saved)
    if data is None:  # nothing is stored of an empty array
        data = np.zeros(plain.shape, plain.dtype)
    if data.dtype != plain.dtype or data.shape != plain.shape:
        raise ValueError(f"{saved} came back as {data.dtype}{list(data.shape)}")
    if isinstance(leaf, (np.ndarray, np.generic)):
        return np.asarray(data)
    array = jax.numpy.asarray(data)
    if array.dtype != plain.dtype:
        raise ValueError(f"{saved} came back as {array.dtype}: switch on jax_enable_x64")
    return jax.random.wrap_key_data(array, impl=saved.impl) if is_key(leaf) else array


def is_key(leaf: Any) -> bool:
    import jax

    return jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _impl(leaf: Any) -> str | None:
    import jax

    if not is_key(leaf) or isinstance(leaf, jax.ShapeDtypeStruct):
        return None
    return str(jax.random.key_impl(leaf))


def _dtype(name: str) -> np.dtype[Any]:
    import jax

    return jax.numpy.dtype(name)

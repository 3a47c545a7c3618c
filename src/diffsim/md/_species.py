"""Parameters of pairs of atoms of several kinds."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PyTree

from .._errors import ConfigError

Species = Int[Array, " atoms"] | None
Mixing = Literal["lorentz_berthelot", "geometric"]
MIXINGS = ("lorentz_berthelot", "geometric")
FEW = 8  # kinds: a lookup costs 2 ns a pair whatever their number, a selection 0.2 ns a kind


def mixed(values: Any, rule: str) -> Array:
    """θ_ab of one number a kind (kinds,): their mean by "lorentz_berthelot", the root of their
    product by "geometric". Numbers stay as they are, and so do tables."""
    values = jnp.asarray(values)
    if values.ndim != 1:
        return of_no_order(values)
    one, other = values[:, None], values[None, :]
    if rule == "lorentz_berthelot":
        return (one + other) / 2
    product = one * other
    # a kind that does not interact has ε = 0, where the root has no slope
    return jnp.where(product > 0, jnp.sqrt(jnp.where(product > 0, product, 1)), 0)


def of_no_order(table: Array) -> Array:
    """(θ_ab + θ_ba)/2 of a table: what it is, with derivatives that know it. Along θ_ab alone the
    tangents of two opposite forces would not be opposite."""
    if table.ndim != 2 or table.shape[0] != table.shape[1]:
        return table
    return (table + table.T) / 2


def check_mixing(rule: str) -> None:
    if rule not in MIXINGS:
        raise ConfigError("unknown mixing", key="mixing", value=rule, allowed=MIXINGS)


def of_pairs(params: PyTree, one: Any, other: Any) -> PyTree:
    """θ_ab for atoms of the kinds a = `one` and b = `other`, which broadcast against each other.

    Leaves of shape (kinds, kinds) are tables; numbers hold for all pairs. Of a few kinds, selecting
    entry by entry vectorises, and has a derivative that does; of many, as molecules have, it takes
    minutes to compile where a lookup takes none, and longer to run.
    """
    if one is None:
        return params

    def pick(table: Any) -> Array:
        table = jnp.asarray(table)
        if table.ndim == 0:
            return table
        if len(table) > FEW:
            return table.at[one, other].get(mode="clip")
        rows = [_chosen([*table[:, m]], one) for m in range(table.shape[1])]
        return _chosen(rows, other)

    return jax.tree.map(pick, params)


def _chosen(values: list[Array], kind: Any) -> Array:
    out = values[0]
    for k, value in enumerate(values[1:], start=1):
        out = jnp.where(kind == k, value, out)
    return out


def by_kind(terms: PyTree, params: PyTree, other: Any) -> PyTree:
    """Per-pair cotangents of θ_ab as a list for each leaf: one entry a kind b for tables."""

    def split(term: Array, table: Any) -> list[Array]:
        if other is None or jnp.ndim(table) == 0:
            return [term]
        return [jnp.where(other == m, term, 0) for m in range(jnp.shape(table)[1])]

    return jax.tree.map(split, terms, params)


def gathered(sums: list[Array], table: Any, one: Any) -> Array:
    """The cotangent of a leaf from its sums for each atom, as `by_kind` lists them."""
    if jnp.ndim(table) == 0:
        return jnp.sum(sums[0])
    if jnp.shape(table)[0] > FEW:
        return jnp.zeros(jnp.shape(table), sums[0].dtype).at[one].add(jnp.stack(sums, axis=1))
    kinds = range(jnp.shape(table)[0])
    return jnp.stack([jnp.stack([jnp.sum(jnp.where(one == k, s, 0)) for s in sums]) for k in kinds])


def check_tables(params: dict[str, Any], species: Any) -> None:
    """Refuse parameters that do not fit the kinds of atoms: numbers, one a kind, or symmetric
    tables."""
    kinds = 0 if species is None else int(np.max(np.asarray(species), initial=-1)) + 1
    for name, value in params.items():
        table = np.asarray(value)
        if table.ndim == 0:
            continue
        if kinds == 0:
            raise ConfigError(
                f"is a table of shape {table.shape} without kinds of atoms",
                key=name,
                allowed="a number, or species= in the potential",
            )
        if table.ndim > 2 or table.shape[0] != table.shape[-1] or len(table) < kinds:
            raise ConfigError(
                f"must have one row and column for each of {kinds} species, or one entry, not "
                f"{table.shape}",
                key=name,
            )
        if table.ndim == 1:
            continue
        if not np.allclose(table, table.T):
            raise ConfigError("must be symmetric: a pair has no order", key=name)

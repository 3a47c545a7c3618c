"""Sums over the pairs of a neighbour list, which do not depend on which valid list it is.

A list holds pairs beyond the cutoff, in an order that its history made. Terms are therefore rounded
to multiples of a power of two that the true pairs alone determine, small enough that their float64
sum is exact: the same to the last bit in any order. Forces that are a function of the positions
alone make trajectories reversible, and independent of restarts and of the room that a list has.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from ._box import Edges, distinct, nearest_rows, sides
from ._species import Species, of_pairs

Radial = Callable[[PyTree, Array], Any]
Index = Int[Array, "atoms slots"]

ROWS = 128  # atoms at a time: their pairs stay in the cache


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def sum_in_any_order(terms: Array, axis: int) -> Array:
    """Σ x along `axis`, the same to the last bit for any order and any zeros between.

    Of n terms up to M, each is rounded to 2⁻⁵² of nM: about what a plain sum loses. In float64;
    without 64-bit types, a plain sum.
    """
    x = terms.astype(jnp.result_type(float))
    if x.dtype != jnp.float64:
        return jnp.sum(x, axis)
    count = jnp.sum(x != 0, axis, keepdims=True)
    bound = jnp.max(jnp.abs(x), axis, keepdims=True, initial=0) * count
    exponent = jnp.maximum((jax.lax.bitcast_convert_type(bound, jnp.int64) >> 52) - 1022, -900)
    whole = jnp.sum(jnp.round(x * _power_of_two(52 - exponent)), axis)
    return whole * _power_of_two(jnp.squeeze(exponent, axis) - 52)


@sum_in_any_order.defjvp
def _sum_jvp(axis: int, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    value = sum_in_any_order(primals[0], axis)
    return value, jnp.sum(tangents[0].astype(value.dtype), axis)


def _power_of_two(exponent: Array) -> Array:
    return jax.lax.bitcast_convert_type((exponent + 1023) << 52, jnp.float64)


class _Rows:
    """Walks the atoms of a list in blocks of `ROWS`."""

    def __init__(self, positions: Array, box: Array, index: Array, species: Species = None):
        self.species = species
        self.positions, self.box, self.inverse = positions, box, 1 / sides(box)
        self.atoms, slots = index.shape
        self.rows = min(ROWS, self.atoms)
        self.count = -(-self.atoms // self.rows)
        pad = ((0, self.count * self.rows - self.atoms), (0, 0))
        padded = jnp.pad(index, pad, constant_values=self.atoms)
        self.index = padded.reshape(self.count, self.rows, slots)
        # Empty slots point beyond the last atom; what they fetch is masked.
        self.near = jnp.minimum(self.index, self.atoms - 1)

    def own(self, values: Array) -> Array:
        """Per-atom values, a block a row; those of the padding are the last atom's."""
        short = self.count * self.rows - self.atoms
        padded = jnp.pad(values, ((0, short), (0, 0)), mode="edge")
        return padded.reshape(self.count, self.rows, values.shape[1])

    def pairs(self, own: Array, index: Array, near: Array) -> tuple[Array, Array]:
        """Minimum-image x_i - x_j and s = r² of each slot: (rows, slots, 3), (rows, slots)."""
        there = jax.lax.optimization_barrier(self.positions[near])
        raw = own[:, None, :] - there
        d = nearest_rows(raw, self.box, self.inverse)
        s = jnp.sum(d * d, axis=-1)
        # What is no pair is sent beyond every cutoff: masked at r = 0 it would turn derivatives
        # into NaN (jax-md#258).
        real = (index < self.atoms) & distinct(s, self.box)
        return d, jnp.where(real, s, jnp.min(sides(self.box)) ** 2)

    def of_kinds(self, params: PyTree, kind: Array | None, near: Array) -> PyTree:
        """Parameters of the pairs of a block."""
        if self.species is None or kind is None:
            return params
        return of_pairs(params, kind, self.species[near])

    def blocks(self, *more: Array) -> tuple[Any, ...]:
        """What a block needs, with the blocks as leading axis: positions, slots, the atoms in
        them, kinds, and `more` per-atom values."""
        kinds = None if self.species is None else self.own(self.species[:, None])
        return self.own(self.positions), self.index, self.near, kinds, *map(self.own, more)

    def atomwise(self, tree: PyTree) -> PyTree:
        """Per-block results as per-atom ones."""
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[: self.atoms], tree)

    def each(self, block: Callable[..., PyTree]) -> PyTree:
        """`block` of every block; what it computes is computed again in a reverse pass."""
        again = jax.checkpoint(lambda args: block(*args))
        return self.atomwise(jax.lax.map(again, self.blocks()))


def list_forces(
    force_factor: Radial,
    params: PyTree,
    positions: Float[Array, "atoms 3"],
    box: Edges,
    index: Index,
    species: Species = None,
) -> Float[Array, "atoms 3"]:
    """F_i = Σ_j f(r_ij²) (x_i - x_j), f = -φ'(r)/r, over the slots of a list."""
    rows = _Rows(positions, box, index, species)

    def block(own: Array, index: Array, near: Array, kind: Array | None) -> Array:
        d, s = rows.pairs(own, index, near)
        f = force_factor(rows.of_kinds(params, kind, near), s)
        return sum_in_any_order(f[..., None] * d, 1)

    return rows.each(block)


def list_sums(
    radial: Radial,
    params: PyTree,
    positions: Float[Array, "atoms 3"],
    box: Edges,
    index: Index,
    species: Species = None,
) -> PyTree:
    """Σ_{i<j} g(r_ij²) for each leaf g of `radial(params, s)`, over the slots of a list."""
    rows = _Rows(positions, box, index, species)

    def block(own: Array, index: Array, near: Array, kind: Array | None) -> PyTree:
        _, s = rows.pairs(own, index, near)
        terms = radial(rows.of_kinds(params, kind, near), s)
        return jax.tree.map(lambda g: sum_in_any_order(g, 1), terms)

    return jax.tree.map(lambda g: jnp.sum(g) / 2, rows.each(block))


def list_pullback(
    force_factor: Radial,
    params: PyTree,
    positions: Float[Array, "atoms 3"],
    box: Edges,
    cotangent: Float[Array, "atoms 3"],
    index: Index,
    species: Species = None,
) -> tuple[PyTree, Float[Array, "atoms 3"]]:
    """(∂F/∂θ)ᵀ w and (∂F/∂x)ᵀ w in one pass over the slots; the formulas are `pair_pullback`'s."""
    rows = _Rows(positions, box, index, species)

    def block(total: PyTree, arguments: tuple[Any, ...]) -> tuple[PyTree, Array]:
        own, index, near, kind, own_w = arguments
        d, s = rows.pairs(own, index, near)
        w = own_w[:, None, :] - cotangent[near]
        of_block = lambda p, s: force_factor(rows.of_kinds(p, kind, near), s)  # noqa: E731
        f, transpose = jax.vjp(of_block, params, s)
        more, s_bar = transpose(jnp.sum(d * w, axis=-1) / 2)
        ct_positions = jnp.sum(f[..., None] * w + 4 * s_bar[..., None] * d, axis=1)
        return jax.tree.map(jnp.add, total, more), ct_positions

    start = jax.tree.map(jnp.zeros_like, params)
    ct_params, ct_positions = jax.lax.scan(block, start, rows.blocks(cotangent))
    return ct_params, rows.atomwise(ct_positions)

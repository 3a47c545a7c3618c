"""What is near what: strips near a strip, tiles near a tile, atoms near a row of atoms.

From coarse to fine, each by what the one before let through, in arrays of fixed size with the most
that there was beside them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ._chosen import WORD, chosen, counted, fetch, listed, packed
from ._cluster_plan import EIGHT, ROW, TILE, ClusterPlan

NOWHERE = 2.0  # boxes from the middle of this one
RAGGED = 3e-7  # of the box: what float32 may lose of an edge
FINE = 4  # atoms near a row, when it is found out how many most have
ROWS = TILE // ROW  # of a tile

Boxes = list[tuple[Array, Array]]  # lowest and highest along each axis, in fractions


def tile_boxes(plan: ClusterPlan, where: Array, atoms: int) -> Boxes:
    """Of each tile; without an atom the highest is under the lowest, far from everything."""
    real = (np.arange(plan.slots) < atoms).reshape(-1, TILE)
    columns = [where[:, k].reshape(-1, TILE) for k in range(3)]
    return [
        (
            jnp.min(jnp.where(real, c, NOWHERE), axis=1),
            jnp.max(jnp.where(real, c, -NOWHERE), axis=1),
        )
        for c in columns
    ]


def _extents(boxes: Boxes) -> Boxes:
    """Middles and half widths."""
    return [((low + high) / 2, (high - low) / 2 + RAGGED) for low, high in boxes]


def _gap(one: Boxes, other: Boxes, edges: Array, axes: Sequence[int]) -> Array:
    """Least squared distance between boxes, of middles and half widths, periodic."""
    total = jnp.zeros((), jnp.float32)
    for k in axes:
        d = one[k][0] - other[k][0]
        d = jnp.abs(d - jnp.round(d)) - one[k][1] - other[k][1]
        total = total + jnp.square(jnp.maximum(d, 0) * edges[k])
    return total


def near_strips(plan: ClusterPlan, tiles: Boxes, edges: Array) -> tuple[Array, Array]:
    """(columns, room) strips within reach of each, -1 as filler, and the most there are."""
    rows = [(a.reshape(plan.columns, -1), b.reshape(plan.columns, -1)) for a, b in tiles]
    boxes = _extents([(jnp.min(low, axis=1), jnp.max(high, axis=1)) for low, high in rows])
    one = [(m[:, None], h[:, None]) for m, h in boxes]
    near = _gap(one, [(m[None], h[None]) for m, h in boxes], edges, (0, 1)) < plan.reach**2
    return chosen(near, plan.strips)


def near_tiles(plan: ClusterPlan, tiles: Boxes, edges: Array, strips: Array) -> tuple[Array, Array]:
    """(tiles, room) tiles within reach of each, -1 as filler, and the most there are."""
    runs = plan.grid[2]
    # Whole words of a mask: what is padded afterwards does not vectorise.
    more = -strips.shape[1] % (WORD // math.gcd(WORD, runs))
    listed = jnp.pad(strips, ((0, 0), (0, more)), constant_values=-1)
    listed = jnp.where(listed < 0, plan.columns, listed)
    own = np.arange(plan.columns * runs, dtype=np.int32).reshape(-1, runs, 1)
    boxes = _extents(tiles)
    # Fetched, or XLA finds the extents of a tile anew for every pair.
    one = [(fetch(m, own), fetch(h, own)) for m, h in boxes]

    def beside(values: Array) -> Array:
        rows = jnp.pad(values.reshape(-1, runs), ((0, 1), (0, 0)), constant_values=jnp.nan)
        return fetch(rows, listed).reshape(plan.columns, 1, -1)

    near = _gap(one, [(beside(m), beside(h)) for m, h in boxes], edges, (0, 1, 2)) < plan.reach**2
    found, most = chosen(near.reshape(plan.columns * runs, -1), plan.tiles)
    strip = np.repeat(np.arange(plan.columns, dtype=np.int32), runs)[:, None]
    place = jnp.maximum(found, 0)
    where = fetch(listed, (strip, place // runs)) * runs + place % runs
    return jnp.where(found >= 0, where, -1), most


class NearAtoms(NamedTuple):
    """`near`: for each group of rows, (blocks, rows, room) slots within reach of a row, then the
    number of slots as filler; `first` (blocks, rows): which rows of a block these are; `most`: the
    most slots near a row, `few`: near all but the longest rows of a block."""

    near: tuple[Array, ...]
    first: Array
    most: Array
    few: Array


def near_atoms(
    plan: ClusterPlan, where: Array, atoms: int, edges: Array, tiles: Array
) -> NearAtoms:
    """Found block by block, so that what they look at stays in the cache."""
    none, (blocks, rows) = math.prod(plan.grid), plan.blocks
    # What is not there is nowhere, and no distance from it is within reach. An empty slot looks
    # from where the first of its tile is. Fetched, or XLA does all this anew for every pair.
    real = np.arange(plan.slots + TILE) < atoms
    columns = [jnp.where(real, jnp.pad(where[:, k], (0, TILE)), jnp.nan) for k in range(3)]
    looks = np.arange(plan.slots, dtype=np.int32)
    own = [fetch(c, np.where(real[looks], looks, looks - looks % TILE)) for c in columns]
    reach = plan.reach + 2 * RAGGED * jnp.max(edges)

    def of_block(tiles: Array, *own: Array) -> tuple[tuple[Array, ...], Array, Array]:
        count = tiles.shape[0]
        given = jnp.where(tiles < 0, none, tiles)
        there = [fetch(c.reshape(-1, TILE), given).reshape(count, 1, -1) for c in columns]
        nearest = jnp.full((), jnp.inf, jnp.float32)
        for i in range(ROW):
            s = jnp.zeros((), jnp.float32)
            for k in range(3):
                d = own[k].reshape(count, ROWS, ROW, 1)[:, :, i] - there[k]
                s = s + jnp.square((d - jnp.round(d)) * edges[k])
            nearest = jnp.minimum(nearest, s)
        words = packed((nearest < reach * reach).reshape(rows, -1))
        counts = counted(words)
        first, near = _few_first(plan, counts), []
        for some, room in zip(_split(plan, first), (room for _, room in plan.groups), strict=True):
            found = listed(fetch(words, some), room)
            tile = fetch(tiles, (some[:, None] // ROWS, jnp.maximum(found, 0) >> EIGHT))
            slot = (tile << EIGHT) + (found & (TILE - 1))
            near.append(jnp.where(found >= 0, slot, plan.slots))
        return tuple(near), first, counts

    # Tiles that fill up the last block have nothing near.
    more = blocks * rows // ROWS - tiles.shape[0]
    filled = [
        jnp.pad(x, ((0, more), (0, 0)), constant_values=-1).reshape(blocks, -1, x.shape[1])
        for x in (tiles, *(x.reshape(-1, TILE) for x in own))
    ]
    if blocks == 1:
        near, first, counts = jax.tree.map(lambda x: x[None], of_block(*(x[0] for x in filled)))
    else:
        near, first, counts = jax.lax.map(lambda some: of_block(*some), tuple(filled))
    return NearAtoms(near, first, jnp.max(counts), _mostly(plan, counts))


def _few_first(plan: ClusterPlan, counts: Array) -> Array:
    """The rows of a block, those with more than `few` atoms near from the end on; each once."""
    index = jnp.arange(counts.shape[0], dtype=jnp.int32)
    if len(plan.groups) == 1:
        return index
    many = counts > plan.few
    before = jnp.cumsum(many.astype(jnp.int32))
    place = jnp.where(many, counts.shape[0] - before, index - before)
    return jnp.zeros_like(index).at[place].set(index, unique_indices=True)


def _split(plan: ClusterPlan, rows: Array) -> list[Array]:
    return jnp.split(rows, np.cumsum([count for count, _ in plan.groups])[:-1])


def _mostly(plan: ClusterPlan, counts: Array) -> Array:
    """The least that suffices for all but the longest rows of each block, in steps of `FINE`."""
    tried = np.arange(FINE, plan.atoms, FINE, dtype=np.int32)
    over = jnp.sum((counts[..., None] > tried).astype(jnp.int32), axis=1)
    enough = jnp.max(over, axis=0, initial=0) <= plan.long
    return jnp.min(jnp.where(enough, tried, plan.atoms), initial=plan.atoms)

"""The dense pair engine: sums over all pairs of a small periodic box, in blocks that vectorise.

Every quantity is a sum over ordered pairs of a function of s = r² that vanishes beyond a cutoff of
at most half the box, walked in blocks of rows. Atoms at exactly the same place do not see each
other. One kernel evaluates the radial function on a (block, N) tile, the next accumulates it over
the block's unrolled rows. XLA vectorises both; a reduction over a row of pairs would run scalar.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ._box import Edges, distinct, nearest_planes, sides, triclinic
from ._species import Species, of_pairs

Radial = Callable[[PyTree, Array], Any]

BLOCK = (
    50  # rows a tile: large enough to hide dispatch, small enough to compile fast and fit caches
)


def _tile_rows(atoms: int) -> int:
    """Rows a tile: the largest divisor of `atoms` up to BLOCK, or BLOCK with padding if all are
    small."""
    best = max(d for d in range(1, min(atoms, BLOCK) + 1) if atoms % d == 0)
    return best if best >= min(16, BLOCK) or best == atoms else min(atoms, BLOCK)


class _Tiles:
    """Walks the (rows, N) tiles of all ordered pairs of a box."""

    def __init__(self, positions: Array, box: Array, species: Species = None):
        self.species = species
        self.atoms = positions.shape[0]
        self.rows = _tile_rows(self.atoms)
        self.count = -(-self.atoms // self.rows)
        self.components = positions.T
        self.edges, self.triclinic = box, triclinic(box)
        if self.triclinic:
            self.box, self.inverse = box, 1 / sides(box)
        else:
            self.box, self.inverse = box[:, None], 1 / box[:, None]
        self.far = jnp.min(sides(box)) ** 2
        pad = self.count * self.rows - self.atoms
        self.padded = jnp.pad(self.components, ((0, 0), (0, pad)))

    def separation(self, columns: Array, row: Array) -> Array:
        """Minimum-image x_columns - x_row, (3, ...), at the precision of the positions."""
        raw = columns - row
        if self.triclinic:
            return jnp.stack(nearest_planes(raw, self.box, self.inverse))
        shape = (3,) + (1,) * (raw.ndim - 1)
        return raw - self.box.reshape(shape) * jnp.round(raw * self.inverse.reshape(shape))

    def planes(self, rows: Array) -> Iterable[Array]:
        """x, y and z of the same, of some of the rows with all atoms, (some, N) each."""
        raw = (self.components[k][None, :] - rows[k][:, None] for k in range(3))
        if self.triclinic:
            return nearest_planes(raw, self.box, self.inverse)
        return (d - self.box[k] * jnp.round(d * self.inverse[k]) for k, d in enumerate(raw))

    def squared(self, tile: Array, rows: Array) -> Array:
        """s = r² of each pair, (rows, N)."""
        return self.apart(tile * self.rows + jnp.arange(self.rows), rows)

    def apart(self, numbers: Array, rows: Array) -> Array:
        """The same of some of the rows, by their numbers and their atoms, (3, some)."""
        s = jnp.zeros((), self.components.dtype)
        for d in self.planes(rows):
            s = s + d * d
        # What is no pair (an atom with itself, a padded row) is sent beyond every cutoff: masked at
        # r = 0 it would turn derivatives into NaN.
        other = numbers[:, None] != jnp.arange(self.atoms)
        real = other & distinct(s, self.edges)
        if self.padded.shape[1] > self.atoms:
            real = real & (numbers[:, None] < self.atoms)
        return jnp.where(real, s, self.far)

    def stored(self, fn: Callable[..., PyTree], *given: PyTree) -> PyTree:
        """`fn` of arrays whose leading axis is the tile's rows, in a loop of a few turns: what it
        returns is stored, while XLA would fuse it into every use and compute it there anew."""
        turns = next((d for d in range(2, self.rows + 1) if self.rows % d == 0), 1)
        split = jax.tree.map(lambda x: x.reshape(turns, -1, *x.shape[1:]), given)
        _, out = jax.lax.scan(lambda _, x: (None, fn(*x)), None, split)
        return jax.tree.map(lambda x: x.reshape(self.rows, *x.shape[2:]), out)

    def of_kinds(self, params: PyTree, tile: Array) -> PyTree:
        """Parameters of the pairs of a tile."""
        if self.species is None:
            return params
        row = jnp.minimum(tile * self.rows + jnp.arange(self.rows), self.atoms - 1)
        return of_pairs(params, self.species[row][:, None], self.species)

    def of_every_pair(self, params: PyTree, tile: Array) -> PyTree:
        """The same with a copy for each pair of the tile, (rows, N, ...)."""
        shape = self.rows, self.atoms
        if self.species is None:
            return jax.tree.map(lambda p: jnp.broadcast_to(p, (*shape, *p.shape)), params)
        return jax.tree.map(lambda p: jnp.broadcast_to(p, shape), self.of_kinds(params, tile))

    def rows_of(self, tile: Array) -> Array:
        return jax.lax.dynamic_slice_in_dim(self.padded, tile * self.rows, self.rows, axis=1)

    def accumulate(self, start: PyTree, body: Callable[[PyTree, Array], PyTree]) -> PyTree:
        """Sum a tile's contributions; what a tile computes is recomputed in a reverse pass."""
        remat = jax.checkpoint(lambda total, tile: (body(total, tile), None))
        return jax.lax.scan(remat, start, jnp.arange(self.count))[0]


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def pair_forces(
    force_factor: Radial,
    params: PyTree,
    positions: Float[Array, "atoms 3"],
    box: Edges,
    species: Species = None,
) -> Float[Array, "atoms 3"]:
    """F_i = Σ_j f(r_ij²) (x_i - x_j), f = -φ'(r)/r, minimum image; (atoms, 3) [energy/length].

    `species`: the kind of each atom, for parameters that are tables over pairs of kinds.
    """
    tiles = _Tiles(positions, box, species)

    def body(forces: Array, tile: Array) -> Array:
        rows = tiles.rows_of(tile)
        s = tiles.squared(tile, rows)
        # Behind a barrier: fused into the accumulation, f would be computed three times.
        f = jax.lax.optimization_barrier(force_factor(tiles.of_kinds(params, tile), s))
        for k in range(tiles.rows):
            forces = forces + f[k] * tiles.separation(tiles.components, rows[:, k : k + 1])
        return forces

    return tiles.accumulate(jnp.zeros_like(tiles.components), body).T


def _plain_forces(
    force_factor: Radial, species: Species, params: PyTree, positions: Array, box: Array
) -> Array:
    """The same without unrolled rows: slower, but its transpose is not a pad for every row."""
    tiles = _Tiles(positions, box, species)

    def body(forces: Array, tile: Array) -> Array:
        rows = tiles.rows_of(tile)
        f = force_factor(tiles.of_kinds(params, tile), tiles.squared(tile, rows))
        separation = tiles.separation(tiles.components[:, None, :], rows[:, :, None])
        return forces + jnp.sum(f * separation, axis=1)

    return tiles.accumulate(jnp.zeros_like(tiles.components), body).T


@pair_forces.defjvp
def _pair_forces_jvp(force_factor: Radial, primals: Any, tangents: Any) -> tuple[Array, Array]:
    plain = partial(_plain_forces, force_factor, primals[3])
    return pair_forces(force_factor, *primals), jax.jvp(plain, primals[:3], tangents[:3])[1]


def pair_sums(
    radial: Radial,
    params: PyTree,
    positions: Float[Array, "atoms 3"],
    box: Edges,
    dtype: Any = None,
    species: Species = None,
) -> PyTree:
    """Σ_{i<j} g(r_ij²) for each leaf g of `radial(params, s)`, summed in `dtype`."""
    tiles = _Tiles(positions, box, species)

    def per_atom(tile: Array) -> PyTree:
        g = radial(tiles.of_kinds(params, tile), tiles.squared(tile, tiles.rows_of(tile)))
        return jax.tree.map(lambda g: jnp.sum(g, axis=0, dtype=dtype), g)

    def body(total: PyTree, tile: Array) -> PyTree:
        return jax.tree.map(jnp.add, total, per_atom(tile))

    shapes = jax.eval_shape(per_atom, jnp.zeros((), jnp.int32))
    start = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
    return jax.tree.map(lambda g: jnp.sum(g) / 2, tiles.accumulate(start, body))


def pair_pullback(
    force_factor: Radial,
    params: PyTree,
    positions: Float[Array, "atoms 3"],
    box: Edges,
    cotangent: Float[Array, "atoms 3"],
    species: Species = None,
) -> tuple[PyTree, Float[Array, "atoms 3"]]:
    """(∂F/∂θ)ᵀ w and (∂F/∂x)ᵀ w in one pass over the pairs.

    With d = x_i - x_j, g = d·(w_i - w_j): (∂F/∂x w)_i = Σ_j f (w_i - w_j) + 2 f'(s) g d, the
    Hessian being symmetric, and (∂F/∂θ)ᵀ w = ½ Σ_ij ∂f/∂θ g. One reverse pass over f(θ, s) gives
    both.
    """
    tiles = _Tiles(positions, box, species)
    w = cotangent.T
    w_padded = jnp.pad(w, ((0, 0), (0, tiles.padded.shape[1] - tiles.atoms)))

    def body(total: tuple[PyTree, Array], tile: Array) -> tuple[PyTree, Array]:
        ct_params, out = total
        rows = tiles.rows_of(tile)
        w_rows = jax.lax.dynamic_slice_in_dim(w_padded, tile * tiles.rows, tiles.rows, axis=1)
        numbers = tile * tiles.rows + jnp.arange(tiles.rows)

        def distances(numbers: Array, rows: Array, w_rows: Array) -> tuple[Array, Array]:
            g = jnp.zeros((), w.dtype)
            for k, d in enumerate(tiles.planes(rows.T)):
                g = g + d * (w[k][None, :] - w_rows[:, k : k + 1])
            return tiles.apart(numbers, rows.T), g

        def slopes(of_pairs: PyTree, s: Array, g: Array) -> tuple[Array, tuple[PyTree, Array]]:
            f, transpose = jax.vjp(force_factor, of_pairs, s)
            return f, transpose(g / 2)

        s, g = tiles.stored(distances, numbers, rows.T, w_rows.T)
        # A copy of the parameters for each pair: sums over rows vectorise, one over all would not.
        of_pairs, spread = jax.vjp(lambda p: tiles.of_every_pair(p, tile), params)
        f, (each, s_bar) = tiles.stored(slopes, of_pairs, s, g)
        for k in range(tiles.rows):
            d = tiles.separation(tiles.components, rows[:, k : k + 1])
            out = out + f[k] * (w - w_rows[:, k : k + 1]) + 4 * s_bar[k] * d
            if species is None:
                ct_params = jax.tree.map(lambda total, ct: total + ct[k], ct_params, each)  # noqa: B023
        if species is not None:
            ct_params = jax.tree.map(jnp.add, ct_params, spread(each)[0])
        return ct_params, out

    column = lambda p: jnp.zeros((tiles.atoms, *p.shape) if species is None else p.shape, p.dtype)  # noqa: E731
    start = jax.tree.map(column, params), jnp.zeros_like(tiles.components)
    ct_params, out = tiles.accumulate(start, body)
    if species is None:
        ct_params = jax.tree.map(lambda ct: jnp.sum(ct, axis=0), ct_params)
    return ct_params, out.T

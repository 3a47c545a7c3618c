"""Sums over the pairs of a cluster structure: rows of four atoms against the atoms near them.

Forces are summed in integers. Integer addition is associative: XLA may therefore vectorise the sum,
which it may not with floating point, and the result is the same to the last bit whatever the order,
the structure or its history. Each term is rounded to a multiple of a power of two, 2⁻⁵¹ or (in two
words of 32 bits) 2⁻⁴⁰ of the largest it can hold. That largest follows from the potential's scale
of force, or, where the strongest pair is far from it, from that pair, in another pass.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from ._clusters import ROW, Clusters, fetch, fractions
from ._list_pairs import sum_in_any_order
from ._species import Species, by_kind, gathered, of_pairs, totals

Radial = Callable[[PyTree, Array], Any]

ROWS = 1024  # rows at a time: what they fetch stays in the cache, and two threads find enough to do
HEADROOM = 13  # bits of the largest term above the scale of force
SPAN = 10  # bits below the largest term where the strongest pair may be
BITS_64 = 51  # of a term in one word, and in the high and the low of two
BITS_32 = 20

# 2ⁿ + 2ⁿ⁻¹ + k in floating point has the integer k in its last bits.
_MAGIC_32, _MAGIC_64 = np.float32(1.5 * 2**23), 1.5 * 2.0**52
_BIAS_32 = int(_MAGIC_32.view(np.int32))
_BIAS_64 = int(np.float64(_MAGIC_64).view(np.int64))


class _Rows:
    """Walks the rows of a structure in blocks; per-atom arrays in the order of the slots."""

    def __init__(self, clusters: Clusters, species: Species):
        self.clusters, self.atoms = clusters, clusters.place.shape[0]
        self.slots, self.room = clusters.order.shape[0], clusters.near.shape[1]
        # Empty slots stand where the last atom is; nobody lists them.
        self.atom = jnp.minimum(clusters.order, self.atoms - 1)
        self.kinds = None if species is None else self.sorted(species)
        count = clusters.near.shape[0]
        self.size = max(b for b in range(1, min(ROWS, count) + 1) if count % b == 0)

    def sorted(self, values: Array) -> Array:
        return fetch(values, self.atom)

    def own(self, values: Array) -> Array:
        """(slots, ...) as (blocks, rows, ROW, 1, ...)."""
        return values.reshape(-1, self.size, ROW, 1, *values.shape[1:])

    def there(self, values: Array, near: Array) -> Array:
        """Values of what is near, (rows, 1, room, ...)."""
        return fetch(values, jnp.minimum(near, self.slots - 1))[:, None]

    def separated(self, s: Array, near: Array, box: Array) -> Array:
        """s = r², and beyond every cutoff for what is no pair: masked at r = 0 it would turn
        derivatives into NaN (jax-md#258)."""
        far = jnp.square(jnp.min(box)).astype(s.dtype)
        s = s + jnp.where(near < self.slots, jnp.zeros((), s.dtype), far)[:, None, :]
        return jnp.where(s > 0, s, far)

    def pairs(self, positions: Array, own: Array, near: Array, box: Array, dtype: Any) -> Any:
        """x_i - x_j along each axis and s, with derivatives; positions (slots, 3)."""
        raw = own - self.there(positions, near)
        d = (raw - box * jnp.round(raw / box)).astype(dtype)
        return d, self.separated(jnp.sum(d * d, axis=-1), near, box)

    def of_kinds(self, params: PyTree, near: Array, kind: Array | None) -> PyTree:
        if self.kinds is None or kind is None:
            return params
        return of_pairs(params, kind, self.there(self.kinds, near))

    def each(self, block: Callable[..., PyTree], *values: Array) -> PyTree:
        """`block(near, kinds, *values)` of every block of rows, stacked."""
        near = self.clusters.near.reshape(-1, self.size, self.room)
        kinds = None if self.kinds is None else self.own(self.kinds)
        given = near, kinds, *map(self.own, values)
        if near.shape[0] == 1:
            out = block(*jax.tree.map(lambda x: x[0], given))
            return jax.tree.map(lambda x: x[None], out)
        return jax.lax.map(lambda args: block(*args), given)

    def atomwise(self, values: Array) -> Array:
        """(blocks, rows, ROW, ...) as (atoms, ...), in the order of the atoms."""
        return fetch(values.reshape(self.slots, *values.shape[3:]), self.clusters.place)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def cluster_forces(
    force_factor: Radial,
    dtype: Any,
    params: PyTree,
    positions: Float[Array, "atoms 3"],
    box: Float[Array, "3"],
    clusters: Clusters,
    scale: Float[Array, ""],
    species: Species = None,
) -> Float[Array, "atoms 3"]:
    """F_i = Σ_j f(r_ij²) (x_i - x_j), f = -φ'(r)/r, over the pairs of a structure.

    Pairs in `dtype`, sums at the precision of the positions or better; `scale`: a typical force.
    The same to the last bit for every structure that holds all pairs.
    """
    rows = _Rows(clusters, species)
    edges = box.astype(dtype)
    if dtype == jnp.float64:
        u = positions * (1 / edges)
        coordinates, unit = u - jnp.floor(u), edges
    else:
        coordinates, unit = fractions(positions, box), edges * 2.0**-32
    coordinates = rows.sorted(coordinates)

    def add(top: Array, nothing: Array) -> tuple[Array, Array]:
        # XLA would take the pairs out of the loop, and store them, if it saw that they stay.
        where = coordinates + nothing.astype(coordinates.dtype)
        grid = top * 2.0 ** -(BITS_64 if dtype == jnp.float64 else BITS_32)

        def block(near: Array, kind: Any, own: Array) -> tuple[list[Array], Array]:
            d, s = [], jnp.zeros((), dtype)
            for k in range(3):
                raw = own[..., k] - rows.there(where[:, k], near)
                raw = raw - jnp.round(raw) if dtype == jnp.float64 else raw.astype(dtype)
                d.append(raw * unit[k])
                s = s + d[k] * d[k]
            s = rows.separated(s, near, edges)
            f = force_factor(rows.of_kinds(params, near, kind), s) * (1 / grid)
            sums, peak = _summed([_words(f * x) for x in d], jnp.abs(f))
            return [_total(words, rows.room, positions.dtype) for words in sums], peak

        sums, peak = rows.each(block, where)
        forces = jnp.stack([rows.atomwise(x) for x in sums], axis=1)
        # |f| times the cutoff bounds every component of a force, without a root.
        cutoff = jnp.asarray(clusters.plan.cutoff, dtype)
        return forces * grid.astype(positions.dtype), jnp.max(peak) * cutoff * grid

    top = _power_above(scale.astype(dtype) * 2.0**HEADROOM)
    return _settled(add, top, jnp.zeros_like(positions))


def _words(y: Array) -> tuple[Array, ...]:
    """y rounded to integers whose sums are exact: one word of 64 bits, or two of 32 of which the
    low one counts 2⁻²⁰."""
    if y.dtype == jnp.float64:
        return (jax.lax.bitcast_convert_type(y + _MAGIC_64, jnp.int64),)
    high = jax.lax.bitcast_convert_type(y + _MAGIC_32, jnp.int32) - _BIAS_32
    rest = (y - high.astype(jnp.float32)) * 2.0**BITS_32
    return high, jax.lax.bitcast_convert_type(rest + _MAGIC_32, jnp.int32)


def _total(words: tuple[Array, ...], count: int, dtype: Any) -> Array:
    """The sum of `count` terms, without what the bits carry on top."""
    if len(words) == 1:
        return (words[0] - _wrapped(count * _BIAS_64, 64)).astype(dtype)
    low = words[1] - _wrapped(count * _BIAS_32, 32)
    return words[0].astype(dtype) + low.astype(dtype) * 2.0**-BITS_32


def _wrapped(value: int, bits: int) -> Any:
    low = 2 ** (bits - 1)
    return np.asarray((value + low) % 2**bits - low, f"int{bits}")[()]


def _summed(terms: list[tuple[Array, ...]], peak: Array) -> tuple[list[tuple[Array, ...]], Array]:
    """Sums of terms over the last axis, and the largest of `peak` of all, in one pass."""
    words = [word for term in terms for word in term]
    # Positive numbers are in the order of their bits, and a maximum of integers vectorises.
    bits = jax.lax.bitcast_convert_type(peak, words[0].dtype)

    def combine(a: tuple[Array, ...], b: tuple[Array, ...]) -> tuple[Array, ...]:
        return (*map(jax.lax.add, a[:-1], b[:-1]), jax.lax.max(a[-1], b[-1]))

    zeros = (jnp.zeros((), bits.dtype),) * (len(words) + 1)
    out = jax.lax.reduce((*words, bits), zeros, combine, (bits.ndim - 1,))
    each = len(terms[0])
    sums = [tuple(out[k : k + each]) for k in range(0, len(words), each)]
    return sums, jnp.max(jax.lax.bitcast_convert_type(out[-1], peak.dtype))


def _settled(add: Callable[[Array, Array], tuple[Array, Array]], top: Array, like: Array) -> Array:
    """The sum by `add(top, False)`, which holds terms up to `top`, a power of two, and tells how
    large they are; again, with a top that suits, until it does. What comes out is a function of the
    terms alone."""
    kind = top.dtype
    least, most = (
        jnp.asarray(2.0**p, kind) for p in ((-900, 900) if kind == "float64" else (-70, 100))
    )

    def step(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        top, done, _ = carry
        sums, peak = add(top, done)
        fits = (peak == 0) | ((peak < top) & (peak >= top * 2.0**-SPAN))
        better = jnp.where(fits, top, jnp.clip(_power_above(2 * peak), least, most))
        lost = jnp.where(jnp.isfinite(peak) & (peak < most), 0.0, jnp.nan)
        return better, (better == top) | jnp.isnan(lost), sums + lost.astype(sums.dtype)

    start = (jnp.clip(top, least, most), jnp.asarray(False), like)
    return jax.lax.while_loop(lambda carry: ~carry[1], step, start)[2]


def _power_above(x: Array) -> Array:
    """The least power of two over x > 0."""
    return jnp.ldexp(jnp.ones((), x.dtype), jnp.frexp(x)[1])


@cluster_forces.defjvp
def _cluster_forces_jvp(
    force_factor: Radial, dtype: Any, primals: Any, tangents: Any
) -> tuple[Array, Array]:
    _, _, _, clusters, _, species = primals
    rows = _Rows(clusters, species)

    def plain(params: PyTree, positions: Array, box: Array) -> Array:
        x = rows.sorted(positions)

        @jax.checkpoint
        def block(near: Array, kind: Any, own: Array) -> Array:
            d, s = rows.pairs(x, own, near, box, dtype)
            f = force_factor(rows.of_kinds(params, near, kind), s)
            return jnp.sum(f[..., None] * d, axis=2)

        return rows.atomwise(rows.each(block, x)).astype(positions.dtype)

    forces = cluster_forces(force_factor, dtype, *primals)
    return forces, jax.jvp(plain, primals[:3], tangents[:3])[1]


def cluster_sums(
    radial: Radial,
    dtype: Any,
    params: PyTree,
    positions: Float[Array, "atoms 3"],
    box: Float[Array, "3"],
    clusters: Clusters,
    species: Species = None,
) -> PyTree:
    """Σ_{i<j} g(r_ij²) for each leaf g of `radial(params, s)`; the same for every structure."""
    rows = _Rows(clusters, species)
    x = rows.sorted(positions)

    @jax.checkpoint
    def block(near: Array, kind: Any, own: Array) -> PyTree:
        _, s = rows.pairs(x, own, near, box, dtype)
        terms = radial(rows.of_kinds(params, near, kind), s)
        return jax.tree.map(lambda g: sum_in_any_order(g, 2), terms)

    found = rows.each(block, x)
    return jax.tree.map(lambda g: (jnp.sum(rows.atomwise(g)) / 2).astype(positions.dtype), found)


def cluster_pullback(
    force_factor: Radial,
    dtype: Any,
    params: PyTree,
    positions: Float[Array, "atoms 3"],
    box: Float[Array, "3"],
    cotangent: Float[Array, "atoms 3"],
    clusters: Clusters,
    species: Species = None,
) -> tuple[PyTree, Float[Array, "atoms 3"]]:
    """(∂F/∂θ)ᵀ w and (∂F/∂x)ᵀ w in one pass over the pairs; the formulas are `pair_pullback`'s."""
    rows = _Rows(clusters, species)
    x, w = rows.sorted(positions), rows.sorted(cotangent.astype(dtype))
    leaves, tree = jax.tree.flatten(params)

    def block(near: Array, kind: Any, own: Array, own_w: Array) -> tuple[list[Any], list[Array]]:
        d, s = rows.pairs(x, own, near, box, dtype)
        dw = own_w - rows.there(w, near)
        of_pair = rows.of_kinds(params, near, kind)
        # As large as the pairs, so that each has a cotangent of its own.
        spread = jax.tree.map(lambda p: jnp.broadcast_to(p, s.shape), of_pair)
        f, transpose = jax.vjp(force_factor, spread, s)
        ct, s_bar = transpose(jnp.sum(d * dw, axis=-1) / 2)
        other = None if rows.kinds is None else rows.there(rows.kinds, near)
        split = [by_kind(c, p, other) for c, p in zip(jax.tree.leaves(ct), leaves, strict=True)]
        parts = [f * dw[..., k] + 4 * s_bar * d[..., k] for k in range(3)]
        sums = totals([*parts, *(term for terms in split for term in terms)], 2)
        counts = np.cumsum([3] + [len(terms) for terms in split])
        return [sums[a:b] for a, b in itertools.pairwise(counts)], sums[:3]

    each, parts = rows.each(block, x, w)
    # Empty slots repeat an atom: only what is fetched back for an atom counts.
    back = [
        gathered([rows.atomwise(s) for s in sums], leaf, species)
        for sums, leaf in zip(each, leaves, strict=True)
    ]
    moved = jnp.stack([rows.atomwise(part) for part in parts], axis=1)
    return jax.tree.unflatten(tree, back), moved

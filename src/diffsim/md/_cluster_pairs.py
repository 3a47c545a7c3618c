"""Sums over the pairs of a cluster structure: rows of four atoms against the atoms near them.

Forces are summed in integers. Integer addition is associative: XLA may therefore vectorise the sum,
which it may not with floating point, and the result is the same to the last bit whatever the order,
the structure or its history. Each term is rounded to a multiple of a power of two, 2⁻⁵¹ or (in two
words of 32 bits) 2⁻⁴⁰ of the largest it can hold. That largest follows from the potential's scale
of force, or, where the strongest pair is far from it, from that pair, in another pass.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from ._box import distinct
from ._chosen import fetch
from ._cluster_plan import ROW
from ._clusters import Clusters, fractions
from ._list_pairs import sum_in_any_order
from ._species import Species, by_kind, gathered, of_pairs

Radial = Callable[[PyTree, Array], Any]

HEADROOM = 9  # bits of the largest term above the scale of force: a hot liquid needs eight
SPAN = 12  # bits below the largest term where the strongest pair may be, that of a cold solid, say
BITS_64 = 51  # of a term in one word, and in the high and the low of two
BITS_32 = 20
SAMPLE = 16  # rows, or some more, on which the terms of a pullback are sized up
SLACK = 5  # bits that the largest of all may be above the largest of those

# 2ⁿ + 2ⁿ⁻¹ + k in floating point has the integer k in its last bits.
_MAGIC_32, _MAGIC_64 = np.float32(1.5 * 2**23), 1.5 * 2.0**52
_BIAS_32 = int(_MAGIC_32.view(np.int32))
_BIAS_64 = int(np.float64(_MAGIC_64).view(np.int64))


class _Terms(NamedTuple):
    """Terms of each pair in groups of one size each, and bounds of those sizes."""

    of: list[list[Array]]
    bounds: list[Array]


class _Rows:
    """Walks the rows of a structure in blocks; per-atom arrays in the order of the slots."""

    def __init__(self, clusters: Clusters, species: Species):
        self.clusters, self.slots = clusters, clusters.order.shape[0]
        # One more slot for fillers. Empty ones stand where the last atom is; nobody lists them.
        self.atom = jnp.pad(jnp.minimum(clusters.order, clusters.place.shape[0] - 1), (0, 1))
        self.species = species
        self.kinds = None if species is None else self.sorted(species)

    def sorted(self, values: Array) -> Array:
        """(atoms, ...) in the order of the slots, (slots + 1, ...)."""
        return fetch(values, self.atom)

    def groups(self, *values: Array) -> list[tuple[Any, ...]]:
        """For each group of rows what is near them, their kinds, and values (atoms, ...) of their
        own atoms, (blocks, rows, ROW, 1, ...)."""
        blocks = self.clusters.plan.blocks[0]
        own = lambda x: fetch(x, self.clusters.own).reshape(blocks, -1, ROW, 1, *x.shape[1:])  # noqa: E731
        given = jax.tree.map(own, (self.species, *values))
        ends = np.cumsum([near.shape[1] for near in self.clusters.near])
        cut = [
            jax.tree.map(lambda x: x[:, end - near.shape[1] : end], given)  # noqa: B023
            for near, end in zip(self.clusters.near, ends, strict=True)
        ]
        return [(near, *mine) for near, mine in zip(self.clusters.near, cut, strict=True)]

    def there(self, values: Array, near: Array) -> Array:
        """Values of what is near, (rows, 1, room, ...)."""
        return fetch(values, near)[:, None]

    def along_axes(self, values: Array, near: Array) -> list[Array]:
        """Of vectors, along each axis (rows, 1, room). One gather of three: as large as XLA wants
        it before it gives both threads a share."""
        found = fetch(values, near)[:, None]
        return [found[..., k] for k in range(3)]

    def coordinates(self, positions: Array, box: Array, dtype: Any) -> tuple[Array, Array]:
        """Fractions of the box, (atoms, 3), whose differences round to minimum images, and what
        turns them into lengths."""
        edges = box.astype(dtype)
        if dtype == jnp.float64:
            u = positions * (1 / edges)
            return u - jnp.floor(u), edges
        return fractions(positions, box), edges * 2.0**-32

    def separations(
        self, where: Array, unit: Array, own: Array, near: Array
    ) -> tuple[list[Array], Array]:
        """x_i - x_j along each axis, and s; of `coordinates`, axis by axis, which vectorises."""
        d, s = [], jnp.zeros((), unit.dtype)
        for k, other in enumerate(self.along_axes(where, near)):
            raw = own[..., k] - other
            raw = raw - jnp.round(raw) if unit.dtype == jnp.float64 else raw.astype(unit.dtype)
            d.append(raw * unit[k])
            s = s + d[k] * d[k]
        return d, s

    def separated(self, s: Array, near: Array, box: Array, nothing: Array | int = 0) -> Array:
        """s = r², and beyond every cutoff for what is no pair: masked at r = 0 it would turn
        derivatives into NaN (jax-md#258)."""
        far = jnp.square(jnp.min(box)).astype(s.dtype)
        real = jnp.broadcast_to(near[:, None], s.shape) < self.slots + nothing
        return jnp.where(distinct(s, box) & real, s, far)

    def pairs(self, positions: Array, own: Array, near: Array, box: Array, dtype: Any) -> Any:
        """x_i - x_j along each axis and s, with derivatives; positions (slots + 1, 3)."""
        raw = own - self.there(positions, near)
        d = (raw - box * jnp.round(raw / box)).astype(dtype)
        return d, self.separated(jnp.sum(d * d, axis=-1), near, box)

    def of_kinds(
        self, params: PyTree, near: Array, kind: Array | None, nothing: Array | int = 0
    ) -> PyTree:
        """Parameters of each pair; in a loop with its `nothing`, or XLA would store them all."""
        if self.kinds is None or kind is None:
            return params
        return of_pairs(params, kind + nothing, self.there(self.kinds, near))

    def each(self, block: Callable[..., PyTree], *values: Array) -> PyTree:
        """`block(near, kinds, *own values)` of every block of rows: what it has for each row one
        after the other, single numbers stacked."""
        return self.joined(self.of_groups(block, *values))

    def of_groups(self, block: Callable[..., PyTree], *values: Array) -> list[PyTree]:
        """The same, group by group."""
        return [self._blocks(block, given) for given in self.groups(*values)]

    def joined(self, found: list[PyTree]) -> PyTree:
        return jax.tree.map(lambda *x: jnp.concatenate(x, axis=1 if x[0].ndim > 1 else 0), *found)

    def _blocks(self, block: Callable[..., PyTree], given: tuple[Any, ...]) -> PyTree:
        if self.clusters.plan.blocks[0] == 1:
            out = block(*jax.tree.map(lambda x: x[0], given))
            return jax.tree.map(lambda x: x[None], out)
        return jax.lax.map(lambda args: block(*args), given)

    def atomwise(self, values: Array) -> Array:
        """(blocks, rows, ROW, ...) as (atoms, ...), in the order of the atoms."""
        return fetch(values.reshape(-1, *values.shape[3:]), self.clusters.at)


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
    The same to the last bit for every structure that holds all pairs, NaN for one that overflowed.
    """
    rows = _Rows(clusters, species)
    edges = box.astype(dtype)
    coordinates, unit = rows.coordinates(positions, box, dtype)
    there = rows.sorted(coordinates)

    def add(tops: Array, nothing: Array) -> tuple[PyTree, Array]:
        # XLA would take the pairs out of the loop, and store them, if it saw that they stay.
        where = there + nothing
        grid = _grid(tops[0])

        def block(near: Array, kind: Any, own: Array) -> tuple[list[Array], list[Array]]:
            d, s = rows.separations(where, unit, own, near)
            s = rows.separated(s, near, edges, nothing)
            f = force_factor(rows.of_kinds(params, near, kind, nothing), s) * (1 / grid)
            sums, peaks = _summed([_words(f * x, nothing) for x in d], [jnp.abs(f)])
            totals = [_total(words, near.shape[1], positions.dtype) for words in sums]
            unit_of_sums = clusters.spoil(grid.astype(positions.dtype))
            return [x * unit_of_sums for x in totals], peaks

        found = rows.of_groups(block, coordinates)
        # |f| times the cutoff bounds every component of a force, without a root.
        cutoff = jnp.asarray(clusters.plan.cutoff, dtype)
        peak = jnp.max(jnp.asarray([jnp.max(peaks[0]) for _, peaks in found])) * cutoff * grid
        return [sums for sums, _ in found], peak[None]

    top = _power_above(scale.astype(dtype) * 2.0**HEADROOM)
    forces = rows.joined(_settled(add, top[None], SPAN))
    return jnp.stack([rows.atomwise(x) for x in forces], axis=1)


def _words(y: Array, nothing: Array) -> tuple[Array, ...]:
    """y rounded to integers whose sums are exact: one word of 64 bits, or two of 32 of which the
    low one counts 2⁻²⁰. A constant that XLA knew would be taken off again without rounding."""
    if y.dtype == jnp.float64:
        return (jax.lax.bitcast_convert_type(y + _MAGIC_64, jnp.int64),)
    magic = _MAGIC_32 + nothing
    high = y + magic
    rest = (y - (high - magic)) * 2.0**BITS_32
    return tuple(jax.lax.bitcast_convert_type(x, jnp.int32) for x in (high, rest + magic))


def _total(words: tuple[Array, ...], count: int, dtype: Any) -> Array:
    """The sum of `count` terms, without what the bits carry on top."""
    if len(words) == 1:
        return (words[0] - _wrapped(count * _BIAS_64, 64)).astype(dtype)
    high, low = (word - _wrapped(count * _BIAS_32, 32) for word in words)
    return high.astype(dtype) + low.astype(dtype) * 2.0**-BITS_32


def _wrapped(value: int, bits: int) -> Any:
    low = 2 ** (bits - 1)
    return np.asarray((value + low) % 2**bits - low, f"int{bits}")[()]


def _grid(top: Array) -> Array:
    """What terms up to `top` are rounded to multiples of."""
    return top * 2.0 ** -(BITS_64 if top.dtype == jnp.float64 else BITS_32)


def _summed(
    terms: list[tuple[Array, ...]], peaks: list[Array]
) -> tuple[list[tuple[Array, ...]], list[Array]]:
    """Sums of terms over the last axis, and the largest of each of `peaks` of all, in one pass."""
    words = [word for term in terms for word in term]
    # Positive numbers are in the order of their bits, and a maximum of integers vectorises.
    kind = peaks[0].dtype
    whole = jnp.int64 if kind == jnp.float64 else jnp.int32
    bits = [jax.lax.bitcast_convert_type(peak, whole) for peak in peaks]
    split = len(words)

    def combine(a: tuple[Array, ...], b: tuple[Array, ...]) -> tuple[Array, ...]:
        sums = map(jax.lax.add, a[:split], b[:split])
        return (*sums, *map(jax.lax.max, a[split:], b[split:]))

    shape = jnp.broadcast_shapes(*(x.shape for x in (*words, *bits)))
    operands = tuple(jnp.broadcast_to(x, shape) for x in (*words, *bits))
    zeros = (jnp.zeros((), whole),) * len(operands)
    out = iter(jax.lax.reduce(operands, zeros, combine, (len(shape) - 1,)))
    sums = [tuple(next(out) for _ in term) for term in terms]
    return sums, [jnp.max(jax.lax.bitcast_convert_type(x, kind)) for x in out]


def _settled(add: Callable[[Array, Array], tuple[PyTree, Array]], tops: Array, span: int) -> PyTree:
    """The sums by `add(tops, False)`, which holds terms up to `tops`, powers of two, and tells how
    large they are; again, with tops that suit, until it does: the largest term at most `span` bits
    under its top. What comes out is a function of the terms alone."""
    kind = tops.dtype
    least, most = (
        jnp.asarray(2.0**p, kind) for p in ((-900, 900) if kind == "float64" else (-70, 100))
    )

    def step(carry: tuple[Array, Array, PyTree]) -> tuple[Array, Array, PyTree]:
        tops, done, _ = carry
        sums, peaks = add(tops, done)
        fits = (peaks == 0) | ((peaks < tops) & (peaks >= tops * 2.0**-span))
        better = jnp.where(fits, tops, jnp.clip(_power_above(2 * peaks), least, most))
        lost = jnp.where(jnp.all(jnp.isfinite(peaks) & (peaks < most)), 0.0, jnp.nan)
        sums = jax.tree.map(lambda x: x + lost.astype(x.dtype), sums)
        return better, jnp.all(better == tops) | jnp.isnan(lost), sums

    shapes = jax.eval_shape(add, tops, jnp.asarray(False))[0]
    like = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    start = (jnp.clip(tops, least, most), jnp.asarray(False), like)
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

        return rows.atomwise(rows.each(block, positions)).astype(positions.dtype)

    forces = cluster_forces(force_factor, dtype, *primals)
    return forces, clusters.spoil(jax.jvp(plain, primals[:3], tangents[:3])[1])


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

    found = rows.each(block, positions)
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
    """(∂F/∂θ)ᵀ w and (∂F/∂x)ᵀ w in one pass over the pairs; the formulas are `pair_pullback`'s.

    Summed in integers, as the forces are, because that vectorises. How large the terms come is
    found on some of the rows first.
    """
    rows = _Rows(clusters, species)
    edges, kind = box.astype(dtype), positions.dtype
    coordinates, unit = rows.coordinates(positions, box, dtype)
    largest = jnp.maximum(jnp.max(jnp.abs(cotangent)), jnp.finfo(dtype).tiny).astype(dtype)
    there, w_own = rows.sorted(coordinates), cotangent.astype(dtype) / largest
    w = rows.sorted(w_own)
    leaves, tree = jax.tree.flatten(params)

    def terms(
        near: Array, of: Any, own: Array, own_w: Array, where: Array, nothing: Array | int = 0
    ) -> _Terms:
        """What each pair gives to the positions and to each leaf; for tables, to each kind."""
        d, s = rows.separations(where, unit, own, near)
        s = rows.separated(s, near, edges, nothing)
        dw = [own_w[..., k] - other for k, other in enumerate(rows.along_axes(w, near))]
        g = d[0] * dw[0] + d[1] * dw[1] + d[2] * dw[2]
        # As large as the pairs, so that each has a cotangent of its own.
        spread = jax.tree.map(
            lambda p: jnp.broadcast_to(p, s.shape), rows.of_kinds(params, near, of, nothing)
        )
        f, transpose = jax.vjp(force_factor, spread, s)
        ct, s_bar = transpose(g / 2)
        other = None if rows.kinds is None else rows.there(rows.kinds, near)
        split = [by_kind(c, p, other) for c, p in zip(jax.tree.leaves(ct), leaves, strict=True)]
        moved = [f * dw[k] + 4 * s_bar * d[k] for k in range(3)]
        bound = 2 * jnp.abs(f) + 4 * clusters.plan.cutoff * jnp.abs(s_bar)
        return _Terms([moved, *split], [bound, *map(jnp.abs, jax.tree.leaves(ct))])

    apart = max(1, math.prod(clusters.plan.blocks) // SAMPLE)

    def peaks_of_some() -> Array:
        found = []
        for given in rows.groups(coordinates, w_own):
            some = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[::apart], given)
            near, of, own, own_w = some
            bounds = terms(near, of, own, own_w, there).bounds
            found.append(_summed([], bounds)[1])
        return jnp.max(jnp.asarray(found), axis=0)

    def add(tops: Array, nothing: Array) -> tuple[PyTree, Array]:
        where = there + nothing
        grids = _grid(tops)

        def block(near: Array, of: Any, own: Array, own_w: Array) -> tuple[PyTree, list[Array]]:
            found = terms(near, of, own, own_w + nothing, where, nothing)
            scaled = [x * (1 / grid) for xs, grid in zip(found.of, grids, strict=True) for x in xs]
            sums, peaks = _summed([_words(x, nothing) for x in scaled], found.bounds)
            totals = iter([_total(words, near.shape[1], kind) for words in sums])
            each = zip(found.of, grids, strict=True)
            return [[next(totals) * grid.astype(kind) for _ in xs] for xs, grid in each], peaks

        found = rows.of_groups(block, coordinates, w_own)
        peaks = [jnp.max(jnp.stack(x)) for x in zip(*(peaks for _, peaks in found), strict=True)]
        return [sums for sums, _ in found], jnp.stack(peaks)

    tops = _power_above(peaks_of_some() * 2.0 ** (SLACK if apart > 1 else 0))
    sums = rows.joined(_settled(add, tops, 2 * SPAN))
    # Empty slots repeat an atom: only what is fetched back for an atom counts.
    moved, *split = [[rows.atomwise(x) * largest.astype(kind) for x in xs] for xs in sums]
    back = [gathered(x, leaf, species) for x, leaf in zip(split, leaves, strict=True)]
    return jax.tree.unflatten(tree, back), jnp.stack(moved, axis=1)

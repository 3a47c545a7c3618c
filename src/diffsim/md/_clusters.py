"""Clusters of neighbouring atoms and what is near each: the structure behind the tiled pair sums.

Atoms are sorted into tiles of eight by cutting the box into slabs along x, strips along y and runs
along z that hold equal numbers: no cell can overflow, however uneven the density. Half a tile is a
row, four atoms that share one list of the atoms within the cutoff and the skin of any of them. The
lists come from boxes around strips, then around tiles, then from the atoms themselves, all in
arrays of fixed size: what does not fit sets a flag. Coordinates are integer fractions of the box,
whose overflow is the periodic boundary.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from ._chosen import WORD, chosen, fetch
from ._neighbours import GROWTH, SAFETY

EIGHT = 3  # as a power of two
TILE = 2**EIGHT  # atoms a tile
ROW = 4  # atoms that share a list; with 8 the forces of a liquid took 12 to 20 % longer
BLOCK = 1024  # rows at a time: what they fetch stays in the cache, and two threads find work
EVEN = 16  # blocks have a multiple of these: 250 rows took twice as long as 256
TILES = 512  # tiles at a time, when their neighbours are looked for
LANES = 16  # slots of a list come in this many: whole vector registers
# Of what is expected near a strip, a tile and a row: a liquid needs more than its lattice.
SPARE = (1.3, 1.35, 1.15)
FULLEST = 1.15  # the most tiles that a tile of an even fluid has near it, over the mean
BITS = np.int32(2**31 - 1)  # a key beyond those of all atoms
LOOSE = 2.0  # skins that an atom may go before all are sorted into tiles anew
NOWHERE = 2.0  # boxes from the middle of this one
RAGGED = 3e-7  # of the box: what float32 may lose of an edge

Positions = Float[Array | np.ndarray, "atoms 3"]
Box = Float[Array | np.ndarray, "3"]


@dataclasses.dataclass(frozen=True)
class ClusterPlan:
    """The shapes of a structure, known before compilation.

    `grid`: slabs, strips a slab, tiles a strip; `strips`, `tiles`, `atoms`: room for what is near a
    strip, a tile and a row; `cutoff` and `skin` [length].
    """

    grid: tuple[int, int, int]
    strips: int
    tiles: int
    atoms: int
    cutoff: float
    skin: float

    @property
    def reach(self) -> float:
        return self.cutoff * (1 + SAFETY) + self.skin

    @property
    def columns(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def slots(self) -> int:
        return TILE * math.prod(self.grid)

    @property
    def blocks(self) -> tuple[int, int]:
        """How many blocks of rows, and how many rows in each; the last rows are filler."""
        rows = self.slots // ROW
        count = -(-rows // BLOCK)
        return count, -(-rows // (count * EVEN)) * EVEN

    @property
    def room(self) -> tuple[int, int, int]:
        return self.strips, self.tiles, self.atoms


class Clusters(eqx.Module):
    """Which atoms are near which, and where they were when that was found out.

    `order` (slots,): the atom in each slot, empty slots last; `place` (atoms,): the slot of each
    atom; `sorted_at`: fractions of the box where atoms were when they were sorted into slots;
    `near` (rows, room): the slots within reach of a row, then the number of slots as filler;
    `reference`: positions at the last rebuild; `needed`: the most strips, tiles and atoms that were
    near one, over all rebuilds; `rebuilds`: how many there were since it was made.
    """

    order: Int[Array, " slots"]
    place: Int[Array, " atoms"]
    sorted_at: Int[Array, "atoms 3"]
    near: Int[Array, "rows room"]
    reference: Float[Array, "atoms 3"]
    needed: Int[Array, "3"]
    rebuilds: Int[Array, ""]
    plan: ClusterPlan = eqx.field(static=True)

    @property
    def overflowed(self) -> Bool[Array, ""]:
        """Whether pairs are missing."""
        return jnp.any(self.needed > jnp.asarray(self.plan.room, jnp.int32))

    @property
    def room(self) -> tuple[int, int, int]:
        """Strips near a strip, tiles near a tile, atoms near a row."""
        return self.plan.room

    def with_room(self, room: tuple[int, ...]) -> Clusters:
        """The structure with that room, for arrays of such shapes."""
        strips, tiles, atoms = room
        plan = dataclasses.replace(self.plan, strips=strips, tiles=tiles, atoms=atoms)
        return dataclasses.replace(self, plan=plan)

    def updated(self, positions: Positions, box: Box) -> Clusters:
        """The structure after a move: as it was, or anew where an atom went half the skin."""
        old, positions, box = jax.lax.stop_gradient((self, jnp.asarray(positions), box))
        d = positions - old.reference
        moved = d[:, 0] * d[:, 0] + d[:, 1] * d[:, 1] + d[:, 2] * d[:, 2]
        far = jnp.max(moved) > (self.plan.skin / 2) ** 2 * (1 - SAFETY)

        def rebuild(carry: tuple[Clusters, Array]) -> tuple[Clusters, Array]:
            new = _built(self.plan, positions, jnp.asarray(box, positions.dtype), carry[0])
            needed = jnp.maximum(new.needed, carry[0].needed)
            counted = eqx.tree_at(
                lambda c: (c.needed, c.rebuilds), new, (needed, carry[0].rebuilds + 1)
            )
            return counted, jnp.zeros_like(far)

        # A loop that runs once or not at all: a batch of conditionals would rebuild at every step.
        return jax.lax.while_loop(lambda carry: carry[1], rebuild, (old, far))[0]

    def spoil(self, tree: PyTree) -> PyTree:
        """NaN, in derivatives too, for what a structure that overflowed would get wrong."""
        factor = jnp.where(self.overflowed, jnp.nan, 1.0)
        return jax.tree.map(lambda x: x * factor.astype(x.dtype), tree)


def make_clusters(
    positions: Positions, box: Box, cutoff: float, skin: float, previous: Clusters | None = None
) -> Clusters:
    """Host side: a structure for these positions, with `GROWTH` times the room of `previous`."""
    x, edges = jnp.asarray(positions), np.asarray(box, float)
    # Shapes of the first look are a guess; what it needs comes out, and a second has the room.
    plan = _guess(x.shape[0], edges, cutoff, skin)
    if previous is not None:
        plan = _roomier(plan, [math.ceil(GROWTH * room) for room in previous.room])
    with jax.ensure_compile_time_eval():
        box = jnp.asarray(edges, x.dtype)
        while True:
            made = _built_once(plan, x, box)
            needed = zip(SPARE, np.asarray(made.needed), strict=True)
            enough = _roomier(plan, [math.ceil(spare * n) for spare, n in needed])
            if enough == plan:
                return made
            plan = enough


def _guess(atoms: int, edges: np.ndarray, cutoff: float, skin: float) -> ClusterPlan:
    """Room for an even density, in whole steps: equal systems get equal shapes."""
    grid = _grid(atoms, edges)
    cell = edges / np.asarray(grid)
    cell[0] *= TILE * math.prod(grid) / atoms  # slabs are full but for the last
    outer, spread = cutoff + skin, cell * (TILE - 1) / (TILE + 1)
    density = atoms / math.prod(edges)
    # A box of edges e widened by r on all sides, its corners round.
    widened = lambda e, r: (  # noqa: E731
        math.prod(e)
        + 2 * r * (e[0] * e[1] + e[1] * e[2] + e[2] * e[0])
        + math.pi * r * r * sum(e)
        + 4 / 3 * math.pi * r**3
    )
    flat = 2 * cell[:2]
    strips = (flat[0] * flat[1] + 2 * outer * sum(flat) + math.pi * outer**2) / math.prod(cell[:2])
    tiles = FULLEST * widened(2 * spread, outer) / math.prod(cell)
    near = density * widened(spread * 0.6, outer)
    plan = ClusterPlan(grid, 0, 0, 0, cutoff, skin)
    expected = zip(SPARE, (strips, tiles, near), strict=True)
    return _roomier(plan, [math.ceil(spare * room) for spare, room in expected])


def _grid(atoms: int, edges: np.ndarray) -> tuple[int, int, int]:
    """Slabs, strips and tiles: nearly cubic, few slots empty."""
    tiles = -(-atoms // TILE)
    edge = (math.prod(edges) / tiles) ** (1 / 3)
    best, least = (1, 1, tiles), math.inf
    spans = [range(max(1, int(0.8 * n)), max(1, int(1.25 * n)) + 2) for n in edges[:2] / edge]
    for slabs in spans[0]:
        for strips in spans[1]:
            runs = -(-tiles // (slabs * strips))
            cell = edges / (slabs, strips, runs)
            cost = slabs * strips * runs / tiles * float(max(cell) / min(cell)) ** 0.3
            if cost < least:
                best, least = (slabs, strips, runs), cost
    return best


def _roomier(plan: ClusterPlan, least: Sequence[int]) -> ClusterPlan:
    """The plan with at least this room, up to what there is at all."""
    strips, tiles, atoms = (max(a, int(b)) for a, b in zip(plan.room, least, strict=True))
    all_tiles = math.prod(plan.grid)
    return dataclasses.replace(
        plan,
        strips=min(strips, plan.columns),
        tiles=-(-min(tiles, all_tiles) // 4) * 4,  # of 8 atoms: whole words of a mask
        atoms=min(-(-atoms // LANES) * LANES, -(-plan.slots // LANES) * LANES),
    )


def fractions(positions: Array, box: Array) -> Int[Array, "atoms 3"]:
    """x/L in units of 2⁻³² that wrap around: differences are minimum images."""
    u = positions * (1 / box)
    if u.dtype == jnp.float64:
        # The low bits of 2⁵² + 2⁵¹ + n hold n: a conversion would first test for overflow.
        return jax.lax.bitcast_convert_type(u * 2.0**32 + 1.5 * 2.0**52, jnp.int64).astype(
            jnp.int32
        )
    centred = u - jnp.floor(u) - jnp.asarray(0.5, u.dtype)
    return (centred * 2.0**32).astype(jnp.int32) ^ jnp.int32(-(2**31))


def _built(
    plan: ClusterPlan, positions: Array, box: Array, before: Clusters | None = None
) -> Clusters:
    keys = jnp.minimum(fractions(positions, box) ^ jnp.int32(-(2**31)), BITS - 1)
    edges, atoms = box.astype(jnp.float32), positions.shape[0]
    order, place, then = _slots(plan, keys, edges, before)
    # As far as they went since, whatever side of the box they are on: neighbours stay together.
    whole = (then.astype(jnp.float32) + (keys - then).astype(jnp.float32)) * 2.0**-32
    where = fetch(jnp.pad(whole, ((0, plan.slots - atoms), (0, 0))), order)
    boxes = _tile_boxes(plan, where, atoms)
    strips, most_strips = _near_strips(plan, boxes, edges)
    tiles, most_tiles = _near_tiles(plan, boxes, edges, strips)
    near, most = _near_atoms(plan, where, atoms, edges, tiles)
    filler = math.prod(plan.blocks) - near.shape[0]
    if filler:
        near = jnp.pad(near, ((0, filler), (0, 0)), constant_values=plan.slots)
    needed = jnp.stack([most_strips, most_tiles, most]).astype(jnp.int32)
    none = jnp.zeros((), jnp.int32)
    return Clusters(order, place, then, near, positions, needed, none, plan)


_built_once = jax.jit(_built, static_argnums=0)


def _slots(
    plan: ClusterPlan, keys: Array, edges: Array, before: Clusters | None
) -> tuple[Array, Array, Array]:
    """The order of the slots, the place of each atom, and where atoms were when sorted: as before
    as long as tiles hold together, because sorts are slow and XLA runs them on one core."""
    if before is None:
        return *_sorted(plan, keys), keys
    old = before.order, before.place, before.sorted_at
    d = (keys - before.sorted_at).astype(jnp.float32) * (edges * 2.0**-32)
    far = jnp.max(jnp.sum(d * d, axis=1)) > (LOOSE * plan.skin) ** 2
    sort = lambda carry: ((*_sorted(plan, keys), keys), jnp.zeros_like(far))  # noqa: E731
    return jax.lax.while_loop(lambda carry: carry[1], sort, (old, far))[0]


def _sorted(plan: ClusterPlan, keys: Array) -> tuple[Array, Array]:
    """The order of the slots and the place of each atom. Empty slots have the largest keys, hence
    come last in every sort and in the end."""
    atoms = keys.shape[0]
    padded = jnp.pad(keys, ((0, plan.slots - atoms), (0, 0)), constant_values=BITS)
    slots = jnp.arange(plan.slots, dtype=jnp.int32)
    order = slots
    for axis, runs in enumerate((1, plan.grid[0], plan.columns)):
        rows = order.reshape(runs, -1)
        keyed = fetch(padded[:, axis], rows), rows
        order = jax.lax.sort(keyed, dimension=1, num_keys=1)[1].reshape(-1)
    place = jnp.zeros_like(slots).at[order].set(slots, unique_indices=True)
    return order, place[:atoms]


_Boxes = list[tuple[Array, Array]]  # lowest and highest along each axis, in fractions


def _tile_boxes(plan: ClusterPlan, where: Array, atoms: int) -> _Boxes:
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


def _extents(boxes: _Boxes) -> _Boxes:
    """Middles and half widths."""
    return [((low + high) / 2, (high - low) / 2 + RAGGED) for low, high in boxes]


def _gap(one: _Boxes, other: _Boxes, edges: Array, axes: Sequence[int]) -> Array:
    """Least squared distance between boxes, of middles and half widths, periodic."""
    total = jnp.zeros((), jnp.float32)
    for k in axes:
        d = one[k][0] - other[k][0]
        d = jnp.abs(d - jnp.round(d)) - one[k][1] - other[k][1]
        total = total + jnp.square(jnp.maximum(d, 0) * edges[k])
    return total


def _near_strips(plan: ClusterPlan, tiles: _Boxes, edges: Array) -> tuple[Array, Array]:
    """(columns, room) strips within reach of each, -1 as filler, and the most there are."""
    rows = [(a.reshape(plan.columns, -1), b.reshape(plan.columns, -1)) for a, b in tiles]
    boxes = _extents([(jnp.min(low, axis=1), jnp.max(high, axis=1)) for low, high in rows])
    one = [(m[:, None], h[:, None]) for m, h in boxes]
    near = _gap(one, [(m[None], h[None]) for m, h in boxes], edges, (0, 1)) < plan.reach**2
    return chosen(near, plan.strips)


def _near_tiles(
    plan: ClusterPlan, tiles: _Boxes, edges: Array, strips: Array
) -> tuple[Array, Array]:
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


def _near_atoms(
    plan: ClusterPlan, where: Array, atoms: int, edges: Array, tiles: Array
) -> tuple[Array, Array]:
    """(rows, room) slots within reach of each row, and the most there are."""
    rows, none = TILE // ROW, math.prod(plan.grid)
    # What is not there is nowhere, and no distance from it is within reach. An empty slot looks
    # from where the first of its tile is. Fetched, or XLA does all this anew for every pair.
    real = np.arange(plan.slots + TILE) < atoms
    columns = [jnp.where(real, jnp.pad(where[:, k], (0, TILE)), jnp.nan) for k in range(3)]
    looks = np.arange(plan.slots, dtype=np.int32)
    own = [fetch(c, np.where(real[looks], looks, looks - looks % TILE)) for c in columns]
    reach = plan.reach + 2 * RAGGED * jnp.max(edges)

    def of_some(tiles: Array, *own: Array) -> tuple[Array, Array]:
        count = tiles.shape[0]
        listed = jnp.where(tiles < 0, none, tiles)[:, :, None]
        index = (listed * TILE + jnp.arange(TILE, dtype=jnp.int32)).reshape(count, -1)
        there = [fetch(column, index)[:, None] for column in columns]
        nearest = jnp.full((), jnp.inf, jnp.float32)
        for i in range(ROW):
            s = jnp.zeros((), jnp.float32)
            for k in range(3):
                d = own[k].reshape(count, rows, ROW, 1)[:, :, i] - there[k]
                s = s + jnp.square((d - jnp.round(d)) * edges[k])
            nearest = jnp.minimum(nearest, s)
        found, most = chosen((nearest < reach * reach).reshape(count * rows, -1), plan.atoms)
        row = np.repeat(np.arange(count, dtype=np.int32), rows)[:, None]
        tile = fetch(tiles, (row, jnp.maximum(found, 0) >> EIGHT))
        return jnp.where(found >= 0, (tile << EIGHT) + (found & (TILE - 1)), plan.slots), most

    near, most = _by_blocks(of_some, tiles, *(x.reshape(-1, TILE) for x in own))
    return near[: tiles.shape[0] * rows], most


def _by_blocks(
    fn: Callable[..., tuple[Array, Array]], tiles: Array, *others: Array
) -> tuple[Array, Array]:
    """`fn` of some tiles at a time, so that what it looks at stays in the cache: its rows one after
    the other, and the largest of its second results. Tiles that fill up have nothing near."""
    blocks = -(-tiles.shape[0] // TILES)
    if blocks == 1:
        return fn(tiles, *others)
    more = -tiles.shape[0] % blocks
    filled = [
        jnp.pad(x, ((0, more), (0, 0)), constant_values=-1).reshape(blocks, -1, x.shape[1])
        for x in (tiles, *others)
    ]
    near, most = jax.lax.map(lambda some: fn(*some), tuple(filled))
    return near.reshape(-1, near.shape[-1]), jnp.max(most)

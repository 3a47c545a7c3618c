"""Clusters of neighbouring atoms and what is near each: the structure behind the tiled pair sums.

Atoms are sorted into tiles of eight by cutting the box into slabs along x, strips along y and runs
along z that hold equal numbers: no cell can overflow, however uneven the density. Half a tile is a
row, four atoms that share one list of the atoms within the cutoff and the skin of any of them. The
lists come from boxes around strips, then around tiles, then from the atoms themselves, all in
arrays of fixed size: what does not fit sets a flag. Coordinates are integer fractions of the box,
whose overflow is the periodic boundary.

Lists hold while no atom is further than half the skin from where it was expected: not where it was
when they were made but ahead of it, for that it passes through the sphere around there from one
side to the other. Lists of a liquid last 1.5 times longer.
"""

from __future__ import annotations

import dataclasses
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from ._chosen import fetch
from ._cluster_lists import near_atoms, near_strips, near_tiles, tile_boxes
from ._cluster_plan import ROW, SPARE, ClusterPlan, guess, roomier
from ._neighbours import GROWTH, SAFETY

BITS = np.int32(2**31 - 1)  # a key beyond those of all atoms
AHEAD = 0.9  # of half the skin: as far as atoms are expected ahead of where they are
MIDWAY = 0.75  # of what atoms are likely to go until the next lists; half of it lasts less long
LOOSE = 2.0  # skins that an atom may go before all are sorted into tiles anew

Positions = Float[Array | np.ndarray, "atoms 3"]
Box = Float[Array | np.ndarray, "3"]


class Clusters(eqx.Module):
    """Which atoms are near which, and where they were when that was found out.

    `order` (slots,): the atom in each slot, empty slots last; `place` (atoms,): the slot of each
    atom; `sorted_at`: fractions of the box where atoms were when they were sorted into slots;
    `near`: the slots within reach of each row, (blocks, rows, room), then the number of slots as
    filler, for rows with few atoms near and then for the others; `own` (rows times four): the atoms
    of these rows; `at` (atoms,): the place of each there; `reference`: where atoms were expected at
    the last rebuild, `found_at` where they were, `stepped` the step they then had made; `seen`:
    where they were at the last update; `needed`: the most strips, tiles and atoms that were near
    one, and atoms near most, over all rebuilds; `rebuilds`: how many there were since it was made.
    """

    order: Int[Array, " slots"]
    place: Int[Array, " atoms"]
    sorted_at: Int[Array, "atoms 3"]
    near: tuple[Int[Array, "blocks _ _"], ...]
    own: Int[Array, " places"]
    at: Int[Array, " atoms"]
    reference: Float[Array, "atoms 3"]
    found_at: Float[Array, "atoms 3"]
    stepped: Float[Array, "atoms 3"]
    seen: Float[Array, "atoms 3"]
    needed: Int[Array, "4"]
    rebuilds: Int[Array, ""]
    plan: ClusterPlan = eqx.field(static=True)

    @property
    def overflowed(self) -> Bool[Array, ""]:
        """Whether pairs are missing."""
        return jnp.any(self.needed > jnp.asarray(self.plan.room, jnp.int32))

    @property
    def room(self) -> tuple[int, int, int, int]:
        """Strips near a strip, tiles near a tile, atoms near a row, and near most rows."""
        return self.plan.room

    def with_room(self, room: tuple[int, ...]) -> Clusters:
        """The structure with that room, for arrays of such shapes."""
        strips, tiles, atoms, few = room
        plan = dataclasses.replace(self.plan, strips=strips, tiles=tiles, atoms=atoms, few=few)
        return dataclasses.replace(self, plan=plan)

    def updated(self, positions: Positions, box: Box) -> Clusters:
        """The structure after a move: as it was, or anew where an atom is half the skin from where
        it was expected."""
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
        new = jax.lax.while_loop(lambda carry: carry[1], rebuild, (old, far))[0]
        return dataclasses.replace(new, seen=positions)

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
    plan = guess(x.shape[0], edges, cutoff, skin)
    if previous is not None:
        plan = roomier(plan, [math.ceil(GROWTH * room) for room in previous.room])
    with jax.ensure_compile_time_eval():
        box = jnp.asarray(edges, x.dtype)
        while True:
            made = _built_once(plan, x, box)
            needed = zip(SPARE, np.asarray(made.needed), strict=True)
            enough = roomier(plan, [math.ceil(spare * n) for spare, n in needed])
            if enough == plan:
                return made
            plan = enough


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
    reference, stepped = _expected(plan, positions, before)
    keys = jnp.minimum(fractions(reference, box) ^ jnp.int32(-(2**31)), BITS - 1)
    edges, atoms = box.astype(jnp.float32), positions.shape[0]
    order, place, then = _slots(plan, keys, edges, before)
    # As far as they went since, whatever side of the box they are on: neighbours stay together.
    whole = (then.astype(jnp.float32) + (keys - then).astype(jnp.float32)) * 2.0**-32
    where = fetch(jnp.pad(whole, ((0, plan.slots - atoms), (0, 0))), order)
    boxes = tile_boxes(plan, where, atoms)
    strips, most_strips = near_strips(plan, boxes, edges)
    tiles, most_tiles = near_tiles(plan, boxes, edges, strips)
    found = near_atoms(plan, where, atoms, edges, tiles)
    own, at = _in_rows(plan, order, place, found.first)
    needed = jnp.stack([most_strips, most_tiles, found.most, found.few]).astype(jnp.int32)
    none = jnp.zeros((), jnp.int32)
    places = reference, positions, stepped, positions
    return Clusters(order, place, then, found.near, own, at, *places, needed, none, plan)


_built_once = jax.jit(_built, static_argnums=0)


def _expected(plan: ClusterPlan, positions: Array, before: Clusters | None) -> tuple[Array, Array]:
    """Where atoms are likely to be midway to the next lists, and the step they have just made.

    The step times a number of steps, which is how far atoms went during the last lists along the
    step they had begun with, by least squares: as many as the lists held in a gas, fewer in a
    liquid, none in a crystal that has turned back since.
    """
    if before is None:
        return positions, jnp.zeros_like(positions)
    step = positions - before.seen
    size = jnp.sum(jnp.square(before.stepped))
    along = jnp.sum(before.stepped * (positions - before.found_at))
    steps = jnp.where(size > 0, MIDWAY * along / jnp.where(size > 0, size, 1), 0)
    fastest = jnp.sqrt(jnp.max(jnp.sum(jnp.square(step), axis=1)))
    ahead = jnp.clip(steps, 0, AHEAD * plan.skin / 2 / fastest)
    return positions + ahead * step, step


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


def _in_rows(plan: ClusterPlan, order: Array, place: Array, first: Array) -> tuple[Array, Array]:
    """The atoms of the rows of the lists, and the place of each among them. Empty slots stand where
    the last atom is; nobody lists them."""
    blocks, rows = plan.blocks
    row = (first + rows * np.arange(blocks, dtype=np.int32)[:, None]).reshape(-1)
    filled = jnp.pad(order, (0, blocks * rows * ROW - plan.slots), constant_values=BITS)
    lanes = np.arange(ROW, dtype=np.int32)
    own = fetch(jnp.minimum(filled, place.shape[0] - 1), row[:, None] * ROW + lanes)
    counts = jnp.arange(blocks * rows, dtype=jnp.int32)
    new = jnp.zeros_like(counts).at[row].set(counts, unique_indices=True)
    return own.reshape(-1), fetch(new, place // ROW) * ROW + place % ROW

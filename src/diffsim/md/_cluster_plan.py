"""The shapes of a cluster structure: how atoms are cut into tiles, and the room of its lists."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from ._neighbours import SAFETY

EIGHT = 3  # as a power of two
TILE = 2**EIGHT  # atoms a tile
ROW = 4  # atoms that share a list; with 8 the forces of a liquid took 12 to 20 % longer
BLOCK = 1024  # rows at a time: what they fetch stays in the cache, and two threads find work
EVEN = 16  # blocks have a multiple of these: 250 rows took twice as long as 256
LANES = 16  # slots of a list come in this many: whole vector registers
LONG = 8  # one row of so many may have a list longer than the others'
# Of what is expected near a strip, a tile, a row and most rows: a liquid needs more than its
# lattice.
SPARE = (1.3, 1.35, 1.15, 1.05)
FULLEST = 1.15  # the most tiles that a tile of an even fluid has near it, over the mean
MOSTLY = 0.95  # atoms near all but the fullest eighth of the rows, over those near the fullest


@dataclasses.dataclass(frozen=True)
class ClusterPlan:
    """The shapes of a structure, known before compilation.

    `grid`: slabs, strips a slab, tiles a strip; `strips`, `tiles`, `atoms`: room for what is near a
    strip, a tile and a row; `few`: the same for all but one in `LONG` rows; `cutoff` and `skin`
    [length].
    """

    grid: tuple[int, int, int]
    strips: int
    tiles: int
    atoms: int
    few: int
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
    def long(self) -> int:
        """How many rows of a block have room for `atoms`, where others have it for `few`."""
        return self.blocks[1] // LONG // EVEN * EVEN

    @property
    def groups(self) -> tuple[tuple[int, int], ...]:
        """(rows, room) of a block: lists as long as the longest would be a fifth empty."""
        rows = self.blocks[1]
        if self.few == self.atoms:
            return ((rows, self.atoms),)
        return (rows - self.long, self.few), (self.long, self.atoms)

    @property
    def room(self) -> tuple[int, int, int, int]:
        return self.strips, self.tiles, self.atoms, self.few


def guess(atoms: int, edges: np.ndarray, cutoff: float, skin: float) -> ClusterPlan:
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
    plan = ClusterPlan(grid, 0, 0, 0, 0, cutoff, skin)
    expected = zip(SPARE, (strips, tiles, near, MOSTLY * near), strict=True)
    return roomier(plan, [math.ceil(spare * room) for spare, room in expected])


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


def roomier(plan: ClusterPlan, least: Sequence[int]) -> ClusterPlan:
    """The plan with at least this room, up to what there is at all."""
    strips, tiles, atoms, few = (max(a, int(b)) for a, b in zip(plan.room, least, strict=True))
    all_tiles, whole = math.prod(plan.grid), lambda n: -(-n // LANES) * LANES
    atoms = min(whole(atoms), whole(plan.slots))
    few = min(whole(few), atoms)
    return dataclasses.replace(
        plan,
        strips=min(strips, plan.columns),
        tiles=-(-min(tiles, all_tiles) // 4) * 4,  # of 8 atoms: whole words of a mask
        atoms=atoms,
        few=few if plan.long else atoms,
    )

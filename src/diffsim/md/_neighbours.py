"""JAX-MD's neighbour lists as data: made on the host, rebuilt inside the scan, enlarged on
overflow.

A list holds until some atom has moved by half the skin from where it was at the last rebuild: up to
then every pair within the reach is in it. Its room is fixed when it is made; a list that runs out
of room says so, for as long as it lives.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from .._errors import ConfigError
from ._box import Box, fractions, nearest, places, triclinic, widths
from ._compat import mixed_integers, wrapped

Positions = Float[Array | np.ndarray, "atoms 3"]

GROWTH = 1.5  # of the room, each time a list overflows
SAFETY = 1e-5  # of the reach on top: JAX-MD keeps box and thresholds in float32
CELL_SHARE = 0.7  # cells pay where the 27 around an atom hold at most this part of all
MOST_TRACED = 512  # atoms that may get room for every pair


class Neighbours(eqx.Module):
    """A neighbour list and where the atoms were when it was built.

    `list`: JAX-MD's structure, which its energies take as `neighbor`; `rebuilds`: how often it was
    built anew since it was made.
    """

    list: Any
    rebuilds: Int[Array, ""]

    @property
    def overflowed(self) -> Array:
        """Whether pairs are missing."""
        return self.list.did_buffer_overflow != 0

    @property
    def room(self) -> tuple[int, int]:
        """Slots of the list (an atom's, if it is dense), and of each cell."""
        return self.list.max_occupancy, _cell_room(self.list)

    def with_room(self, room: tuple[int, ...]) -> Neighbours:
        """The structure of a list with that room, for arrays of such shapes."""
        slots, cell = room
        made = self.list.set(max_occupancy=slots)
        if _cell_room(made):
            made = made.set(cell_list_capacity=cell)
        return Neighbours(made, self.rebuilds)

    def updated(self, positions: Positions, box: Box) -> Neighbours:
        """The list after a move: as it was, or built anew where an atom went half the skin."""
        with mixed_integers():
            after = self.list.update(jax.lax.stop_gradient(_listed(positions, box)))
        rebuilt = jnp.any(after.reference_position != self.list.reference_position)
        return Neighbours(after, self.rebuilds + rebuilt)

    def spoil(self, tree: PyTree) -> PyTree:
        """NaN, in derivatives too, for what a list that overflowed would get wrong."""
        factor = jnp.where(self.overflowed, jnp.nan, 1.0)
        return jax.tree.map(lambda x: x * factor.astype(x.dtype), tree)


def make(
    functions: Any,
    positions: Positions,
    box: Box,
    previous: Neighbours | None = None,
    *,
    spare: int = 0,
    cells: Any = None,
) -> Neighbours:
    """Host side: a list for these positions, with `GROWTH` times the room of `previous`.

    `functions`: what `jax_md.partition.neighbor_list` returns. `spare`: slots an atom beyond a
    quarter more than it needs now, which is JAX-MD's measure. `cells`: the cell list's functions,
    where those of equal lists are to be the same objects: code compiled for one then serves all.
    """
    with jax.ensure_compile_time_eval(), mixed_integers():
        x = _listed(positions, box)
        made = functions.allocate(x, extra_capacity=spare)
        if previous is not None:
            made = functions.allocate(x, extra_capacity=spare + _missing(made, previous))
        if cells is not None:
            made = made.set(cell_list_fn=cells)
        return Neighbours(made, jnp.zeros((), jnp.int32))


def _missing(made: Any, previous: Neighbours) -> int:
    """The slots that each atom and each cell of `made` lacks of the room asked for."""
    slots, cell = (math.ceil(GROWTH * room) for room in previous.room)
    atoms_a_slot = 1 if made.format.name == "Dense" else made.reference_position.shape[0]
    lacking = math.ceil((slots - made.max_occupancy) / atoms_a_slot)
    return max(0, lacking, cell - _cell_room(made))


def _cell_room(made: Any) -> int:
    # Lists over several images have no cells.
    return getattr(made, "cell_list_capacity", None) or 0


def make_for_all_pairs(functions: Any, atoms: int, dtype: Any) -> Neighbours:
    """A list that never overflows, for positions that are not known yet (inside jit or vmap)."""
    if atoms > MOST_TRACED:
        raise ConfigError(
            f"a neighbour list for {atoms} atoms needs positions that are not traced",
            key="init",
            allowed=f"init outside of jit and vmap, or up to {MOST_TRACED} atoms",
        )
    with jax.ensure_compile_time_eval(), mixed_integers():
        together = jnp.zeros((atoms, 3), dtype)
        return Neighbours(functions.allocate(together), jnp.zeros((), jnp.int32))


def _listed(positions: Positions, box: Box) -> Array:
    """Where a list has the atoms: inside the box; of lattice vectors, as fractions of the distances
    between its faces, a cuboid in which no two atoms are farther apart along an axis than they
    are."""
    positions, box = jnp.asarray(positions), jnp.asarray(box)
    if not triclinic(box):
        return wrapped(positions, box)
    across = widths(box)
    return wrapped(fractions(positions, box) * across, across)


@functools.lru_cache(maxsize=64)
def list_functions(box: tuple[float, ...], reach: float, skin: float) -> tuple[Any, Any]:
    """JAX-MD's list, and its cell list or None, for pairs up to `reach` in a periodic box, of whose
    array these are the entries."""
    from jax_md import partition

    # As Any: JAX-MD declares JAX arrays where it takes NumPy's too.
    whole = np.reshape(box, (-1, 3)) if len(box) > 3 else np.asarray(box)
    with jax.ensure_compile_time_eval():
        edges: Any = np.asarray(widths(whole))
    single: Any = np.float32(edges)
    cutoff = reach * (1 + SAFETY)
    across = np.floor(edges / (cutoff + skin) * (1 - SAFETY))
    celled = bool(np.min(across) >= 3 and 27 / np.prod(across) <= CELL_SHARE)

    def displacement(a: Array, b: Array, **unused: Any) -> Array:
        lengths = jnp.asarray(edges, a.dtype)
        if triclinic(whole):
            vectors = jnp.asarray(whole, a.dtype)
            return nearest(places((a - b) / lengths, vectors), vectors)
        return a - b - lengths * jnp.round((a - b) / lengths)

    with jax.ensure_compile_time_eval():
        functions = partition.neighbor_list(
            displacement, edges, cutoff, skin, disable_cell_list=not celled
        )
        cells = partition.cell_list(single, cutoff + skin) if celled else None
    return functions, cells

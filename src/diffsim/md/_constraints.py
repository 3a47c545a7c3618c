"""Rigid bonds and rigid molecules: distances that the motion keeps."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array

from .._errors import ConfigError
from ._box import members, nearest
from ._checks import checked_atoms
from ._state import State

NEWTON = 8  # steps to machine precision, with one or two to spare: each doubles the digits
UNROLLED = 6  # equations of a molecule that are solved by elimination written out
OFF = 0.05  # of its length: a bond that is farther off at the start is a mistake


class Constraints(eqx.Module):
    """|x_i - x_j| = l for pairs of atoms: bonds to hydrogen, or three that make water rigid.

    Pairs that share atoms, a molecule, are solved together by Newton's method with all their
    couplings (SHAKE in matrix form; Ryckaert, Ciccotti & Berendsen 1977,
    doi:10.1016/0021-9991(77)90098-5), to machine precision, velocities with them (RATTLE; Andersen
    1983, doi:10.1016/0021-9991(83)90014-1): what SETTLE does for water, for any small molecule.
    Differentiable in both modes. Each pair takes a degree of freedom.

    **Arguments:** `pairs` (count, 2), atoms by number; `lengths` [length], (count,) or one for all.
    Distances are those of nearest images. Not more pairs than a rigid molecule needs: one too many
    makes the equations singular.
    """

    pairs: tuple[tuple[int, int], ...] = eqx.field(static=True)
    lengths: tuple[float, ...] = eqx.field(static=True)

    def __init__(self, pairs: Any, lengths: Any):
        given = checked_atoms("pairs", pairs, 2)
        if len({frozenset(pair) for pair in given.tolist()}) < len(given):
            raise ConfigError("names a pair twice", key="pairs")
        edges = np.broadcast_to(np.asarray(lengths, dtype=float), len(given)).copy()
        if not np.all(np.isfinite(edges) & (edges > 0)):
            raise ConfigError("must be positive", key="lengths", value=float(np.min(edges)))
        self.pairs = tuple((int(i), int(j)) for i, j in given)
        self.lengths = tuple(map(float, edges))

    @property
    def count(self) -> int:
        return len(self.lengths)

    @property
    def ends(self) -> tuple[np.ndarray, np.ndarray]:
        """The first and the second atom of each pair, (count,)."""
        given = np.asarray(self.pairs, np.int32).reshape(-1, 2)
        return given[:, 0], given[:, 1]

    @property
    def groups(self) -> np.ndarray:
        """The pairs of each molecule by number, (molecules, most), filled up with `count`."""
        return _grouped(self.pairs)

    def bodies(self, atoms: int) -> int:
        """How many molecules and free atoms there are among so many atoms."""
        return int(_molecules(self.pairs, atoms)[0].max(initial=-1)) + 1

    def offsets(self, x: Array, masses: Array, box: Array) -> Array:
        """Places of atoms from the centre of mass of their own molecule, (atoms, 3)."""
        molecule, first = _molecules(self.pairs, len(x))
        d = x - x[first]
        d = nearest(d, box)
        weights = masses[:, None]
        count = self.bodies(len(x))
        both = (
            jnp.zeros((count, 4), x.dtype)
            .at[molecule]
            .add(jnp.concatenate([weights * d, weights], axis=1))
        )
        return d - (both[:, :3] / both[:, 3:])[molecule]

    def centres(self, x: Array, masses: Array, box: Array) -> Array:
        """Centres of mass of molecules and free atoms, (bodies, 3), each as far from the box as its
        first atom."""
        _, first = _molecules(self.pairs, len(x))
        return (x - self.offsets(x, masses, box))[np.unique(first)]

    def check(self, positions: Any, box: Any) -> None:
        """Host side: refuse atoms that do not exist, and bonds far from their lengths."""
        x = np.asarray(positions)
        i, j = self.ends
        if max(map(max, self.pairs), default=-1) >= x.shape[-2]:
            raise ConfigError(f"names an atom beyond the {x.shape[-2]}", key="pairs")
        d = x[..., i, :] - x[..., j, :]
        every = zip(d.reshape(-1, *d.shape[-2:]), members(box, x), strict=True)
        with jax.ensure_compile_time_eval():
            d = np.stack([np.asarray(nearest(one, edges)) for one, edges in every])
        off = np.abs(np.linalg.norm(d, axis=-1) / self.lengths - 1)
        if np.max(off, initial=0.0) > OFF:
            worst = int(np.argmax(off.max(axis=0)))
            raise ConfigError(
                f"atoms {i[worst]} and {j[worst]} are {off.max():.0%} off their distance of "
                f"{self.lengths[worst]:g}",
                key="constraints",
            )

    # In molecules: (molecules, most, ...), the filler's equations those of nothing.

    def _bonds(self, x: Array, box: Array) -> Array:
        i, j = self.ends
        d = x[i] - x[j]
        return self._in_groups(nearest(d, box))

    def _in_groups(self, values: Array) -> Array:
        padded = jnp.concatenate([values, jnp.zeros_like(values[:1])])
        return padded[self.groups]

    def _coupling(self, masses: Array) -> Array:
        """Σ over shared atoms of ± 1/m, (molecules, most, most)."""
        pairs = np.concatenate([np.stack(self.ends, axis=1), [[-1, -1]]])[self.groups]
        inverse = jnp.append(1 / masses, 0)
        total = jnp.zeros((*self.groups.shape, self.groups.shape[1]), masses.dtype)
        for a, one in ((0, 1), (1, -1)):
            for b, other in ((0, 1), (1, -1)):
                shared = pairs[:, :, None, a] == pairs[:, None, :, b]
                total = total + jnp.where(shared, one * other * inverse[pairs[:, :, None, a]], 0)
        return total

    def _solved(self, matrix: Array, right: Array) -> Array:
        filler = jnp.asarray(self.groups == self.count, matrix.dtype)
        matrix = matrix + filler[:, :, None] * jnp.eye(matrix.shape[-1], dtype=matrix.dtype)
        return _eliminated(matrix, right)

    def _pushed(self, x: Array, masses: Array, push: Array) -> Array:
        """x with 1/m of the push along each bond, and its opposite, on its two atoms."""
        flat = jnp.zeros((self.count + 1, 3), x.dtype).at[self.groups].set(push)[:-1]
        i, j = self.ends
        moved = jnp.zeros_like(x).at[i].add(flat).at[j].add(-flat)
        return x + moved / masses[:, None]

    def positions(self, old: Array, new: Array, masses: Array, box: Array) -> Array:
        """`new` (atoms, 3), moved along the bonds of `old` until every distance is right."""
        along, bonds = self._bonds(old, box), self._bonds(new, box)
        coupling = self._coupling(masses)
        squares = self._in_groups(jnp.asarray(self.lengths, old.dtype) ** 2)

        def newton(push: Array, _: None) -> tuple[Array, None]:
            now = bonds + jnp.einsum("gab,gb,gbk->gak", coupling, push, along)
            off = jnp.sum(now**2, axis=-1) - squares
            slope = 2 * coupling * jnp.einsum("gak,gbk->gab", now, along)
            return push - self._solved(slope, off), None

        start = jnp.zeros(squares.shape, old.dtype)
        push, _ = jax.lax.scan(newton, start, length=NEWTON)
        return self._pushed(new, masses, push[..., None] * along)

    def velocities(self, x: Array, v: Array, masses: Array, box: Array) -> Array:
        """Velocities without what would stretch a bond at x."""
        along = self._bonds(x, box)
        matrix = self._coupling(masses) * jnp.einsum("gak,gbk->gab", along, along)
        i, j = self.ends
        apart = self._in_groups(v[i] - v[j])
        push = -self._solved(matrix, jnp.sum(along * apart, axis=-1))
        return self._pushed(v, masses, push[..., None] * along)

    def virial(self, x: Array, v: Array, forces: Array, masses: Array, box: Array) -> Array:
        """Σ r·f of the forces that hold the bonds, from d·(a_i - a_j) + |v_i - v_j|² = 0."""
        along, a = self._bonds(x, box), forces / masses[:, None]
        i, j = self.ends
        apart, pulled = self._in_groups(v[i] - v[j]), self._in_groups(a[i] - a[j])
        matrix = self._coupling(masses) * jnp.einsum("gak,gbk->gab", along, along)
        right = jnp.sum(along * pulled, axis=-1) + jnp.sum(apart**2, axis=-1)
        return -jnp.sum(self._solved(matrix, right) * jnp.sum(along**2, axis=-1))


def _eliminated(matrix: Array, right: Array) -> Array:
    """x of A x = b for many small A at once, (systems, n, n) and (systems, n), by elimination: a
    factorisation a matrix costs ten times as much. The matrices are positive definite, or nearly
    so: no pivot is needed."""
    n = matrix.shape[-1]
    if n > UNROLLED:
        return jnp.linalg.solve(matrix, right[..., None])[..., 0]
    a = [[matrix[..., i, j] for j in range(n)] for i in range(n)]
    b = [right[..., i] for i in range(n)]
    for k in range(n):
        for i in range(k + 1, n):
            share = a[i][k] / a[k][k]
            a[i] = a[i][: k + 1] + [a[i][j] - share * a[k][j] for j in range(k + 1, n)]
            b[i] = b[i] - share * b[k]
    x = b
    for k in reversed(range(n)):
        known = sum(a[k][j] * x[j] for j in range(k + 1, n))
        x[k] = (b[k] - known) / a[k][k]
    return jnp.stack(x, axis=-1)


def snapped(rigid: Constraints | None, positions: Any, masses: Any, box: Any) -> Any:
    """Positions to start from, every distance right; the user's where none is rigid."""
    if rigid is None:
        return positions
    if not isinstance(positions, Tracer) and not isinstance(box, Tracer):
        rigid.check(positions, box)
    x = jnp.asarray(positions)
    weights = jnp.broadcast_to(jnp.asarray(masses, x.dtype), x.shape[:1])
    return rigid.positions(x, x, weights, jnp.asarray(box, x.dtype))


def unstretched(rigid: Constraints | None, state: State) -> State:
    """The state with velocities that leave rigid distances alone."""
    if rigid is None:
        return state
    given = state.positions, state.velocities, state.masses, state.box
    return dataclasses.replace(state, velocities=rigid.velocities(*given))


def tangent(rigid: Constraints | None, state: State, x: Array, v: Array) -> Array:
    """Velocities at x that leave rigid distances alone."""
    return v if rigid is None else rigid.velocities(x, v, state.masses, state.box)


def drifted(
    rigid: Constraints | None, state: State, x: Array, v: Array, time: float
) -> tuple[Array, Array]:
    """x + v time and v; of rigid molecules along the surface where their distances are right."""
    moved = x + time * v
    if rigid is None:
        return moved, v
    held = rigid.positions(x, moved, state.masses, state.box)
    return held, tangent(rigid, state, held, v + (held - moved) / time)


def held_virial(rigid: Constraints, state: State, forces: Array) -> Array:
    """Σ r·f of the forces that hold rigid distances."""
    return rigid.virial(state.positions, state.velocities, forces, state.masses, state.box)


@functools.lru_cache(maxsize=64)
def _grouped(pairs: tuple[tuple[int, int], ...]) -> np.ndarray:
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    given = np.asarray(pairs, np.int32).reshape(-1, 2)
    size = int(given.max(initial=0)) + 1
    links = coo_matrix((np.ones(len(pairs)), (given[:, 0], given[:, 1])), shape=(size, size))
    _, label = connected_components(links, directed=False)
    which = label[given[:, 0]]
    members = [np.flatnonzero(which == k) for k in np.unique(which)]
    most = max(map(len, members), default=1)
    filled = [np.pad(m, (0, most - len(m)), constant_values=len(pairs)) for m in members]
    return np.asarray(filled, dtype=np.int32).reshape(-1, most)


@functools.lru_cache(maxsize=64)
def _molecules(pairs: tuple[tuple[int, int], ...], atoms: int) -> tuple[np.ndarray, np.ndarray]:
    """The molecule of each atom and the first atom of that molecule, both (atoms,)."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    given = np.asarray(pairs, np.int32).reshape(-1, 2)
    links = coo_matrix((np.ones(len(given)), (given[:, 0], given[:, 1])), shape=(atoms, atoms))
    _, molecule = connected_components(links, directed=False)
    _, first = np.unique(molecule, return_index=True)
    return molecule, first[molecule]

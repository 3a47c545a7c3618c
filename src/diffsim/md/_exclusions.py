"""Pairs of atoms of one molecule, whose interaction is left out or scaled."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from ._box import Edges, distinct, nearest, sides
from ._checks import check_numbers, checked_atoms
from ._species import Species, of_pairs

Radial = Callable[[PyTree, Array], Any]


def separation(
    positions: Float[Array, "atoms 3"], box: Edges, i: Array, j: Array
) -> Float[Array, "pairs 3"]:
    """x_i - x_j, minimum image."""
    for numbers in (i, j):
        check_numbers("atoms", numbers, len(positions))
    d = positions[i] - positions[j]
    return nearest(d, box)


class Exclusions(eqx.Module):
    """Of the pairs (i, j) in `pairs` only the share `kept` counts: 0 for what is left out.

    A pair sum runs over all pairs; what is too much is taken off again, φ(r) of the same distance.
    Where φ is steep (Lennard-Jones of atoms that are bonded) that is a small difference of large
    numbers, for which float64 has room and float32 has not: states in float64 and
    `precision="state"`.

    **Arguments:** `pairs`: (pairs, 2) atoms, each pair once; `kept`: a number or (pairs,), 0 to 1.
    """

    pairs: Int[Array, "pairs 2"]
    kept: Float[Array, " pairs"]

    def __init__(self, pairs: Any, kept: Any = 0.0):
        self.pairs = jnp.asarray(checked_atoms("exclusions", pairs, 2))
        self.kept = jnp.broadcast_to(jnp.asarray(kept, float), self.pairs.shape[:1])

    def _pairs(
        self, params: PyTree, positions: Array, box: Array, species: Species
    ) -> tuple[Array, Array, PyTree]:
        i, j = self.pairs.T
        d = separation(positions, box, i, j)
        s = jnp.sum(d * d, axis=1)
        s = jnp.where(distinct(s, box), s, jnp.min(sides(box)) ** 2)
        kinds = (None, None) if species is None else (species[i], species[j])
        return d, s, of_pairs(params, *kinds)

    def sums(
        self, radial: Radial, params: PyTree, positions: Any, box: Any, species: Species
    ) -> PyTree:
        """Σ (kept - 1) g(r²) over the pairs: what a sum over all pairs has too much, negative."""
        x = jnp.asarray(positions)
        _, s, of_pair = self._pairs(params, x, jnp.asarray(box, x.dtype), species)
        short = (self.kept - 1).astype(x.dtype)
        return jax.tree.map(lambda g: jnp.sum(short * g), radial(of_pair, s))

    def forces(
        self, factor: Radial, params: PyTree, positions: Array, box: Array, species: Species
    ) -> Float[Array, "atoms 3"]:
        """The same of forces."""
        d, s, of_pair = self._pairs(params, positions, box, species)
        each = ((self.kept - 1).astype(s.dtype) * factor(of_pair, s))[:, None] * d
        i, j = self.pairs.T
        return jnp.zeros_like(positions).at[i].add(each).at[j].add(-each)


def exclusions(bonds: Any, *, through: int = 3, one_four: float = 0.0) -> Exclusions:
    """The pairs that `through` bonds or fewer join: 1-2, 1-3 and 1-4 by default.

    bonds: (bonds, 2) atoms
    through: 3 leaves out 1-2 and 1-3 pairs and keeps the share `one_four` of 1-4 pairs (0.5 for
        Lennard-Jones in OPLS and Amber, 0.8333 for Amber's charges); 2 leaves out 1-2 and 1-3
    """
    pairs = checked_atoms("bonds", bonds, 2)
    count = int(pairs.max(initial=-1)) + 1
    beside: list[set[int]] = [set() for _ in range(count)]
    for i, j in pairs.tolist():
        beside[i].add(j)
        beside[j].add(i)
    found = {
        (i, j): distance
        for i in range(count)
        for j, distance in _within(beside, i, through)
        if i < j
    }
    kept = [float(one_four) if distance == 3 else 0.0 for distance in found.values()]
    return Exclusions(np.asarray(list(found), np.int32).reshape(-1, 2), np.asarray(kept, float))


def _within(beside: list[set[int]], start: int, through: int) -> Iterable[tuple[int, int]]:
    """Atoms that so many bonds reach, with the least number of bonds."""
    seen, shell = {start: 0}, [start]
    for distance in range(1, through + 1):
        shell = sorted({j for i in shell for j in beside[i]} - seen.keys())
        seen |= dict.fromkeys(shell, distance)
    return sorted(seen.items())

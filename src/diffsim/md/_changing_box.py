"""Neighbour structures in a box that changes."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from .._errors import ConfigError
from ._box import Edges, triclinic
from ._clusters import Clusters
from ._composite import AbstractComposite
from ._neighbours import SAFETY, Neighbours
from ._pair_potential import AbstractPairPotential
from ._potential import AbstractPotential, Box, Positions, Thermo, Vectors

ELSEWHERE = 1e12  # an atom that was so far away has moved


class InBox(eqx.Module):
    """A neighbour structure, and the box when it was built."""

    structure: Any
    box: Edges


class ChangingBox(AbstractPotential):
    """U(θ, x, L) of another potential, whose neighbour structures follow a box that changes.

    A structure built in the box L₀ holds all pairs within cutoff + skin. With atoms at the
    fractions of L they have now, y = x L₀/L, images are what they were, and two atoms within the
    cutoff c were within c s + 2 |y - y₀|, s = max(L₀/L, 1). The structure is therefore good while
    2 max |y - y₀| + (s - 1) c <= skin, and built anew in the present box when it is not.
    """

    inner: AbstractPotential

    def energy(
        self, params: PyTree, positions: Positions, box: Box, neighbours: Any = None
    ) -> Array:
        return self.inner.energy(params, positions, box, _structure(neighbours))

    def driving_energy(
        self, params: PyTree, positions: Positions, box: Box, neighbours: Any = None
    ) -> Array:
        return self.inner.driving_energy(params, positions, box, _structure(neighbours))

    def forces(
        self, params: PyTree, positions: Positions, box: Box, neighbours: Any = None
    ) -> Vectors:
        return self.inner.forces(params, positions, box, _structure(neighbours))

    def virial(
        self, params: PyTree, positions: Positions, box: Box, neighbours: Any = None
    ) -> Array:
        return self.inner.virial(params, positions, box, _structure(neighbours))

    def virial_tensor(
        self, params: PyTree, positions: Positions, box: Box, neighbours: Any = None
    ) -> Float[Array, "3 3"]:
        return self.inner.virial_tensor(params, positions, box, _structure(neighbours))

    def volume_energy(self, params: PyTree, atoms: int, box: Box) -> Array:
        return self.inner.volume_energy(params, atoms, box)

    def features(self, positions: Positions, box: Box, neighbours: Any = None) -> PyTree:
        return self.inner.features(positions, box, _structure(neighbours))

    def thermo(
        self,
        params: PyTree,
        positions: Positions,
        box: Box,
        neighbours: Any = None,
        features: PyTree = None,
    ) -> Thermo:
        return self.inner.thermo(params, positions, box, _structure(neighbours), features)

    def pullback(
        self,
        params: PyTree,
        positions: Positions,
        box: Box,
        cotangent: Vectors,
        neighbours: Any = None,
    ) -> tuple[PyTree, Vectors]:
        return self.inner.pullback(params, positions, box, cotangent, _structure(neighbours))

    def check(self, params: PyTree, box: Any) -> None:
        self.inner.check(params, box)

    def parameter_units(self) -> dict[str, str]:
        return self.inner.parameter_units()

    @property
    def allocates(self) -> bool:
        return self.inner.allocates

    def allocate(self, params: PyTree, positions: Positions, box: Box, previous: Any = None) -> Any:
        made = self.inner.allocate(params, positions, box, _structure(previous))
        if triclinic(box):
            made = self._without_lists(made)
        if not jax.tree.leaves(made):  # None, or one for each part of a sum that has none
            return None
        if _leaves(made, Neighbours) or not _leaves(made, Clusters):
            raise ConfigError(
                "its neighbour structure holds in one box only, and that of this ensemble changes",
                key="potential",
                allowed='path="dense" or "tiles" of pairs, path="dense" of others, or energies '
                "without a list",
            )
        return InBox(made, jnp.asarray(box, jnp.asarray(positions).dtype))

    def _without_lists(self, made: Any) -> Any:
        """All pairs where "auto" took a list, in a triclinic box."""
        inner = self.inner
        if isinstance(inner, AbstractComposite) and made is not None:
            firsts = [inner.parts()[group[0]] for group in inner.groups]
            return tuple(map(_unless_chosen, firsts, made))
        return _unless_chosen(inner, made)

    def update(self, neighbours: Any, positions: Positions, box: Box) -> Any:
        if neighbours is None:
            return None
        old, x, edges = jax.lax.stop_gradient(
            (neighbours, jnp.asarray(positions), jnp.asarray(box))
        )
        then = x * (old.box / edges)
        shrunk = jnp.maximum(jnp.max(old.box / edges), 1) - 1
        stale = jnp.asarray(False)
        for each in _leaves(old.structure, Clusters):
            d = then - each.reference
            room = each.plan.skin * (1 - SAFETY) - shrunk * each.plan.cutoff
            stale = stale | (4 * jnp.max(jnp.sum(d * d, axis=1)) > jnp.maximum(room, 0) ** 2)
        # What is stale remembers atoms that were elsewhere: it will find that they have moved.
        marked = jax.tree.map(
            lambda each: _forgetful(each, stale, edges / old.box),
            old.structure,
            is_leaf=_is_clusters,
        )
        now = jnp.where(stale, x, then), jnp.where(stale, edges, old.box)
        return InBox(self.inner.update(marked, *now), now[1])

    def overflowed(self, neighbours: Any) -> Array:
        return self.inner.overflowed(_structure(neighbours))

    def path_taken(self, neighbours: Any) -> str | None:
        return self.inner.path_taken(_structure(neighbours))

    @property
    def repeatable(self) -> bool:
        return self.inner.repeatable

    @property
    def reach(self) -> float | None:
        return self.inner.reach

    @property
    def noise_dtype(self) -> Any:
        return self.inner.noise_dtype


def _unless_chosen(potential: AbstractPotential, made: Any) -> Any:
    auto = isinstance(potential, AbstractPairPotential) and potential.path == "auto"
    return None if auto else made


def _structure(neighbours: Any) -> Any:
    return None if neighbours is None else neighbours.structure


def _is_clusters(tree: Any) -> bool:
    return isinstance(tree, Clusters)


def _leaves(tree: PyTree, kind: type) -> list[Any]:
    found = jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, kind))
    return [leaf for leaf in found if isinstance(leaf, kind)]


def _forgetful(leaf: Any, stale: Array, stretch: Array | float = 1.0) -> Any:
    """Of what is stale, with the ways that atoms went told in a box so much longer."""
    if not _is_clusters(leaf):
        return leaf
    reference = jnp.where(stale, leaf.reference + ELSEWHERE, leaf.reference)
    ways = [jnp.where(stale, x * stretch, x) for x in (leaf.found_at, leaf.stepped, leaf.seen)]
    changed = lambda c: (c.reference, c.found_at, c.stepped, c.seen)  # noqa: E731
    return eqx.tree_at(changed, leaf, (reference, *ways))


def at_last(neighbours: Any) -> Any:
    """The structure alone, for an ensemble whose box stays: to be built anew in the present one."""
    if not isinstance(neighbours, InBox):
        return neighbours
    forget = lambda leaf: _forgetful(leaf, jnp.asarray(True))  # noqa: E731
    return jax.tree.map(forget, neighbours.structure, is_leaf=_is_clusters)

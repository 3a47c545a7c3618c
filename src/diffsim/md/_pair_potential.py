"""What every potential of pairs shares: truncation, kinds of atoms, exclusions, and the engine."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Int, PyTree

from .._errors import ConfigError
from ._box import check_reach
from ._exclusions import Exclusions
from ._force_rule import forces_with_pullback
from ._pair_engines import (
    PATHS,
    PRECISIONS,
    PairEngine,
    Path,
    Precision,
    Structure,
    allocate_pairs,
    no_tiles,
    path_of,
)
from ._potential import AbstractPotential, Box, Positions, Thermo, Vectors

Truncation = Literal["cut", "shift", "force_shift", "switch"]

TRUNCATIONS = ("cut", "shift", "force_shift", "switch")


def kinds_of(species: Any) -> Array | None:
    """The kind of each atom, as 32-bit integers."""
    return None if species is None else jnp.asarray(species, jnp.int32)


class AbstractPairPotential(AbstractPotential):
    """U = Σ_{i<j} φ(θ, r_ij) up to a cutoff, minimum image, over any of the engine's paths.

    A potential gives two functions of s = r² that vanish beyond the cutoff, `force_factor` and
    `pair_thermo`; sums over all pairs, tiles or lists, their pullbacks and the kinds of atoms are
    here. Atoms at one place do not see each other, and neither do pads: derivatives are finite.
    """

    cutoff: eqx.AbstractVar[float]
    truncation: eqx.AbstractVar[Truncation]
    tail: eqx.AbstractVar[bool]
    onset: eqx.AbstractVar[float | None]
    precision: eqx.AbstractVar[Precision]
    path: eqx.AbstractVar[Path]
    skin: eqx.AbstractVar[float | None]
    species: eqx.AbstractVar[Int[Array, " atoms"] | None]
    exclusions: eqx.AbstractVar[Exclusions | None]

    def __check_init__(self):
        if not (math.isfinite(self.cutoff) and self.cutoff > 0):
            raise ConfigError("must be positive and finite", key="cutoff", value=self.cutoff)
        tables = (("truncation", TRUNCATIONS), ("precision", PRECISIONS), ("path", PATHS))
        for key, allowed in tables:
            if getattr(self, key) not in allowed:
                raise ConfigError(
                    f"unknown {key}", key=key, value=getattr(self, key), allowed=allowed
                )
        if self.onset is not None and not 0 < self.onset < self.cutoff:
            raise ConfigError(
                "must lie between 0 and the cutoff, below it",
                key="onset",
                value=self.onset,
                suggestion=f"{0.8 * self.cutoff:g}",
            )
        if self.skin is not None and not (math.isfinite(self.skin) and self.skin > 0):
            raise ConfigError("must be a positive length", key="skin", value=self.skin)
        if self.tail and self.truncation == "force_shift":
            raise ConfigError(
                "a force-shifted potential has no tail correction: its energies differ from the "
                "full potential's inside the cutoff too",
                key="tail",
                allowed="tail=False, or truncation cut, shift or switch",
            )

    @abstractmethod
    def tables(self, params: PyTree) -> PyTree:
        """θ of each pair of kinds: numbers or tables (kinds, kinds), and what follows of them."""

    @abstractmethod
    def force_factor(self, params: PyTree, s: Array) -> Array:
        """f(s) = -φ'(r)/r, so that the force on i from j is f (x_i - x_j)."""

    @abstractmethod
    def pair_thermo(self, params: PyTree, s: Array) -> Thermo:
        """Energy, driving energy and virial of a pair."""

    @abstractmethod
    def force_scale(self, params: PyTree) -> Array:
        """The size of a typical force, of `tables`."""

    @abstractmethod
    def tail_correction(self, params: PyTree, atoms: int, box: Box) -> tuple[Array, Array]:
        """U_tail and W_tail of a uniform fluid beyond the cutoff, g(r) = 1."""

    @property
    def elementwise(self) -> bool:
        """Whether parameters are a number for each pair, which the engine's pullback wants."""
        return True

    @property
    def reach(self) -> float:
        return self.cutoff

    @property
    def noise_dtype(self) -> Any:
        return jnp.float32 if self.precision in ("mixed", "float32") else None

    def check_box(self, box: Any) -> None:
        """Refuse a cutoff over half the box, and tiles of what is not rectangular."""
        check_reach(self.cutoff, box)
        if self.path == "tiles" and np.shape(box) == (3, 3):
            raise no_tiles()

    # Radial functions of s = r²; every one vanishes beyond the cutoff.

    def inside(self, s: Array) -> tuple[Array, Array]:
        reach = jnp.asarray(self.cutoff**2, s.dtype)
        return s < reach, jnp.minimum(s, reach)

    def switch(self, s: Array) -> tuple[Array, Array]:
        """S and dS/ds."""
        c, o = self.cutoff**2, self._onset() ** 2
        x = jnp.clip((s - o) / (c - o), 0, 1)
        return 1 - x**3 * (10 - 15 * x + 6 * x * x), -30 * (x * (1 - x)) ** 2 / (c - o)

    def _onset(self) -> float:
        return self.onset if self.onset is not None else 0.8 * self.cutoff

    def shares(self, table: Array) -> Array:
        """The share of each pair of kinds in all pairs of atoms, shaped as the table."""
        if self.species is None or table.ndim == 0:
            return jnp.ones((), table.dtype)
        same = self.species[:, None] == jnp.arange(len(table))
        parts = jnp.mean(same.astype(table.dtype), axis=0)
        return parts[:, None] * parts

    # Sums over a configuration.

    def _law(self) -> AbstractPairPotential:
        """The functions of a pair alone, without what belongs to the atoms."""
        where = lambda p: (p.species, p.exclusions)  # noqa: E731
        return eqx.tree_at(where, self, (None, None), is_leaf=lambda x: x is None)

    def _rest(self, neighbours: Structure) -> tuple[Any, ...]:
        """What of the atoms has no derivative."""
        rest = neighbours, self.species
        return rest if self.exclusions is None else (*rest, self.exclusions)

    def _engine(self, positions: Positions, box: Box, rest: Any) -> PairEngine:
        positions = jnp.asarray(positions)
        box = jnp.asarray(box, positions.dtype)
        return PairEngine(positions, box, rest[0], rest[1], self.precision)

    def sums(self, params: PyTree, positions: Positions, box: Box, rest: Any) -> Thermo:
        """Thermo of all pairs, of `tables`, without tail."""
        law = self._law()
        total = self._engine(positions, box, rest).sums(law.pair_thermo, params)
        for excluded in rest[2:]:
            more = excluded.sums(law.pair_thermo, params, positions, box, rest[1])
            total = jax.tree.map(jnp.add, total, more)
        return total

    def of_features(self, params: PyTree, features: PyTree) -> Thermo:
        """The same of what `features` kept."""
        raise ConfigError("this potential keeps no features", key="features")

    def thermo(
        self,
        params: PyTree,
        positions: Positions,
        box: Box,
        neighbours: Any = None,
        features: PyTree = None,
    ) -> Thermo:
        dtype = jnp.asarray(positions).dtype
        given = jax.tree.map(lambda v: jnp.asarray(v, dtype), params)
        tables = self.tables(given)
        if features is not None:
            sums = self.of_features(tables, features)
        else:
            sums = self.sums(tables, positions, box, self._rest(neighbours))
        if not self.tail:
            return sums
        energy, virial = self.tail_correction(given, *_shape_of(positions, box))
        return Thermo(sums.energy + energy, sums.driving, sums.virial + virial)

    def volume_energy(self, params: PyTree, atoms: int, box: Box) -> Array:
        box = jnp.asarray(box)
        if not self.tail:
            return jnp.zeros((), box.dtype)
        given = jax.tree.map(lambda v: jnp.asarray(v, box.dtype), params)
        return self.tail_correction(given, atoms, box)[1] / 3  # W_tail goes as 1/V

    def apart(self, params: PyTree, positions: Positions, box: Box) -> Thermo:
        """What does not come from walking all pairs: exclusions and the tail."""
        x = jnp.asarray(positions)
        given = jax.tree.map(lambda v: jnp.asarray(v, x.dtype), params)
        zero = jnp.zeros((), x.dtype)
        total = Thermo(zero, zero, zero)
        if self.exclusions is not None:
            law, tables = self._law(), self.tables(given)
            total = self.exclusions.sums(law.pair_thermo, tables, x, box, self.species)
        if self.tail:
            energy, virial = self.tail_correction(given, *_shape_of(positions, box))
            total = Thermo(total.energy + energy, total.driving, total.virial + virial)
        return total

    def energy(
        self, params: PyTree, positions: Positions, box: Box, neighbours: Any = None
    ) -> Array:
        return self.thermo(params, positions, box, neighbours).energy

    def driving_energy(
        self, params: PyTree, positions: Positions, box: Box, neighbours: Any = None
    ) -> Array:
        return self.thermo(params, positions, box, neighbours).driving

    def virial(
        self, params: PyTree, positions: Positions, box: Box, neighbours: Any = None
    ) -> Array:
        return self.thermo(params, positions, box, neighbours).virial

    def forces(
        self, params: PyTree, positions: Positions, box: Box, neighbours: Any = None
    ) -> Vectors:
        positions = jnp.asarray(positions)
        box, law = jnp.asarray(box, positions.dtype), self._law()
        tables = self.tables(jax.tree.map(jnp.asarray, params))
        rest = self._rest(neighbours)
        return forces_with_pullback(law._forces, law._pullback, tables, positions, box, rest)

    def _forces(self, params: PyTree, positions: Array, box: Array, rest: Any) -> Array:
        engine = self._engine(positions, box, rest)
        forces = engine.forces(self.force_factor, params, self.force_scale(params))
        for excluded in rest[2:]:
            given = params, positions, box, rest[1]
            forces = forces + excluded.forces(self.force_factor, *given)
        return forces

    def _pullback(
        self, params: PyTree, positions: Array, box: Array, rest: Any, w: Array
    ) -> tuple[PyTree, Array]:
        if not self.elementwise:
            return self._pullback_of_energy(params, positions, box, rest, w)
        back = self._engine(positions, box, rest).pullback(self.force_factor, params, w)
        for excluded in rest[2:]:
            taken = lambda p, x, e=excluded: e.forces(self.force_factor, p, x, box, rest[1])  # noqa: E731
            back = jax.tree.map(jnp.add, back, jax.vjp(taken, params, positions)[1](w))
        return back

    def _pullback_of_energy(
        self, params: PyTree, positions: Array, box: Array, rest: Any, w: Array
    ) -> tuple[PyTree, Array]:
        """By forward over reverse: for parameters that are more than a number for each pair."""
        driving = lambda p, x: self.sums(p, x, box, rest).driving  # noqa: E731
        zero = jax.tree.map(jnp.zeros_like, params)
        slope = jax.grad(driving, argnums=(0, 1))
        back = jax.jvp(slope, (params, positions), (zero, w))[1]
        return jax.tree.map(jnp.negative, back)

    def pullback(
        self,
        params: PyTree,
        positions: Positions,
        box: Box,
        cotangent: Vectors,
        neighbours: Any = None,
    ) -> tuple[PyTree, Vectors]:
        positions = jnp.asarray(positions)
        box, rest = jnp.asarray(box, positions.dtype), self._rest(neighbours)
        tables, spread = jax.vjp(self.tables, jax.tree.map(jnp.asarray, params))
        back, moved = self._law()._pullback(tables, positions, box, rest, cotangent)
        return spread(back)[0], moved

    # The choice of path.

    @property
    def allocates(self) -> bool:
        return self.path != "dense"

    def allocate(self, params: PyTree, positions: Positions, box: Box, previous: Any = None) -> Any:
        if any(isinstance(x, Tracer) for x in (positions, box)):
            return None
        skin = self.skin if self.skin is not None else 0.16 * self.cutoff
        return allocate_pairs(self.path, positions, box, self.cutoff, skin, previous)

    def path_taken(self, neighbours: Any) -> str | None:
        return path_of(neighbours)

    def update(self, neighbours: Any, positions: Positions, box: Box) -> Any:
        return None if neighbours is None else neighbours.updated(positions, box)

    def overflowed(self, neighbours: Any) -> Array:
        return jnp.asarray(False) if neighbours is None else neighbours.overflowed


def _shape_of(positions: Any, box: Any) -> tuple[int, Array]:
    x = jnp.asarray(positions)
    return x.shape[0], jnp.asarray(box, x.dtype)

"""Several potentials as one: pairs that share an engine are walked once."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Int, PyTree

from .._errors import ConfigError, nearest
from ._exclusions import Exclusions
from ._pair_engines import Path, Precision
from ._pair_potential import AbstractPairPotential, Truncation
from ._potential import AbstractPotential, Box, Positions, Thermo, Vectors

Groups = tuple[tuple[int, ...], ...]


class AbstractComposite(AbstractPotential):
    """U = Σ_k U_k(θ_k, x). A subclass says what its parts are and which parameters each takes.

    Pair potentials of equal cutoff, path, precision and kinds of atoms are one pass over the pairs
    and share one neighbour structure: Lennard-Jones with Coulomb's real-space part costs little
    more than either.
    """

    groups: eqx.AbstractVar[Groups]

    @abstractmethod
    def parts(self) -> Sequence[AbstractPotential]:
        """The potentials, none of them composite."""

    @abstractmethod
    def shared(self, params: PyTree) -> Sequence[PyTree]:
        """The parameters of each part."""

    def _grouped(self, params: PyTree, neighbours: Any) -> list[tuple[Any, list[Any], Any]]:
        """For each group its potentials, their parameters, and the structure of its pairs."""
        parts, given = self.parts(), self.shared(params)
        structures = neighbours if neighbours is not None else (None,) * len(self.groups)
        return [
            ([parts[k] for k in group], [given[k] for k in group], structure)
            for group, structure in zip(self.groups, structures, strict=True)
        ]

    def terms(
        self, params: PyTree, positions: Positions, box: Box, neighbours: Any = None
    ) -> list[Thermo]:
        """Energies and virial of each part."""
        found: dict[int, Thermo] = {}
        for group, (parts, given, structure) in zip(
            self.groups, self._grouped(params, neighbours), strict=True
        ):
            for k, part, p in zip(group, parts, given, strict=True):
                found[k] = part.thermo(p, positions, box, structure)
        return [found[k] for k in range(len(found))]

    def thermo(
        self,
        params: PyTree,
        positions: Positions,
        box: Box,
        neighbours: Any = None,
        features: PyTree = None,
    ) -> Thermo:
        total = None
        for parts, given, structure in self._grouped(params, neighbours):
            whole = _of_group(parts, given, positions, box, structure)
            total = whole if total is None else jax.tree.map(jnp.add, total, whole)
        assert total is not None
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
        total = jnp.zeros_like(jnp.asarray(positions))
        for parts, given, structure in self._grouped(params, neighbours):
            total = total + _forces_of_group(parts, given, positions, box, structure)
        return total

    def volume_energy(self, params: PyTree, atoms: int, box: Box) -> Array:
        each = zip(self.parts(), self.shared(params), strict=True)
        return sum(
            (part.volume_energy(given, atoms, box) for part, given in each),
            jnp.zeros((), jnp.asarray(box).dtype),
        )

    def pullback(
        self,
        params: PyTree,
        positions: Positions,
        box: Box,
        cotangent: Vectors,
        neighbours: Any = None,
    ) -> tuple[PyTree, Vectors]:
        dynamic, static = eqx.partition(params, eqx.is_inexact_array)

        def forces(dynamic: PyTree, positions: Array) -> Array:
            return self.forces(eqx.combine(dynamic, static), positions, box, neighbours)

        return jax.vjp(forces, dynamic, jnp.asarray(positions))[1](cotangent)

    def check(self, params: PyTree, box: Any) -> None:
        for part, given in zip(self.parts(), self.shared(params), strict=True):
            part.check(given, box)

    @property
    def allocates(self) -> bool:
        return any(part.allocates for part in self.parts())

    def allocate(self, params: PyTree, positions: Positions, box: Box, previous: Any = None) -> Any:
        if not self.allocates:
            return None
        old = previous if previous is not None else (None,) * len(self.groups)
        return tuple(
            parts[0].allocate(given[0], positions, box, before)
            for parts, given, before in self._grouped(params, old)
        )

    def update(self, neighbours: Any, positions: Positions, box: Box) -> Any:
        if neighbours is None:
            return None
        parts = self.parts()
        return tuple(
            parts[group[0]].update(structure, positions, box)
            for group, structure in zip(self.groups, neighbours, strict=True)
        )

    def overflowed(self, neighbours: Any) -> Array:
        parts, over = self.parts(), jnp.asarray(False)
        for group, structure in zip(self.groups, neighbours or (), strict=neighbours is not None):
            over = over | parts[group[0]].overflowed(structure)
        return over

    def path_taken(self, neighbours: Any) -> str | None:
        parts = self.parts()
        structures = neighbours if neighbours is not None else (None,) * len(self.groups)
        found = [
            parts[group[0]].path_taken(structure)
            for group, structure in zip(self.groups, structures, strict=True)
        ]
        return next((path for path in found if path is not None), None)

    @property
    def repeatable(self) -> bool:
        return all(part.repeatable for part in self.parts())

    @property
    def reach(self) -> float | None:
        found = [part.reach for part in self.parts()]
        return min((r for r in found if r is not None), default=None)

    @property
    def noise_dtype(self) -> Any:
        return next((p.noise_dtype for p in self.parts() if p.noise_dtype is not None), None)


class Sum(AbstractComposite):
    """U = Σ_k U_k of named potentials: a force field.

    `Sum({"lj": LennardJones(...), "coulomb": Coulomb(...), "bonds": Bonds(...)})`. params: either
    `{"lj": {"epsilon": ..., "sigma": ...}, "coulomb": {...}}`, or flat, as a fit names its
    parameters: `{"lj_epsilon": ..., "lj_sigma": ..., "coulomb_charge": ...}`.
    `components` tells the energy of each.
    """

    potentials: dict[str, AbstractPotential]
    groups: Groups = eqx.field(static=True)

    def __init__(self, potentials: Mapping[str, AbstractPotential]):
        # sorted, as every function of JAX that takes or returns a dictionary leaves it
        self.potentials = dict(sorted(potentials.items()))
        self.groups = grouped(self.parts())

    def __check_init__(self):
        if not self.potentials:
            raise ConfigError("needs at least one potential", key="potentials")

    def parts(self) -> list[AbstractPotential]:
        found: list[AbstractPotential] = []
        for term in self.potentials.values():
            found += term.parts() if isinstance(term, AbstractComposite) else [term]
        return found

    def of_term(self, params: PyTree, name: str) -> PyTree:
        """The parameters of the potential `name`."""
        if name in params:
            return params[name]
        longer = [other for other in self.potentials if other.startswith(f"{name}_")]
        return {
            key.removeprefix(f"{name}_"): value
            for key, value in params.items()
            if key.startswith(f"{name}_") and not any(key.startswith(f"{o}_") for o in longer)
        }

    def shared(self, params: PyTree) -> list[PyTree]:
        found: list[PyTree] = []
        for name, term in self.potentials.items():
            own = self.of_term(params, name)
            found += term.shared(own) if isinstance(term, AbstractComposite) else [own]
        return found

    def components(
        self, params: PyTree, positions: Positions, box: Box, neighbours: Any = None
    ) -> dict[str, Array]:
        """The energy of each potential by its name; they add up to `energy`."""
        each = iter(self.terms(params, positions, box, neighbours))
        found = {}
        for name, term in self.potentials.items():
            count = len(term.parts()) if isinstance(term, AbstractComposite) else 1
            found[name] = sum(next(each).energy for _ in range(count))
        return found

    def check(self, params: PyTree, box: Any) -> None:
        names = {f"{n}_{k}" for n, t in self.potentials.items() for k in t.parameter_units()}
        for key in params:
            own = any(key == n or key.startswith(f"{n}_") for n in self.potentials)
            if not own:
                close = nearest(str(key), (*self.potentials, *names))
                raise ConfigError("belongs to no potential", key=str(key), suggestion=close)
        for name, term in self.potentials.items():
            term.check(self.of_term(params, name), box)

    def parameter_units(self) -> dict[str, str]:
        return {
            f"{name}_{key}": unit
            for name, term in self.potentials.items()
            for key, unit in term.parameter_units().items()
        }


def grouped(parts: Sequence[AbstractPotential]) -> Groups:
    """Which parts are one pass over the pairs; the others are by themselves."""
    groups: list[list[int]] = []
    for k, part in enumerate(parts):
        home = next((g for g in groups if _alike(parts[g[0]], part)), None)
        if home is None:
            groups.append([k])
        else:
            home.append(k)
    return tuple(map(tuple, groups))


def _alike(one: AbstractPotential, other: AbstractPotential) -> bool:
    if not (isinstance(one, AbstractPairPotential) and isinstance(other, AbstractPairPotential)):
        return False
    if not (one.elementwise and other.elementwise):
        return False
    options = lambda p: (p.cutoff, p.precision, p.path, p.skin)  # noqa: E731
    return options(one) == options(other) and _same(one.species, other.species)


def _same(one: Array | None, other: Array | None) -> bool:
    """Whether these are the same kinds, as far as that can be seen inside of jit."""
    if one is other:
        return True
    if one is None or other is None or isinstance(one, Tracer) or isinstance(other, Tracer):
        return False
    return np.array_equal(np.asarray(one), np.asarray(other))


class _Fused(AbstractPairPotential):
    """The radial functions of several laws, added before they are summed."""

    laws: tuple[AbstractPairPotential, ...]
    cutoff: float = eqx.field(static=True)
    precision: Precision = eqx.field(static=True)
    path: Path = eqx.field(static=True)
    skin: float | None = eqx.field(static=True)
    species: Int[Array, " atoms"] | None
    truncation: Truncation = eqx.field(static=True)
    tail: bool = eqx.field(static=True)
    onset: float | None = eqx.field(static=True)
    exclusions: Exclusions | None

    def __init__(self, parts: Sequence[AbstractPairPotential]):
        first = parts[0]
        self.laws = tuple(part._law() for part in parts)
        self.cutoff, self.precision, self.species = first.cutoff, first.precision, first.species
        self.path, self.skin = first.path, first.skin
        # of the sum: each law has its own
        self.truncation, self.tail, self.onset, self.exclusions = "shift", False, None, None

    def tables(self, params: PyTree) -> PyTree:
        return [law.tables(p) for law, p in zip(self.laws, params, strict=True)]

    def force_factor(self, params: PyTree, s: Array) -> Array:
        found = [law.force_factor(p, s) for law, p in zip(self.laws, params, strict=True)]
        return sum(found[1:], found[0])

    def pair_thermo(self, params: PyTree, s: Array) -> Thermo:
        found = [law.pair_thermo(p, s) for law, p in zip(self.laws, params, strict=True)]
        return jax.tree.map(lambda *x: sum(x[1:], x[0]), *found)

    def force_scale(self, params: PyTree) -> Array:
        scales = [law.force_scale(p) for law, p in zip(self.laws, params, strict=True)]
        return jnp.max(jnp.stack(scales))

    def tail_correction(self, params: PyTree, atoms: int, box: Box) -> tuple[Array, Array]:
        return jnp.zeros(()), jnp.zeros(())


def _of_group(
    parts: Sequence[Any], given: Sequence[PyTree], positions: Any, box: Any, structure: Any
) -> Thermo:
    if len(parts) == 1:
        return parts[0].thermo(given[0], positions, box, structure)
    total = _Fused(parts).thermo(list(given), positions, box, structure)
    for part, params in zip(parts, given, strict=True):
        total = jax.tree.map(jnp.add, total, part.apart(params, positions, box))
    return total


def _forces_of_group(
    parts: Sequence[Any], given: Sequence[PyTree], positions: Any, box: Any, structure: Any
) -> Array:
    if len(parts) == 1:
        return parts[0].forces(given[0], positions, box, structure)
    total = _Fused(parts).forces(list(given), positions, box, structure)
    for part, params in zip(parts, given, strict=True):
        if part.exclusions is not None:
            tables = part.tables(jax.tree.map(jnp.asarray, params))
            x = jnp.asarray(positions)
            more = tables, x, jnp.asarray(box, x.dtype), part.species
            total = total + part.exclusions.forces(part._law().force_factor, *more)
    return total

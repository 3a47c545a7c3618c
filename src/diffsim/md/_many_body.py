"""Potentials of whole environments: energies of atoms, each from where its neighbours are."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, Literal

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, PyTree

from .._errors import ConfigError
from ._box import check_reach, distinct, known_volume, nearest, sound
from ._neighbours import Neighbours, list_functions, make
from ._potential import AbstractPotential, Box, Positions

Where = Literal["auto", "dense", "list"]

SPARE = 4  # slots an atom for neighbours to come
CROWDED = 0.5  # of all atoms within reach: then a list saves nothing


class Environment(eqx.Module):
    """What is within the cutoff of each atom.

    `d` (atoms, slots, 3): x_j - x_i, minimum image; `r` (atoms, slots): its length; `near` (atoms,
    slots): whether there is an atom within the cutoff; where there is none, d and r are those of an
    atom at twice the cutoff, so that functions and derivatives are finite and `near` masks them.
    `index` (atoms, slots): which atom; `species` (atoms,): kinds, zeros where none were given.
    """

    d: Float[Array, "atoms slots 3"]
    r: Float[Array, "atoms slots"]
    near: Bool[Array, "atoms slots"]
    index: Int[Array, "atoms slots"]
    species: Int[Array, " atoms"]


class AbstractManyBody(AbstractPotential):
    """U = Σ_i u(θ, {x_j - x_i : r_ij < cutoff}).

    `path`: "dense" looks at all atoms, "list" at JAX-MD's neighbour list, "auto" takes the list
    where the cutoff holds less than half of the atoms. Forces are the gradient. With a list they
    depend in the last digits on its order, so that `Reversible` wants "dense".
    """

    cutoff: eqx.AbstractVar[float]
    path: eqx.AbstractVar[Where]
    skin: eqx.AbstractVar[float | None]
    species: eqx.AbstractVar[Int[Array, " atoms"] | None]

    def __check_init__(self):
        if not (math.isfinite(self.cutoff) and self.cutoff > 0):
            raise ConfigError("must be positive and finite", key="cutoff", value=self.cutoff)
        if self.path not in ("auto", "dense", "list"):
            raise ConfigError(
                "unknown path", key="path", value=self.path, allowed=("auto", "dense", "list")
            )
        if self.skin is not None and not (math.isfinite(self.skin) and self.skin > 0):
            raise ConfigError("must be a positive length", key="skin", value=self.skin)

    @abstractmethod
    def site_energies(self, params: PyTree, around: Environment) -> Float[Array, " atoms"]:
        """The energy of each atom."""

    def energy(
        self, params: PyTree, positions: Positions, box: Box, neighbours: Any = None
    ) -> Array:
        x = jnp.asarray(positions)
        total = sound(jnp.sum(self.site_energies(params, self.around(x, box, neighbours))), box)
        return total if neighbours is None else neighbours.spoil(total)

    def around(self, positions: Any, box: Any, neighbours: Neighbours | None) -> Environment:
        """The environments of all atoms."""
        x = jnp.asarray(positions)
        box = jnp.asarray(box, x.dtype)
        atoms = x.shape[0]
        index = jnp.asarray(_others(atoms)) if neighbours is None else neighbours.list.idx
        there = jnp.minimum(index, atoms - 1)
        d = x[there] - x[:, None]
        d = nearest(d, box)
        s = jnp.sum(d * d, axis=-1)
        near = (index < atoms) & (s < self.cutoff**2) & distinct(s, box)
        away = jnp.asarray([2 * self.cutoff, 0, 0], x.dtype)
        d = jnp.where(near[..., None], d, away)
        r = jnp.sqrt(jnp.where(near, s, (2 * self.cutoff) ** 2))
        kinds = self.species if self.species is not None else jnp.zeros(atoms, jnp.int32)
        return Environment(d, r, near, there, kinds)

    def check_box(self, box: Any) -> None:
        check_reach(self.cutoff, box, ": repeat the cell")

    @property
    def reach(self) -> float | None:
        return self.cutoff

    @property
    def repeatable(self) -> bool:
        return self.path == "dense"

    @property
    def allocates(self) -> bool:
        return self.path != "dense"

    def allocate(
        self, params: PyTree, positions: Positions, box: Box, previous: Any = None
    ) -> Neighbours | None:
        if any(isinstance(x, Tracer) for x in (positions, box)):
            return None
        edges, atoms = np.asarray(box, float), positions.shape[0]
        skin = self.skin if self.skin is not None else 0.16 * self.cutoff
        share = 4 / 3 * math.pi * (self.cutoff + skin) ** 3 / known_volume(edges)
        if atoms < 2 or self.path == "dense" or (self.path == "auto" and share > CROWDED):
            return None
        functions, cells = list_functions(tuple(edges.ravel().tolist()), self.cutoff, skin)
        return make(functions, positions, box, previous, spare=SPARE, cells=cells)

    def update(self, neighbours: Any, positions: Positions, box: Box) -> Any:
        return None if neighbours is None else neighbours.updated(positions, box)

    def overflowed(self, neighbours: Any) -> Array:
        return jnp.asarray(False) if neighbours is None else neighbours.overflowed

    def path_taken(self, neighbours: Any) -> str | None:
        return "dense" if neighbours is None else "list"


def _others(atoms: int) -> np.ndarray:
    """For each atom all others, (atoms, atoms - 1)."""
    shift = np.arange(1, max(atoms, 2))
    return ((np.arange(atoms)[:, None] + shift) % max(atoms, 1)).astype(np.int32)


def cosines(around: Environment) -> Array:
    """cos of the angle between neighbours j and k, (atoms, slots, slots)."""
    unit = around.d / around.r[..., None]
    return jnp.einsum("ija,ika->ijk", unit, unit)


def pairs_of_neighbours(around: Environment) -> Array:
    """Whether j and k are two different neighbours, (atoms, slots, slots)."""
    slots = around.r.shape[1]
    both = around.near[:, :, None] & around.near[:, None, :]
    return both & ~jnp.eye(slots, dtype=bool)


def check_names(params: PyTree, names: dict[str, str], positive: tuple[str, ...]) -> None:
    """Refuse other parameters than these, and what is not positive where it must be."""
    if sorted(params) != sorted(names):
        raise ConfigError(f"needs the parameters {', '.join(names)}", value=sorted(params))
    for key, value in params.items():
        values = np.asarray(value)
        if not np.all(np.isfinite(values)) or (key in positive and np.any(values <= 0)):
            cause = "must be positive" if key in positive else "must be finite"
            raise ConfigError(cause, key=key, value=values.tolist())

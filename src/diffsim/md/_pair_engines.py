"""One set of pair sums, three ways to find the pairs: all of them, JAX-MD's list, or clusters.

The structure that a state carries says which: None, `Neighbours` or `Clusters`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from .._errors import ConfigError
from ._box import Edges, known_volume, sound, triclinic, wrapped
from ._cluster_pairs import cluster_forces, cluster_pullback, cluster_sums
from ._clusters import Clusters, make_clusters
from ._list_pairs import list_forces, list_pullback, list_sums
from ._neighbours import Neighbours, list_functions, make
from ._pairs import pair_forces, pair_pullback, pair_sums
from ._species import Species

Radial = Callable[[PyTree, Array], Any]
Structure = Clusters | Neighbours | None
Path = Literal["auto", "dense", "tiles", "list"]
Precision = Literal["state", "float32", "mixed", "float64"]

PATHS = ("auto", "dense", "tiles", "list")
PRECISIONS = ("state", "float32", "mixed", "float64")

# Tiles cost as much as all pairs where the box holds this many spheres of the reach: of 400 atoms
# of a liquid with a cutoff of 2.5 sigma either is quicker, by precision; of 500 tiles are.
TILED_PAIR = 6
FEWEST_TILED = 400  # under which "auto" stays with all pairs, whatever the box
FEWEST_LISTED = 1000  # of a triclinic box, which has no tiles: fewer are quicker all with all
SPARE = 4  # slots of each atom of a list for neighbours to come: in a gas it may start with none


class PairEngine(eqx.Module):
    """Sums over the pairs of one configuration, at one precision.

    `positions` (atoms, 3), `box` (3,) or (3, 3), `structure`: what `allocate_pairs` made;
    `species`: the kind of each atom, for parameters that are tables. "mixed" computes pairs in
    float32 and keeps sums at the precision of the positions; "float32" rounds those too.
    """

    positions: Float[Array, "atoms 3"]
    box: Edges
    structure: Structure
    species: Species
    precision: Precision = eqx.field(static=True)

    def __check_init__(self):
        if self.species is not None and self.species.shape != self.positions.shape[:1]:
            raise ConfigError(
                f"has {self.species.shape[0]} entries for {self.positions.shape[0]} atoms",
                key="species",
            )
        if isinstance(self.structure, Clusters) and triclinic(self.box):
            raise no_tiles()
        if self.precision == "float64" and jnp.result_type(float) != jnp.float64:
            raise ConfigError(
                "float64 pairs need 64-bit types, which JAX has switched off",
                key="precision",
                allowed="jax.config.update('jax_enable_x64', True), or another precision",
            )

    @property
    def _pairs(self) -> Any:
        if self.precision == "state":
            return self.positions.dtype
        return jnp.dtype("float64" if self.precision == "float64" else "float32")

    @property
    def _sums(self) -> Any:
        return self._pairs if self.precision == "float32" else self.positions.dtype

    def _cast(self, params: PyTree) -> tuple[PyTree, Array, Array]:
        """Parameters, positions and box at the precision of the pairs."""
        kind, x = self._pairs, self.positions
        if kind != x.dtype:
            # Wrapped first: what float32 keeps of an unwrapped coordinate shrinks as it grows.
            x = wrapped(x, self.box)
        return self._params(params), x.astype(kind), self.box.astype(kind)

    def _params(self, params: PyTree) -> PyTree:
        return jax.tree.map(lambda p: jnp.asarray(p).astype(self._pairs), params)

    def _rounded(self, tree: PyTree) -> PyTree:
        """As the positions are."""
        tree = jax.tree.map(lambda g: g.astype(self._sums).astype(self.positions.dtype), tree)
        return sound(tree, self.box)

    def _spoilt(self, tree: PyTree) -> PyTree:
        """By a structure that overflowed."""
        return tree if self.structure is None else self.structure.spoil(tree)

    def forces(self, force_factor: Radial, params: PyTree, scale: Any) -> Float[Array, "atoms 3"]:
        """F_i = Σ_j f(r_ij²) (x_i - x_j); `scale`: the size of a typical force."""
        if isinstance(self.structure, Clusters):
            scale = jax.lax.stop_gradient(jnp.asarray(scale, self.positions.dtype))
            given = self._params(params), self.positions, self.box, self.structure, scale
            return self._rounded(cluster_forces(force_factor, self._pairs, *given, self.species))
        if self.structure is None:
            return self._rounded(pair_forces(force_factor, *self._cast(params), self.species))
        index = self.structure.list.idx
        found = list_forces(force_factor, *self._cast(params), index, self.species)
        return self._spoilt(self._rounded(found))

    def sums(self, radial: Radial, params: PyTree) -> PyTree:
        """Σ_{i<j} g(r_ij²) for each leaf g of `radial(params, s)`."""
        if isinstance(self.structure, Clusters):
            given = self._params(params), self.positions, self.box, self.structure
            found = cluster_sums(radial, self._pairs, *given, self.species)
        elif self.structure is None:
            found = pair_sums(radial, *self._cast(params), self._sums, self.species)
        else:
            # energies of lists are always those of the positions as they are
            given = params, self.positions, self.box, self.structure.list.idx
            found = list_sums(radial, *given, self.species)
        return self._spoilt(self._rounded(found))

    def pullback(
        self, force_factor: Radial, params: PyTree, cotangent: Float[Array, "atoms 3"]
    ) -> tuple[PyTree, Float[Array, "atoms 3"]]:
        """(∂F/∂θ)ᵀ w and (∂F/∂x)ᵀ w."""
        w = cotangent.astype(self._pairs)
        if isinstance(self.structure, Clusters):
            given = self._params(params), self.positions, self.box, w, self.structure
            back = cluster_pullback(force_factor, self._pairs, *given, self.species)
        elif self.structure is None:
            back = pair_pullback(force_factor, *self._cast(params), w, self.species)
        else:
            index = self.structure.list.idx
            back = list_pullback(force_factor, *self._cast(params), w, index, self.species)
        primals = params, self.positions
        return self._spoilt(
            jax.tree.map(lambda ct, p: ct.astype(jnp.asarray(p).dtype), back, primals)
        )


def allocate_pairs(
    path: Path,
    positions: Any,
    box: Any,
    cutoff: float,
    skin: float,
    previous: Structure = None,
) -> Structure:
    """Host side: the structure that a path wants for these positions, None for all pairs."""
    edges = np.asarray(box)
    path = chosen_path(path, positions.shape[0], edges, cutoff + skin)
    if path == "tiles":
        old = previous if isinstance(previous, Clusters) else None
        return make_clusters(positions, box, cutoff, skin, old)
    if path == "list":
        functions, cells = list_functions(tuple(edges.ravel().tolist()), cutoff, skin)
        old = previous if isinstance(previous, Neighbours) else None
        return make(functions, positions, box, old, spare=SPARE, cells=cells)
    return None


def chosen_path(path: Path, atoms: int, edges: np.ndarray, reach: float) -> Path:
    """ "auto" as what it comes to for so many atoms in such a box."""
    if path == "tiles" and triclinic(edges):
        raise no_tiles()
    if atoms < 2:
        return "dense"
    if path != "auto":
        return path
    sphere = 4 / 3 * math.pi * reach**3
    tiled = atoms > FEWEST_TILED and TILED_PAIR * sphere < known_volume(edges)
    if triclinic(edges):
        return "list" if tiled and atoms > FEWEST_LISTED else "dense"
    return "tiles" if tiled else "dense"


def no_tiles() -> ConfigError:
    return ConfigError(
        "tiles are cut along the edges of a rectangular box, and this one is triclinic",
        key="path",
        value="tiles",
        allowed="auto, dense, list",
    )


def path_of(structure: Structure) -> str:
    """Which path a state with this structure takes."""
    if isinstance(structure, Clusters):
        return "tiles"
    return "dense" if structure is None else "list"

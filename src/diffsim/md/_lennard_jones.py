"""The Lennard-Jones potential with its truncations and tail corrections."""

from __future__ import annotations

import math
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Int, PyTree

from .._errors import ConfigError
from ._force_rule import forces_with_pullback
from ._pair_engines import (
    PATHS,
    PRECISIONS,
    PairEngine,
    Path,
    Precision,
    Structure,
    allocate_pairs,
    path_of,
)
from ._potential import AbstractPotential, Box, Positions, Thermo, Vectors
from ._species import check_tables

TRUNCATIONS = ("cut", "shift", "force_shift", "switch")


def _kinds(species: Any) -> Array | None:
    """The kind of each atom, as 32-bit integers."""
    return None if species is None else jnp.asarray(species, jnp.int32)


class LennardJones(AbstractPotential):
    """φ(r) = 4ε[(σ/r)¹² - (σ/r)⁶] up to a cutoff, in a periodic box, minimum image.

    params: `{"epsilon": ε [energy], "sigma": σ [length]}`, scalars. positions: (atoms, 3), box:
    (3,) [length]. `cutoff` is an absolute length, at most half the shortest edge, fixed while ε
    and σ are fitted.

    `truncation`: "cut" leaves U as it is inside the cutoff (its forces sample the shifted energy,
    which is what `driving_energy` and the total energy report); "shift" subtracts φ(rc);
    "force_shift" makes force and energy vanish at rc; "switch" multiplies φ beyond `onset` (default
    0.8 rc) by S = 1 - x³(10 - 15x + 6x²), x = (r² - onset²)/(rc² - onset²): forces have a
    continuous derivative, which long NVE runs and gradients through them want.
    `tail=True` adds what a uniform fluid contributes beyond: for "cut" and "shift"
    U_tail = (8/3)πNρεσ³[(σ/rc)⁹/3 - (σ/rc)³], W_tail = 16πNρεσ³[(2/3)(σ/rc)⁹ - (σ/rc)³]; for
    "switch" the same integrals with the switched part put back.

    `path`: "dense" walks all pairs; "tiles" those of clusters of atoms, built anew when an atom has
    moved by half of `skin` (default 0.16 rc); "list" those of JAX-MD's neighbour list; "auto" takes
    tiles for large boxes: over 500 atoms, where the sphere of radius rc + skin is under a sixth of
    the box. All give the same numbers, but for the last digits. `init` chooses; inside jit or vmap,
    where positions are not known, it takes all pairs, as do `energy`, `forces` and `virial` of bare
    positions.

    `precision` of the pairs: "state", that of the positions; "float64"; "mixed", float32 with sums
    and states at the precision of the positions; "float32", which rounds the sums as well.

    `species`: the kind of each atom, (atoms,) integers from 0; `epsilon` and `sigma` may then be
    symmetric tables (kinds, kinds), one entry for each pair of kinds.

    Derivatives in ε, σ and positions are finite everywhere, at r = 0 and at the cutoff too.
    Source: Allen & Tildesley, Computer Simulation of Liquids, 2nd ed. (2017),
    doi:10.1093/oso/9780198803195.001.0001.
    """

    cutoff: float = eqx.field(static=True, converter=float)
    truncation: Literal["cut", "shift", "force_shift", "switch"] = eqx.field(
        static=True, default="cut"
    )
    tail: bool = eqx.field(static=True, default=False)
    onset: float | None = eqx.field(static=True, default=None, kw_only=True)
    precision: Precision = eqx.field(static=True, default="state", kw_only=True)
    path: Path = eqx.field(static=True, default="auto", kw_only=True)
    skin: float | None = eqx.field(static=True, default=None, kw_only=True)
    species: Int[Array, " atoms"] | None = eqx.field(default=None, kw_only=True, converter=_kinds)

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

    @property
    def reach(self) -> float:
        return self.cutoff

    @property
    def noise_dtype(self) -> Any:
        return jnp.float32 if self.precision in ("mixed", "float32") else None

    def parameter_units(self) -> dict[str, str]:
        return {"epsilon": "energy", "sigma": "length"}

    def check(self, params: PyTree, box: Any) -> None:
        if set(params) != {"epsilon", "sigma"}:
            raise ConfigError("needs the parameters epsilon and sigma", value=sorted(params))
        for name in ("epsilon", "sigma"):
            if not np.all(np.isfinite(params[name])) or np.any(np.asarray(params[name]) <= 0):
                raise ConfigError("must be positive", key=name, value=float(np.min(params[name])))
        check_tables(params, self.species)
        half = float(np.min(box)) / 2
        if not math.isfinite(half) or half <= 0:
            raise ConfigError(
                "must be positive edge lengths", key="box", value=np.asarray(box).tolist()
            )
        if self.cutoff > half * (1 + 1e-12):
            raise ConfigError(
                f"is over half the box ({half:.6g})",
                key="cutoff",
                value=self.cutoff,
                suggestion=f"{math.floor(half * 1e3) / 1e3:g}",
            )

    # Radial functions of s = r²; every one vanishes beyond the cutoff.

    def _inside(self, s: Array) -> tuple[Array, Array]:
        reach = jnp.asarray(self.cutoff**2, s.dtype)
        return s < reach, jnp.minimum(s, reach)

    def _switch(self, s: Array) -> tuple[Array, Array]:
        """S and dS/ds."""
        c, o = self.cutoff**2, self._onset() ** 2
        x = jnp.clip((s - o) / (c - o), 0, 1)
        return 1 - x**3 * (10 - 15 * x + 6 * x * x), -30 * (x * (1 - x)) ** 2 / (c - o)

    def _onset(self) -> float:
        return self.onset if self.onset is not None else 0.8 * self.cutoff

    def _at_cutoff(self, params: PyTree) -> Array:
        """dφ/dr at the cutoff."""
        s6 = (params["sigma"] / self.cutoff) ** 6
        return -24 * params["epsilon"] * (2 * s6 * s6 - s6) / self.cutoff

    def force_factor(self, params: PyTree, s: Array) -> Array:
        """f(s) = -φ'(r)/r, so that the force on i from j is f (x_i - x_j)."""
        inside, s = self._inside(s)
        inverse = 1 / s
        s6 = params["sigma"] * params["sigma"] * inverse
        s6 = s6 * s6 * s6
        factor = 24 * params["epsilon"] * (2 * s6 * s6 - s6) * inverse
        if self.truncation == "force_shift":
            factor = factor + self._at_cutoff(params) * jax.lax.rsqrt(s)
        if self.truncation == "switch":
            value, slope = self._switch(s)
            factor = factor * value - 8 * params["epsilon"] * (s6 * s6 - s6) * slope
        return jnp.where(inside, factor, 0)

    def _powers(self, s: Array) -> tuple[Thermo, Thermo]:
        """What r⁻¹² and r⁻⁶ of one pair, truncated, give to energy, driving energy and virial."""
        return self._power(6, s), self._power(3, s)

    def _power(self, p: int, s: Array) -> Thermo:
        inside, s = self._inside(s)
        plain, at = s**-p, self.cutoff ** (-2 * p)
        energy = driving = plain - at
        virial = 2 * p * plain
        if self.truncation == "cut":
            energy = plain
        if self.truncation == "force_shift":
            r, slope = jnp.sqrt(s), -2 * p * at / self.cutoff
            energy = driving = driving - (r - self.cutoff) * slope
            virial = virial + r * slope
        if self.truncation == "switch":
            value, slope = self._switch(s)
            energy = driving = plain * value
            virial = virial * value - 2 * s * plain * slope
        return Thermo(*(jnp.where(inside, x, 0) for x in (energy, driving, virial)))

    def tail_correction(self, params: PyTree, atoms: int, box: Box) -> tuple[Array, Array]:
        """U_tail and W_tail of a uniform fluid beyond the cutoff, g(r) = 1."""
        epsilon, sigma, share = self._shares(params)
        density = atoms / jnp.prod(box)
        s3 = (sigma / self.cutoff) ** 3
        prefactor = math.pi * atoms * density * epsilon * sigma**3
        energy = jnp.sum(share * 8 / 3 * prefactor * (s3**3 / 3 - s3))
        virial = jnp.sum(share * 16 * prefactor * (2 / 3 * s3**3 - s3))
        if self.truncation == "switch":
            nodes, weights = np.polynomial.legendre.leggauss(48)
            low, high = self._onset(), self.cutoff
            r = jnp.asarray(low + (high - low) * (nodes + 1) / 2)
            w = share[..., None] * jnp.asarray((high - low) / 2 * weights)
            full = LennardJones(2 * self.cutoff, "cut")
            of_pairs = {"epsilon": epsilon[..., None], "sigma": sigma[..., None]}
            missing = jax.tree.map(
                jnp.subtract,
                _combined(of_pairs, full._powers(r**2)),
                _combined(of_pairs, self._powers(r**2)),
            )
            energy = energy + 2 * math.pi * atoms * density * jnp.sum(w * r**2 * missing.energy)
            virial = virial + 2 * math.pi * atoms * density * jnp.sum(w * r**2 * missing.virial)
        return energy, virial

    def _shares(self, params: PyTree) -> tuple[Array, Array, Array]:
        """ε and σ of each pair of kinds, and their share of all pairs of atoms."""
        epsilon, sigma = jnp.broadcast_arrays(params["epsilon"], params["sigma"])
        if self.species is None or epsilon.ndim == 0:
            return epsilon, sigma, jnp.ones((), epsilon.dtype)
        same = self.species[:, None] == jnp.arange(len(epsilon))
        parts = jnp.mean(same.astype(epsilon.dtype), axis=0)
        return epsilon, sigma, parts[:, None] * parts

    # Sums over a configuration.

    def _law(self) -> LennardJones:
        """The functions of a pair alone, without the atoms' kinds."""
        return eqx.tree_at(lambda p: p.species, self, None, is_leaf=lambda x: x is None)

    def _engine(self, positions: Positions, box: Box, neighbours: Structure) -> PairEngine:
        positions = jnp.asarray(positions)
        box = jnp.asarray(box, positions.dtype)
        return PairEngine(positions, box, neighbours, self.species, self.precision)

    def features(self, positions: Positions, box: Box, neighbours: Any = None) -> PyTree:
        if self.species is not None:  # one sum for all pairs does not tell those of each kind
            return None
        return self._engine(positions, box, neighbours).sums(lambda _, s: self._powers(s), {})

    def thermo(
        self,
        params: PyTree,
        positions: Positions,
        box: Box,
        neighbours: Any = None,
        features: PyTree = None,
    ) -> Thermo:
        dtype = jnp.asarray(positions).dtype
        params = {k: jnp.asarray(v, dtype) for k, v in params.items()}
        if features is not None:
            sums = _combined(params, features)
        else:  # combined pair by pair: the two sums nearly cancel, which float32 would feel
            law = self._law()
            radial = lambda p, s: _combined(p, law._powers(s))  # noqa: E731
            sums = self._engine(positions, box, neighbours).sums(radial, params)
        if not self.tail:
            return sums
        box = jnp.asarray(box, dtype)
        energy, virial = self.tail_correction(params, jnp.shape(positions)[0], box)
        return Thermo(sums.energy + energy, sums.driving, sums.virial + virial)

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
        rest = neighbours, self.species
        return forces_with_pullback(law._forces, law._pullback, params, positions, box, rest)

    def _forces(self, params: PyTree, positions: Array, box: Array, rest: Any) -> Array:
        scale = jnp.max(jnp.asarray(params["epsilon"] / params["sigma"]))
        engine = PairEngine(positions, box, rest[0], rest[1], self.precision)
        return engine.forces(self.force_factor, params, scale)

    def _pullback(
        self, params: PyTree, positions: Array, box: Array, rest: Any, w: Array
    ) -> tuple[PyTree, Array]:
        engine = PairEngine(positions, box, rest[0], rest[1], self.precision)
        return engine.pullback(self.force_factor, params, w)

    def pullback(
        self,
        params: PyTree,
        positions: Positions,
        box: Box,
        cotangent: Vectors,
        neighbours: Any = None,
    ) -> tuple[PyTree, Vectors]:
        positions = jnp.asarray(positions)
        box, rest = jnp.asarray(box, positions.dtype), (neighbours, self.species)
        return self._law()._pullback(params, positions, box, rest, cotangent)

    # The choice of path.

    @property
    def allocates(self) -> bool:
        return self.path != "dense"

    def allocate(self, params: PyTree, positions: Positions, box: Box, previous: Any = None) -> Any:
        if any(isinstance(x, Tracer) for x in (positions, box)):
            return None
        skin = self.skin if self.skin is not None else 0.16 * self.cutoff
        return allocate_pairs(self.path, positions, box, self.cutoff, skin, previous)

    def path_taken(self, neighbours: Any) -> str:
        return path_of(neighbours)

    def update(self, neighbours: Any, positions: Positions, box: Box) -> Any:
        return None if neighbours is None else neighbours.updated(positions, box)

    def overflowed(self, neighbours: Any) -> Array:
        return jnp.asarray(False) if neighbours is None else neighbours.overflowed


def _combined(params: PyTree, features: tuple[Thermo, Thermo]) -> Thermo:
    """4εσ¹² of the repulsive sums less 4εσ⁶ of the attractive ones."""
    sixth = params["sigma"] ** 6
    attraction = 4 * params["epsilon"] * sixth
    return jax.tree.map(lambda r, a: attraction * (sixth * r - a), *features)

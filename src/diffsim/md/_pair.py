"""Any law of pairs as a potential: truncated, mixed, with tail corrections."""

from __future__ import annotations

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PyTree

from .._errors import ConfigError
from ._box import volume
from ._checks import check_sign
from ._exclusions import Exclusions
from ._pair_engines import Path, Precision
from ._pair_laws import AbstractPairLaw, checked_law
from ._pair_potential import AbstractPairPotential, Truncation, kinds_of
from ._potential import Box, Positions, Thermo
from ._species import check_tables, mixed, of_no_order

_RULES = {"mean": "lorentz_berthelot", "root": "geometric"}


class Pair(AbstractPairPotential):
    """U = Σ_{i<j} φ(θ, r_ij) of any law: `md.Mie()`, `md.Morse()`, `md.Buckingham()`,
    `md.SoftSphere()`, `md.InversePower()`, `md.Yukawa()`, `md.Tabulated(...)`.

    `Pair(md.Morse(), cutoff=9.0, truncation="switch")`. params: those of the law, as numbers; with
    `species`, also symmetric tables (kinds, kinds) or one number a kind (kinds,), which are mixed
    as the law says. The other arguments are those of `LennardJones`: `truncation`, `tail`, `onset`,
    `precision`, `path`, `skin`, `species`, `exclusions`; the same engine walks the pairs. The tail
    is integrated numerically, to 1e-10 or better for powers and exponentials.

    In free space, take a box that keeps the images out: edges of the molecule's size plus twice the
    cutoff.
    """

    law: AbstractPairLaw
    cutoff: float = eqx.field(static=True)
    truncation: Truncation = eqx.field(static=True)
    tail: bool = eqx.field(static=True)
    onset: float | None = eqx.field(static=True)
    precision: Precision = eqx.field(static=True)
    path: Path = eqx.field(static=True)
    skin: float | None = eqx.field(static=True)
    species: Int[Array, " atoms"] | None
    exclusions: Exclusions | None

    def __init__(
        self,
        law: AbstractPairLaw,
        cutoff: float,
        truncation: Truncation = "cut",
        tail: bool = False,
        *,
        onset: float | None = None,
        precision: Precision = "state",
        path: Path = "auto",
        skin: float | None = None,
        species: Any = None,
        exclusions: Exclusions | None = None,
    ):
        self.law, self.cutoff = checked_law("law", law), float(cutoff)
        self.truncation, self.tail = truncation, tail
        self.onset, self.precision, self.path, self.skin = onset, precision, path, skin
        self.species, self.exclusions = kinds_of(species), exclusions

    def __check_init__(self):
        if self.tail and not self.law.decays:
            raise ConfigError(
                f"{type(self.law).__name__} does not say how it falls off beyond the cutoff",
                key="tail",
                allowed="tail=False",
            )
        if self.species is not None and not self.law.scalar:
            raise ConfigError(
                f"{type(self.law).__name__} is for one kind of atom", key="species", allowed="null"
            )

    @property
    def elementwise(self) -> bool:
        return self.law.scalar

    def parameter_units(self) -> dict[str, str]:
        return dict(self.law.units)

    def check(self, params: PyTree, box: Any) -> None:
        names = sorted(self.law.units)
        if sorted(params) != names:
            raise ConfigError(f"needs the parameters {', '.join(names)}", value=sorted(params))
        for name, value in params.items():
            values = np.asarray(value)
            check_sign(name, values, name in self.law.vanishing, name in self.law.signed)
        if self.law.scalar:
            check_tables(params, self.species)
        self.law.check(params if not self.law.rules else self._mixed(params), self.cutoff)
        self.check_box(box)

    def _mixed(self, params: PyTree) -> PyTree:
        rules = self.law.rules
        return {
            k: mixed(v, _RULES[rules[k]]) if k in rules else of_no_order(jnp.asarray(v))
            for k, v in params.items()
        }

    def tables(self, params: PyTree) -> PyTree:
        law = self.law.prepare(self._mixed(params))
        kind = jnp.result_type(*jax.tree.leaves(law), jnp.float32)
        at, slope = self._curve(law, jnp.asarray(self.cutoff, kind))
        return {"law": law, "at": at, "slope": slope}

    def _curve(self, params: PyTree, r: Array) -> tuple[Array, Array]:
        """φ and dφ/dr."""
        return jax.jvp(lambda r: self.law.energy(params, r), (r,), (jnp.ones_like(r),))

    def force_scale(self, params: PyTree) -> Array:
        return jnp.max(jnp.asarray(self.law.scale(params["law"])))

    def force_factor(self, params: PyTree, s: Array) -> Array:
        inside, s = self.inside(s)
        r = jnp.sqrt(s)
        energy, slope = self._curve(params["law"], r)
        if self.truncation == "force_shift":
            slope = slope - params["slope"]
        factor = -slope / r
        if self.truncation == "switch":
            value, steep = self.switch(s)
            factor = factor * value - 2 * energy * steep
        return jnp.where(inside, factor, 0)

    def pair_thermo(self, params: PyTree, s: Array) -> Thermo:
        inside, s = self.inside(s)
        r = jnp.sqrt(s)
        plain, slope = self._curve(params["law"], r)
        energy = driving = plain - params["at"]
        if self.truncation == "cut":
            energy = plain
        if self.truncation == "force_shift":
            energy = driving = driving - (r - self.cutoff) * params["slope"]
            slope = slope - params["slope"]
        virial = -r * slope
        if self.truncation == "switch":
            value, steep = self.switch(s)
            energy = driving = plain * value
            virial = virial * value - 2 * s * plain * steep
        return Thermo(*(jnp.where(inside, x, 0) for x in (energy, driving, virial)))

    def features(self, positions: Positions, box: Box, neighbours: Any = None) -> PyTree:
        if not self.law.linear or self.exclusions is not None:
            return None
        x = jnp.asarray(positions)
        shapes = {name: jnp.ones(n, x.dtype) for name, n in self.law.shapes().items()}
        zero = jax.tree.map(jnp.zeros_like, self.tables(shapes))
        sums = lambda tables: self.sums(tables, x, box, self._rest(neighbours))  # noqa: E731
        return jax.jacrev(sums)(zero)  # of a linear function, all there is to know

    def of_features(self, params: PyTree, features: PyTree) -> Thermo:
        def total(slopes: PyTree) -> Array:
            return sum(map(jnp.vdot, *map(jax.tree.leaves, (slopes, params))), jnp.zeros(()))

        return Thermo(*(total(s) for s in (features.energy, features.driving, features.virial)))

    def tail_correction(self, params: PyTree, atoms: int, box: Box) -> tuple[Array, Array]:
        law = self.law.prepare(self._mixed(params))
        nodes, weights = np.polynomial.legendre.leggauss(64)
        u, du = (nodes + 1) / 2, weights / 2
        # r = rc/u takes what is beyond the cutoff to (0, 1]
        energy, virial = self._integrals(law, self.cutoff / u, self.cutoff * du / u**2, False)
        if self.truncation == "switch":
            low, width = self._onset(), self.cutoff - self._onset()
            more = self._integrals(law, low + width * u, width * du, True)
            energy, virial = energy + more[0], virial + more[1]
        per_pair = 2 * math.pi * atoms * atoms / volume(box)
        share = self.shares(energy)
        return per_pair * jnp.sum(share * energy), per_pair * jnp.sum(share * virial)

    def _integrals(
        self, law: PyTree, r: np.ndarray, w: np.ndarray, switched: bool
    ) -> tuple[Array, Array]:
        """∫ φ r² dr and ∫ -φ' r³ dr for each pair of kinds; less what is there, if switched."""
        apart = jax.tree.map(lambda p: jnp.asarray(p)[..., None], law)
        # far out an exponential is zero, and powers of r would overflow
        kind = jnp.result_type(*jax.tree.leaves(law), jnp.float32)
        at = jnp.asarray(r, kind)
        energy, slope = self._curve(apart, jnp.broadcast_to(at, jnp.shape(self._first(apart, at))))
        virial = -at * slope
        if switched:
            value, steep = self.switch(at**2)
            energy, virial = energy * (1 - value), virial * (1 - value) + 2 * at**2 * energy * steep
        share = jnp.asarray(w, kind) * at**2
        return jnp.sum(share * energy, -1), jnp.sum(share * virial, -1)

    def _first(self, law: PyTree, r: Array) -> Any:
        return jax.eval_shape(self.law.energy, law, r)

"""The Lennard-Jones potential with its truncations and tail corrections."""

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
from ._pair_potential import AbstractPairPotential, Truncation, kinds_of
from ._potential import Box, Positions, Thermo
from ._species import Mixing, check_mixing, check_tables, mixed


class LennardJones(AbstractPairPotential):
    """φ(r) = 4ε[(σ/r)¹² - (σ/r)⁶] up to a cutoff, in a periodic box, minimum image.

    params: `{"epsilon": ε [energy], "sigma": σ [length]}`, scalars. positions: (atoms, 3), box:
    (3,) edges or (3, 3) vectors [length]. `cutoff` is an absolute length, at most half the shortest
    edge (of a_x, b_y, c_z), fixed while ε and σ are fitted.

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
    the box; a triclinic one has no tiles, and over 1,000 atoms the list. All give the same numbers,
    but for the last digits. `init` chooses; inside jit or vmap, where positions are not known, it
    takes all pairs, as do `energy`, `forces` and `virial` of bare positions.

    `precision` of the pairs: "state", that of the positions; "float64"; "mixed", float32 with sums
    and states at the precision of the positions; "float32", which rounds the sums as well.

    `species`: the kind of each atom, (atoms,) integers from 0. `epsilon` and `sigma` may then be
    symmetric tables (kinds, kinds), each pair of kinds free, or one number a kind (kinds,), which
    `mixing` combines: "lorentz_berthelot" σ_ab = (σ_a + σ_b)/2, ε_ab = √(ε_a ε_b), or "geometric"
    for both. `exclusions`: pairs of a molecule that do not interact, or in part (`exclusions()`).
    `itself`: whether the tail counts n_a(n_a + 1) pairs of like atoms, each with itself, where the
    fluid has n_a²: OpenMM's dispersion correction, which differs in mixtures by 1/N of the tail.

    Derivatives in ε, σ and positions are finite everywhere, at r = 0 and at the cutoff too.
    Source: Allen & Tildesley, Computer Simulation of Liquids, 2nd ed. (2017),
    doi:10.1093/oso/9780198803195.001.0001.
    """

    cutoff: float = eqx.field(static=True, converter=float)
    truncation: Truncation = eqx.field(static=True, default="cut")
    tail: bool = eqx.field(static=True, default=False)
    onset: float | None = eqx.field(static=True, default=None, kw_only=True)
    precision: Precision = eqx.field(static=True, default="state", kw_only=True)
    path: Path = eqx.field(static=True, default="auto", kw_only=True)
    skin: float | None = eqx.field(static=True, default=None, kw_only=True)
    species: Int[Array, " atoms"] | None = eqx.field(default=None, kw_only=True, converter=kinds_of)
    exclusions: Exclusions | None = eqx.field(default=None, kw_only=True)
    mixing: Mixing = eqx.field(static=True, default="lorentz_berthelot", kw_only=True)
    itself: bool = eqx.field(static=True, default=False, kw_only=True)

    def __check_init__(self):
        check_mixing(self.mixing)

    def parameter_units(self) -> dict[str, str]:
        return {"epsilon": "energy", "sigma": "length"}

    def tables(self, params: PyTree) -> PyTree:
        return {
            "epsilon": mixed(params["epsilon"], "geometric"),
            "sigma": mixed(params["sigma"], self.mixing),
        }

    def force_scale(self, params: PyTree) -> Array:
        return jnp.max(jnp.asarray(params["epsilon"] / params["sigma"]))

    def check(self, params: PyTree, box: Any) -> None:
        if set(params) != {"epsilon", "sigma"}:
            raise ConfigError("needs the parameters epsilon and sigma", value=sorted(params))
        for name in ("epsilon", "sigma"):
            # atoms without ε do not interact
            check_sign(name, params[name], vanishing=name == "epsilon")
        check_tables(params, self.species)
        self.check_box(box)

    # Radial functions of s = r²; every one vanishes beyond the cutoff.

    def _at_cutoff(self, params: PyTree) -> Array:
        """dφ/dr at the cutoff."""
        s6 = (params["sigma"] / self.cutoff) ** 6
        return -24 * params["epsilon"] * (2 * s6 * s6 - s6) / self.cutoff

    def force_factor(self, params: PyTree, s: Array) -> Array:
        inside, s = self.inside(s)
        inverse = 1 / s
        s6 = params["sigma"] * params["sigma"] * inverse
        s6 = s6 * s6 * s6
        factor = 24 * params["epsilon"] * (2 * s6 * s6 - s6) * inverse
        if self.truncation == "force_shift":
            factor = factor + self._at_cutoff(params) * jax.lax.rsqrt(s)
        if self.truncation == "switch":
            value, slope = self.switch(s)
            factor = factor * value - 8 * params["epsilon"] * (s6 * s6 - s6) * slope
        return jnp.where(inside, factor, 0)

    def _powers(self, s: Array) -> tuple[Thermo, Thermo]:
        """What r⁻¹² and r⁻⁶ of one pair, truncated, give to energy, driving energy and virial."""
        return self._power(6, s), self._power(3, s)

    def _power(self, p: int, s: Array) -> Thermo:
        inside, s = self.inside(s)
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
            value, slope = self.switch(s)
            energy = driving = plain * value
            virial = virial * value - 2 * s * plain * slope
        return Thermo(*(jnp.where(inside, x, 0) for x in (energy, driving, virial)))

    def tail_correction(self, params: PyTree, atoms: int, box: Box) -> tuple[Array, Array]:
        params = self.tables(jax.tree.map(jnp.asarray, params))
        epsilon, sigma = jnp.broadcast_arrays(params["epsilon"], params["sigma"])
        share = self.shares(epsilon)
        if self.itself and share.ndim:
            share = (atoms * share + jnp.diag(jnp.sum(share, axis=1))) / (atoms + 1)
        density = atoms / volume(box)
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

    # Sums over a configuration.

    def features(self, positions: Positions, box: Box, neighbours: Any = None) -> PyTree:
        if self.species is not None or self.exclusions is not None:
            return None  # one sum for all pairs does not tell those of each kind
        engine = self._engine(positions, box, self._rest(neighbours))
        return engine.sums(lambda _, s: self._powers(s), {})

    def of_features(self, params: PyTree, features: PyTree) -> Thermo:
        return _combined(params, features)

    def pair_thermo(self, params: PyTree, s: Array) -> Thermo:
        # combined pair by pair: the two sums nearly cancel, which float32 would feel
        return _combined(params, self._powers(s))


def _combined(params: PyTree, features: tuple[Thermo, Thermo]) -> Thermo:
    """4εσ¹² of the repulsive sums less 4εσ⁶ of the attractive ones."""
    sixth = params["sigma"] ** 6
    attraction = 4 * params["epsilon"] * sixth
    return jax.tree.map(lambda r, a: attraction * (sixth * r - a), *features)

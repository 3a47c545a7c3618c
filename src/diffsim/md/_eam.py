"""The embedded-atom method: metals."""

from __future__ import annotations

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from .._errors import ConfigError
from .._units import convert
from ._many_body import AbstractManyBody, Environment, Where
from ._pair_laws import AbstractPairLaw, InversePower, checked_law
from ._pair_potential import kinds_of
from ._units import UnitSystem, unit_system


class SquareRoot(AbstractPairLaw):
    """F = -A √ρ: the embedding energy of Finnis, Sinclair, Sutton and Chen.

    params: `A` [energy] for a density without unit. At ρ = 0, an atom alone, the slope is taken as
    0.
    """

    units: ClassVar = {"A": "energy"}

    def energy(self, params: PyTree, r: Array) -> Array:
        some = r > 0
        return -params["A"] * jnp.where(some, jnp.sqrt(jnp.where(some, r, 1)), 0)

    def scale(self, params: PyTree) -> Array:
        return params["A"]


class Exponential(AbstractPairLaw):
    """φ = A e^(-p(r/r₀ - 1)), as of Gupta, Cleri and Rosato.

    params: `A` [energy, or none for a density], `p`, `r0` [length].
    """

    units: ClassVar = {"A": "energy", "p": "dimensionless", "r0": "length"}
    rules: ClassVar = {"A": "root", "p": "mean", "r0": "mean"}

    def energy(self, params: PyTree, r: Array) -> Array:
        return params["A"] * jnp.exp(-params["p"] * (r / params["r0"] - 1))

    def scale(self, params: PyTree) -> Array:
        return params["A"] / params["r0"]


class EAM(AbstractManyBody):
    """U = Σ_i [F(ρ_i) + ½ Σ_j S(r_ij) φ(r_ij)],  ρ_i = Σ_j S(r_ij) f(r_ij).

    φ, f and F are laws of one number, as `Pair` takes them: `InversePower`, `Exponential`,
    `Morse`, `Tabulated`; F also `SquareRoot`. S falls smoothly from 1 at `onset` to 0 at `cutoff`
    (default: 0.95 of it). params: those of the laws, with `pair_`, `density_` and `embedding_`
    before their names (`pair_epsilon`). One kind of atom. Sources: Daw & Baskes 1984,
    doi:10.1103/PhysRevB.29.6443; Sutton & Chen 1990, doi:10.1080/09500839008206493.
    """

    cutoff: float = eqx.field(static=True, converter=float)
    pair: AbstractPairLaw = eqx.field(default_factory=InversePower)
    density: AbstractPairLaw = eqx.field(default_factory=InversePower)
    embedding: AbstractPairLaw = eqx.field(default_factory=SquareRoot)
    onset: float | None = eqx.field(static=True, default=None, kw_only=True)
    path: Where = eqx.field(static=True, default="auto", kw_only=True)
    skin: float | None = eqx.field(static=True, default=None, kw_only=True)
    species: Int[Array, " atoms"] | None = eqx.field(default=None, kw_only=True, converter=kinds_of)

    def __check_init__(self):
        for name, law in self._laws().items():
            checked_law(name, law)
        if self.onset is not None and not 0 < self.onset < self.cutoff:
            raise ConfigError(
                "must lie between 0 and the cutoff, below it", key="onset", value=self.onset
            )

    def site_energies(self, params: PyTree, around: Environment) -> Float[Array, " atoms"]:
        p, r = self._prepared(params, around.r.dtype), around.r
        onset = self.onset if self.onset is not None else 0.95 * self.cutoff
        x = jnp.clip((r - onset) / (self.cutoff - onset), 0, 1)
        share = jnp.where(around.near, 1 - x**3 * (10 - 15 * x + 6 * x * x), 0)
        density = jnp.sum(share * self.density.energy(p["density"], r), axis=1)
        pairs = jnp.sum(share * self.pair.energy(p["pair"], r), axis=1)
        return self.embedding.energy(p["embedding"], density) + 0.5 * pairs

    def _laws(self) -> dict[str, AbstractPairLaw]:
        return {"pair": self.pair, "density": self.density, "embedding": self.embedding}

    def _prepared(self, params: PyTree, dtype: Any) -> dict[str, PyTree]:
        given = jax.tree.map(lambda v: jnp.asarray(v, dtype), dict(params))
        return {n: law.prepare(self._own(given, n)) for n, law in self._laws().items()}

    def _own(self, params: PyTree, name: str) -> PyTree:
        start = f"{name}_"
        return {k.removeprefix(start): v for k, v in params.items() if k.startswith(start)}

    def check(self, params: PyTree, box: Any) -> None:
        names = {f"{n}_{k}" for n, law in self._laws().items() for k in law.units}
        if set(params) != names:
            raise ConfigError(
                f"needs the parameters {', '.join(sorted(names))}", value=sorted(params)
            )
        if not all(np.all(np.isfinite(np.asarray(v))) for v in params.values()):
            raise ConfigError("must be finite", key="parameters")
        for name in ("pair", "density"):
            self._laws()[name].check(self._own(params, name), self.cutoff)
        self.check_box(box)

    def parameter_units(self) -> dict[str, str]:
        found = {f"{n}_{k}": u for n, law in self._laws().items() for k, u in law.units.items()}
        # a density has no unit
        plain = [k for k, u in found.items() if k.startswith("density_") and u == "energy"]
        return found | dict.fromkeys(plain, "dimensionless")


# ε [eV], a [angstrom], c, n, m of Sutton and Chen 1990.
_SUTTON_CHEN = {
    "Ni": (1.5707e-2, 3.52, 39.432, 9, 6),
    "Cu": (1.2382e-2, 3.61, 39.432, 9, 6),
    "Rh": (4.9371e-3, 3.80, 144.41, 12, 6),
    "Pd": (4.1790e-3, 3.89, 108.27, 12, 7),
    "Ag": (2.5415e-3, 4.09, 144.41, 12, 6),
    "Ir": (2.4489e-3, 3.84, 334.94, 14, 6),
    "Pt": (1.9833e-2, 3.92, 34.408, 10, 8),
    "Au": (1.2793e-2, 4.08, 34.408, 10, 8),
    "Pb": (5.5765e-3, 4.95, 45.778, 10, 7),
    "Al": (3.3147e-2, 4.05, 16.399, 7, 6),
}


def sutton_chen(element: str, units: str | UnitSystem = "metal") -> dict[str, float]:
    """Parameters of `EAM(cutoff)` for a metal: U = ε Σ_i [½ Σ_j (a/r)ⁿ - c √(Σ_j (a/r)ᵐ)]."""
    if element not in _SUTTON_CHEN:
        raise ConfigError("no such metal", key="element", value=element, allowed=_SUTTON_CHEN)
    epsilon, a, c, n, m = _SUTTON_CHEN[element]
    system = unit_system(units)
    energy, length = convert(epsilon, "eV", system.energy), convert(a, "angstrom", system.length)
    return {
        "pair_epsilon": energy,
        "pair_sigma": length,
        "pair_n": float(n),
        "density_epsilon": 1.0,
        "density_sigma": length,
        "density_n": float(m),
        "embedding_A": energy * c,
    }

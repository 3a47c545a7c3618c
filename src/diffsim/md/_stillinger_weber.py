"""Stillinger and Weber's potential for tetrahedral crystals and their liquids."""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from .._errors import ConfigError
from .._units import convert
from ._many_body import AbstractManyBody, Environment, Where, check_names, cosines
from ._many_body import pairs_of_neighbours as others
from ._pair_potential import kinds_of
from ._units import UnitSystem, unit_system

_UNITS = {
    "epsilon": "energy",
    "sigma": "length",
    **dict.fromkeys(("a", "lam", "gamma", "cos_theta0", "A", "B", "p", "q"), "dimensionless"),
}


class StillingerWeber(AbstractManyBody):
    """U = Σ_{i<j} φ₂(r_ij) + Σ_i Σ_{j<k} φ₃(r_ij, r_ik, θ_jik),

    φ₂ = ε A [B (σ/r)ᵖ - (σ/r)^q] e^(σ/(r - aσ)),
    φ₃ = ε λ (cos θ - cos θ₀)² e^(γσ/(r_ij - aσ)) e^(γσ/(r_ik - aσ)), both 0 beyond aσ.

    params: `epsilon` [energy], `sigma` [length], and the numbers `a`, `lam` (λ), `gamma`,
    `cos_theta0`, `A`, `B`, `p`, `q`; `stillinger_weber_silicon()` has those of silicon. `cutoff`
    [length] at least aσ, fixed in a fit; one kind of atom. Every derivative is continuous at aσ.
    Source: Stillinger & Weber 1985, doi:10.1103/PhysRevB.31.5262.
    """

    cutoff: float = eqx.field(static=True, converter=float)
    path: Where = eqx.field(static=True, default="auto", kw_only=True)
    skin: float | None = eqx.field(static=True, default=None, kw_only=True)
    species: Int[Array, " atoms"] | None = eqx.field(default=None, kw_only=True, converter=kinds_of)

    def site_energies(self, params: PyTree, around: Environment) -> Float[Array, " atoms"]:
        p = {k: jnp.asarray(v, around.r.dtype) for k, v in params.items()}
        x = around.r / p["sigma"]
        inside = around.near & (x < p["a"])
        gap = jnp.where(inside, x - p["a"], -1)
        log = -jnp.log(x)
        shape = p["B"] * jnp.exp(p["p"] * log) - jnp.exp(p["q"] * log)
        two = p["epsilon"] * p["A"] * shape * jnp.exp(1 / gap)
        reach = jnp.where(inside, jnp.exp(p["gamma"] / gap), 0)
        bend = jnp.where(others(around), (cosines(around) - p["cos_theta0"]) ** 2, 0)
        three = jnp.sum(bend * reach[:, :, None] * reach[:, None, :], axis=(1, 2))
        pairs = jnp.sum(jnp.where(inside, two, 0), axis=1)
        return 0.5 * (pairs + p["epsilon"] * p["lam"] * three)

    def check(self, params: PyTree, box: object) -> None:
        check_names(params, _UNITS, ("epsilon", "sigma", "a", "gamma"))
        reach = float(np.max(np.asarray(params["a"]) * np.asarray(params["sigma"])))
        if reach > self.cutoff:
            raise ConfigError(
                "is under aσ", key="cutoff", value=self.cutoff, suggestion=f"{reach:g}"
            )
        self.check_box(box)

    def parameter_units(self) -> dict[str, str]:
        return dict(_UNITS)


def stillinger_weber_silicon(units: str | UnitSystem = "metal") -> dict[str, float]:
    """The parameters of the paper: diamond at 5.431 angstrom has -2ε = -4.3365 eV an atom."""
    system = unit_system(units)
    energy = convert(2.16826, "eV", system.energy)
    sigma = convert(2.0951, "angstrom", system.length)
    numbers = dict(a=1.8, lam=21.0, gamma=1.2, cos_theta0=-1 / 3, A=7.049556277, B=0.6022245584)
    return {"epsilon": energy, "sigma": sigma, **numbers, "p": 4.0, "q": 0.0}

"""Tersoff's potential: bonds weakened by how many others an atom has."""

from __future__ import annotations

import math

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from .._errors import ConfigError
from .._units import convert
from ._many_body import (
    AbstractManyBody,
    Environment,
    Where,
    check_names,
    cosines,
    pairs_of_neighbours,
)
from ._pair_potential import kinds_of
from ._units import UnitSystem, unit_system

_UNITS = {
    "A": "energy",
    "B": "energy",
    "lambda1": "1/length",
    "lambda2": "1/length",
    "lambda3": "1/length",
    **dict.fromkeys(("beta", "n", "c", "d", "h"), "dimensionless"),
    "R": "length",
    "D": "length",
}


class Tersoff(AbstractManyBody):
    """U = ½ Σ_i Σ_j f(r) [A e^(-λ₁r) - b_ij B e^(-λ₂r)],  b = (1 + (βζ)ⁿ)^(-1/2n),

    ζ_ij = Σ_k f(r_ik) g(θ_jik) e^(λ₃³(r_ij - r_ik)³),  g = 1 + c²/d² - c²/(d² + (h - cos θ)²),
    f = 1 below R - D, ½ - ½ sin(π(r - R)/2D), 0 beyond R + D.

    params: `A`, `B` [energy], `lambda1`, `lambda2`, `lambda3` [1/length], `beta`, `n`, `c`, `d`,
    `h`, `R`, `D` [length]; `tersoff_silicon()` has those of silicon. `cutoff` [length] at least
    R + D, fixed in a fit; one kind of atom. The force has a kink at R ± D, as f has.
    Source: Tersoff 1988, doi:10.1103/PhysRevB.38.9902.
    """

    cutoff: float = eqx.field(static=True, converter=float)
    path: Where = eqx.field(static=True, default="auto", kw_only=True)
    skin: float | None = eqx.field(static=True, default=None, kw_only=True)
    species: Int[Array, " atoms"] | None = eqx.field(default=None, kw_only=True, converter=kinds_of)

    def site_energies(self, params: PyTree, around: Environment) -> Float[Array, " atoms"]:
        p = {k: jnp.asarray(v, around.r.dtype) for k, v in params.items()}
        r = around.r
        x = jnp.clip((r - p["R"]) / p["D"], -1, 1)
        within = jnp.where(around.near, 0.5 - 0.5 * jnp.sin(math.pi / 2 * x), 0)
        bond = self._order(p, around, within)
        repel, attract = p["A"] * jnp.exp(-p["lambda1"] * r), p["B"] * jnp.exp(-p["lambda2"] * r)
        return 0.5 * jnp.sum(within * (repel - bond * attract), axis=1)

    def _order(self, p: PyTree, around: Environment, within: Array) -> Array:
        """b_ij, (atoms, slots)."""
        c2, d2 = p["c"] ** 2, p["d"] ** 2
        g = 1 + c2 / d2 - c2 / (d2 + (p["h"] - cosines(around)) ** 2)
        apart = p["lambda3"] * (around.r[:, :, None] - around.r[:, None, :])
        beside = pairs_of_neighbours(around)
        stretch = jnp.exp(jnp.where(beside, apart, 0) ** 3)
        zeta = jnp.sum(jnp.where(beside, within[:, None, :] * g * stretch, 0), axis=2)
        # an atom with one neighbour: ζ = 0, where ζⁿ has no slope
        some = zeta > 1e-30
        power = jnp.exp(p["n"] * jnp.log(jnp.where(some, p["beta"] * zeta, 1)))
        order = jnp.exp(-jnp.log1p(power) / (2 * p["n"]))
        return jnp.where(some, order, 1)

    def check(self, params: PyTree, box: object) -> None:
        check_names(params, _UNITS, ("A", "B", "lambda1", "lambda2", "beta", "n", "d", "R", "D"))
        reach = float(np.max(np.asarray(params["R"]) + np.asarray(params["D"])))
        if reach > self.cutoff:
            raise ConfigError(
                "is under R + D", key="cutoff", value=self.cutoff, suggestion=f"{reach:g}"
            )
        self.check_box(box)

    def parameter_units(self) -> dict[str, str]:
        return dict(_UNITS)


def tersoff_silicon(units: str | UnitSystem = "metal") -> dict[str, float]:
    """Si(C) of the paper (T3): diamond at 5.432 angstrom has -4.6296 eV an atom."""
    system = unit_system(units)
    energy = lambda value: convert(value, "eV", system.energy)  # noqa: E731
    length = convert(1.0, "angstrom", system.length)
    return {
        "A": energy(1830.8),
        "B": energy(471.18),
        "lambda1": 2.4799 / length,
        "lambda2": 1.7322 / length,
        "lambda3": 0.0,
        "beta": 1.1e-6,
        "n": 0.78734,
        "c": 1.0039e5,
        "d": 16.217,
        "h": -0.59825,
        "R": 2.85 * length,
        "D": 0.15 * length,
    }

"""Predators and their prey."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from ..._laws import AbstractLaw, Conserved
from ._abstract import AbstractSystem, Vector


class LotkaVolterra(AbstractSystem):
    """x' = (α - β y) x,  y' = (-γ + δ x) y: prey x and predators y.

    y: (2,) `prey`, `predator` [number, or density], both positive. Parameters: `alpha`, growth of
    the prey [1/time]; `beta`, how much of it a predator eats [1/(predator time)]; `gamma`, death of
    the predators [1/time]; `delta`, their growth a prey [1/(prey time)].

    Every orbit is closed around (γ/δ, α/β), on a level of V = δx - γ ln x + βy - α ln y, observed
    as `invariant`; small ones have the period 2π/√(αγ). For the pelts of hare and lynx, in
    thousands and years: 0.55, 0.028, 0.80, 0.024.

    Source: Lotka, J. Phys. Chem. 14, 271 (1910), doi:10.1021/j150111a004; Volterra, Nature 118, 558
    (1926), doi:10.1038/118558a0.
    """

    @property
    def components(self) -> tuple[str, ...]:
        return ("prey", "predator")

    def __call__(self, t: Any, y: Vector, args: Any) -> Float[Array, "n"]:
        del t
        prey, predator = y[0], y[1]
        growth = args["alpha"] - args["beta"] * predator
        decline = -args["gamma"] + args["delta"] * prey
        return jnp.stack([growth * prey, decline * predator])

    def observe(self, t: Any, y: Vector, args: Any) -> dict[str, Array]:
        del t
        prey, predator = y[0], y[1]
        of_prey = args["delta"] * prey - args["gamma"] * jnp.log(prey)
        of_predator = args["beta"] * predator - args["alpha"] * jnp.log(predator)
        return {"invariant": of_prey + of_predator}

    def laws(self, rtol: float = 1e-4) -> tuple[AbstractLaw, ...]:
        return (Conserved("invariant", rtol),)

    def defaults(self) -> dict[str, Any]:
        return {"alpha": 1.5, "beta": 1.0, "gamma": 3.0, "delta": 1.0}

    def start(self) -> Float[Array, "n"]:
        return jnp.array([1.0, 1.0])

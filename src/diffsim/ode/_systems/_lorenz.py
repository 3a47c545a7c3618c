"""The Lorenz attractor."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from ._abstract import AbstractSystem, Vector


class Lorenz63(AbstractSystem):
    """X' = σ(Y - X),  Y' = X(ρ - Z) - Y,  Z' = XY - βZ: convection in three modes.

    y: (3,) `X`, `Y`, `Z`. Parameters: `sigma`, the Prandtl number; `rho`, the Rayleigh number over
    its critical value; `beta`, the shape of a cell; all without unit, time in units of thermal
    diffusion.

    Chaotic at (10, 28, 8/3): errors grow as exp(0.906 t), so that two correct solvers differ
    visibly after t = 30, and gradients of long averages explode although the averages themselves
    are smooth (d⟨Z⟩/dρ is about 1). Volumes shrink at the constant rate σ + 1 + β; the symmetry
    (X, Y) → (-X, -Y) holds. No invariants.

    Source: Lorenz, J. Atmos. Sci. 20, 130 (1963),
    doi:10.1175/1520-0469(1963)020<0130:DNF>2.0.CO;2.
    """

    @property
    def components(self) -> tuple[str, ...]:
        return ("X", "Y", "Z")

    def __call__(self, t: Any, y: Vector, args: Any) -> Float[Array, "n"]:
        del t
        speed, contrast, profile = y[0], y[1], y[2]
        turning = args["sigma"] * (contrast - speed)
        heating = speed * (args["rho"] - profile) - contrast
        mixing = speed * contrast - args["beta"] * profile
        return jnp.stack([turning, heating, mixing])

    def defaults(self) -> dict[str, Any]:
        return {"sigma": 10.0, "rho": 28.0, "beta": 8.0 / 3.0}

    def start(self) -> Float[Array, "n"]:
        return jnp.array([1.0, 1.0, 1.0])

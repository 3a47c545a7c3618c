"""A pendulum on a pendulum."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from ..._laws import AbstractLaw, Conserved
from ._abstract import AbstractSystem, Vector


class DoublePendulum(AbstractSystem):
    """Two point masses on massless rods, the second hung on the first; δ = θ₁ - θ₂:

    (m₁+m₂) l₁ θ₁'' + m₂ l₂ θ₂'' cos δ = -m₂ l₂ θ₂'² sin δ - (m₁+m₂) g sin θ₁,
    l₂ θ₂'' + l₁ θ₁'' cos δ = l₁ θ₁'² sin δ - g sin θ₂.

    y: (4,) `theta1`, `theta2` [rad], from the vertical, `omega1`, `omega2` [rad/time]. Parameters:
    `m1`, `m2` [mass], `l1`, `l2` [length], `g` [length/time²].

    Chaotic at large amplitudes. Observed: `energy`, zero at rest and conserved, and
    `kinetic_energy`. H is not separable: the mass matrix depends on δ.

    Source: Shinbrot, Grebogi, Wisdom and Yorke, Am. J. Phys. 60, 491 (1992), doi:10.1119/1.16860.
    """

    @property
    def components(self) -> tuple[str, ...]:
        return ("theta1", "theta2", "omega1", "omega2")

    def __call__(self, t: Any, y: Vector, args: Any) -> Float[Array, "n"]:
        del t
        m2, l1, l2, g = args["m2"], args["l1"], args["l2"], args["g"]
        both = args["m1"] + m2
        sine, cosine = jnp.sin(y[0] - y[1]), jnp.cos(y[0] - y[1])
        upper = -m2 * l2 * y[3] ** 2 * sine - both * g * jnp.sin(y[0])
        lower = l1 * y[2] ** 2 * sine - g * jnp.sin(y[1])
        # Cramer's rule; what is divided by stays above m1.
        inertia = both - m2 * cosine**2
        first = (upper - m2 * cosine * lower) / (l1 * inertia)
        second = (both * lower - cosine * upper) / (l2 * inertia)
        return jnp.stack([y[2], y[3], first, second])

    def observe(self, t: Any, y: Vector, args: Any) -> dict[str, Array]:
        del t
        m1, m2, g = args["m1"], args["m2"], args["g"]
        u1, u2 = args["l1"] * y[2], args["l2"] * y[3]
        joined = u1**2 + u2**2 + 2 * u1 * u2 * jnp.cos(y[0] - y[1])
        kinetic = (m1 * u1**2 + m2 * joined) / 2
        # 1 - cos θ without cancellation near rest.
        rise1, rise2 = (2 * jnp.sin(y[i] / 2) ** 2 * args[f"l{i + 1}"] for i in (0, 1))
        potential = g * (m1 * rise1 + m2 * (rise1 + rise2))
        return {"energy": kinetic + potential, "kinetic_energy": kinetic}

    def laws(self, rtol: float = 1e-4) -> tuple[AbstractLaw, ...]:
        return (Conserved("energy", rtol, relative_to="energy"),)

    def defaults(self) -> dict[str, Any]:
        return {"m1": 1.0, "m2": 1.0, "l1": 1.0, "l2": 1.0, "g": 9.81}

    def start(self) -> Float[Array, "n"]:
        return jnp.array([math.pi / 2, math.pi / 2, 0.0, 0.0])

"""The Ornstein-Uhlenbeck process."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from ._abstract import AbstractSystem, Vector


class OrnsteinUhlenbeck(AbstractSystem):
    """dx = θ(μ - x) dt + σ dW: noise pulled back to a mean, the velocity of a Brownian particle.

    y: (1,) `x`. Parameters: `theta` = θ > 0 [1/time], the rate of return; `mu` = μ [x], the mean;
    `sigma` = σ > 0 [x/√time]. Called as a vector field it is the drift alone. The noise is
    additive: Itô and Stratonovich agree.

    Everything about it is known: x(t) given x(0) is normal with `mean` and `variance`, and
    `log_density` is the exact likelihood of a transition, by which solvers and fits are tested.
    Stationary: variance σ²/(2θ), correlation exp(-θ|t|).

    Source: Uhlenbeck and Ornstein, Phys. Rev. 36, 823 (1930), doi:10.1103/PhysRev.36.823.
    """

    @property
    def components(self) -> tuple[str, ...]:
        return ("x",)

    def drift(self, t: Any, y: Vector, args: Any) -> Float[Array, "n"]:
        """θ(μ - x), (1,)."""
        del t
        return jnp.asarray(args["theta"] * (args["mu"] - y))

    def diffusion(self, t: Any, y: Vector, args: Any) -> Float[Array, "n"]:
        """σ, (1,): what multiplies each component's own dW."""
        del t
        return args["sigma"] * jnp.ones_like(y)

    def __call__(self, t: Any, y: Vector, args: Any) -> Float[Array, "n"]:
        return self.drift(t, y, args)

    def mean(self, t: Any, y0: Any, args: Any) -> Array:
        """E[x(t) | x(0) = y0] = μ + (y0 - μ) exp(-θt); `t`, `y0` broadcast."""
        return args["mu"] + (y0 - args["mu"]) * jnp.exp(-args["theta"] * t)

    def variance(self, t: Any, args: Any) -> Array:
        """Var[x(t) | x(0)] = σ² (1 - exp(-2θt))/(2θ)."""
        # expm1: the difference would lose all digits of a short transition.
        return -(args["sigma"] ** 2) * jnp.expm1(-2 * args["theta"] * t) / (2 * args["theta"])

    def covariance(self, t: Any, s: Any, args: Any) -> Array:
        """Cov[x(t), x(s) | x(0)] = exp(-θ|t-s|) Var[x(min(t, s))]."""
        return jnp.exp(-args["theta"] * jnp.abs(t - s)) * self.variance(jnp.minimum(t, s), args)

    def log_density(self, t: Any, y0: Any, y: Any, args: Any) -> Array:
        """ln p(x(t) = y | x(0) = y0), normalised; `t`, `y0`, `y` broadcast. Sum it over the
        transitions of a path for the likelihood of θ, μ, σ."""
        variance = self.variance(t, args)
        off = y - self.mean(t, y0, args)
        return -(off**2 / variance + jnp.log(2 * jnp.pi * variance)) / 2

    def defaults(self) -> dict[str, Any]:
        return {"theta": 1.0, "mu": 0.0, "sigma": 1.0}

    def start(self) -> Float[Array, "n"]:
        return jnp.array([1.0])

"""What controls a flow, and what it is to improve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._errors import ConfigError
from ._boundary import Box
from ._forcing import AbstractForcing
from ._probes import AbstractProbe


class SolenoidalForce(AbstractForcing):
    """f = (∂ψ/∂y, -∂ψ/∂x),  ψ = Σ_k (a_k cos k·x + b_k sin k·x)/|k|: a steady force of a plane
    periodic box without divergence, which no pressure could balance.

    The waves k [2π/L] have k_x ≥ 1 and |k| ≤ `most`: the mean of f along x is zero at every y, so
    that it pushes no mean flow along x but through what it does to the fluctuations. The mean
    square of f is Σ (a² + b²)/2.

    **Arguments:** `most`; `coefficients`: the name of a parameter of shape (2, waves), a and b.
    """

    most: float = eqx.field(static=True, default=3.0, converter=float)
    coefficients: str = eqx.field(static=True, default="control")

    def parameters(self) -> tuple[str, ...]:
        return (self.coefficients,)

    def check(self, box: Box, scalars: Sequence[str]) -> None:
        if box.grid.ndim != 2 or not box.periodic:
            raise ConfigError("SolenoidalForce needs a periodic box of two axes", key="forcing")
        if not 1 <= self.most <= min(box.grid.shape) / 4:
            raise ConfigError(
                "must be from 1 to a quarter of the cells along an axis",
                key="most",
                value=self.most,
            )

    def waves(self) -> np.ndarray:
        """Shape (2, waves)."""
        n = int(self.most)
        kx, ky = np.meshgrid(np.arange(1, n + 1), np.arange(-n, n + 1), indexing="ij")
        kept = np.hypot(kx, ky) <= self.most
        return np.stack([kx[kept], ky[kept]])

    def __call__(self, box, params, velocity, scalars, t):
        waves, dtype = self.waves(), velocity[0].dtype
        given = jnp.asarray(params[self.coefficients], dtype)
        if given.shape != (2, waves.shape[1]):
            raise ConfigError(
                f"must have shape (2, {waves.shape[1]})", key=self.coefficients, value=given.shape
            )
        size = np.hypot(*waves)
        grid, force = box.grid, []
        for component, direction in enumerate((waves[1] / size, -waves[0] / size)):
            x, y = (
                2 * np.pi * (q - low) / length
                for q, low, length in zip(
                    box.coordinates(component), grid.lower, grid.size, strict=True
                )
            )
            phase = np.tensordot(waves.T, np.stack([x, y]), axes=1)  # (waves, *grid)
            # the slopes of cos and sin
            shapes = direction[:, None, None] * np.stack([-np.sin(phase), np.cos(phase)])
            force.append(jnp.tensordot(given, jnp.asarray(shapes, dtype), axes=2))
        return tuple(force)


def no_control(force: SolenoidalForce) -> np.ndarray:
    """The parameter of a force that is zero everywhere. Shape (2, waves)."""
    return np.zeros((2, force.waves().shape[1]))


class MeanProfile(AbstractProbe):
    """U = 2 <u sin(k y)>: the amplitude of the mean flow that `KolmogorovForcing` drives, an
    observable. The friction coefficient is A/(k U²); laminar, U = A/(ν k² + α).

    **Arguments:** `wavenumber` k [1/length]; `along`, `across`: the axes of the flow and of its
    variation; `name` of the observable.
    """

    wavenumber: float | int = eqx.field(static=True, default=4)
    along: int = eqx.field(static=True, default=0)
    across: int = eqx.field(static=True, default=1)
    name: str = eqx.field(static=True, default="profile")

    def check(self, box: Box) -> None:
        axes = range(box.grid.ndim)
        if self.along not in axes or self.across not in axes or self.along == self.across:
            raise ConfigError(
                "must be two axes of the grid",
                key="extra.along, extra.across",
                value=(self.along, self.across),
            )

    def __call__(self, box: Box, velocity: Sequence[Array], params: Mapping[str, Any]) -> Array:
        del params
        y = box.coordinates(self.along)[self.across]
        u = velocity[self.along]
        return 2 * jnp.mean(u * jnp.asarray(np.sin(self.wavenumber * y), u.dtype))

"""Initial fields that are parameters."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._errors import ConfigError
from ._boundary import Box
from ._stencil import average, cut, difference


class AbstractStart(eqx.Module):
    """u(t₀) as a function of parameters."""

    @abstractmethod
    def parameters(self) -> tuple[str, ...]:
        """The names of the parameters it reads."""

    @abstractmethod
    def __call__(self, box: Box, params: Mapping[str, Any]) -> tuple[Array, ...]:
        """The unknowns of each component."""

    def check(self, box: Box) -> None:
        """Refuse, before anything is traced, a box that it does not fit."""
        del box


class GaussianStart(AbstractStart):
    """u = ∂ψ/∂y, v = -∂ψ/∂x,  ψ = Σ_k w_k (a_k cos k·x + b_k sin k·x): a random field of two
    dimensions in a periodic box, white in its parameters.

    With a prior N(0, 1) on each entry of the parameter `name`, of shape (2, modes), u has the
    spectrum E(k) ∝ k⁴ exp(-2 (k/k₀)²) and the root mean square `speed` (both components together):
    the background of a four-dimensional variational assimilation (Talagrand and Courtier 1987,
    doi:10.1002/qj.49711347812), in the coordinates in which it is best conditioned. Wave numbers
    [2π/L] up to 2.5 k₀ take part.
    """

    peak_wavenumber: float = eqx.field(static=True, default=2.0, converter=float)
    speed: float = eqx.field(static=True, default=1.0, converter=float)
    name: str = eqx.field(static=True, default="modes")

    def __check_init__(self):
        for key in ("peak_wavenumber", "speed"):
            if not getattr(self, key) > 0:
                raise ConfigError("must be positive", key=key, value=getattr(self, key))

    def parameters(self) -> tuple[str, ...]:
        return (self.name,)

    def check(self, box: Box) -> None:
        if box.grid.ndim != 2 or not box.periodic:
            raise ConfigError("GaussianStart needs a periodic box of two axes", key="start")
        if 5 * self.peak_wavenumber > min(box.grid.shape):
            raise ConfigError(
                "the grid does not hold its waves",
                key="peak_wavenumber",
                value=self.peak_wavenumber,
            )

    def waves(self) -> np.ndarray:
        """One of k and -k for each wave, shape (2, modes)."""
        most = int(np.ceil(2.5 * self.peak_wavenumber))
        axis = np.arange(-most, most + 1)
        kx, ky = (k.ravel() for k in np.meshgrid(axis, axis, indexing="ij"))
        half = (kx > 0) | ((kx == 0) & (ky > 0))
        kept = half & (kx**2 + ky**2 <= most**2)
        return np.stack([kx[kept], ky[kept]])

    def __call__(self, box: Box, params: Mapping[str, Any]) -> tuple[Array, ...]:
        grid, waves = box.grid, self.waves()
        given = jnp.asarray(params[self.name])
        if given.shape != (2, waves.shape[1]):
            raise ConfigError(
                f"must have shape (2, {waves.shape[1]})", key=self.name, value=given.shape
            )
        size = np.sqrt(np.sum(waves**2, axis=0))
        weight = np.sqrt(size) * np.exp(-((size / self.peak_wavenumber) ** 2)) / size
        # <u² + v²> = Σ ½ k² w² (a² + b²), and a² + b² is 2 on average
        scale = 2 * np.pi / grid.size[0]
        weight *= self.speed / np.sqrt(np.sum((scale * size * weight) ** 2))
        psi = jnp.zeros(tuple(n + 1 for n in grid.shape), given.dtype)
        along = [2 * np.pi * np.arange(n + 1) / n for n in grid.shape]
        for part, turn in zip(given, (0.0, 0.5 * np.pi), strict=True):
            x, y = (np.outer(k, a) for k, a in zip(waves, along, strict=True))
            # cos(x + y - turn), a product of one factor an axis at a time
            for p, q in ((np.cos(x - turn), np.cos(y)), (-np.sin(x - turn), np.sin(y))):
                factors = jnp.asarray(p, given.dtype), jnp.asarray(q, given.dtype)
                psi = psi + jnp.einsum("m,mi,mj->ij", part * weight, *factors)
        u, v = difference(psi, 1) / grid.spacing[1], -difference(psi, 0) / grid.spacing[0]
        return cut(u, 0, 1, None), cut(v, 1, 1, None)


def at_rest(start: GaussianStart) -> np.ndarray:
    """The parameter of a fluid at rest, which is the middle of the prior. Shape (2, modes)."""
    return np.zeros((2, start.waves().shape[1]))


class CentredStart(AbstractStart):
    """Every velocity at the centres is a number of the parameter `name`, of shape
    (axes, *grid.shape): free, but for what the projection takes away."""

    name: str = eqx.field(static=True, default="velocity")

    def parameters(self) -> tuple[str, ...]:
        return (self.name,)

    def __call__(self, box: Box, params: Mapping[str, Any]) -> tuple[Array, ...]:
        given = jnp.asarray(params[self.name])
        if given.shape != (box.grid.ndim, *box.grid.shape):
            raise ConfigError(
                f"must have shape {(box.grid.ndim, *box.grid.shape)}",
                key=self.name,
                value=given.shape,
            )
        return tuple(average(box.cells(u, axis), axis) for axis, u in enumerate(given))

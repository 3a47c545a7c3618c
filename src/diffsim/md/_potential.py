"""What an ensemble asks of a potential, and any JAX function as one."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from .._errors import ConfigError

Positions = Float[Array, "atoms 3"]
Box = Float[Array, "3"]


class Thermo(eqx.Module):
    """Energies of one configuration, in energy units: `energy`, what is reported (tail correction
    included); `driving`, the one whose gradient the forces are; `virial`, Σ r·f over pairs, NaN
    where the potential has none."""

    energy: Array
    driving: Array
    virial: Array


class AbstractPotential(eqx.Module):
    """U(θ, x, L): energies, forces and virial of N atoms in a periodic box with edges L.

    All are differentiable in both modes. `neighbours` is what `allocate` made (None: none needed).
    """

    @abstractmethod
    def energy(
        self, params: PyTree, positions: Positions, box: Box, neighbours: Any = None
    ) -> Array:
        """U, the reported energy. Shape ()."""

    def driving_energy(
        self, params: PyTree, positions: Positions, box: Box, neighbours: Any = None
    ) -> Array:
        """The energy whose gradient the forces are; differs from U for a plainly cut potential."""
        return self.energy(params, positions, box, neighbours)

    def forces(
        self, params: PyTree, positions: Positions, box: Box, neighbours: Any = None
    ) -> Positions:
        """F = -∂U/∂x of the driving energy, (atoms, 3)."""
        return -jax.grad(self.driving_energy, argnums=1)(params, positions, box, neighbours)

    def virial(
        self, params: PyTree, positions: Positions, box: Box, neighbours: Any = None
    ) -> Array:
        """W = -dU(λx, λL)/dλ at λ = 1, for pair potentials Σ r·f. Shape ()."""
        one = jnp.ones((), positions.dtype)
        scaled = lambda c: self.driving_energy(params, c * positions, c * box, neighbours)  # noqa: E731
        return -jax.grad(scaled)(one)

    def thermo(
        self, params: PyTree, positions: Positions, box: Box, neighbours: Any = None
    ) -> Thermo:
        """Energy, driving energy and virial of one configuration."""
        arguments = (params, positions, box, neighbours)
        energy = self.energy(*arguments)
        return Thermo(energy, self.driving_energy(*arguments), self.virial(*arguments))

    def pullback(
        self,
        params: PyTree,
        positions: Positions,
        box: Box,
        cotangent: Positions,
        neighbours: Any = None,
    ) -> tuple[PyTree, Positions]:
        """(∂F/∂θ)ᵀ w and (∂F/∂x)ᵀ w by one forward-over-reverse pass: the Hessian is symmetric."""
        dynamic, static = eqx.partition(params, eqx.is_inexact_array)

        def driving(dynamic, positions):
            return self.driving_energy(eqx.combine(dynamic, static), positions, box, neighbours)

        slope = jax.grad(driving, argnums=(0, 1))
        zero = jax.tree.map(jnp.zeros_like, dynamic)
        _, (ct_params, ct_positions) = jax.jvp(slope, (dynamic, positions), (zero, cotangent))
        return jax.tree.map(jnp.negative, ct_params), -ct_positions

    def check(self, params: PyTree, box: Any) -> None:
        """Host side: refuse parameters or boxes that cannot be right, before anything is traced."""

    def parameter_units(self) -> dict[str, str]:
        """The dimension of each named parameter: "energy", "length", ..."""
        return {}

    def allocate(self, params: PyTree, positions: Positions, box: Box) -> Any:
        """Host side: a neighbour structure for these positions, or None where none is needed."""
        return None

    def update(self, neighbours: Any, positions: Positions, box: Box) -> Any:
        """The neighbour structure after a move; rebuilt when displacements call for it."""
        return neighbours

    def overflowed(self, neighbours: Any) -> Array:
        """Whether the neighbour structure ran out of room, so that energies are wrong."""
        return jnp.asarray(False)

    @property
    def reach(self) -> float | None:
        """The cutoff, for the guard against runaway atoms; None where there is none."""
        return None

    @property
    def noise_dtype(self) -> Any:
        """The precision of thermal noise; None: the state's."""
        return None


class Potential(AbstractPotential):
    """U(θ, x) for any JAX-MD energy function or Equinox module, as it is.

    **Arguments:** `energy_fn`, called as `energy_fn(positions)`, plus, where its signature takes
    them, `box=`, the parameters by keyword (a dict of `params`) or as the first argument
    `energy_fn(params, positions)` with `pass_params=True`. The function has its own cutoff and
    periodicity (JAX-MD closes over its displacement function).

    The virial, hence the pressure, is there only if `energy_fn` takes `box`; it is NaN otherwise.
    """

    energy_fn: Callable[..., Array]
    pass_params: bool = eqx.field(static=True, default=False, kw_only=True)

    def __check_init__(self):
        if not callable(self.energy_fn):
            raise ConfigError("must be callable", key="energy_fn", value=self.energy_fn)

    def _takes_box(self) -> bool:
        return "box" in inspect.signature(self.energy_fn).parameters

    def energy(
        self, params: PyTree, positions: Positions, box: Box, neighbours: Any = None
    ) -> Array:
        extra = {"box": box} if self._takes_box() else {}
        if self.pass_params:
            return self.energy_fn(params, positions, **extra)
        return self.energy_fn(positions, **extra, **(params or {}))

    def virial(
        self, params: PyTree, positions: Positions, box: Box, neighbours: Any = None
    ) -> Array:
        if not self._takes_box():
            return jnp.full((), jnp.nan, positions.dtype)
        return super().virial(params, positions, box, neighbours)

"""What a system is: a vector field that knows its components, its parameters and its invariants."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..._laws import AbstractLaw, Conserved

Vector = Float[Array | np.ndarray, "n"]
Half = Float[Array | np.ndarray, "m"]
Scalar = Float[Array, ""]


class AbstractSystem(eqx.Module):
    """dy/dt = f(t, y; θ): called like any vector field of Diffrax, and able to tell what it is.

    y: (n,), in the order of `components`. `args` is a dict {name: value} with the parameters that
    `defaults` names; others in it (noise levels, starts) are left alone. Times, states and
    parameters are in any consistent units.
    """

    @property
    @abstractmethod
    def components(self) -> tuple[str, ...]:
        """The names of the entries of y; not `y` or `t`, which are the whole state and its time."""

    @abstractmethod
    def __call__(self, t: Any, y: Vector, args: Any) -> Float[Array, "n"]:
        """dy/dt."""

    @abstractmethod
    def defaults(self) -> dict[str, Any]:
        """Textbook values of every parameter."""

    @abstractmethod
    def start(self) -> Float[Array, "n"]:
        """A textbook initial state."""

    def observe(self, t: Any, y: Vector, args: Any) -> dict[str, Array]:
        """Invariants and other quantities of one state, by name."""
        del t, y, args
        return {}

    def laws(self, rtol: float = 1e-4) -> tuple[AbstractLaw, ...]:
        """The invariants among what it observes. `rtol` should leave room for the solver: a
        hundred times its tolerance suits a few periods."""
        del rtol
        return ()


class AbstractHamiltonian(AbstractSystem):
    """q' = ∂T/∂p, p' = -∂V/∂q for a separable H(q, p) = T(p) + V(q): symplectic methods apply.

    y = (q, p): (2m,), positions first. A subclass gives `kinetic` and `potential`; it may give
    `velocity` and `force` where it knows something quicker than automatic differentiation.
    """

    @abstractmethod
    def kinetic(self, p: Half, args: Any) -> Scalar:
        """T(p) [energy]."""

    @abstractmethod
    def potential(self, q: Half, args: Any) -> Scalar:
        """V(q) [energy]."""

    def velocity(self, p: Half, args: Any) -> Float[Array, "m"]:
        """q' = ∂T/∂p."""
        return jax.grad(self.kinetic)(jnp.asarray(p), args)

    def force(self, q: Half, args: Any) -> Float[Array, "m"]:
        """p' = -∂V/∂q."""
        return -jax.grad(self.potential)(jnp.asarray(q), args)

    def __call__(self, t: Any, y: Vector, args: Any) -> Float[Array, "n"]:
        del t
        q, p = jnp.split(jnp.asarray(y), 2)
        return jnp.concatenate([self.velocity(p, args), self.force(q, args)])

    def energies(self, y: Vector, args: Any) -> dict[str, Array]:
        """`energy` = T + V, and `kinetic_energy` = T."""
        q, p = jnp.split(jnp.asarray(y), 2)
        kinetic = self.kinetic(p, args)
        return {"energy": kinetic + self.potential(q, args), "kinetic_energy": kinetic}

    def observe(self, t: Any, y: Vector, args: Any) -> dict[str, Array]:
        del t
        return self.energies(y, args)

    def laws(self, rtol: float = 1e-4) -> tuple[AbstractLaw, ...]:
        # Against itself: a start at rest has no kinetic energy to measure by.
        return (Conserved("energy", rtol, relative_to="energy"),)

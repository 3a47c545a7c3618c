"""The state of a molecular-dynamics simulation and what every ensemble observes of it."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ._box import Edges


class State(eqx.Module):
    """Atoms in motion, in the units of the simulation's unit system.

    positions, velocities: (atoms, 3), positions unwrapped; forces: (atoms, 3), a cache of the
    potential's forces at `positions`; masses: (atoms,) in energy time²/length²; box: (3,) edges,
    or (3, 3) lattice vectors in rows, lower triangular [length]; step: the number of steps taken;
    kT: () [energy], key and kinetic: of thermostatted ensembles (`kinetic`: kinetic energy right
    after the noise); neighbours: of potentials that need them; features: of samples, what the
    potential keeps of them; bath: what a thermostat or barostat has for variables of its own.
    """

    positions: Float[Array, "atoms 3"]
    velocities: Float[Array, "atoms 3"]
    forces: Float[Array, "atoms 3"]
    masses: Float[Array, " atoms"]
    box: Edges
    step: Int[Array, ""]
    kT: Float[Array, ""] | None = None
    key: PRNGKeyArray | None = None
    kinetic: Float[Array, ""] | None = None
    neighbours: Any = None
    features: Any = None
    bath: Any = None

    @property
    def atoms(self) -> int:
        return self.positions.shape[-2]


def kinetic_energy(state: State) -> Float[Array, ""]:
    """K = Σ m v²/2, shape () [energy]."""
    return 0.5 * jnp.sum(state.masses[:, None] * state.velocities**2)


class Barostat(eqx.Module):
    """The pressure that a box is held at, () [energy/length³]."""

    pressure: Float[Array, ""]


class Chain(eqx.Module):
    """A chain of thermostats: ξ, (links,), and its velocities, (links,) [1/time]."""

    position: Float[Array, " links"]
    velocity: Float[Array, " links"]

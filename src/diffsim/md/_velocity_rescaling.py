"""Constant temperature by stochastic velocity rescaling: the thermostat that disturbs least."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray, PyTree

from .._simulation import AbstractEquilibrium
from ._dynamics import AbstractDynamics, checked_dt
from ._observable import AbstractObservable
from ._potential import AbstractPotential
from ._state import State
from ._thermal import at_temperature, checked_relaxation, degrees_of_freedom, light_sample
from ._units import UnitSystem, unit_system


class VelocityRescaling(AbstractDynamics, AbstractEquilibrium):
    """dK = (K̄ - K) dt/τ + 2 √(K K̄/g) dW/√τ, K̄ = g kT/2: all velocities by one factor.

    Stochastic velocity rescaling (Bussi, Donadio & Parrinello 2007, doi:10.1063/1.2408420). The
    kinetic energy, not each atom, meets the bath, so that diffusion and correlations in time are
    almost those of constant energy, for any τ over a few dozen steps. Its transition density is
    known, and sampled exactly for the time of a step, in the middle of the drift of velocity
    Verlet: averages over positions are as accurate as those of `NVT`. Samples exp(-U/kT); the noise
    of step t comes from fold_in(key, t).

    Beside the usual ones it observes `conserved_energy`, K + U less the heat taken in, which stays
    where it is as the energy of velocity Verlet does. `kinetic_energy` and `temperature` are those
    right after the rescaling.

    **Arguments:** `potential`; `dt` [time]; `relaxation` τ [time], not under a step, good values
    50 to 1000 of them; `zero_momentum`: the potential does not depend on where the system as a
    whole is (no walls, no tethers), so that momentum stays zero and g = 3N - 3, else 3N; `units`;
    `extra`. `init` also takes `temperature` (required).
    """

    potential: AbstractPotential
    dt: float = eqx.field(static=True, converter=checked_dt)
    relaxation: float = eqx.field(static=True)
    zero_momentum: bool = eqx.field(static=True)
    unit_system: UnitSystem = eqx.field(static=True)
    extra: tuple[AbstractObservable, ...] = ()

    needed: ClassVar = ("temperature",)

    def __init__(
        self,
        potential: AbstractPotential,
        dt: float,
        relaxation: float,
        zero_momentum: bool = True,
        units: str | UnitSystem = "lj",
        extra: tuple[AbstractObservable, ...] = (),
    ):
        self.potential, self.dt, self.extra = potential, checked_dt(dt), tuple(extra)
        self.relaxation = checked_relaxation(relaxation, self.dt)
        self.zero_momentum, self.unit_system = zero_momentum, unit_system(units)

    def init(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        params: PyTree,
        key: PRNGKeyArray,
        *,
        positions: Any,
        box: Any,
        temperature: Any = None,
        masses: Any = 1.0,
        velocities: Any = None,
    ) -> State:
        key, first = jax.random.split(key)
        start = self._start(params, first, positions, box, masses, temperature, velocities)
        heat = jnp.zeros((), start.positions.dtype)
        return at_temperature(start, temperature, self.unit_system, heat, self.zero_momentum, key)

    def with_time_step(self, dt: float) -> VelocityRescaling:
        """The same simulation with another time step."""
        rest = self.relaxation, self.zero_momentum, self.unit_system, self.extra
        return VelocityRescaling(self.potential, dt, *rest)

    def step(self, params: PyTree, state: State) -> State:
        assert state.bath is not None
        h, masses = self.dt, state.masses[:, None]
        velocities = state.velocities + 0.5 * h / masses * state.forces
        positions = state.positions + 0.5 * h * velocities
        before = 0.5 * jnp.sum(masses * velocities**2)
        factor, kinetic = self._rescaled(state, before)
        velocities = factor * velocities
        positions = positions + 0.5 * h * velocities
        forces, neighbours = self.moved(params, state, positions)
        return dataclasses.replace(
            state,
            positions=positions,
            velocities=velocities + 0.5 * h / masses * forces,
            forces=forces,
            step=state.step + 1,
            kinetic=kinetic,
            neighbours=neighbours,
            bath=state.bath + kinetic - before,
        )

    def _rescaled(self, state: State, before: Array) -> tuple[Array, Array]:
        """The factor of the velocities and the new kinetic energy: of g numbers with variance
        kT/2, of which one points along the velocities and the others only add their squares."""
        assert state.kT is not None and state.key is not None
        dtype, freedom = before.dtype, degrees_of_freedom(state.atoms, self.zero_momentum)
        along, across = jax.random.split(jax.random.fold_in(state.key, state.step))
        kept = math.exp(-self.dt / self.relaxation)
        one = (1 - kept) * state.kT / 2
        moving = jnp.where(before > 0, before, 1)
        first = jnp.sqrt(kept * moving) + jnp.sqrt(one) * jax.random.normal(along, (), dtype)
        others = jnp.zeros((), dtype)
        if freedom > 1:
            others = 2 * one * jax.random.gamma(across, (freedom - 1) / 2, (), dtype)
        after = first**2 + others
        factor = jnp.sign(first) * jnp.sqrt(after / moving)
        still = before > 0
        return jnp.where(still, factor, 1), jnp.where(still, after, before)

    def observe(self, params: PyTree, state: State) -> dict[str, Array]:
        assert state.kT is not None and state.kinetic is not None and state.bath is not None
        freedom = degrees_of_freedom(state.atoms, self.zero_momentum)
        temperature = 2 * state.kinetic / freedom / self.unit_system.boltzmann
        seen = self._observe(params, state, temperature, state.kinetic, state.atoms * state.kT)
        return seen | {"conserved_energy": seen["total_energy"] - state.bath}

    def reduced_energy(self, params: PyTree, state: State) -> Array:
        assert state.kT is not None
        return self._thermo(params, state).driving / state.kT

    def sample(self, state: State) -> State:
        return light_sample(self.potential, state)

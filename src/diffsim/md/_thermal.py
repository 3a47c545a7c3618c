"""What thermostats share: where they start, how many degrees of freedom they heat."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from .._errors import ConfigError
from ._potential import AbstractPotential
from ._state import State, kinetic_energy
from ._units import UnitSystem


def degrees_of_freedom(atoms: int, zero_momentum: bool) -> int:
    """g = 3N, less three where the centre of mass is at rest for good."""
    return max(3 * atoms - 3, 1) if zero_momentum else 3 * atoms


def checked_relaxation(time: Any, least: float, key: str = "relaxation") -> float:
    """A time constant that the time step resolves."""
    if not isinstance(time, (int, float)) or not (math.isfinite(time) and time > 0):
        raise ConfigError("must be a positive, finite time", key=key, value=time)
    if time < least * (1 - 1e-12):
        raise ConfigError(
            "is too short for this time step", key=key, value=time, allowed=f"{least:g} or more"
        )
    return float(time)


def at_temperature(
    start: State,
    temperature: Any,
    units: UnitSystem,
    bath: Any,
    zero_momentum: bool,
    key: PRNGKeyArray | None = None,
) -> State:
    """A start with kT and the thermostat's own variables, its centre at rest if that stays so."""
    kT = jnp.asarray(temperature, start.positions.dtype) * units.boltzmann
    if zero_momentum:
        start = dataclasses.replace(start, velocities=at_rest(start))
    return dataclasses.replace(start, kT=kT, key=key, kinetic=kinetic_energy(start), bath=bath)


def at_rest(state: State) -> Array:
    """Velocities without that of the centre of mass."""
    masses = state.masses[:, None]
    return state.velocities - jnp.sum(masses * state.velocities, axis=0) / jnp.sum(masses)


def light_sample(potential: AbstractPotential, state: State, forces: bool = False) -> State:
    """What a sample needs for reweighting: what the potential keeps of it, else its neighbours;
    these too where its `forces` are asked for again."""
    if forces:
        return state
    features = potential.features(state.positions, state.box, state.neighbours)
    # a list's room may change from sample to sample, and what features tell needs no list
    neighbours = None if features is not None else state.neighbours
    return dataclasses.replace(state, features=features, neighbours=neighbours)

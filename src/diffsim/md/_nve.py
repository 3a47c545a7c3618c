"""Constant energy: velocity Verlet, in floating point and exactly reversible in integers."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray, PyTree

from .._errors import ConfigError
from .._simulation import AbstractReversible, need_64_bit_integers
from ._dynamics import AbstractDynamics, checked_dt
from ._potential import AbstractPotential
from ._rdf import RadialDistribution
from ._state import State, kinetic_energy
from ._units import UnitSystem, unit_system

RESOLUTION = 2.0**-40  # of a position or velocity in its unit: a range of ±8e6 in 64 bits


class ExactState(eqx.Module):
    """Positions and velocities as multiples of 2⁻⁴⁰; the rest of the state as it is."""

    positions: Int[Array, "atoms 3"]
    velocities: Int[Array, "atoms 3"]
    rest: State


class NVE(AbstractDynamics, AbstractReversible):
    """v½ = v + (h/2) F(x)/m,  x' = x + h v½,  v' = v½ + (h/2) F(x')/m.

    Velocity Verlet (Swope et al. 1982, doi:10.1063/1.442716): second order, symplectic, time
    reversible; one force evaluation a step. A harmonic oscillator conserves
    p²/2 + ω²q²(1 - ω²h²/4)/2 exactly, and is unstable for ωh > 2.

    **Arguments:** `potential`; `dt`, the step h in the system's time; `units`, "lj", "metal",
    "real" or "gromacs"; `extra`, further observables. `init` and observables: see
    `AbstractDynamics`.
    """

    potential: AbstractPotential
    dt: float = eqx.field(static=True, converter=checked_dt)
    unit_system: UnitSystem = eqx.field(static=True)
    extra: tuple[RadialDistribution, ...] = ()

    def __init__(
        self,
        potential: AbstractPotential,
        dt: float,
        units: str | UnitSystem = "lj",
        extra: tuple[RadialDistribution, ...] = (),
    ):
        self.potential, self.dt, self.extra = potential, checked_dt(dt), tuple(extra)
        self.unit_system = unit_system(units)

    def init(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        params: PyTree,
        key: PRNGKeyArray,
        *,
        positions: Any,
        box: Any,
        masses: Any = 1.0,
        temperature: Any = None,
        velocities: Any = None,
    ) -> State:
        return self._start(params, key, positions, box, masses, temperature, velocities)

    def continue_from(self, params: PyTree, state: State) -> State:
        """A state of another ensemble (from equilibration, say) as a start, its centre at rest."""
        masses = state.masses[:, None]
        drift = jnp.sum(masses * state.velocities, axis=0) / jnp.sum(masses)
        moved = _with(
            state, state.positions, state.velocities - drift, state.forces, state.neighbours, 0
        )
        return self.prepare(params, moved)

    def with_time_step(self, dt: float) -> NVE:
        """The same simulation with another time step."""
        return NVE(self.potential, dt, self.unit_system, self.extra)

    def step(self, params: PyTree, state: State) -> State:
        half = 0.5 * self.dt / state.masses[:, None]
        velocities = state.velocities + half * state.forces
        positions = state.positions + self.dt * velocities
        forces, neighbours = self.moved(params, state, positions)
        return _with(state, positions, velocities + half * forces, forces, neighbours, 1)

    def unstep(self, params: PyTree, state: State) -> State:
        half = 0.5 * self.dt / state.masses[:, None]
        velocities = state.velocities - half * state.forces
        positions = state.positions - self.dt * velocities
        forces, neighbours = self.moved(params, state, positions)
        return _with(state, positions, velocities - half * forces, forces, neighbours, -1)

    def observe(self, params: PyTree, state: State) -> dict[str, Array]:
        kinetic = kinetic_energy(state)
        # zero total momentum takes three degrees of freedom
        kT = 2 * kinetic / max(3 * state.atoms - 3, 1)
        temperature = kT / self.unit_system.boltzmann
        return self._observe(params, state, temperature, kinetic, 2 * kinetic / 3)

    def to_exact(self, params: PyTree, state: State, steps: int) -> ExactState:
        del steps
        need_64_bit_integers()
        if not self.potential.repeatable:
            raise ConfigError(
                "Reversible needs forces that do not depend on the order of a neighbour list, and "
                "those of this potential do",
                key="adjoint",
                allowed="RecursiveCheckpoint, or the energy function without neighbour list",
            )
        positions, velocities = _grid(state.positions), _grid(state.velocities)
        x = jax.lax.optimization_barrier(_off_grid(positions, state.positions.dtype))
        forces, neighbours = self.moved(params, state, x)
        rest = _with(state, x, state.velocities, forces, neighbours, 0)
        return ExactState(positions, velocities, rest)

    def same(self, exact: ExactState, other: ExactState) -> Array:
        return jnp.all(exact.positions == other.positions) & jnp.all(
            exact.velocities == other.velocities
        )

    def from_exact(self, exact: ExactState) -> State:
        dtype = exact.rest.positions.dtype
        return eqx.tree_at(
            lambda s: (s.positions, s.velocities),
            exact.rest,
            (_off_grid(exact.positions, dtype), _off_grid(exact.velocities, dtype)),
        )

    def exact_step(self, params: PyTree, exact: ExactState) -> ExactState:
        return self._exact(params, exact, 1)

    def exact_unstep(self, params: PyTree, exact: ExactState) -> ExactState:
        return self._exact(params, exact, -1)

    def _exact(self, params: PyTree, exact: ExactState, direction: int) -> ExactState:
        """Kick, drift, kick in integers: each increment is a function of what it does not
        change."""
        rest = exact.rest
        half = 0.5 * self.dt / rest.masses[:, None]
        velocities = exact.velocities + direction * _grid(half * rest.forces)
        positions = exact.positions + direction * _grid(self.dt * (velocities * RESOLUTION))
        # Barriers on both sides: forward and backward must compile to the same kernel.
        x = jax.lax.optimization_barrier(_off_grid(positions, rest.positions.dtype))
        forces, neighbours = self.moved(params, rest, x)
        forces = jax.lax.optimization_barrier(forces)
        velocities = velocities + direction * _grid(half * forces)
        rest = _with(rest, rest.positions, rest.velocities, forces, neighbours, direction)
        return ExactState(positions, velocities, rest)


def _grid(x: Array) -> Array:
    """The nearest multiple of 2⁻⁴⁰, as an integer."""
    return jnp.round(x.astype(jnp.float64) / RESOLUTION).astype(jnp.int64)


def _off_grid(x: Array, dtype: Any) -> Array:
    return (x * RESOLUTION).astype(dtype)


def _with(
    state: State, positions: Array, velocities: Array, forces: Array, neighbours: Any, steps: int
) -> State:
    return State(
        positions=positions,
        velocities=velocities,
        forces=forces,
        masses=state.masses,
        box=state.box,
        step=state.step + steps,
        neighbours=neighbours,
    )

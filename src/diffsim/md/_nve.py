"""Constant energy: velocity Verlet, in floating point and exactly reversible in integers."""

from __future__ import annotations

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray, PyTree

from .._errors import ConfigError
from .._simulation import AbstractReversible
from ._changing_box import at_last
from ._constraints import Constraints, held_virial
from ._dynamics import AbstractDynamics, checked_dt
from ._exact import RESOLUTION, check_exact, grid, off_grid
from ._observable import AbstractObservable
from ._potential import AbstractPotential
from ._state import State, kinetic_energy
from ._units import UnitSystem, unit_system


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
    "real" or "gromacs"; `extra`, further observables; `constraints`, distances that stay as they
    are (RATTLE). `init` and observables: see `AbstractDynamics`.
    """

    rests: ClassVar[bool] = False

    potential: AbstractPotential
    dt: float = eqx.field(static=True, converter=checked_dt)
    unit_system: UnitSystem = eqx.field(static=True)
    extra: tuple[AbstractObservable, ...] = ()
    constraints: Constraints | None = None

    def __init__(
        self,
        potential: AbstractPotential,
        dt: float,
        units: str | UnitSystem = "lj",
        extra: tuple[AbstractObservable, ...] = (),
        constraints: Constraints | None = None,
    ):
        self.potential, self.dt, self.extra = potential, checked_dt(dt), tuple(extra)
        self.unit_system, self.constraints = unit_system(units), constraints

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
        given = positions, box, masses, temperature, velocities
        return self._start(params, key, *given, self.constraints)

    def continue_from(self, params: PyTree, state: State) -> State:
        """A state of another ensemble (from equilibration, say) as a start, its centre at rest."""
        masses = state.masses[:, None]
        drift = jnp.sum(masses * state.velocities, axis=0) / jnp.sum(masses)
        neighbours = at_last(state.neighbours)
        moved = _with(state, state.positions, state.velocities - drift, state.forces, neighbours, 0)
        return self.prepare(params, moved)

    def with_time_step(self, dt: float) -> NVE:
        """The same simulation with another time step."""
        return NVE(self.potential, dt, self.unit_system, self.extra, self.constraints)

    def step(self, params: PyTree, state: State) -> State:
        return self._moved(params, state, 1)

    def unstep(self, params: PyTree, state: State) -> State:
        return self._moved(params, state, -1)

    def _moved(self, params: PyTree, state: State, direction: int) -> State:
        h, rigid = direction * self.dt, self.constraints
        half = 0.5 * h / state.masses[:, None]
        velocities = state.velocities + half * state.forces
        positions = state.positions + h * velocities
        if rigid is not None:
            held = rigid.positions(state.positions, positions, state.masses, state.box)
            velocities, positions = velocities + (held - positions) / h, held
        forces, neighbours = self.moved(params, state, positions)
        velocities = velocities + half * forces
        if rigid is not None:
            velocities = rigid.velocities(positions, velocities, state.masses, state.box)
        return _with(state, positions, velocities, forces, neighbours, direction)

    def observe(self, params: PyTree, state: State) -> dict[str, Array]:
        kinetic = kinetic_energy(state)
        # zero total momentum takes three degrees of freedom, and each rigid distance one
        taken = 3 if self.constraints is None else 3 + self.constraints.count
        kT = 2 * kinetic / max(3 * state.atoms - taken, 1)
        temperature = kT / self.unit_system.boltzmann
        rigid = self.constraints
        held = 0.0 if rigid is None else held_virial(rigid, state, state.forces)
        return self._observe(params, state, temperature, kinetic, 2 * kinetic / 3, held)

    def to_exact(self, params: PyTree, state: State, steps: int) -> ExactState:
        del steps
        check_exact(self.potential.repeatable)
        if self.constraints is not None:
            raise ConfigError(
                "does not run rigid distances backwards to the bit",
                key="adjoint",
                value="Reversible",
                allowed="RecursiveCheckpoint",
            )
        positions, velocities = grid(state.positions), grid(state.velocities)
        x = jax.lax.optimization_barrier(off_grid(positions, state.positions.dtype))
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
            (off_grid(exact.positions, dtype), off_grid(exact.velocities, dtype)),
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
        velocities = exact.velocities + direction * grid(half * rest.forces)
        positions = exact.positions + direction * grid(self.dt * (velocities * RESOLUTION))
        # Barriers on both sides: forward and backward must compile to the same kernel.
        x = jax.lax.optimization_barrier(off_grid(positions, rest.positions.dtype))
        forces, neighbours = self.moved(params, rest, x)
        forces = jax.lax.optimization_barrier(forces)
        velocities = velocities + direction * grid(half * forces)
        rest = _with(rest, rest.positions, rest.velocities, forces, neighbours, direction)
        return ExactState(positions, velocities, rest)


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

"""Constant temperature by a chain of Nosé and Hoover: deterministic, exactly reversible."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray, PyTree

from .._simulation import AbstractEquilibrium, AbstractReversible
from ._checks import checked_count
from ._dynamics import AbstractDynamics, checked_dt
from ._exact import RESOLUTION, check_exact, grid, off_grid
from ._observable import AbstractObservable
from ._potential import AbstractPotential
from ._state import Chain, State
from ._thermal import (
    at_temperature,
    checked_relaxation,
    degrees_of_freedom,
    light_sample,
)
from ._units import UnitSystem, unit_system


class ExactChainState(eqx.Module):
    """Multiples of 2⁻⁴⁰ in the variables of Nosé's extended system, in which no step scales
    anything: positions; w = exp(ξ₁) v; of the chain ξ_j and u_j = exp(ξ_j+1) dξ_j/dt, ξ counted
    from the start of the run. `rest`: the state as it is."""

    positions: Int[Array, "atoms 3"]
    velocities: Int[Array, "atoms 3"]
    chain: Int[Array, "2 links"]
    rest: State


class NoseHoover(AbstractDynamics, AbstractReversible, AbstractEquilibrium):
    """m dv/dt = F - m v dξ₁/dt,  Q₁ d²ξ₁/dt² = Σ m v² - g kT - Q₁ (dξ₁/dt)(dξ₂/dt),  ...

    A chain of thermostats (Martyna, Klein & Tuckerman 1992, doi:10.1063/1.463940) of masses
    Q₁ = g kT τ² and Q_j = kT τ², g the degrees of freedom. The chain acts in the middle of the
    drift of velocity Verlet, so that averages over positions are as accurate as those of `NVT`:
    second order, symmetric, one force evaluation a step. Deterministic and reversible: the adjoint
    `Reversible` takes it. Samples exp(-U/kT) where the motion is ergodic, which that of a few
    oscillators is not, even with a chain.

    Beside the usual ones it observes `conserved_energy`, the energy of atoms and chain together,
    H' = K + U + Σ Q_j (dξ_j/dt)²/2 + g kT ξ₁ + kT Σ_j>1 ξ_j, which stays where it is to second
    order in the time step. `kinetic_energy` and `temperature` are those right after the chain.

    **Arguments:** `potential`; `dt` [time]; `relaxation` τ [time], 50 to 200 steps, not under 5;
    `links` of the chain, at least 1; `zero_momentum`: the potential does not depend on where the
    system as a whole is (no walls, no tethers), so that momentum stays zero and g = 3N - 3, else
    3N; `units`; `extra`. `init` also takes `temperature` (required).
    """

    potential: AbstractPotential
    dt: float = eqx.field(static=True, converter=checked_dt)
    relaxation: float = eqx.field(static=True)
    links: int = eqx.field(static=True)
    zero_momentum: bool = eqx.field(static=True)
    unit_system: UnitSystem = eqx.field(static=True)
    extra: tuple[AbstractObservable, ...] = ()

    needed: ClassVar = ("temperature",)

    def __init__(
        self,
        potential: AbstractPotential,
        dt: float,
        relaxation: float,
        links: int = 3,
        zero_momentum: bool = True,
        units: str | UnitSystem = "lj",
        extra: tuple[AbstractObservable, ...] = (),
    ):
        self.potential, self.dt, self.extra = potential, checked_dt(dt), tuple(extra)
        self.relaxation = checked_relaxation(relaxation, 5 * self.dt)
        self.links, self.zero_momentum = checked_count("links", links), zero_momentum
        self.unit_system = unit_system(units)

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
        start = self._start(params, key, positions, box, masses, temperature, velocities)
        zero = jnp.zeros(self.links, start.positions.dtype)
        units, moving = self.unit_system, self.zero_momentum
        return at_temperature(start, temperature, units, Chain(zero, zero), moving)

    def with_time_step(self, dt: float) -> NoseHoover:
        """The same simulation with another time step."""
        rest = self.relaxation, self.links, self.zero_momentum, self.unit_system, self.extra
        return NoseHoover(self.potential, dt, *rest)

    def step(self, params: PyTree, state: State) -> State:
        return self._moved(params, state, 1)

    def unstep(self, params: PyTree, state: State) -> State:
        return self._moved(params, state, -1)

    def _moved(self, params: PyTree, state: State, direction: int) -> State:
        h, masses = direction * self.dt, state.masses[:, None]
        velocities = state.velocities + 0.5 * h / masses * state.forces
        positions = state.positions + 0.5 * h * velocities
        velocities, chain = self._chained(state, velocities, h)
        kinetic = 0.5 * jnp.sum(masses * velocities**2)
        positions = positions + 0.5 * h * velocities
        forces, neighbours = self.moved(params, state, positions)
        return dataclasses.replace(
            state,
            positions=positions,
            velocities=velocities + 0.5 * h / masses * forces,
            forces=forces,
            step=state.step + direction,
            kinetic=kinetic,
            neighbours=neighbours,
            bath=chain,
        )

    # The chain over a time h: from its end to the atoms and back, every move by half, the first
    # link's own by h. Moving ξ_j scales what it brakes: the link before it, or the atoms.

    def _chained(self, state: State, velocities: Array, h: float) -> tuple[Array, Chain]:
        assert state.bath is not None and state.kT is not None
        xi, slope = [*state.bath.position], [*state.bath.velocity]
        mass, kT, freedom = self._mass(state), state.kT, self._freedom(state)
        heat = jnp.sum(state.masses[:, None] * velocities**2)
        scale = jnp.ones((), velocities.dtype)  # of the velocities so far
        for j, part in self._sweep():
            if part == "kick":
                twice = heat * scale**2 if j == 0 else mass[j - 1] * slope[j - 1] ** 2
                wanted = freedom * kT if j == 0 else kT
                slope[j] = slope[j] + 0.5 * h * (twice - wanted) / mass[j]
                continue
            step = (h if j == 0 else 0.5 * h) * slope[j]
            xi[j] = xi[j] + step
            if j == 0:
                scale = scale * jnp.exp(-step)
            else:
                slope[j - 1] = slope[j - 1] * jnp.exp(-step)
        return velocities * scale, Chain(jnp.stack(xi), jnp.stack(slope))

    def _sweep(self) -> list[tuple[int, str]]:
        inward = [(j, part) for j in reversed(range(self.links)) for part in ("kick", "move")]
        return inward + inward[-2::-1]

    def _freedom(self, state: State) -> int:
        return degrees_of_freedom(state.atoms, self.zero_momentum)

    def _mass(self, state: State) -> list[Array]:
        assert state.kT is not None
        one = state.kT * self.relaxation**2
        return [self._freedom(state) * one] + [one] * (self.links - 1)

    def observe(self, params: PyTree, state: State) -> dict[str, Array]:
        assert state.kT is not None and state.kinetic is not None and state.bath is not None
        kT, chain, freedom = state.kT, state.bath, self._freedom(state)
        temperature = 2 * state.kinetic / freedom / self.unit_system.boltzmann
        seen = self._observe(params, state, temperature, state.kinetic, state.atoms * kT)
        mass = jnp.stack(self._mass(state))
        own = 0.5 * jnp.sum(mass * chain.velocity**2)
        own = own + kT * (freedom * chain.position[0] + jnp.sum(chain.position[1:]))
        return seen | {"conserved_energy": seen["total_energy"] + own}

    def reduced_energy(self, params: PyTree, state: State) -> Array:
        assert state.kT is not None
        return self._thermo(params, state).driving / state.kT

    def sample(self, state: State) -> State:
        return light_sample(self.potential, state)

    # Backwards to the bit. In Nosé's variables every move adds to one variable what the others
    # say, so that integers come back; sums are of integers too, the same in any order.

    def to_exact(self, params: PyTree, state: State, steps: int) -> ExactChainState:
        del steps
        check_exact(self.potential.repeatable)
        assert state.bath is not None
        positions = grid(state.positions)
        x = jax.lax.optimization_barrier(off_grid(positions, state.positions.dtype))
        forces, neighbours = self.moved(params, state, x)
        rest = dataclasses.replace(state, forces=forces, neighbours=neighbours)
        slope = grid(state.bath.velocity)
        chain = jnp.stack([jnp.zeros_like(slope), slope])
        return ExactChainState(positions, grid(state.velocities), chain, rest)

    def same(self, exact: ExactChainState, other: ExactChainState) -> Array:
        equal = jnp.all(exact.positions == other.positions)
        equal = equal & jnp.all(exact.velocities == other.velocities)
        return equal & jnp.all(exact.chain == other.chain)

    def from_exact(self, exact: ExactChainState) -> State:
        rest, dtype = exact.rest, exact.rest.positions.dtype
        assert rest.bath is not None
        xi, u = off_grid(exact.chain, dtype)
        slope = u * jnp.exp(-jnp.append(xi[1:], 0))
        return dataclasses.replace(
            rest,
            positions=off_grid(exact.positions, dtype),
            velocities=off_grid(exact.velocities, dtype) * jnp.exp(-xi[0]),
            bath=Chain(rest.bath.position + xi, slope),
        )

    def exact_step(self, params: PyTree, exact: ExactChainState) -> ExactChainState:
        return self._exact(params, exact, 1)

    def exact_unstep(self, params: PyTree, exact: ExactChainState) -> ExactChainState:
        return self._exact(params, exact, -1)

    def _exact(self, params: PyTree, exact: ExactChainState, direction: int) -> ExactChainState:
        rest, way = exact.rest, direction
        half = 0.5 * self.dt
        push, drift = half / rest.masses[:, None], half * _exponential(-exact.chain[0, 0])
        kick = push * _exponential(exact.chain[0, 0])
        velocities = exact.velocities + way * grid(kick * rest.forces)
        positions = exact.positions + way * grid(drift * (velocities * RESOLUTION))
        chain = self._exact_chain(rest, velocities, exact.chain, way)
        drift = half * _exponential(-chain[0, 0])
        positions = positions + way * grid(drift * (velocities * RESOLUTION))
        x = jax.lax.optimization_barrier(off_grid(positions, rest.positions.dtype))
        forces, neighbours = self.moved(params, rest, x)
        forces = jax.lax.optimization_barrier(forces)
        kinetic = 0.5 * _twice_kinetic(rest, velocities, chain[0, 0]) * RESOLUTION
        velocities = velocities + way * grid(push * _exponential(chain[0, 0]) * forces)
        rest = dataclasses.replace(
            rest,
            forces=forces,
            neighbours=neighbours,
            kinetic=kinetic.astype(rest.positions.dtype),
            step=rest.step + way,
        )
        return ExactChainState(positions, velocities, chain, rest)

    def _exact_chain(self, rest: State, velocities: Array, chain: Array, way: int) -> Array:
        assert rest.kT is not None
        (xi, u), half = map(list, chain), 0.5 * self.dt
        mass, kT = [m.astype(jnp.float64) for m in self._mass(rest)], grid(rest.kT)
        last = self.links - 1
        for j, part in self._sweep():
            slow = jnp.ones((), jnp.float64) if j == last else _exponential(-xi[j + 1])
            if part == "move":
                step = (2 * half if j == 0 else half) * (u[j] * RESOLUTION)
                xi[j] = xi[j] + way * grid(step * slow)
                continue
            if j == 0:
                excess = _twice_kinetic(rest, velocities, xi[0])
                excess = excess - self._freedom(rest) * kT
            else:
                slope = u[j - 1] * RESOLUTION * _exponential(-xi[j])
                excess = grid(mass[j - 1] * (slope * slope)) - kT
            fast = jnp.ones((), jnp.float64) if j == last else _exponential(xi[j + 1])
            u[j] = u[j] + way * grid(half / mass[j] * fast * (excess * RESOLUTION))
        return jnp.stack([jnp.stack(xi), jnp.stack(u)])


def _exponential(number: Array) -> Array:
    """exp of a multiple of 2⁻⁴⁰, by itself: fused into what follows it could come out otherwise in
    one direction than in the other."""
    held = jax.lax.optimization_barrier(number)
    return jax.lax.optimization_barrier(jnp.exp(held * RESOLUTION))


def _twice_kinetic(rest: State, velocities: Array, first: Array) -> Array:
    """Σ m v² in units of 2⁻⁴⁰, a sum of integers."""
    v = velocities * RESOLUTION * _exponential(-first)
    return jnp.sum(grid(rest.masses[:, None] * (v * v)))

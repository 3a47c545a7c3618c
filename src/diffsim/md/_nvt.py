"""Constant temperature: Langevin dynamics by the BAOAB splitting."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray, PyTree

from .._errors import ConfigError
from .._simulation import AbstractEquilibrium
from ._constraints import Constraints, drifted, held_virial, tangent
from ._dynamics import AbstractDynamics, checked_dt
from ._observable import AbstractObservable
from ._potential import AbstractPotential
from ._state import State, kinetic_energy
from ._thermal import light_sample
from ._units import UnitSystem, unit_system


class NVT(AbstractDynamics, AbstractEquilibrium):
    """m dv = F dt - γ m v dt + √(2 γ m kT) dW,  dx = v dt, sampled by BAOAB.

    B: half kick, A: half drift, O: v ← e^(-γh) v + √((1 - e^(-2γh)) kT/m) ξ, then A and B again
    (Leimkuhler & Matthews 2013, doi:10.1063/1.4802990): one force evaluation a step; averages over
    positions are accurate to fourth order in h at high friction. Samples exp(-U/kT), U the
    potential's driving energy; the noise of step t comes from fold_in(key, t).

    At the end of a BAOAB step the kinetic temperature is low (0.25 % for the Lennard-Jones liquid
    at h = 0.005): `kinetic_energy` and `temperature` are therefore those right after the O step,
    where velocities are Maxwell's, and the pressure uses N kT.

    With `constraints` the drift follows the surface on which the distances are right (g-BAOAB;
    Leimkuhler & Matthews 2016, doi:10.1098/rspa.2016.0138).

    **Arguments:** `potential`; `dt` [time]; `friction` γ [1/time]; `units`; `extra`; `constraints`.
    `init` also takes `temperature` (required): it fixes kT, a batch axis over states if vmapped.
    """

    potential: AbstractPotential
    dt: float = eqx.field(static=True, converter=checked_dt)
    friction: float = eqx.field(static=True)
    unit_system: UnitSystem = eqx.field(static=True)
    extra: tuple[AbstractObservable, ...] = ()
    constraints: Constraints | None = None

    needed: ClassVar = ("temperature",)

    def __init__(
        self,
        potential: AbstractPotential,
        dt: float,
        friction: float,
        units: str | UnitSystem = "lj",
        extra: tuple[AbstractObservable, ...] = (),
        constraints: Constraints | None = None,
    ):
        self.potential, self.dt, self.extra = potential, checked_dt(dt), tuple(extra)
        self.friction, self.unit_system = float(friction), unit_system(units)
        self.constraints = constraints

    def __check_init__(self):
        if not (math.isfinite(self.friction) and self.friction > 0):
            raise ConfigError("must be positive and finite", key="friction", value=self.friction)

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
        key, start = jax.random.split(key)
        given = positions, box, masses, temperature, velocities
        state = self._start(params, start, *given, self.constraints)
        kT = jnp.asarray(temperature, state.positions.dtype) * self.unit_system.boltzmann
        return eqx.tree_at(
            lambda s: (s.kT, s.key, s.kinetic),
            state,
            (kT, key, kinetic_energy(state)),
            is_leaf=lambda x: x is None,
        )

    def step(self, params: PyTree, state: State) -> State:
        assert state.kT is not None and state.key is not None
        h, masses = self.dt, state.masses[:, None]
        kept = math.exp(-self.friction * h)
        spread = jnp.sqrt((1 - kept * kept) * state.kT / masses)
        shape, dtype = state.velocities.shape, state.velocities.dtype
        noise = jax.random.normal(
            jax.random.fold_in(state.key, state.step),
            shape,
            self.potential.noise_dtype or dtype,
        ).astype(dtype)

        rigid, x = self.constraints, state.positions
        velocities = tangent(rigid, state, x, state.velocities + 0.5 * h / masses * state.forces)
        positions, velocities = drifted(rigid, state, x, velocities, 0.5 * h)
        velocities = tangent(rigid, state, positions, kept * velocities + spread * noise)
        kinetic = 0.5 * jnp.sum(masses * velocities**2)
        positions, velocities = drifted(rigid, state, positions, velocities, 0.5 * h)
        forces, neighbours = self.moved(params, state, positions)
        velocities = velocities + 0.5 * h / masses * forces
        return State(
            positions=positions,
            velocities=tangent(rigid, state, positions, velocities),
            forces=forces,
            masses=state.masses,
            box=state.box,
            step=state.step + 1,
            kT=state.kT,
            key=state.key,
            kinetic=kinetic,
            neighbours=neighbours,
        )

    def observe(self, params: PyTree, state: State) -> dict[str, Array]:
        assert state.kT is not None and state.kinetic is not None
        taken = 0 if self.constraints is None else self.constraints.count
        freedom = 3 * state.atoms - taken
        temperature = 2 * state.kinetic / freedom / self.unit_system.boltzmann
        thermal = freedom / 3 * state.kT
        held = 0.0
        if self.constraints is not None:  # of these parameters, whichever a sample was made with
            held = held_virial(self.constraints, state, self._forces(params, state))
        return self._observe(params, state, temperature, state.kinetic, thermal, held)

    def reduced_energy(self, params: PyTree, state: State) -> Array:
        assert state.kT is not None
        return self._thermo(params, state).driving / state.kT

    def sample(self, state: State) -> State:
        return light_sample(self.potential, state, self.constraints is not None)

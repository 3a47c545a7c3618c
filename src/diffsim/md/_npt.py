"""Constant pressure: Langevin dynamics in a box that stochastic cell rescaling moves."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, PRNGKeyArray, PyTree

from .._errors import ConfigError
from .._simulation import AbstractEquilibrium
from ._box import as_matrix, grown, times, triclinic, volume
from ._changing_box import ChangingBox
from ._checks import checked_count
from ._constraints import Constraints, drifted, tangent
from ._dynamics import AbstractDynamics, checked_dt
from ._observable import AbstractObservable
from ._potential import AbstractPotential, volume_virial
from ._state import Barostat, State
from ._thermal import at_temperature, checked_relaxation, light_sample
from ._units import UnitSystem, unit_system

SHAPES = ("isotropic", "anisotropic", "triclinic")
# What sets the noise of the cell, and that of its shape, apart from that of the atoms.
OF_THE_CELL, BENT = 2**32 - 1, 2**32 - 2
MOST = 0.1  # of a logarithm of an edge, or a strain, in one move: what is more is a failure


class NPT(AbstractDynamics, AbstractEquilibrium):
    """dλ = (β_T λ/2τ)(P_int - P + kT/2V) dt + √(kT β_T/2τ) dW,  λ = √V;  x scales with V^(1/3).

    Stochastic cell rescaling (Bernetti & Bussi 2020, doi:10.1063/5.0020514), in the variable whose
    noise is even, with the noise of neighbouring moves averaged (Leimkuhler & Matthews 2013,
    doi:10.1093/amrx/abs010), and the atoms by `NVT`'s BAOAB. First order in V: no ringing, and
    fluctuations that are those of the ensemble, for any τ. P_int = (N kT + W/3)/V, tail corrections
    of the potential included, so that ⟨P_int⟩ = P exactly. Velocities do not change with the box.
    Samples exp(-(Φ + P V)/kT) V^N over V and the atoms' places in the box; Φ is the driving energy,
    plus what a tail correction makes of V.

    `shape`: "isotropic", for fluids; "anisotropic": each edge by itself, with the stress along it,
    d ln L_a = (β_T/3τ)(P_a - P) dt + √(2kT β_T/3τV) dW_a, for solids; "triclinic": all of the box,
    h ← h e^dε with the strain dε_ab = (β_T/3τ)(P_ab - P δ_ab) dt + √(2kT β_T/3τV) dW_ab, P_ab =
    (N kT δ_ab + W_ab)/V, W_ab = Σ d_a F_b, for crystals that may shear (Del Tatto et al. 2022,
    doi:10.3390/app12031139). As nothing depends on how all is turned, dW is symmetric, of variance
    dt on the diagonal and dt/2 off it, and the box, its atoms and velocities are turned back after
    each move, so that h (3, 3) stays lower triangular. This samples exp(-(Φ + P V)/kT) V^N dV dh₀,
    dh₀ the measure over shapes h₀ = h/V^⅓ that no strain changes (Martyna, Tobias & Klein 1994,
    doi:10.1063/1.467468: det(h)^(N-2) d⁹h): over the six numbers exp(-(Φ + P V)/kT) V^N/(b_y c_z²).
    On the group of matrices that measure has no drift of its own, and that of the noise, which goes
    as 1/V, cancels against the N + 1 of V^(N+1) dh₀ d ln V. So ⟨P_int⟩ = P exactly, and ⟨P_ab⟩ =
    P δ_ab but for -2kT⟨1/V⟩ of xx and as much more of zz, as a and c are turned by what is above
    the diagonal. A liquid does not resist shear: its box would lean and flatten until it is too
    small.
    Of every shape the volume moves as in the isotropic case, and then the shape at that volume.

    With `constraints` it is molecules that the box moves, by their centres of mass, as they are:
    N counts molecules and free atoms, P_int = (N kT + W/3)/V with the virial of the centres,
    W = Σ F·(x - d) for atoms at d from theirs, and the drift keeps the distances (as in `NVT`).

    Beside the usual observables: `volume`, `box`, `density` (of mass) and `residual_enthalpy`, that
    over an ideal gas at the same temperature, (U + P V)/N - kT a molecule or free atom. Where the
    box shrinks under twice the potential's reach, the run ends with `RESULTS.box_too_small`.

    **Arguments:** `potential`, whose virial is known; `dt` [time]; `friction` γ of the atoms
    [1/time]; `relaxation` τ of the volume [time], not under `every` steps; `compressibility` β_T
    [1/pressure], roughly that of the system: the two set how fast the volume moves, not where to;
    `every`: steps between two moves of the box, each of which costs a pass over the pairs;
    `shape`; `units`; `extra`; `constraints`. `init` also takes `temperature` and `pressure` (both
    required), batch axes over states if vmapped. A box (3, 3) keeps its shape where that is
    "isotropic"; of "triclinic" one of edges becomes its matrix, `box` is (3, 3), and there is the
    `pressure_tensor` (3, 3) too. Its pairs are all pairs.
    """

    potential: AbstractPotential
    dt: float = eqx.field(static=True, converter=checked_dt)
    friction: float = eqx.field(static=True)
    relaxation: float = eqx.field(static=True)
    compressibility: float = eqx.field(static=True)
    every: int = eqx.field(static=True)
    shape: str = eqx.field(static=True)
    unit_system: UnitSystem = eqx.field(static=True)
    extra: tuple[AbstractObservable, ...] = ()
    constraints: Constraints | None = None

    needed: ClassVar = ("temperature", "pressure")

    def __init__(
        self,
        potential: AbstractPotential,
        dt: float,
        friction: float,
        relaxation: float,
        compressibility: float,
        every: int = 5,
        shape: Literal["isotropic", "anisotropic", "triclinic"] = "isotropic",
        units: str | UnitSystem = "lj",
        extra: tuple[AbstractObservable, ...] = (),
        constraints: Constraints | None = None,
    ):
        self.constraints = constraints
        self.potential = potential if isinstance(potential, ChangingBox) else ChangingBox(potential)
        self.dt, self.extra = checked_dt(dt), tuple(extra)
        self.every = checked_count("every", every)
        self.relaxation = checked_relaxation(relaxation, self.every * self.dt)
        self.friction, self.compressibility = float(friction), float(compressibility)
        self.shape, self.unit_system = shape, unit_system(units)

    def __check_init__(self):
        for key in ("friction", "compressibility"):
            value = getattr(self, key)
            if not (math.isfinite(value) and value > 0):
                raise ConfigError("must be positive and finite", key=key, value=value)
        if self.shape not in SHAPES:
            raise ConfigError("unknown shape", key="shape", value=self.shape, allowed=SHAPES)

    def init(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        params: PyTree,
        key: PRNGKeyArray,
        *,
        positions: Any,
        box: Any,
        temperature: Any = None,
        pressure: Any = None,
        masses: Any = 1.0,
        velocities: Any = None,
    ) -> State:
        if self.shape == "anisotropic" and triclinic(box):
            raise ConfigError(
                "is triclinic, where edges do not move one by one",
                key="box",
                allowed='shape="triclinic" or "isotropic"',
            )
        if self.shape == "triclinic":
            box = as_matrix(box)
        key, first = jax.random.split(key)
        given = positions, box, masses, temperature, velocities
        start = self._start(params, first, *given, self.constraints, pressure=pressure)
        virial = self._thermo(params, start).virial
        if not isinstance(virial, Tracer) and bool(jnp.isnan(virial)):
            raise ConfigError(
                "has no virial, which a barostat needs",
                key="potential",
                allowed="an energy function that takes `box`",
            )
        held = jnp.asarray(pressure, start.positions.dtype) / self.unit_system.pressure_factor
        bath = Barostat(held)
        return at_temperature(start, temperature, self.unit_system, bath, False, key)

    def step(self, params: PyTree, state: State) -> State:
        assert state.kT is not None and state.key is not None
        h, masses = self.dt, state.masses[:, None]
        kept = math.exp(-self.friction * h)
        spread = jnp.sqrt((1 - kept * kept) * state.kT / masses)
        shape, dtype = state.velocities.shape, state.velocities.dtype
        key = jax.random.fold_in(state.key, state.step)
        kind = self.potential.noise_dtype or dtype
        noise = jax.random.normal(key, shape, kind).astype(dtype)

        rigid, x = self.constraints, state.positions
        velocities = tangent(rigid, state, x, state.velocities + 0.5 * h / masses * state.forces)
        positions, velocities = drifted(rigid, state, x, velocities, 0.5 * h)
        velocities = tangent(rigid, state, positions, kept * velocities + spread * noise)
        kinetic = 0.5 * jnp.sum(masses * velocities**2)
        positions, velocities = drifted(rigid, state, positions, velocities, 0.5 * h)
        turns = {"velocities": velocities} if self.shape == "triclinic" else {}
        given = dataclasses.replace(state, positions=positions, **turns)
        moved = self._cell_moved(params, given)
        if turns:
            velocities = moved.velocities
        forces, neighbours = self.moved(params, moved, moved.positions)
        velocities = velocities + 0.5 * h / masses * forces
        return dataclasses.replace(
            moved,
            velocities=tangent(rigid, moved, moved.positions, velocities),
            forces=forces,
            step=state.step + 1,
            kinetic=kinetic,
            neighbours=neighbours,
        )

    def _cell_moved(self, params: PyTree, state: State) -> State:
        """Positions and box after the move that is due, every so many steps."""

        def move(state: State) -> State:
            neighbours = self.potential.update(
                state.neighbours, jax.lax.stop_gradient(state.positions), state.box
            )
            state = dataclasses.replace(state, neighbours=neighbours)
            if self.shape == "triclinic":
                return self._sheared(params, state)
            scale = self._scale(params, state)
            positions = self._scaled(scale, state)
            return dataclasses.replace(state, positions=positions, box=scale * state.box)

        if self.every == 1:
            return move(state)
        due = (state.step + 1) % self.every == 0
        return jax.lax.cond(due, move, lambda state: state, state)

    def _scale(self, params: PyTree, state: State) -> Array:
        """By what the edges grow, (3,)."""
        assert state.kT is not None
        thermal, size = self._bodies(state) * state.kT, volume(state.box)
        if self.shape == "isotropic":
            virial = self._thermo(params, state).virial - self._within(params, state)
            logarithms = self._growth(state, (thermal + virial / 3) / size) * jnp.ones(3)
        else:
            stress = (thermal + self._virials(params, state)) / size
            change = self._change_of_shape(state, stress, self._noise(state, BENT, (3,)))
            logarithms = self._growth(state, jnp.mean(stress)) + change - jnp.mean(change)
        return jnp.exp(jnp.clip(logarithms, -MOST, MOST)).astype(state.box.dtype)

    def _growth(self, state: State, pressure: Array) -> Array:
        """What the volume's move adds to the logarithm of each edge, ()."""
        assert state.kT is not None and state.bath is not None
        speed, time = self._pace()
        size, kT = volume(state.box), state.kT
        root, excess = jnp.sqrt(size), pressure - state.bath.pressure
        noise = self._noise(state, OF_THE_CELL, ()) + self._noise(state, OF_THE_CELL, (), 1)
        drift = 0.5 * speed * root * (excess + kT / (2 * size)) * time
        change = drift + jnp.sqrt(0.5 * kT * speed * time) * noise / 2
        return 2 / 3 * jnp.log1p(jnp.maximum(change / root, -0.5))

    def _change_of_shape(self, state: State, stress: Array, noise: Array) -> Array:
        """Strains by stress and noise at the volume as it is; what they add to it is to be taken
        off. The volume has a move of its own, whose noise is even: in one step with these, eight
        atoms that move fifty times in τ had a volume 0.5 % too small."""
        assert state.kT is not None
        speed, time = self._pace()
        spread = jnp.sqrt(2 / 3 * state.kT * speed * time / volume(state.box))
        return speed / 3 * stress * time + spread * noise

    def _pace(self) -> tuple[float, float]:
        """β_T/τ, and the time between moves."""
        speed = self.compressibility * self.unit_system.pressure_factor / self.relaxation
        return speed, self.every * self.dt

    def _sheared(self, params: PyTree, state: State) -> State:
        """All of the box strained, and turned back to be lower triangular, its atoms along."""
        stress, noise = self._stress(params, state), self._noise(state, BENT, (3, 3))
        change = self._change_of_shape(state, stress, (noise + noise.T) / 2)
        more = self._growth(state, jnp.trace(stress) / 3) - jnp.trace(change) / 3
        strain = change + more * jnp.eye(3, dtype=change.dtype)
        wider, turn = grown(jnp.clip(strain, -MOST, MOST).astype(state.box.dtype))
        within = self._offsets(state)
        positions = times(state.positions - within, wider)
        if self.constraints is not None:
            positions = positions + times(within, turn)
        return dataclasses.replace(
            state,
            positions=positions,
            velocities=times(state.velocities, turn),
            box=times(state.box, wider),
        )

    def _stress(self, params: PyTree, state: State) -> Array:
        """P_ab = (N kT δ_ab + W_ab)/V, (3, 3), of a triclinic box, molecules by their centres."""
        virial = self.potential.virial_tensor(params, state.positions, state.box, state.neighbours)
        if self.constraints is not None:  # what strains without turning feels no torque on them
            inside = jnp.einsum("ia,ib->ab", self._offsets(state), self._forces(params, state))
            virial = virial - (inside + inside.T) / 2
        tail = volume_virial(self.potential, params, state.atoms, state.box)
        thermal = self._bodies(state) * state.kT + tail  # pyright: ignore
        return (thermal * jnp.eye(3, dtype=state.box.dtype) + virial) / volume(state.box)

    def _bodies(self, state: State) -> int:
        """N: molecules and free atoms."""
        return state.atoms if self.constraints is None else self.constraints.bodies(state.atoms)

    def _offsets(self, state: State) -> Array | float:
        """Where atoms are from the centres of their molecules."""
        if self.constraints is None:
            return 0.0
        return self.constraints.offsets(state.positions, state.masses, state.box)

    def _scaled(self, scale: Array, state: State) -> Array:
        """Positions in a box grown by `scale`, molecules as they are."""
        within = self._offsets(state)
        return scale * (state.positions - within) + within

    def _within(self, params: PyTree, state: State) -> Array | float:
        """Σ F·d, of the virial what belongs to the inside of molecules."""
        if self.constraints is None:
            return 0.0
        return jnp.sum(self._forces(params, state) * self._offsets(state))

    def _noise(self, state: State, what: int, shape: tuple[int, ...], later: int = 0) -> Array:
        """Of this move of the box, or of a later one."""
        assert state.key is not None
        count = (state.step + 1) // self.every + later
        key = jax.random.fold_in(jax.random.fold_in(state.key, what), count)
        return jax.random.normal(key, shape, state.box.dtype)

    def _virials(self, params: PyTree, state: State) -> Array:
        """-∂Φ(c x, c L)/∂c_a at c = 1, (3,): the virial along each edge."""

        def energy(c: Array) -> Array:
            positions, box = self._scaled(c, state), c * state.box
            driving = self.potential.driving_energy(params, positions, box, state.neighbours)
            return driving + self.potential.volume_energy(params, state.atoms, box)

        return -jax.grad(energy)(jnp.ones(3, state.box.dtype))

    def observe(self, params: PyTree, state: State) -> dict[str, Array]:
        assert state.kT is not None and state.kinetic is not None and state.bath is not None
        count, taken = (
            self._bodies(state),
            0 if self.constraints is None else self.constraints.count,
        )
        kT = 2 * state.kinetic / (3 * state.atoms - taken)
        thermal, within = count * state.kT, self._within(params, state)
        temperature = kT / self.unit_system.boltzmann
        seen = self._observe(params, state, temperature, state.kinetic, thermal, -within)
        size = volume(state.box)
        enthalpy = (seen["potential_energy"] + state.bath.pressure * size) / count
        if self.shape == "triclinic":
            factor = self.unit_system.pressure_factor
            seen["pressure_tensor"] = self._stress(params, state) * factor
        return seen | {
            "volume": size,
            "box": state.box,
            "density": jnp.sum(state.masses) / size * self.unit_system.density_factor,
            "residual_enthalpy": enthalpy - state.kT,
        }

    def reduced_energy(self, params: PyTree, state: State) -> Array:
        """(Φ + P V)/kT - N ln V, over V, the shape and places in the box."""
        assert state.kT is not None and state.bath is not None
        size = volume(state.box)
        energy = self._thermo(params, state).driving + state.bath.pressure * size
        energy = energy + self.potential.volume_energy(params, state.atoms, state.box)
        return energy / state.kT - self._bodies(state) * jnp.log(size)

    def sample(self, state: State) -> State:
        return light_sample(self.potential, state, self.constraints is not None)

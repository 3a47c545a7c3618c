"""What every ensemble of molecular dynamics shares: its initial state, observables and health."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, PRNGKeyArray, PyTree

from .._errors import ConfigError, SimulationError
from .._simulation import RESULTS, AbstractSimulation
from ._box import fractions, members, sides, triclinic, volume, widths
from ._checks import check_atoms, check_start
from ._clusters import Clusters
from ._constraints import Constraints, snapped, unstretched
from ._neighbours import Neighbours
from ._observable import AbstractObservable
from ._potential import AbstractPotential, Thermo
from ._state import Barostat, State, kinetic_energy
from ._structures import maxwell_velocities
from ._units import UnitSystem, unit_system

OBSERVABLE_QUANTITIES = {
    "potential_energy": "energy",
    "kinetic_energy": "energy",
    "total_energy": "energy",
    "conserved_energy": "energy",
    "residual_enthalpy": "energy",
    "volume": "volume",
    "box": "length",
    "density": "density",
    "residual_energy": "energy",
    "temperature": "temperature",
    "pressure": "pressure",
    "pressure_tensor": "pressure",
    "momentum": "momentum",
    "positions": "length",
    "velocities": "velocity",
}

OVERLAP = 1e-6  # of the shortest edge: closer than this, two atoms are at one place


class AbstractDynamics(AbstractSimulation):
    """m ẍ = F(θ, x) in a periodic box, in one of the systems of units.

    `init(params, key, positions=, box=, temperature=, velocities=, masses=)` takes positions
    (atoms, 3) and box in the system's length, masses () or (atoms,) in its mass (default 1),
    and either `velocities` (atoms, 3) or a `temperature`, from which Maxwell velocities of zero
    total momentum are drawn. `box` is (3,) edges, or (3, 3), the lattice vectors of a triclinic box
    as rows, lower triangular with a positive diagonal: a along x, b in the xy plane, as in ASE,
    GROMACS and OpenMM. Twice the cutoff has to fit into a_x, b_y and c_z; pairs are then all pairs
    or those of JAX-MD's list.

    Observables, in the units of the system: `potential_energy` (tail included), `residual_energy`
    (the same an atom), `kinetic_energy`, `total_energy` (kinetic plus the energy whose gradient the
    forces are, which is what dynamics conserves), `temperature`, `pressure`, `momentum`,
    `positions`, `velocities`, and `extra` ones such as `RadialDistribution`.
    """

    potential: eqx.AbstractVar[AbstractPotential]
    dt: eqx.AbstractVar[float]
    unit_system: eqx.AbstractVar[UnitSystem]
    extra: eqx.AbstractVar[tuple[AbstractObservable, ...]]

    needed: ClassVar[tuple[str, ...]] = ()  # of the conditions that `init` may do without

    def time_step(self) -> float | None:
        return self.dt

    def traceable_init(self) -> bool:
        return not self.potential.allocates

    def units(self) -> dict[str, str]:
        names = {k: self.unit_system.unit_of(q) for k, q in OBSERVABLE_QUANTITIES.items()}
        names |= {o.name: o.unit_in(self.unit_system) for o in self.extra}
        names |= {
            k: self.unit_system.unit_of(q) for k, q in self.potential.parameter_units().items()
        }
        return names

    def condition_units(self) -> dict[str, str]:
        """The units that `init` expects of its conditions."""
        kinds = {"positions": "length", "box": "length", "temperature": "temperature"}
        kinds |= {"masses": "mass", "velocities": "velocity", "pressure": "pressure"}
        return {k: self.unit_system.unit_of(q) for k, q in kinds.items()}

    def check(self, params: PyTree, *, box: Any, positions: Any, **conditions: Any) -> None:
        """Host side: refuse what cannot be right; conditions may carry a batch axis."""
        check_start({"positions": positions, **conditions}, self.needed, batched=True)
        boxes = members(box, positions)
        for each in np.unique(boxes, axis=0):
            self.potential.check(params, each)
        for key, value in {"box": box, "positions": positions, **conditions}.items():
            if value is not None and not np.all(np.isfinite(np.asarray(value))):
                raise ConfigError("must be finite", key=key)
        for key in ("temperature", "masses"):
            if conditions.get(key) is not None and np.any(np.asarray(conditions[key]) <= 0):
                raise ConfigError("must be positive", key=key)
        # in `init` the potential meets the atoms too late: a run has begun by then
        check_atoms(self.potential, np.shape(positions)[-2])
        check_overlap(np.asarray(positions), boxes)

    def _start(
        self,
        params: PyTree,
        key: PRNGKeyArray,
        positions: Any,
        box: Any,
        masses: Any,
        temperature: Any,
        velocities: Any,
        rigid: Constraints | None = None,
        **more: Any,
    ) -> State:
        """A state of what `init` was given, checked; `rigid`: distances that it is to have; `more`:
        what else the ensemble needs."""
        given = dict(
            box=box,
            positions=positions,
            temperature=temperature,
            masses=masses,
            velocities=velocities,
            **more,
        )
        check_start(given, self.needed)
        if not any(isinstance(x, Tracer) for x in jax.tree.leaves((params, given))):
            self.check(params, **given)
        positions = jnp.asarray(snapped(rigid, positions, masses, box))
        if not jnp.issubdtype(positions.dtype, jnp.floating):
            positions = positions.astype(float)
        box = jnp.asarray(box, positions.dtype)
        masses = jnp.asarray(masses, positions.dtype) * self.unit_system.mass_factor
        masses = jnp.broadcast_to(masses, positions.shape[:1])
        if velocities is None:
            if temperature is None:
                raise ConfigError("give velocities or a temperature", key="velocities")
            kT = jnp.asarray(temperature, positions.dtype) * self.unit_system.boltzmann
            velocities = maxwell_velocities(key, masses, kT).astype(positions.dtype)
        velocities = jnp.asarray(velocities, positions.dtype)
        neighbours = self.potential.allocate(params, positions, box)
        start = State(
            positions=positions,
            velocities=velocities,
            forces=self.potential.forces(params, positions, box, neighbours),
            masses=masses,
            box=box,
            step=jnp.zeros((), jnp.int32),
            neighbours=neighbours,
        )
        return unstretched(rigid, start)

    def variables(self, state: State) -> PyTree:
        return state.positions, state.velocities

    def prepare(self, params: PyTree, state: State) -> State:
        neighbours = self.potential.update(state.neighbours, state.positions, state.box)
        forces = self.potential.forces(params, state.positions, state.box, neighbours)
        return eqx.tree_at(
            lambda s: (s.forces, s.neighbours),
            state,
            (forces, neighbours),
            is_leaf=lambda x: x is None,
        )

    def moved(self, params: PyTree, state: State, positions: Array) -> tuple[Array, Any]:
        """Forces at new positions, with the neighbour structure brought up to date."""
        neighbours = self.potential.update(
            state.neighbours, jax.lax.stop_gradient(positions), state.box
        )
        return self.potential.forces(params, positions, state.box, neighbours), neighbours

    def _forces(self, params: PyTree, state: State) -> Array:
        """Forces of these parameters; those of the state may be of others."""
        return self.potential.forces(params, state.positions, state.box, state.neighbours)

    def _thermo(self, params: PyTree, state: State) -> Thermo:
        arguments = (params, state.positions, state.box, state.neighbours)
        return self.potential.thermo(*arguments, features=state.features)

    def _observe(
        self,
        params: PyTree,
        state: State,
        temperature: Array,
        kinetic: Array,
        thermal: Array,
        held: Any = 0.0,
    ) -> dict[str, Array]:
        """`thermal`: N kT of the ideal-gas part of the pressure; `held`: the virial of what holds
        rigid distances."""
        units = self.unit_system
        thermo = self._thermo(params, state)
        pressure = (
            (thermal + (thermo.virial + held) / 3) / volume(state.box) * units.pressure_factor
        )
        observed = {
            "potential_energy": thermo.energy,
            "residual_energy": thermo.energy / state.atoms,
            "kinetic_energy": kinetic,
            "total_energy": thermo.driving + kinetic_energy(state),
            "temperature": temperature,
            "pressure": pressure,
            "momentum": jnp.sum(state.masses[:, None] * state.velocities, axis=0),
            "positions": state.positions,
            "velocities": state.velocities,
        }
        return observed | {o.name: o(params, state) for o in self.extra}

    def status(self, state: State) -> RESULTS:
        reach = self.potential.reach
        fastest = jnp.max(jnp.abs(state.velocities)) * self.dt
        limit = 0.1 * (reach if reach is not None else math.inf)
        finite = jnp.isfinite(fastest + jnp.sum(state.positions))
        moving = RESULTS.where(fastest <= limit, RESULTS.successful, RESULTS.unstable)
        result = RESULTS.where(finite, moving, RESULTS.nonfinite)
        if reach is not None and isinstance(state.bath, Barostat):
            small = jnp.min(sides(state.box)) < 2 * reach
            result = RESULTS.where(small, RESULTS.box_too_small, result)
        overflow = self.potential.overflowed(state.neighbours)
        return RESULTS.where(overflow, RESULTS.neighbour_overflow, result)

    def choices(self, state: State) -> dict[str, str]:
        path = self.potential.path_taken(state.neighbours)
        return {} if path is None else {"pairs": path}

    def room(self, state: State) -> tuple[int, ...]:
        return sum((tuple(each.room) for each in _structures(state)), ())

    def with_room(self, state: State, room: tuple[int, ...]) -> State:
        left = list(room)
        for old in _structures(state):
            own, left = left[: len(old.room)], left[len(old.room) :]
            new = old.with_room(tuple(own))
            put = lambda x, old=old, new=new: new if x is old else x  # noqa: E731
            state = jax.tree.map(put, state, is_leaf=_is_structure)
        return state

    def enlarge(self, params: PyTree, state: State) -> State:
        old = state.neighbours
        if old is None:
            return state
        neighbours = self.potential.allocate(params, state.positions, state.box, old)
        forces = state.forces
        if bool(self.potential.overflowed(old)):  # they are NaN
            forces = self.potential.forces(params, state.positions, state.box, neighbours)
        return eqx.tree_at(lambda s: (s.neighbours, s.forces), state, (neighbours, forces))


def _is_structure(x: Any) -> bool:
    return isinstance(x, (Neighbours, Clusters))


def _structures(state: State) -> list[Any]:
    """The neighbour structures in a state, in order."""
    leaves = jax.tree.leaves(state.neighbours, is_leaf=_is_structure)
    return [x for x in leaves if _is_structure(x)]


def check_overlap(positions: np.ndarray, boxes: np.ndarray) -> None:
    """Atoms at one place drop their pair in silence: refuse them; (..., atoms, 3) and the box of
    each configuration, as of `members`."""
    from scipy.spatial import KDTree

    for member, x in enumerate(positions.reshape(-1, *positions.shape[-2:]).astype(float)):
        own = boxes[member]
        with jax.ensure_compile_time_eval():
            length = np.asarray(widths(own))
            # of vectors: no two atoms are farther apart in this cuboid than they are, and those at
            # one place are so in it too
            inside = np.asarray(fractions(x, own)) * length if triclinic(own) else x
        inside = inside - length * np.floor(inside / length)
        tree = KDTree(np.where(inside < length, inside, 0), boxsize=length)
        pairs = tree.query_pairs(OVERLAP * float(np.min(length)), output_type="ndarray")
        if len(pairs):
            i, j = min(map(tuple, pairs.tolist()))
            which = f" in member {member} of the batch" if len(boxes) > 1 else ""
            raise SimulationError(
                f"atoms {i} and {j} overlap{which}",
                step=0,
                advice="move them apart, or remove one of them",
            )


def checked_dt(dt: Any) -> float:
    """A time step that is a positive finite number."""
    if not isinstance(dt, (int, float)) or not (math.isfinite(dt) and dt > 0):
        raise ConfigError("must be a positive, finite number", key="dt", value=dt)
    return float(dt)


__all__ = ["AbstractDynamics", "checked_dt", "unit_system"]

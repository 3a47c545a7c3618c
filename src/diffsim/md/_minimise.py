"""Structures of least energy, and how they move with the parameters."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from .._adjoint import Implicit
from .._errors import ConfigError, SimulationError
from .._schedule import Schedule
from .._simulation import RESULTS, AbstractSimulation
from .._solve import Solution, solve
from ._box import Edges, check, triclinic, volume
from ._checks import check_atoms, check_start
from ._descents import FIRE, LBFGS, AbstractDescent, Rest
from ._potential import AbstractPotential

Cell = Literal["fixed", "isotropic", "edges"]


class MinimumState(eqx.Module):
    """Where a descent stands: `positions`, `box`, the largest force on an atom, what it
    remembers."""

    positions: Float[Array, "atoms 3"]
    box: Edges
    largest_force: Float[Array, ""]
    memory: PyTree
    step: Int[Array, ""]
    neighbours: Any = None


class Minimisation(AbstractSimulation):
    """x' = x + a move of `descent`, until no force exceeds `tolerance`: ∂U/∂x = 0.

    A simulation whose fixed point is a minimum: with `ds.Implicit()` its gradients are
    dx*/dθ = -(∂²U/∂x²)⁻¹ ∂²U/∂x∂θ, whatever way led there. Observables: `potential_energy`,
    `largest_force`, `positions`. `minimise` is the short way.

    params: those of the potential; or `{"potential": ..., "strain": (3,)}` with `strained=True`,
    then the box is L (1 + strain), atoms going along. `init` takes `positions` and `box`.

    `cell`: "fixed", as a triclinic box (3, 3) is; or the box goes to its minimum too, ∂U/∂ε = 0 for
    stretches ε of box and atoms, "isotropic" (as one) or "edges" (each by itself). `largest_force`
    and `tolerance` then count ∂U/∂ε over ℓ = N^½ (V/N)^⅓, in which a stretch is about as stiff as
    an atom's place.
    """

    potential: AbstractPotential
    descent: AbstractDescent = eqx.field(default_factory=FIRE)
    tolerance: float = eqx.field(static=True, default=1e-6)
    strained: bool = eqx.field(static=True, default=False)
    cell: Cell = eqx.field(static=True, default="fixed")

    def __check_init__(self):
        if not self.tolerance > 0:
            raise ConfigError("must be positive", key="tolerance", value=self.tolerance)
        if self.cell not in get_args(Cell):
            raise ConfigError("unknown", key="cell", value=self.cell, allowed=get_args(Cell))
        if self.strained and self.cell != "fixed":
            raise ConfigError("a box that is free has no strain", key="cell", allowed="fixed")

    def init(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, params: PyTree, key: PRNGKeyArray | None = None, *, positions: Any, box: Any
    ) -> MinimumState:
        check_start({"positions": positions})
        check_atoms(self.potential, len(positions))
        x = jnp.asarray(positions, float)
        if not isinstance(box, Tracer):
            check(box)
        edges = jnp.asarray(box, x.dtype)
        if triclinic(edges) and (self.strained or self.cell != "fixed"):
            raise ConfigError(
                "a triclinic box stays as it is: only edges can be stretched",
                key="strain" if self.strained else "cell",
                value=None if self.strained else self.cell,
                allowed='cell="fixed" without strain',
            )
        given, _, whole = self._scaled(params, x, edges)
        neighbours = self.potential.allocate(given, x, whole)
        force = self.potential.forces(given, x, whole, neighbours)
        force = self._with_pull(force, given, x, whole, neighbours)
        memory, begin = self.descent.init(jnp.zeros_like(force)), jnp.zeros((), jnp.int32)
        return MinimumState(x, edges, _largest(force), memory, begin, neighbours)

    def _with_pull(
        self, force: Array, params: PyTree, x: Array, box: Array, neighbours: Any
    ) -> Array:
        """Forces, and -∂U/∂ε/ℓ as one more row where the box is free."""
        if self.cell == "fixed":
            return force

        def stretched(e: Array) -> Array:
            larger = box * (1 + e)
            driving = self.potential.driving_energy(params, x * (1 + e), larger, neighbours)
            return driving + self.potential.volume_energy(params, len(x), larger)

        pull = -jax.grad(stretched)(jnp.zeros_like(box))
        if self.cell == "isotropic":
            pull = jnp.full_like(pull, jnp.mean(pull))
        return jnp.concatenate([force, pull[None] / _length(x, box)])

    def _scaled(self, params: PyTree, x: Array, box: Array) -> tuple[PyTree, Array, Array]:
        """Parameters of the potential, positions and box as strained; a box that keeps its shape
        as one number, in what depends on it."""
        if self.cell == "isotropic":
            box = _in_shape(box)
        if not self.strained:
            return params, x, box
        stretch = 1 + params["strain"]
        return params["potential"], x * stretch, box * stretch

    def step(self, params: PyTree, state: MinimumState) -> MinimumState:
        given, x, box = self._scaled(params, state.positions, state.box)
        neighbours = self.potential.update(state.neighbours, jax.lax.stop_gradient(x), box)
        force = self.potential.forces(given, x, box, neighbours)
        if self.strained:
            force = force * (1 + params["strain"])
        force = self._with_pull(force, given, x, box, neighbours)
        there = jax.lax.stop_gradient(_largest(force) <= self.tolerance)
        held = jax.lax.stop_gradient((force, jnp.zeros_like(force), state.memory))
        move, memory = self.descent.move(*held)
        memory = jax.tree.map(lambda new, old: jnp.where(there, old, new), memory, held[2])
        move = jnp.where(there, 0, move)
        # The value is the descent's, the derivative that of a small step along the force.
        slope = force - jax.lax.stop_gradient(force)
        x, box = self._moved(state.positions, state.box, move, slope)
        return MinimumState(
            x,
            box,
            jax.lax.stop_gradient(_largest(force)),
            jax.lax.stop_gradient(memory),
            state.step + 1,
            neighbours,
        )

    def _moved(self, x: Array, box: Array, move: Array, slope: Array) -> tuple[Array, Array]:
        """Positions and box after a move, the derivative that of `slope`. Its mean over the atoms
        is rounding, and a shift of all atoms is no way to a minimum."""
        atoms, move = len(x), jax.lax.stop_gradient(move)
        along = slope[:atoms] - jnp.mean(slope[:atoms], axis=0)
        if self.cell == "fixed":
            return x + move + along, box
        edges = jax.lax.stop_gradient(box)
        length = _length(x, edges)
        stretch, gain = move[atoms] / length, slope[atoms] / length
        dragged = jax.lax.stop_gradient(x) * stretch
        return x + dragged + move[:atoms] + along, box + edges * (stretch + gain)

    def observe(self, params: PyTree, state: MinimumState) -> dict[str, Array]:
        given, x, box = self._scaled(params, state.positions, state.box)
        return {
            "potential_energy": self.potential.energy(given, x, box, state.neighbours),
            "largest_force": state.largest_force,
            "positions": x,
        }

    def status(self, state: MinimumState) -> RESULTS:
        finite = jnp.isfinite(jnp.sum(state.positions))
        result = RESULTS.where(finite, RESULTS.successful, RESULTS.nonfinite)
        over = self.potential.overflowed(state.neighbours)
        return RESULTS.where(over, RESULTS.neighbour_overflow, result)


def _in_shape(box: Array) -> Array:
    """The box, what depends on it by its size alone."""
    held = jax.lax.stop_gradient(box)
    return held * jnp.mean(box / held)


def _length(x: Array, box: Array) -> Array:
    """ℓ = N^½ (V/N)^⅓: what makes a stretch a move."""
    return jax.lax.stop_gradient(len(x) ** 0.5 * (volume(box) / len(x)) ** (1 / 3))


def _largest(force: Array) -> Array:
    """The largest force on an atom."""
    return jnp.sqrt(jnp.max(jnp.sum(force * force, axis=-1)))


class Minimum(eqx.Module):
    """A structure of least energy: `positions` (atoms, 3), `box`, `energy`, `largest_force`;
    `steps` it took, and `result`, how it ended."""

    positions: Float[Array, "atoms 3"]
    box: Edges
    energy: Float[Array, ""]
    largest_force: Float[Array, ""]
    steps: Int[Array, ""]
    result: RESULTS

    def check(self) -> Minimum:
        """Raise on the host if there is no minimum."""
        if not bool(self.result == RESULTS.successful):
            raise SimulationError(
                f"the descent stopped at a force of {float(self.largest_force):.3g}",
                step=int(self.steps),
                advice="allow more steps, or loosen the tolerance",
            )
        return self


def minimise(
    potential: AbstractPotential,
    params: PyTree,
    positions: Any,
    box: Any,
    *,
    descent: AbstractDescent | None = None,
    tolerance: float = 1e-6,
    max_steps: int = 10_000,
    strain: Any = None,
    cell: Cell = "fixed",
) -> Minimum:
    """x* = argmin U(θ, x), whose derivatives in θ are those of the implicit function theorem.

    positions: (atoms, 3) to start from; box: (3,) or (3, 3) [length]
    descent: `FIRE()`, or `LBFGS()` (the default), for starts that are not far off
    tolerance: the largest force on an atom at the end [energy/length]
    strain: (3,), stretches box and atoms by 1 + strain first; derivatives in it are there too, and
        `positions` are those before the stretch
    cell: "fixed", or whether the box comes to rest too: "isotropic", or its "edges" one by one; a
        triclinic box (3, 3) stays as it is

    Nothing of the descent enters the gradient (`ds.Implicit`), which is NaN where it has not
    arrived; all of the minimum has gradients in `params`, in both modes. In jit and vmap too;
    there a neighbour structure is not made, but all pairs are taken.
    """
    strained = strain is not None
    chosen = descent if descent is not None else LBFGS()
    sim = Minimisation(potential, chosen, tolerance, strained, cell)
    given = {"potential": params, "strain": jnp.asarray(strain)} if strained else params
    frozen = jax.tree.map(lambda x: jax.lax.stop_gradient(x) if eqx.is_array(x) else x, given)
    state = sim.init(frozen, positions=positions, box=jax.lax.stop_gradient(jnp.asarray(box)))
    state = _descended(sim, frozen, state, max_steps)
    last, energy = _settled(sim, given, state)
    arrived = last.state.largest_force <= tolerance
    unfinished = RESULTS.where(arrived, RESULTS.not_converged, RESULTS.max_steps_reached)
    result = RESULTS.where(arrived & (last.first_bad_step < 0), RESULTS.successful, unfinished)
    x, box = _where_known((last.state.positions, last.state.box), arrived)
    centre = jnp.mean(x, axis=0)
    return Minimum(
        x - (centre - jax.lax.stop_gradient(centre)),  # a pull on all atoms alike is rounding
        _in_shape(box) if cell == "isotropic" else box,
        energy,
        last.state.largest_force,
        state.step,
        result,
    )


@jax.custom_jvp
def _where_known(x: PyTree, known: Array) -> PyTree:
    """x, whose derivative is NaN where it is not known."""
    del known
    return x


@_where_known.defjvp
def _(primals: Any, tangents: Any) -> tuple[PyTree, PyTree]:
    sure = jnp.where(primals[1], 1.0, jnp.nan)
    return _where_known(*primals), jax.tree.map(lambda t: t * sure.astype(t.dtype), tangents[0])


@eqx.filter_jit
def _settled(sim: Minimisation, params: PyTree, state: MinimumState) -> tuple[Solution, Array]:
    """One more step, which has the derivatives, and the energy there."""
    # without the descent's memory: the linear system is that of the positions alone
    sim = Minimisation(sim.potential, Rest(), sim.tolerance, sim.strained, sim.cell)
    state = dataclasses.replace(state, memory=())
    end = solve(sim, params, state, schedule=Schedule(steps=1), adjoint=Implicit())
    dynamic, static = eqx.partition(params, eqx.is_inexact_array)
    arrays, rest = eqx.partition((sim, end.state), eqx.is_array)

    def plain(dynamic: PyTree, arrays: PyTree) -> Array:
        sim, state = eqx.combine(arrays, rest)
        return sim.observe(eqx.combine(dynamic, static), state)["potential_energy"]

    energy = jax.custom_jvp(plain)

    @energy.defjvp
    def _(primals: Any, tangents: Any) -> tuple[Array, Array]:
        # At rest ∂U/∂x = 0, but for rounding, which may point where no minimum moves (a turn).
        dynamic, arrays = primals
        along = jax.jvp(lambda dynamic: plain(dynamic, arrays), (dynamic,), (tangents[0],))[1]
        return energy(dynamic, arrays), along

    return end, energy(dynamic, arrays)


@eqx.filter_jit
def _run(sim: Minimisation, params: PyTree, state: MinimumState, most: Array) -> MinimumState:
    dynamic, static = eqx.partition(state, eqx.is_array)

    def going(dynamic: PyTree) -> Array:
        state = eqx.combine(dynamic, static)
        fine = jnp.isfinite(state.largest_force) & ~sim.potential.overflowed(state.neighbours)
        return (state.step < most) & (state.largest_force > sim.tolerance) & fine

    def on(dynamic: PyTree) -> PyTree:
        return eqx.partition(sim.step(params, eqx.combine(dynamic, static)), eqx.is_array)[0]

    return eqx.combine(jax.lax.while_loop(going, on, dynamic), static)


def _descended(
    sim: Minimisation, params: PyTree, state: MinimumState, max_steps: int
) -> MinimumState:
    """To the end, with more room for neighbours where that runs out."""
    if max_steps < 1:
        raise ConfigError("must be a positive whole number", key="max_steps", value=max_steps)
    most = jnp.asarray(max_steps, jnp.int32)
    while True:
        end = jax.lax.stop_gradient(_run(sim, params, state, most))
        over = sim.potential.overflowed(end.neighbours)
        if isinstance(over, Tracer) or not bool(over):
            return end
        given, x, box = sim._scaled(params, state.positions, state.box)
        more = sim.potential.allocate(given, x, box, end.neighbours)
        state = eqx.tree_at(lambda s: s.neighbours, state, more)

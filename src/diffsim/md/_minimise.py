"""Structures of least energy, and how they move with the parameters."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from typing import Any

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
from ._potential import AbstractPotential


class AbstractDescent(eqx.Module):
    """One move downhill: from the gradient where it stands, and what it remembers."""

    @abstractmethod
    def init(self, x: Array) -> PyTree:
        """What is remembered at the start."""

    @abstractmethod
    def move(self, force: Array, x: Array, memory: PyTree) -> tuple[Array, PyTree]:
        """The step from x along -∇U = `force`, and what to remember."""


class FIRE(AbstractDescent):
    """Damped dynamics that stops where it goes uphill: robust from any start.

    **Arguments:** `dt`, first step in units of √(length/force): about a tenth of a vibration;
    `longest`, of steps, in dt; `reach` [length], the most that an atom moves in one. Source:
    Bitzek et al. 2006, doi:10.1103/PhysRevLett.97.170201 (with the published numbers).
    """

    dt: float = eqx.field(static=True, default=0.01)
    longest: float = eqx.field(static=True, default=10.0)
    reach: float = eqx.field(static=True, default=0.1)

    def init(self, x: Array) -> PyTree:
        number = lambda v: jnp.asarray(v, x.dtype)  # noqa: E731
        return jnp.zeros_like(x), number(self.dt), number(0.1), jnp.zeros((), jnp.int32)

    def move(self, force: Array, x: Array, memory: PyTree) -> tuple[Array, PyTree]:
        v, dt, alpha, downhill = memory
        v = v + dt * force
        on = jnp.vdot(force, v) > 0
        size = jnp.linalg.norm(v) / jnp.maximum(jnp.linalg.norm(force), jnp.finfo(x.dtype).tiny)
        mixed = (1 - alpha) * v + alpha * size * force
        downhill = jnp.where(on, downhill + 1, 0)
        faster = downhill > 5
        longest = self.longest * self.dt
        dt = jnp.where(on, jnp.where(faster, jnp.minimum(1.1 * dt, longest), dt), 0.5 * dt)
        alpha = jnp.where(on, jnp.where(faster, 0.99 * alpha, alpha), 0.1)
        v = jnp.where(on, mixed, jnp.zeros_like(v))
        return _within(dt * v, self.reach), (v, dt, alpha, downhill)


class LBFGS(AbstractDescent):
    """Quasi-Newton steps from the last `history` moves: fewest evaluations near a minimum.

    **Arguments:** `history`; `reach` [length], the most that an atom moves in one step; `scale`
    [length²/energy], of the first step. Where curvature is negative a move is forgotten, so that
    it goes downhill all the same. Source: Liu & Nocedal 1989, doi:10.1007/BF01589116.
    """

    history: int = eqx.field(static=True, default=20)
    reach: float = eqx.field(static=True, default=0.1)
    scale: float = eqx.field(static=True, default=0.01)

    def init(self, x: Array) -> PyTree:
        moves = jnp.zeros((self.history, *x.shape), x.dtype)
        return moves, moves, jnp.zeros(self.history, x.dtype), jnp.zeros_like(x), jnp.zeros_like(x)

    def move(self, force: Array, x: Array, memory: PyTree) -> tuple[Array, PyTree]:
        moves, turns, weights, before, last = memory
        turned = last - force  # gradients: the other sign
        curved = jnp.vdot(before, turned)
        good = curved > 1e-12 * jnp.vdot(before, before)
        weight = jnp.where(good, 1 / jnp.where(good, curved, 1), 0)
        push = lambda all_, new: jnp.concatenate([all_[1:], new[None]])  # noqa: E731
        moves, turns, weights = push(moves, before), push(turns, turned), push(weights, weight)
        step = self._two_loops(force, moves, turns, weights)
        step = jnp.where(jnp.vdot(step, force) > 0, step, self.scale * force)
        step = _within(step, self.reach)
        return step, (moves, turns, weights, step, force)

    def _two_loops(self, force: Array, moves: Array, turns: Array, weights: Array) -> Array:
        def back(q: Array, k: Any) -> tuple[Array, Array]:
            s, y, rho = k
            a = rho * jnp.vdot(s, q)
            return q - a * y, a

        def forth(z: Array, k: Any) -> tuple[Array, None]:
            s, y, rho, a = k
            return z + s * (a - rho * jnp.vdot(y, z)), None

        q, shares = jax.lax.scan(back, force, (moves, turns, weights), reverse=True)
        last = jnp.vdot(turns[-1], turns[-1])
        known = (weights[-1] > 0) & (last > 0)
        size = jnp.where(known, 1 / jnp.where(known, weights[-1] * last, 1), self.scale)
        return jax.lax.scan(forth, size * q, (moves, turns, weights, shares))[0]


class _Rest(AbstractDescent):
    """Stays where it is."""

    def init(self, x: Array) -> PyTree:
        return ()

    def move(self, force: Array, x: Array, memory: PyTree) -> tuple[Array, PyTree]:
        return jnp.zeros_like(x), memory


def _within(step: Array, reach: float) -> Array:
    """The step, shortened where an atom would go farther."""
    longest = jnp.max(jnp.linalg.norm(step, axis=-1))
    return step * jnp.minimum(1, reach / jnp.maximum(longest, jnp.finfo(step.dtype).tiny))


class MinimumState(eqx.Module):
    """Where a descent stands: `positions`, `box`, the largest force on an atom, what it
    remembers."""

    positions: Float[Array, "atoms 3"]
    box: Float[Array, "3"]
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
    """

    potential: AbstractPotential
    descent: AbstractDescent = eqx.field(default_factory=FIRE)
    tolerance: float = eqx.field(static=True, default=1e-6)
    strained: bool = eqx.field(static=True, default=False)

    def __check_init__(self):
        if not self.tolerance > 0:
            raise ConfigError("must be positive", key="tolerance", value=self.tolerance)

    def init(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, params: PyTree, key: PRNGKeyArray | None = None, *, positions: Any, box: Any
    ) -> MinimumState:
        x = jnp.asarray(positions, float)
        edges = jnp.asarray(box, x.dtype)
        given, _, whole = self._scaled(params, x, edges)
        neighbours = self.potential.allocate(given, x, whole)
        force = self.potential.forces(given, x, whole, neighbours)
        return MinimumState(
            x, edges, _largest(force), self.descent.init(x), jnp.zeros((), jnp.int32), neighbours
        )

    def _scaled(self, params: PyTree, x: Array, box: Array) -> tuple[PyTree, Array, Array]:
        """Parameters of the potential, positions and box as strained."""
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
        there = jax.lax.stop_gradient(_largest(force) <= self.tolerance)
        held = jax.lax.stop_gradient((force, state.positions, state.memory))
        move, memory = self.descent.move(*held)
        memory = jax.tree.map(lambda new, old: jnp.where(there, old, new), memory, held[2])
        move = jnp.where(there, 0, move)
        # The value is the descent's, the derivative that of a small step along the force.
        # Its mean is rounding, and a shift of all atoms is no way to a minimum.
        slope = force - jax.lax.stop_gradient(force)
        slope = slope - jnp.mean(slope, axis=0)
        return MinimumState(
            state.positions + jax.lax.stop_gradient(move) + slope,
            state.box,
            jax.lax.stop_gradient(_largest(force)),
            jax.lax.stop_gradient(memory),
            state.step + 1,
            neighbours,
        )

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


def _largest(force: Array) -> Array:
    """The largest force on an atom."""
    return jnp.sqrt(jnp.max(jnp.sum(force * force, axis=-1)))


class Minimum(eqx.Module):
    """A structure of least energy: `positions` (atoms, 3), `box` (3,), `energy`, `largest_force`;
    `steps` it took, and `result`, how it ended."""

    positions: Float[Array, "atoms 3"]
    box: Float[Array, "3"]
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
) -> Minimum:
    """x* = argmin U(θ, x), whose derivatives in θ are those of the implicit function theorem.

    positions: (atoms, 3) to start from; box: (3,), fixed
    descent: `FIRE()`, or `LBFGS()` (the default), for starts that are not far off
    tolerance: the largest force on an atom at the end [energy/length]
    strain: (3,), stretches box and atoms by 1 + strain first; derivatives in it are there too, and
        `positions` are those before the stretch

    Nothing of the descent enters the gradient (`ds.Implicit`), which is NaN where it has not
    arrived; energy, positions and whatever follows from them have gradients in `params`, in both
    modes. In jit and vmap too; there a neighbour structure is not made, but all pairs are taken.
    """
    strained = strain is not None
    chosen = descent if descent is not None else LBFGS()
    sim = Minimisation(potential, chosen, tolerance, strained)
    given = {"potential": params, "strain": jnp.asarray(strain)} if strained else params
    frozen = jax.tree.map(lambda x: jax.lax.stop_gradient(x) if eqx.is_array(x) else x, given)
    state = sim.init(frozen, positions=positions, box=jax.lax.stop_gradient(jnp.asarray(box)))
    state = _descended(sim, frozen, state, max_steps)
    last, energy = _settled(sim, given, state)
    arrived = last.state.largest_force <= tolerance
    unfinished = RESULTS.where(arrived, RESULTS.not_converged, RESULTS.max_steps_reached)
    result = RESULTS.where(arrived & (last.first_bad_step < 0), RESULTS.successful, unfinished)
    return Minimum(
        last.state.positions,
        last.state.box,
        energy,
        last.state.largest_force,
        state.step,
        result,
    )


@eqx.filter_jit
def _settled(sim: Minimisation, params: PyTree, state: MinimumState) -> tuple[Solution, Array]:
    """One more step, which has the derivatives, and the energy there."""
    # without the descent's memory: the linear system is that of the positions alone
    sim = Minimisation(sim.potential, _Rest(), sim.tolerance, sim.strained)
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


def elastic_constants(
    potential: AbstractPotential, params: PyTree, positions: Any, box: Any, **options: Any
) -> Float[Array, "3 3"]:
    """C_ab = (1/V) ∂²U*/∂e_a ∂e_b at zero strain, U* the energy with atoms at rest: the block of
    C₁₁, C₁₂, ... for stretches e along the box [energy/length³].

    Atoms that shift inside the cell when it is stretched are followed by the implicit function
    theorem, so that there is no strain to choose. `positions`, `box`: a crystal near its minimum,
    without pressure; options are those of `minimise`. Differentiable in `params`. C₄₄ comes from
    a crystal that is turned by 45°: there C₁₁' = (C₁₁ + C₁₂ + 2 C₄₄)/2.
    """
    box = jnp.asarray(box, float)

    def stress(strain: Array) -> Array:
        x = minimise(potential, params, positions, box, strain=strain, **options).positions
        energy = lambda e: potential.energy(params, x * (1 + e), box * (1 + e))  # noqa: E731
        return jax.grad(energy)(strain) / jnp.prod(box)

    return jax.jacfwd(stress)(jnp.zeros(3))

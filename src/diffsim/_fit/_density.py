"""The posterior density as one function of a vector, its mode, and its shape there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PRNGKeyArray

from .._adjoint import AbstractAdjoint, Reweight
from .._errors import ConfigError, SimulationError
from .._problem import Problem
from .._solve import check_health, default_adjoint
from ._derivative import FEW, explicit, hessian, prefers_forward
from ._evaluate import Run
from ._planned import planned

STEPS = 200  # at most, on the way to the mode
LINE_STEPS = 8  # at most, of a line search
GAIN = 1e-7  # of U, relative: a mode is known to a thousandth of the posterior's width
CANDIDATES = 8  # points that are looked at for each that the search for the mode starts from
SPREAD = 0.3  # of these points, in unconstrained parameters of size one
NEARLY = 5.0  # U above the least, of modes that chains should know of
LEAST_CURVATURE = 1e-4  # of a direction, relative to the parameters' own


class Density:
    """U(z) = -log p(θ(z) | data) - log |det dθ/dz|, up to a constant, over the flattened z.

    A trajectory that fails has no density: U = ∞, which samplers step back from. `adjoint`: how
    ∂U/∂z is taken; by default forward for up to 100 parameters. Random numbers inside a simulation
    are those of `key`, the same at every z. `use`: which conditions count.
    """

    def __init__(
        self,
        problem: Problem,
        adjoint: AbstractAdjoint | None,
        key: PRNGKeyArray,
        use: Sequence[bool] | np.ndarray | None = None,
    ):
        self.start, self.unravel = ravel_pytree(problem.initial())
        if adjoint is None:
            modes = ("forward",) if self.start.size <= FEW else ("reverse",)
            adjoint = default_adjoint(problem.simulation, modes)
        if isinstance(adjoint, Reweight):
            raise ConfigError(
                "samples reweighted from one θ do not serve all that a posterior visits",
                key="adjoint",
                allowed="an adjoint that runs the trajectory",
            )
        problem.check()
        problem.check_adjoint(adjoint)
        adjoint.check(problem.simulation)
        mode = "forward" if self.start.size <= FEW else "reverse"
        adjoint, _, self.plan = planned(problem, adjoint, mode)
        self.problem, self.adjoint = problem, adjoint
        self.forward = prefers_forward(adjoint.modes, self.start.size)
        traceable = problem.simulation.traceable_init()
        states = key if traceable else problem.states(problem.initial(), key)
        used = np.ones(problem.batch) if use is None else np.asarray(use, dtype=float)
        self.run = Run(problem, adjoint, states, jnp.asarray(used))
        self._at = jax.jit(jax.vmap(self.potential))

    def potential(self, z: Array) -> Array:
        """U(z). Shape ()."""
        theta = self.unravel(z)
        loss, prediction = self.run.loss(theta)
        failed = jnp.any(prediction.solution.first_bad_step >= 0)
        return jnp.where(failed, jnp.inf, loss - self.problem.log_det(theta))

    def _refuse_start(self) -> None:
        """Raise what is wrong with the start, where U is not finite."""
        _, prediction = jax.jit(lambda z: self.run.loss(self.unravel(z)))(self.start)
        check_health(prediction.solution.result, prediction.solution.first_bad_step)
        raise SimulationError(
            "the posterior density at the start is not finite",
            advice="look at the starting values, and whether their priors allow them",
        )

    def at(self, points: Array) -> np.ndarray:
        """U at each of `points` (points, n)."""
        return np.asarray(self._at(points))

    def free_values(self, z: Array) -> dict[str, Array]:
        """The free parameters at z in their own units."""
        values = self.problem.values(self.unravel(z))
        return {name: values[name] for name in self.problem.free}

    def modes(self, key: PRNGKeyArray, starts: int = 1) -> tuple[Array, bool]:
        """Where L-BFGS ends from the start and from `starts` - 1 points around it, the least U
        first, of those nearly as likely; and whether the slope vanishes at the first."""
        fn = explicit(self.potential, forward=self.forward)
        search = jax.jit(jax.vmap(lambda z: descend(fn, z, STEPS)))
        found, flat, values, first = map(np.asarray, search(self._around(key, starts)))
        if not np.isfinite(first[0]):
            self._refuse_start()
        order = np.argsort(np.nan_to_num(values, nan=np.inf))
        order = [i for i in order if values[i] <= values[order[0]] + NEARLY or i == order[0]]
        self.least = float(values[order[0]])
        return jnp.asarray(found[np.asarray(order)]), bool(flat[order[0]])

    def _around(self, key: PRNGKeyArray, starts: int) -> Array:
        """The start and points about it, half of them those of least U among `CANDIDATES` times as
        many: (starts, n). Periodic data have many poor fits with a wrong frequency, which this
        steps over; the other half looks further afield."""
        if starts == 1:
            return self.start[None]
        z = self.start
        noise = jax.random.normal(key, (CANDIDATES * (starts - 1), z.size), z.dtype)
        points = z + SPREAD * jnp.maximum(1.0, jnp.abs(z)) * noise
        order = np.argsort(np.nan_to_num(self.at(points), nan=np.inf))
        best, any_ = order[: starts // 2], order[starts // 2 :]
        return jnp.concatenate(
            [z[None], points[best], points[np.sort(any_)[: starts - 1 - len(best)]]]
        )

    def whitened(self, modes: Array) -> Whitened:
        """The density in coordinates in which it looks like N(0, 1) about the first of `modes`."""
        z = modes[0]
        second = lambda z: hessian(self.potential, z, self.adjoint, self.problem.simulation)  # noqa: E731
        curvature = np.asarray(jax.jit(second)(z))
        factor, sound = _spread(curvature, np.asarray(z))
        return Whitened(self, modes, jnp.asarray(factor, z.dtype), sound)


class Whitened:
    """u with z = centre + factor u, the centre the first of `modes`; `sound`: the curvature there
    is positive."""

    def __init__(self, density: Density, modes: Array, factor: Array, sound: bool):
        self.density, self.centre, self.factor, self.sound = density, modes[0], factor, sound
        self.size = self.centre.size
        self.modes = _distinct(np.linalg.solve(factor, np.asarray(modes - self.centre).T).T)
        self.potential = explicit(lambda u: density.potential(self.z(u)), forward=density.forward)

    def z(self, u: Array) -> Array:
        """z of u (..., n)."""
        return self.centre + u @ self.factor.T

    def starts(self, key: PRNGKeyArray, chains: int) -> Array:
        """A point a chain, spread as the posterior should be, where it has a density: (chains,
        n). Chains share out the modes, so that R-hat tells of those that they cannot leave."""
        spread = jax.random.normal(key, (chains, self.size), self.centre.dtype)
        about = jnp.asarray(self.modes[np.arange(chains) % len(self.modes)], spread.dtype)
        limit = self.density.least + 10.0 * self.size + 50.0
        for _ in range(20):
            far = ~(self.density.at(self.z(about + spread)) < limit)
            if not np.any(far):
                break
            spread = jnp.where(far[:, None], spread / 2, spread)
        return about + spread


def _distinct(u: np.ndarray) -> np.ndarray:
    """The rows that are further apart than the posterior is wide."""
    kept = [u[0]]
    for row in u[1:]:
        if min(np.linalg.norm(row - other) for other in kept) > 1:
            kept.append(row)
    return np.stack(kept)


def descend(
    fn: Callable[[Array], Array], z: Array, steps: int
) -> tuple[Array, Array, Array, Array]:
    """The minimum of fn by L-BFGS (optax), whether the slope all but vanishes there, and fn there
    and at the start.

    It ends when two steps in a row gain less than `GAIN`: an adaptive solver's U is no smoother,
    and line searches in its noise are long.
    """
    search = optax.scale_by_zoom_linesearch(LINE_STEPS, initial_guess_strategy="one")
    solver = optax.lbfgs(linesearch=search)
    both = optax.value_and_grad_from_state(fn)

    def go_on(carry: Any) -> Array:
        _, _, count, idle, norm, _, _ = carry
        return (count < steps) & (idle < 2) & (norm > 1e-5)

    def step(carry: Any) -> Any:
        z, state, count, idle, _, _, start = carry
        value, slope = both(z, state=state)
        updates, state = solver.update(slope, state, z, value=value, grad=slope, value_fn=fn)
        norm = jnp.linalg.norm(jnp.asarray(slope) * jnp.maximum(1.0, jnp.abs(z)))
        start = jnp.where(count == 0, value, start)
        reached = optax.tree.get(state, "value")
        gained = value - reached > GAIN * jnp.maximum(1.0, jnp.abs(value))
        idle = jnp.where(gained, 0, idle + 1)
        return optax.apply_updates(z, updates), state, count + 1, idle, norm, reached, start

    unknown = jnp.asarray(jnp.inf, z.dtype)
    none = jnp.asarray(0)
    first = (z, solver.init(z), none, none, unknown, unknown, unknown)
    z, _, _, _, norm, value, start = jax.lax.while_loop(go_on, step, first)
    return z, norm < 1e-2 * jnp.maximum(1.0, jnp.abs(value)), value, start


def _spread(curvature: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, bool]:
    """F with F Fᵀ = H⁻¹ where H is positive; elsewhere, something of the parameters' size."""
    diagonal = np.diag(curvature)
    usual = 0.1 * np.maximum(1.0, np.abs(z))
    if not np.all(np.isfinite(curvature)):
        return np.diag(usual), False
    scale = np.where(diagonal > 0, 1 / np.sqrt(np.where(diagonal > 0, diagonal, 1)), usual)
    values, vectors = np.linalg.eigh(scale[:, None] * curvature * scale)
    sound = bool(np.all(values > LEAST_CURVATURE))
    widths = 1 / np.sqrt(np.maximum(np.abs(values), LEAST_CURVATURE))
    return scale[:, None] * vectors * np.minimum(widths, 1e3), sound

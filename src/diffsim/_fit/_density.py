"""The posterior density as one function of a vector, its mode, and its shape there."""

from __future__ import annotations

from collections.abc import Callable
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

STEPS = 300  # at most, on the way to the mode
CANDIDATES = 8  # points that are looked at for each that the search for the mode starts from
SPREAD = 0.3  # of these points, in unconstrained parameters of size one
NEARLY = 5.0  # U above the least, of modes that chains should know of
LEAST_CURVATURE = 1e-4  # of a direction, relative to the parameters' own


class Density:
    """U(z) = -log p(θ(z) | data) - log |det dθ/dz|, up to a constant, over the flattened z.

    A trajectory that fails has no density: U = ∞, which samplers step back from. `adjoint`: how
    ∂U/∂z is taken; by default forward for up to 100 parameters. Random numbers inside a simulation
    are those of `key`, the same at every z.
    """

    def __init__(self, problem: Problem, adjoint: AbstractAdjoint | None, key: PRNGKeyArray):
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
        adjoint.check(problem.simulation)
        self.problem, self.adjoint = problem, adjoint
        self.forward = prefers_forward(adjoint.modes, self.start.size)
        traceable = problem.simulation.traceable_init()
        states = key if traceable else problem.states(problem.initial(), key)
        self.run = Run(problem, adjoint, states, jnp.ones(problem.batch))

    def potential(self, z: Array) -> Array:
        """U(z). Shape ()."""
        theta = self.unravel(z)
        loss, prediction = self.run.loss(theta)
        failed = jnp.any(prediction.solution.first_bad_step >= 0)
        return jnp.where(failed, jnp.inf, loss - self.problem.log_det(theta))

    def check_start(self) -> None:
        """Raise what is wrong with the trajectory at the start, if anything is."""
        _, prediction = jax.jit(lambda z: self.run.loss(self.unravel(z)))(self.start)
        check_health(prediction.solution.result, prediction.solution.first_bad_step)
        if not np.isfinite(self.at(self.start[None])[0]):
            raise SimulationError(
                "the posterior density at the start is not finite",
                advice="look at the starting values, and whether their priors allow them",
            )

    def at(self, points: Array) -> np.ndarray:
        """U at each of `points` (points, n)."""
        return np.asarray(jax.jit(jax.vmap(self.potential))(points))

    def free_values(self, z: Array) -> dict[str, Array]:
        """The free parameters at z in their own units."""
        values = self.problem.values(self.unravel(z))
        return {name: values[name] for name in self.problem.free}

    def modes(self, key: PRNGKeyArray, starts: int = 1) -> tuple[Array, bool]:
        """Where L-BFGS ends from the start and from `starts` - 1 points around it, the least U
        first, of those nearly as likely; and whether the slope vanishes at the first."""
        fn = explicit(self.potential, forward=self.forward)
        search = jax.jit(jax.vmap(lambda z: descend(fn, z, STEPS)))
        found, flat = search(self._around(key, starts))
        values = self.at(found)
        order = np.argsort(np.nan_to_num(values, nan=np.inf))
        order = [i for i in order if values[i] <= values[order[0]] + NEARLY or i == order[0]]
        return found[np.asarray(order)], bool(flat[order[0]])

    def _around(self, key: PRNGKeyArray, starts: int) -> Array:
        """The start, and of `CANDIDATES` times as many points about it those of least U: (starts,
        n). Periodic data have many poor fits with a wrong frequency, which this steps over."""
        if starts == 1:
            return self.start[None]
        z = self.start
        noise = jax.random.normal(key, (CANDIDATES * (starts - 1), z.size), z.dtype)
        points = z + SPREAD * jnp.maximum(1.0, jnp.abs(z)) * noise
        order = np.argsort(np.nan_to_num(self.at(points), nan=np.inf))
        return jnp.concatenate([z[None], points[order[: starts - 1]]])

    def whitened(self, modes: Array) -> Whitened:
        """The density in coordinates in which it looks like N(0, 1) about the first of `modes`."""
        z = modes[0]
        curvature = np.asarray(jax.jit(lambda z: hessian(self.potential, z, self.adjoint.modes))(z))
        factor, sound = _spread(curvature, np.asarray(z))
        return Whitened(self, modes, jnp.asarray(factor, z.dtype), sound)


class Whitened:
    """u with z = centre + factor u, the centre the first of `modes`; `sound`: the curvature there
    is positive."""

    def __init__(self, density: Density, modes: Array, factor: Array, sound: bool):
        self.density, self.centre, self.factor, self.sound = density, modes[0], factor, sound
        self.size = self.centre.size
        self.modes = jnp.linalg.solve(factor, (modes - self.centre).T).T
        self.potential = explicit(lambda u: density.potential(self.z(u)), forward=density.forward)

    def z(self, u: Array) -> Array:
        """z of u (..., n)."""
        return self.centre + u @ self.factor.T

    def starts(self, key: PRNGKeyArray, chains: int) -> Array:
        """A point a chain, spread as the posterior should be, where it has a density: (chains,
        n). Chains share out the modes, so that R-hat tells of those that they cannot leave."""
        spread = jax.random.normal(key, (chains, self.size), self.centre.dtype)
        about = self.modes[jnp.arange(chains) % len(self.modes)]
        limit = float(self.density.at(self.centre[None])[0]) + 10.0 * self.size + 50.0
        for _ in range(20):
            far = ~(self.density.at(self.z(about + spread)) < limit)
            if not np.any(far):
                break
            spread = jnp.where(far[:, None], spread / 2, spread)
        return about + spread


def descend(fn: Callable[[Array], Array], z: Array, steps: int) -> tuple[Array, Array]:
    """The minimum of fn by L-BFGS (optax), and whether the slope all but vanished there."""
    solver = optax.lbfgs()
    both = optax.value_and_grad_from_state(fn)

    def go_on(carry: tuple[Array, Any, Array, Array]) -> Array:
        _, _, count, norm = carry
        return (count < steps) & (norm > 1e-5)

    def step(carry: Any) -> Any:
        z, state, count, _ = carry
        value, slope = both(z, state=state)
        updates, state = solver.update(slope, state, z, value=value, grad=slope, value_fn=fn)
        norm = jnp.linalg.norm(jnp.asarray(slope) * jnp.maximum(1.0, jnp.abs(z)))
        return optax.apply_updates(z, updates), state, count + 1, norm

    first = (z, solver.init(z), jnp.asarray(0), jnp.asarray(jnp.inf, z.dtype))
    z, _, _, norm = jax.lax.while_loop(go_on, step, first)
    return z, norm < 1e-3


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

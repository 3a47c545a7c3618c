"""Ways downhill: damped dynamics and quasi-Newton steps."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree


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
        return within(dt * v, self.reach), (v, dt, alpha, downhill)


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
        step = within(step, self.reach)
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


class Rest(AbstractDescent):
    """Stays where it is."""

    def init(self, x: Array) -> PyTree:
        return ()

    def move(self, force: Array, x: Array, memory: PyTree) -> tuple[Array, PyTree]:
        return jnp.zeros_like(x), memory


def within(step: Array, reach: float) -> Array:
    """The step, shortened where an atom would go farther."""
    longest = jnp.max(jnp.linalg.norm(step, axis=-1))
    return step * jnp.minimum(1, reach / jnp.maximum(longest, jnp.finfo(step.dtype).tiny))

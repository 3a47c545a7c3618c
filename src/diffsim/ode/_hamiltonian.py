"""dq/dt = ∂T/∂p, dp/dt = -∂V/∂q by symplectic methods that can be run backwards to the bit."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray, PyTree

from .._errors import ConfigError
from .._simulation import AbstractReversible
from ._checks import check_field, checked_y0, first_start
from ._compositions import AbstractComposition, VelocityVerlet
from ._grid import off_grid, on_grid, spacing
from ._observe import observed, start_of
from ._systems import AbstractHamiltonian


class PhaseState(eqx.Module):
    """q and p (n,) at `start` + `step` dt, with the force there (-∂V/∂q) for methods that begin
    with it."""

    q: Array
    p: Array
    force: Array | None
    start: Array
    step: Array


class ExactPhase(eqx.Module):
    """q and p as multiples of powers of two, `grid_q` and `grid_p`; the rest of the state."""

    q: Int[Array, " n"]
    p: Int[Array, " n"]
    grid_q: Array
    grid_p: Array
    rest: PhaseState


class HamiltonianDynamics(AbstractReversible):
    """dq/dt = ∂T/∂p, dp/dt = -∂V/∂q for H = T(p) + V(q), by a symplectic method.

    The energy error stays bounded for times exponentially long in 1/h, where a method like Tsit5
    drifts (Hairer, Lubich & Wanner 2006, doi:10.1007/3-540-30666-8). Every adjoint for fixed steps
    applies; `Reversible` runs in integers of 2⁻⁴⁸ of the start's magnitude, so that the way back
    meets every state to the last bit, and keeps nothing.

    **Arguments:** `system`: an `AbstractHamiltonian` (`Kepler`, `NBody`, ...) or `Separable(T, V)`;
    `dt`: the step h, in the system's time; `method`: `VelocityVerlet()` (order 2), `ForestRuth()`,
    `Yoshida4()`, `Yoshida6()`, `Yoshida8()`; `initial(params)`: y₀ where it depends on
      parameters.

    `init(params, key, y0=)`: y0 = (q, p) of length 2n. Observables: `t`, `y`, `q`, `p`, `energy`
    and those of the system.
    """

    rests: ClassVar[bool] = False

    system: AbstractHamiltonian
    dt: float = eqx.field(static=True)
    method: AbstractComposition
    initial: Callable[[PyTree], PyTree] | None

    def __init__(
        self,
        system: Any,
        dt: float,
        method: AbstractComposition | None = None,
        *,
        initial: Callable[[PyTree], PyTree] | None = None,
    ):
        if not isinstance(system, AbstractHamiltonian):
            raise ConfigError(
                "must be separable, H = T(p) + V(q)",
                key="system",
                value=type(system).__name__,
                allowed="Kepler, NBody, Separable(kinetic, potential)",
            )
        self.system, self.dt, self.initial = system, float(dt), initial
        self.method = VelocityVerlet() if method is None else method

    def __check_init__(self):
        if not (math.isfinite(self.dt) and self.dt > 0):
            raise ConfigError("must be positive and finite", key="dt", value=self.dt)

    def init(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, params: PyTree, key: PRNGKeyArray | None = None, *, y0: Any = None, t0: Any = 0.0
    ) -> PhaseState:
        del key
        y = checked_y0(start_of(self.system, self.initial, params) if y0 is None else y0)
        if y.ndim != 1 or y.size % 2:
            raise ConfigError("must be (q, p), a vector of even length", key="y0", value=y.shape)
        q, p = jnp.split(y, 2)
        state = PhaseState(q, p, None, jnp.asarray(t0, y.dtype), jnp.zeros((), jnp.int32))
        return self.prepare(params, state)

    def check(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, params: PyTree, *, y0: Any = None, t0: Any = 0.0
    ) -> None:
        own = start_of(self.system, self.initial, params) if y0 is None else None
        y = checked_y0(own) if y0 is None else first_start(y0)
        check_field(self.system, y, params, self.system.components)

    def prepare(self, params: PyTree, state: PhaseState) -> PhaseState:
        force = self._force(params, state.q) if self.method.kick_first else None
        return PhaseState(state.q, state.p, force, state.start, state.step)

    def time(self, state: PhaseState) -> Array:
        """When the state is, in the system's time."""
        return state.start + state.step.astype(state.start.dtype) * self.dt

    def variables(self, state: PhaseState) -> PyTree:
        return (state.q, state.p)

    def at_time(self, state: PhaseState, t: Any) -> PhaseState:
        start = jnp.asarray(t, state.start.dtype)
        return PhaseState(state.q, state.p, state.force, start, jnp.zeros_like(state.step))

    def time_step(self) -> float | None:
        return self.dt

    def with_time_step(self, dt: float) -> HamiltonianDynamics:
        """The same dynamics with another step."""
        return HamiltonianDynamics(self.system, dt, self.method, initial=self.initial)

    def observe(self, params: PyTree, state: PhaseState) -> dict[str, Array]:
        y = jnp.concatenate([state.q, state.p])
        time = self.time(state)
        energy = self.system.kinetic(state.p, params) + self.system.potential(state.q, params)
        names = self.system.components
        seen = {"q": state.q, "p": state.p, "energy": energy}
        return seen | observed(self.system, names, time, y, params)

    def _force(self, params: PyTree, q: Array) -> Array:
        return self.system.force(q, params)

    def _velocity(self, params: PyTree, p: Array) -> Array:
        return self.system.velocity(p, params)

    def step(self, params: PyTree, state: PhaseState) -> PhaseState:
        return self._walk(params, state, self.dt, 1)

    def unstep(self, params: PyTree, state: PhaseState) -> PhaseState:
        return self._walk(params, state, -self.dt, -1)

    def _walk(self, params: PyTree, state: PhaseState, h: float, count: int) -> PhaseState:
        q, p, force = state.q, state.p, state.force
        for weight in self.method.weights:
            if force is not None:
                p = p + 0.5 * weight * h * force
                q = q + weight * h * self._velocity(params, p)
                force = self._force(params, q)
                p = p + 0.5 * weight * h * force
            else:
                q = q + 0.5 * weight * h * self._velocity(params, p)
                p = p + weight * h * self._force(params, q)
                q = q + 0.5 * weight * h * self._velocity(params, p)
        return PhaseState(q, p, force, state.start, state.step + count)

    def to_exact(self, params: PyTree, state: PhaseState, steps: int) -> ExactPhase:
        speed, force = self._velocity(params, state.p), self._force(params, state.q)
        grid_q = spacing(state.q, self.dt * speed)
        grid_p = spacing(state.p, self.dt * force)
        exact = ExactPhase(
            on_grid(state.q, grid_q), on_grid(state.p, grid_p), grid_q, grid_p, state
        )
        force = self._exact_force(params, exact.q, exact) if self.method.kick_first else None
        rest = PhaseState(state.q, state.p, force, state.start, state.step)
        return ExactPhase(exact.q, exact.p, grid_q, grid_p, rest)

    def from_exact(self, exact: ExactPhase) -> PhaseState:
        rest = exact.rest
        q, p = (
            off_grid(exact.q, exact.grid_q, rest.q.dtype),
            off_grid(exact.p, exact.grid_p, rest.p.dtype),
        )
        return PhaseState(q, p, rest.force, rest.start, rest.step)

    def same(self, exact: ExactPhase, other: ExactPhase) -> Array:
        return jnp.all(exact.q == other.q) & jnp.all(exact.p == other.p)

    def exact_step(self, params: PyTree, exact: ExactPhase) -> ExactPhase:
        return self._exact_walk(params, exact, 1)

    def exact_unstep(self, params: PyTree, exact: ExactPhase) -> ExactPhase:
        return self._exact_walk(params, exact, -1)

    def _exact_walk(self, params: PyTree, exact: ExactPhase, direction: int) -> ExactPhase:
        """The same walk in integers: each increment depends only on what it does not change."""
        q, p, force, h = exact.q, exact.p, exact.rest.force, self.dt

        def kicked(p, force, share):
            return p + direction * on_grid(share * h * force, exact.grid_p)

        def drifted(q, p, share):
            return q + direction * on_grid(share * h * self._exact_velocity(params, p, exact), grid)

        grid = exact.grid_q
        for weight in self.method.weights:
            if self.method.kick_first:
                p = kicked(p, force, 0.5 * weight)
                q = drifted(q, p, weight)
                force = self._exact_force(params, q, exact)
                p = kicked(p, force, 0.5 * weight)
            else:
                q = drifted(q, p, 0.5 * weight)
                p = kicked(p, self._exact_force(params, q, exact), weight)
                q = drifted(q, p, 0.5 * weight)
        rest = exact.rest
        rest = PhaseState(rest.q, rest.p, force, rest.start, rest.step + direction)
        return ExactPhase(q, p, exact.grid_q, exact.grid_p, rest)

    # Barriers on both sides: forward and backward must compile to the same kernel.
    def _exact_force(self, params: PyTree, q: Array, exact: ExactPhase) -> Array:
        x = jax.lax.optimization_barrier(off_grid(q, exact.grid_q, exact.rest.q.dtype))
        return jax.lax.optimization_barrier(self._force(params, x))

    def _exact_velocity(self, params: PyTree, p: Array, exact: ExactPhase) -> Array:
        x = jax.lax.optimization_barrier(off_grid(p, exact.grid_p, exact.rest.p.dtype))
        return jax.lax.optimization_barrier(self._velocity(params, x))

"""How fast a trajectory forgets its start, and how far a gradient through it is worth anything."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PRNGKeyArray

from ._adjoint import ForwardMode
from ._errors import ConfigError
from ._schedule import Schedule
from ._simulation import AbstractFlow, AbstractSimulation, Params, State

HUNDREDFOLD = math.log(100.0)
POWER = 5  # of time, up to which a growth is no chaos
REMEDY = (
    "take windows of the run as conditions (many short runs), average over replicas, fit by "
    "multiple shooting (diffsim.multiple_shooting), or, for averages at equilibrium, reweight "
    "(diffsim.Reweight)"
)


class Growth(NamedTuple):
    """What `growth` finds. Times are in the simulation's unit, or in steps where it has none.

    `exponent`: the leading Lyapunov exponent, 1/time, and `stderr`, its standard error over the
    run; `factor`: by how much a perturbation of the start has grown at the end; `duration`: of the
    run; `horizon`: the time over which a perturbation grows a hundredfold, infinite where it does
    not, or not exponentially; `unit`: "time" or "steps".
    """

    exponent: float
    stderr: float
    factor: float
    duration: float
    horizon: float
    unit: str

    @property
    def chaotic(self) -> bool:
        """Whether the run is so long that its gradient is mostly noise."""
        return self.duration > self.horizon

    @property
    def warning(self) -> str | None:
        """What to say to a person, and what to do instead; None where nothing is wrong."""
        if not self.chaotic:
            return None
        where = "" if self.unit == "time" else " steps"
        return (
            f"perturbations of this run grow by {self.factor:.1g} (Lyapunov exponent "
            f"{self.exponent:.3g}): its gradient is noise beyond a horizon of "
            f"{self.horizon:.3g}{where}, and it is {self.duration:.3g} long; {REMEDY}"
        )


def growth(
    simulation: AbstractSimulation,
    params: Params,
    state: State,
    *,
    schedule: Schedule,
    key: PRNGKeyArray | None = None,
) -> Growth:
    """λ = lim (1/t) ln |δx(t)|/|δx(0)|, δx' = (∂step/∂x) δx along the run.

    One random perturbation is carried along by forward mode and brought back to length one after
    every block (Benettin et al. 1980, doi:10.1007/BF02128236); λ is the mean rate over the second
    half of the run, where transients of the first have gone, with its scatter as error. The same
    rate governs the adjoint, whose norm grows backwards in time as the perturbation does forwards.

    **Arguments:** `state`: of one run, from `simulation.init`; `schedule`: the run. Costs about two
    runs, without memory. Adaptive solvers are followed at forty points of their schedule.
    """
    key = jax.random.key(0) if key is None else key
    adaptive = isinstance(simulation, AbstractFlow) and simulation.adaptive
    dt = None if adaptive else simulation.time_step()
    if adaptive:
        times = np.linspace(schedule.t0, schedule.end, 41)
        run = eqx.filter_jit(_rates_in_time)
        rates = run(simulation, params, state, jnp.asarray(times), key)
        spans = np.diff(times)
    else:
        steps = schedule.plan(dt).steps
        blocks = min(steps, max(40, -(-steps // 500)))  # so that no block overflows
        counts = np.diff(np.rint(np.linspace(0, steps, blocks + 1)).astype(int))
        run = eqx.filter_jit(_rates_in_steps)
        if schedule.steps is None:
            state = simulation.at_time(state, schedule.t0)
        rates = run(simulation, params, state, int(counts.max()), jnp.asarray(counts), key)
        spans = counts * (1.0 if dt is None else dt)
    return _growth(
        np.asarray(rates, float), spans, "steps" if dt is None and not adaptive else "time"
    )


def _growth(logs: np.ndarray, spans: np.ndarray, unit: str) -> Growth:
    """From the logarithm of the growth over each block, and how long each is."""
    if not np.all(np.isfinite(logs)):
        raise ConfigError(
            "the run does not stay finite, so its perturbations cannot be followed",
            key="growth",
        )
    second = slice(len(logs) // 2, None)
    rates, duration = logs[second] / spans[second], float(np.sum(spans))
    exponent = float(np.sum(logs[second]) / np.sum(spans[second]))
    stderr = float(np.std(rates, ddof=1) / math.sqrt(len(rates))) if len(rates) > 1 else math.inf
    # A bounded growth is not an exponential one, nor is one with a power of time, which over the
    # second half is 2 to that power.
    grows = exponent > 2 * stderr or float(np.sum(logs[second])) > POWER * math.log(2)
    horizon = HUNDREDFOLD / exponent if grows else math.inf
    grown = np.cumsum(logs)
    if grows and grown[-1] > HUNDREDFOLD:  # inside the run: where it was and stayed so
        below = np.nonzero(grown <= HUNDREDFOLD)[0]
        horizon = float(np.sum(spans[: below[-1] + 2 if len(below) else 1]))
    factor = float(np.exp(min(np.sum(logs), 700.0)))
    return Growth(exponent, stderr, factor, duration, horizon, unit)


def _perturbed(simulation: AbstractSimulation, params: Params, state: State, key: PRNGKeyArray):
    """A random direction of length one in the variables of a state, and what it makes of what the
    state caches of them."""
    flat, unravel = ravel_pytree(simulation.variables(state))
    direction = jax.random.normal(key, flat.shape, flat.dtype)

    def moved(flat: Array) -> State:
        return simulation.prepare(params, simulation.with_variables(state, unravel(flat)))

    state, tangent = _pushed(moved, flat, direction)
    return state, _unit(simulation, tangent)[0]


def _unit(simulation: AbstractSimulation, tangent: State) -> tuple[State, Array]:
    """The same with variables of length one, and the logarithm of their length."""
    norm = jnp.linalg.norm(ravel_pytree(simulation.variables(tangent))[0])
    return jax.tree.map(lambda x: x / norm.astype(x.dtype), tangent), jnp.log(norm)


def _pushed(advance: Callable[[State], State], state: State, tangent: State) -> Any:
    """The state after `advance`, and the tangent of its floating-point leaves."""
    dynamic, static = eqx.partition(state, eqx.is_inexact_array)

    def moved(dynamic):
        return eqx.partition(advance(eqx.combine(dynamic, static)), eqx.is_inexact_array)

    after, tangent, others = jax.jvp(moved, (dynamic,), (tangent,), has_aux=True)
    return eqx.combine(after, others), tangent


def _rates_in_steps(simulation, params, state, most, counts, key):
    """The logarithm of the growth over each block of so many steps."""

    def block(carry, count):
        def tick(carry, k):
            def go():
                step = lambda state: simulation.step(params, state)  # noqa: E731
                return _pushed(step, *carry)

            return jax.lax.cond(k < count, go, lambda: carry), None

        (state, tangent), _ = jax.lax.scan(tick, carry, jnp.arange(most))
        tangent, log = _unit(simulation, tangent)
        return (state, tangent), log

    _, logs = jax.lax.scan(block, _perturbed(simulation, params, state, key), counts)
    return logs


def _rates_in_time(simulation, params, state, times, key):
    """The same of a solver that chooses its steps, between consecutive times."""

    def block(carry, end):
        advance = lambda s: simulation.integrate(params, s, end[None], ForwardMode()).final  # noqa: E731
        state, tangent = _pushed(advance, *carry)
        tangent, log = _unit(simulation, tangent)
        return (state, tangent), log

    _, logs = jax.lax.scan(block, _perturbed(simulation, params, state, key), times[1:])
    return logs

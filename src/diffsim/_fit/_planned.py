"""Which adjoint a fit takes, where it is left to `Auto`."""

from __future__ import annotations

import dataclasses

import equinox as eqx
import jax
from jaxtyping import Array, PyTree

from .._adjoint import (
    AbstractAdjoint,
    Ask,
    Auto,
    Candidate,
    Choice,
    ForwardMode,
    Plan,
    Reweight,
    Truncated,
)
from .._errors import ConfigError
from .._growth import Growth, growth
from .._problem import Problem
from .._simulation import AbstractEquilibrium, AbstractFlow, AbstractSimulation, Params, State
from .._solve import default_adjoint
from ._derivative import FEW


def planned(
    problem: Problem, adjoint: AbstractAdjoint, mode: str = "any", pulls: int = 1
) -> tuple[AbstractAdjoint, Choice | None, Plan | None]:
    """The adjoint itself; of `Auto` the one that it chooses for all conditions side by side, the
    choice behind it where there is one to step down from, and the plan to report.

    `pulls`: cotangents of a derivative in reverse (the residuals of a Jacobian).
    """
    if isinstance(adjoint, ForwardMode) and adjoint.memory is not None:
        adjoint, mode = Auto(adjoint.memory), "forward"
    if not isinstance(adjoint, Auto):
        return adjoint, None, None
    simulation = problem.simulation
    count = sum(x.size for x in jax.tree.leaves(problem.initial()))
    means = all(target.statistic == "mean" for target in problem.targets)
    if isinstance(simulation, AbstractEquilibrium) and means and mode == "any":
        return Reweight(), None, _only(Reweight())
    if isinstance(simulation, AbstractFlow) and simulation.adaptive:
        forward = mode == "forward" or (mode == "any" and count <= FEW)
        chosen = default_adjoint(simulation, ("forward",) if forward else ("reverse",))
        return chosen, None, _only(chosen)
    grown = _growth(problem)
    if grown is not None and adjoint.chaos == "refuse":
        raise ConfigError(
            str(grown.warning), key="adjoint.chaos", value="refuse", allowed="warn, window"
        )
    if grown is not None and adjoint.chaos == "window":
        window = Truncated(max(1, int(grown.horizon / (simulation.time_step() or 1.0))))
        return window, None, _only(window, f"; {grown.warning}")
    theta = problem.initial()
    params = problem.params(theta)
    names = tuple(dict.fromkeys(target.observable for target in problem.targets))

    def observe(sim: AbstractSimulation, params: Params, state: State) -> dict[str, Array]:
        seen = sim.observe(params, state)
        return {name: seen[name] for name in names}

    of_one_device = -(-problem.batch // problem.placement.devices_of(problem.batch))
    ask = Ask(mode, pulls, count, of_one_device, chunks=True)
    save_plan = problem.schedule.plan(simulation.time_step())
    adjoint = dataclasses.replace(adjoint, mode=mode)
    state = _one_state(problem, theta)
    choice = adjoint.choose(simulation, params, state, save_plan, observe, ask)
    choice.caution = None if grown is None else grown.warning
    return choice.adjoint, choice, choice.plan


def _one_state(problem: Problem, theta: PyTree) -> State:
    """The shapes of one condition's start."""
    key = jax.random.key(0)
    if not problem.simulation.traceable_init():
        states = problem.states(theta, key)
        return jax.tree.map(lambda x: x[0] if eqx.is_array(x) else x, states)

    def first() -> State:
        states = problem.states(theta, key)
        state = jax.tree.map(lambda x: x[0] if eqx.is_array(x) else x, states)
        return problem.simulation.prepare(problem.params(theta), state)

    return eqx.filter_eval_shape(first)


def _growth(problem: Problem) -> Growth | None:
    """How the first condition's run grows from the initial parameters, where that is chaotic."""
    theta = problem.initial()
    states = problem.states(theta, jax.random.key(0))
    state = jax.tree.map(lambda x: x[0] if eqx.is_array(x) else x, states)
    params, schedule = problem.params(theta), problem.schedule
    try:
        found = growth(problem.simulation, params, state, schedule=schedule)
    except ConfigError:  # nothing evolves that a perturbation could change, or it does not stay
        return None
    return found if found.chaotic else None


def _only(adjoint: AbstractAdjoint, caution: str = "") -> Plan:
    """The plan where shapes do not decide."""
    name = type(adjoint).__name__
    row = Candidate(name, None, None, None, "chosen")
    return Plan((row,), 0, name, adjoint.why + caution)

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
)
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
    theta = problem.initial()
    params = problem.params(theta)
    names = tuple(dict.fromkeys(target.observable for target in problem.targets))

    def observe(sim: AbstractSimulation, params: Params, state: State) -> dict[str, Array]:
        seen = sim.observe(params, state)
        return {name: seen[name] for name in names}

    ask = Ask(mode, pulls, count, problem.batch, chunks=True)
    save_plan = problem.schedule.plan(simulation.time_step())
    adjoint = dataclasses.replace(adjoint, mode=mode)
    state = _one_state(problem, theta)
    choice = adjoint.choose(simulation, params, state, save_plan, observe, ask)
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


def _only(adjoint: AbstractAdjoint) -> Plan:
    """The plan where shapes do not decide."""
    name = type(adjoint).__name__
    row = Candidate(name, None, None, None, "chosen")
    return Plan((row,), 0, name, adjoint.why)

"""What a problem predicts, of every condition where it lives."""

from __future__ import annotations

import dataclasses
from typing import Any

import equinox as eqx
from jaxtyping import Array, PyTree

from .._adjoint import AbstractAdjoint, Reweight
from .._placement import AbstractPlacement
from .._schedule import Schedule
from .._simulation import AbstractSimulation
from .._solve import Solution, equilibrated, solve


class Prediction(eqx.Module):
    """What a problem predicts: `values`, one array a target in the target's unit with a leading
    condition axis (for "mean" averaged over the saves), and the `solution` behind it, batched over
    conditions."""

    values: tuple[Array, ...]
    solution: Solution


def run_conditions(
    simulation: AbstractSimulation,
    params: PyTree,
    states: PyTree,
    *,
    schedule: Schedule,
    adjoint: AbstractAdjoint,
    equilibration: int,
    observables: tuple[str, ...],
    placement: AbstractPlacement,
) -> Solution:
    """The schedule from every state of a batch, after `equilibration` steps; by `Reweight` with
    samples over those."""
    sampled = isinstance(adjoint, Reweight)
    samples = adjoint.samples if isinstance(adjoint, Reweight) else None

    def one(shared: Any, state: PyTree, samples: Any) -> Solution:
        simulation, params, how = shared
        if samples is None:
            state = equilibrated(simulation, params, state, equilibration)
        return solve(
            simulation,
            params,
            state,
            schedule=schedule,
            adjoint=Reweight(samples) if sampled else how,
            observables=observables,
        )

    shared = (simulation, params, None if sampled else adjoint)
    strategy = placement.strategy(simulation, adjoint)
    solution = placement.map(one, shared, states, samples, strategy=strategy)
    return dataclasses.replace(
        solution,  # the host reads of every one how it ended, and what the adjoint says
        result=placement.readable(solution.result),
        first_bad_step=placement.readable(solution.first_bad_step),
        stats=placement.readable(solution.stats),
    )


def fetched(prediction: Prediction, placement: AbstractPlacement) -> Prediction:
    """The same, whole on the host of every process; states and samples stay where they are."""
    solution = prediction.solution
    seen = dataclasses.replace(solution, state=None, samples=None)
    values, seen = placement.fetch((prediction.values, seen))
    return Prediction(
        values, dataclasses.replace(seen, state=solution.state, samples=solution.samples)
    )

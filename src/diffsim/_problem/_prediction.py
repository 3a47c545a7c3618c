"""What a problem predicts, of every condition where it lives."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from .._adjoint import AbstractAdjoint, Reweight
from .._placement import AbstractPlacement
from .._schedule import Schedule
from .._simulation import AbstractSimulation
from .._solve import Solution, equilibrated, solve
from ._relative_entropy import RelativeEntropy


class Prediction(eqx.Module):
    """What a problem predicts: `values`, one array a target in the target's unit with a leading
    condition axis (for "mean" averaged over the saves), the `solution` behind it, batched over
    conditions, and `entropies`, one array (conditions,) a relative entropy."""

    values: tuple[Array, ...]
    solution: Solution
    entropies: tuple[Array, ...] = ()


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


def relative_entropy(
    entropy: RelativeEntropy,
    simulation: AbstractSimulation,
    params: PyTree,
    conditions: Mapping[str, Any],
    solution: Solution,
    placement: AbstractPlacement,
) -> Array:
    """⟨u_θ⟩_ref - β(F_θ - F_θ₀) of every condition, θ₀ where the samples were drawn."""

    def one(shared: Any, state: PyTree, given: Any, reference: Any) -> Array:
        simulation, params = shared
        return reference.reduced_energy(simulation, params, state, given)

    batch = jax.tree.map(jnp.asarray, (dict(conditions), entropy.reference))
    mean = placement.map(one, (simulation, params), solution.state, *batch)
    return mean - solution.stats["free_energy"]


def observables_at_start(
    simulation: AbstractSimulation, params: PyTree, conditions: Mapping[str, Any]
) -> dict[str, tuple[int, ...] | None]:
    """The observables of one state by name, with their shapes where a start can be traced; else
    those that have units."""
    first = jax.tree.map(lambda x: np.asarray(x)[0], dict(conditions))

    def seen(given: Mapping[str, Any]) -> dict[str, Array]:
        return simulation.observe(params, simulation.init(params, jax.random.key(0), **given))

    if simulation.traceable_init():
        return {name: x.shape for name, x in eqx.filter_eval_shape(seen, first).items()}
    try:  # of traced positions a potential allocates no list, and looks at all pairs
        shapes = eqx.filter_eval_shape(seen, jax.tree.map(jnp.asarray, first))
    except jax.errors.JAXTypeError:
        return dict.fromkeys(simulation.units())
    return {name: x.shape for name, x in shapes.items()}


def fetched(prediction: Prediction, placement: AbstractPlacement) -> Prediction:
    """The same, whole on the host of every process; states and samples stay where they are."""
    solution = prediction.solution
    seen = dataclasses.replace(solution, state=None, samples=None)
    values, seen, entropies = placement.fetch((prediction.values, seen, prediction.entropies))
    seen = dataclasses.replace(seen, state=solution.state, samples=solution.samples)
    return Prediction(values, seen, entropies)

"""Gradients of equilibrium averages by reweighting saved samples."""

from __future__ import annotations

import math
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from .._schedule import SavePlan
from .._simulation import AbstractEquilibrium, AbstractSimulation, Params, State
from ._base import AbstractAdjoint, Health, Observe, Trajectory, march_blocks


class Samples(eqx.Module):
    """Saved states (leading axis: samples) and the reduced energy of each when it was sampled."""

    states: State
    u: Array

    @property
    def count(self) -> int:
        return self.u.shape[-1]


class Reweight(AbstractAdjoint):
    """⟨A⟩_θ = Σ w_i A_i, w = softmax(-(u_θ(x_i) - u_i)), over samples x_i drawn at some θ₀.

    Each saved observable comes back as n w_i A_i, so that the mean of any is its reweighted
    average. At θ₀ values are unchanged, and the gradient of a loss over means is the fluctuation
    formula d⟨A⟩ = ⟨dA⟩ - (⟨A du⟩ - ⟨A⟩⟨du⟩) (Norgaard et al. 2008,
    doi:10.1529/biophysj.107.108241).

    **When:** averages at equilibrium. Immune to chaos, in both modes. **Costs:** one trajectory
    without gradient, then one evaluation a sample; memory O(samples). **Cannot:** see a gradient of
    dynamics (only of averages), nor reach far from θ₀: `stats["ess"]`, the effective fraction
    1/(n Σ w²), says how far; sample again under 0.3. `stats["weights"]` are the n w_i;
    `stats["free_energy"]` is β(F_θ - F_θ₀) = -ln⟨exp(u_i - u_θ(x_i))⟩, which has a gradient,
    ⟨∂u/∂θ⟩_θ (Zwanzig 1954, doi:10.1063/1.1740409).

    **Arguments:** `samples`: reuse these (then no trajectory is run and the final state is the last
    sample); None: run the schedule at stop_gradient(params) and use what it saves.
    """

    samples: Samples | None = None

    modes: ClassVar[tuple[str, ...]] = ("forward", "reverse")
    why: ClassVar[str] = (
        "averages need no gradient of a trajectory: saved samples are reweighted, and chaos does "
        "not reach that"
    )
    needs: ClassVar[type[AbstractSimulation]] = AbstractEquilibrium
    exact: ClassVar[bool] = False

    def loop(
        self,
        sim: AbstractSimulation,
        params: Params,
        state: State,
        plan: SavePlan,
        observe: Observe,
    ) -> Trajectory:
        assert isinstance(sim, AbstractEquilibrium)
        if self.samples is None:
            state, health, samples = draw(sim, params, state, plan)
        else:
            health, samples = Health.good(), jax.lax.stop_gradient(self.samples)
            state = jax.tree.map(lambda x: x[-1], samples.states)

        def evaluate(sample: State) -> tuple[Array, dict[str, Array]]:
            return sim.reduced_energy(params, sample), observe(sim, params, sample)

        u, observed = jax.lax.map(evaluate, samples.states)
        n = u.shape[0]
        weights = jax.nn.softmax(-(u - samples.u))
        free_energy = math.log(n) - jax.nn.logsumexp(-(u - samples.u))
        observed = {
            name: n * weights.reshape((n,) + (1,) * (value.ndim - 1)) * value
            for name, value in observed.items()
        }
        ess = jax.lax.stop_gradient(1 / (n * jnp.sum(weights**2)))
        extra = {"ess": ess, "weights": jax.lax.stop_gradient(n * weights), "samples": samples}
        extra["free_energy"] = free_energy
        return Trajectory(state, observed, health, extra)


def draw(
    sim: AbstractEquilibrium, params: Params, state: State, plan: SavePlan
) -> tuple[State, Health, Samples]:
    """Sample at `params`, outside of every gradient: the saved states with their reduced
    energies."""
    params, state = jax.lax.stop_gradient((params, state))

    def see(state: State) -> tuple[PyTree, Array]:
        sample = sim.sample(state)
        return sample, sim.reduced_energy(params, sample)

    state, health, (states, u) = march_blocks(sim, params, state, plan, see)
    return state, health, Samples(jax.lax.stop_gradient(states), jax.lax.stop_gradient(u))

"""Relative entropy: how far a model's ensemble is from one that is given, as part of a loss."""

from __future__ import annotations

import dataclasses
import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._errors import ConfigError
from .._simulation import AbstractEquilibrium, AbstractSimulation, Params, State
from ._conditions import check_names


class AbstractReference(eqx.Module):
    """What is known of the ensemble that a model should have: enough for ⟨u_θ⟩_ref at any θ.

    Every array in it has a leading axis over conditions; `reduced_energy` gets those of one.
    """

    @abstractmethod
    def reduced_energy(
        self, simulation: AbstractEquilibrium, params: Params, state: State, given: Mapping
    ) -> Array:
        """⟨u_θ⟩_ref of one condition, shape (); `state`: one of the model's own there, `given`:
        what `init` took."""

    @abstractmethod
    def check(self, simulation: AbstractSimulation) -> None:
        """Host side: refuse a simulation whose u_θ does not follow from this."""

    @property
    def batch(self) -> int:
        """The number of conditions."""
        return np.shape(jax.tree.leaves(self)[0])[0]

    def rows(self, conditions: Array | np.ndarray) -> AbstractReference:
        """The same of some conditions alone."""
        return jax.tree.map(lambda x: jnp.asarray(x[conditions]), self)


class Configurations(AbstractReference):
    """⟨u_θ⟩_ref = Σ_f u_θ(x_f)/n: the average over n given configurations.

    `Configurations(positions=x)`: arguments of `simulation.init`, each (conditions, frames, ...),
    for one condition `[md.load_structures(file).positions]`; the others are those of the problem's
    own conditions. Frames should be drawn evenly in time, or be independent. An evaluation looks at
    every one of them: thinned ones cost less.

    **Raises** `ConfigError` for arrays that do not share conditions and frames or are not finite.
    """

    values: dict[str, Any]

    def __init__(self, **values: Any):
        self.values = {name: np.asarray(x, dtype=float) for name, x in values.items()}

    def __check_init__(self):
        shapes = {name: np.shape(x)[:2] for name, x in self.values.items()}
        if len(set(shapes.values())) != 1 or min(map(len, shapes.values())) < 2:
            cause = f"must share two leading axes (conditions, frames), not have {shapes}"
            raise ConfigError(cause, key="reference")
        for name, x in self.values.items():
            if x.size == 0 or not np.all(np.isfinite(x)):
                raise ConfigError("must be finite numbers", key=f"reference.{name}")

    def reduced_energy(
        self, simulation: AbstractEquilibrium, params: Params, state: State, given: Mapping
    ) -> Array:
        del state

        def energy(frame: Mapping) -> Array:
            at = simulation.init(params, jax.random.key(0), **{**given, **frame})
            return simulation.reduced_energy(params, simulation.sample(at))

        return jnp.mean(jax.lax.map(energy, jax.tree.map(jnp.asarray, self.values)))

    def check(self, simulation: AbstractSimulation) -> None:
        check_names(simulation, self.values, whole=False)
        if not simulation.traceable_init():
            raise ConfigError(
                f"{type(simulation).__name__} allocates neighbour lists as it starts, which "
                "reference configurations cannot",
                key="simulation",
                allowed="a potential without lists (path: dense)",
            )


class RelativeEntropy(eqx.Module):
    """S_rel = β⟨U_θ - U_ref⟩_ref - β(F_θ - F_ref) = ⟨ln p_ref/p_θ⟩_ref ≥ 0: how badly a model's
    ensemble stands for a reference.

    ∇S_rel = ⟨∂u/∂θ⟩_ref - ⟨∂u/∂θ⟩_θ with u = βU; where u is linear in θ its second derivative is
    the covariance of ∂u/∂θ, and the minimum the only one. Goes beside `Target`s into a `Problem`,
    whose loss gets weight · S_rel of each condition. Averages of the model are those of
    `Reweight`, whose samples x_i, drawn at θ₀, tell β(F_θ - F_θ₀) = -ln⟨exp(u_θ₀ - u_θ)⟩. U_ref and
    F_ref are not known: the loss has ⟨u_θ⟩_ref - β(F_θ - F_θ₀), which is S_rel up to a constant
    that changes when samples are drawn anew.

    **Arguments:** `reference`: what is known of the other ensemble, `Configurations` of any
    simulation or `md.PairStatistics` (g(r) of a liquid, for a potential of pairs); `weight`: the
    number of independent configurations that the reference averages stand for. The loss is then
    their negative log-likelihood, comparable with that of measured targets, and the inverse of its
    second derivative the covariance of θ; `name`: how reports call it.

    For `diffsim.fit`: it is no sum of squares. The simulation must be an `AbstractEquilibrium`, at
    the reference's own temperature and density.

    **Source:** Shell 2008, doi:10.1063/1.2992060; Chaimovich & Shell 2011, doi:10.1063/1.3557038.
    **Raises** `ConfigError` before anything is traced.
    """

    reference: AbstractReference
    weight: float = eqx.field(default=1.0, kw_only=True)
    name: str = eqx.field(static=True, default="relative_entropy", kw_only=True)

    statistic: ClassVar[str] = "mean"

    def __check_init__(self):
        if not isinstance(self.reference, AbstractReference):
            raise ConfigError(
                "is no reference",
                key=f"target {self.name}.reference",
                value=type(self.reference).__name__,
                allowed="diffsim.Configurations, diffsim.md.PairStatistics",
            )
        if not (math.isfinite(self.weight) and self.weight >= 0):
            key = f"target {self.name}.weight"
            raise ConfigError("must not be negative", key=key, value=self.weight)

    @property
    def label(self) -> str:
        return self.name

    def check(self, simulation: AbstractSimulation, batch: int) -> None:
        """Host side: refuse a simulation without an equilibrium, or with other conditions."""
        if not isinstance(simulation, AbstractEquilibrium):
            raise ConfigError(
                f"relative entropy needs an AbstractEquilibrium and {type(simulation).__name__} "
                "is none",
                key="simulation",
                allowed="one that samples a Boltzmann distribution, such as diffsim.md.NVT",
            )
        if self.reference.batch != batch:
            raise ConfigError(
                f"has {self.reference.batch} rows for {batch} conditions",
                key=f"target {self.name}.reference",
            )
        self.reference.check(simulation)

    def rows(self, conditions: Array | np.ndarray) -> RelativeEntropy:
        """The same of some conditions alone."""
        return dataclasses.replace(self, reference=self.reference.rows(conditions))

    def loss(self, value: Array, use: Array | None = None) -> Array:
        """weight · Σ S over the conditions that count; `value`: (conditions,)."""
        return self.weight * jnp.sum(value if use is None else value * use)

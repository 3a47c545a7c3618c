"""A fit as data: parameters, conditions, targets and the simulation that connects them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray, PyTree

from ._adjoint import AbstractAdjoint, Direct, Reweight
from ._errors import ConfigError
from ._parameter import Parameter
from ._schedule import Schedule
from ._simulation import AbstractSimulation
from ._solve import Solution, over_batch, solve
from ._units import convert

STATISTICS = ("mean", "each")


class Target(eqx.Module):
    """r = √weight (A(θ) - data)/sigma: a measured value of an observable.

    **Arguments:** `observable`: its name; `data`: measured values in `unit`, shape (conditions,
    ...) for `statistic="mean"` (the average over what the schedule saves) or (conditions, saves,
    ...) for "each" (every save); `sigma`: their uncertainty, or the scale on which a deviation
    matters, in `unit`; `weight`; `unit`: converted to the observable's own; `name`: how reports
    call it.
    """

    observable: str = eqx.field(static=True)
    data: Any
    sigma: Any = 1.0
    weight: float = eqx.field(default=1.0, kw_only=True)
    unit: str | None = eqx.field(static=True, default=None, kw_only=True)
    name: str = eqx.field(static=True, default="", kw_only=True)
    statistic: str = eqx.field(static=True, default="mean", kw_only=True)

    def __check_init__(self):
        if self.statistic not in STATISTICS:
            raise ConfigError(
                "unknown statistic", key="statistic", value=self.statistic, allowed=STATISTICS
            )
        if not np.all(np.isfinite(np.asarray(self.data, dtype=float))):
            raise ConfigError("must be finite numbers", key=f"target {self.label}.data")
        sigma = np.asarray(self.sigma, dtype=float)
        if not np.all(np.isfinite(sigma)) or np.any(sigma <= 0):
            raise ConfigError(
                "must be positive", key=f"target {self.label}.sigma", value=self.sigma
            )
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise ConfigError("must not be negative", key="weight", value=self.weight)

    @property
    def label(self) -> str:
        return self.name or self.observable


class Prediction(eqx.Module):
    """What a problem predicts: `values`, one array a target in the target's unit with a leading
    condition axis (for "mean" averaged over the saves), and the `solution` behind it, batched over
    conditions."""

    values: tuple[Array, ...]
    solution: Solution


class Problem(eqx.Module):
    """Parameters, targets, a simulation, conditions and a schedule: a loss, a residual vector and a
    log-likelihood of the same thing.

    `conditions` are the keyword arguments of `simulation.init`, each with a leading axis over
    conditions (state points, replicas, experiments), which run as one batch; None: one run.
    `equilibration` steps go before the schedule, outside of every gradient. θ below is the tree
    {name: unconstrained value} of the free parameters, as `initial()` returns it.
    """

    simulation: AbstractSimulation
    parameters: dict[str, Parameter]
    targets: tuple[Target, ...]
    schedule: Schedule
    conditions: dict[str, Any] | None = None
    equilibration: int = eqx.field(static=True, default=0)

    def __init__(
        self,
        simulation: AbstractSimulation,
        parameters: Mapping[str, Parameter],
        targets: Sequence[Target],
        schedule: Schedule,
        conditions: Mapping[str, Any] | None = None,
        equilibration: int = 0,
    ):
        self.simulation, self.schedule = simulation, schedule
        self.parameters, self.targets = dict(parameters), tuple(targets)
        self.conditions = None if conditions is None else dict(conditions)
        self.equilibration = equilibration

    def __check_init__(self):
        for name, parameter in self.parameters.items():
            if parameter.tied is not None and parameter.tied not in self.parameters:
                raise ConfigError(
                    "no such parameter",
                    key=f"parameters.{name}.tied",
                    value=parameter.tied,
                    allowed=self.parameters,
                )
        if self.equilibration < 0:
            raise ConfigError("must not be negative", key="equilibration", value=self.equilibration)
        lengths = {k: np.shape(v)[:1] for k, v in (self.conditions or {}).items()}
        if len(set(lengths.values())) > 1 or () in lengths.values():
            raise ConfigError(
                f"must share a leading axis, not have lengths {lengths}", key="conditions"
            )
        for target in self.targets:
            self._check_target(target)

    def _check_target(self, target: Target) -> None:
        if np.shape(target.data)[:1] not in ((), (self.batch,)):
            raise ConfigError(
                f"has {np.shape(target.data)[0]} rows for {self.batch} conditions",
                key=f"target {target.label}.data",
            )
        units = self.simulation.units()
        if units and target.observable not in units:
            raise ConfigError(
                "no such observable", key="targets", value=target.observable, allowed=units
            )

    def check(self) -> None:
        """Host side: refuse what cannot run, before anything is traced."""
        params = self.params(self.initial())
        self.simulation.check(params, **(self.conditions or {}))
        self.schedule.plan(self.simulation.time_step())
        for target in self.targets:
            self._factor(target)

    @property
    def batch(self) -> int:
        """The number of conditions."""
        if not self.conditions:
            return 1
        return np.shape(next(iter(self.conditions.values())))[0]

    @property
    def data_points(self) -> int:
        """The number of measured values, over all targets and conditions."""
        return sum(np.size(t.data) if np.ndim(t.data) else self.batch for t in self.targets)

    @property
    def free(self) -> tuple[str, ...]:
        """The names of the parameters that are fitted."""
        return tuple(k for k, p in self.parameters.items() if not p.fixed and p.tied is None)

    def starting_at(self, values: Mapping[str, Any]) -> Problem:
        """The same problem with other starting values, in the parameters' units."""
        parameters = {
            name: dataclasses.replace(p, init=values[name]) if name in values else p
            for name, p in self.parameters.items()
        }
        return dataclasses.replace(self, parameters=parameters)

    def initial(self) -> dict[str, PyTree]:
        """θ at the parameters' starting values."""
        return {name: self.parameters[name].unconstrained() for name in self.free}

    def values(self, theta: Mapping[str, PyTree]) -> dict[str, PyTree]:
        """All parameters in their own units."""
        values = {}
        for name, p in self.parameters.items():
            z = theta[name] if name in theta else p.unconstrained()
            values[name] = p.constrain(z)
        return {n: values[p.tied] if p.tied else values[n] for n, p in self.parameters.items()}

    def params(self, theta: Mapping[str, PyTree]) -> dict[str, PyTree]:
        """All parameters in the simulation's units, as it takes them."""
        units = self.simulation.units()
        params = {}
        for name, value in self.values(theta).items():
            unit = self.parameters[name].unit
            factor = convert(1.0, unit, units[name], key=name) if unit and name in units else 1.0
            params[name] = (
                jax.tree.map(lambda x, f=factor: x * f, value) if factor != 1.0 else value
            )
        return params

    def _factor(self, target: Target) -> float:
        """What turns the simulation's number into the target's unit."""
        unit = self.simulation.units().get(target.observable)
        if target.unit is None or unit is None:
            return 1.0
        return convert(1.0, unit, target.unit, key=f"target {target.label}.unit")

    def states(self, theta: Mapping[str, PyTree], key: PRNGKeyArray) -> PyTree:
        """Initial states, one a condition, before equilibration."""
        params = self.params(theta)
        conditions = jax.tree.map(jnp.asarray, self.conditions or {})
        init = lambda key, given: self.simulation.init(params, key, **given)  # noqa: E731
        return over_batch(init, jax.random.split(key, self.batch), conditions)

    def predict(
        self,
        theta: Mapping[str, PyTree],
        states: PyTree,
        adjoint: AbstractAdjoint | None = None,
    ) -> Prediction:
        """Run the schedule from `states` (batched) and evaluate every target's observable."""
        params = self.params(theta)
        names = tuple(dict.fromkeys(t.observable for t in self.targets))
        adjoint = Direct() if adjoint is None else adjoint
        samples = adjoint.samples if isinstance(adjoint, Reweight) else None

        def one(state, samples):
            how = Reweight(samples) if isinstance(adjoint, Reweight) else adjoint
            return solve(
                self.simulation,
                params,
                self._equilibrated(params, state) if samples is None else state,
                schedule=self.schedule,
                adjoint=how,
                observables=names,
            )

        solution = over_batch(one, states, samples)
        values = []
        for target in self.targets:
            series = solution.observables[target.observable] * self._factor(target)
            values.append(jnp.mean(series, axis=1) if target.statistic == "mean" else series)
        return Prediction(tuple(values), solution)

    def series(self, prediction: Prediction) -> list[np.ndarray]:
        """Each target's observable at every save in the target's unit: (conditions, saves, ...).

        Of reweighted samples, whose n w_i A_i scatter with the weights however steady A is, the
        series A̅ + n w_i (A_i - A̅): the same mean, and the scatter that its error follows from.
        """
        weights = prediction.solution.stats.get("weights")
        out = []
        for target in self.targets:
            series = np.asarray(prediction.solution.observables[target.observable])
            if weights is not None:
                w = np.asarray(weights).reshape(series.shape[:2] + (1,) * (series.ndim - 2))
                mean = series.mean(axis=1, keepdims=True)
                series = series + (1 - w) * mean
            out.append(series * self._factor(target))
        return out

    def _equilibrated(self, params: PyTree, state: PyTree) -> PyTree:
        if not self.equilibration:
            return state
        dynamic, static = eqx.partition((params, state), eqx.is_array)
        params, state = eqx.combine(jax.lax.stop_gradient(dynamic), static)
        plan = Schedule(steps=self.equilibration)
        return solve(self.simulation, params, state, schedule=plan, observables=()).state

    def residuals(
        self,
        theta: Mapping[str, PyTree],
        prediction: Prediction,
        use: Array | None = None,
    ) -> Array:
        """√weight (A - data)/sigma of every target, priors' residuals last. Shape (residuals,).

        `use`: (conditions,) 1 or 0, which conditions count (default: all).
        """
        out = []
        for target, value in zip(self.targets, prediction.values, strict=True):
            r = (
                math.sqrt(target.weight)
                * (value - jnp.asarray(target.data))
                / jnp.asarray(target.sigma)
            )
            if use is not None:
                r = r * use.reshape((-1,) + (1,) * (r.ndim - 1))
            out.append(r.ravel())
        return jnp.concatenate([*out, *self._prior_residuals(theta)])

    def _prior_residuals(self, theta: Mapping[str, PyTree]) -> list[Array]:
        values = self.values(theta)
        out = []
        for name, p in self.parameters.items():
            if p.prior is None:
                continue
            standardised = getattr(p.prior, "standardised", None)
            if standardised is None:
                raise ConfigError(
                    "least squares needs a Gaussian prior",
                    key=f"parameters.{name}.prior",
                    allowed="diffsim.Normal, diffsim.LogNormal",
                )
            out.append(jnp.ravel(standardised(values[name])))
        return out

    def log_likelihood(self, prediction: Prediction, use: Array | None = None) -> Array:
        """Σ log N(data; A, sigma²/weight). Shape ()."""
        total = jnp.zeros(())
        for target, value in zip(self.targets, prediction.values, strict=True):
            sigma = jnp.asarray(target.sigma) / math.sqrt(max(target.weight, 1e-300))
            z = (value - jnp.asarray(target.data)) / sigma
            terms = -0.5 * z**2 - jnp.log(sigma) - 0.5 * math.log(2 * math.pi)
            if use is not None:
                terms = terms * use.reshape((-1,) + (1,) * (terms.ndim - 1))
            total = total + jnp.sum(terms)
        return total

    def loss(
        self,
        theta: Mapping[str, PyTree],
        prediction: Prediction,
        use: Array | None = None,
    ) -> Array:
        """½ Σ r² - Σ log prior: the negative log posterior up to a constant. Shape ()."""
        values = self.values(theta)
        no_prior = eqx.tree_at(
            lambda p: [q.prior for q in p.parameters.values()],
            self,
            [None] * len(self.parameters),
            is_leaf=lambda x: x is None,
        )
        total = 0.5 * jnp.sum(no_prior.residuals(theta, prediction, use) ** 2)
        for name, p in self.parameters.items():
            if p.prior is not None:
                total = total - jnp.sum(p.prior.log_prob(values[name]))
        return total

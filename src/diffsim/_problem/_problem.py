"""Parameters, targets, a simulation and a schedule, and the densities that they make."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray, PyTree

from .._adjoint import AbstractAdjoint, Auto, Reweight
from .._errors import ConfigError
from .._parameter import Parameter
from .._placement import AbstractPlacement, SingleDevice
from .._schedule import Schedule
from .._simulation import AbstractFlow, AbstractSimulation
from .._solve import default_adjoint, over_batch
from .._units import convert
from ._conditions import arrays, check_lengths, check_names
from ._prediction import Prediction, observables_at_start, relative_entropy, run_conditions
from ._prior_residuals import prior_residuals
from ._relative_entropy import RelativeEntropy
from ._target import Target


class Problem(eqx.Module):
    """Parameters, targets, a simulation, conditions and a schedule: a loss, a residual vector and a
    log-likelihood of the same thing.

    `targets`: what was measured, and ensembles to come near to, `RelativeEntropy`, which are no
    residuals and stand apart as `entropies`. `conditions`: the keyword arguments of
    `simulation.init`, each with a leading axis over conditions (state points, replicas,
    experiments), which run as one batch; None: one run. `equilibration` steps go before the
    schedule, outside of every gradient. θ below is the tree {name: unconstrained value} of the free
    parameters, as `initial()` returns it. A parameter that a target names as its `sigma` belongs to
    the measurement: the simulation does not get it. `placement`: over which devices the conditions
    go (default: one device).
    """

    simulation: AbstractSimulation
    parameters: dict[str, Parameter]
    targets: tuple[Target, ...]
    schedule: Schedule
    conditions: dict[str, Any] | None = None
    equilibration: int = eqx.field(static=True, default=0)
    placement: AbstractPlacement = eqx.field(default_factory=SingleDevice)
    entropies: tuple[RelativeEntropy, ...] = ()

    def __init__(
        self,
        simulation: AbstractSimulation,
        parameters: Mapping[str, Parameter],
        targets: Sequence[Target | RelativeEntropy],
        schedule: Schedule,
        conditions: Mapping[str, Any] | None = None,
        equilibration: int = 0,
        placement: AbstractPlacement | None = None,
        entropies: Sequence[RelativeEntropy] = (),
    ):
        self.simulation, self.schedule = simulation, schedule
        self.parameters = dict(parameters)
        self.targets = tuple(t for t in targets if isinstance(t, Target))
        more = (t for t in targets if isinstance(t, RelativeEntropy))
        self.entropies = (*entropies, *more)
        self.conditions = None if conditions is None else arrays(conditions)
        self.equilibration = equilibration
        self.placement = SingleDevice() if placement is None else placement

    def __check_init__(self):
        for name, parameter in self.parameters.items():
            if parameter.tied is not None and parameter.tied not in self.parameters:
                raise ConfigError(
                    "no such parameter",
                    key=f"parameters.{name}.tied",
                    value=parameter.tied,
                    allowed=self.parameters,
                )
            self._root(name)
        if self.equilibration < 0:
            raise ConfigError("must not be negative", key="equilibration", value=self.equilibration)
        check_lengths(self.conditions or {})
        for target in self.targets:
            self._check_target(target)
        for entropy in self.entropies:
            entropy.check(self.simulation, self.batch)

    def check_adjoint(self, adjoint: AbstractAdjoint) -> None:
        """Refuse an adjoint that does not give what the targets are made of."""
        if self.entropies and not isinstance(adjoint, (Reweight, Auto)):
            raise ConfigError(
                f"relative entropy is made of samples, which {type(adjoint).__name__} has none of",
                key="adjoint",
                allowed="Reweight",
            )

    def _check_target(self, target: Target) -> None:
        if np.shape(target.data)[:1] not in ((), (self.batch,)):
            raise ConfigError(
                f"has {np.shape(target.data)[0]} rows for {self.batch} conditions",
                key=f"target {target.label}.data",
            )
        if isinstance(target.sigma, str):
            self._check_noise(f"target {target.label}.sigma", target.sigma)

    def _check_noise(self, key: str, name: str) -> None:
        if name not in self.parameters:
            raise ConfigError("no such parameter", key=key, value=name, allowed=self.parameters)
        p = self.parameters[self._root(name)]
        bounded = isinstance(p.transform, tuple) and p.transform[0] >= 0
        sure = p.fixed and bool(np.all(np.asarray(p.init) > 0))
        if not (bounded or p.transform == "positive" or sure):
            raise ConfigError(
                f"{name} can become negative",
                key=f"parameters.{name}.transform",
                value=p.transform,
                allowed="positive, or an interval above zero",
            )

    def check(self) -> None:
        """Host side: refuse what cannot run, before anything is traced."""
        self.placement.check()
        params = self.params(self.initial())
        check_names(self.simulation, self.conditions or {})
        self.simulation.check(params, **(self.conditions or {}))
        if isinstance(self.simulation, AbstractFlow) and self.simulation.adaptive:
            self.schedule.times()
        else:
            self.schedule.plan(self.simulation.time_step())
        seen = self.observables(params)
        for target in self.targets:
            if seen and target.observable not in seen:
                raise ConfigError(
                    "no such observable", key="targets", value=target.observable, allowed=seen
                )
            self._factor(target)
            shape = seen.get(target.observable)
            if shape is not None:
                target.check_shapes(self.batch, len(self.times()), shape)

    def observables(self, params: PyTree) -> dict[str, tuple[int, ...] | None]:
        """The observables of one state by name, with their shapes where a start can be traced;
        else those that have units."""
        return observables_at_start(self.simulation, params, self.conditions or {})

    @property
    def batch(self) -> int:
        """The number of conditions."""
        if not self.conditions:
            return 1
        return np.shape(jax.tree.leaves(self.conditions)[0])[0]

    @property
    def data_points(self) -> int:
        """The number of measured values, over all targets and conditions; a relative entropy is
        one."""
        measured = sum(t.count if np.ndim(t.data) else self.batch for t in self.targets)
        return measured + self.batch * len(self.entropies)

    @property
    def free(self) -> tuple[str, ...]:
        """The names of the parameters that are fitted."""
        return tuple(k for k, p in self.parameters.items() if not p.fixed and p.tied is None)

    @property
    def noises(self) -> tuple[str, ...]:
        """The names of the parameters that are some target's `sigma`."""
        return tuple(dict.fromkeys(t.sigma for t in self.targets if isinstance(t.sigma, str)))

    @property
    def free_noises(self) -> tuple[str, ...]:
        """Those of them that are fitted."""
        return tuple(n for n in self.noises if (self.parameters[n].tied or n) in self.free)

    def times(self) -> np.ndarray:
        """When the saves are made, in the simulation's time; step numbers where it has none."""
        if isinstance(self.simulation, AbstractFlow) and self.simulation.adaptive:
            return np.asarray(self.schedule.times())
        dt = self.simulation.time_step()
        steps = self.schedule.plan(dt).saved_steps()
        return steps if dt is None else self.schedule.t0 + steps * dt

    def starting_at(self, values: Mapping[str, Any]) -> Problem:
        """The same problem with other starting values, in the parameters' units."""
        parameters = {
            name: dataclasses.replace(p, init=values[name]) if name in values else p
            for name, p in self.parameters.items()
        }
        return dataclasses.replace(self, parameters=parameters)

    def until(self, saves: int) -> Problem:
        """The same with the first `saves` saves alone: a shorter horizon, over which a chaotic or
        far-off trajectory can be fitted before the whole of it is."""
        ts = self.schedule.ts
        if ts is None or not 1 <= saves <= len(ts):
            most = 0 if ts is None else len(ts)
            raise ConfigError(
                "needs a schedule with ts that has so many",
                key="horizons",
                value=saves,
                allowed=f"1 to {most}",
            )
        schedule = Schedule(t0=self.schedule.t0, ts=ts[:saves])
        targets = tuple(target.until(saves) for target in self.targets)
        return dataclasses.replace(self, schedule=schedule, targets=targets)

    def rows(self, conditions: Array | np.ndarray) -> Problem:
        """The same of some conditions alone, given by their numbers."""
        kept = jax.tree.map(lambda x: jnp.asarray(x[conditions]), self.conditions or {})
        targets = tuple(target.rows(conditions) for target in self.targets)
        both = {"targets": targets, "entropies": tuple(e.rows(conditions) for e in self.entropies)}
        return dataclasses.replace(self, conditions=kept or None, **both)

    def initial(self) -> dict[str, PyTree]:
        """θ at the parameters' starting values."""
        return {name: self.parameters[name].unconstrained() for name in self.free}

    def values(self, theta: Mapping[str, PyTree]) -> dict[str, PyTree]:
        """All parameters in their own units."""
        values = {}
        for name, p in self.parameters.items():
            z = theta[name] if name in theta else p.unconstrained()
            values[name] = p.constrain(z)
        return {name: values[self._root(name)] for name in self.parameters}

    def _root(self, name: str) -> str:
        """The parameter whose value this one takes: itself, or the end of its ties."""
        passed = [name]
        while (tied := self.parameters[passed[-1]].tied) is not None:
            if tied in passed:
                raise ConfigError("is tied to itself", key=f"parameters.{name}.tied", value=tied)
            passed.append(tied)
        return passed[-1]

    def params(self, theta: Mapping[str, PyTree]) -> dict[str, PyTree]:
        """All parameters in the simulation's units, as it takes them."""
        units, noises = self.simulation.units(), self.noises
        params = {}
        for name, value in self.values(theta).items():
            if name in noises:
                continue
            root, factor = self._root(name), 1.0
            if (unit := self.parameters[root].unit) and name in units:
                factor = convert(1.0, unit, units[name], key=f"parameters.{root}.unit")
            scaled = lambda x, f=factor: x * f  # noqa: E731
            params[name] = value if factor == 1.0 else jax.tree.map(scaled, value)
        return params

    def _factor(self, target: Target) -> float:
        """What turns the simulation's number into the target's unit."""
        unit = self.simulation.units().get(target.observable)
        if target.unit is None or unit is None:
            return 1.0
        return convert(1.0, unit, target.unit, key=f"target {target.label}.unit")

    def sigmas(self, theta: Mapping[str, PyTree]) -> tuple[Array, ...]:
        """Each target's sigma, in its unit."""
        values = self.values(theta)
        out = []
        for target in self.targets:
            if not isinstance(target.sigma, str):
                out.append(jnp.asarray(target.sigma))
                continue
            unit = self.parameters[self._root(target.sigma)].unit
            sigma = jnp.asarray(values[target.sigma])
            wanted = target.unit or self.simulation.units().get(target.observable)
            if unit and wanted and target.noise == "normal":
                sigma = sigma * convert(1.0, unit, wanted, key=f"target {target.label}.sigma")
            out.append(sigma)
        return tuple(out)

    def states(self, theta: Mapping[str, PyTree], key: PRNGKeyArray) -> PyTree:
        """Initial states, one a condition, before equilibration."""
        params = self.params(theta)
        conditions = jax.tree.map(jnp.asarray, self.conditions or {})
        keys = jax.random.split(key, self.batch)
        if not self.simulation.traceable_init():
            init = lambda key, given: self.simulation.init(params, key, **given)  # noqa: E731
            return self.placement.place(over_batch(init, keys, conditions))
        start = lambda shared, key, given: shared[0].init(shared[1], key, **given)  # noqa: E731
        return self.placement.map(start, (self.simulation, params), keys, conditions)

    def predict(
        self,
        theta: Mapping[str, PyTree],
        states: PyTree,
        adjoint: AbstractAdjoint | None = None,
    ) -> Prediction:
        """Run the schedule from `states` (batched) and evaluate every target's observable."""
        names = tuple(dict.fromkeys(t.observable for t in self.targets))
        adjoint = default_adjoint(self.simulation) if adjoint is None else adjoint
        self.check_adjoint(adjoint)
        params = self.params(theta)
        solution = run_conditions(
            self.simulation,
            params,
            states,
            schedule=self.schedule,
            adjoint=adjoint,
            equilibration=self.equilibration,
            observables=names,
            placement=self.placement,
        )
        values = []
        for target in self.targets:
            series = solution.observables[target.observable] * self._factor(target)
            values.append(jnp.mean(series, axis=1) if target.statistic == "mean" else series)
        given = self.simulation, params, self.conditions or {}, solution, self.placement
        entropies = tuple(relative_entropy(e, *given) for e in self.entropies)
        return Prediction(tuple(values), solution, entropies)

    def series(self, prediction: Prediction) -> list[np.ndarray]:
        """Each target's observable at every save in the target's unit: (conditions, saves, ...).

        Of reweighted samples, whose n w_i A_i scatter with the weights however steady A is, the
        series A̅ + n w_i (A_i - A̅): the same mean, and the scatter that its error follows from.
        """
        weights = prediction.solution.stats.get("weights")
        observables = self.placement.fetch(prediction.solution.observables)
        out = []
        for target in self.targets:
            series = np.asarray(observables[target.observable])
            if weights is not None:
                w = np.asarray(weights).reshape(series.shape[:2] + (1,) * (series.ndim - 2))
                mean = series.mean(axis=1, keepdims=True)
                series = series + (1 - w) * mean
            out.append(series * self._factor(target))
        return out

    def residuals(
        self,
        theta: Mapping[str, PyTree],
        prediction: Prediction,
        use: Array | None = None,
    ) -> Array:
        """√weight (A - data)/sigma of every target, priors' residuals last. Shape (residuals,).

        `use`: (conditions,) 1 or 0, which conditions count (default: all).
        """
        return jnp.concatenate(
            [jnp.zeros(0), *self._data_residuals(theta, prediction, use), *self._priors(theta)]
        )

    def _data_residuals(
        self, theta: Mapping[str, PyTree], prediction: Prediction, use: Array | None
    ) -> list[Array]:
        sets = zip(self.targets, prediction.values, self.sigmas(theta), strict=True)
        return [t.residual(value, sigma, use).ravel() for t, value, sigma in sets]

    def _priors(self, theta: Mapping[str, PyTree]) -> list[Array]:
        return prior_residuals(self.parameters, self.values(theta))

    def log_likelihood(
        self,
        theta: Mapping[str, PyTree],
        prediction: Prediction,
        use: Array | None = None,
    ) -> Array:
        """Σ log p(data | A(θ), sigma), normalised over the data; p is N(data; A, sigma²/weight) or
        lognormal about A; less weight · S_rel up to a constant. Shape ()."""
        sets = zip(self.targets, prediction.values, self.sigmas(theta), strict=True)
        terms = [t.log_density(value, sigma, use) for t, value, sigma in sets]
        return sum(map(jnp.sum, terms), jnp.zeros(())) - self._entropic(prediction, use)

    def _entropic(self, prediction: Prediction, use: Array | None) -> Array:
        sets = zip(self.entropies, prediction.entropies, strict=True)
        return sum((entropy.loss(value, use) for entropy, value in sets), jnp.zeros(()))

    def log_prior(self, theta: Mapping[str, PyTree]) -> Array:
        """Σ log p(θ), each parameter in its own unit, up to what a truncation cuts off."""
        values = self.values(theta)
        priors = [(p.prior, values[n]) for n, p in self.parameters.items() if p.prior is not None]
        return sum((jnp.sum(prior.log_prob(value)) for prior, value in priors), jnp.zeros(()))

    def log_det(self, theta: Mapping[str, PyTree]) -> Array:
        """Σ log |det dθ/dz|: what makes a density of the parameters one of their unconstrained
        values."""
        return sum((self.parameters[k].log_det(z) for k, z in theta.items()), jnp.zeros(()))

    def loss(
        self,
        theta: Mapping[str, PyTree],
        prediction: Prediction,
        use: Array | None = None,
    ) -> Array:
        """½ Σ r² + Σ weight · S_rel - Σ log prior, and Σ log sigma of a sigma that is a parameter:
        the negative log posterior up to a constant that does not depend on θ. Shape ()."""
        residuals = self._data_residuals(theta, prediction, use)
        total = 0.5 * sum((jnp.sum(r**2) for r in residuals), jnp.zeros(()))
        total = total + self._entropic(prediction, use)
        for target, value, sigma in zip(
            self.targets, prediction.values, self.sigmas(theta), strict=True
        ):
            if isinstance(target.sigma, str) and target.weight:
                spread = jnp.broadcast_to(jnp.log(sigma), value.shape)
                total = total + jnp.sum(target.counted(spread, use))
        return total - self.log_prior(theta)

"""Posteriors: what is known of the parameters once the data are seen."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from .._adjoint import AbstractAdjoint
from .._errors import ConfigError
from .._placement import SingleDevice
from .._problem import Problem
from .._schedule import Schedule
from ._density import Density
from ._diagnostics import bulk_ess, split_rhat
from ._evaluate import Watch, silent
from ._memory import FORGETFUL, Memory
from ._methods import NUTS, AbstractMethod, Draws

RHAT_MOST = 1.01
ESS_ENOUGH = 400
DIVERGING_MOST = 0.01


class PosteriorResult(eqx.Module):
    """Draws from the posterior of a problem.

    `draws`: name -> (chains, draws, ...), each free parameter in its own unit; `rhat`, `ess`: name
    -> rank-normalised split R-hat and bulk effective sample size; `divergences`: their number;
    `mode`: the free parameters where the density of the unconstrained values is largest; `stats`:
    what is particular to the method; `seconds`: of the mode and of the draws.

    `converged` is True where R-hat ≤ 1.01 and the effective sample size ≥ 400 for every entry of
    every parameter, at most 1 % of the draws diverged, and the method found no fault of its own;
    `reason` says which of these failed.
    """

    draws: dict[str, np.ndarray]
    rhat: dict[str, np.ndarray]
    ess: dict[str, np.ndarray]
    divergences: int
    converged: bool
    reason: str
    mode: dict[str, Any]
    stats: dict[str, Any]
    seconds: dict[str, float]
    unconstrained: np.ndarray = eqx.field(repr=False)
    density: Density = eqx.field(repr=False)

    def mean(self, name: str) -> np.ndarray | np.floating:
        """The posterior mean of a parameter."""
        return np.mean(self.draws[name], axis=(0, 1))

    def sd(self, name: str) -> np.ndarray | np.floating:
        """The posterior standard deviation of a parameter."""
        return np.std(self.draws[name], axis=(0, 1), ddof=1)

    def quantile(self, name: str, q: float | Sequence[float]) -> np.ndarray | np.floating:
        """Posterior quantiles of a parameter, q first."""
        return np.quantile(self.draws[name], q, axis=(0, 1))

    def entries(self) -> dict[str, np.ndarray]:
        """Every number by itself: `name`, or `name[i]` of an array -> (chains, draws)."""
        out = {}
        for name, values in self.draws.items():
            flat = values.reshape(*values.shape[:2], -1)
            for i, index in enumerate(np.ndindex(values.shape[2:])):
                label = f"{name}[{','.join(map(str, index))}]" if index else name
                out[label] = flat[:, :, i]
        return out

    def table(self) -> list[dict[str, Any]]:
        """A row an entry: name, mean, sd, q05, q50, q95, rhat, ess."""
        diagnoses = [np.concatenate([np.ravel(d[n]) for n in self.draws]) for d in self._both()]
        rows = zip(self.entries().items(), *diagnoses, strict=True)
        return [
            {
                "name": name,
                "mean": float(np.mean(x)),
                "sd": float(np.std(x, ddof=1)),
                **dict(zip(("q05", "q50", "q95"), np.quantile(x, (0.05, 0.5, 0.95)), strict=True)),
                "rhat": float(rhat),
                "ess": float(ess),
            }
            for (name, x), rhat, ess in rows
        ]

    def _both(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        return self.rhat, self.ess

    def predictive(
        self,
        draws: int = 200,
        key: PRNGKeyArray | None = None,
        noise: bool = True,
        schedule: Schedule | None = None,
        shared: bool = False,
    ) -> dict[str, np.ndarray]:
        """What further measurements would show: a target's label -> (draws, conditions, ...), in
        the target's unit, at evenly spaced draws; without `noise` the model's own prediction.

        `schedule`: with other saves; `shared`: one deviate for all saves of a draw, whose quantiles
        at each save are the same, and smooth from save to save.
        """
        key = jax.random.key(0) if key is None else key
        flat = self.unconstrained.reshape(-1, self.unconstrained.shape[-1])
        chosen = flat[np.linspace(0, len(flat) - 1, min(draws, len(flat))).astype(int)]
        run = self.density.run
        if schedule is not None:
            run = dataclasses.replace(
                run, problem=dataclasses.replace(run.problem, schedule=schedule)
            )
        problem = run.problem

        def one(given):
            z, key = given
            theta = self.density.unravel(z)
            values, sigmas = run.predict(theta).values, problem.sigmas(theta)
            if not noise:
                return values
            keys = jax.random.split(key, len(values))
            sets = zip(problem.targets, keys, values, sigmas, strict=True)
            return tuple(t.draw(key, value, sigma, shared) for t, key, value, sigma in sets)

        keys = jax.random.split(key, len(chosen))
        found = jax.jit(lambda given: jax.lax.map(one, given, batch_size=25))
        values = found((jnp.asarray(chosen), keys))
        return {t.label: np.asarray(v) for t, v in zip(problem.targets, values, strict=True)}


def posterior(
    problem: Problem,
    method: AbstractMethod | None = None,
    *,
    adjoint: AbstractAdjoint | None = None,
    key: PRNGKeyArray | None = None,
    starts: int = 8,
    watch: Watch = silent,
    memory: Memory = FORGETFUL,
) -> PosteriorResult:
    """p(θ | data) ∝ p(data | θ) p(θ): draws by `NUTS` (the default), `SVI` or `Laplace`.

    The likelihood is the problem's own (`Problem.log_likelihood`), its parameters' priors are the
    priors (none: flat in the parameter itself), and draws are made over unconstrained z, in
    coordinates in which the Laplace approximation at the mode is N(0, 1): chains start from draws
    of it, and at other modes that are nearly as likely where the search came upon some. The model
    is differentiated forward where the adjoint can and parameters are at most 100. A stochastic
    simulation keeps the noise of `key` throughout: the posterior is conditional on that noise, and
    too narrow by what other noise would change; many copies (`ode.Copies`) make that small.

    **Arguments:** `method`; `adjoint` (default: forward for few parameters, else in reverse);
    `key`; `starts`: points from which the mode is sought, the parameters' own and others around
    them; `watch`: called with "mode", "warmup" and "sampling" and how far they are; `memory`: as
    in `least_squares`.

    **Raises** `ConfigError` before tracing, `SimulationError` when the start has no density.
    """
    method = NUTS() if method is None else method
    if not isinstance(method, AbstractMethod):
        raise ConfigError(
            "unknown method", key="method", value=method, allowed="NUTS, SVI, Laplace"
        )
    problem.placement.check()
    method, problem = _placed(method, problem)
    method.check()
    if not problem.free:
        raise ConfigError("a posterior needs at least one free parameter", key="parameters")
    key = jax.random.key(0) if key is None else key
    if starts < 1:
        raise ConfigError("must be at least 1", key="starts", value=starts)
    first, second, last = jax.random.split(key, 3)
    began = time.perf_counter()
    density = Density(problem, adjoint, first)
    watch("mode", {"parameters": density.start.size})
    modes, found = _modes(density, second, starts, memory)
    target = density.whitened(modes)
    seconds = {"mode": time.perf_counter() - began}
    draws = method.draw(target, last, watch, memory)
    z = target.z(draws.u)
    values = jax.jit(jax.vmap(jax.vmap(density.free_values)))(z)
    seconds["draws"] = time.perf_counter() - began - seconds["mode"]
    stats = {"mode_found": bool(found), "mode_sound": target.sound, **draws.stats}
    mode = {k: np.asarray(v) for k, v in density.free_values(modes[0]).items()}
    return _result(density, draws, np.asarray(z), values, mode, stats, seconds)


def _modes(density: Density, key: PRNGKeyArray, starts: int, memory: Memory) -> tuple[Array, bool]:
    """`Density.modes`, searched once."""

    def search() -> tuple[np.ndarray, ...]:
        modes, found = density.modes(key, starts)
        return np.asarray(modes), np.asarray(found), np.asarray(density.least)

    like = (np.asarray(density.start), np.asarray(True), np.asarray(0.0))
    modes, found, least = memory.once("modes", like, search)
    density.least = float(least)
    return jnp.asarray(modes), bool(found)


def _placed(method: AbstractMethod, problem: Problem) -> tuple[AbstractMethod, Problem]:
    """Chains over the devices in place of conditions, where there are as many for each: they never
    wait for one another. Several processes share out conditions."""
    if not isinstance(method, NUTS) or jax.process_count() > 1:
        return method, problem
    devices = problem.placement.devices_of(method.chains)
    if method.chain_method == "vectorized" and (devices == 1 or method.chains % devices):
        return method, problem
    if method.chain_method == "vectorized":
        method = dataclasses.replace(method, chain_method="parallel", devices=devices)
    return method, dataclasses.replace(problem, placement=SingleDevice())


def explored(
    problem: Problem,
    *,
    adjoint: AbstractAdjoint | None = None,
    key: PRNGKeyArray | None = None,
    starts: int = 8,
    use: Sequence[bool] | np.ndarray | None = None,
) -> Problem:
    """The same problem, starting at the best mode that `posterior` would find."""
    first, second = jax.random.split(jax.random.key(0) if key is None else key)
    density = Density(problem, adjoint, first, use)
    modes, _ = density.modes(second, starts)
    found = density.free_values(modes[0])
    return problem.starting_at(jax.tree.map(np.asarray, found))


def _result(
    density: Density, draws: Draws, z: np.ndarray, values: dict[str, Any], mode: dict[str, Any],
    stats: dict[str, Any], seconds: dict[str, float],
) -> PosteriorResult:  # fmt: skip
    arrays = {k: np.asarray(v) for k, v in values.items()}
    rhat = {k: split_rhat(v) for k, v in arrays.items()}
    ess = {k: bulk_ess(v) for k, v in arrays.items()}
    divergences = int(np.sum(draws.diverging))
    reason = _fault(rhat, ess, divergences / draws.diverging.size, draws.trouble)
    return PosteriorResult(
        draws=arrays,
        rhat=rhat,
        ess=ess,
        divergences=divergences,
        converged=not reason,
        reason=reason,
        mode=mode,
        stats=stats,
        seconds=seconds,
        unconstrained=z,
        density=density,
    )


def _fault(
    rhat: dict[str, np.ndarray], ess: dict[str, np.ndarray], diverging: float, trouble: str
) -> str:
    """Why the draws do not count as converged; nothing where they do."""
    faults = [trouble] if trouble else []
    if diverging > DIVERGING_MOST:
        faults.append(
            f"{100 * diverging:.2g} % of the draws diverged (raise target_accept, or look for a "
            "funnel in the parameters)"
        )
    for name in rhat:
        worst, least = float(np.max(rhat[name])), float(np.min(ess[name]))
        if not worst <= RHAT_MOST:
            faults.append(f"R-hat of {name} is {worst:.3f}, over {RHAT_MOST}")
        if not least >= ESS_ENOUGH:
            faults.append(f"{name} has {least:.0f} effective draws, under {ESS_ENOUGH}")
    return "; ".join(faults)

"""Ways to a posterior: each a small frozen object that draws from a density."""

from __future__ import annotations

import operator
from abc import abstractmethod
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, PRNGKeyArray, PyTree

from .._errors import ConfigError
from ._density import Whitened
from ._evaluate import Watch
from ._memory import FORGETFUL, Memory

EFFICIENCY_LEAST = 0.1  # of an approximation, by importance weights


class Draws(NamedTuple):
    """Points u (chains, draws, n), whether each ended a diverging trajectory, and what else is
    known; `trouble`: why they do not stand for the posterior, where the method can tell."""

    u: Array
    diverging: np.ndarray
    stats: dict[str, Any]
    trouble: str = ""


class AbstractMethod(eqx.Module):
    """Draws from exp(-U)."""

    @abstractmethod
    def check(self) -> None:
        """Refuse, before anything is traced, what is not installed."""

    @abstractmethod
    def draw(
        self, target: Whitened, key: PRNGKeyArray, watch: Watch, memory: Memory = FORGETFUL
    ) -> Draws:
        """Draw, telling `watch` ("warmup", "sampling") how far it is; it may raise to end this.
        What it puts by in `memory` it goes on from."""


class NUTS(AbstractMethod):
    """The No-U-Turn sampler (Hoffman and Gelman 2014, arXiv:1111.4246), all chains side by side.

    **When:** the reference for up to some hundred parameters. **Costs:** 5 to 15 gradients a draw
    where the posterior is nearly normal; memory of `chains` trajectories. **Cannot:** cross between
    separate modes, which R-hat then tells.

    **Arguments:** `warmup`, `draws`: of each chain; `target_accept`: closer to 1 for smaller steps,
    against divergences; `max_tree_depth`: at most 2^depth gradients a draw; `dense_mass`: learn
    correlations too (the Laplace approximation, in whose coordinates this runs, has those of the
    mode); `backend`: "numpyro" or "blackjax"; `chain_method`: "vectorized" runs all chains in one
    program, "parallel" an equal share of them on each of this process's devices, or on so many as
    `devices` says. A problem placed as `Batch` runs chains in parallel where they divide.
    """

    warmup: int = 500
    draws: int = 1000
    chains: int = 4
    target_accept: float = 0.8
    max_tree_depth: int = 10
    dense_mass: bool = False
    backend: Literal["numpyro", "blackjax"] = "numpyro"
    chain_method: Literal["vectorized", "parallel"] = "vectorized"
    devices: int | None = None

    def __check_init__(self):
        for key, least in (("warmup", 20), ("draws", 4), ("chains", 1), ("max_tree_depth", 1)):
            _at_least(key, getattr(self, key), least)
        if self.devices is not None:
            _at_least("devices", self.devices, 1)
        if not 0 < self.target_accept < 1:
            raise ConfigError("must be in (0, 1)", key="target_accept", value=self.target_accept)
        if self.backend not in ("numpyro", "blackjax"):
            raise ConfigError(
                "unknown backend", key="backend", value=self.backend, allowed="numpyro, blackjax"
            )
        methods = ("vectorized", "parallel")
        if self.chain_method not in methods:
            raise ConfigError(
                "unknown", key="chain_method", value=self.chain_method, allowed=methods
            )

    def check(self) -> None:
        require(self.backend)
        count = len(self._devices())
        if self.chains % count:
            raise ConfigError(
                f"must be a multiple of the {count} devices over which they run",
                key="chains",
                value=self.chains,
                suggestion=f"chains={-(-self.chains // count) * count}",
            )

    def _devices(self) -> list[Any]:
        """Where the chains run: None is JAX's default device."""
        parallel = self.chain_method == "parallel"
        most = min(self.chains, self.devices or self.chains)
        return jax.local_devices()[:most] if parallel else [None]

    def spread(self, tree: PyTree) -> list[PyTree]:
        """Arrays (chains, ...) as one group of chains a device, each on its own."""
        devices = self._devices()
        share = self.chains // len(devices)
        parts = [slice(i * share, (i + 1) * share) for i in range(len(devices))]
        groups = [jax.tree.map(operator.itemgetter(part), tree) for part in parts]
        return list(map(jax.device_put, groups, devices))

    def draw(
        self, target: Whitened, key: PRNGKeyArray, watch: Watch, memory: Memory = FORGETFUL
    ) -> Draws:
        from ._nuts import blackjax_nuts, numpyro_nuts

        sample = numpyro_nuts if self.backend == "numpyro" else blackjax_nuts
        return sample(self, target, key, watch, memory)


class SVI(AbstractMethod):
    """Variational inference: the normal distribution nearest to the posterior, by NumPyro.

    **When:** many parameters, or a first look. **Costs:** `steps` times `particles` gradients.
    **Cannot:** follow skewed or separate modes; its spread is rather too small.

    **Arguments:** `steps` of Adam with `learning_rate`, which decays to a hundredth; `draws`: from
    the fitted guide; `guide`: "full" (all correlations), "diagonal" or "lowrank"; `particles`:
    draws behind each estimate of the bound.

    Counts as converged when importance weights show that a draw is worth at least 0.1 of one from
    the posterior.
    """

    steps: int = 2000
    draws: int = 2000
    learning_rate: float = 0.01
    guide: Literal["full", "diagonal", "lowrank"] = "full"
    particles: int = 4

    def __check_init__(self):
        for key, least in (("steps", 1), ("draws", 8), ("particles", 1)):
            _at_least(key, getattr(self, key), least)
        if self.guide not in ("full", "diagonal", "lowrank"):
            raise ConfigError(
                "unknown guide", key="guide", value=self.guide, allowed="full, diagonal, lowrank"
            )

    def check(self) -> None:
        require("numpyro")

    def draw(
        self, target: Whitened, key: PRNGKeyArray, watch: Watch, memory: Memory = FORGETFUL
    ) -> Draws:
        from ._svi import svi

        return svi(self, target, key, watch, memory)


class Laplace(AbstractMethod):
    """p(z | data) ≈ N(ẑ, H⁻¹), H the Hessian of U at the mode ẑ, in unconstrained z.

    **When:** much data, nearly normal posteriors, a first look. **Costs:** a Hessian. **Cannot:**
    see skewness beyond what the transforms give. Counts as converged when the mode was found, H is
    positive definite, and importance weights show that a draw is worth at least 0.1 of one from the
    posterior.
    """

    draws: int = 2000

    def __check_init__(self):
        _at_least("draws", self.draws, 8)

    def check(self) -> None:
        return

    def draw(
        self, target: Whitened, key: PRNGKeyArray, watch: Watch, memory: Memory = FORGETFUL
    ) -> Draws:
        del memory  # one evaluation
        u = jax.random.normal(key, (1, self.draws, target.size), target.centre.dtype)
        watch("sampling", {"steps": self.draws, "of": self.draws})
        log_q = -0.5 * np.sum(np.asarray(u[0]) ** 2, axis=1)
        draws = approximated(target, u, log_q)
        if not target.sound:
            return draws._replace(trouble="the curvature at the mode is not positive")
        return draws


def approximated(target: Whitened, u: Array, log_q: np.ndarray, **stats: Any) -> Draws:
    """Draws (1, draws, n) of an approximation with log density `log_q`, and how good they are."""
    log_w = -target.density.at(target.z(u[0])) - log_q
    w = np.exp(log_w - np.max(log_w)) if np.all(np.isfinite(np.max(log_w))) else np.zeros(1)
    efficiency = float(np.sum(w) ** 2 / np.sum(w**2) / len(w)) if np.any(w > 0) else 0.0
    bad = efficiency < EFFICIENCY_LEAST
    trouble = f"a draw is worth {efficiency:.2g} of one from the posterior" if bad else ""
    none = np.zeros(u.shape[:2], dtype=bool)
    return Draws(u, none, {"importance_efficiency": efficiency, **stats}, trouble)


def require(package: str) -> None:
    """Refuse with the remedy where an optional package is missing."""
    import importlib.util

    if importlib.util.find_spec(package) is None:
        raise ConfigError(
            f"needs {package}, which is not installed",
            key="method",
            suggestion="pip install 'diffsim[posterior]'",
        )


def _at_least(key: str, value: Any, least: int) -> None:
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < least:
        cause = f"must be a whole number of at least {least}"
        raise ConfigError(cause, key=key, value=value)

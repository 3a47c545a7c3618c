"""The iteration of a fit in which a few conditions at a time stand for all."""

from __future__ import annotations

import math
import time
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PRNGKeyArray

from .._errors import ConfigError, SimulationError
from .._problem import Problem
from ._descent import HALVINGS, Iterate, searches, strong, update
from ._evaluate import Evaluator, Run
from ._memory import FORGETFUL, Memory, kept_with
from ._result import scalars


class BatchDescent:
    """Stochastic descent: the loss of `batch` conditions, drawn without replacement from those that
    count, times their number over `batch`, is the loss of all on average; so is its gradient."""

    def __init__(
        self,
        evaluator: Evaluator,
        mask: np.ndarray,
        transform: optax.GradientTransformationExtraArgs,
        batch: int,
        key: PRNGKeyArray,
        memory: Memory = FORGETFUL,
    ):
        self.memory = memory
        self.evaluator, self.mask, self.transform, self.batch = evaluator, mask, transform, batch
        self.problem, self.used = evaluator.problem, np.flatnonzero(mask)
        self.random = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
        self.history: list[dict[str, Any]] = []
        check_batch(self.problem, mask, transform, batch)

    def run(self, steps: int) -> Iterate:
        """The last of `steps` iterates, evaluated over all conditions."""
        z, state, former, back = self._begin()
        share = np.full(self.batch, math.sqrt(len(self.used) / self.batch))  # enters squared
        while len(self.history) < steps:
            self._put_by(z, state, former, back)
            began = time.perf_counter()
            rows = self.random.choice(self.used, self.batch, replace=False)
            self.evaluator.problem = self.problem.rows(np.sort(rows))
            try:
                loss, gradient, _, facts = self.evaluator.at(z, share)
            except SimulationError:
                back += 1
                if not self.history or back > HALVINGS:
                    raise
                z = (z + former) / 2  # too far for one of them
                continue
            former, back = z, 0
            self._record(z, float(loss), gradient, facts, began)
            run = self.evaluator.run(share, z)
            slope = strong((jnp.asarray(loss / share[0] ** 2, z.dtype), gradient / share[0] ** 2))
            z, state = update(self.transform, self.evaluator.unravel, run, z, state, *slope)
            z, state = self.problem.placement.fetch((z, state))
        self.evaluator.problem = self.problem
        self._put_by(z, state, former, back, ended=True)
        return self._over_all(z)

    def _begin(self) -> tuple[Array, Any, Array, int]:
        """z, the optimiser's state, the last z that did not fail, and how often it went back."""
        z = strong(self.evaluator.start)
        state = strong(self.transform.init(z))
        saved = self.memory.recall("batches")
        if saved is None:
            return z, state, z, 0
        self.evaluator.restore(saved)
        self.history[:] = saved.own["history"]
        self.random.bit_generator.state = saved.own["random"]
        found = saved.tree("batches", (z, state, z))
        return *found, saved.own["back"]

    def _put_by(self, z: Array, state: Any, former: Array, back: int, ended: bool = False) -> None:
        """Offer what can be gone on with from here."""
        own = {"history": list(self.history), "back": back}
        own["random"] = self.random.bit_generator.state
        trees = {"batches": (z, state, former)}
        self.memory.offer("batches", kept_with(self.evaluator.snapshot(), trees, own), ended)

    def _over_all(self, z: Array) -> Iterate:
        """The loss and the prediction of all conditions, without a gradient."""
        theta = self.evaluator.unravel(z)
        run = self.evaluator.run(self.mask, z)
        loss, prediction = _loss(run, theta)
        return Iterate(z, float(loss), jnp.zeros_like(z), prediction)

    @property
    def converged(self) -> bool:
        """Whether the last fifth of the losses is no better than the fifth before."""
        fifth = len(self.history) // 5
        if fifth < 2:
            return False
        losses = np.asarray([record["loss"] for record in self.history])
        late, early = losses[-fifth:], losses[-2 * fifth : -fifth]
        error = math.sqrt((np.var(late, ddof=1) + np.var(early, ddof=1)) / fifth)
        return bool(np.mean(early) - np.mean(late) <= 2 * error)

    def _record(
        self, z: Array, loss: float, gradient: Array, facts: dict[str, Any], began: float
    ) -> None:
        record = {
            "iteration": len(self.history),
            "loss": loss,
            "parameters": scalars(self.problem.values(self.evaluator.unravel(z))),
            "gradient_norm": float(jnp.linalg.norm(gradient)) / self.problem.data_points,
            **facts,
            "seconds": time.perf_counter() - began,
        }
        self.history.append(record)
        self.evaluator.watch("iteration", record)


def check_batch(
    problem: Problem, mask: np.ndarray, optimiser: optax.GradientTransformation, batch: int
) -> None:
    """Refuse what cannot be fitted by batches of the conditions that `mask` counts."""
    most = int(np.count_nonzero(mask))
    if not 1 <= batch <= most:
        raise ConfigError(
            "must not be over the number of conditions",
            key="batch",
            value=batch,
            allowed=f"1 to {most}",
        )
    if not problem.simulation.traceable_init():
        raise ConfigError("a batch needs trajectories from starts that are computed", key="batch")
    if problem.free_noises:
        raise ConfigError("a batch cannot tell the noise", key="batch", value=problem.free_noises)
    if searches(optimiser.init(jnp.zeros(1))):
        raise ConfigError(
            "a line search needs the loss of all conditions",
            key="optimiser",
            allowed="an optimiser without one, such as optax.adam, or no batch",
        )


@eqx.filter_jit
def _loss(run: Run, theta: Any) -> Any:
    return run.loss(theta)

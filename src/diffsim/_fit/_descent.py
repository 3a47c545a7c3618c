"""The iteration of a fit by an optimiser of optax."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from .._errors import SimulationError
from ._derivative import explicit
from ._evaluate import ESS_LEAST, Evaluator, Run
from ._memory import FORGETFUL, Memory, kept_with, lean
from ._result import scalars

TOL = 1e-6  # of the gradient in parameters of size one, relative to the loss, both per datum
IDLE = 10  # iterations without a better loss after which a line search has no further to go
GAIN = 1e-12  # of the loss, relative, that counts as better
FLAT = 1e-2  # the slope, as for `TOL`, under which that counts as converged
HALVINGS = 30  # at most, on the way back from where a trajectory fails
ESS_LINE = ESS_LEAST / 3  # the effective fraction of samples under which a line search steps back


@eqx.filter_jit
def update(
    transform: Any, unravel: Any, run: Run, z: Array, state: Any, loss: Array, gradient: Array
) -> tuple[Array, Any]:
    """One step of the optimiser; a line search evaluates the loss inside."""
    count = run.problem.data_points

    def value(z: Array) -> Array:
        loss, prediction = run.loss(unravel(z))
        failed = jnp.any(prediction.solution.first_bad_step >= 0)
        if "ess" in prediction.solution.stats:  # beyond, samples say whatever a search asks for
            failed = failed | jnp.any(prediction.solution.stats["ess"] < ESS_LINE)
        return jnp.where(failed, jnp.inf, loss / count)  # a line search steps back from there

    # a line search calls jax.grad
    share = value if "reverse" in run.adjoint.modes else explicit(value, forward=True)
    gradient = gradient / count
    updates, state = transform.update(
        gradient, state, z, value=loss / count, grad=gradient, value_fn=share
    )
    return run.problem.placement.readable(strong((z + updates, state)))


def strong(tree: Any) -> Any:
    """Without weak types, which would compile the same step anew as they come and go."""
    return jax.tree.map(
        lambda x: jax.lax.convert_element_type(x, x.dtype) if eqx.is_array(x) else x, tree
    )


@dataclasses.dataclass
class Iterate:
    """An evaluated z."""

    z: Array
    loss: float
    gradient: Array
    prediction: Any


class Descent:
    """The iteration: an evaluation, a step of the optimiser; a record each."""

    def __init__(
        self,
        evaluator: Evaluator,
        mask: np.ndarray,
        transform: optax.GradientTransformationExtraArgs,
        tol: float | None,
        memory: Memory = FORGETFUL,
        stage: str = "descent",
    ):
        self.evaluator, self.mask, self.transform, self.tol = evaluator, mask, transform, tol
        self.memory, self.stage = memory, stage
        self.problem = evaluator.problem
        self.history: list[dict[str, Any]] = []
        self.best: Iterate | None = None
        self.idle, self.converged = 0, False
        self.searches = searches(transform.init(evaluator.start)) and not evaluator.sampled

    def run(self, steps: int) -> Iterate:
        """The best of `steps` iterates, or of those to convergence."""
        z, state, back, done = self._begin()
        for n in range(done, steps):
            self._put_by(z, state, back, n)
            try:
                point = self._evaluate(z)
            except SimulationError:
                back += 1
                if self.best is None or back > HALVINGS or not self.searches:
                    raise
                if not bool(jnp.all(jnp.isfinite(z))):
                    raise
                z = (z + self.best.z) / 2
                state = strong(self.transform.init(z))
                continue
            back = 0
            if self._ends(point):
                break
            run = self.evaluator.run(self.mask, z)
            slope = strong((jnp.asarray(point.loss, z.dtype), point.gradient))
            z, state = update(self.transform, self.evaluator.unravel, run, z, state, *slope)
            z, state = self.problem.placement.fetch((z, state))
        self._put_by(z, state, 0, steps, ended=True)
        assert self.best is not None
        return self.best

    def _begin(self) -> tuple[Array, Any, int, int]:
        """z, the optimiser's state, how often in a row it went back, and the iterations so far."""
        z = strong(self.evaluator.start)
        state = strong(self.transform.init(z))
        saved = self.memory.recall(self.stage)
        if saved is None:
            return z, state, 0, 0
        own = saved.own
        self.evaluator.restore(saved)
        self.history[:], self.idle = own["history"], own["idle"]
        self.converged = own["converged"]
        if "loss" in own:
            shapes = self.evaluator.shapes(z, self.mask)
            best = saved.tree("best", (z, z, lean(shapes[2])))
            self.best = Iterate(best[0], own["loss"], best[1], best[2])
        return saved.tree("z", z), saved.tree("optimiser", state), own["back"], own["done"]

    def _put_by(self, z: Array, state: Any, back: int, done: int, ended: bool = False) -> None:
        """Offer what can be gone on with from: now, and in the middle of sampling."""
        own = {"history": list(self.history), "idle": self.idle, "back": back, "done": done}
        own["converged"] = self.converged
        trees = {"z": z, "optimiser": state}
        if self.best is not None:
            own["loss"] = self.best.loss
            trees["best"] = (self.best.z, self.best.gradient, lean(self.best.prediction))

        def put_by() -> None:
            record = kept_with(self.evaluator.snapshot(), trees, own)
            self.memory.offer(self.stage, record, ended)

        self.evaluator.put_by = put_by
        put_by()

    def _evaluate(self, z: Array) -> Iterate:
        began = time.perf_counter()
        loss, gradient, prediction, facts = self.evaluator.at(z, self.mask)
        point = Iterate(z, float(loss), gradient, prediction)
        self._check_finite(point)
        if facts["resampled"] and self.problem.entropies:
            self.best = None  # its free energies count from where other samples were drawn
        self._keep(point)
        record = {
            "iteration": len(self.history),
            "loss": point.loss,
            "parameters": scalars(self.problem.values(self.evaluator.unravel(z))),
            "gradient_norm": float(jnp.linalg.norm(gradient)) / self.problem.data_points,
            **facts,
            "seconds": time.perf_counter() - began,
        }
        self.history.append(record)
        self.evaluator.watch("iteration", record)
        return point

    def _check_finite(self, point: Iterate) -> None:
        """Refuse what no optimiser can go on from, by the names of those that made it so."""
        for what, values in (("loss", point.loss), ("gradient", point.gradient)):
            if not np.all(np.isfinite(values)):
                lost = [
                    target.label
                    for target, value in zip(
                        self.problem.targets, point.prediction.values, strict=True
                    )
                    if not np.all(np.isfinite(value))
                ]
                by = f": {', '.join(lost)} came out as none" if lost else ""
                raise SimulationError(
                    f"the {what} is not a finite number in iteration {len(self.history)}{by}",
                    advice="other starting values, or bounds; sqrt, log or |.| at zero in a model",
                )

    def _keep(self, point: Iterate) -> None:
        """The best so far, and for how long it has been about that."""
        gain = max(GAIN, float(jnp.finfo(point.z.dtype).eps))
        former = np.inf if self.best is None else self.best.loss
        self.idle = 0 if point.loss < former - gain * min(abs(former), 1e300) else self.idle + 1
        if self.best is None or point.loss < former:
            self.best = point

    def _ends(self, point: Iterate) -> bool:
        """Whether the slope vanishes, or nothing more is gained."""
        count = self.problem.data_points
        if self.tol is not None:
            self.converged = float(jnp.linalg.norm(point.gradient)) / count <= self.tol
            return self.converged
        slope = float(jnp.linalg.norm(point.gradient * jnp.maximum(1.0, jnp.abs(point.z))))
        slope /= max(count, abs(point.loss))
        self.converged = slope <= TOL
        if self.searches and self.idle >= IDLE:
            self.converged = slope <= FLAT
            return True
        return self.converged


def searches(state: Any) -> bool:
    """Whether an optimiser evaluates the loss on its own, and steps back where it is infinite."""
    kinds = (optax.ScaleByZoomLinesearchState, optax.ScaleByBacktrackingLinesearchState)
    is_one = lambda x: isinstance(x, kinds)  # noqa: E731
    return any(is_one(x) for x in jax.tree.leaves(state, is_leaf=is_one))

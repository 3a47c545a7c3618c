"""A fit whose answer is a posterior."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import numpy as np

from .._adjoint import Reweight
from .._errors import ConfigError
from .._fit import (
    FORGETFUL,
    NUTS,
    AbstractMethod,
    FitResult,
    Memory,
    PosteriorResult,
    explored,
    fit,
    posterior,
)
from .._store.draws import write_draws
from ._fits import AbstractFitTask
from ._horizons import free_values
from ._series import series
from ._session import Session

if TYPE_CHECKING:
    from ._experiment import Experiment


class PosteriorFit(AbstractFitTask):
    """The most likely parameters by `diffsim.fit`, then their posterior by `diffsim.posterior`.

    `method`: `NUTS` (default), `SVI` or `Laplace` with its options; `steps`, `tol`: of the fit, by
    L-BFGS; `starts`: points from which the fit and the posterior's mode are sought.

    `parameters` in result.json are posterior means with standard deviations; `measured.posterior`
    has the table, posterior.h5 the draws.
    """

    method: AbstractMethod = eqx.field(default_factory=NUTS)
    steps: int = 200
    tol: float = 1e-7
    starts: int = 8

    def check_own(self, experiment: Experiment) -> None:
        if isinstance(experiment.adjoint, Reweight):
            raise ConfigError(
                "samples reweighted from one θ do not serve all that a posterior visits",
                key="adjoint",
                allowed="an adjoint that runs the trajectory",
            )
        self.method.check()

    def solve(
        self, experiment: Experiment, watch: Any, memory: Memory = FORGETFUL, **further: Any
    ) -> FitResult:
        again, former = "former" in further, further.pop("former", None)
        problem, key = experiment.problem, jax.random.key(experiment.seed)

        def start() -> dict[str, Any]:
            if former is not None:
                return _plain({name: former.values[name] for name in problem.free})
            watch("compiling", {"what": "the search for a start"})
            options: dict[str, Any] = {"adjoint": experiment.adjoint, "starts": self.starts}
            found = explored(problem, key=key, **options, **further)
            return {name: found.parameters[name].init for name in problem.free}

        like = jax.tree.map(np.asarray, free_values(problem))
        problem = problem.starting_at(memory.once("refit" if again else "start", like, start))
        return fit(
            problem,
            steps=self.steps,
            tol=self.tol,
            adjoint=experiment.adjoint,
            key=key,
            chunk=experiment.chunk,
            watch=watch,
            memory=memory,
            **further,
        )

    def complete(
        self,
        experiment: Experiment,
        session: Session,
        watch: Any,
        result: FitResult,
        pieces: dict[str, Any],
        memory: Memory,
    ) -> dict[str, Any]:
        problem = experiment.problem.starting_at(_plain(result.values))
        session.console.say("sampling the posterior …")
        found = posterior(
            problem,
            self.method,
            adjoint=experiment.adjoint,
            key=jax.random.key(experiment.seed),
            starts=self.starts,
            watch=watch,
            memory=memory.within("posterior"),
        )
        watch.close()
        session.console.say(_sentence(found))
        units = {name: p.unit for name, p in problem.parameters.items()}
        write_draws(session.directory.path / "posterior.h5", found.draws, units)
        shown = series(experiment, result, found)
        measured = pieces["measured"] | ({"series": shown} if shown else {})
        measured["converged"] = found.converged
        measured["posterior"] = _summary(self.method, found)
        parameters = pieces["parameters"] | _parameters(found, units)
        return pieces | {"measured": measured, "parameters": parameters}


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {name: np.asarray(value) for name, value in values.items()}


def _parameters(found: PosteriorResult, units: dict[str, str | None]) -> dict[str, Any]:
    """Single numbers with their posterior means and standard deviations."""
    return {
        row["name"]: {
            "value": row["mean"],
            "stderr": row["sd"],
            "unit": units[row["name"]] or "1",
            "q05": row["q05"],
            "q95": row["q95"],
        }
        for row in found.table()
        if row["name"] in units
    }


def _summary(method: AbstractMethod, found: PosteriorResult) -> dict[str, Any]:
    chains, draws = next(iter(found.draws.values())).shape[:2]
    return {
        "method": type(method).__name__,
        "chains": chains,
        "draws": draws,
        "table": found.table(),
        "divergences": found.divergences,
        "converged": found.converged,
        "reason": found.reason,
        "seconds": found.seconds,
        **found.stats,
    }


def _sentence(found: PosteriorResult) -> str:
    rows = found.table()
    worst, least = max(r["rhat"] for r in rows), min(r["ess"] for r in rows)
    known = f"R-hat up to {worst:.3f}, at least {least:.0f} effective draws, "
    known += f"{found.divergences} divergences"
    return known if found.converged else f"note: not converged: {found.reason}"

"""How far an experiment's gradient can be trusted: its growth along the run, and its audit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax

from .._audit import audit
from .._errors import ConfigError
from .._fit import FitResult
from .._growth import growth
from .._simulation import AbstractFlow
from ._session import Session

if TYPE_CHECKING:
    from ._experiment import Experiment


def trust(experiment: Experiment, session: Session, result: FitResult) -> dict[str, Any]:
    """`measured.growth` of a fit through trajectories with fixed steps: by how much a perturbation
    of the first condition grows at the fitted parameters, with a warning where the run is longer
    than its gradient means anything."""
    simulation = experiment.simulation
    adaptive = isinstance(simulation, AbstractFlow) and simulation.adaptive
    if result.evaluator.sampled or adaptive:
        return {}
    problem, theta = experiment.problem, result.theta
    states = problem.states(theta, jax.random.key(experiment.seed))
    state = jax.tree.map(lambda x: x[0] if eqx.is_array(x) else x, states)
    try:
        found = growth(simulation, problem.params(theta), state, schedule=problem.schedule)
    except ConfigError:  # nothing evolves that a perturbation could change, or it does not stay
        return {}
    facts: dict[str, Any] = {**found._asdict(), "chaotic": found.chaotic}
    if found.warning is not None:
        facts["warning"] = found.warning
        session.console.say(f"warning: {found.warning}")
    return {"growth": facts}


def audited(experiment: Experiment, session: Session, result: FitResult | None) -> dict[str, Any]:
    """The audit of the gradient, at the starting parameters: at a minimum there is little of it."""
    session.console.say("auditing the gradient")
    adjoint = experiment.adjoint if result is None else result.evaluator.adjoint
    found = audit(experiment.problem, adjoint=adjoint, key=jax.random.key(experiment.seed))
    for line in str(found).splitlines():
        session.console.say(line)
    return found.as_dict()

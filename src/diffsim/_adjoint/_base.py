"""What every strategy shares: one step of the time loop, its health, the contract."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from .._errors import ConfigError
from .._schedule import SavePlan
from .._simulation import RESULTS, AbstractSimulation, Params, State

Observe = Callable[[AbstractSimulation, Params, State], dict[str, Array]]


class Health(eqx.Module):
    """The first failure of a run: its code, and the number of the step that made it (-1: none)."""

    result: RESULTS
    first_bad_step: Array

    @classmethod
    def good(cls) -> Health:
        return cls(RESULTS.successful, jnp.asarray(-1, jnp.int32))

    def after(self, status: RESULTS, step: Array) -> Health:
        """The health after one more step; the first failure stays."""
        still_good = self.first_bad_step < 0
        failed = status != RESULTS.successful
        return Health(
            RESULTS.where(still_good, status, self.result),
            jnp.where(still_good & failed, jnp.asarray(step, jnp.int32), self.first_bad_step),
        )


class Trajectory(eqx.Module):
    """What a strategy returns: the final state, what was saved (leading axis: saves), the health,
    and what is particular to the strategy."""

    state: State
    observables: dict[str, Array]
    health: Health
    extra: dict[str, Any] = eqx.field(default_factory=dict)


class AbstractAdjoint(eqx.Module):
    """A strategy: runs the time loop in a way that fixes how its gradient is computed.

    `modes` are the differentiation modes it supports, of which optimisers ask for the one they
    need; `needs` is what a simulation must be; `why` is its sentence in reports; `exact`: whether
    its gradient is that of the computed trajectory, to rounding.
    """

    modes: ClassVar[tuple[str, ...]]
    needs: ClassVar[type[AbstractSimulation]]
    why: ClassVar[str]
    exact: ClassVar[bool] = True

    @property
    def twice(self) -> bool:
        """Whether its gradient can be differentiated again, forward over reverse."""
        return True

    @classmethod
    def takes(cls, sim: AbstractSimulation) -> bool:
        """Whether a simulation has what this strategy needs."""
        return isinstance(sim, cls.needs)

    def lack(self, sim: AbstractSimulation) -> str:
        """What a simulation that it refuses lacks."""
        kind = type(sim).__name__
        return f"{type(self).__name__} needs an {self.needs.__name__} and {kind} is none"

    def remedy(self, sim: AbstractSimulation) -> str:
        """How a simulation that it refuses may become one that it takes."""
        del sim
        return ""

    @abstractmethod
    def loop(
        self,
        sim: AbstractSimulation,
        params: Params,
        state: State,
        plan: SavePlan,
        observe: Observe,
    ) -> Trajectory:
        """Run `plan` from `state`, observing after every block."""

    def check(self, sim: AbstractSimulation) -> None:
        """Refuse, before tracing, a simulation that lacks what this strategy needs."""
        if self.takes(sim):
            return
        raise ConfigError(
            f"{self.lack(sim)}{self.remedy(sim)}",
            key="adjoint",
            allowed=[a.__name__ for a in known_adjoints() if a.takes(sim)],
            suggestion="Direct",  # which takes any simulation
        )


def known_adjoints() -> list[type[AbstractAdjoint]]:
    """The strategies that exist, for error messages."""
    return sorted(AbstractAdjoint.__subclasses__(), key=lambda a: a.__name__)


def once(fn: Callable[..., Any], name: str) -> Callable[..., Any]:
    """`fn`, whose tangents are refused: they would vanish in silence, or fail further on."""
    refusing = jax.custom_jvp(fn)

    @refusing.defjvp
    def rule(primals, tangents):
        del primals, tangents
        raise ConfigError(
            f"{name} has no second derivatives",
            key="adjoint",
            allowed="RecursiveCheckpoint, Direct",
        )

    return refusing


def march(
    sim: AbstractSimulation, params: Params, carry: tuple[State, Health], first: Any, count: int
) -> tuple[State, Health]:
    """`count` steps by one scan; the next step has the number `first + 1`."""

    def tick(carry, k):
        state, health = carry
        state = sim.step(params, state)
        return (state, health.after(sim.status(jax.lax.stop_gradient(state)), first + k + 1)), None

    return jax.lax.scan(tick, carry, jnp.arange(count, dtype=jnp.int32))[0]


def march_blocks(
    sim: AbstractSimulation,
    params: Params,
    state: State,
    plan: SavePlan,
    see: Callable[[State], PyTree],
) -> tuple[State, Health, PyTree]:
    """All blocks of a plan, with `see(state)` stacked after each; differentiable as it stands."""

    def block(carry, b):
        carry = march(sim, params, carry, b * plan.stride, plan.stride)
        return carry, see(carry[0])

    blocks = jnp.arange(plan.blocks, dtype=jnp.int32)
    (state, health), seen = jax.lax.scan(block, (state, Health.good()), blocks)
    return state, health, seen


def arrays(tree: PyTree) -> PyTree:
    """The same tree with Python's floats as arrays, which have a gradient."""
    return jax.tree.map(lambda x: jnp.asarray(x) if isinstance(x, float) else x, tree)


def inexact(tree: PyTree) -> PyTree:
    """The differentiable leaves of a tree, None elsewhere."""
    return eqx.filter(tree, eqx.is_inexact_array)


def zeros_of(tree: PyTree) -> PyTree:
    """A zero cotangent for the differentiable leaves of a tree."""
    return jax.tree.map(jnp.zeros_like, inexact(tree))


def add(a: PyTree, b: PyTree) -> PyTree:
    """Sum of two cotangents of the same tree, either of which may lack leaves."""

    def one(x, y):
        return y if x is None else x if y is None else x + y

    return jax.tree.map(one, a, b, is_leaf=lambda x: x is None)


def filled(
    cotangents: PyTree,
    observe: Observe,
    sim: AbstractSimulation,
    params: Params,
    state: State,
    plan: SavePlan,
) -> PyTree:
    """Cotangents of all that was saved (leading axis: blocks), zeros where nobody asked for one."""
    shapes = eqx.filter_eval_shape(lambda p, s: inexact(observe(sim, p, s)), params, state)
    return jax.tree.map(
        lambda shape, ct: jnp.zeros((plan.blocks, *shape.shape), shape.dtype) if ct is None else ct,
        shapes,
        cotangents,
    )


def pull_observation(
    observe: Observe, sim: AbstractSimulation, params: Params, state: State, cotangent: PyTree
) -> tuple[Params, State]:
    """What one observation, made at `state`, adds to the cotangents of parameters and state."""
    _, transpose = eqx.filter_vjp(lambda p, s: inexact(observe(sim, p, s)), params, state)
    ct_params, ct_state = transpose(cotangent)
    return ct_params, inexact(ct_state)

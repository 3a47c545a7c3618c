"""The contract of every simulation: init and step are the dynamics, the rest is what they show."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray, PyTree

from ._errors import ConfigError

Params = PyTree
State = PyTree


class Axis(NamedTuple):
    """An axis of an observable, for the files that hold it: `name`; `points`, where its entries are
    or what they are called; `offset`, along space alone: where in its cell a point is, 0 at the
    lower face, ½ at the centre, 1 at the upper face."""

    name: str
    points: Any
    offset: float | None = None


class RESULTS(eqx.Enumeration):
    """How a simulation ended; each message says what to do."""

    successful = ""
    nonfinite = (
        "a non-finite number appeared; reduce the time step, and look at the start (atoms that "
        "overlap, say) and at the parameters"
    )
    unstable = (
        "the motion blew up (a particle crossed a tenth of the cutoff in one step); reduce the "
        "time step, or start from atoms that do not overlap"
    )
    neighbour_overflow = (
        "the neighbour list overflowed; enlarge it with simulation.enlarge(state), or run through "
        "diffsim.fit or the command line, which do so and repeat the chunk"
    )
    box_too_small = (
        "the box shrank under twice the cutoff; take more atoms, a shorter cutoff or a lower "
        "pressure"
    )
    cfl_exceeded = "the CFL limit was exceeded; reduce the time step or coarsen the grid"
    max_steps_reached = (
        "the solver used up max_steps; raise max_steps, loosen rtol and atol, or take a solver for "
        "stiff equations (diffrax.Kvaerno5)"
    )
    solver_failed = (
        "the solver could not go on (its implicit equation had no solution, or its step fell to "
        "nothing); loosen rtol and atol, or look for a singularity of the vector field"
    )
    not_converged = (
        "the run did not end at a fixed point, whose derivative Implicit takes; run longer, or "
        "take another adjoint (RecursiveCheckpoint) for a run that does not settle"
    )


RESULT_NAMES = (
    "successful",
    "nonfinite",
    "unstable",
    "neighbour_overflow",
    "box_too_small",
    "cfl_exceeded",
    "max_steps_reached",
    "solver_failed",
    "not_converged",
)


class AbstractSimulation(eqx.Module):
    """x_{t+1} = step(θ, x_t): a map from a state to the next, with parameters θ as an explicit
    tree.

    A subclass gives `init`, `step` and `observe`, all pure and differentiable in `params` and
    `state` in both modes. States are floating-point pytrees whose structure and shapes `step`
    keeps. `rests`: whether a run may come to a fixed point; motion without friction, and noise,
    never do.
    """

    rests: ClassVar[bool] = True

    @abstractmethod
    def init(self, params: Params, key: PRNGKeyArray, **conditions: Any) -> State:
        """A state to start from; `conditions` are initial values and control variables."""

    @abstractmethod
    def step(self, params: Params, state: State) -> State:
        """One step: pure, same structure and shapes."""

    @abstractmethod
    def observe(self, params: Params, state: State) -> dict[str, Array]:
        """Named observables of one state."""

    def units(self) -> dict[str, str]:
        """The unit of each observable and parameter that has one, as pint understands it."""
        return {}

    def check(self, params: Params, **conditions: Any) -> None:
        """Host side: refuse conditions that cannot be right, before anything is traced; arrays may
        carry a batch axis."""

    def traceable_init(self) -> bool:
        """Whether `init` works inside jit: not where it allocates neighbour structures."""
        return True

    def time_step(self) -> float | None:
        """The fixed time step, or None when the simulation has no time of its own."""
        return None

    def time(self, state: State) -> Any:
        """The time of a state by its own clock; 0 where it has none."""
        del state
        return 0.0

    def at_time(self, state: State, t: Any) -> State:
        """The state with its clock set to t, where it has one: a schedule in time starts there."""
        del t
        return state

    def variables(self, state: State) -> PyTree:
        """The leaves of a state that evolve and that the rest follows from: what a perturbation or
        a start to be found changes. Default: all floating-point ones."""
        return eqx.filter(state, eqx.is_inexact_array)

    def with_variables(self, state: State, variables: PyTree) -> State:
        """The state with other `variables`; what it caches of them is for `prepare`."""
        every = eqx.filter(state, eqx.is_inexact_array)
        if jax.tree.structure(variables) == jax.tree.structure(every):
            return eqx.combine(variables, state)
        leaves = lambda state: jax.tree.leaves(self.variables(state))  # noqa: E731
        return eqx.tree_at(leaves, state, jax.tree.leaves(variables))

    def prepare(self, params: Params, state: State) -> State:
        """Recompute what the state caches of `params` (forces, say). `solve` calls it once."""
        del params
        return state

    def status(self, state: State) -> RESULTS:
        """The health of a state, as data: never an exception."""
        finite = jnp.asarray(True)
        for leaf in jax.tree.leaves(eqx.filter(state, eqx.is_inexact_array)):
            finite = finite & jnp.all(jnp.isfinite(leaf))
        return RESULTS.where(finite, RESULTS.successful, RESULTS.nonfinite)

    def enlarge(self, params: Params, state: State) -> State:
        """Host side: more room for what overflowed (a neighbour list). No-op where nothing can."""
        del params
        return state

    def room(self, state: State) -> tuple[int, ...]:
        """What `enlarge` has made larger in such a state beyond the shapes of its arrays, for a
        restart to keep."""
        del state
        return ()

    def with_room(self, state: State, room: tuple[int, ...]) -> State:
        """Host side: the state's structure with that room, for the arrays of a restart."""
        del room
        return state

    def choices(self, state: State) -> dict[str, str]:
        """What the simulation chose by itself for such a state, by name, for the record of a
        run."""
        del state
        return {}

    def pullback(self, params: Params, state: State, cotangent: State) -> tuple[Params, State]:
        """(∂step/∂θ)ᵀ λ and (∂step/∂x)ᵀ λ at `state`; backends override it where they can be
        faster.

        `cotangent` has the inexact leaves of a state (None elsewhere), and so have the results.
        """

        def stepped(params, state):
            return eqx.filter(self.step(params, state), eqx.is_inexact_array)

        _, transpose = eqx.filter_vjp(stepped, params, state)
        return transpose(cotangent)


class AbstractReversible(AbstractSimulation):
    """A simulation whose step has an exact inverse, so that no state need be stored for a gradient.

    `to_exact` maps a state to a representation in which `exact_step` and `exact_unstep` undo each
    other to the last bit. The default is the state itself, for maps that are exact as they stand.
    """

    @abstractmethod
    def unstep(self, params: Params, state: State) -> State:
        """The inverse of `step`, to rounding."""

    def to_exact(self, params: Params, state: State, steps: int) -> PyTree:
        """The state in the representation in which `steps` steps are invertible to the bit."""
        del params, steps
        return state

    def same(self, exact: PyTree, other: PyTree) -> Array:
        """Whether two exact states are equal to the bit."""
        data = [jnp.asarray(True)]
        for a, b in zip(*map(jax.tree.leaves, (exact, other)), strict=True):
            data.append(jnp.all(a == b))
        return jnp.all(jnp.stack(data))

    def from_exact(self, exact: PyTree) -> State:
        """Back to the floating-point state."""
        return exact

    def exact_step(self, params: Params, exact: PyTree) -> PyTree:
        """`step` in the exact representation."""
        return self.step(params, exact)

    def exact_unstep(self, params: Params, exact: PyTree) -> PyTree:
        """The inverse of `exact_step`, to the last bit."""
        return self.unstep(params, exact)


def need_64_bit_integers() -> None:
    """Refuse an exact representation in 64 bits where JAX has only 32."""
    if not jax.config.jax_enable_x64:  # pyright: ignore[reportAttributeAccessIssue]
        raise ConfigError(
            "Reversible needs 64-bit integers",
            key="adjoint",
            allowed='JAX_ENABLE_X64=1 or jax.config.update("jax_enable_x64", True); or '
            "RecursiveCheckpoint",
        )


class AbstractFlow(AbstractSimulation):
    """dy/dt = f(t, y, args): adaptive solvers and continuous adjoints apply."""

    @abstractmethod
    def vector_field(self, t: Any, y: PyTree, args: Any) -> PyTree:
        """Diffrax's own signature; args are the parameters."""

    @property
    def adaptive(self) -> bool:
        """Whether the solver chooses its steps, so that schedules are in time."""
        return False

    @property
    def may_end(self) -> bool:
        """Whether a run can end before its schedule does, by an event."""
        return False

    @abstractmethod
    def integrate(
        self,
        params: Params,
        state: State,
        times: Sequence[float] | Array,
        adjoint: Any,
        end: float | None = None,
    ) -> Integral:
        """Run from the state's time through `times` to `end` (default: the last of them), the
        gradient taken by `adjoint`."""


class Integral(eqx.Module):
    """What `AbstractFlow.integrate` returns: the states at the times asked for (leading axis) and
    at the end, how it ended after how many steps, and what the solver counts."""

    states: State
    final: State
    result: RESULTS
    steps: Array
    stats: dict[str, Array]

    @property
    def first_bad_step(self) -> Array:
        """The number of steps after which it failed, -1 where it did not."""
        good = self.result == RESULTS.successful
        return jnp.where(good, -1, self.steps.astype(jnp.int32))


class AbstractEquilibrium(AbstractSimulation):
    """A sampler of exp(-u(θ, x)): averages can be reweighted from one θ to another."""

    rests: ClassVar[bool] = False

    @abstractmethod
    def reduced_energy(self, params: Params, state: State) -> Array:
        """u = U/kT, U the energy whose gradient drives the sampler. Shape ()."""

    def sample(self, state: State) -> State:
        """What is kept of a state as a sample: the state, with what makes reweighting it cheap."""
        return state


class FunctionSimulation(AbstractSimulation):
    """x_{t+1} = step(θ, x_t) for a user's own function: every adjoint that fits applies.

    **Arguments:** `step_fn(params, state) -> state`; `observe_fn(params, state) -> {name: array}`
    (default: the state itself as `state`); `init_fn(params, key, **conditions) -> state` (default:
    the condition `state`); `dt`, the time a step takes, for schedules in time.
    """

    step_fn: Callable[[Params, State], State]
    observe_fn: Callable[[Params, State], dict[str, Array]] | None = None
    init_fn: Callable[..., State] | None = None
    dt: float | None = None
    unit_names: dict[str, str] = eqx.field(default_factory=dict, static=True)

    def init(self, params: Params, key: PRNGKeyArray, **conditions: Any) -> State:
        if self.init_fn is None:
            return conditions["state"]
        return self.init_fn(params, key, **conditions)

    def step(self, params: Params, state: State) -> State:
        return self.step_fn(params, state)

    def observe(self, params: Params, state: State) -> dict[str, Array]:
        if self.observe_fn is None:
            return {"state": state}
        return self.observe_fn(params, state)

    def units(self) -> dict[str, str]:
        return self.unit_names

    def time_step(self) -> float | None:
        return self.dt

"""dy/dt = f(t, y, θ) by Diffrax's solvers, with steps that are fixed or follow the error."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray, PyTree

from .._errors import ConfigError
from .._simulation import RESULTS, AbstractFlow, Integral
from ._adjoints import diffrax_adjoint
from ._checks import check_field, checked_tolerance, checked_y0, clock_type, first_start, promoted
from ._lanes_step import rk_step
from ._newton import Guarded, both_modes, dependable
from ._observe import observed, start_of


class FlowState(eqx.Module):
    """y at the time `start` + `step` dt; `cache`: what the solver carries to its next step."""

    y: PyTree
    start: Array
    step: Array
    cache: PyTree = None


class DifferentialEquation(AbstractFlow):
    """dy/dt = f(t, y, θ), y(t₀) = y₀, by any of Diffrax's solvers.

    With `dt` the steps are fixed: the time loop is ours, and every adjoint applies. Without, they
    follow the error (Diffrax's PID controller: local error below atol + rtol |y|), and the gradient
    is Diffrax's own under the same names: `RecursiveCheckpoint` (default), `Direct`,
    `ForwardMode`, `Backsolve`. A gradient's error is typically 4 to 25 times that of the solution.

    **Arguments:**

    - `vector_field(t, y, args)`: as Diffrax takes it; args is the tree of parameters. A system of
      `diffsim.ode` names its components; Diffrax's terms work too (split and implicit-explicit
      solvers).
    - `solver`: `diffrax.Tsit5()` (default), `Dopri8()` for small tolerances, `Kvaerno5()` for stiff
      equations.
    - `dt`: the fixed step, in the equation's time.
    - `rtol`, `atol`: of the step control, and of an implicit solver's equations; `controller`: any
      other of Diffrax's in their place.
    - `max_steps`: more are a failure. The memory of a gradient grows with it (`Direct`) or its root
      (`RecursiveCheckpoint`): see `tightened`.
    - `event`: a `diffrax.Event`; the run ends there (`stats["event_time"]`), and what would be
      saved later is NaN.
    - `initial(params)`: y₀ where it depends on parameters; else it is the condition `y0`.
    - `components`: names of the entries of y (n,), each an observable beside `y`.
    - `observe_fn(t, y, args)`: further observables. `unit_names`: units of observables and
      parameters by their names.

    `init(params, key, y0=, t0=0)`: y0 any pytree of floating-point arrays.
    """

    field: Any
    solver: diffrax.AbstractSolver
    dt: float | None = eqx.field(static=True)
    rtol: float = eqx.field(static=True)
    atol: float = eqx.field(static=True)
    controller: diffrax.AbstractStepSizeController | None
    max_steps: int = eqx.field(static=True)
    event: diffrax.Event | None
    initial: Callable[[PyTree], PyTree] | None
    components: tuple[str, ...] = eqx.field(static=True)
    observe_fn: Callable[..., dict[str, Array]] | None
    unit_names: dict[str, str] = eqx.field(static=True)

    def __init__(
        self,
        vector_field: Any,
        solver: diffrax.AbstractSolver | None = None,
        *,
        dt: float | None = None,
        rtol: float = 1e-6,
        atol: float = 1e-9,
        controller: diffrax.AbstractStepSizeController | None = None,
        max_steps: Any = 4096,
        event: diffrax.Event | None = None,
        initial: Callable[[PyTree], PyTree] | None = None,
        components: Sequence[str] = (),
        observe_fn: Callable[..., dict[str, Array]] | None = None,
        unit_names: dict[str, str] | None = None,
    ):
        self.field = vector_field
        self.rtol, self.atol = checked_tolerance("rtol", rtol), checked_tolerance("atol", atol)
        solver = diffrax.Tsit5() if solver is None else solver
        chosen = dependable(solver, self.rtol, self.atol)
        self.solver = chosen if dt is None else both_modes(chosen)
        self.dt, self.controller = None if dt is None else float(dt), controller
        self.max_steps, self.event, self.initial = max_steps, event, initial
        self.components = tuple(components) or tuple(getattr(vector_field, "components", ()))
        self.observe_fn, self.unit_names = observe_fn, dict(unit_names or {})

    def __check_init__(self):
        if not (callable(self.field) or self._has_terms()):
            raise ConfigError("must be a function of (t, y, args)", key="vector_field")
        if not isinstance(self.solver, diffrax.AbstractSolver):
            raise ConfigError("must be one of Diffrax's", key="solver", value=self.solver)
        if self.dt is not None and not (math.isfinite(self.dt) and self.dt > 0):
            raise ConfigError("must be positive and finite", key="dt", value=self.dt)
        if not isinstance(self.max_steps, int) or self.max_steps < 1:
            raise ConfigError(
                "must be a whole number of at least 1", key="max_steps", value=self.max_steps
            )
        if self.dt is None and not isinstance(self.solver, diffrax.AbstractAdaptiveSolver):
            raise ConfigError(
                f"{type(self.solver).__name__} estimates no error, so it cannot choose its steps",
                key="solver",
                allowed="a fixed step, dt=; or diffrax.Tsit5, Dopri5, Dopri8, Kvaerno5",
            )
        if {"y", "t"} & set(self.components) or len(set(self.components)) < len(self.components):
            raise ConfigError(
                "must be different names, none of them y or t (the whole state, the time)",
                key="components",
                value=self.components,
            )
        if self.dt is not None and self.event is not None:
            raise ConfigError("needs adaptive steps", key="event", allowed="dt=None")

    def _has_terms(self) -> bool:
        """Whether Diffrax's own terms were given in place of a function."""
        return isinstance(self.field, (diffrax.AbstractTerm, tuple))

    @property
    def _tableau(self) -> diffrax.ButcherTableau | None:
        """The explicit method whose steps we take ourselves; None: they are Diffrax's."""
        explicit = isinstance(self.solver, diffrax.AbstractERK) and not self._has_terms()
        tableau = self.solver.tableau if explicit else None  # pyright: ignore
        return tableau if isinstance(tableau, diffrax.ButcherTableau) else None

    @property
    def adaptive(self) -> bool:
        return self.dt is None

    @property
    def terms(self) -> PyTree:
        """What Diffrax integrates."""
        return self.field if self._has_terms() else diffrax.ODETerm(self.field)  # pyright: ignore

    def vector_field(self, t: Any, y: PyTree, args: Any) -> PyTree:
        if self._has_terms():
            return diffrax.MultiTerm(*jax.tree.leaves(self.field, is_leaf=_is_term)).vf(t, y, args)
        return self.field(t, y, args)

    @property
    def may_end(self) -> bool:
        return self.event is not None

    def init(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, params: PyTree, key: PRNGKeyArray | None = None, *, y0: Any = None, t0: Any = 0.0
    ) -> FlowState:
        del key
        if y0 is None:
            y0 = start_of(self.field, self.initial, params)
        y = checked_y0(y0)
        y = y if self._has_terms() else promoted(self.field, y, params)
        clock = jnp.asarray(t0, clock_type(y))
        return self.prepare(params, FlowState(y, clock, jnp.zeros((), jnp.int32)))

    def check(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, params: PyTree, *, y0: Any = None, t0: Any = 0.0
    ) -> None:
        if y0 is not None and self.initial is not None:
            raise ConfigError(
                "initial= gives the start already", key="conditions.y0", allowed="one of the two"
            )
        own = start_of(self.field, self.initial, params) if y0 is None else None
        self._check_field(params, checked_y0(own) if y0 is None else first_start(y0))

    def _check_field(self, params: PyTree, y: PyTree) -> None:
        if not self._has_terms():
            check_field(self.field, y, params, self.components)

    def time(self, state: FlowState) -> Array:
        """When the state is, in the equation's time."""
        if self.dt is None:
            return state.start
        return state.start + state.step.astype(state.start.dtype) * self.dt

    def variables(self, state: FlowState) -> PyTree:
        return state.y

    def at_time(self, state: FlowState, t: Any) -> FlowState:
        start = jnp.asarray(t, state.start.dtype)
        return FlowState(state.y, start, jnp.zeros_like(state.step), state.cache)

    def time_step(self) -> float | None:
        return self.dt

    def units(self) -> dict[str, str]:
        return self.unit_names

    def observe(self, params: PyTree, state: FlowState) -> dict[str, Array]:
        time = self.time(state)
        seen = observed(self.field, self.components, time, state.y, params)
        return seen | (self.observe_fn(time, state.y, params) if self.observe_fn else {})

    def prepare(self, params: PyTree, state: FlowState) -> FlowState:
        self._check_field(params, state.y)
        if self.dt is None:
            return FlowState(state.y, state.start, state.step)
        t = self.time(state)
        if (tableau := self._tableau) is not None:
            cache = self.field(t, state.y, params) if tableau.fsal else None
        else:
            cache = self.solver.init(self.terms, t, t + self.dt, state.y, params)
        return FlowState(state.y, state.start, state.step, cache)

    @property
    def explicit(self) -> bool:
        """Whether a step is an explicit formula, which needs no equation solved."""
        return self._tableau is not None

    def increment(self, params: PyTree, t: Any, y: PyTree, h: Any) -> PyTree:
        """Ψ_h(t, y): what one explicit step of length h adds to y; h may be negative."""
        assert self._tableau is not None
        field = lambda t, y: self.field(t, y, params)  # noqa: E731
        after, _, _ = rk_step(self._tableau, field, t, y, h)
        return jax.tree.map(jnp.subtract, after, y)

    def step(self, params: PyTree, state: FlowState) -> FlowState:
        if self.dt is None:
            raise ConfigError("an adaptive solver has no step of its own", key="dt", value=None)
        t = self.time(state)
        if (tableau := self._tableau) is not None:
            field = lambda t, y: self.field(t, y, params)  # noqa: E731
            y, _, cache = rk_step(tableau, field, t, state.y, self.dt, state.cache)
            return FlowState(y, state.start, state.step + 1, cache)
        y, _, _, cache, result = self.solver.step(
            self.terms, t, t + self.dt, state.y, params, state.cache, jnp.asarray(False)
        )
        solved = result == diffrax.RESULTS.successful
        y = jax.tree.map(lambda x: jnp.where(solved, x, jnp.nan), y)
        return FlowState(y, state.start, state.step + 1, cache)

    def integrate(
        self,
        params: PyTree,
        state: FlowState,
        times: Sequence[float] | Array,
        adjoint: Any,
        end: float | None = None,
    ) -> Integral:
        start = self.time(state)
        ts = jnp.asarray(times, start.dtype)
        beyond = end is not None and bool(end > times[-1])
        every = jnp.append(ts, jnp.asarray(end, start.dtype)) if beyond else ts
        solution = diffrax.diffeqsolve(
            self.terms,
            self.solver,
            start,
            every[-1],
            self.dt,
            state.y,
            params,
            saveat=_saveat(every, self.event is not None),
            stepsize_controller=self._controller(ts),
            adjoint=diffrax_adjoint(adjoint, self.event),
            event=self.event,
            max_steps=self.max_steps if self.dt is None else None,
            throw=False,
        )
        return self._integral(solution, ts, start)

    def _controller(self, ts: Array | None = None) -> diffrax.AbstractStepSizeController:
        if self.dt is not None:
            return diffrax.ConstantStepSize()
        if self.controller is not None:
            return self.controller
        control = Guarded(inner=diffrax.PIDController(rtol=self.rtol, atol=self.atol))  # pyright: ignore
        # Between the steps of an implicit method Diffrax interpolates by a cubic, which is less
        # accurate than the steps; explicit ones have interpolants of their own order.
        if ts is not None and isinstance(self.solver, diffrax.AbstractImplicitSolver):
            return diffrax.ClipStepSizeController(control, step_ts=ts)
        return control

    def _integral(self, solution: diffrax.Solution, ts: Array, start: Array) -> Integral:
        """Diffrax's solution as ours; what comes after an event is NaN rather than infinite."""
        ys, ended = solution.ys, jnp.asarray(solution.t1)
        final = jax.tree.map(lambda y: y[-1], ys)
        stats = {k: v for k, v in solution.stats.items() if eqx.is_array(v)}
        if isinstance(solution.ts, (tuple, list)):
            (_, (ended,)), (ys, last) = solution.ts, ys  # pyright: ignore
            final = jax.tree.map(lambda y: y[0], last)
        if self.event is not None:
            stats["event_time"] = ended
            ys = jax.tree.map(lambda y: jnp.where(jnp.isfinite(y), y, jnp.nan), ys)
        zero = jnp.zeros((), jnp.int32)
        ys = jax.tree.map(lambda y: y[: ts.shape[0]], ys)
        states = jax.vmap(lambda y, t: FlowState(y, t, zero))(ys, ts)
        return Integral(
            states=states,
            final=FlowState(final, ended, zero),
            result=_result(solution.result, final),
            steps=solution.stats["num_steps"],
            stats=stats,
        )

    def tightened(self, params: PyTree, state: FlowState, schedule: Any) -> DifferentialEquation:
        """The same equation with `max_steps` half as much again as this run takes: then the memory
        of a gradient follows the steps taken. Host side."""
        times, end = schedule.times(), schedule.end
        run = eqx.filter_jit(lambda p, s: self.integrate(p, s, times, None, end).steps)
        taken = int(run(params, self.at_time(state, schedule.t0)))
        return DifferentialEquation(
            self.field,
            self.solver,
            rtol=self.rtol,
            atol=self.atol,
            controller=self.controller,
            max_steps=math.ceil(1.5 * taken) + 8,
            event=self.event,
            initial=self.initial,
            components=self.components,
            observe_fn=self.observe_fn,
            unit_names=self.unit_names,
        )

    def dense(self, params: PyTree, state: FlowState, t1: float) -> Callable[[Any], PyTree]:
        """y(t) at any t up to t1, by the solver's own interpolation; differentiable in both modes
        (`diffrax.DirectAdjoint`)."""
        t0 = self.time(state)
        solution = diffrax.diffeqsolve(
            self.terms,
            self.solver,
            t0,
            jnp.asarray(t1, t0.dtype),
            self.dt,
            state.y,
            params,
            saveat=diffrax.SaveAt(dense=True),
            stepsize_controller=self._controller(),
            adjoint=diffrax.DirectAdjoint(),
            max_steps=self.max_steps
            if self.dt is None
            else math.ceil(float(t1 - t0) / self.dt) + 1,
        )
        return solution.evaluate


def _saveat(ts: Array, end_too: bool) -> diffrax.SaveAt:
    """The times asked for; with the end as a second part where it is not the last of them."""
    if not end_too:
        return diffrax.SaveAt(ts=ts)
    return diffrax.SaveAt(subs=(diffrax.SubSaveAt(ts=ts), diffrax.SubSaveAt(t1=True)))


def _result(result: diffrax.RESULTS, final: PyTree) -> RESULTS:
    """Diffrax's ending in our words."""
    well = (result == diffrax.RESULTS.successful) | (result == diffrax.RESULTS.event_occurred)
    most = result == diffrax.RESULTS.max_steps_reached
    finite = jnp.asarray(True)
    for leaf in jax.tree.leaves(final):
        finite = finite & jnp.all(jnp.isfinite(leaf))
    ours = RESULTS.where(most, RESULTS.max_steps_reached, RESULTS.solver_failed)
    whole = RESULTS.where(finite, RESULTS.successful, RESULTS.nonfinite)
    return RESULTS.where(well, whole, ours)


def _is_term(x: object) -> bool:
    return isinstance(x, diffrax.AbstractTerm)

"""dy = f dt + g dW with fixed steps, its noise a function of key and step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax
from jaxtyping import Array, PRNGKeyArray, PyTree

from .._errors import ConfigError
from .._simulation import AbstractSimulation
from ._checks import check_field, checked_y0, first_start, slope_of
from ._newton import both_modes
from ._noise import normals
from ._observe import observed, start_of

MILSTEIN = (diffrax.ItoMilstein, diffrax.StratonovichMilstein)


class StochasticState(eqx.Module):
    """y (n,) at `start` + `step` dt; `key`: of the noise; `path`: a Brownian path in its place."""

    y: Array
    start: Array
    step: Array
    key: PRNGKeyArray
    path: diffrax.AbstractBrownianPath | None = None


class StochasticDifferentialEquation(AbstractSimulation):
    """dy = f(t, y, θ) dt + g(t, y, θ) dW (Itô), or ∘ dW (Stratonovich), with fixed steps.

    The time loop is a scan of ours, whose noise in step k is a function of the key and of k: a run
    that is split, resumed or differentiated by any adjoint (`Direct`, `RecursiveCheckpoint`,
    `ForwardMode`) meets the same path, and the gradient is that of the path.

    **Arguments:**

    - `drift(t, y, args)`: f, (n,); `diffusion(t, y, args)`: g, (n,) for `noise="diagonal"` (each
      component has its own dW), (n, m) for "general". A system with both (`OrnsteinUhlenbeck`) may
      stand for `drift` alone.
    - `dt`: the step.
    - `solver`: Diffrax's. Itô: `Euler` (strong order ½, weak 1), `ItoMilstein` (strong order 1 for
      diagonal and commutative noise; default of diagonal noise). Stratonovich: `EulerHeun`, `Heun`,
      `StratonovichMilstein`, and the stochastic Runge-Kutta methods `ShARK`, `SRA1`, `SEA`
      (additive noise, strong order 1.5), `SlowRK`, `GeneralShARK`, `SPaRK`.
    - `interpretation`: "ito" or "stratonovich", which the solver must be made for.
    - `initial`, `components`, `observe_fn`, `unit_names`: as in `DifferentialEquation`.

    `init(params, key, y0=, t0=0, path=None)`: `path`, such as a `diffrax.VirtualBrownianTree`,
    stands for the noise where runs of different steps are to see one path.
    """

    rests: ClassVar[bool] = False

    drift: Callable[..., Any]
    diffusion: Callable[..., Any]
    dt: float = eqx.field(static=True)
    solver: diffrax.AbstractSolver
    interpretation: str = eqx.field(static=True)
    noise: str = eqx.field(static=True)
    initial: Callable[[PyTree], PyTree] | None
    components: tuple[str, ...] = eqx.field(static=True)
    observe_fn: Callable[..., dict[str, Array]] | None
    unit_names: dict[str, str] = eqx.field(static=True)

    def __init__(
        self,
        drift: Callable[..., Any],
        diffusion: Callable[..., Any] | None = None,
        *,
        dt: float,
        solver: diffrax.AbstractSolver | None = None,
        interpretation: str = "ito",
        noise: str = "diagonal",
        initial: Callable[[PyTree], PyTree] | None = None,
        components: Sequence[str] = (),
        observe_fn: Callable[..., dict[str, Array]] | None = None,
        unit_names: dict[str, str] | None = None,
    ):
        if diffusion is None:
            diffusion = getattr(drift, "diffusion", None)
            if diffusion is None:
                raise ConfigError("must be given", key="diffusion")
        self.drift, self.diffusion, self.dt = drift, diffusion, float(dt)
        self.interpretation, self.noise, self.initial = interpretation, noise, initial
        self.solver = both_modes(_default(interpretation, noise) if solver is None else solver)
        self.components = tuple(components) or tuple(getattr(drift, "components", ()))
        self.observe_fn, self.unit_names = observe_fn, dict(unit_names or {})

    def __check_init__(self):
        if not (math.isfinite(self.dt) and self.dt > 0):
            raise ConfigError("must be positive and finite", key="dt", value=self.dt)
        for key, value, allowed in (
            ("noise", self.noise, ("diagonal", "general")),
            ("interpretation", self.interpretation, ("ito", "stratonovich")),
        ):
            if value not in allowed:
                raise ConfigError("no such choice", key=key, value=value, allowed=allowed)
        ito = self.interpretation == "ito"
        kind = diffrax.AbstractItoSolver if ito else diffrax.AbstractStratonovichSolver
        if not isinstance(self.solver, kind):
            raise ConfigError(
                f"{type(self.solver).__name__} is not made for {self.interpretation} equations",
                key="solver",
                allowed="diffrax.Euler, diffrax.ItoMilstein"
                if ito
                else "diffrax.EulerHeun, Heun, StratonovichMilstein, ShARK, SlowRK, GeneralShARK",
            )

    def init(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        params: PyTree,
        key: PRNGKeyArray,
        *,
        y0: Any = None,
        t0: Any = 0.0,
        path: diffrax.AbstractBrownianPath | None = None,
    ) -> StochasticState:
        y = checked_y0(start_of(self.drift, self.initial, params) if y0 is None else y0)
        clock = jnp.asarray(t0, jnp.result_type(y, float))
        return StochasticState(y, clock, jnp.zeros((), jnp.int32), key, path)

    def check(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, params: PyTree, *, y0: Any = None, t0: Any = 0.0, path: Any = None
    ) -> None:
        own = start_of(self.drift, self.initial, params) if y0 is None else None
        self._check_fields(params, checked_y0(own) if y0 is None else first_start(y0))

    def _check_fields(self, params: PyTree, y: Array) -> None:
        if y.ndim != 1:
            raise ConfigError("must be a vector (n,)", key="y0", value=y.shape)
        check_field(self._drift, y, params, self.components)
        shape = jnp.shape(slope_of(self.diffusion, y, params, key="diffusion"))
        wanted = y.shape if self.noise == "diagonal" else (y.size, *shape[1:2])
        if shape != wanted or len(shape) != (1 if self.noise == "diagonal" else 2):
            raise ConfigError(
                f"returns {shape} for a y of {y.shape}",
                key="diffusion",
                allowed='(n,) for noise="diagonal", (n, m) for noise="general"',
            )

    def _drift(self, t: Any, y: Array, args: Any) -> Array:
        return self.drift(t, y, args)

    def time(self, state: StochasticState) -> Array:
        """When the state is, in the equation's time."""
        return state.start + state.step.astype(state.start.dtype) * self.dt

    def variables(self, state: StochasticState) -> PyTree:
        return state.y

    def at_time(self, state: StochasticState, t: Any) -> StochasticState:
        gone = state.step.astype(state.start.dtype) * self.dt
        return eqx.tree_at(lambda s: s.start, state, jnp.asarray(t, gone.dtype) - gone)

    def time_step(self) -> float | None:
        return self.dt

    def units(self) -> dict[str, str]:
        return self.unit_names

    def prepare(self, params: PyTree, state: StochasticState) -> StochasticState:
        self._check_fields(params, state.y)
        return state

    def observe(self, params: PyTree, state: StochasticState) -> dict[str, Array]:
        time = self.time(state)
        seen = observed(self.drift, self.components, time, state.y, params)
        return seen | (self.observe_fn(time, state.y, params) if self.observe_fn else {})

    def step(self, params: PyTree, state: StochasticState) -> StochasticState:
        t, y = self.time(state), state.y
        own = isinstance(self.solver, diffrax.Euler) or (
            isinstance(self.solver, MILSTEIN) and self.noise == "diagonal"
        )
        if own:
            y = self._taylor(params, t, y, self._increment(params, state, t).W)
        else:
            y = self._by_diffrax(params, t, y, self._increment(params, state, t))
        return StochasticState(y, state.start, state.step + 1, state.key, state.path)

    def _increment(self, params: PyTree, state: StochasticState, t: Array) -> Any:
        """W(t + h) - W(t), with the space-time Lévy area H where the solver reads it."""
        kind = _levy_area(self.solver)
        if state.path is not None:
            return state.path.evaluate(t, t + self.dt, left=False, use_levy=True)
        m, dtype = self._noises(params, state.y), state.y.dtype
        h = jnp.asarray(self.dt, dtype)
        if kind is None:
            z = normals(state.key, state.step, m, dtype)
            return diffrax.BrownianIncrement(dt=h, W=jnp.sqrt(h) * z)
        z = normals(state.key, state.step, 2 * m, dtype)
        return diffrax.SpaceTimeLevyArea(dt=h, W=jnp.sqrt(h) * z[:m], H=jnp.sqrt(h / 12) * z[m:])

    def _noises(self, params: PyTree, y: Array) -> int:
        if self.noise == "diagonal":
            return y.size
        return eqx.filter_eval_shape(self.diffusion, jnp.zeros((), y.dtype), y, params).shape[1]

    def _taylor(self, params: PyTree, t: Array, y: Array, dw: Array) -> Array:
        """y + f h + g dW, for Milstein + ½ Σ_k g_k ∂_k g_i (dW_k dW_i - δ_ki h), the last term in
        the Itô sense only (Kloeden & Platen 1992, doi:10.1007/978-3-662-12616-5, section 10.3)."""
        g = lambda y: self.diffusion(t, y, params)  # noqa: E731
        gy = g(y)
        noise = gy * dw if self.noise == "diagonal" else gy @ dw
        moved = y + self.dt * self.drift(t, y, params) + noise
        if isinstance(self.solver, diffrax.Euler):
            return moved
        _, slope = jax.jvp(g, (y,), (noise,))
        moved = moved + 0.5 * slope * dw
        if isinstance(self.solver, diffrax.StratonovichMilstein):
            return moved
        own = jax.jvp(g, (y,), (gy,))[1] if y.size == 1 else jnp.diag(jax.jacfwd(g)(y)) * gy
        return moved - 0.5 * self.dt * own

    def _by_diffrax(self, params: PyTree, t: Array, y: Array, increment: Any) -> Array:
        """Any of Diffrax's solvers, on this step's increment."""
        diffusion = self.diffusion
        if self.noise == "diagonal":
            diffusion = lambda *a: lineax.DiagonalLinearOperator(self.diffusion(*a))  # noqa: E731
        path = _Increment(increment, type(increment))
        terms = diffrax.MultiTerm(diffrax.ODETerm(self.drift), diffrax.ControlTerm(diffusion, path))
        t1 = t + self.dt
        cache = self.solver.init(terms, t, t1, y, params)
        return self.solver.step(terms, t, t1, y, params, cache, jnp.asarray(False))[0]


class _Increment(diffrax.AbstractBrownianPath):
    """One step of a Brownian path, already drawn."""

    t0 = None  # pyright: ignore
    t1 = None  # pyright: ignore
    increment: Any
    levy_area: Any = eqx.field(static=True)

    def evaluate(self, t0: Any, t1: Any = None, left: bool = True, use_levy: bool = False) -> Any:
        del t0, t1, left
        return self.increment if use_levy else self.increment.W


def _levy_area(solver: Any) -> Any:
    """The kind of Lévy area a solver reads, None for the increment alone."""
    area = getattr(solver, "minimal_levy_area", None)
    return None if area is diffrax.AbstractBrownianIncrement else area


def _default(interpretation: str, noise: str) -> diffrax.AbstractSolver:
    if interpretation == "stratonovich":
        return diffrax.StratonovichMilstein() if noise == "diagonal" else diffrax.EulerHeun()
    return diffrax.ItoMilstein() if noise == "diagonal" else diffrax.Euler()

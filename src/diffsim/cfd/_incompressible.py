"""Incompressible flow by finite volumes on a staggered grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, PRNGKeyArray, PyTree

from .._errors import ConfigError
from .._simulation import RESULTS, AbstractSimulation
from ._boundary import Box, parameters_of, value_of
from ._checks import (
    check_balance,
    check_cfl,
    check_fields,
    check_names,
    check_viscosity,
    checked_dt,
    components_of,
)
from ._closure import AbstractClosure
from ._convection import AbstractScheme, convection, laplacian, scheme_of
from ._forcing import AbstractForcing, Cylinder
from ._grid import Grid
from ._measure import cfl_number, measured
from ._probes import AbstractProbe
from ._scalar import Scalar
from ._spectra import (
    diagonally,
    inverse_laplacian,
    pressure_spectra,
    scalar_spectra,
    velocity_spectra,
)
from ._start import AbstractStart
from ._tableaux import Tableau, method_of

Fields = tuple[tuple[Array, ...], dict[str, Array]]


class FlowState(eqx.Module):
    """The unknowns of a flow at one time. `velocity`: a component an axis, at its faces (see
    `Box`); `scalars`: by name, at the centres; `pressure`: of the last step, kept where diffusion
    is implicit and the box has sides; `time`."""

    velocity: tuple[Array, ...]
    scalars: dict[str, Array]
    pressure: Array | None
    time: Array


class IncompressibleFlow(AbstractSimulation):
    """∂u/∂t = -∇·(u u) - ∇p + ν ∇²u + f,  ∇·u = 0, in a box of two or three axes; density is 1.

    Finite volumes on a staggered grid (Harlow and Welch 1965, doi:10.1063/1.1761178), second order
    in space. With `diffusion="explicit"` an explicit Runge-Kutta method, each stage projected onto
    the divergence-free fields by a direct solver, so that the order in time is that of the method
    and ∇·u stays at rounding. With "implicit", Crank-Nicolson diffusion and Heun's convection with
    an incremental pressure (Van Kan 1986, doi:10.1137/0907059): second order, for small cells and
    large viscosities.

    **Arguments:** `grid`; `dt`; `boundaries`: for each axis "periodic" (the default) or a pair of
    `Wall`, `Slip`, `Inflow`, `Outflow`; `convection`: "central" (keeps the energy), "van_leer" (no
    new extrema), "upwind", or a scheme; `method`: "euler", "rk2", "rk3", "rk4"; `forcing`: what
    accelerates the fluid; `scalars`: what it carries; `body`: a solid in it; `closure`: what stands
    for the scales below the grid; `extra`: further observables such as `Probes`; `start`: an
    initial field made of parameters, where no condition gives one; `cfl_limit`: the largest
    Σᵢ max|uᵢ| dt/hᵢ, over which a run has failed (status `cfl_exceeded`); `max_substeps`: into how
    many equal parts a step may be split to keep under it.

    **Parameters:** `viscosity` ν [length²/time] and those that boundaries, forcing, scalars,
    closure and start name. **Conditions:** `velocity`, a component an axis of the shapes that
    `velocity_shapes` tells (default: at rest), made free of divergence; `scalars`, by name.

    Observables: `velocity` and `pressure` at the centres, `vorticity` (2D, at the corners),
    `centreline_u` and `centreline_v` (2D, along the middle of the other axis), `kinetic_energy`,
    `enstrophy`, `dissipation`, `injection`, `energy_residual` (means over the volume), `momentum`
    (mean velocity), `divergence` (h max|∇·u|/max|u|), `cfl`, of periodic boxes `spectrum`, of a
    body `drag` and `lift`, of each scalar its field and `<name>_mean`.
    """

    box: Box
    dt: float = eqx.field(static=True)
    convection: AbstractScheme
    method: Tableau = eqx.field(static=True)
    diffusion: str = eqx.field(static=True)
    forcing: tuple[AbstractForcing, ...]
    scalars: tuple[Scalar, ...]
    body: Cylinder | None
    closure: AbstractClosure | None
    extra: tuple[AbstractProbe, ...]
    start: AbstractStart | None
    cfl_limit: float = eqx.field(static=True)
    max_substeps: int = eqx.field(static=True)

    def __init__(
        self,
        grid: Grid,
        dt: float,
        *,
        boundaries: Any = None,
        convection: str | AbstractScheme = "central",
        method: str = "rk3",
        diffusion: str = "explicit",
        forcing: AbstractForcing | Sequence[AbstractForcing] = (),
        scalars: Scalar | Sequence[Scalar] = (),
        body: Cylinder | None = None,
        closure: AbstractClosure | None = None,
        extra: AbstractProbe | Sequence[AbstractProbe] = (),
        start: AbstractStart | None = None,
        cfl_limit: float = 1.0,
        max_substeps: int = 1,
    ):
        self.box, self.dt = Box(grid, boundaries), checked_dt(dt)
        self.convection, self.method = scheme_of(convection), method_of(method)
        self.diffusion, self.closure, self.body = diffusion, closure, body
        self.start = start
        self.forcing = (forcing,) if isinstance(forcing, AbstractForcing) else tuple(forcing)
        self.scalars = (scalars,) if isinstance(scalars, Scalar) else tuple(scalars)
        self.extra = (extra,) if isinstance(extra, AbstractProbe) else tuple(extra)
        self.cfl_limit, self.max_substeps = float(cfl_limit), max_substeps

    def __check_init__(self):
        if self.grid.ndim < 2:
            raise ConfigError(
                "incompressible flow needs two or three axes", key="grid", value=self.grid.shape
            )
        if self.diffusion not in ("explicit", "implicit"):
            raise ConfigError(
                "unknown", key="diffusion", value=self.diffusion, allowed=("explicit", "implicit")
            )
        if not self.cfl_limit > 0:
            raise ConfigError("must be positive", key="cfl_limit", value=self.cfl_limit)
        if not isinstance(self.max_substeps, int) or self.max_substeps < 1:
            raise ConfigError(
                "must be a whole number of at least 1", key="max_substeps", value=self.max_substeps
            )
        names = [s.name for s in self.scalars]
        if len(set(names)) < len(names):
            raise ConfigError("two scalars have one name", key="scalars", value=names)
        for piece in self.forcing:
            piece.check(self.box, names)
        for part in (*self.scalars, *self.extra):
            part.check(self.box)
        if self.body is not None:
            self.body.check(self.box)
        for part in (self.closure, self.start):
            if part is not None:
                part.check(self.box)

    @property
    def grid(self) -> Grid:
        return self.box.grid

    def velocity_shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shape of each component's unknowns."""
        return tuple(map(self.box.shape, range(self.grid.ndim)))

    def time_step(self) -> float | None:
        return self.dt

    def time(self, state: FlowState) -> Any:
        return state.time

    def variables(self, state: FlowState) -> PyTree:
        return (state.velocity, state.scalars)

    def at_time(self, state: FlowState, t: Any) -> FlowState:
        return eqx.tree_at(lambda s: s.time, state, jnp.full_like(state.time, t))

    def parameters(self) -> tuple[str, ...]:
        """The names of all parameters that it reads."""
        parts: list[Any] = [*self.forcing, *self.scalars]
        parts += [part for part in (self.closure, self.start) if part is not None]
        named = [name for part in parts for name in part.parameters()]
        return tuple(dict.fromkeys(("viscosity", *parameters_of(self.box.sides), *named)))

    def check(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, params: Mapping[str, Any], *, velocity: Any = None, scalars: Any = None
    ) -> None:
        """Host side: refuse parameters and fields that cannot be right."""
        check_names(self.parameters(), params)
        check_viscosity(self.grid, self.dt, params["viscosity"], self.diffusion, self.method)
        check_balance(self.box, params)
        for name in scalars or ():
            if name not in (known := [s.name for s in self.scalars]):
                raise ConfigError("no such scalar", key=f"scalars.{name}", allowed=known)
        fields = () if velocity is None else components_of(self.grid, velocity)
        check_fields(self.box, fields)
        check_cfl(self.box, self.dt, params, fields, self.cfl_limit * self.max_substeps)

    def init(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        params: Mapping[str, Any],
        key: PRNGKeyArray,
        *,
        velocity: Any = None,
        scalars: Mapping[str, Any] | None = None,
    ) -> FlowState:
        del key
        if not any(isinstance(x, Tracer) for x in jax.tree.leaves((params, velocity, scalars))):
            self.check(params, velocity=velocity, scalars=scalars)
        if velocity is None and self.start is not None:
            velocity = self.start(self.box, params)
        if velocity is None:
            fields = tuple(jnp.zeros(shape) for shape in self.velocity_shapes())
        else:
            fields = tuple(map(jnp.asarray, components_of(self.grid, velocity)))
        dtype = jnp.result_type(float, *fields) if velocity is None else jnp.result_type(*fields)
        dtype = dtype if jnp.issubdtype(dtype, jnp.floating) else jnp.result_type(float)
        fields = tuple(u.astype(dtype) for u in fields)
        carried = {
            s.name: s.start(self.box, (scalars or {}).get(s.name), dtype) for s in self.scalars
        }
        projected, _ = self.project(fields, params)
        pressure = jnp.zeros(self.grid.shape, dtype) if self._incremental else None
        return FlowState(projected, carried, pressure, jnp.zeros((), dtype))

    @property
    def _incremental(self) -> bool:
        return self.diffusion == "implicit" and not self.box.periodic

    def project(
        self, velocity: Sequence[Any], params: Mapping[str, Any]
    ) -> tuple[tuple[Array, ...], Array]:
        """u - ∇φ with ∇²φ = ∇·u, and φ."""
        velocity = tuple(map(jnp.asarray, velocity))
        phi = self._poisson(self.box.divergence(velocity, params))
        gradient = self.box.gradient(phi)
        return tuple(u - g for u, g in zip(velocity, gradient, strict=True)), phi

    def _poisson(self, source: Array) -> Array:
        return diagonally(source, pressure_spectra(self.box), inverse_laplacian)

    def tendency(
        self, params: Mapping[str, Any], fields: Fields, t: Any, *, viscous: bool = True
    ) -> Fields:
        """∂u/∂t before the projection, and that of each scalar."""
        velocity, scalars = fields
        total = list(convection(self.box, self.convection, velocity, params))
        parts = [piece(self.box, params, velocity, scalars, t) for piece in self.forcing]
        if viscous:
            lap = laplacian(self.box, velocity, params)
            parts.append(tuple(params["viscosity"] * v for v in lap))
        if self.closure is not None:
            parts.append(self.closure.tendency(self.box, params, velocity))
        for part in parts:
            total = [a + b for a, b in zip(total, part, strict=True)]
        return self._typed(total, velocity), self._carried(params, fields, viscous)

    @staticmethod
    def _typed(total: Sequence[Any], like: Sequence[Array]) -> tuple[Array, ...]:
        return tuple(jnp.asarray(a, u.dtype) for a, u in zip(total, like, strict=True))

    def _carried(
        self, params: Mapping[str, Any], fields: Fields, viscous: bool
    ) -> dict[str, Array]:
        velocity, scalars = fields
        if not self.scalars:
            return {}
        faces = [self.box.faces(u, axis, params) for axis, u in enumerate(velocity)]
        out = {}
        for scalar in self.scalars:
            s = scalars[scalar.name]
            change = scalar.convected(self.box, self.convection, s, faces, params)
            if viscous:
                kappa = value_of(scalar.diffusivity, params)
                change = change + kappa * scalar.laplacian(self.box, s, params)
            out[scalar.name] = jnp.asarray(change, s.dtype)
        return out

    def step(self, params: Mapping[str, Any], state: FlowState) -> FlowState:
        # Differentiated, a step keeps its state alone and is computed again: reading back what a
        # step computes takes longer than computing it.
        return eqx.filter_checkpoint(self._step)(params, state)

    def _step(self, params: Mapping[str, Any], state: FlowState) -> FlowState:
        advance = self._implicit if self.diffusion == "implicit" else self._explicit
        dt = jnp.asarray(self.dt, state.time.dtype)
        if self.max_substeps == 1:
            return advance(params, state, dt)
        ratio = jax.lax.stop_gradient(self.cfl(params, state)) / self.cfl_limit
        parts = jnp.clip(jnp.ceil(ratio), 1, self.max_substeps)

        def part(state: FlowState, i: Array) -> tuple[FlowState, None]:
            moved = lambda s: advance(params, s, dt / parts)  # noqa: E731
            return jax.lax.cond(i < parts, moved, lambda s: s, state), None

        return jax.lax.scan(part, state, jnp.arange(self.max_substeps))[0]

    def _explicit(self, params: Mapping[str, Any], state: FlowState, dt: Array) -> FlowState:
        start = (state.velocity, state.scalars)
        fields, slopes = start, []
        for row, c in zip(self.method.stages, self.method.times, strict=True):
            slopes.append(self.tendency(params, fields, state.time + c * dt))
            velocity, scalars = _combined(start, slopes, row, dt)
            velocity = self._penalised(velocity, dt * sum(row))
            fields = self.project(velocity, params)[0], scalars
        return FlowState(*fields, state.pressure, state.time + dt)

    def _implicit(self, params: Mapping[str, Any], state: FlowState, dt: Array) -> FlowState:
        start, half = (state.velocity, state.scalars), 0.5 * dt
        lap, lap_scalars = self._diffused(params, start)
        diffused = tuple(0.5 * params["viscosity"] * v for v in lap), lap_scalars
        pressure, fields, slopes = state.pressure, start, []
        for row, c in (((1.0,), 0.0), ((0.5, 0.5), 1.0)):
            slopes.append(self.tendency(params, fields, state.time + c * dt, viscous=False))
            velocity, scalars = _combined(start, [*slopes, diffused], (*row, 1.0), dt)
            if pressure is not None:
                push = self.box.gradient(pressure)
                velocity = tuple(u - dt * g for u, g in zip(velocity, push, strict=True))
            velocity = self._smoothed(velocity, params, half * params["viscosity"])
            velocity = self._penalised(velocity, dt)
            stretched = self.box.divergence(velocity, params)
            phi = self._poisson(stretched)
            if pressure is not None:
                pressure = pressure + phi / dt - 0.5 * params["viscosity"] * stretched
            gradient = self.box.gradient(phi)
            velocity = tuple(u - g for u, g in zip(velocity, gradient, strict=True))
            fields = velocity, self._smoothed_scalars(scalars, params, half)
        return FlowState(*fields, pressure, state.time + dt)

    def _diffused(self, params: Mapping[str, Any], fields: Fields) -> Any:
        velocity, scalars = fields
        halves = {
            s.name: 0.5
            * value_of(s.diffusivity, params)
            * s.laplacian(self.box, scalars[s.name], params)
            for s in self.scalars
        }
        return laplacian(self.box, velocity, params), halves

    def _smoothed(
        self, velocity: Sequence[Array], params: Mapping[str, Any], a: Any
    ) -> tuple[Array, ...]:
        """(1 - a ∇²)⁻¹ of each component, with the values that hold at the sides."""
        zero = tuple(jnp.zeros_like(u) for u in velocity)
        edges = laplacian(self.box, zero, params)  # what the sides add
        return tuple(
            diagonally(
                u + a * edge,
                velocity_spectra(self.box, component),
                lambda total: 1 / (1 + a * jnp.asarray(total, u.dtype)),  # noqa: B023
            )
            for component, (u, edge) in enumerate(zip(velocity, edges, strict=True))
        )

    def _smoothed_scalars(
        self, scalars: Mapping[str, Array], params: Mapping[str, Any], half: Array
    ) -> dict[str, Array]:
        out = {}
        for scalar in self.scalars:
            s, a = scalars[scalar.name], half * value_of(scalar.diffusivity, params)
            edge = scalar.laplacian(self.box, jnp.zeros_like(s), params)
            spectra = scalar_spectra(self.box, scalar.fixed(self.box))
            symbol = lambda total: 1 / (1 + a * jnp.asarray(total, s.dtype))  # noqa: B023, E731
            out[scalar.name] = diagonally(s + a * edge, spectra, symbol)
        return out

    def _penalised(self, velocity: Sequence[Array], dt: Any) -> tuple[Array, ...]:
        """A body's pull, implicitly."""
        if self.body is None:
            return tuple(velocity)
        return tuple(
            u
            - self.body.share(self.box, component, dt, u.dtype) * (u - self.body.target(component))
            for component, u in enumerate(velocity)
        )

    def cfl(self, params: Mapping[str, Any], state: FlowState) -> Array:
        """Σᵢ max|uᵢ| dt/hᵢ over the faces."""
        del params
        return cfl_number(self.grid.spacing, self.dt, state.velocity)

    def status(self, state: FlowState) -> RESULTS:
        cfl = self.cfl({}, state)
        cfl = cfl + sum(0 * jnp.sum(s) for s in state.scalars.values())  # not a number if one is
        over = cfl > self.cfl_limit * self.max_substeps
        health = RESULTS.where(over, RESULTS.cfl_exceeded, RESULTS.successful)
        return RESULTS.where(jnp.isfinite(cfl), health, RESULTS.nonfinite)

    def observe(self, params: Mapping[str, Any], state: FlowState) -> dict[str, Array]:
        return measured(self, params, state)


def _combined(start: Fields, slopes: Sequence[Any], row: Sequence[float], dt: Any) -> Fields:
    """start + dt Σⱼ rowⱼ slopesⱼ."""

    def one(u: Array, *ks: Array) -> Array:
        total = sum((a * k for a, k in zip(row, ks, strict=True) if a), jnp.zeros_like(u))
        return u + dt * total

    return jax.tree.map(one, start, *slopes)

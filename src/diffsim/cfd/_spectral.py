"""Incompressible flow between Fourier modes in a periodic box."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from .._errors import ConfigError
from .._simulation import RESULTS, AbstractSimulation
from ._boundary import Box
from ._checks import check_names, checked_dt
from ._exponential import AbstractStepper, Fields, stepper_of
from ._forcing import AbstractForcing
from ._grid import Grid
from ._measure import cfl_number
from ._spectral_conditions import check_conditions, fastest
from ._spectral_equations import AbstractEquation, equation_of, total
from ._spectral_forcing import added, completed, drag_of, steady_force, varying_force
from ._spectral_measure import measured
from ._spectral_modes import PeriodicModes, floating, rotated


class SpectralState(eqx.Module):
    """A flow as the modes that are kept of it. `spectrum`: real and imaginary part of the vorticity
    (2, modes) or of the velocity (2, 3, modes), as `PeriodicModes` has them; `mean`: in 2D the mean
    velocity, (2,) [length/time]; `cfl`: of the field that the last step began with; `time`."""

    spectrum: Float[Array, "2 ..."]
    mean: Float[Array, "2"] | None
    cfl: Float[Array, ""]
    time: Float[Array, ""]

    @property
    def fields(self) -> Fields:
        return (self.spectrum,) if self.mean is None else (self.spectrum, self.mean)


class SpectralFlow(AbstractSimulation):
    """∂u/∂t = -∇·(u u) - ∇p + ν ∇²u - α u + f,  ∇·u = 0, in a periodic box of two or three axes;
    density is 1.

    Pseudo-spectral, by the vorticity in 2D and the velocity in 3D, with exponential time steps: as
    accurate in space as the field is smooth, exact in viscosity and linear drag. What no mode can
    show is cut off the start. Products are free of aliases with `dealias="2/3"`, so that convection
    keeps the energy.

    **Arguments:** `grid`; `dt`; `method`: "etdrk4", "etdrk2", "cn_rk4" (the trapezoidal rule for
    viscosity, as in JAX-CFD) or a stepper; `forcing`: what accelerates the fluid (`LinearDrag` is
    taken exactly); `dealias`: "2/3", "1/2" or "none"; `cfl_limit`: the largest Σᵢ max|uᵢ| dt/hᵢ,
    over which a run has failed (status `cfl_exceeded`, a step late). With "2/3", "etdrk4" and
    "cn_rk4" are stable up to 1.3 without viscosity, "etdrk2" needs some.

    **Parameters:** `viscosity` ν [length²/time] and those that forcing names. **Conditions:**
    `velocity`, (axes, *grid.shape) at the points xᵢ = lower + i h that `points` gives (not the
    centres of the cells), made free of divergence; or in 2D `vorticity` ∂v/∂x - ∂u/∂y,
    (*grid.shape), of zero mean, with `mean_velocity` (default: 0); default: at rest.

    Observables, fields at the points: `velocity`, `vorticity` (in 3D its three components),
    `pressure`, `kinetic_energy`, `enstrophy` Z, `dissipation` 2νZ, `injection` (drag included),
    `energy_residual` (means over the volume), `momentum` (mean velocity), `divergence`
    (h max|∇·u|/max|u|), `cfl`, `time`, of boxes of equal edges `spectrum`.
    """

    modes: PeriodicModes
    equation: AbstractEquation
    dt: float = eqx.field(static=True)
    method: AbstractStepper
    forcing: tuple[AbstractForcing, ...]
    cfl_limit: float = eqx.field(static=True)

    def __init__(
        self,
        grid: Grid,
        dt: float,
        *,
        method: str | AbstractStepper = "etdrk4",
        forcing: AbstractForcing | Sequence[AbstractForcing] = (),
        dealias: str = "2/3",
        cfl_limit: float = 1.0,
    ):
        if grid.ndim < 2:
            raise ConfigError("a flow needs two or three axes", key="grid", value=grid.shape)
        self.modes, self.dt = PeriodicModes(grid, dealias), checked_dt(dt)
        self.equation, self.method = equation_of(self.modes), stepper_of(method)
        self.forcing = (forcing,) if isinstance(forcing, AbstractForcing) else tuple(forcing)
        self.cfl_limit = float(cfl_limit)

    def __check_init__(self):
        if not self.cfl_limit > 0:
            raise ConfigError("must be positive", key="cfl_limit", value=self.cfl_limit)
        for piece in self.forcing:
            piece.check(Box(self.grid), ())

    @property
    def grid(self) -> Grid:
        return self.modes.grid

    @property
    def box(self) -> PeriodicModes:
        """The points, as initial fields and forcing ask for them."""
        return self.modes

    def velocity_shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shape of each component."""
        return (self.grid.shape,) * self.grid.ndim

    def project(self, velocity: Any, params: Mapping[str, Any]) -> tuple[tuple[Array, ...], Array]:
        """u - ∇φ with ∇²φ = ∇·u, and φ, of what the modes can show."""
        del params
        spectra = [self.modes.modes(floating(jnp.asarray(u))) for u in velocity]
        waves = self.modes.wavenumbers()
        parts = [rotated(k, u) for k, u in zip(waves, spectra, strict=True)]
        divergence = functools.reduce(operator.add, parts)
        phi = -divergence * jnp.asarray(self.modes.inverse_squared(), divergence.dtype)
        kept = [u - rotated(k, phi) for k, u in zip(waves, spectra, strict=True)]
        return tuple(map(self.modes.points, kept)), self.modes.points(phi)

    def points(self) -> tuple[np.ndarray, ...]:
        """Where fields are given and observed: xᵢ = lower + i h, an array an axis."""
        return self.modes.coordinates()

    def time_step(self) -> float | None:
        return self.dt

    def time(self, state: SpectralState) -> Any:
        return state.time

    def variables(self, state: SpectralState) -> PyTree:
        return state.fields

    def at_time(self, state: SpectralState, t: Any) -> SpectralState:
        return eqx.tree_at(lambda s: s.time, state, jnp.full_like(state.time, t))

    def parameters(self) -> tuple[str, ...]:
        """The names of all parameters that it reads."""
        named = [name for piece in self.forcing for name in piece.parameters()]
        return tuple(dict.fromkeys(("viscosity", *named)))

    def check(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        params: Mapping[str, Any],
        *,
        velocity: Any = None,
        vorticity: Any = None,
        mean_velocity: Any = None,
    ) -> None:
        """Host side: refuse parameters and fields that cannot be right."""
        check_names(self.parameters(), params)
        viscosity = np.asarray(params["viscosity"])
        if not (np.all(np.isfinite(viscosity)) and np.all(viscosity >= 0)):
            raise ConfigError("must be finite and not negative", key="viscosity", value=viscosity)
        check_conditions(self.grid, velocity, vorticity, mean_velocity)
        speeds = fastest(self.grid, velocity, vorticity, mean_velocity)
        # a component each at its largest: fields that are so nowhere at once may pass at run time
        largest = max(s * self.dt / h for s, h in zip(speeds, self.grid.spacing, strict=True))
        if largest > self.cfl_limit:
            raise ConfigError(
                f"the CFL number {largest:.3g} is over the limit {self.cfl_limit:g}",
                key="dt",
                value=self.dt,
                allowed=f"dt up to {self.dt * self.cfl_limit / largest:.2g}, or a coarser grid",
            )

    def init(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        params: Mapping[str, Any],
        key: PRNGKeyArray,
        *,
        velocity: Any = None,
        vorticity: Any = None,
        mean_velocity: Any = None,
    ) -> SpectralState:
        del key
        given = dict(velocity=velocity, vorticity=vorticity, mean_velocity=mean_velocity)
        if not any(isinstance(x, Tracer) for x in jax.tree.leaves((params, given))):
            self.check(params, **given)
        fields = self._start(velocity, vorticity, mean_velocity)
        cfl = jax.lax.stop_gradient(self.cfl(self.at_points(fields)))
        return _state(fields, cfl, jnp.zeros((), cfl.dtype))

    def _start(self, velocity: Any, vorticity: Any, mean_velocity: Any) -> Fields:
        if vorticity is None:
            zero = jnp.zeros((self.grid.ndim, *self.grid.shape))
            given = zero if velocity is None else floating(jnp.stack(list(velocity)))
            return self.equation.unknowns([self.modes.modes(u) for u in given])
        w = floating(jnp.asarray(vorticity))
        mean = jnp.zeros(2) if mean_velocity is None else jnp.asarray(mean_velocity)
        spectrum = self.modes.modes(w - jnp.mean(w))
        return spectrum, jnp.broadcast_to(mean.astype(w.dtype), (2,))

    def at_points(self, fields: Fields) -> tuple[Array, ...]:
        """The velocity at the points, a component an axis."""
        return tuple(map(self.modes.points, self.equation.velocity(fields)))

    def linear(self, params: Mapping[str, Any], dtype: Any) -> Fields:
        """The diagonal of ν ∇² - α for each unknown."""
        viscosity = jnp.asarray(params["viscosity"], dtype)
        return self.equation.linear(viscosity, drag_of(self.forcing, params, dtype))

    def nonlinear(self, params: Mapping[str, Any], dtype: Any) -> Callable[..., Fields]:
        """The change of the unknowns by convection and forcing, as a function of the velocity at
        the points and of time."""
        steady = steady_force(self.forcing, self.modes, params, dtype)

        def change(velocity: Sequence[Array], t: Array) -> Fields:
            convection = self.equation.convection(velocity)
            varying = varying_force(self.forcing, self.modes, params, velocity, t)
            force = completed(self.modes, added(steady, varying), dtype)
            return convection if force is None else total(convection, self.equation.unknowns(force))

        return change

    def step(self, params: Mapping[str, Any], state: SpectralState) -> SpectralState:
        # Differentiated, a step keeps its state alone, an eighth of what autodiff would keep of it,
        # and is computed again.
        return eqx.filter_checkpoint(self._step, prevent_cse=False)(params, state)

    def _step(self, params: Mapping[str, Any], state: SpectralState) -> SpectralState:
        dtype = state.time.dtype
        dt = jnp.asarray(self.dt, dtype)
        linear, change = self.linear(params, dtype), self.nonlinear(params, dtype)
        velocity = self.at_points(state.fields)
        fields = self.method(
            linear,
            lambda fields, t: change(self.at_points(fields), t),
            change(velocity, state.time),
            state.fields,
            state.time,
            dt,
        )
        cfl = jax.lax.stop_gradient(self.cfl(velocity))
        return _state(fields, cfl, state.time + dt)

    def cfl(self, velocity: Sequence[Array]) -> Array:
        """Σᵢ max|uᵢ| dt/hᵢ."""
        return cfl_number(self.grid.spacing, self.dt, velocity)

    def status(self, state: SpectralState) -> RESULTS:
        finite = jnp.isfinite(state.cfl + sum(jnp.sum(x) for x in state.fields))
        health = RESULTS.where(state.cfl > self.cfl_limit, RESULTS.cfl_exceeded, RESULTS.successful)
        return RESULTS.where(finite, health, RESULTS.nonfinite)

    def observe(self, params: Mapping[str, Any], state: SpectralState) -> dict[str, Array]:
        return measured(self, params, state)


def _state(fields: Fields, cfl: Array, time: Array) -> SpectralState:
    return SpectralState(fields[0], fields[1] if len(fields) > 1 else None, cfl, time)

"""One flow in diffsim, JAX-CFD and Exponax: who computes it, from what start, and the velocity at
the end, at the same places."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import diffsim as ds
from diffsim import cfd

KEY = jax.random.key(0)


class Case(NamedTuple):
    """What is computed. `scheme`: "central" and "van_leer" are finite volumes, "spectral" is
    spectral; `method`: a step in time, as diffsim names it."""

    shape: tuple[int, ...]
    scheme: str
    method: str
    dt: float
    steps: int
    viscosity: float = 1e-3

    @property
    def system(self) -> str:
        return f"{self.scheme}, {self.method}"

    @property
    def size(self) -> str:
        return "x".join(map(str, self.shape))


class Side(NamedTuple):
    """One code's way. `final`: viscosity and start to the velocity at the end, (axes, *shape);
    `wrt`: which of the two its gradient is of."""

    name: str
    final: Callable[[Any, Any], Any]
    start: Any
    wrt: tuple[int, ...] = (0, 1)


@functools.cache
def potential(ndim: int) -> cfd.RandomPotential:
    """A smooth random field with waves up to 5, its largest component 1."""
    return cfd.RandomPotential(cfd.Grid((64,) * ndim), 2.0, 1.0, 0)


def places(case: Case) -> list[tuple[float, ...]]:
    """Where each component is, in cells: at the upper faces, in a spectral code at the corners."""
    ndim = len(case.shape)
    if case.scheme == "spectral":
        return [(0.0,) * ndim] * ndim
    return [tuple(1.0 if axis == own else 0.5 for axis in range(ndim)) for own in range(ndim)]


def initial(case: Case) -> list[np.ndarray]:
    field = potential(len(case.shape))
    return [field.velocity(a, case.shape, where) for a, where in enumerate(places(case))]


def simulation(case: Case) -> Any:
    grid = cfd.Grid(case.shape)
    if case.scheme == "spectral":
        return cfd.SpectralFlow(grid, case.dt, method=case.method, cfl_limit=np.inf)
    return cfd.IncompressibleFlow(
        grid, case.dt, convection=case.scheme, method=case.method, cfl_limit=np.inf
    )


def started(case: Case) -> Any:
    """diffsim's state at the start: free of divergence, in JAX's present precision."""
    dtype = jnp.result_type(float)
    velocity = [u.astype(dtype) for u in initial(case)]
    return simulation(case).init({"viscosity": case.viscosity}, KEY, velocity=velocity)


def ours(case: Case, adjoint: ds.AbstractAdjoint | None = None) -> Side:
    flow, schedule = simulation(case), ds.Schedule(steps=case.steps)
    spectral = case.scheme == "spectral"

    def final(viscosity: Any, state: Any) -> Any:
        sol = ds.solve(
            flow,
            {"viscosity": viscosity},
            state,
            schedule=schedule,
            adjoint=adjoint,
            observables=["velocity"] if spectral else [],
        )
        return sol.observables["velocity"][-1] if spectral else jnp.stack(sol.state.velocity)

    return Side("diffsim", final, started(case))


def scanned(step: Callable[[Any], Any], start: Any, steps: int) -> Any:
    return jax.lax.scan(lambda u, _: (step(u), None), start, None, length=steps)[0]


def jax_cfd_volumes(case: Case) -> Side:
    """`semi_implicit_navier_stokes`. Van Leer's flux with dt = 0, which is the limiter alone, as
    here; with JAX-CFD's default the scheme would be another one, at the same cost."""
    from jax_cfd import base

    ndim = len(case.shape)
    grid = base.grids.Grid(case.shape, domain=((0, 2 * np.pi),) * ndim)
    conditions = base.boundaries.periodic_boundary_conditions(ndim)
    start = tuple(
        base.grids.GridVariable(base.grids.GridArray(u, offset, grid), conditions)
        for u, offset in zip(started(case).velocity, grid.cell_faces, strict=True)
    )

    def van_leer(v: Any) -> Any:
        return tuple(base.advection.advect_van_leer_using_limiters(u, v, 0.0) for u in v)

    stepping = base.time_stepping
    options = dict(
        convect={"central": base.advection.convect_linear, "van_leer": van_leer}[case.scheme],
        pressure_solve=base.pressure.solve_fast_diag,
        time_stepper={
            "euler": stepping.forward_euler,
            "rk2": stepping.heun_rk2,
            "rk4": stepping.classic_rk4,
        }[case.method],
    )

    def final(viscosity: Any, start: Any) -> Any:
        step = base.equations.semi_implicit_navier_stokes(
            density=1.0, viscosity=viscosity, dt=case.dt, grid=grid, **options
        )
        return jnp.stack([u.data for u in scanned(step, start, case.steps)])

    return Side("jax-cfd", final, start)


def jax_cfd_spectral(case: Case) -> Side:
    from jax_cfd import base, spectral

    grid = base.grids.Grid(case.shape, domain=((0, 2 * np.pi),) * 2)
    stepping = spectral.time_stepping
    stepper = {"cn_rk2": stepping.crank_nicolson_rk2, "cn_rk4": stepping.crank_nicolson_rk4}

    def final(viscosity: Any, start: Any) -> Any:
        equation = spectral.equations.NavierStokes2D(viscosity, grid, smooth=True)
        step = stepper[case.method](equation, case.dt)
        velocity = spectral.utils.vorticity_to_velocity(grid)
        return jnp.stack([jnp.fft.irfftn(u) for u in velocity(scanned(step, start, case.steps))])

    known = case._replace(method="cn_rk4")  # diffsim has no cn_rk2, and the start is the same
    return Side("jax-cfd", final, jnp.fft.rfftn(vorticity(known)))


def exponax(case: Case) -> Side:
    """Steps between Fourier coefficients, its quickest way. Viscosity is in coefficients that it
    holds, so that its gradient is of the start alone, which is less work."""
    import exponax

    ndim, n = len(case.shape), case.shape[0]
    orders = {"etdrk2": 2, "etdrk4": 4}
    options = dict(diffusivity=case.viscosity, order=orders[case.method])
    if ndim == 3:
        stepper = exponax.stepper.NavierStokesVelocity(3, 2 * np.pi, n, case.dt, **options)
        start = jnp.fft.rfftn(velocity(case), axes=(1, 2, 3))
    else:
        stepper = exponax.stepper.NavierStokesVorticity(2, 2 * np.pi, n, case.dt, **options)
        start = -jnp.fft.rfftn(vorticity(case))[None]  # its vorticity is ∂u/∂y - ∂v/∂x

    def final(viscosity: Any, start: Any) -> Any:
        del viscosity
        end = scanned(stepper.step_fourier, start, case.steps)
        if ndim == 2:
            kx, ky = np.fft.fftfreq(n, 1 / n)[:, None], np.arange(n // 2 + 1)[None]
            over = 1 / np.maximum(kx**2 + ky**2, 1)
            waves = jnp.asarray(np.stack([-1j * ky * over, 1j * kx * over]), end.dtype)
            end = waves * end
        return jnp.fft.irfftn(end, s=case.shape, axes=tuple(range(1, ndim + 1)))

    return Side("exponax", final, start, wrt=(1,))


def velocity(case: Case) -> Any:
    """At the start, where `Side.final` has it."""
    if case.scheme != "spectral":
        return jnp.stack(started(case).velocity)
    return _observed(case)["velocity"]


def vorticity(case: Case) -> Any:
    return _observed(case)["vorticity"]


def _observed(case: Case) -> Any:
    return simulation(case).observe({"viscosity": case.viscosity}, started(case))

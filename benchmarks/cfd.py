"""Incompressible flow: a step and its gradient, against JAX-CFD doing the same scheme.

A periodic box of 2π from a Taylor-Green vortex, ν = 1e-3, dt at CFL 0.1, float32, a projection
after every stage. JAX-CFD: `semi_implicit_navier_stokes` with linear (central) or Van Leer
convection and its fast pressure solver. The gradient is of the final kinetic energy in viscosity
and start, by `Direct` here and by autodiff through the scan there; `gradient_over_forward` is each
side's own ratio, `gradient_memory` what the compiled gradient keeps besides its arguments.
"""

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import diffsim as ds
from diffsim import cfd

from ._measure import Row, less_is_better, seconds

VISCOSITY, CFL = 1e-3, 0.1
KEY = jax.random.key(0)
CASES = (("central", "euler"), ("central", "rk4"), ("van_leer", "euler"))


def rows(quick: bool) -> Iterator[Row]:
    shapes = ((32, 32),) if quick else ((64, 64), (256, 256), (64, 64, 64))
    for shape in shapes:
        steps = 10 if quick else max(20, 100 * 64**2 // int(np.prod(shape)))
        for scheme, method in CASES:
            yield from _side_by_side(shape, scheme, method, steps, 1 if quick else 5)


def _side_by_side(
    shape: tuple[int, ...], scheme: str, method: str, steps: int, repeats: int
) -> Iterator[Row]:
    tasks, memory = {}, {}
    for name, make in (("diffsim", ours), ("jax-cfd", theirs)):
        run, params, start = make(shape, scheme, method, steps)
        forward = jax.jit(run)
        gradient = jax.jit(jax.grad(run, argnums=(0, 1))).lower(params, start).compile()
        memory[name] = gradient.memory_analysis().temp_size_in_bytes / 1e6
        tasks[name, "forward"] = lambda f=forward, p=params, s=start: f(p, s)
        tasks[name, "gradient"] = lambda f=gradient, p=params, s=start: f(p, s)
    taken = {key: t / steps * 1e3 for key, t in seconds(tasks, repeats).items()}
    system, size = f"{scheme}, {method}", "x".join(map(str, shape))
    for what in ("forward", "gradient"):
        mine, other = taken["diffsim", what], taken["jax-cfd", what]
        yield less_is_better(system, size, f"{what}_step", mine, "ms", "jax-cfd", other)
    ratios = {n: taken[n, "gradient"] / taken[n, "forward"] for n in ("diffsim", "jax-cfd")}
    yield less_is_better(
        system, size, "gradient_over_forward", ratios["diffsim"], "1", "jax-cfd", ratios["jax-cfd"]
    )
    yield less_is_better(
        system, size, "gradient_memory", memory["diffsim"], "MB", "jax-cfd", memory["jax-cfd"]
    )


Run = Callable[[Any, Any], Any]


def ours(shape: tuple[int, ...], scheme: str, method: str, steps: int) -> tuple[Run, Any, Any]:
    grid = cfd.Grid(shape)
    flow = cfd.IncompressibleFlow(grid, CFL * grid.spacing[0], convection=scheme, method=method)
    start = [u[0].astype("float32") for u in cfd.taylor_green(flow)]
    params = {"viscosity": jnp.float32(VISCOSITY)}
    state = flow.init(params, KEY, velocity=start)

    def energy(params: Any, state: Any) -> Any:
        schedule = ds.Schedule(steps=steps)
        sol = ds.solve(flow, params, state, schedule=schedule, observables=["kinetic_energy"])
        return sol.observables["kinetic_energy"][-1]

    return energy, params, state


def theirs(shape: tuple[int, ...], scheme: str, method: str, steps: int) -> tuple[Run, Any, Any]:
    from jax_cfd import base

    from diffsim.cfd._compat import repair_jax_cfd

    repair_jax_cfd()
    grid = base.grids.Grid(shape, domain=((0, 2 * np.pi),) * len(shape))
    flow = cfd.IncompressibleFlow(cfd.Grid(shape), 0.1)
    conditions = base.boundaries.periodic_boundary_conditions(len(shape))
    start = tuple(
        base.grids.GridVariable(
            base.grids.GridArray(jnp.asarray(u[0], "float32"), offset, grid), conditions
        )
        for u, offset in zip(cfd.taylor_green(flow), grid.cell_faces, strict=True)
    )
    dt = CFL * grid.step[0]
    convect = {"central": base.advection.convect_linear, "van_leer": None}[scheme]
    stepper = {
        "euler": base.time_stepping.forward_euler,
        "rk4": base.time_stepping.classic_rk4,
    }[method]

    def energy(viscosity: Any, velocity: Any) -> Any:
        step = base.equations.semi_implicit_navier_stokes(
            density=1.0,
            viscosity=viscosity,
            dt=dt,
            grid=grid,
            convect=convect,
            pressure_solve=base.pressure.solve_fast_diag,
            time_stepper=stepper,
        )
        final = jax.lax.scan(lambda v, _: (step(v), None), velocity, None, length=steps)[0]
        return sum(jnp.mean(u.data**2) for u in final) / 2

    return energy, jnp.float32(VISCOSITY), start


def installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None

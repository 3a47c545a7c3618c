"""The same flow in PhiFlow: its staggered grid and JAX backend, the whole run in one compiled scan.

Central differences of u·∇u (second order, not in flux form), Euler, and a pressure by conjugate
gradients to a relative residual of `TOLERANCE`. What `fluid.make_incompressible` does, but without
a matrix: the indices of PhiML 1.16's overflow from 65,536 cells on. Its pullback is PhiFlow's, the
same solve again, but called by JAX: PhiML's leaks tracers from a scan.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ._cfd_sides import Case, Side, scanned, started

TOLERANCE = 1e-5  # PhiML's default in float32


def phiflow(case: Case) -> Side:
    from phi.jax import flow as phi

    names = "xyz"[: len(case.shape)]
    joined = ",".join(names)
    sizes, cells = dict.fromkeys(names, 2 * np.pi), dict(zip(names, case.shape, strict=True))
    periodic = phi.extrapolation.PERIODIC
    staggered = phi.StaggeredGrid(0, periodic, phi.Box(**sizes), **cells)
    centred = phi.CenteredGrid(0, periodic, phi.Box(**sizes), **cells)

    solve = phi.Solve("CG", TOLERANCE, 1e-9, x0=centred.values, max_iterations=1000)

    def laplace(pressure: Any) -> Any:
        return phi.math.laplace(pressure, 2 * np.pi / case.shape[0], periodic)

    def native(function: Any) -> Any:
        return lambda x: function(phi.math.tensor(x, phi.math.spatial(joined))).native([*names])

    def pressure_of(sources: Any) -> Any:
        conjugate = native(lambda y: phi.math.solve_linear(laplace, y, solve))
        return jax.lax.custom_linear_solve(
            native(laplace), sources, lambda _, y: conjugate(y), symmetric=True
        )

    def step(velocity: Any, viscosity: Any) -> Any:
        u = staggered.with_values(
            phi.math.tensor(velocity, phi.math.dual(vector=joined), phi.math.spatial(joined))
        )
        u = u + case.dt * (
            phi.advect.differential(u, u, order=2) + viscosity * phi.field.laplace(u)
        )
        sources = phi.field.divergence(u).values.native([*names])
        pressure = phi.math.tensor(pressure_of(sources), phi.math.spatial(joined))
        pressure = centred.with_values(pressure)
        u = u - phi.field.spatial_gradient(pressure, periodic, at="face")
        return u.values.native(["~vector", *names])

    def final(viscosity: Any, velocity: Any) -> Any:
        return _rolled(scanned(lambda u: step(u, viscosity), velocity, case.steps), -1)

    return Side("phiflow", final, _rolled(jnp.stack(started(case).velocity), 1))


def _rolled(velocity: Any, by: int) -> Any:
    """Its faces are the lower ones of a cell."""
    return jnp.stack([jnp.roll(u, by, axis) for axis, u in enumerate(velocity)])

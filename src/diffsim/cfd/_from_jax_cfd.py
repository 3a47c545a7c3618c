"""A JAX-CFD step, as it is, made a simulation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray, PyTree

from .._errors import ConfigError
from .._simulation import RESULTS, AbstractSimulation
from ._compat import repair_jax_cfd
from ._measure import cfl_number, relative_divergence

Velocity = tuple[Any, ...]  # of JAX-CFD's GridVariables, one an axis


def from_jax_cfd(
    step_fn: Callable[..., Any],
    grid: Any,
    *,
    dt: float | None = None,
    parametric: bool = False,
    initial: Callable[[PyTree], Any] | None = None,
    observe: Callable[[PyTree, Velocity], dict[str, Array]] | None = None,
    boundary_conditions: Any = None,
    cfl_limit: float | None = None,
    unit_names: Mapping[str, str] | None = None,
) -> JaxCfdFlow:
    """v_{t+1} = step(v_t) for a step that JAX-CFD made, its GridVariables unchanged: every adjoint
    that fits plain steps applies, and so does all that is built on `solve`.

    The first call mends JAX-CFD 0.2.1 (docs/from_jax_cfd.md lists how).

    **Arguments:**

    - `step_fn(v) -> v` for a tuple of GridVariables, such as
      `jax_cfd.base.equations.semi_implicit_navier_stokes(...)` returns; `grid`, JAX-CFD's own.
    - `parametric`: `step_fn(params)` makes the step, so that a fit can change what it is made of:
      `lambda params: semi_implicit_navier_stokes(viscosity=params["viscosity"], ...)`. What is
      differentiated must come this way: a step knows nothing of parameters.
    - `dt`: the time step that the step was made with, for schedules in time and the CFL number.
    - `initial(params)`: the velocity at the start where it depends on parameters; else it is the
      condition `velocity`.
    - `observe(params, v)`: further observables by name.
    - `boundary_conditions` of velocities given as arrays, one for all or one a component (default:
      periodic); GridVariables have their own.
    - `cfl_limit`: a step with a larger CFL number fails (`cfl_exceeded`); default: none does.
    - `unit_names`: units of observables and parameters by their names.

    `init(params, key, velocity=)`: a tuple of GridVariables, on faces (JAX-CFD's `base`) or all in
    cell centres (its `collocated`), or arrays, on faces.

    **Observables:** `kinetic_energy` ½⟨|u|²⟩ and `momentum` ⟨u⟩ (axes,), per mass, means over the
    volume; `divergence` h max|∇·u|/max|u|; `velocity` (axes, *cells) where JAX-CFD has it;
    `vorticity` (*cells) ∂v/∂x - ∂u/∂y in two dimensions, on corners; with `dt`, `cfl` Σᵢ max|uᵢ|
    dt/hᵢ. To save some of them alone: `solve(..., observables=["kinetic_energy"])`.

    **Raises** `ConfigError`, before the run is traced, for a velocity that does not lie on the grid
    and a step that does not return what it got.
    """
    repair_jax_cfd()
    if not isinstance(grid, _jax_cfd().grids.Grid):
        raise ConfigError(
            "must be JAX-CFD's own", key="grid", value=grid, allowed="jax_cfd.base.grids.Grid"
        )
    for key, value in (("dt", dt), ("cfl_limit", cfl_limit)):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise ConfigError("must be positive and finite", key=key, value=value)
    if cfl_limit is not None and dt is None:
        raise ConfigError("needs the time step", key="cfl_limit", allowed="dt=")
    return JaxCfdFlow(
        step_fn=step_fn,
        grid=grid,
        dt=None if dt is None else float(dt),
        parametric=parametric,
        initial=initial,
        observe_fn=observe,
        boundary_conditions=_one_each(boundary_conditions, grid.ndim),
        cfl_limit=cfl_limit,
        unit_names=dict(unit_names or {}),
    )


class JaxCfdFlow(AbstractSimulation):
    """What `from_jax_cfd` returns; a state is the tuple of GridVariables itself."""

    step_fn: Callable[..., Any]
    grid: Any = eqx.field(static=True)
    dt: float | None = eqx.field(static=True)
    parametric: bool = eqx.field(static=True)
    initial: Callable[[PyTree], Any] | None
    observe_fn: Callable[[PyTree, Velocity], dict[str, Array]] | None
    boundary_conditions: tuple[Any, ...] = eqx.field(static=True)
    cfl_limit: float | None = eqx.field(static=True)
    unit_names: dict[str, str] = eqx.field(static=True)

    def init(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, params: PyTree, key: PRNGKeyArray | None = None, *, velocity: Any = None
    ) -> Velocity:
        del key
        if (velocity is None) == (self.initial is None):
            raise ConfigError(
                "must be given once", key="velocity", allowed="the condition velocity, or initial="
            )
        given = velocity if self.initial is None else self.initial(params)
        return self.prepare(params, _on_grid(given, self.grid, self.boundary_conditions))

    def check(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, params: PyTree, *, velocity: Any = None
    ) -> None:
        self._check_effect(params)
        if velocity is not None:
            if not all(np.all(np.isfinite(np.asarray(x))) for x in jax.tree.leaves(velocity)):
                raise ConfigError("must be finite", key="conditions.velocity")
            velocity = jax.tree.map(lambda x: np.asarray(x)[0], velocity)
        self.init(params, velocity=velocity)

    def prepare(self, params: PyTree, state: Velocity) -> Velocity:
        self._check_effect(params)
        _check_step(self.step, params, state)
        return state

    def step(self, params: PyTree, state: Velocity) -> Any:
        return self.step_fn(params)(state) if self.parametric else self.step_fn(state)

    def observe(self, params: PyTree, state: Velocity) -> dict[str, Array]:
        velocity = jnp.stack([u.data for u in state])
        cells = tuple(range(1, velocity.ndim))
        seen = {
            "kinetic_energy": 0.5 * jnp.sum(jnp.mean(velocity**2, cells)),
            "momentum": jnp.mean(velocity, cells),
            "divergence": _relative_divergence(state, self.grid),
            "velocity": velocity,
        }
        if self.grid.ndim == 2:
            seen["vorticity"] = _vorticity(state, self.grid)
        if self.dt is not None:
            seen["cfl"] = _cfl(state, self.grid, self.dt)
        return seen | (self.observe_fn(params, state) if self.observe_fn else {})

    def status(self, state: Velocity) -> RESULTS:
        health = super().status(state)
        if self.cfl_limit is None or self.dt is None:
            return health
        fast = _cfl(state, self.grid, self.dt) > self.cfl_limit
        return RESULTS.where(fast, RESULTS.cfl_exceeded, health)

    def time_step(self) -> float | None:
        return self.dt

    def units(self) -> dict[str, str]:
        return self.unit_names

    def _check_effect(self, params: PyTree) -> None:
        """Parameters that nothing reads would be fitted in vain."""
        readers = self.initial, self.observe_fn
        if self.parametric or readers != (None, None) or not jax.tree.leaves(params):
            return
        raise ConfigError(
            "the step takes no parameters",
            key="params",
            value=tuple(params) if isinstance(params, Mapping) else type(params).__name__,
            allowed="{}; or parametric=True and step_fn(params), which makes the step",
        )


def _jax_cfd() -> Any:
    # Loaded where it is used: it takes seconds, which `import diffsim.cfd` does not spend.
    import jax_cfd.base

    return jax_cfd.base


def _one_each(conditions: Any, components: int) -> tuple[Any, ...]:
    """Boundary conditions, one a component."""
    cfd = _jax_cfd()
    if conditions is None:
        conditions = cfd.boundaries.periodic_boundary_conditions(components)
    if isinstance(conditions, cfd.grids.BoundaryConditions):
        conditions = (conditions,) * components
    conditions = tuple(conditions)
    if len(conditions) != components:
        raise ConfigError(
            f"has {len(conditions)} entries for {components} components", key="boundary_conditions"
        )
    for bc in conditions:
        _check_hashable(bc, "boundary_conditions")
    return conditions


def _check_hashable(bc: Any, key: str) -> None:
    """A GridVariable's boundary conditions are part of what jit recompiles for."""
    try:
        hash(bc)
    except TypeError:
        raise ConfigError("holds a list or an array", key=key, value=bc, allowed="tuples") from None


def _on_grid(velocity: Any, grid: Any, conditions: tuple[Any, ...]) -> Velocity:
    """The velocity as GridVariables that lie on the grid, where JAX-CFD's steps take it."""
    if not isinstance(velocity, (tuple, list)):
        velocity = tuple(velocity) if np.ndim(velocity) > 1 else (velocity,)
    if len(velocity) != grid.ndim:
        raise ConfigError(
            f"has {len(velocity)} components on a grid with {grid.ndim} axes", key="velocity"
        )
    state = tuple(
        _component(i, u, grid, bc)
        for i, (u, bc) in enumerate(zip(velocity, conditions, strict=True))
    )
    faces, centres = tuple(grid.cell_faces), (grid.cell_center,) * grid.ndim
    if (offsets := tuple(u.offset for u in state)) not in (faces, centres):
        raise ConfigError(
            "lies neither on faces nor in cell centres",
            key="velocity",
            value=offsets,
            allowed=f"offsets {faces} or {centres}",
        )
    return state


def _component(i: int, u: Any, grid: Any, bc: Any) -> Any:
    """A GridVariable as it is, its values as a floating-point array; other values on a face."""
    cfd = _jax_cfd()
    complete = isinstance(u, cfd.grids.GridVariable)
    array = u.array if complete else u
    if not isinstance(array, cfd.grids.GridArray):
        array = cfd.grids.GridArray(u, grid.cell_faces[i], grid)
    data = jnp.asarray(array.data)
    if array.grid != grid or data.shape != grid.shape:
        raise ConfigError(
            f"component {i} has {data.shape} values on {array.grid}, the simulation's is {grid}",
            key="velocity",
            allowed="values, or GridVariables, of the grid that from_jax_cfd was given",
        )
    if not jnp.issubdtype(data.dtype, jnp.floating):
        data = data.astype(float)
    array = cfd.grids.GridArray(data, array.offset, grid)
    if not complete:
        return bc.impose_bc(array)
    _check_hashable(u.bc, "velocity")
    return cfd.grids.GridVariable(array, u.bc)


STEPS = (
    "step_fn(v), which returns what it takes; parametric=True with step_fn(params) that makes it"
)


def _check_step(step: Callable[[PyTree, Velocity], Any], params: PyTree, state: Velocity) -> None:
    """A step must return what it takes: found out without running it."""
    try:
        after = eqx.filter_eval_shape(step, params, state)
    except KeyError as error:
        raise ConfigError(
            f"reads the parameter {error}, which is not there",
            key="step_fn",
            allowed=tuple(params) or "none were given" if isinstance(params, dict) else None,
        ) from error
    except (TypeError, AttributeError) as error:
        raise ConfigError(f"failed: {error}", key="step_fn", allowed=STEPS) from error
    if jax.tree.structure(after) != jax.tree.structure(state):
        raise ConfigError(f"returns {_difference(after, state)}", key="step_fn", allowed=STEPS)
    for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(state), strict=True):
        if (a.shape, a.dtype) != (b.shape, b.dtype):
            raise ConfigError(
                f"returns {a.dtype}{list(a.shape)} for {b.dtype}{list(b.shape)}",
                key="step_fn",
                allowed="a velocity, parameters and forcing of one precision",
            )


def _difference(after: Any, before: Velocity) -> str:
    """In what the structure of two velocities differs."""
    names = [", ".join(type(u).__name__ for u in v) for v in (before, _entries(after))]
    if names[0] != names[1] or not isinstance(after, tuple):
        return f"{type(after).__name__}({names[1]}) for tuple({names[0]})"
    for i, pair in enumerate(zip(after, before, strict=True)):
        for what in ("offset", "grid", "bc"):
            a, b = (getattr(u, what) for u in pair)
            if a != b:
                return f"component {i} with the {what} {a} for {b}"
    return "another structure"


def _entries(x: Any) -> tuple[Any, ...]:
    return tuple(x) if isinstance(x, (tuple, list)) else ()


def _on_faces(state: Velocity, grid: Any) -> bool:
    return state[0].offset == grid.cell_faces[0]


def _relative_divergence(state: Velocity, grid: Any) -> Array:
    """h max|∇·u| / max|u|."""
    differences = _jax_cfd().finite_differences
    exact = differences.divergence if _on_faces(state, grid) else differences.centered_divergence
    return relative_divergence(grid.step, exact(state).data, [u.data for u in state])


def _vorticity(state: Velocity, grid: Any) -> Array:
    """∂v/∂x - ∂u/∂y: on corners of a velocity on faces, else where the velocity is."""
    differences, (u, v) = _jax_cfd().finite_differences, state
    if _on_faces(state, grid):
        return differences.curl_2d(state).data
    return differences.central_difference(v, 0).data - differences.central_difference(u, 1).data


def _cfl(state: Velocity, grid: Any, dt: float) -> Array:
    """Σᵢ max|uᵢ| dt/hᵢ."""
    return cfl_number(grid.step, dt, [u.data for u in state])

"""What is mended in JAX-CFD 0.2.1, and why. For each entry a row of tests/test_cfd_compat.py shows
the fault without the repair, and fails once it is fixed upstream.

- `jax.tree_map` and its siblings are gone from JAX (mended on JAX-CFD's main branch, never
  released): `_tree_functions`.
- Walls: `jnp.pad` no longer takes None for the values beyond a periodic side (likewise mended and
  not released): `_padding`.
- Walls: the pressure is solved for a divergence that counts flow through them (no report found):
  `_projection`.
- jax-cfd#231: a moving lid is refused: `_moving_walls`; implicit diffusion would be wrong between
  walls of which some move (no report found): `_implicit_diffusion`.
- jax-cfd#230: the exact Taylor-Green vortex decays at the rate of kx = ky = 1 whatever its
  wavenumbers: `_taylor_green`.
- `dynamic_time_step` fails under jit (no report found): `_stable_time_step`.
- Conjugate gradients fail in jit for float32 fields where 64-bit types are on, which jax-cfd#44
  mended for the other solvers: `_conjugate_gradients`.
- JAX is about to refuse a cast from complex to real numbers, which the solver by `fft` makes
  (mended and not released): `_fft_solver`.

Only names inside JAX-CFD's own modules are changed: `jax` and `jax.numpy` stay what they are for
all other code. `jax_cfd.ml` and `jax_cfd.data` need packages that JAX-CFD does not install; of
them, what is loaded gets the tree functions alone.
"""

from __future__ import annotations

import functools
import importlib
import sys
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import jax.scipy.sparse.linalg
from jax.core import Tracer

MENDED_VERSION = "0.2.1"
TREE_FUNCTIONS = ("tree_flatten", "tree_leaves", "tree_map", "tree_structure", "tree_unflatten")


class StandIn(ModuleType):
    """A module with a few names of its own; all others are those of the module it stands for."""

    def __init__(self, module: ModuleType, **names: Any):
        super().__init__(module.__name__, module.__doc__)
        self.stands_for = module
        self.__dict__.update(names)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stands_for, name)


def repair_jax_cfd() -> None:
    """Mend JAX-CFD 0.2.1 in place, as this module's docstring lists; other versions stay as they
    are.

    Idempotent. What a step looks up while it runs is mended for steps made before, too; forcings
    and initial fields that fail while they are made have to be made after this call.
    """
    base = importlib.import_module("jax_cfd.base")
    for name in ("jax_cfd.collocated", "jax_cfd.spectral"):
        importlib.import_module(name)
    if sys.modules["jax_cfd"].__version__ != MENDED_VERSION:
        return
    mended_before = isinstance(base.boundaries.jnp, StandIn)
    _tree_functions(base)  # again where more of JAX-CFD was loaded since
    if not mended_before:
        for mend in REPAIRS[1:]:
            mend(base)


def _tree_functions(base: Any) -> None:
    """`jax.tree_map` and its siblings, removed in JAX 0.6: implicit diffusion, sums of forcings,
    Smagorinsky's closure, collocated grids and resizing use them."""
    del base
    found = {name: getattr(jax.tree_util, name) for name in TREE_FUNCTIONS}
    for name, module in list(sys.modules.items()):
        if name.startswith("jax_cfd.") and vars(module).get("jax") is jax:
            vars(module)["jax"] = StandIn(jax, **found)


def _padding(base: Any) -> None:
    """`jnp.pad(constant_values=None)`: JAX-CFD marks a side without a value by None, in the flux
    between walls as well as in a user's boundary conditions. No cell takes what stands for it."""

    def filled(values: Any) -> Any:
        if isinstance(values, (tuple, list)):
            return tuple(map(filled, values))
        return 0.0 if values is None else values

    def pad(array: Any, pad_width: Any, mode: Any = "constant", **options: Any) -> jax.Array:
        options = {name: filled(values) for name, values in options.items()}
        return jnp.pad(array, pad_width, mode, **options)

    base.boundaries.jnp = StandIn(jnp, pad=pad)


def _projection(base: Any) -> None:
    """∇²q = ∇·v with v = the wall's own velocity on the wall. A step leaves other values there
    (diffusion's), of which the solution knows and the projected field, set right at last, does
    not: its divergence in the cells along a wall grew with the square of the resolution."""
    differences = base.finite_differences

    def divergence(v: Any) -> Any:
        return differences.divergence(tuple(u.bc.impose_bc(u.array) for u in v))

    base.pressure.fd = StandIn(differences, divergence=divergence)


def _moving_walls(base: Any) -> None:
    """The flux u c through a wall is nothing where the wall lets nothing through, however fast it
    moves along itself (jax-cfd#231). JAX-CFD refused all walls that are not at rest."""
    boundaries, grids = base.boundaries, base.grids
    flux_conditions = boundaries.get_advection_flux_bc_from_velocity_and_scalar

    @functools.wraps(flux_conditions)
    def of_any_wall(u: Any, c: Any, flux_direction: int) -> Any:
        constant = isinstance(u.bc, boundaries.ConstantBoundaryConditions)
        if constant and not any(u.bc.bc_values[flux_direction]):
            u = grids.GridVariable(u.array, boundaries.HomogeneousBoundaryConditions(u.bc.types))
        return flux_conditions(u, c, flux_direction)

    boundaries.get_advection_flux_bc_from_velocity_and_scalar = of_any_wall


def _implicit_diffusion(base: Any) -> None:
    """(1 - ν Δt ∇²) u' = u with values on walls: u - w is diffused between walls at nought, where
    ∇²w = 0 and w has the walls' values. JAX-CFD's w is a sum of functions linear in x and in y,
    which has them where the sides of one axis alone are walls."""
    diffusion, grids = base.diffusion, base.grids
    linear = diffusion._rhs_transform

    @functools.wraps(linear)
    def without_walls(u: Any, bc: Any) -> Any:
        walls = [kinds for kinds in bc.types if "periodic" not in kinds]
        if len(walls) < 2 or not any(value for side in bc.bc_values for value in side):
            return linear(u, bc)
        nought = grids.GridArray(jnp.zeros_like(u.data), u.offset, u.grid)
        from_walls = base.finite_differences.laplacian(grids.GridVariable(nought, bc)).data
        laplacians = base.array_utils.laplacian_matrix_w_boundaries(u.grid, u.offset, bc)
        inverse = base.fast_diagonalization.pseudoinverse(
            laplacians, u.dtype, hermitian=True, implementation="matmul"
        )
        return u.data + inverse(from_walls)

    diffusion._rhs_transform = without_walls


def _taylor_green(base: Any) -> None:
    """u ~ exp(-(kx² + ky²) ν t); JAX-CFD has exp(-2 ν t) (jax-cfd#230)."""
    problem = base.validation_problems.TaylorGreen
    velocity = problem.velocity

    @functools.wraps(velocity)
    def decaying(self: Any, t: Any = 0, offsets: Any = None) -> Any:
        return velocity(self, t * (self._kx**2 + self._ky**2) / 2, offsets)

    problem.velocity = decaying


def _stable_time_step(base: Any) -> None:
    """Where the velocity is traced, the time step is NaN if diffusion does not allow it: a program
    that is being compiled cannot raise the error that stands for it elsewhere."""
    equations, advection = base.equations, base.advection
    refusing = equations.stable_time_step

    @functools.wraps(refusing)
    def stable_time_step(
        max_velocity: Any,
        max_courant_number: float,
        viscosity: Any,
        grid: Any,
        implicit_diffusion: bool = False,
    ) -> Any:
        traced = any(isinstance(x, Tracer) for x in (max_velocity, viscosity))
        if implicit_diffusion or not traced:
            return refusing(max_velocity, max_courant_number, viscosity, grid, implicit_diffusion)
        dt = advection.stable_time_step(max_velocity, max_courant_number, grid)
        # As `diffusion.stable_time_step` has it, of which the reciprocal exists for ν = 0.
        rate = viscosity * 2**grid.ndim / min(grid.step) ** 2
        return jnp.where(dt * rate > 1, jnp.nan, dt)

    equations.stable_time_step = stable_time_step


def _conjugate_gradients(base: Any) -> None:
    """The first guess of the pressure, nought, in the velocity's precision: JAX-CFD makes it in
    that of JAX, and JAX makes of the two a program that does not compile."""

    def cg(operator: Any, b: Any, x0: Any = None, **options: Any) -> Any:
        if x0 is not None:
            x0 = jax.tree.map(lambda x, like: x.astype(like.dtype), x0, b)
        return jax.scipy.sparse.linalg.cg(operator, b, x0=x0, **options)

    linalg = StandIn(jax.scipy.sparse.linalg, cg=cg)
    scipy = StandIn(jax.scipy, sparse=StandIn(jax.scipy.sparse, linalg=linalg))
    for module in (base.pressure, sys.modules["jax_cfd.collocated.pressure"]):
        vars(module)["jax"] = StandIn(module.jax, scipy=scipy)


def _fft_solver(base: Any) -> None:
    """The real part of the inverse transform, taken in so many words."""
    diagonalization = base.fast_diagonalization
    transform = diagonalization._circulant_fft_transform

    @functools.wraps(transform)
    def real_transform(func: Any, operators: Any, dtype: Any) -> Any:
        apply = transform(func, operators, jnp.result_type(dtype, jnp.complex64))
        if jnp.issubdtype(dtype, jnp.complexfloating):
            return apply
        return lambda rhs: apply(rhs).real.astype(dtype)

    diagonalization._circulant_fft_transform = real_transform


REPAIRS = (
    _tree_functions,
    _padding,
    _projection,
    _moving_walls,
    _implicit_diffusion,
    _taylor_green,
    _stable_time_step,
    _conjugate_gradients,
    _fft_solver,
)

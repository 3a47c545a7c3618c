"""Cubic crystals at rest: their edge, their energy, their elastic constants, at any parameters."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, PRNGKeyArray, PyTree

from .._adjoint import Implicit
from .._errors import ConfigError
from .._schedule import Schedule
from .._simulation import AbstractSimulation
from .._solve import solve
from ._potential import AbstractPotential
from ._structures import SITES, lattice

SPARE = 0.01  # by which a crystal may shrink before its box is too small for the cutoff
STEPS = 8  # of Newton, from an edge that is some per cent off


class Cubic(NamedTuple):
    """A cubic crystal at rest: `lattice_constant` [length]; `energy_per_atom` [energy]; `C11`,
    `C12`, `C44` [energy/length³]."""

    lattice_constant: Array
    energy_per_atom: Array
    C11: Array
    C12: Array
    C44: Array


class CubicCrystal(eqx.Module):
    """C_ab = (U_ee - U_eu U_uu⁻¹ U_ue)/V where dU/da = 0: a cubic crystal without pressure, whose
    sublattices shift by u when it is stretched by e.

    `measure(potential, params)` gives edge a, U/N, C₁₁, C₁₂ and C₄₄ from one crystal, turned by 45°
    about z: there C₃₃' = C₁₁, C₁₃' = C₁₂ and C₁₁' - C₁₂' = 2 C₄₄. There is no strain to choose, and
    all of it is differentiable in `params`: the edge follows by `ds.Implicit`, the shifts by the
    same theorem. Atoms sit where symmetry holds them. The crystal is repeated as far as the cutoff
    asks. NaN where it comes to rest more than 1 % below `edge`, and the derivative of what does not
    come to rest. `elastic_constants` takes any crystal.

    **Arguments:** `kind`: "sc", "bcc", "fcc" or "diamond"; `edge` [length] near its minimum.
    """

    kind: str = eqx.field(static=True)
    edge: float = eqx.field(static=True, converter=float)

    def __check_init__(self):
        if self.kind not in SITES:
            raise ConfigError("no such lattice", key="kind", value=self.kind, allowed=SITES)
        if not (math.isfinite(self.edge) and self.edge > 0):
            raise ConfigError("must be a positive length", key="edge", value=self.edge)

    def structure(self, reach: float | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Positions (atoms, 3), box (3,) and sublattices (atoms,) of the turned crystal, as large
        as a cutoff of `reach` asks."""
        short, wanted = self.edge / math.sqrt(2), 2 * (reach or 0.0) / (1 - SPARE)
        n, m = max(1, math.ceil(wanted / short)), max(1, math.ceil(wanted / self.edge))
        n += n % 2 if self.kind in ("sc", "bcc") else 0  # along [110] they repeat after two
        side = 2 * max(n, m)  # of a straight crystal that holds every site of the turned one
        many = len(SITES[self.kind]) * side**3
        x, _ = lattice(many, box=np.full(3, 4.0 * side), kind=self.kind)
        q = np.rint(x - x[0]).astype(int)  # quarters of an edge
        turned = np.stack([q[:, 0] + q[:, 1], q[:, 1] - q[:, 0], q[:, 2]], axis=1)
        turned = np.unique(np.mod(turned, 4 * np.array([n, n, m])), axis=0)
        x = turned * np.array([short, short, self.edge]) / 4
        sites = turned[:, 2] % 2 if self.kind == "diamond" else 0 * turned[:, 2]
        return x, np.array([n * short, n * short, m * self.edge]), sites

    def measure(self, potential: AbstractPotential, params: PyTree) -> Cubic:
        """The crystal of this potential with these parameters."""
        return _measured(self, potential, params)

    def _at_rest(self, potential: AbstractPotential, params: PyTree) -> Cubic:
        x, box, sites = self.structure(potential.reach)
        crystal = _Crystal(potential, jnp.asarray(x), jnp.asarray(box), jnp.asarray(sites))
        start = jnp.ones((), crystal.box.dtype)
        how = Implicit(linear_solver=lx.AutoLinearSolver(well_posed=True))
        rest = solve(crystal, params, start, schedule=Schedule(steps=STEPS), adjoint=how)
        size = rest.state
        size = jnp.where(jnp.min(size * crystal.box) < 2 * (potential.reach or 0.0), jnp.nan, size)
        c = crystal.stiffness(params, size, int(np.max(sites)))
        energy = potential.energy(params, size * crystal.positions, size * crystal.box)
        shear = (c[0, 0] + c[1, 1] - 2 * c[0, 1]) / 4  # as symmetric as the crystal
        across = (c[0, 2] + c[1, 2]) / 2
        return Cubic(size * self.edge, energy / len(x), c[2, 2], across, shear)


@eqx.filter_jit  # traced once, however often a program observes it
def _measured(crystal: CubicCrystal, potential: AbstractPotential, params: PyTree) -> Cubic:
    return crystal._at_rest(potential, params)


class _Crystal(AbstractSimulation):
    """a' = a - U_a/U_aa: Newton's steps to a crystal without pressure; the state is a relative to
    the start."""

    potential: AbstractPotential
    positions: Array
    box: Array
    sites: Array

    def energy(self, params: PyTree, size: Array, strain: Array, shifts: Array) -> Array:
        """U of the crystal, enlarged, its sublattices shifted against the first, stretched."""
        shifts = jnp.concatenate([jnp.zeros((1, 3), shifts.dtype), shifts])
        scale = size * (1 + strain)
        x = (self.positions + shifts[self.sites]) * scale
        driving = self.potential.driving_energy(params, x, self.box * scale)
        return driving + self.potential.volume_energy(params, len(x), self.box * scale)

    def stiffness(self, params: PyTree, size: Array, shifting: int) -> Array:
        """The block of C for stretches along the box, (3, 3)."""

        def energy(both: Array) -> Array:
            return self.energy(params, size, both[0], both[1:].reshape(-1, 3))

        many = 3 * (1 + shifting)
        whole = jax.hessian(lambda z: energy(z.reshape(-1, 3)))(jnp.zeros(many, self.box.dtype))
        along, across, inner = whole[:3, :3], whole[:3, 3:], whole[3:, 3:]
        if shifting:
            along = along - across @ jnp.linalg.solve(inner, across.T)
        return along / jnp.prod(size * self.box)

    def init(self, params: PyTree, key: PRNGKeyArray, **conditions: Any) -> Array:
        del params, key, conditions
        return jnp.ones((), self.box.dtype)

    def step(self, params: PyTree, state: Array) -> Array:
        none = jnp.zeros(3, self.box.dtype), jnp.zeros((1, 3), self.box.dtype)
        slope = jax.grad(lambda size: self.energy(params, size, *none))
        pull, stiff = jax.jvp(slope, (state,), (jnp.ones_like(state),))
        # near rest the derivative of a step is that of its pull alone
        return state - pull / jax.lax.stop_gradient(stiff)

    def observe(self, params: PyTree, state: Array) -> dict[str, Array]:
        del params, state
        return {}

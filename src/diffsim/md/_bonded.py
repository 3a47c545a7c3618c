"""Bonds, angles and dihedrals: the energy of a molecule's shape."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PyTree

from .._errors import ConfigError
from ._box import Edges, sound
from ._checks import checked_atoms
from ._exclusions import separation
from ._potential import AbstractPotential, Box, Positions


def _kinds(kinds: Any, count: int) -> Array | None:
    if kinds is None:
        return None
    whole = jnp.asarray(kinds, jnp.int32)
    if whole.shape != (count,):
        raise ConfigError(f"must be one for each of {count}", key="kinds", value=whole.shape)
    return whole


def _each(params: PyTree, kinds: Array | None) -> PyTree:
    """Parameters of each term: numbers hold for all, arrays are one a kind."""
    if kinds is None:
        return {k: jnp.asarray(v) for k, v in params.items()}
    return {k: jnp.asarray(v)[kinds] if jnp.ndim(v) else jnp.asarray(v) for k, v in params.items()}


def _check(params: PyTree, names: dict[str, str], kinds: Array | None) -> None:
    if sorted(params) != sorted(names):
        raise ConfigError(f"needs the parameters {', '.join(names)}", value=sorted(params))
    most = 0 if kinds is None else int(np.max(np.asarray(kinds), initial=-1)) + 1
    for key, value in params.items():
        values = np.asarray(value)
        if not np.all(np.isfinite(values)):
            raise ConfigError("must be finite", key=key)
        if values.ndim and (kinds is None or values.ndim > 1 or len(values) < most):
            raise ConfigError(f"must be a number, or one for each of {most} kinds", key=key)


class Bonds(AbstractPotential):
    """U = Σ ½ k (r_ij - r₀)².

    params: `k` [energy/length²], `r0` [length], numbers, or one for each of `kinds`.
    **Arguments:** `atoms` (bonds, 2); `kinds` (bonds,), the kind of each bond.
    """

    atoms: Int[Array, "bonds 2"]
    kinds: Int[Array, " bonds"] | None

    def __init__(self, atoms: Any, kinds: Any = None):
        self.atoms = jnp.asarray(checked_atoms("atoms", atoms, 2))
        self.kinds = _kinds(kinds, len(self.atoms))

    def energy(
        self, params: PyTree, positions: Positions, box: Box, neighbours: Any = None
    ) -> Array:
        x, p = jnp.asarray(positions), _each(params, self.kinds)
        d = separation(x, jnp.asarray(box, x.dtype), *self.atoms.T)
        return sound(0.5 * jnp.sum(p["k"] * (_length(d) - p["r0"]) ** 2), box)

    def check(self, params: PyTree, box: Any) -> None:
        _check(params, self.parameter_units(), self.kinds)

    def parameter_units(self) -> dict[str, str]:
        return {"k": "energy/length^2", "r0": "length"}


class Angles(AbstractPotential):
    """U = Σ ½ k (θ - θ₀)², θ the angle i-j-k at the middle atom.

    params: `k` [energy/rad²], `theta0` [rad], numbers, or one for each of `kinds`. Derivatives are
    finite at 0 and π too, where the angle has a kink: there its slope is taken as 0.
    **Arguments:** `atoms` (angles, 3), the middle one second; `kinds` (angles,).
    """

    atoms: Int[Array, "angles 3"]
    kinds: Int[Array, " angles"] | None

    def __init__(self, atoms: Any, kinds: Any = None):
        self.atoms = jnp.asarray(checked_atoms("atoms", atoms, 3))
        self.kinds = _kinds(kinds, len(self.atoms))

    def energy(
        self, params: PyTree, positions: Positions, box: Box, neighbours: Any = None
    ) -> Array:
        x, p = jnp.asarray(positions), _each(params, self.kinds)
        i, j, k = self.atoms.T
        box = jnp.asarray(box, x.dtype)
        a, b = separation(x, box, i, j), separation(x, box, k, j)
        theta = _angle(_length(jnp.cross(a, b)), jnp.sum(a * b, axis=1))
        return sound(0.5 * jnp.sum(p["k"] * (theta - p["theta0"]) ** 2), box)

    def check(self, params: PyTree, box: Any) -> None:
        _check(params, self.parameter_units(), self.kinds)

    def parameter_units(self) -> dict[str, str]:
        return {"k": "energy", "theta0": "dimensionless"}


class Dihedrals(AbstractPotential):
    """U = Σ k [1 + cos(n φ - φ₀)], φ the angle between the planes i-j-k and j-k-l, 0 for cis.

    params: `k` [energy], `phi0` [rad], numbers, or one for each of `kinds`. A torsion of several
    waves is several entries. Impropers of this form are served too.
    **Arguments:** `atoms` (dihedrals, 4); `periodicity` n, a number or (dihedrals,); `kinds`.
    """

    atoms: Int[Array, "dihedrals 4"]
    periodicity: Int[Array, " dihedrals"]
    kinds: Int[Array, " dihedrals"] | None

    def __init__(self, atoms: Any, periodicity: Any = 1, kinds: Any = None):
        self.atoms = jnp.asarray(checked_atoms("atoms", atoms, 4))
        waves = np.asarray(periodicity)
        if waves.shape not in ((), self.atoms.shape[:1]):
            cause = f"has the shape {waves.shape} for {len(self.atoms)} dihedrals"
            raise ConfigError(cause, key="periodicity")
        if np.any(waves < 1) or np.any(waves != np.round(waves)):
            cause = "must be whole numbers of at least 1"
            raise ConfigError(cause, key="periodicity", value=waves.tolist())
        self.periodicity = jnp.broadcast_to(jnp.asarray(waves, jnp.int32), self.atoms.shape[:1])
        self.kinds = _kinds(kinds, len(self.atoms))

    def energy(
        self, params: PyTree, positions: Positions, box: Box, neighbours: Any = None
    ) -> Array:
        x, p = jnp.asarray(positions), _each(params, self.kinds)
        phi = dihedral_angles(x, jnp.asarray(box, x.dtype), self.atoms)
        n = self.periodicity.astype(x.dtype)
        return sound(jnp.sum(p["k"] * (1 + jnp.cos(n * phi - p["phi0"]))), box)

    def check(self, params: PyTree, box: Any) -> None:
        _check(params, self.parameter_units(), self.kinds)

    def parameter_units(self) -> dict[str, str]:
        return {"k": "energy", "phi0": "dimensionless"}


def dihedral_angles(x: Array, box: Edges, atoms: Array) -> Array:
    """φ in (-π, π], of four atoms each (IUPAC: 0 is cis, clockwise positive)."""
    i, j, k, l = atoms.T  # noqa: E741
    a, b, c = separation(x, box, j, i), separation(x, box, k, j), separation(x, box, l, k)
    first, second = jnp.cross(a, b), jnp.cross(b, c)
    along = jnp.sum(first * second, axis=1)
    aside = _length(b) * jnp.sum(a * second, axis=1)
    return _angle(aside, along)


def _angle(aside: Array, along: Array) -> Array:
    """atan2, with a derivative of 0 where there is no angle: four atoms in a line, two at once."""
    none = (along == 0) & (aside == 0)
    return jnp.arctan2(jnp.where(none, 0, aside), jnp.where(none, 1, along))


def _length(d: Array) -> Array:
    """|d|, with a derivative of 0 at 0."""
    s = jnp.sum(d * d, axis=-1)
    return jnp.where(s > 0, jnp.sqrt(jnp.where(s > 0, s, 1)), 0)

"""Elastic constants of crystals, with atoms that follow, and their derivatives."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from .._errors import ConfigError
from ._box import triclinic
from ._minimise import Cell, minimise
from ._potential import AbstractPotential


def elastic_constants(
    potential: AbstractPotential,
    params: PyTree,
    positions: Any,
    box: Any,
    *,
    cell: Cell = "fixed",
    **options: Any,
) -> Float[Array, "3 3"]:
    """C_ab = (1/V) ∂²U*/∂e_a ∂e_b at zero strain, U* the energy with atoms at rest: the block of
    C₁₁, C₁₂, ... for stretches e along the box [energy/length³].

    Atoms that shift inside the cell when it is stretched are followed by the implicit function
    theorem, so that there is no strain to choose: C = (U_ee - U_ex U_xx⁻¹ U_xe)/V. `positions`,
    `box`: a crystal near its minimum; `cell`: "fixed" for one that is without pressure there, or
    how its box comes to rest first; options are those of `minimise`. Differentiable in `params`,
    structure and box at rest moving along (`ds.Implicit`); NaN where it does not come to rest. C₄₄
    comes from a crystal that is turned by 45°: there C₁₁' = (C₁₁ + C₁₂ + 2 C₄₄)/2; `CubicCrystal`
    has it.
    """
    if triclinic(box):
        raise ConfigError(
            "is triclinic: stretches along its edges are no strains of a crystal",
            key="box",
            allowed="(3,) edges of a rectangular cell of the same crystal",
        )
    rest = minimise(potential, params, positions, box, cell=cell, **options)
    return stiffness(potential, params, rest.positions, rest.box)


def stiffness(potential: AbstractPotential, params: PyTree, x: Array, box: Array) -> Array:
    """`elastic_constants` of a crystal at rest."""
    dynamic, static = eqx.partition((params, x, box), eqx.is_inexact_array)
    arrays, rest = eqx.partition(potential, eqx.is_array)

    def energy(e: Array, y: Array, dynamic: PyTree, arrays: PyTree) -> Array:
        params, x, box = eqx.combine(dynamic, static)
        return eqx.combine(arrays, rest).energy(params, (x + y) * (1 + e), box * (1 + e))

    def block(dynamic: PyTree, arrays: PyTree, shifts: Array) -> Array:
        """d_a ∇²U d_b/V with d = (e, shift): least in the shifts, which enter no first
        derivative."""
        push = lambda e, y: _turned(energy, dynamic, arrays, e, y)  # noqa: E731
        along, across = jax.vmap(push)(jnp.eye(3, dtype=x.dtype), shifts)
        return (along + jnp.einsum("aij,bij->ab", across, shifts)) / jnp.prod(dynamic[2])

    def shifts(dynamic: PyTree, arrays: PyTree) -> Array:
        """dx*/de_a = -U_xx⁻¹ U_xe_a, (3, atoms, 3)."""
        none = jnp.zeros((3,), x.dtype)
        push = lambda y: _turned(energy, dynamic, arrays, none, y)[1]  # noqa: E731
        pull = lambda e: _turned(energy, dynamic, arrays, e, jnp.zeros_like(x))[1]  # noqa: E731
        return jax.lax.map(lambda e: _solved(push, -pull(e)), jnp.eye(3, dtype=x.dtype))

    def plain(dynamic: PyTree, arrays: PyTree) -> Array:
        return block(dynamic, arrays, shifts(dynamic, arrays))

    whole = jax.custom_jvp(plain)

    @whole.defjvp
    def _(primals: Any, tangents: Any) -> tuple[Array, Array]:
        dynamic, arrays = primals
        held = shifts(dynamic, arrays)
        along = jax.jvp(lambda dynamic: block(dynamic, arrays, held), (dynamic,), (tangents[0],))
        return whole(dynamic, arrays), along[1]

    return whole(dynamic, arrays)


def _turned(energy: Any, dynamic: PyTree, arrays: PyTree, e: Array, y: Array) -> Any:
    """∇²U (e, y) at rest: what a stretch and shifts of the atoms do to the slope."""
    slope = jax.grad(lambda e, y: energy(e, y, dynamic, arrays), argnums=(0, 1))
    zero = jnp.zeros_like(e), jnp.zeros_like(y)
    return jax.jvp(slope, zero, (e, y))[1]


def _solved(push: Any, b: Array) -> Array:
    """y with U_xx y = b, its mean zero; NaN where there is none."""
    rtol = 1e-10 if b.dtype == jnp.float64 else 1e-5
    b = b - jnp.mean(b, axis=0)
    stiff = lambda y: push(y) + jnp.mean(y, axis=0)  # noqa: E731, a shift of all is no zero mode
    y = jax.scipy.sparse.linalg.cg(stiff, b, tol=rtol, maxiter=10 * b.size)[0]
    left = jnp.max(jnp.abs(push(y) - b))
    return jnp.where(left <= 1e3 * rtol * jnp.max(jnp.abs(b)), y, jnp.nan)

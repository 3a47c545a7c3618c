"""Derivatives in the mode that the adjoint has, whichever mode an optimiser asks for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._adjoint import AbstractAdjoint
from .._simulation import AbstractFlow, AbstractSimulation

FEW = 100  # parameters up to which forward mode is preferred where there is a choice
FEW_TWICE = 30  # the same for second derivatives


def prefers_forward(modes: Sequence[str], count: int) -> bool:
    """Whether tangents are pushed forward: where nothing else works, or where they are few."""
    return "reverse" not in modes or ("forward" in modes and count <= FEW)


def value_and_jacobian(
    fn: Callable[[Array], Array], z: Array, *, forward: bool
) -> tuple[Array, Array]:
    """fn(z) and ∂fn/∂z, (*value.shape, n), in one pass over the trajectory."""
    if forward:
        push = lambda tangent: jax.jvp(fn, (z,), (tangent,))  # noqa: E731
        return jax.vmap(push, out_axes=(None, -1))(jnp.eye(z.size, dtype=z.dtype))
    value, transpose = jax.vjp(fn, z)
    if value.ndim == 0:
        return value, transpose(jnp.ones_like(value))[0]
    (jacobian,) = jax.vmap(transpose)(jnp.eye(value.size, dtype=value.dtype))
    return value, jacobian


def pushed(
    fn: Callable[[Array], tuple[Array, Any]], z: Array, chunk: int | None = None
) -> tuple[Array, Array, Any]:
    """fn(z), ∂fn/∂z (*value.shape, n) and what fn gives besides, by tangents that run along,
    `chunk` of them side by side: nothing of the trajectory is kept."""

    def push(tangent: Array) -> tuple[Array, Array, Any]:
        return jax.jvp(fn, (z,), (tangent,), has_aux=True)

    unit = jnp.eye(z.size, dtype=z.dtype)
    chunk = z.size if chunk is None else min(chunk, z.size)
    many = jax.vmap(push, out_axes=(None, -1, None))
    value, slope, aux = many(unit[:chunk])
    if chunk < z.size:  # one program for all the others, whatever their number
        others = jax.lax.map(lambda tangent: push(tangent)[1], unit[chunk:], batch_size=chunk)
        slope = jnp.concatenate([slope, jnp.moveaxis(others, 0, -1)], axis=-1)
    return value, slope, aux


def explicit(fn: Callable[[Array], Array], *, forward: bool) -> Callable[[Array], Array]:
    """`fn` of one array, its derivative a matrix that is computed forward or in reverse as told.

    Every transformation applies to the result once, in both modes: samplers that call `jax.grad`
    run over an adjoint without a reverse mode, Gauss-Newton over one without a forward mode.
    """
    called = jax.custom_jvp(fn)

    @called.defjvp
    def rule(primals, tangents):
        value, jacobian = value_and_jacobian(fn, *primals, forward=forward)
        return value, jacobian @ tangents[0]

    return called


def hessian(
    fn: Callable[[Array], Array], z: Array, adjoint: AbstractAdjoint, sim: AbstractSimulation
) -> Array:
    """∂²fn/∂z², (n, n): forward over forward, or over reverse where parameters are many or the
    adjoint has no forward mode; of one whose gradient has no derivative, central differences of
    it, to about 1e-7."""
    few = z.size <= FEW_TWICE or "reverse" not in adjoint.modes
    if "forward" in adjoint.modes and few:
        return jax.jacfwd(jax.jacfwd(fn))(z)
    # the loops of adaptive solvers are Diffrax's, which differentiates them once
    fixed = not (isinstance(sim, AbstractFlow) and sim.adaptive)
    if "forward" in adjoint.modes or (adjoint.twice and fixed):
        return jax.jacfwd(jax.grad(fn))(z)
    step = jnp.finfo(z.dtype).eps ** (1 / 3) * jnp.maximum(1.0, jnp.abs(z))
    shifts = jnp.diag(step)

    def row(shift):
        return jax.grad(fn)(z + shift) - jax.grad(fn)(z - shift)

    rows = jax.lax.map(row, shifts) / (2 * step[:, None])
    return 0.5 * (rows + rows.T)

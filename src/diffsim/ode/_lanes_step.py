"""One step of an explicit Runge-Kutta method, unrolled from its tableau."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import diffrax
import jax
import numpy as np
from jaxtyping import PyTree

Scalar = Any  # a Python number or an array of shape ()


def rk_step(
    tableau: diffrax.ButcherTableau,
    f: Callable[[Any, Any], Any],
    t: Scalar,
    y: PyTree,
    h: Scalar,
    k1: PyTree | None = None,
) -> tuple[PyTree, PyTree, PyTree | None]:
    """k_i = f(t + c_i h, y + h Σ_j a_ij k_j),  y' = y + h Σ_i b_i k_i,  error = h Σ_i β_i k_i.

    The sums are written out and zero coefficients left out, so that a step compiles to a few
    fused loops. y: any pytree of arrays; f(t, y) returns the same. `k1`: f(t, y) where it is known.

    **Returns** y' at t + h; the embedded estimate of its error, shaped like y; and the derivative
    at t + h where the method has computed it (first same as last: Bosh3, Tsit5, Dopri5, Dopri8),
    which is the next step's `k1`, else None.
    """
    ks = [f(t, y) if k1 is None else k1]
    stage = y
    for c, row in zip(tableau.c, tableau.a_lower, strict=True):
        stage = add_scaled(y, h, row, ks)
        ks.append(f(t + float(c) * h, stage))
    end = stage if tableau.ssal else add_scaled(y, h, tableau.b_sol, ks)
    error = jax.tree.map(lambda s: h * s, weighted(tableau.b_error, ks))
    return end, error, ks[-1] if tableau.fsal else None


def add_scaled(y: PyTree, h: Scalar, weights: np.ndarray, ks: Sequence[PyTree]) -> PyTree:
    """y + h Σ w k."""
    return jax.tree.map(lambda a, s: a + h * s, y, weighted(weights, ks))


def weighted(weights: np.ndarray, ks: Sequence[PyTree]) -> PyTree:
    """Σ w k over the weights that are not zero; Python floats, so that float32 stays float32."""
    terms = [(float(w), k) for w, k in zip(weights, ks, strict=True) if w != 0]

    def total(*leaves: Any) -> Any:
        first, *rest = (w * k for (w, _), k in zip(terms, leaves, strict=True))
        return sum(rest, first)

    return jax.tree.map(total, *(k for _, k in terms))

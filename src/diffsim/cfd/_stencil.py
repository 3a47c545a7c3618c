"""Differences, averages and ghost cells along one axis, each with its transpose written out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array

from ._linear import AbstractLinear

Ghost = str  # "wrap", "even", "odd", "through" or "zero": see `_Extension`


def cut(x: Array, axis: int, start: int | None, stop: int | None) -> Array:
    """x[start:stop] along an axis."""
    index = [slice(None)] * x.ndim
    index[axis] = slice(start, stop)
    return x[tuple(index)]


def _with_zeros(x: Array, axis: int, count: int) -> Array:
    widths = [(0, 0)] * x.ndim
    widths[axis] = (count, count)
    return jnp.pad(x, widths)


@dataclass(frozen=True)
class _Stencil(AbstractLinear):
    """yᵢ = Σₖ cₖ xᵢ₊ₖ where all of x is there; with `adjoint`, its transpose: the reversed stencil
    of x with zeros around."""

    axis: int
    weights: tuple[float, ...]
    adjoint: bool = False

    def apply(self, x: Array) -> Array:
        weights, reach = self.weights, len(self.weights) - 1
        if self.adjoint:
            x, weights = _with_zeros(x, self.axis, reach), weights[::-1]
        n = x.shape[self.axis] - reach
        terms = [w * cut(x, self.axis, k, k + n) for k, w in enumerate(weights)]
        return sum(terms[1:], terms[0])

    def transposed(self, shape: tuple[int, ...]) -> AbstractLinear:
        return _Stencil(self.axis, self.weights, not self.adjoint)


def difference(x: Array, axis: int) -> Array:
    """xᵢ₊₁ - xᵢ."""
    return _Stencil(axis, (-1.0, 1.0))(x)


def average(x: Array, axis: int) -> Array:
    """(xᵢ₊₁ + xᵢ)/2."""
    return _Stencil(axis, (0.5, 0.5))(x)


def second_difference(x: Array, axis: int) -> Array:
    """xᵢ₊₁ - 2 xᵢ + xᵢ₋₁."""
    return _Stencil(axis, (1.0, -2.0, 1.0))(x)


@dataclass(frozen=True)
class _Extension(AbstractLinear):
    """x with ghosts before and after it along an axis, `low` and `high` telling the kind of each.

    "wrap": the other end; "even", "odd": mirrored at the face beyond the last value, with either
    sign; "through": 2 x₀ - x₁, mirrored through the last value; "zero".
    """

    axis: int
    low: tuple[Ghost, ...]
    high: tuple[Ghost, ...]

    def apply(self, x: Array) -> Array:
        before = _ghosts(x, self.axis, self.low, low=True)
        return jnp.concatenate(
            [*before, x, *_ghosts(x, self.axis, self.high, low=False)], self.axis
        )

    def transposed(self, shape: tuple[int, ...]) -> AbstractLinear:
        return _Fold(self.axis, self.low, self.high)


def _ghosts(x: Array, axis: int, kinds: Sequence[Ghost], *, low: bool) -> list[Array]:
    """The block of ghosts at one end, as a list of one array or none."""
    width = len(kinds)
    if not width:
        return []
    near = cut(x, axis, 0, width) if low else cut(x, axis, -width, None)
    match kinds[0]:
        case "wrap":
            return [cut(x, axis, -width, None) if low else cut(x, axis, 0, width)]
        case "even":
            return [jnp.flip(near, axis)]
        case "odd":
            return [-jnp.flip(near, axis)]
        case "through":
            second = cut(x, axis, 1, 2) if low else cut(x, axis, -2, -1)
            return [2 * near - second]
    return [jnp.zeros_like(near)]


@dataclass(frozen=True)
class _Fold(AbstractLinear):
    """The transpose of `_Extension`: what the ghosts hold is added where they came from."""

    axis: int
    low: tuple[Ghost, ...]
    high: tuple[Ghost, ...]

    def apply(self, x: Array) -> Array:
        axis, lo, hi = self.axis, len(self.low), len(self.high)
        n = x.shape[axis] - lo - hi
        reach = 2  # no ghost comes from deeper than this
        core = cut(x, axis, lo, lo + n)
        head, tail = cut(core, axis, 0, reach), cut(core, axis, n - reach, None)
        if lo:
            head, tail = self._added(cut(x, axis, 0, lo), self.low, head, tail, low=True)
        if hi:
            ghost = cut(x, axis, lo + n, None)
            head, tail = self._added(ghost, self.high, head, tail, low=False)
        return jnp.concatenate([head, cut(core, axis, reach, n - reach), tail], axis)

    def _added(
        self, ghost: Array, kinds: Sequence[Ghost], head: Array, tail: Array, *, low: bool
    ) -> tuple[Array, Array]:
        axis, width = self.axis, len(kinds)
        own, other = (head, tail) if low else (tail, head)
        match kinds[0]:
            case "wrap":
                other = other + _placed(ghost, axis, 2 - width, at_end=low)
            case "even":
                own = own + _placed(jnp.flip(ghost, axis), axis, 2 - width, at_end=not low)
            case "odd":
                own = own - _placed(jnp.flip(ghost, axis), axis, 2 - width, at_end=not low)
            case "through":
                pair = [2 * ghost, -ghost] if low else [-ghost, 2 * ghost]
                own = own + jnp.concatenate(pair, axis)
        return (own, other) if low else (other, own)

    def transposed(self, shape: tuple[int, ...]) -> AbstractLinear:
        return _Extension(self.axis, self.low, self.high)


def _placed(x: Array, axis: int, missing: int, *, at_end: bool) -> Array:
    """x at one end of a block that is longer by `missing`."""
    widths = [(0, 0)] * x.ndim
    widths[axis] = (missing, 0) if at_end else (0, missing)
    return jnp.pad(x, widths) if missing else x


def extended(x: Array, axis: int, low: Ghost | None, high: Ghost | None, width: int = 1) -> Array:
    """x with `width` ghosts of the kinds `low` and `high` (None: none) at the ends of an axis."""
    before, after = (() if kind is None else (kind,) * width for kind in (low, high))
    return _Extension(axis, before, after)(x) if before or after else x

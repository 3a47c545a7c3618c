"""Blocks of lanes: what runs in one, and how its gradient is taken."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jaxtyping import Array, PyTree

from ._lanes_loops import (
    NONFINITE,
    RUNNING,
    Components,
    Rows,
    Rule,
    Saved,
    adaptive,
    equal,
    no_rows,
    pull_rows,
)
from ._lanes_scalars import evaluate, numbers, taken_apart

Operands = tuple[Array, list[Array], list[Array]]


class Field(NamedTuple):
    """A traced vector field and its arguments, in blocks: what it holds itself, then `args`.

    `fixed`: what it holds, where that is no floating-point number, else None; `axes`: -1 for
    arguments that have lanes, None for shared ones; `shapes`: theirs for one lane; `apart`:
    whether numbers are arrays of their own, see `_lanes_scalars`.
    """

    jaxpr: core.Jaxpr
    fixed: tuple[Any, ...]
    axes: tuple[int | None, ...]
    shapes: tuple[tuple[int, ...], ...]
    apart: bool

    def unpack(self, arguments: Sequence[Array], lanes: int | None = None) -> PyTree:
        """The arguments as `derivative` takes them. `lanes`: shared numbers as lanes too, so that
        their cotangents are summed once, at the end."""
        if not self.apart:
            return list(arguments)
        return [
            [self._entry(x, i, axis, lanes) for i in np.ndindex(shape)]
            for x, axis, shape in zip(arguments, self.axes, self.shapes, strict=True)
        ]

    def _entry(self, x: Array, index: Any, axis: int | None, lanes: int | None) -> Array:
        entry = x[index]
        return jnp.broadcast_to(entry, (lanes,)) if axis is None and lanes is not None else entry

    def __call__(self, t: Any, y: Components, args: PyTree) -> Components:
        """dy/dt of all lanes of a block."""
        lanes = y[0].shape[0]
        if not self.apart:
            return self._batched(jnp.broadcast_to(t, (lanes,)), jnp.stack(y), args)
        held = [numbers(x, shape) for x, shape in zip(args, self.shapes, strict=True)]
        constants, held = self._with_fixed(
            [None if x is None else taken_apart(x) for x in self.fixed], held
        )
        inputs = [numbers([t], ()), numbers(y, (len(y),)), *held]
        (dy,) = evaluate(self.jaxpr, constants, inputs)
        return tuple(jnp.broadcast_to(x, (lanes,)) for x in dy)

    def _with_fixed(self, fixed: Sequence[Any], arguments: Sequence[Any]) -> tuple[list, list]:
        """All that the field holds, and the arguments that are left."""
        remaining = iter(arguments)
        return [next(remaining) if x is None else x for x in fixed], list(remaining)

    def _batched(self, t: Array, y: Array, args: list[Array]) -> Components:
        def single(t: Array, y: Array, *args: Array) -> Array:
            constants, rest = self._with_fixed(self.fixed, args)
            return core.jaxpr_as_fun(core.ClosedJaxpr(self.jaxpr, constants))(t, y, *rest)[0]

        dy = jax.vmap(single, in_axes=(0, -1, *self.axes), out_axes=-1)(t, y, *args)
        return tuple(dy[i] for i in range(dy.shape[0]))


class Kernel(NamedTuple):
    """What runs in a block: `pieces` of equal steps, or adaptive ones where it is None."""

    rule: Rule
    field: Field
    pieces: tuple[int, ...] | None

    @property
    def room(self) -> int:
        return self.rule.max_steps if self.pieces is None else max(self.pieces)

    def run(self, y: Array, arguments: list[Array], times: list[Array]) -> Saved:
        """y: (n, lanes); times: t0 and the saves, or t0 and the step."""
        args = self.field.unpack(arguments)
        if self.pieces is None:
            return adaptive(self.rule, self.field, args, times[0], tuple(y), times[1])[0]

        def piece(y: Components, piece: Array) -> tuple[Components, Components]:
            first, count = piece
            y, _ = equal(self.rule, self.field, args, times[0], times[1], y, first, count)
            return y, y

        _, ys = jax.lax.scan(piece, tuple(y), self._numbers())
        good = jnp.all(jnp.isfinite(jnp.stack(ys)), axis=0)
        taken = jnp.full(y.shape[1:], sum(self.pieces), jnp.int32)
        code = jnp.where(good[-1], RUNNING, NONFINITE).astype(jnp.int32)
        return Saved(ys, good, jnp.cumsum(self._numbers()[1]), code, taken, 0 * taken)

    def _numbers(self) -> Array:
        """(pieces, 2): the number of the first step of each piece, and how many it has."""
        counts = np.asarray(self.pieces, np.int32)
        return jnp.stack([jnp.asarray(np.cumsum(counts) - counts), jnp.asarray(counts)], axis=1)

    def pull(
        self, y: Array, arguments: list[Array], times: list[Array], rows: Rows, saved: Any, ct: Any
    ) -> tuple[Array, list[Array], Rows]:
        """Cotangents of y and of the arguments from those of the saves, ct: n arrays (saves,
        lanes); `saved`: the states at the pieces' ends."""
        args, transpose = jax.vjp(lambda a: self.field.unpack(a, y.shape[1]), arguments)
        zeros = tuple(map(jnp.zeros_like, tuple(y))), jax.tree.map(jnp.zeros_like, args)
        if self.pieces is None:
            out, rows = self._pull_adaptive(y, args, times, rows, ct, zeros)
        else:
            out, rows = self._pull_equal(y, args, times, rows, saved, ct, zeros)
        return jnp.stack(out[0]), transpose(out[1])[0], rows

    def _pull_adaptive(self, y, args, times, rows, ct, zeros):
        saved, rows = adaptive(self.rule, self.field, args, times[0], tuple(y), times[1], rows)
        firsts = jnp.concatenate([jnp.zeros_like(saved.ends[:1]), saved.ends[:-1]])

        def segment(carry, inputs):
            (ct_y, ct_args), (ct, good, first, end) = carry, inputs
            ct_y = tuple(a + jnp.where(good, b, 0) for a, b in zip(ct_y, ct, strict=True))
            carry = pull_rows(self.rule, self.field, args, rows, first, end, (ct_y, ct_args))
            return carry, None

        inputs = (ct, saved.good, firsts, saved.ends)
        return jax.lax.scan(segment, zeros, inputs, reverse=True)[0], rows

    def _pull_equal(self, y, args, times, rows, saved, ct, zeros):
        starts = tuple(jnp.concatenate([a[None], b[:-1]]) for a, b in zip(y, saved, strict=True))

        def piece(carry, inputs):
            (ct_y, ct_args, rows), (ct, start, (first, count)) = carry, inputs
            ct_y = tuple(a + b for a, b in zip(ct_y, ct, strict=True))
            _, rows = equal(
                self.rule, self.field, args, times[0], times[1], start, first, count, rows
            )
            ct_y, ct_args = pull_rows(
                self.rule, self.field, args, rows, jnp.zeros_like(count), count, (ct_y, ct_args)
            )
            return (ct_y, ct_args, rows), None

        inputs = (ct, starts, self._numbers())
        carry, _ = jax.lax.scan(piece, (*zeros, rows), inputs, reverse=True)
        return carry[:2], carry[2]


def run_blocks(kernel: Kernel, y: Array, arguments: list[Array], times: list[Array]) -> Saved:
    """All blocks, one after the other. y: (blocks, n, lanes)."""
    shared, own = _divided(kernel, arguments)

    def one(block: tuple[Array, list[Array]]) -> Saved:
        return kernel.run(block[0], _united(kernel, shared, block[1]), times)

    if y.shape[0] == 1:
        return jax.tree.map(lambda x: x[None], one((y[0], [x[0] for x in own])))
    return jax.lax.map(one, (y, own))


def _divided(kernel: Kernel, arguments: list[Array]) -> tuple[list[Array], list[Array]]:
    pairs = list(zip(arguments, kernel.field.axes, strict=True))
    return [x for x, a in pairs if a is None], [x for x, a in pairs if a is not None]


def _united(kernel: Kernel, shared: list[Array], own: list[Array]) -> list[Array]:
    sources = iter(shared), iter(own)
    return [next(sources[axis is not None]) for axis in kernel.field.axes]


def run_reverse(kernel: Kernel, y: Array, arguments: list[Array], times: list[Array]) -> Saved:
    """`run_blocks` with its reverse mode: each block once more, keeping its steps, and back."""

    def keep(y, arguments, times):
        saved = run_blocks(kernel, y, arguments, times)
        return saved, (y, arguments, times, saved.y if kernel.pieces is not None else None)

    def back(residuals, ct):
        y, arguments, times, saved = residuals
        shared, own = _divided(kernel, arguments)

        def one(carry, block):
            rows, total = carry
            y, own, saved, ct = block
            united = _united(kernel, shared, own)
            ct_y, ct_arguments, rows = kernel.pull(y, united, times, rows, saved, ct)
            ct_shared, ct_own = _divided(kernel, ct_arguments)
            return (rows, jax.tree.map(jnp.add, total, ct_shared)), (ct_y, ct_own)

        carry = no_rows(kernel.room, tuple(y[0])), list(map(jnp.zeros_like, shared))
        (_, total), (ct_y, ct_own) = jax.lax.scan(one, carry, (y, own, saved, ct.y))
        return ct_y, _united(kernel, total, ct_own), list(map(jnp.zeros_like, times))

    run = jax.custom_vjp(lambda *operands: run_blocks(kernel, *operands))
    run.defvjp(keep, back)
    return run(y, arguments, times)

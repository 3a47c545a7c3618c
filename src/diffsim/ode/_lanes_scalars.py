"""A vector field taken apart: one array of lanes for each number that it computes with.

`dy[0] = y[1] * p` for a batch of trajectories reads a column, and its derivative writes a column
into zeros: strided memory, and a kernel for each. Here the field is traced once for one
trajectory, and its operations are then carried out on object arrays whose entries are arrays
(lanes,): indexing, stacking and reshaping cost nothing, arithmetic is on contiguous numbers and
fuses, and so does its derivative.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jaxtyping import Array

LARGEST = 32  # numbers in any one array, and
LONGEST = 1500  # in all of them, beyond which batched arrays compile and run faster

_ELEMENTWISE = frozenset(
    """abs acos acosh add and asin asinh atan atan2 atanh cbrt ceil clamp convert_element_type
    copy cos cosh digamma div eq erf erf_inv erfc exp exp2 expm1 floor ge gt integer_pow is_finite
    le lgamma log log1p logistic lt max min mul ne neg nextafter not or pow rem round rsqrt select_n
    sign sin sinh sqrt square stop_gradient sub tan tanh xor""".split()
)
_CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr"}

Numbers = np.ndarray[Any, np.dtype[np.object_]]  # entries: arrays () or (lanes,)


def fits(jaxpr: core.Jaxpr) -> bool:
    """Whether a traced field can be taken apart: small, and of operations known here."""
    sizes = list(_sizes(jaxpr))
    return max(sizes, default=0) <= LARGEST and sum(sizes) <= LONGEST


def _sizes(jaxpr: core.Jaxpr) -> Iterator[float]:
    """Of all arrays of a program; infinite where an operation is not known."""
    yield from (_size(var) for var in (*jaxpr.constvars, *jaxpr.invars))
    for eqn in jaxpr.eqns:
        yield from map(_size, eqn.outvars)
        name = eqn.primitive.name
        if name in _CALLS:
            yield from _sizes(eqn.params[_CALLS[name]].jaxpr)
        elif name == "dot_general":
            _, batches = eqn.params["dimension_numbers"]
            yield math.inf if any(batches) else 0.0
        elif name not in _ELEMENTWISE and name not in _STRUCTURE:
            yield math.inf


def _shape(var: Any) -> tuple[int, ...]:
    return var.aval.shape


def _size(var: Any) -> float:
    return float(math.prod(_shape(var)))


def numbers(entries: Sequence[Any], shape: tuple[int, ...]) -> Numbers:
    """An object array of a shape from its entries in order."""
    out = np.empty(len(entries), dtype=object)
    for i, entry in enumerate(entries):  # one by one: NumPy would look inside
        out[i] = entry
    return out.reshape(shape)


def _boxed(x: Any) -> Numbers:
    """NumPy's reductions return the entry itself where nothing is left to hold it."""
    return x if isinstance(x, np.ndarray) and x.dtype == object else numbers([x], ())


def evaluate(
    jaxpr: core.Jaxpr, consts: Sequence[Numbers], inputs: Sequence[Numbers]
) -> list[Numbers]:
    """What the traced function returns for inputs taken apart."""
    values: dict[Any, Numbers] = {}

    def read(atom: Any) -> Numbers:
        if isinstance(atom, core.Literal):
            return taken_apart(jnp.asarray(atom.val, atom.aval.dtype))  # pyright: ignore
        return values[atom]

    values.update(zip(jaxpr.constvars, consts, strict=True))
    values.update(zip(jaxpr.invars, inputs, strict=True))
    for eqn in jaxpr.eqns:
        outputs = _apply(eqn, [read(atom) for atom in eqn.invars])
        values.update(zip(eqn.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def taken_apart(value: Any) -> Numbers:
    """An array as an object array of its entries."""
    array = jnp.asarray(value)
    return numbers([array[index] for index in np.ndindex(array.shape)], array.shape)


def _apply(eqn: core.JaxprEqn, inputs: list[Numbers]) -> list[Numbers]:
    name = eqn.primitive.name
    if name in _CALLS:
        closed = eqn.params[_CALLS[name]]
        return evaluate(closed.jaxpr, list(map(taken_apart, closed.consts)), inputs)
    if name in _ELEMENTWISE:
        return [_elementwise(eqn, inputs)]
    out = _STRUCTURE[name](eqn.params, *inputs)
    return out if isinstance(out, list) else [out]


def _elementwise(eqn: core.JaxprEqn, inputs: list[Numbers]) -> Numbers:
    shape = _shape(eqn.outvars[0])
    spread = [np.broadcast_to(x, shape).ravel() for x in inputs]

    def one(*entries: Any) -> Array:
        # a primitive broadcasts nothing by itself
        return eqn.primitive.bind(*jnp.broadcast_arrays(*entries), **eqn.params)

    return numbers([one(*entries) for entries in zip(*spread, strict=True)], shape)


def _broadcast_in_dim(params: dict[str, Any], x: Numbers) -> Numbers:
    shape = [1] * len(params["shape"])
    for axis, size in zip(params["broadcast_dimensions"], x.shape, strict=True):
        shape[axis] = size
    return np.broadcast_to(x.reshape(shape), params["shape"])


def _slice(params: dict[str, Any], x: Numbers) -> Numbers:
    steps = params["strides"] or (1,) * x.ndim
    cuts = zip(params["start_indices"], params["limit_indices"], steps, strict=True)
    return x[tuple(slice(*cut) for cut in cuts)]


def _iota(params: dict[str, Any]) -> Numbers:
    shape, axis = params["shape"], params["dimension"]
    along = np.arange(shape[axis]).reshape([-1 if i == axis else 1 for i in range(len(shape))])
    return taken_apart(jnp.asarray(np.broadcast_to(along, shape), params["dtype"]))


def _split(params: dict[str, Any], x: Numbers) -> list[Numbers]:
    return list(np.split(x, np.cumsum(params["sizes"])[:-1], axis=params["axis"]))


def _dot(params: dict[str, Any], a: Numbers, b: Numbers) -> Numbers:
    return _boxed(np.tensordot(a, b, axes=params["dimension_numbers"][0]))


_STRUCTURE: dict[str, Callable[..., Numbers | list[Numbers]]] = {
    "broadcast_in_dim": _broadcast_in_dim,
    "concatenate": lambda params, *xs: np.concatenate(xs, axis=params["dimension"]),
    "dot_general": _dot,
    "iota": _iota,
    "reduce_sum": lambda params, x: _boxed(np.sum(x, axis=params["axes"])),
    "reshape": lambda params, x: x.reshape(params["new_sizes"]),
    "rev": lambda params, x: np.flip(x, params["dimensions"]),
    "slice": _slice,
    "split": _split,
    "squeeze": lambda params, x: np.squeeze(x, params["dimensions"]),
    "stack": lambda params, *xs: np.stack(xs, axis=params["axis"]),
    "transpose": lambda params, x: np.transpose(x, params["permutation"]),
}

"""Linear maps that know their transpose, so that a pullback is as quick as the map.

JAX transposes a slice to a padding and adds the paddings up; of a stencil that is five times
slower than the stencil of the transpose written out. A map bound here is differentiated forward as
itself and backward as its `transposed()`, to any order, and is batched by `vmap`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array


class AbstractLinear:
    """A linear map of one array; hashable, its fields static."""

    @abstractmethod
    def apply(self, x: Array) -> Array:
        """A x, by ordinary operations."""

    @abstractmethod
    def transposed(self, shape: tuple[int, ...]) -> AbstractLinear:
        """Aᵀ, of a map that takes arrays of `shape`."""

    def __call__(self, x: Array) -> Array:
        return _linear.bind(x, map=self)


@dataclass(frozen=True)
class _Batched(AbstractLinear):
    """The same map of each row along the first axis."""

    each: AbstractLinear

    def apply(self, x: Array) -> Array:
        return jax.vmap(self.each.apply)(x)

    def transposed(self, shape: tuple[int, ...]) -> AbstractLinear:
        return _Batched(self.each.transposed(shape[1:]))


_linear = Primitive("linear_map")


@_linear.def_impl
def _applied(x: Any, *, map: AbstractLinear) -> Any:
    return map.apply(x)


@_linear.def_abstract_eval
def _abstract(x: Any, *, map: AbstractLinear) -> Any:
    out = jax.eval_shape(map.apply, jax.ShapeDtypeStruct(x.shape, x.dtype))
    return x.update(shape=out.shape, dtype=out.dtype)


def _transpose(cotangent: Any, x: Any, *, map: AbstractLinear) -> Sequence[Any]:
    if isinstance(cotangent, ad.Zero):
        return (ad.Zero(x.aval),)
    return (_linear.bind(cotangent, map=map.transposed(x.aval.shape)),)


def _batch(args: Sequence[Any], axes: Sequence[int], *, map: AbstractLinear) -> tuple[Any, int]:
    (x,), (axis,) = args, axes
    return _linear.bind(jnp.moveaxis(x, axis, 0), map=_Batched(map)), 0


ad.deflinear2(_linear, _transpose)
batching.primitive_batchers[_linear] = _batch
mlir.register_lowering(
    _linear, mlir.lower_fun(lambda x, *, map: map.apply(x), multiple_results=False)
)

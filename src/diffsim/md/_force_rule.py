"""Forces whose derivative knows its transpose: one pass over the pairs, in either mode.

JAX would transpose the tangent of a pair sum term by term, which takes dozens of times as long as
the sum. The Hessian of an energy is symmetric: (∂F/∂x)ᵀ w is ∂F/∂x along w, and (∂F/∂θ)ᵀ w comes
with it. Both maps are primitives here, each the transpose of the other, so that every adjoint and
every ensemble has its pullback at the price of a pass, and further derivatives and `vmap` go on
working.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, PyTree

Forces = Callable[[PyTree, Array, Array, PyTree], Array]
Pullback = Callable[[PyTree, Array, Array, PyTree, Array], tuple[PyTree, Array]]

Flat = Sequence[Any]  # leaves: arrays, tangents, or JAX's placeholders for them


def forces_with_pullback(
    forces: Forces, pullback: Pullback, params: PyTree, positions: Array, box: Array, rest: PyTree
) -> Array:
    """`forces(params, positions, box, rest)`, (atoms, 3), whose reverse derivative is
    `pullback(params, positions, box, rest, w)`, (∂F/∂θ)ᵀ w and (∂F/∂x)ᵀ w.

    `rest`: arrays without derivative (neighbour structures). The derivative in the box and second
    ones are those of `forces` as JAX finds them.
    """
    params = jax.tree.map(jnp.asarray, params)
    leaves, tree = jax.tree.flatten((params, positions, box, rest))
    count = len(leaves) - len(jax.tree.leaves(rest))
    rule = _Rule(forces, pullback, tree, count)
    return _evaluated(rule, leaves[:count], leaves[count:])


@dataclasses.dataclass(frozen=True, eq=False)
class _Rule:
    """The static part: the functions, the tree of (θ, x, L, rest), of which the first `count`
    leaves are free; `axes`: for each level of a batch, where it is in every leaf."""

    forces: Forces
    pullback: Pullback
    tree: Any
    count: int
    axes: tuple[tuple[int | None, ...], ...] = ()

    def value(self, free: Flat, held: Flat) -> Array:
        return self.forces(*jax.tree.unflatten(self.tree, [*free, *held]))

    def pushed(self, leaves: Flat, tangents: Flat) -> Array:
        """(∂F/∂θ) θ̇ + (∂F/∂x) ẋ + (∂F/∂L) L̇."""

        def one(leaves: Flat, tangents: Flat) -> Array:
            free, held = leaves[: self.count], leaves[self.count :]
            along = lambda *free: self.value(free, held)  # noqa: E731
            return jax.jvp(along, tuple(free), tuple(tangents))[1]

        return self._batched(one)(list(leaves), list(tangents))

    def pulled(self, leaves: Flat, w: Array) -> list[Array]:
        """The transposes, a leaf each."""

        def one(leaves: Flat, w: Array) -> list[Array]:
            params, positions, box, rest = jax.tree.unflatten(self.tree, leaves)
            ct_params, ct_positions = self.pullback(params, positions, box, rest, w)
            in_box = lambda box: self.forces(params, positions, box, rest)  # noqa: E731
            (ct_box,) = jax.vjp(in_box, box)[1](w)
            return [*jax.tree.leaves(ct_params), ct_positions, ct_box]

        return self._batched(one)(list(leaves), w)

    def _batched(self, one: Callable[..., Any]) -> Callable[..., Any]:
        for level in self.axes:
            one = jax.vmap(one, in_axes=(list(level), 0))
        return one

    def over(self, level: tuple[int | None, ...]) -> _Rule:
        return dataclasses.replace(self, axes=(*self.axes, level))


def _evaluated(rule: _Rule, free: Flat, held: Flat) -> Array:
    @jax.custom_jvp
    def forces(free: Flat, held: Flat) -> Array:
        return rule.value(free, held)

    @forces.defjvp
    def _(primals: Any, tangents: Any) -> tuple[Array, Array]:
        free, held = primals
        tangent = _push.bind(*free, *held, *tangents[0], rule=rule)
        return forces(free, held), tangent

    return forces(free, held)


_push, _pull = Primitive("force_tangent"), Primitive("force_cotangent")
_pull.multiple_results = True


def _apart(rule: _Rule, operands: Flat) -> tuple[Flat, Flat]:
    """The leaves at which a derivative is taken, and what it is applied to."""
    size = rule.tree.num_leaves
    return operands[:size], operands[size:]


def _push_apply(*operands: Any, rule: _Rule) -> Array:
    return rule.pushed(*_apart(rule, operands))


def _pull_apply(*operands: Any, rule: _Rule) -> list[Array]:
    leaves, (w,) = _apart(rule, operands)
    return rule.pulled(leaves, w)


def _push_jvp(primals: Flat, tangents: Flat, *, rule: _Rule) -> tuple[Array, Any]:
    leaves, along = _apart(rule, primals)
    moved, turned = _apart(rule, tangents)
    out = _push.bind(*primals, rule=rule)
    parts = []
    if any(not isinstance(t, ad.Zero) for t in turned):
        parts.append(_push.bind(*leaves, *map(ad.instantiate_zeros, turned), rule=rule))
    if any(not isinstance(t, ad.Zero) for t in moved[: rule.count]):
        parts.append(_moved(lambda leaves: [rule.pushed(leaves, along)], rule, leaves, moved)[0])
    return out, sum(parts[1:], parts[0]) if parts else _zero(out)


def _pull_jvp(primals: Flat, tangents: Flat, *, rule: _Rule) -> tuple[list[Array], list[Any]]:
    leaves, (w,) = _apart(rule, primals)
    moved, (turned,) = _apart(rule, tangents)
    out = _pull.bind(*primals, rule=rule)
    dots: list[Any] = [_zero(x) for x in out]
    if not isinstance(turned, ad.Zero):
        dots = _pull.bind(*leaves, turned, rule=rule)
    if any(not isinstance(t, ad.Zero) for t in moved[: rule.count]):
        more = _moved(lambda leaves: rule.pulled(leaves, w), rule, leaves, moved)
        dots = [ad.add_tangents(a, b) for a, b in zip(dots, more, strict=True)]
    return out, dots


def _zero(x: Array) -> Any:
    return ad.Zero(jax.typeof(x).to_tangent_aval())


def _moved(
    fn: Callable[[Flat], list[Array]], rule: _Rule, leaves: Flat, moved: Flat
) -> list[Array]:
    """The derivative of `fn` along the tangents of the free leaves."""
    held = list(leaves[rule.count :])
    along = lambda *free: fn([*free, *held])  # noqa: E731
    tangents = tuple(map(ad.instantiate_zeros, moved[: rule.count]))
    return jax.jvp(along, tuple(leaves[: rule.count]), tangents)[1]


def _push_transpose(cotangent: Any, *operands: Any, rule: _Rule) -> list[Any]:
    leaves, along = _apart(rule, operands)
    nothing = [None] * len(leaves)
    if isinstance(cotangent, ad.Zero):
        return [*nothing, *(ad.Zero(x.aval) if ad.is_undefined_primal(x) else None for x in along)]
    back = _pull.bind(*leaves, cotangent, rule=rule)
    return [
        *nothing,
        *(ct if ad.is_undefined_primal(x) else None for ct, x in zip(back, along, strict=True)),
    ]


def _pull_transpose(cotangents: Sequence[Any], *operands: Any, rule: _Rule) -> list[Any]:
    leaves, _ = _apart(rule, operands)
    if all(isinstance(ct, ad.Zero) for ct in cotangents):
        return [*[None] * len(leaves), ad.Zero(operands[-1].aval)]
    along = map(ad.instantiate_zeros, cotangents)
    return [*[None] * len(leaves), _push.bind(*leaves, *along, rule=rule)]


def _batch(bind: Callable[..., Any]) -> Callable[..., Any]:
    def batched(operands: Flat, axes: Sequence[int | None], *, rule: _Rule) -> tuple[Any, Any]:
        sizes = {x.shape[a] for x, a in zip(operands, axes, strict=True) if a is not None}
        (size,) = sizes
        count = rule.tree.num_leaves
        given = []
        for k, (x, axis) in enumerate(zip(operands, axes, strict=True)):
            if axis is not None:
                given.append(jnp.moveaxis(x, axis, 0))
            else:  # what is not batched stays so where a derivative is taken
                given.append(x if k < count else jnp.broadcast_to(x, (size, *x.shape)))
        level = tuple(None if a is None else 0 for a in axes[:count])
        out = bind(*given, rule=rule.over(level))
        return out, [0] * len(out) if isinstance(out, (list, tuple)) else 0

    return batched


for _primitive, _apply, _jvp, _transpose in (
    (_push, _push_apply, _push_jvp, _push_transpose),
    (_pull, _pull_apply, _pull_jvp, _pull_transpose),
):
    _primitive.def_impl(_apply)
    _many = _primitive.multiple_results
    mlir.register_lowering(_primitive, mlir.lower_fun(_apply, multiple_results=_many))
    batching.primitive_batchers[_primitive] = _batch(_primitive.bind)
    ad.primitive_jvps[_primitive] = _jvp
    ad.primitive_transposes[_primitive] = _transpose


@_push.def_abstract_eval
def _push_shape(*operands: Any, rule: _Rule) -> Any:
    out = jax.eval_shape(lambda *x: _push_apply(*x, rule=rule), *map(_shape, operands))
    return _like(operands, out)


@_pull.def_abstract_eval
def _pull_shape(*operands: Any, rule: _Rule) -> Any:
    outs = jax.eval_shape(lambda *x: _pull_apply(*x, rule=rule), *map(_shape, operands))
    return [_like(operands, out) for out in outs]


def _like(operands: Flat, out: Any) -> Any:
    return operands[0].update(shape=out.shape, dtype=out.dtype, weak_type=False)


def _shape(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)

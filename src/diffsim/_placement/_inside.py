"""Gradients that each device takes inside of its own program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
from jax.extend.core import jaxpr_as_fun
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import PyTree


def pulled_inside(
    local: Callable[[PyTree, PyTree], PyTree], mesh: Mesh, axis: str
) -> Callable[[PyTree, PyTree], PyTree]:
    """`local(shared, members)` on every device of a mesh, whose transpose is taken inside of
    shard_map, from programs that were traced outside of it: Equinox compares the types of what goes
    through its checkpointed loops, and those carry the mesh.

    The cotangent of `shared` is the explicit sum over devices. Reverse mode alone, once.
    """
    every, rows = PartitionSpec(), PartitionSpec(axis)
    made: dict[str, Callable[..., Any]] = {}

    def split(fn: Callable[..., Any], inputs: Any, outputs: Any) -> Callable[..., Any]:
        return jax.shard_map(fn, mesh=mesh, in_specs=inputs, out_specs=outputs, check_vma=False)

    def of_one(shared: PyTree, members: PyTree) -> tuple[PyTree, PyTree]:
        """The shapes that one device sees."""
        part = lambda x: jax.ShapeDtypeStruct((x.shape[0] // mesh.size, *x.shape[1:]), x.dtype)  # noqa: E731
        return jax.tree.map(_struct, shared), jax.tree.map(part, members)

    @jax.custom_vjp
    def run(shared: PyTree, members: PyTree) -> PyTree:
        return split(_traced(local, *of_one(shared, members)), (every, rows), rows)(shared, members)

    def kept(shared: PyTree, members: PyTree) -> tuple[PyTree, list[Any]]:
        moving, fixed = eqx.partition((shared, members), eqx.is_inexact_array)

        def fn(moving: PyTree) -> tuple[PyTree, PyTree]:
            return eqx.partition(local(*eqx.combine(moving, fixed)), eqx.is_inexact_array)

        out, pull, other = jax.vjp(fn, moving, has_aux=True)
        leaves, tree = jax.tree.flatten(pull)
        of_out = jax.tree.map(_struct, out)
        made["back"] = _traced(
            lambda leaves, of_out: jax.tree.unflatten(tree, leaves)(of_out)[0],
            list(map(_struct, leaves)),
            of_out,
        )
        return eqx.combine(out, other), leaves

    def forward(shared: PyTree, members: PyTree) -> tuple[PyTree, list[Any]]:
        traced = _traced(kept, *of_one(shared, members))

        def body(shared: PyTree, members: PyTree) -> tuple[PyTree, list[Any]]:
            out, leaves = traced(shared, members)
            # an axis of devices, along which what each keeps for its way back lies
            return out, [x[None] for x in leaves]

        return split(body, (every, rows), (rows, rows))(shared, members)

    def backward(leaves: list[Any], of_out: PyTree) -> tuple[PyTree, PyTree]:
        def body(leaves: list[Any], of_out: PyTree) -> tuple[PyTree, PyTree]:
            of_shared, of_members = made["back"]([x[0] for x in leaves], of_out)
            return jax.lax.psum(of_shared, axis), of_members

        smooth = lambda x: None if x.dtype == jax.dtypes.float0 else x  # noqa: E731
        of_out = jax.tree.map(smooth, of_out)
        return split(body, (rows, rows), (every, rows))(leaves, of_out)

    run.defvjp(forward, backward)
    return run


def _struct(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _traced(fn: Callable[..., Any], *like: PyTree) -> Callable[..., Any]:
    """`fn` of arrays shaped as `like`, traced now."""
    program, shape = jax.make_jaxpr(fn, return_shape=True)(*like)
    run, tree = jaxpr_as_fun(program), jax.tree.structure(shape)
    return lambda *args: jax.tree.unflatten(tree, run(*jax.tree.leaves(args)))

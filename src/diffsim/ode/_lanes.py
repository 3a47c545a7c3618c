"""Ensembles of small ODEs: each trajectory in a lane of its own, with its own steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, PyTree

from .._errors import ConfigError
from .._simulation import RESULTS
from ._lanes_blocks import Field, Kernel, run_blocks, run_reverse
from ._lanes_loops import MAX_STEPS, NO_STEP, NONFINITE, Rule
from ._lanes_scalars import fits
from ._lanes_step import rk_step as rk_step

BLOCK = 4096  # lanes that step together


class LaneSolution(eqx.Module):
    """What an ensemble leaves.

    `ys`: (lanes, saves, n), NaN from where a lane failed; `result`: (lanes,), why it did;
    `accepted`, `rejected`: (lanes,) steps.
    """

    ys: Array
    result: RESULTS
    accepted: Array
    rejected: Array


def ensemble(
    vector_field: Callable[..., Any],
    y0: Any,
    args: PyTree = None,
    *,
    ts: Any,
    t0: float = 0.0,
    args_axes: PyTree = None,
    solver: diffrax.AbstractSolver | None = None,
    dt: float | None = None,
    rtol: float = 1e-6,
    atol: float = 1e-9,
    max_steps: int = 1000,
    gradient: str = "reverse",
    block: int = BLOCK,
) -> LaneSolution:
    """dy_l/dt = f(t, y_l; θ_l) for many lanes l, by an explicit Runge-Kutta method.

    y0: (lanes, n). `vector_field(t, y, args)` is that of one trajectory, y: (n,). `args_axes`: as
    in `jax.vmap`, None for arguments that the lanes share (the default), 0 for a lane axis. `ts`:
    (saves,) increasing times from `t0` on, hit exactly. `solver`: Tsit5 (default) or another
    explicit method of Diffrax with a tableau. `dt` given: equal steps, of which the times are
    multiples; else each lane has steps of its own: |error| ≤ atol + rtol |y| in the root mean
    square of the components.

    **Good for** thousands of trajectories of up to some tens of components. Lanes step together
    in blocks of up to `block` and wait for each other at each save, within the block only: sort
    lanes whose time scales differ much, so that like are together. `max_steps` bounds the steps of
    a block. Jit what calls this: outside, each call compiles anew.

    **Gradients** in y0 and in floating-point arguments are those of the steps as they were taken,
    lengths held fixed: exact for the discrete solution, and further from those of the differential
    equation than the solution is, some 4 to 25 times; tighten rtol with what the gradient is for.
    "reverse" runs each block once more, keeps its steps (max_steps × block × (n + 2) numbers: have
    `max_steps` tight), and goes back; "forward" is for `jax.jvp` and few parameters.

    **Errors:** `ConfigError` before tracing. Failure is data: see `LaneSolution`.
    """
    solver = diffrax.Tsit5() if solver is None else solver
    y0 = jnp.asarray(y0)
    y0 = y0 if jnp.issubdtype(y0.dtype, jnp.floating) else y0.astype(float)
    _check(y0, solver, gradient, rtol=rtol, atol=atol, max_steps=max_steps, block=block)
    _check_times(t0, ts)
    field, arguments = _trace(vector_field, args, args_axes, y0)
    pieces, chosen = (None, slice(None)) if dt is None else equal_pieces(t0, ts, dt)
    order = solver.order(diffrax.ODETerm(vector_field)) or 1
    tableau: Any = getattr(solver, "tableau", None)
    rule = Rule(tableau, float(order), float(rtol), float(atol), int(max_steps))
    kernel = Kernel(rule, field, pieces)
    # as many blocks as needed, all of the same width, so that few lanes are there twice
    width = math.ceil(y0.shape[0] / math.ceil(y0.shape[0] / block))
    blocks = [
        x if axis is None else _to_blocks(x, width)
        for x, axis in zip(arguments, field.axes, strict=True)
    ]
    times = [jnp.asarray(x, y0.dtype) for x in (t0, ts if dt is None else dt)]
    run = run_reverse if gradient == "reverse" else run_blocks
    saved = run(kernel, _to_blocks(y0, width), blocks, times)
    return _solution(saved, chosen, y0.shape[0])


def _solution(saved: Any, chosen: Any, lanes: int) -> LaneSolution:
    """From blocks (blocks, saves, lanes) back to lanes."""
    ys = jnp.stack([jnp.where(saved.good, y, jnp.nan)[:, chosen] for y in saved.y], axis=-1)
    ys = jnp.swapaxes(ys, 1, 2).reshape(-1, *ys.shape[1:2], ys.shape[-1])[:lanes]
    code, accepted, rejected = (
        x.reshape(-1)[:lanes] for x in (saved.code, saved.accepted, saved.rejected)
    )
    return LaneSolution(ys, jax.vmap(_why)(code), accepted, rejected)


def _why(code: Array) -> RESULTS:
    """The result of one lane."""
    result = RESULTS.successful
    result = RESULTS.where(code == NONFINITE, RESULTS.nonfinite, result)
    result = RESULTS.where(code == NO_STEP, RESULTS.solver_failed, result)
    return RESULTS.where(code == MAX_STEPS, RESULTS.max_steps_reached, result)


def _to_blocks(x: Array, width: int) -> Array:
    """(lanes, ...) to (blocks, ..., width), the last lane repeated to fill its block."""
    spare = -x.shape[0] % width
    if spare:
        x = jnp.concatenate([x, jnp.broadcast_to(x[-1:], (spare, *x.shape[1:]))])
    return jnp.moveaxis(x.reshape(-1, width, *x.shape[1:]), 1, -1)


def _trace(
    f: Callable[..., Any], args: PyTree, axes: PyTree, y0: Array
) -> tuple[Field, list[Array]]:
    """The field of one lane as a program, and its arguments: what it holds (shared) and args."""
    args = jax.tree.map(
        lambda x: jnp.asarray(x, y0.dtype) if isinstance(x, float) else x,
        jax.tree.map(lambda x: jnp.asarray(x) if isinstance(x, np.ndarray) else x, args),
    )
    dynamic, static = eqx.partition(args, eqx.is_inexact_array)
    leaves, structure = jax.tree.flatten(dynamic)
    own = _axes_of(args, axes, y0.shape[0])

    def single(t: Array, y: Array, *leaves: Array) -> Array:
        dy = jnp.asarray(f(t, y, eqx.combine(jax.tree.unflatten(structure, leaves), static)))
        if dy.shape != y.shape:
            raise ConfigError(
                "must return one number a component",
                key="vector_field",
                value=f"shape {dy.shape}",
                allowed=f"shape {y.shape}",
            )
        return dy.astype(y.dtype)

    one = [x[0] if axis == 0 else x for x, axis in zip(leaves, own, strict=True)]
    closed = jax.make_jaxpr(single)(jnp.zeros((), y0.dtype), y0[0], *one)
    held = [jnp.asarray(x) for x in closed.consts]
    fixed = tuple(None if eqx.is_inexact_array(x) else x for x in held)
    held = [x for x in held if eqx.is_inexact_array(x)]
    lane_axes = (None,) * len(held) + tuple(None if axis is None else -1 for axis in own)
    shapes = tuple(x.shape for x in (*held, *one))
    return Field(closed.jaxpr, fixed, lane_axes, shapes, fits(closed.jaxpr)), [*held, *leaves]


def _axes_of(args: PyTree, axes: PyTree, lanes: int) -> list[int | None]:
    """The lane axis of each differentiable leaf of args."""

    def one(axis: Any, subtree: PyTree) -> PyTree:
        return jax.tree.map(lambda x: (x, axis), subtree)

    pairs = jax.tree.leaves(
        jax.tree.map(one, axes, args, is_leaf=lambda x: x is None),
        is_leaf=lambda x: isinstance(x, tuple) and len(x) == 2 and x[1] in (None, 0),
    )
    own: list[int | None] = []
    for x, axis in pairs:
        if axis == 0 and not (eqx.is_inexact_array(x) and x.shape[:1] == (lanes,)):
            raise ConfigError(
                f"arguments with a lane axis are floating-point arrays of {lanes} lanes",
                key="args",
                value=getattr(x, "shape", x),
            )
        if eqx.is_inexact_array(x):
            own.append(axis)
    return own


def equal_pieces(t0: Any, ts: Any, dt: Any) -> tuple[tuple[int, ...], Any]:
    """Numbers of equal steps between states to keep, and which of these states are saves.

    Between saves that are far apart states are kept every √N steps, from which the way back
    computes the others.
    """
    if any(isinstance(x, Tracer) for x in (t0, ts, dt)):
        raise ConfigError("equal steps need times known before tracing", key="ts")
    exact = (np.asarray(ts, float) - t0) / dt
    steps = np.round(exact).astype(int)
    if not dt > 0 or np.any(np.abs(exact - steps) > 1e-6 * np.maximum(1, steps)):
        raise ConfigError("the times must be multiples of dt after t0", key="dt", value=dt)
    longest = max(math.isqrt(int(steps[-1])), 1)
    pieces: list[int] = []
    chosen = []
    for count in np.diff(steps, prepend=0):
        parts = max(math.ceil(count / longest), 1)
        pieces += [int(x) for x in np.diff(np.linspace(0, count, parts + 1).round())]
        chosen.append(len(pieces) - 1)
    stride = len(pieces) // len(chosen)
    # a slice rather than a list of numbers, where it is one: the way back is then no scatter
    even = np.array_equal(chosen, np.arange(stride - 1, len(pieces), stride))
    return tuple(pieces), slice(stride - 1, None, stride) if even else np.asarray(chosen)


def _check(y0: Array, solver: Any, gradient: str, **positive: Any) -> None:
    if y0.ndim != 2 or not y0.size:
        raise ConfigError("must have the shape (lanes, n)", key="y0", value=y0.shape)
    tableau = getattr(solver, "tableau", None)
    if not isinstance(solver, diffrax.AbstractERK) or not hasattr(tableau, "b_sol"):
        raise ConfigError(
            "must be an explicit Runge-Kutta method with a tableau",
            key="solver",
            value=type(solver).__name__,
            allowed=("Tsit5", "Dopri5", "Dopri8", "Bosh3", "Heun", "Midpoint", "Ralston"),
        )
    if gradient not in ("reverse", "forward"):
        raise ConfigError("unknown", key="gradient", value=gradient, allowed=("reverse", "forward"))
    for key, value in positive.items():
        if isinstance(value, Tracer) or not (math.isfinite(value) and value > 0):
            raise ConfigError("must be a positive number", key=key, value=value)


def _check_times(t0: Any, ts: Any) -> None:
    if isinstance(ts, Tracer) or isinstance(t0, Tracer):
        return
    times = np.asarray(ts, float)
    if times.ndim != 1 or not times.size or not np.all(np.isfinite(times)):
        raise ConfigError("must be a list of finite times", key="ts", value=ts)
    if times[0] < t0 or np.any(np.diff(times) <= 0):
        raise ConfigError(f"must increase, from t0 = {t0:g} on", key="ts", value=times.tolist())

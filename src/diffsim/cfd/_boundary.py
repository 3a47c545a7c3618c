"""What happens at the sides of a box: periodic, walls, slip, inflow, outflow."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._errors import ConfigError
from ._grid import AXES, Grid

Value = float | str | np.ndarray


class AbstractSide(eqx.Module):
    """One side of the box: what velocity is there, and whether fluid may leave through it."""


class Wall(AbstractSide):
    """u = U at the wall: no slip; a moving lid has a tangential velocity.

    **Arguments:** `velocity`: a number or the name of a parameter for each axis (default: at rest);
    the component along the wall's normal is zero.
    """

    velocity: tuple[Value, ...] | None = eqx.field(static=True, default=None)

    def __init__(self, velocity: Sequence[Value] | None = None):
        self.velocity = None if velocity is None else tuple(velocity)


class Slip(AbstractSide):
    """u·n = 0 and ∂u_t/∂n = 0: a plane of symmetry."""


class Inflow(AbstractSide):
    """u = U through the side: a number, the name of a parameter, or for the normal component a
    profile over the cells of the side, for each axis."""

    velocity: tuple[Any, ...]

    def __init__(self, velocity: Sequence[Any]):
        self.velocity = tuple(np.asarray(v, float) if np.ndim(v) else v for v in velocity)


class Outflow(AbstractSide):
    """∂u/∂n = 0 and p = 0: fluid leaves as it comes."""


Sides = tuple[AbstractSide, AbstractSide] | None  # None: periodic


def sides_of(boundaries: Any, grid: Grid) -> tuple[Sides, ...]:
    """Boundaries as a user writes them ("periodic" or a pair of sides for each axis), checked."""
    if boundaries is None or isinstance(boundaries, str):
        boundaries = (boundaries or "periodic",) * grid.ndim
    boundaries = tuple(boundaries)
    if len(boundaries) != grid.ndim:
        raise ConfigError(
            f"needs {grid.ndim} entries, one an axis of the grid, and has {len(boundaries)}",
            key="boundaries",
            allowed='"periodic" or a pair of Wall, Slip, Inflow, Outflow',
        )
    return tuple(_sides(entry, axis, grid) for axis, entry in enumerate(boundaries))


def _sides(entry: Any, axis: int, grid: Grid) -> Sides:
    key = f"boundaries.{AXES[axis]}"
    allowed = '"periodic" or a pair of Wall, Slip, Inflow, Outflow'
    if isinstance(entry, str):
        if entry != "periodic":
            raise ConfigError(
                "unknown boundary", key=key, value=entry, allowed=allowed, suggestion="periodic"
            )
        return None
    if entry is None:
        return None
    if not (
        isinstance(entry, (tuple, list))
        and len(entry) == 2
        and all(isinstance(side, AbstractSide) for side in entry)
    ):
        raise ConfigError("unknown boundary", key=key, value=entry, allowed=allowed)
    for side in entry:
        _check_velocity(side, key, axis, grid)
    return tuple(entry)


def _check_velocity(side: AbstractSide, key: str, axis: int, grid: Grid) -> None:
    if not isinstance(side, (Wall, Inflow)) or side.velocity is None:
        return
    if len(side.velocity) != grid.ndim:
        raise ConfigError(f"velocity needs {grid.ndim} components", key=key, value=side.velocity)
    if isinstance(side, Wall) and side.velocity[axis] != 0:
        raise ConfigError(
            "a wall moves along itself only", key=key, value=side.velocity, allowed="Inflow"
        )
    for component, value in enumerate(side.velocity):
        if isinstance(value, str):
            continue
        if not np.all(np.isfinite(value)):
            raise ConfigError("must be finite", key=key, value=value)
        rest = tuple(n for i, n in enumerate(grid.shape) if i != axis)
        if np.ndim(value) and (component != axis or np.shape(value) != rest):
            raise ConfigError(
                f"a profile is for the normal component, of shape {rest}",
                key=key,
                value=np.shape(value),
            )


def parameters_of(sides: Sequence[Sides]) -> tuple[str, ...]:
    """The names of the parameters that velocities at the sides are."""
    return tuple(
        value
        for pair in sides
        for side in pair or ()
        if isinstance(side, (Wall, Inflow))
        for value in side.velocity or ()
        if isinstance(value, str)
    )


def boundary_speed(sides: Sequence[Sides], params: Mapping[str, Any]) -> float:
    """The largest velocity at a side, for the time step. Host side."""
    speeds = [0.0]
    for pair in sides:
        for side in pair or ():
            if isinstance(side, (Wall, Inflow)):
                given = [params[v] if isinstance(v, str) else v for v in side.velocity or ()]
                speeds += [float(np.max(np.abs(np.asarray(v)))) for v in given]
    return max(speeds)


def side_velocity(
    side: AbstractSide, params: Mapping[str, Any], component: int, axis: int, ndim: int
) -> Any:
    """A component of the velocity at a side, ready to stand beside a field along `axis`."""
    if not isinstance(side, (Wall, Inflow)) or side.velocity is None:
        return 0.0
    value = side.velocity[component]
    value = params[value] if isinstance(value, str) else value
    value = jnp.asarray(value)
    return jnp.expand_dims(value, axis) if value.ndim == ndim - 1 and ndim > 1 else value


def cut(x: Array, axis: int, start: int | None, stop: int | None) -> Array:
    """x[start:stop] along an axis."""
    index = [slice(None)] * x.ndim
    index[axis] = slice(start, stop)
    return x[tuple(index)]


def difference(x: Array, axis: int) -> Array:
    """xᵢ₊₁ - xᵢ."""
    return cut(x, axis, 1, None) - cut(x, axis, None, -1)


def average(x: Array, axis: int) -> Array:
    """(xᵢ₊₁ + xᵢ)/2."""
    return 0.5 * (cut(x, axis, 1, None) + cut(x, axis, None, -1))


class Box(eqx.Module):
    """A grid with its sides: the staggered unknowns, and how fields go on beyond the sides.

    The unknowns of a velocity component are its values at the faces along its own axis that the
    equations determine: of a periodic axis of n cells the faces 1 to n (face n is face 0, as in
    JAX-CFD), between two walls 1 to n - 1; an outflow adds its own face. Along the other axes they
    are at the centres. Scalars and the pressure are at the centres of the cells.
    """

    grid: Grid
    sides: tuple[Sides, ...]

    def __init__(self, grid: Grid, boundaries: Any = None):
        self.grid, self.sides = grid, sides_of(boundaries, grid)

    @property
    def periodic(self) -> bool:
        return all(pair is None for pair in self.sides)

    @property
    def closed(self) -> bool:
        """Whether no side has p = 0, so that the pressure is known up to a constant."""
        return not any(isinstance(s, Outflow) for pair in self.sides for s in pair or ())

    def first_face(self, axis: int) -> int:
        """The number of the first unknown face along an axis."""
        pair = self.sides[axis]
        return 0 if pair is not None and isinstance(pair[0], Outflow) else 1

    def face_count(self, axis: int) -> int:
        """How many unknown faces there are along an axis."""
        n, pair = self.grid.shape[axis], self.sides[axis]
        if pair is None:
            return n
        return n - 1 + sum(isinstance(side, Outflow) for side in pair)

    def shape(self, component: int) -> tuple[int, ...]:
        """The shape of the unknowns of a velocity component."""
        shape = list(self.grid.shape)
        shape[component] = self.face_count(component)
        return tuple(shape)

    def coordinates(self, component: int | None = None) -> tuple[np.ndarray, ...]:
        """Where the unknowns of a component are (None: the centres), an array an axis."""
        along = [self.grid.centres(axis) for axis in range(self.grid.ndim)]
        if component is not None:
            first = self.first_face(component)
            count = self.face_count(component)
            along[component] = self.grid.faces(component)[first : first + count]
        return tuple(np.meshgrid(*along, indexing="ij"))

    def faces(self, u: Array, axis: int, params: Mapping[str, Any]) -> Array:
        """A velocity component at all n + 1 faces along its own axis."""
        pair = self.sides[axis]
        if pair is None:
            return jnp.concatenate([cut(u, axis, -1, None), u], axis)
        parts = [u]
        for side, place in zip(pair, (0, 1), strict=True):
            if not isinstance(side, Outflow):
                at_side = self._filled(side, params, u, axis)
                parts.insert(len(parts) if place else 0, at_side)
        return jnp.concatenate(parts, axis)

    def _filled(self, side: AbstractSide, params: Mapping[str, Any], u: Array, axis: int) -> Array:
        shape = [*u.shape]
        shape[axis] = 1
        value = side_velocity(side, params, axis, axis, u.ndim)
        return jnp.broadcast_to(jnp.asarray(value, u.dtype), shape)

    def beyond_faces(self, faces: Array, axis: int) -> Array:
        """All faces and one more beyond each end, as steep schemes need."""
        pair = self.sides[axis]
        if pair is None:
            # face 0 is face n
            return jnp.concatenate([cut(faces, axis, -2, -1), faces, cut(faces, axis, 1, 2)], axis)
        low, high = cut(faces, axis, 0, 1), cut(faces, axis, -1, None)
        below, above = cut(faces, axis, 1, 2), cut(faces, axis, -2, -1)
        outside = [
            edge if isinstance(side, Outflow) else 2 * edge - inner
            for side, edge, inner in zip(pair, (low, high), (below, above), strict=True)
        ]
        return jnp.concatenate([outside[0], faces, outside[1]], axis)

    def around(self, u: Array, component: int, params: Mapping[str, Any]) -> Array:
        """Unknowns of a component with one value more at each end of its own axis."""
        pair = self.sides[component]
        if pair is None:
            low, high = cut(u, component, -1, None), cut(u, component, 0, 1)
            return jnp.concatenate([low, u, high], component)
        ends = (cut(u, component, 0, 1), cut(u, component, -1, None))
        low, high = (
            end if isinstance(side, Outflow) else self._filled(side, params, u, component)
            for side, end in zip(pair, ends, strict=True)
        )
        return jnp.concatenate([low, u, high], component)

    def beside(
        self, u: Array, component: int, axis: int, params: Mapping[str, Any], width: int = 1
    ) -> Array:
        """A velocity component with `width` ghost cells beyond each side of another axis."""
        pair = self.sides[axis]
        if pair is None:
            return periodically(u, axis, width)
        ghosts = []
        for side, place in zip(pair, (0, 1), strict=True):
            edge = cut(u, axis, 0, width) if place == 0 else cut(u, axis, -width, None)
            mirrored = jnp.flip(edge, axis)
            if isinstance(side, (Wall, Inflow)):
                value = side_velocity(side, params, component, axis, u.ndim)
                mirrored = 2 * jnp.asarray(value, u.dtype) - mirrored
            ghosts.append(mirrored)
        return jnp.concatenate([ghosts[0], u, ghosts[1]], axis)

    def cells(self, q: Array, axis: int) -> Array:
        """Values at the centres such that each unknown face lies between two: beyond an outflow
        goes a copy."""
        pair = self.sides[axis]
        if pair is None:
            return jnp.concatenate([q, cut(q, axis, 0, 1)], axis)
        parts = [q]
        if isinstance(pair[0], Outflow):
            parts.insert(0, cut(q, axis, 0, 1))
        if isinstance(pair[1], Outflow):
            parts.append(cut(q, axis, -1, None))
        return jnp.concatenate(parts, axis) if len(parts) > 1 else q

    def to_faces(self, q: Array, axis: int) -> Array:
        """Values at the centres averaged to the unknown faces."""
        return average(self.cells(q, axis), axis)

    def difference_at_faces(self, q: Array, axis: int) -> Array:
        """qᵢ - qᵢ₋₁ at the unknown faces."""
        return difference(self.cells(q, axis), axis)

    def gradient(self, p: Array) -> tuple[Array, ...]:
        """∇p at the unknown faces, with p = 0 beyond an outflow: minus the transpose of the
        divergence, so that the projection is orthogonal."""
        return tuple(
            difference(self._pressure_cells(p, axis), axis) / h
            for axis, h in enumerate(self.grid.spacing)
        )

    def _pressure_cells(self, p: Array, axis: int) -> Array:
        pair = self.sides[axis]
        if pair is None:
            return jnp.concatenate([p, cut(p, axis, 0, 1)], axis)
        zero = jnp.zeros_like(cut(p, axis, 0, 1))
        low = [zero] if isinstance(pair[0], Outflow) else []
        high = [zero] if isinstance(pair[1], Outflow) else []
        return jnp.concatenate([*low, p, *high], axis) if low or high else p

    def divergence(self, velocity: Sequence[Array], params: Mapping[str, Any]) -> Array:
        """∇·u at the centres."""
        parts = [
            difference(self.faces(u, axis, params), axis) / h
            for axis, (u, h) in enumerate(zip(velocity, self.grid.spacing, strict=True))
        ]
        return sum(parts[1:], parts[0])

    def centred(self, velocity: Sequence[Array], params: Mapping[str, Any]) -> Array:
        """The velocity at the centres, shape (axes, *grid.shape)."""
        return jnp.stack(
            [average(self.faces(u, axis, params), axis) for axis, u in enumerate(velocity)]
        )


def periodically(u: Array, axis: int, width: int) -> Array:
    """A periodic field with `width` values more at each end of an axis."""
    return jnp.concatenate([cut(u, axis, -width, None), u, cut(u, axis, 0, width)], axis)


def flow_balance(box: Box, params: Mapping[str, Any]) -> float:
    """The net inflow through the sides of a box without outflow, which must be zero. Host side."""
    total = 0.0
    for axis, pair in enumerate(box.sides):
        for side, sign in zip(pair or (), (1.0, -1.0), strict=False):
            if isinstance(side, Inflow):
                value = side.velocity[axis]
                value = params[value] if isinstance(value, str) else value
                area = box.grid.volume / box.grid.size[axis]
                total += sign * float(np.mean(np.asarray(value))) * area
    return 0.0 if math.isclose(total, 0.0, abs_tol=1e-12) else total

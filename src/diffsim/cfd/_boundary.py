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
from ._stencil import Ghost, average, cut, difference, extended

Value = float | str | np.ndarray


def value_of(value: Any, params: Mapping[str, Any]) -> Any:
    """A number, or the parameter of that name."""
    return params[value] if isinstance(value, str) else value


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
                given = [value_of(v, params) for v in side.velocity or ()]
                speeds += [float(np.max(np.abs(np.asarray(v)))) for v in given]
    return max(speeds)


def side_velocity(
    side: AbstractSide, params: Mapping[str, Any], component: int, axis: int, ndim: int
) -> Any:
    """A component of the velocity at a side, ready to stand beside a field along `axis`; None
    where it is zero."""
    if not isinstance(side, (Wall, Inflow)) or side.velocity is None:
        return None
    value = side.velocity[component]
    if isinstance(value, (int, float)) and value == 0:
        return None
    value = jnp.asarray(value_of(value, params))
    return jnp.expand_dims(value, axis) if value.ndim == ndim - 1 and ndim > 1 else value


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
            return extended(u, axis, "wrap", None)
        low, high = (None if isinstance(side, Outflow) else "zero" for side in pair)
        return self._at_ends(extended(u, axis, low, high), axis, axis, params, 1.0)

    def beyond_faces(self, faces: Array, axis: int) -> Array:
        """All faces and one more beyond each end, as steep schemes need."""
        pair = self.sides[axis]
        if pair is None:  # face 0 is face n
            inner = cut(faces, axis, 1, None)
            return cut(extended(inner, axis, "wrap", "wrap", 2), axis, None, -1)
        low, high = ("even" if isinstance(side, Outflow) else "through" for side in pair)
        return extended(faces, axis, low, high)

    def around(self, u: Array, component: int, params: Mapping[str, Any]) -> Array:
        """Unknowns of a component with one value more at each end of its own axis."""
        pair = self.sides[component]
        if pair is None:
            return extended(u, component, "wrap", "wrap")
        low, high = ("even" if isinstance(side, Outflow) else "zero" for side in pair)
        return self._at_ends(extended(u, component, low, high), component, component, params, 1.0)

    def beside(
        self, u: Array, component: int, axis: int, params: Mapping[str, Any], width: int = 1
    ) -> Array:
        """A velocity component with `width` ghost cells beyond each side of another axis."""
        pair = self.sides[axis]
        if pair is None:
            return extended(u, axis, "wrap", "wrap", width)
        low, high = ("odd" if isinstance(side, (Wall, Inflow)) else "even" for side in pair)
        wide = extended(u, axis, low, high, width)
        return self._at_ends(wide, component, axis, params, 2.0, width)

    def _at_ends(
        self,
        x: Array,
        component: int,
        axis: int,
        params: Mapping[str, Any],
        factor: float,
        width: int = 1,
    ) -> Array:
        """x, with `factor` times the velocity that holds at the sides added to the ghosts."""
        for side, place in zip(
            self.sides[axis] or (), (slice(0, width), slice(-width, None)), strict=True
        ):
            value = side_velocity(side, params, component, axis, x.ndim)
            if value is not None:
                index = (slice(None),) * axis + (place,)
                x = x.at[index].add(jnp.asarray(factor * value, x.dtype))
        return x

    def cells(self, q: Array, axis: int) -> Array:
        """Values at the centres such that each unknown face lies between two: beyond an outflow
        goes a copy."""
        return self._between(q, axis, "even")

    def _between(self, q: Array, axis: int, beyond_outflow: Ghost) -> Array:
        pair = self.sides[axis]
        if pair is None:
            return extended(q, axis, None, "wrap")
        low, high = (beyond_outflow if isinstance(side, Outflow) else None for side in pair)
        return extended(q, axis, low, high)

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
            difference(self._between(p, axis, "zero"), axis) / h
            for axis, h in enumerate(self.grid.spacing)
        )

    def divergence(self, velocity: Sequence[Array], params: Mapping[str, Any]) -> Array:
        """∇·u at the centres."""
        parts = [
            difference(self.faces(u, axis, params), axis) / h
            for axis, (u, h) in enumerate(zip(velocity, self.grid.spacing, strict=True))
        ]
        return sum(parts[1:], parts[0])

    def cross_gradients(
        self, velocity: Sequence[Array], params: Mapping[str, Any]
    ) -> dict[tuple[int, int], tuple[Array, Array]]:
        """∂u_b/∂x_a and ∂u_a/∂x_b for a < b at the edges, n + 1 along a and b."""
        faces = [self.faces(u, axis, params) for axis, u in enumerate(velocity)]
        h, found = self.grid.spacing, {}
        for a in range(self.grid.ndim):
            for b in range(a + 1, self.grid.ndim):
                along_a = difference(self.beside(faces[b], b, a, params), a) / h[a]
                along_b = difference(self.beside(faces[a], a, b, params), b) / h[b]
                found[a, b] = along_a, along_b
        return found

    def centred(self, velocity: Sequence[Array], params: Mapping[str, Any]) -> Array:
        """The velocity at the centres, shape (axes, *grid.shape)."""
        return jnp.stack(
            [average(self.faces(u, axis, params), axis) for axis, u in enumerate(velocity)]
        )


def flow_balance(box: Box, params: Mapping[str, Any]) -> float:
    """The net inflow through the sides of a box without outflow, which must be zero. Host side."""
    total = 0.0
    for axis, pair in enumerate(box.sides):
        for side, sign in zip(pair or (), (1.0, -1.0), strict=False):
            if isinstance(side, Inflow):
                value = value_of(side.velocity[axis], params)
                area = box.grid.volume / box.grid.size[axis]
                total += sign * float(np.mean(np.asarray(value))) * area
    return 0.0 if math.isclose(total, 0.0, abs_tol=1e-12) else total

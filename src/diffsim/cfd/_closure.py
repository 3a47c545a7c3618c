"""What stands for the scales below the grid."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array

from ._boundary import Box, value_of
from ._stencil import average, cut, difference, extended


class AbstractClosure(eqx.Module):
    """An acceleration in place of what the grid does not resolve."""

    @abstractmethod
    def parameters(self) -> tuple[str, ...]:
        """The names of the parameters it reads."""

    @abstractmethod
    def tendency(
        self, box: Box, params: Mapping[str, Any], velocity: Sequence[Array]
    ) -> tuple[Array, ...]:
        """Accelerations at the unknowns of each component."""

    def check(self, box: Box) -> None:
        """Refuse, before anything is traced, a box that it does not work in."""
        del box


class Smagorinsky(AbstractClosure):
    """f = ∇·(2 ν_t S),  ν_t = (C Δ)² √(2 S:S),  Δ the cube root of a cell's volume (in 2D the
    square root of its area).

    Smagorinsky 1963, doi:10.1175/1520-0493(1963)091<0099:GCEWTP>2.3.CO;2. `coefficient` C: a
    number, typically 0.1 to 0.2, or the name of a parameter.
    """

    coefficient: Any = 0.17

    def parameters(self) -> tuple[str, ...]:
        return (self.coefficient,) if isinstance(self.coefficient, str) else ()

    def tendency(
        self, box: Box, params: Mapping[str, Any], velocity: Sequence[Array]
    ) -> tuple[Array, ...]:
        mixing = mixing_length(box, self.coefficient, params) ** 2
        own, shear = strains(box, params, velocity)
        return stress_divergence(box, mixing * strain_rate(own, shear), own, shear)


def mixing_length(box: Box, coefficient: Any, params: Mapping[str, Any]) -> Any:
    """C Δ."""
    return value_of(coefficient, params) * box.grid.cell_volume ** (1 / box.grid.ndim)


def strain_rate(own: Sequence[Array], shear: Mapping[tuple[int, int], Array]) -> Array:
    """|S| = √(2 S:S) at the centres."""
    squares = [2 * s**2 for s in own]
    squares += [4 * average(average(s**2, a), b) for (a, b), s in shear.items()]
    return _root(squares)


def rotation_rate(box: Box, params: Mapping[str, Any], velocity: Sequence[Array]) -> Array:
    """|Ω| = √(2 Ω:Ω) = |ω| at the centres."""
    crossed = box.cross_gradients(velocity, params)
    return _root([average(average((x - y) ** 2, a), b) for (a, b), (x, y) in crossed.items()])


def _root(squares: Sequence[Array]) -> Array:
    # a root's slope at zero is infinite: keep away by a rounding of the rates
    return jnp.sqrt(sum(squares, jnp.finfo(squares[0].dtype).tiny))


def strains(
    box: Box, params: Mapping[str, Any], velocity: Sequence[Array]
) -> tuple[list[Array], dict[tuple[int, int], Array]]:
    """S: the diagonal at the centres, S_ab at the edges (all of them, n + 1 along a and b)."""
    faces = [box.faces(u, axis, params) for axis, u in enumerate(velocity)]
    spacing = box.grid.spacing
    own = [difference(f, axis) / h for axis, (f, h) in enumerate(zip(faces, spacing, strict=True))]
    crossed = box.cross_gradients(velocity, params)
    shear = {pair: 0.5 * (along_a + along_b) for pair, (along_a, along_b) in crossed.items()}
    return own, shear


def stress_divergence(
    box: Box,
    viscosity: Array,
    own: Sequence[Array],
    shear: Mapping[tuple[int, int], Array],
) -> tuple[Array, ...]:
    """∇·(2 ν S) from a viscosity at the centres."""
    spacing = box.grid.spacing
    total = [
        box.difference_at_faces(2 * viscosity * s, axis) / spacing[axis]
        for axis, s in enumerate(own)
    ]
    for (a, b), s in shear.items():
        stress = 2 * _at_edges(box, viscosity, a, b) * s
        total[a] = total[a] + difference(_unknown_faces(box, stress, a), b) / spacing[b]
        total[b] = total[b] + difference(_unknown_faces(box, stress, b), a) / spacing[a]
    return tuple(total)


def _at_edges(box: Box, q: Array, a: int, b: int) -> Array:
    """A field at the centres averaged to all edges between axes a and b."""
    for axis in (a, b):
        kind = "wrap" if box.sides[axis] is None else "even"
        q = average(extended(q, axis, kind, kind), axis)
    return q


def _unknown_faces(box: Box, x: Array, axis: int) -> Array:
    """Of values at all n + 1 faces along an axis those where the velocity is unknown."""
    first = box.first_face(axis)
    return cut(x, axis, first, first + box.face_count(axis))

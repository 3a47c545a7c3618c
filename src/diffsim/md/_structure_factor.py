"""The structure factor of a periodic box."""

from __future__ import annotations

import functools
import math

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from .._errors import ConfigError
from ._box import triclinic
from ._observable import AbstractObservable
from ._state import State

MOST = 20_000  # wave vectors: beyond, g(r) tells the same for less


class StructureFactor(AbstractObservable):
    """S(k) = ⟨|Σ_i exp(i k·x_i)|²⟩/N over the wave vectors k = 2πn/L of each shell |n|².

    Exact in a box, without truncation: k (shells,) are the lengths that `wave_numbers(box)` gives
    for a cube. Differentiable in the positions.

    largest: of |n|; shells without a vector are left out.
    """

    largest: int = eqx.field(static=True, default=8)
    name: str = eqx.field(static=True, default="structure_factor")
    unit: str = eqx.field(static=True, default="1")

    def __check_init__(self) -> None:
        if self.largest < 1 or 4 / 3 * math.pi * self.largest**3 / 2 > MOST:
            raise ConfigError(
                "must be at least 1 and at most 21", key="largest", value=self.largest
            )

    def __call__(self, params: PyTree, state: State) -> Float[Array, " shells"]:
        del params
        vectors, shell, counts, _ = _shells(self.largest)
        if triclinic(state.box):
            raise ConfigError(
                "is triclinic, where waves of one |n|² differ in length",
                key="box",
                allowed="(3,) edges",
            )
        phase = 2 * math.pi * (state.positions / state.box) @ jnp.asarray(vectors.T, float)
        power = jnp.sum(jnp.cos(phase), axis=0) ** 2 + jnp.sum(jnp.sin(phase), axis=0) ** 2
        sums = jnp.zeros(len(counts), power.dtype).at[shell].add(power)
        return sums / (counts * state.atoms)

    def wave_numbers(self, edge: float) -> Float[np.ndarray, " shells"]:
        """|k| of the shells (shells,) [1/length] in a cube of that edge."""
        return 2 * math.pi / edge * np.sqrt(_shells(self.largest)[3])


@functools.cache
def _shells(largest: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Wave vectors, one of each pair k, -k; the shell of each; how many a shell has; its |n|²."""
    line = np.arange(-largest, largest + 1)
    n = np.stack(np.meshgrid(line, line, line, indexing="ij"), axis=-1).reshape(-1, 3)
    n = n[len(n) // 2 + 1 :]
    square = np.sum(n**2, axis=1)
    n, square = n[square <= largest**2], square[square <= largest**2]
    squares, shell, counts = np.unique(square, return_inverse=True, return_counts=True)
    return n, shell.ravel(), counts, squares

"""A separable Hamiltonian of two functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._errors import ConfigError
from ._systems import AbstractHamiltonian


class Separable(AbstractHamiltonian):
    """H = T(p; θ) + V(q; θ) of two functions, each of which returns a number.

    **Arguments:** `kinetic_fn(p, args)`, `potential_fn(q, args)`, differentiable, q and p (m,);
    `components`: 2m names; `y0`: (2m,) the start, positions first, where no condition gives it.
    """

    kinetic_fn: Callable[[Any, Any], Any]
    potential_fn: Callable[[Any, Any], Any]
    names: tuple[str, ...] = eqx.field(static=True)
    y0: np.ndarray | None

    def __init__(
        self,
        kinetic_fn: Callable[[Any, Any], Any],
        potential_fn: Callable[[Any, Any], Any],
        *,
        components: Sequence[str] = (),
        y0: Any = None,
    ):
        self.kinetic_fn, self.potential_fn, self.names = (
            kinetic_fn,
            potential_fn,
            tuple(components),
        )
        self.y0 = None if y0 is None else np.asarray(y0, dtype=float)

    @property
    def components(self) -> tuple[str, ...]:
        return self.names

    def kinetic(self, p: Any, args: Any) -> Any:
        return self.kinetic_fn(p, args)

    def potential(self, q: Any, args: Any) -> Any:
        return self.potential_fn(q, args)

    def defaults(self) -> dict[str, Any]:
        return {}

    def start(self) -> Float[Array, "n"]:
        if self.y0 is None:
            raise ConfigError("must be given", key="y0", allowed="a condition y0, or initial=")
        return jnp.asarray(self.y0)

"""Many copies of a stochastic system from one start, and the moments that they show."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._errors import ConfigError
from ._systems import AbstractSystem


class Copies(AbstractSystem):
    """dyᵢ = f(t, yᵢ; θ) dt + g(t, yᵢ; θ) dWᵢ, i = 1 ... `copies`, each with noise of its own.

    From one start the copies show a transition's moments, by which an equation is fitted whose
    transition density nobody knows: E[y(t) | y(0)] and Var[y(t) | y(0)], whose own scatter falls
    as 1/√copies. Sums of squares are pulled towards small noise by about 3/copies of a variance,
    because the moments' scatter adds to every square: a thousand copies make that 0.3 %.

    y: (copies·n,), copy by copy. Observed: `<component>_mean` and `<component>_variance` (unbiased)
    over the copies, for each of the system's components.

    **Arguments:** `system`: an `AbstractSystem` with a diagonal `diffusion`; `copies`: at least 2.
    """

    system: AbstractSystem
    copies: int = eqx.field(static=True)

    def __check_init__(self):
        if not callable(getattr(self.system, "diffusion", None)):
            raise ConfigError("has no diffusion", key="system", value=type(self.system).__name__)
        if not self.system.components:
            raise ConfigError("must name its components", key="system")
        if self.copies < 2:
            raise ConfigError("must be at least 2", key="copies", value=self.copies)

    @property
    def components(self) -> tuple[str, ...]:
        return ()

    def _apart(self, y: Any) -> Array:
        """(copies, n)."""
        return jnp.reshape(jnp.asarray(y), (self.copies, len(self.system.components)))

    def _each(self, fn: Any, t: Any, y: Any, args: Any) -> Array:
        return jnp.ravel(jax.vmap(lambda one: fn(t, one, args))(self._apart(y)))

    def __call__(self, t: Any, y: Any, args: Any) -> Float[Array, "n"]:
        return self._each(self.system, t, y, args)

    def diffusion(self, t: Any, y: Any, args: Any) -> Float[Array, "n"]:
        return self._each(self.system.diffusion, t, y, args)  # pyright: ignore

    def observe(self, t: Any, y: Any, args: Any) -> dict[str, Array]:
        del t, args
        apart = self._apart(y)
        mean, variance = jnp.mean(apart, axis=0), jnp.var(apart, axis=0, ddof=1)
        seen = {f"{name}_mean": mean[i] for i, name in enumerate(self.system.components)}
        spread = {f"{name}_variance": variance[i] for i, name in enumerate(self.system.components)}
        return seen | spread

    def defaults(self) -> dict[str, Any]:
        return self.system.defaults()

    def start(self) -> Float[Array, "n"]:
        return jnp.tile(self.system.start(), self.copies)


def copied(values: Any, copies: int = 1) -> Float[np.ndarray, "rows width"]:
    """Each row of `values`, (rows,) or (rows, n), `copies` times side by side: (rows, copies·n),
    the starts of `Copies`."""
    values = np.asarray(values, dtype=float)
    if values.ndim not in (1, 2):
        raise ConfigError("must be (rows,) or (rows, n)", key="values", value=values.shape)
    return np.tile(values.reshape(len(values), -1), (1, copies))

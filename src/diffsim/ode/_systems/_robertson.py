"""Robertson's reaction."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from ..._laws import AbstractLaw, Conserved
from ._abstract import AbstractSystem, Vector


class Robertson(AbstractSystem):
    """y1' = -k1 y1 + k2 y2 y3,  y3' = k3 y2²,  y2' = -y1' - y3': an autocatalytic reaction.

    y: (3,) `y1`, `y2`, `y3` [concentration], of sum one at the usual start. Parameters: `k1`
    [1/time] for A → B; `k2` [1/(concentration time)] for B + C → A + C; `k3`, in the same unit, for
    B + B → C + B. Some authors number the last two the other way round.

    Stiff: rates of 0.04, 10⁴ and 3·10⁷, and y2 stays under 4·10⁻⁵, so that an absolute tolerance
    must lie well below (10⁻¹⁰, and 10⁻²⁰ up to t = 10¹¹). The sum is conserved, observed as `mass`;
    implicit Runge-Kutta methods keep it to rounding and to the tolerance of their Newton steps.

    Source: Robertson in Walsh (ed.), Numerical Analysis, p. 178 (1966); Hairer and Wanner, Solving
    Ordinary Differential Equations II, section IV.1 (1996), doi:10.1007/978-3-642-05221-7.
    """

    @property
    def components(self) -> tuple[str, ...]:
        return ("y1", "y2", "y3")

    def __call__(self, t: Any, y: Vector, args: Any) -> Float[Array, "n"]:
        del t
        back = args["k2"] * y[1] * y[2] - args["k1"] * y[0]
        on = args["k3"] * y[1] ** 2
        return jnp.stack([back, -back - on, on])

    def observe(self, t: Any, y: Vector, args: Any) -> dict[str, Array]:
        del t, args
        return {"mass": jnp.sum(jnp.asarray(y))}

    def laws(self, rtol: float = 1e-4) -> tuple[AbstractLaw, ...]:
        return (Conserved("mass", rtol),)

    def defaults(self) -> dict[str, Any]:
        return {"k1": 0.04, "k2": 1e4, "k3": 3e7}

    def start(self) -> Float[Array, "n"]:
        return jnp.array([1.0, 0.0, 0.0])

"""Oscillators that relax: Van der Pol's circuit and FitzHugh and Nagumo's nerve."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._abstract import AbstractSystem, Vector


class VanDerPol(AbstractSystem):
    """x'' = ((1 - x²) x' - x)/ε: a circuit that drives small and damps large oscillations.

    y: (2,) `x`, `v` = x'. Parameter: `eps` = ε > 0, without unit. At the default 10⁻⁶ it is stiff:
    slow branches joined by jumps that take a time of order ε; an implicit method such as
    `diffrax.Kvaerno5` is needed. The period tends to 3 - 2 ln 2 = 1.614 as ε → 0.

    `VanDerPol(stiff=False)` is the classical x'' = μ(1 - x²) x' - x with the parameter `mu` = μ ≥ 0
    and the amplitude 2: the same equation with the time in units of μ and ε = 1/μ².

    Source: van der Pol, Phil. Mag. 2, 978 (1926), doi:10.1080/14786442608564127; scaling of Hairer
    and Wanner, Solving Ordinary Differential Equations II, section IV.1 (1996),
    doi:10.1007/978-3-642-05221-7.
    """

    stiff: bool = eqx.field(static=True, default=True)

    @property
    def components(self) -> tuple[str, ...]:
        return ("x", "v")

    def __call__(self, t: Any, y: Vector, args: Any) -> Float[Array, "n"]:
        del t
        place, speed = y[0], y[1]
        drive = (1 - place**2) * speed
        if self.stiff:
            return jnp.stack([speed, (drive - place) / args["eps"]])
        return jnp.stack([speed, args["mu"] * drive - place])

    def defaults(self) -> dict[str, Any]:
        return {"eps": 1e-6} if self.stiff else {"mu": 1.0}

    def start(self) -> Float[Array, "n"]:
        return jnp.array([2.0, 0.0])


class FitzHughNagumo(AbstractSystem):
    """v' = v - v³/3 - w + I,  w' = (v + a - b w)/τ: a nerve that fires, in two variables.

    y: (2,) `v`, the potential of the membrane, and `w`, its recovery, both scaled. Parameters: `a`,
    `b`, where the recovery rests; `tau` = τ, how much slower it is; `current` = I, the stimulus;
    all without unit.

    At (0.7, 0.8, 12.5) it rests at I = 0 and fires for ever between I = 0.33 and 1.42. Mildly
    stiff: explicit methods do. No invariants.

    Source: FitzHugh, Biophys. J. 1, 445 (1961), doi:10.1016/S0006-3495(61)86902-6; Nagumo, Arimoto
    and Yoshizawa, Proc. IRE 50, 2061 (1962), doi:10.1109/JRPROC.1962.288235.
    """

    @property
    def components(self) -> tuple[str, ...]:
        return ("v", "w")

    def __call__(self, t: Any, y: Vector, args: Any) -> Float[Array, "n"]:
        del t
        v, w = y[0], y[1]
        firing = v - v**3 / 3 - w + args["current"]
        recovery = (v + args["a"] - args["b"] * w) / args["tau"]
        return jnp.stack([firing, recovery])

    def defaults(self) -> dict[str, Any]:
        return {"a": 0.7, "b": 0.8, "tau": 12.5, "current": 0.5}

    def start(self) -> Float[Array, "n"]:
        return jnp.array([-1.0, 1.0])

"""Two orbits by which solvers are tested: Arenstorf's and the Pleiades."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..._laws import AbstractLaw, Conserved
from ._abstract import AbstractSystem, Vector
from ._gravity import NBody

BODIES = 7


class Arenstorf(AbstractSystem):
    """x'' = x + 2y' - (1-μ)(x+μ)/r₁³ - μ(x-1+μ)/r₂³,  y'' = y - 2x' - (1-μ) y/r₁³ - μ y/r₂³.

    A light body near the earth at (-μ, 0) and the moon at (1-μ, 0), in the frame that turns with
    them; r₁ and r₂ are its distances from the two. y: (4,) `rx`, `ry`, `vx`, `vy`, in units of the
    moon's distance and of its period over 2π. Parameter: `mu` = μ, the moon's share of the mass.

    From `start()` and at the default μ it returns after `PERIOD` = 17.06..., past the moon by
    0.006: errors grow by up to 2·10⁶ on the way, so that it wants tolerances of 10⁻¹² and adaptive
    steps. Observed: `jacobi`, C = x² + y² + 2(1-μ)/r₁ + 2μ/r₂ - |v|², the only invariant.

    Source: Arenstorf, Am. J. Math. 85, 27 (1963), doi:10.2307/2373181; numbers of Hairer, Nørsett
    and Wanner, Solving Ordinary Differential Equations I, section II.0 (1993),
    doi:10.1007/978-3-540-78862-1.
    """

    PERIOD = 17.0652165601579625588917206249

    @property
    def components(self) -> tuple[str, ...]:
        return ("rx", "ry", "vx", "vy")

    def __call__(self, t: Any, y: Vector, args: Any) -> Float[Array, "n"]:
        del t
        x, y_, vx, vy = y[0], y[1], y[2], y[3]
        moon, earth = args["mu"], 1 - args["mu"]
        of_earth = earth / ((x + moon) ** 2 + y_**2) ** 1.5
        of_moon = moon / ((x - earth) ** 2 + y_**2) ** 1.5
        ax = x + 2 * vy - of_earth * (x + moon) - of_moon * (x - earth)
        ay = y_ - 2 * vx - (of_earth + of_moon) * y_
        return jnp.stack([vx, vy, ax, ay])

    def observe(self, t: Any, y: Vector, args: Any) -> dict[str, Array]:
        del t
        x, y_, vx, vy = y[0], y[1], y[2], y[3]
        moon, earth = args["mu"], 1 - args["mu"]
        wells = earth / jnp.hypot(x + moon, y_) + moon / jnp.hypot(x - earth, y_)
        return {"jacobi": x**2 + y_**2 + 2 * wells - vx**2 - vy**2}

    def laws(self, rtol: float = 1e-4) -> tuple[AbstractLaw, ...]:
        return (Conserved("jacobi", rtol),)

    def defaults(self) -> dict[str, Any]:
        return {"mu": 0.012277471}

    def start(self) -> Float[Array, "n"]:
        return jnp.array([0.994, 0.0, 0.0, -2.00158510637908252240537862224])


class Pleiades(AbstractSystem):
    """xᵢ'' = Σ_{j≠i} G mⱼ (xⱼ - xᵢ)/rᵢⱼ³: seven stars in the plane, with close encounters.

    y: (28,) `x1`...`x7`, `y1`...`y7` [length], then their velocities `vx1`...`vy7`, the layout of
    the test set for initial value problems. Parameters: `G` and `masses` (7,), by default mᵢ = i.
    To be integrated to t = 3. Observed, and conserved: `energy`, `momentum` (2,),
    `angular_momentum`.

    The same stars for symplectic methods, with momenta in place of velocities: `NBody(7)`.

    Source: Hairer, Nørsett and Wanner, Solving Ordinary Differential Equations I, section II.10
    (1993), doi:10.1007/978-3-540-78862-1.
    """

    @property
    def components(self) -> tuple[str, ...]:
        names = [f"{axis}{i}" for axis in "xy" for i in range(1, BODIES + 1)]
        return (*names, *(f"v{name}" for name in names))

    def __call__(self, t: Any, y: Vector, args: Any) -> Float[Array, "n"]:
        del t
        y = jnp.asarray(y)
        places = _by_star(y[: 2 * BODIES])
        force = NBody(BODIES).force(places, args)
        pull = jnp.reshape(force, (BODIES, 2)) / jnp.asarray(args["masses"])[:, None]
        return jnp.concatenate([y[2 * BODIES :], jnp.ravel(pull.T)])

    def observe(self, t: Any, y: Vector, args: Any) -> dict[str, Array]:
        y = jnp.asarray(y)
        speeds = _by_star(y[2 * BODIES :])
        momenta = speeds * jnp.repeat(jnp.asarray(args["masses"]), 2)
        same = jnp.concatenate([_by_star(y[: 2 * BODIES]), momenta])
        return NBody(BODIES).observe(t, same, args)

    def laws(self, rtol: float = 1e-4) -> tuple[AbstractLaw, ...]:
        return NBody(BODIES).laws(rtol)

    def defaults(self) -> dict[str, Any]:
        return {"G": 1.0, "masses": np.arange(1.0, 8.0)}

    def start(self) -> Float[Array, "n"]:
        x = [3.0, 3.0, -1.0, -3.0, 2.0, -2.0, 2.0]
        y = [3.0, -3.0, 2.0, 0.0, 0.0, -4.0, 4.0]
        vx = [0.0, 0.0, 0.0, 0.0, 0.0, 1.75, -1.5]
        vy = [0.0, 0.0, 0.0, -1.25, 1.0, 0.0, 0.0]
        return jnp.array([*x, *y, *vx, *vy])


def _by_star(coordinates: Array) -> Array:
    """(x1...x7, y1...y7) as (x1, y1, x2, y2, ...)."""
    return jnp.ravel(jnp.reshape(coordinates, (2, BODIES)).T)

"""Bodies that attract each other: Kepler's orbit and N of them, as separable Hamiltonians."""

from __future__ import annotations

import math
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..._errors import ConfigError
from ..._laws import AbstractLaw, Conserved
from ._abstract import AbstractHamiltonian, Half, Scalar, Vector

AXES = "xyz"


class Kepler(AbstractHamiltonian):
    """q'' = -μ q/|q|³: one body around a fixed centre, H = |p|²/2 - μ/|q| for a unit mass.

    y: (4,) `qx`, `qy` [length], `px`, `py` [length/time]. Parameter: `mu` = μ = GM
    [length³/time²].

    `start()` is the pericentre of an orbit with the given `eccentricity`, 0 ≤ e < 1, and half axis
    1, for μ = 1: (1-e, 0, 0, √((1+e)/(1-e))). It returns at t = 2π, with the energy -1/2 and the
    angular momentum √(1-e²). Observed: `energy`, `kinetic_energy`, `angular_momentum`, and
    `eccentricity_vector` (2,), which points to the pericentre; all but T are invariants.

    Source: Hairer, Lubich and Wanner, Geometric Numerical Integration, section I.2 (2006),
    doi:10.1007/3-540-30666-8.
    """

    eccentricity: float = eqx.field(static=True, converter=float, default=0.6)

    def __check_init__(self):
        if not 0 <= self.eccentricity < 1:
            raise ConfigError(
                "must be at least 0 and below 1", key="eccentricity", value=self.eccentricity
            )

    @property
    def components(self) -> tuple[str, ...]:
        return ("qx", "qy", "px", "py")

    def kinetic(self, p: Half, args: Any) -> Scalar:
        del args
        return jnp.vdot(p, p) / 2

    def potential(self, q: Half, args: Any) -> Scalar:
        return -args["mu"] / jnp.sqrt(jnp.vdot(q, q))

    def velocity(self, p: Half, args: Any) -> Float[Array, "m"]:
        del args
        return jnp.asarray(p)

    def force(self, q: Half, args: Any) -> Float[Array, "m"]:
        return -args["mu"] * q / jnp.vdot(q, q) ** 1.5

    def observe(self, t: Any, y: Vector, args: Any) -> dict[str, Array]:
        del t
        q, v = jnp.asarray(y)[:2], jnp.asarray(y)[2:]
        spin = q[0] * v[1] - q[1] * v[0]
        turned = jnp.stack([v[1], -v[0]])
        vector = spin * turned / args["mu"] - q / jnp.sqrt(jnp.vdot(q, q))
        own = {"angular_momentum": spin, "eccentricity_vector": vector}
        return {**self.energies(y, args), **own}

    def laws(self, rtol: float = 1e-4) -> tuple[AbstractLaw, ...]:
        return (
            Conserved("energy", rtol, relative_to="energy"),
            Conserved("angular_momentum", rtol),
            Conserved("eccentricity_vector", atol=rtol),  # a circle's is zero
        )

    def defaults(self) -> dict[str, Any]:
        return {"mu": 1.0}

    def start(self) -> Float[Array, "n"]:
        e = self.eccentricity
        return jnp.array([1 - e, 0.0, 0.0, math.sqrt((1 + e) / (1 - e))])


class NBody(AbstractHamiltonian):
    """H = Σ |pᵢ|²/(2mᵢ) - Σ_{i<j} G mᵢ mⱼ/√(rᵢⱼ² + s²): N bodies that attract each other.

    y = (q, p): (2·bodies·dimension,), all coordinates of body 1, then of body 2 and so on, then the
    momenta [mass length/time] in the same order, called `x1`, `y1`, ..., `px1`, `py1`, ...
    `dimension` is 2 or 3, `softening` = s [length]. Parameters: `G` [length³/(mass time²)] and
    `masses` (bodies,) [mass].

    Observed, and conserved: `energy`, `momentum` (dimension,), `angular_momentum` (a number in the
    plane, else (3,)). Every pair is visited: N² a step. Without softening close encounters need
    small steps.

    `start()`: equal masses on a circle of radius 1 that turns as it stands, for G = 1, all masses 1
    and the given softening. Such a circle is unstable: what is added to it grows exponentially.

    Source: Hairer, Lubich and Wanner, Geometric Numerical Integration, section I.2 (2006),
    doi:10.1007/3-540-30666-8.
    """

    bodies: int = eqx.field(static=True, default=3)
    dimension: int = eqx.field(static=True, default=2)
    softening: float = eqx.field(static=True, converter=float, default=0.0, kw_only=True)

    def __check_init__(self):
        if self.bodies < 2:
            raise ConfigError("must be at least 2", key="bodies", value=self.bodies)
        if self.dimension not in (2, 3):
            raise ConfigError("must be 2 or 3", key="dimension", value=self.dimension)
        if not (math.isfinite(self.softening) and self.softening >= 0):
            raise ConfigError("must be finite and not negative", key="softening")

    @property
    def components(self) -> tuple[str, ...]:
        numbers = range(1, self.bodies + 1)
        places = tuple(f"{axis}{i}" for i in numbers for axis in AXES[: self.dimension])
        return (*places, *(f"p{name}" for name in places))

    def _pairs(self, q: Half) -> tuple[Array, Array]:
        """rᵢ - rⱼ, and 1/√(rᵢⱼ² + s²), zero for a body and itself."""
        places = jnp.reshape(jnp.asarray(q), (self.bodies, self.dimension))
        apart = places[:, None] - places[None]
        alone = np.eye(self.bodies, dtype=bool)
        squared = jnp.sum(apart**2, axis=-1) + self.softening**2
        # The inner `where` keeps derivatives finite: 1/√0 times zero is not a number.
        return apart, jnp.where(alone, 0.0, 1 / jnp.sqrt(jnp.where(alone, 1.0, squared)))

    def kinetic(self, p: Half, args: Any) -> Scalar:
        momenta = jnp.reshape(jnp.asarray(p), (self.bodies, self.dimension))
        return jnp.sum(jnp.sum(momenta**2, axis=1) / (2 * jnp.asarray(args["masses"])))

    def potential(self, q: Half, args: Any) -> Scalar:
        masses = jnp.asarray(args["masses"])
        return -args["G"] * (masses @ self._pairs(q)[1] @ masses) / 2

    def velocity(self, p: Half, args: Any) -> Float[Array, "m"]:
        return jnp.asarray(p) / jnp.repeat(jnp.asarray(args["masses"]), self.dimension)

    def force(self, q: Half, args: Any) -> Float[Array, "m"]:
        masses = jnp.asarray(args["masses"])
        apart, inverse = self._pairs(q)
        pull = jnp.einsum("ijd,ij,j->id", apart, inverse**3, masses)
        return jnp.ravel(-args["G"] * masses[:, None] * pull)

    def observe(self, t: Any, y: Vector, args: Any) -> dict[str, Array]:
        del t
        q, p = jnp.reshape(jnp.asarray(y), (2, self.bodies, self.dimension))
        own = {
            "momentum": jnp.sum(p, axis=0),
            "angular_momentum": jnp.sum(_cross(q, p), axis=0),
        }
        return {**self.energies(y, args), **own}

    def laws(self, rtol: float = 1e-4) -> tuple[AbstractLaw, ...]:
        return (
            Conserved("energy", rtol, relative_to="energy"),
            Conserved("momentum", atol=rtol),  # both are zero for many a start
            Conserved("angular_momentum", atol=rtol),
        )

    def defaults(self) -> dict[str, Any]:
        return {"G": 1.0, "masses": np.ones(self.bodies)}

    def start(self) -> Float[Array, "n"]:
        angles = 2 * np.pi * np.arange(self.bodies) / self.bodies
        q, p = np.zeros((2, self.bodies, self.dimension))
        q[:, :2] = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        inward = 1 - np.cos(angles[1:])
        rate = math.sqrt(np.sum(inward / (2 * inward + self.softening**2) ** 1.5))
        p[:, :2] = rate * np.stack([-np.sin(angles), np.cos(angles)], axis=1)
        return jnp.asarray(np.concatenate([q.ravel(), p.ravel()]))


def _cross(q: Array, p: Array) -> Array:
    """q × p a body: (bodies,) in the plane, (bodies, 3) in space."""
    if q.shape[-1] == 3:
        return jnp.cross(q, p)
    return q[:, 0] * p[:, 1] - q[:, 1] * p[:, 0]

"""φ(θ, r) of a pair of atoms: the laws that `Pair` sums."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from .._errors import ConfigError, nearest


class AbstractPairLaw(eqx.Module):
    """φ(θ, r): the energy of two atoms at a distance r > 0. A law of one's own needs `units` and
    `energy`:

        class Gauss(md.AbstractPairLaw):
            units: ClassVar = {"A": "energy", "width": "length"}

            def energy(self, params, r):
                return params["A"] * jnp.exp(-((r / params["width"]) ** 2))

    `units`: the dimension of each parameter; `signed`: those that need not be positive;
    `vanishing`: those that may be zero, where atoms do not interact; `rules`: how one number a kind
    makes one for each pair of kinds, "mean" or "root" (of the product).
    `scalar`: parameters are a number for each pair; `decays`: φ falls off faster than r⁻³, so that
    there is a tail correction; `linear`: φ is linear in what `prepare` gives, so that a few sums
    over a configuration tell its energy at any parameters.
    """

    units: ClassVar[dict[str, str]]
    rules: ClassVar[dict[str, str]] = {}
    signed: ClassVar[tuple[str, ...]] = ()
    vanishing: ClassVar[tuple[str, ...]] = ("epsilon",)
    scalar: ClassVar[bool] = True
    decays: ClassVar[bool] = True
    linear: ClassVar[bool] = False

    @abstractmethod
    def energy(self, params: PyTree, r: Array) -> Array:
        """φ of the parameters that `prepare` gives, entry by entry."""

    def scale(self, params: PyTree) -> Array:
        """The size of a typical force, from the parameters that `prepare` gives. Tiles sum forces
        in units of it; where the largest is far from it they find that out in another pass."""
        del params
        return jnp.ones(())

    def prepare(self, params: PyTree) -> PyTree:
        """What `energy` wants, from the parameters of each pair of kinds: once, not for each pair
        of atoms."""
        return params

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each parameter of one kind of atom."""
        return dict.fromkeys(self.units, ())

    def check(self, params: PyTree, cutoff: float) -> None:
        """Host side: refuse parameters that cannot be right."""


def checked_law(key: str, law: Any) -> AbstractPairLaw:
    """A law of pairs itself, not its name or its class."""
    if isinstance(law, AbstractPairLaw):
        return law
    name = law.__name__ if isinstance(law, type) else str(law)
    close = nearest(name.casefold(), [each.casefold() for each in LAWS])
    own = next((each for each in LAWS if each.casefold() == close), None)
    raise ConfigError(
        "is not a law of pairs",
        key=key,
        value=law,
        allowed=", ".join(f"md.{each}()" for each in LAWS) + ", md.Tabulated(...)",
        suggestion=own and f"md.{own}()",
    )


class Mie(AbstractPairLaw):
    """φ = C ε [(σ/r)ⁿ - (σ/r)ᵐ],  C = n/(n-m) (n/m)^(m/(n-m)).

    params: `epsilon` [energy], the depth; `sigma` [length]; the exponents `n` > `m` > 3, which may
    be fitted. n = 12, m = 6 is Lennard-Jones. Source: Mie 1903, doi:10.1002/andp.19033160802.
    """

    units: ClassVar = {
        "epsilon": "energy",
        "sigma": "length",
        "n": "dimensionless",
        "m": "dimensionless",
    }
    rules: ClassVar = {"epsilon": "root", "sigma": "mean", "n": "mean", "m": "mean"}

    def prepare(self, params: PyTree) -> PyTree:
        n, m = params["n"], params["m"]
        factor = n / (n - m) * jnp.exp(m / (n - m) * jnp.log(n / m))
        return {**params, "epsilon": factor * params["epsilon"]}

    def energy(self, params: PyTree, r: Array) -> Array:
        log = jnp.log(params["sigma"] / r)
        return params["epsilon"] * (jnp.exp(params["n"] * log) - jnp.exp(params["m"] * log))

    def scale(self, params: PyTree) -> Array:
        return params["epsilon"] / params["sigma"]

    def check(self, params: PyTree, cutoff: float) -> None:
        n, m = np.broadcast_arrays(params["n"], params["m"])
        if np.any(m <= 3) or np.any(n <= m):
            raise ConfigError("must be over m, and m over 3", key="n", value=float(np.min(n)))


class Morse(AbstractPairLaw):
    """φ = ε [(1 - e^(-α(r - r₀)))² - 1].

    params: `epsilon` [energy], the depth; `alpha` [1/length]; `r0` [length], where it is deepest.
    Source: Morse 1929, doi:10.1103/PhysRev.34.57.
    """

    units: ClassVar = {"epsilon": "energy", "alpha": "1/length", "r0": "length"}
    rules: ClassVar = {"epsilon": "root", "alpha": "mean", "r0": "mean"}

    def energy(self, params: PyTree, r: Array) -> Array:
        x = jnp.exp(-params["alpha"] * (r - params["r0"]))
        return params["epsilon"] * (x * x - 2 * x)

    def scale(self, params: PyTree) -> Array:
        return params["epsilon"] * params["alpha"]


class Buckingham(AbstractPairLaw):
    """φ = A e^(-r/ρ) - C r⁻⁶, with the core mended.

    It has a maximum at a small distance r_m and falls without bound below, where atoms would fuse.
    There φ goes on as the parabola φ(r_m) + ½ |φ''(r_m)| (r - r_m)², which pushes them apart: value
    and force are continuous. params: `A` [energy], `rho` [length], `C` [energy length⁶] (0 for
    pure repulsion). r_m is the smaller root of x⁷e⁻ˣ = 6C/(Aρ⁶), x = r/ρ; there is none, and
    `check` refuses, where the right side exceeds 7⁷e⁻⁷ (attraction wins at every distance).
    Source: Buckingham 1938, doi:10.1098/rspa.1938.0173.
    """

    units: ClassVar = {"A": "energy", "rho": "length", "C": "energy*length^6"}
    rules: ClassVar = {"A": "root", "rho": "mean", "C": "root"}
    signed: ClassVar = ("C",)

    def prepare(self, params: PyTree) -> PyTree:
        A, rho, C = (jnp.asarray(params[k]) for k in ("A", "rho", "C"))
        A, rho, C = jnp.broadcast_arrays(A, rho, C)
        bent = C > 0
        log = jnp.log(jnp.where(bent, 6 * C / (A * rho**6), 1e-30))
        # Newton's steps on 7 ln x - x, which is concave: from below they never go too far. The
        # last two carry first and second derivatives.
        newton = lambda x, log: x - (7 * jnp.log(x) - x - log) / (7 / x - 1)  # noqa: E731
        held = jax.lax.stop_gradient(log)
        x = jax.lax.fori_loop(0, 20, lambda _, x: newton(x, held), jnp.exp(held / 7))
        x = newton(newton(jax.lax.stop_gradient(x), log), log)
        r = jnp.where(bent, x * rho, 0)
        there = jnp.where(bent, r, rho)
        value = jnp.where(bent, A * jnp.exp(-there / rho) - C / there**6, 0)
        bend = jnp.where(bent, A / rho**2 * jnp.exp(-there / rho) - 42 * C / there**8, 0)
        return {"A": A, "rho": rho, "C": C, "top": r, "value": value, "bend": jnp.abs(bend)}

    def energy(self, params: PyTree, r: Array) -> Array:
        outside = r > params["top"]
        at = jnp.where(outside, r, jnp.maximum(params["top"], 1e-3 * params["rho"]))
        plain = params["A"] * jnp.exp(-at / params["rho"]) - params["C"] / at**6
        inner = params["value"] + 0.5 * params["bend"] * (r - params["top"]) ** 2
        return jnp.where(outside, plain, inner)

    def scale(self, params: PyTree) -> Array:
        return math.exp(-8) * params["A"] / params["rho"]

    def check(self, params: PyTree, cutoff: float) -> None:
        A, rho, C = np.broadcast_arrays(*(params[k] for k in ("A", "rho", "C")))
        if np.any(C < 0):
            raise ConfigError("must not be negative", key="C", value=float(np.min(C)))
        most = (7 / math.e) ** 7 * A * rho**6 / 6
        if np.any(most <= C):
            raise ConfigError(
                "is so large that attraction wins at every distance",
                key="C",
                value=float(np.max(C)),
                allowed=f"under (7/e)⁷ A ρ⁶/6 = {float(np.min(most)):.6g}",
            )


class SoftSphere(AbstractPairLaw):
    """φ = (ε/α) (1 - r/σ)^α for r < σ, 0 beyond: spheres that yield, as of foams and packings.

    params: `epsilon` [energy]; `sigma` [length], up to the cutoff; `alpha` > 1, 2 for springs, 2.5
    for Hertz. Derivatives are finite at contact for α ≥ 2. Source: O'Hern et al. 2003,
    doi:10.1103/PhysRevE.68.011306.
    """

    units: ClassVar = {"epsilon": "energy", "sigma": "length", "alpha": "dimensionless"}
    rules: ClassVar = {"epsilon": "root", "sigma": "mean", "alpha": "mean"}

    def energy(self, params: PyTree, r: Array) -> Array:
        overlap = 1 - r / params["sigma"]
        touching = overlap > 0
        log = jnp.log(jnp.where(touching, overlap, 1))
        value = params["epsilon"] / params["alpha"] * jnp.exp(params["alpha"] * log)
        return jnp.where(touching, value, 0)

    def scale(self, params: PyTree) -> Array:
        return params["epsilon"] / params["sigma"] / 64

    def check(self, params: PyTree, cutoff: float) -> None:
        if np.any(np.asarray(params["sigma"]) > cutoff):
            most = float(np.max(params["sigma"]))
            raise ConfigError("is over the cutoff", key="sigma", value=most, allowed=f"{cutoff:g}")
        if np.any(np.asarray(params["alpha"]) <= 1):
            raise ConfigError("must be over 1", key="alpha", value=float(np.min(params["alpha"])))


class InversePower(AbstractPairLaw):
    """φ = ε (σ/r)ⁿ, the soft spheres of liquid theory.

    params: `epsilon` [energy], `sigma` [length], `n` > 3, which may be fitted.
    """

    units: ClassVar = {"epsilon": "energy", "sigma": "length", "n": "dimensionless"}
    rules: ClassVar = {"epsilon": "root", "sigma": "mean", "n": "mean"}

    def energy(self, params: PyTree, r: Array) -> Array:
        return params["epsilon"] * jnp.exp(params["n"] * jnp.log(params["sigma"] / r))

    def scale(self, params: PyTree) -> Array:
        return params["epsilon"] / params["sigma"]


class Yukawa(AbstractPairLaw):
    """φ = A e^(-κr)/r: charges screened by others, as in plasmas and colloids.

    params: `A` [energy length], of either sign; `kappa` [1/length], the inverse screening length.
    """

    units: ClassVar = {"A": "energy*length", "kappa": "1/length"}
    rules: ClassVar = {"A": "mean", "kappa": "mean"}
    signed: ClassVar = ("A",)

    def energy(self, params: PyTree, r: Array) -> Array:
        return params["A"] * jnp.exp(-params["kappa"] * r) / r

    def scale(self, params: PyTree) -> Array:
        return jnp.abs(params["A"]) * params["kappa"] ** 2


class Tabulated(AbstractPairLaw):
    """φ(r) = Σ_k c_k B₃((r - r_k)/h): the natural cubic spline through values at even distances.

    params: `values` (knots,) [energy] at r_k = `start` + k h, the last at `end` (the cutoff, as a
    rule); one kind of atom. Below `start` φ goes on as a straight line, above `end` too: the value
    there, usually 0, is a parameter like others. Gradients in the values, forces and second
    derivatives are continuous.

    `closed`: φ(end) = 0, and `values` are those of the other knots (knots - 1,): of a potential
    that is sought from structure alone, which does not tell a constant from another.
    """

    knots: int = eqx.field(static=True)
    start: float = eqx.field(static=True, converter=float)
    end: float = eqx.field(static=True, converter=float)
    closed: bool = eqx.field(static=True, default=False)

    units: ClassVar = {"values": "energy"}
    signed: ClassVar = ("values",)
    scalar: ClassVar = False
    decays: ClassVar = False
    linear: ClassVar = True

    def __check_init__(self):
        if self.knots < 4:
            raise ConfigError("must be at least 4", key="knots", value=self.knots)
        if not 0 <= self.start < self.end < math.inf:
            raise ConfigError("must be over start", key="end", value=self.end)

    @property
    def spacing(self) -> float:
        return (self.end - self.start) / (self.knots - 1)

    @property
    def distances(self) -> np.ndarray:
        """r_k, (knots,) [length]."""
        return np.linspace(self.start, self.end, self.knots)

    def at_knots(self, params: PyTree) -> np.ndarray:
        """φ(r_k), (knots,) [energy]."""
        values = np.asarray(params["values"], dtype=float)
        return np.append(values, 0.0) if self.closed else values

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"values": (self.knots - self.closed,)}

    def prepare(self, params: PyTree) -> PyTree:
        values = jnp.asarray(params["values"])
        if self.closed:
            values = jnp.append(values, 0)
        return {"values": jnp.asarray(_spline_weights(self.knots), values.dtype) @ values}

    def energy(self, params: PyTree, r: Array) -> Array:
        x = (r - self.start) / self.spacing
        within = jnp.clip(x, 0, self.knots - 1)
        index = jnp.clip(jnp.floor(within).astype(jnp.int32), 0, self.knots - 2)
        t = within - index
        c = [params["values"][index + k] for k in range(4)]
        basis = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
        slopes = (-((1 - t) ** 2), 3 * t**2 - 4 * t, -3 * t**2 + 2 * t + 1, t**2)
        value = sum(a * b for a, b in zip(c, basis, strict=True)) / 6
        slope = sum(a * b for a, b in zip(c, slopes, strict=True)) / 2
        return value + slope * (x - within)

    def scale(self, params: PyTree) -> Array:
        return jnp.max(jnp.abs(jnp.diff(params["values"]))) / self.spacing / 64

    def check(self, params: PyTree, cutoff: float) -> None:
        shape, wanted = np.shape(params["values"]), self.shapes()["values"]
        if shape != wanted:
            raise ConfigError(f"must be {wanted[0]} numbers, not {shape}", key="values")


def _spline_weights(knots: int) -> np.ndarray:
    """(knots + 2, knots): coefficients of the natural spline through given values."""
    rows = np.zeros((knots + 2, knots + 2))
    for k in range(knots):
        rows[k, k : k + 3] = (1 / 6, 4 / 6, 1 / 6)
    rows[knots, :3] = rows[knots + 1, -3:] = (1, -2, 1)
    return np.linalg.solve(rows, np.eye(knots + 2)[:, :knots])


LAWS: dict[str, Any] = {
    law.__name__: law for law in (Mie, Morse, Buckingham, SoftSphere, InversePower, Yukawa)
}

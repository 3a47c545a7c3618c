"""Time steps for u' = L u + N(u, t), stiff in its diagonal linear part alone."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array

from .._errors import ConfigError

Fields = tuple[Array, ...]  # spectra as (2, …): real and imaginary part
Nonlinear = Callable[[Fields, Array], Fields]


class AbstractStepper(eqx.Module):
    """u(t + h) from u(t): `linear` has an array a field, the diagonal of L, real or complex;
    `first` is N(u, t)."""

    order: ClassVar[float]

    @abstractmethod
    def __call__(
        self, linear: Fields, nonlinear: Nonlinear, first: Fields, u: Fields, t: Array, h: Array
    ) -> Fields:
        """One step of length h."""


class ETDRK2(AbstractStepper):
    """a = e^z u + h φ₁(z) N(u),  u' = a + h φ₂(z) (N(a) - N(u)),  z = h L.

    Exponential time differencing (Cox and Matthews 2002, doi:10.1006/jcph.2002.6995, eq. 22):
    second order, two evaluations; the linear part alone is exact.
    """

    order: ClassVar[float] = 2

    def __call__(
        self, linear: Fields, nonlinear: Nonlinear, first: Fields, u: Fields, t: Array, h: Array
    ) -> Fields:
        phi = [phi_functions(h * x) for x in linear]
        n0 = nonlinear(u, t)
        a = tuple(times(p.exp, v) + times(h * p.one, n) for p, v, n in zip(phi, u, n0, strict=True))
        na = nonlinear(a, t + h)
        return tuple(v + times(h * p.two, m - n) for p, v, m, n in zip(phi, a, na, n0, strict=True))


class ETDRK4(AbstractStepper):
    """u' = e^z u + h ((φ₁ - 3φ₂ + 4φ₃) N(u) + (2φ₂ - 4φ₃) (N(a) + N(b)) + (4φ₃ - φ₂) N(c)),

    a = e^{z/2} u + h/2 φ₁(z/2) N(u),  b = e^{z/2} u + h/2 φ₁(z/2) N(a),
    c = e^{z/2} a + h/2 φ₁(z/2) (2 N(b) - N(u)),  z = h L, φ at z where nothing else is said.

    Cox and Matthews 2002, doi:10.1006/jcph.2002.6995, eq. 26 to 29; Kassam and Trefethen 2005,
    doi:10.1137/S1064827502410633: fourth order, four evaluations; the linear part alone is exact.
    """

    order: ClassVar[float] = 4

    def __call__(
        self, linear: Fields, nonlinear: Nonlinear, first: Fields, u: Fields, t: Array, h: Array
    ) -> Fields:
        phi = [phi_functions(h * x) for x in linear]

        def half(v: Fields, n: Fields) -> Fields:
            return tuple(
                times(p.half_exp, x) + times(0.5 * h * p.half_one, y)
                for p, x, y in zip(phi, v, n, strict=True)
            )

        a = half(u, first)
        na = nonlinear(a, t + 0.5 * h)
        nb = nonlinear(half(u, na), t + 0.5 * h)
        c = half(a, tuple(2 * y - x for x, y in zip(first, nb, strict=True)))
        nc = nonlinear(c, t + h)
        return tuple(
            times(p.exp, v)
            + times(h * (p.one - 3 * p.two + 4 * p.three), k0)
            + times(h * (2 * p.two - 4 * p.three), ka + kb)
            + times(h * (4 * p.three - p.two), kc)
            for p, v, k0, ka, kb, kc in zip(phi, u, first, na, nb, nc, strict=True)
        )


class CrankNicolsonRK4(AbstractStepper):
    """(1 - μ L) u_{s+1} = (1 + μ L) u_s + γ_s h k_s,  k_s = N(u_s) + β_s k_{s-1},  μ = h (α_{s+1} -
    α_s)/2.

    The five low-storage stages of Carpenter and Kennedy (1994, NASA TM 109112) with the trapezoidal
    rule for L, as JAX-CFD has it: fourth order in N, second in L. It damps stiff modes less than
    the exponential steps do.
    """

    order: ClassVar[float] = 2
    alphas: ClassVar[tuple[float, ...]] = (
        *(0.0, 0.1496590219993, 0.3704009573644, 0.6222557631345, 0.9582821306748),
        1.0,
    )
    betas: ClassVar[tuple[float, ...]] = (
        *(0.0, -0.4178904745, -1.192151694643, -1.697784692471),
        -1.514183444257,
    )
    gammas: ClassVar[tuple[float, ...]] = (
        *(0.1496590219993, 0.3792103129999, 0.8229550293869, 0.6994504559488),
        0.1530572479681,
    )

    def __call__(
        self, linear: Fields, nonlinear: Nonlinear, first: Fields, u: Fields, t: Array, h: Array
    ) -> Fields:
        k = first
        ends = zip(self.alphas, self.alphas[1:], strict=False)
        for (start, end), beta, gamma in zip(ends, self.betas, self.gammas, strict=True):
            if start > 0:
                n = nonlinear(u, t + start * h)
                k = tuple(x + beta * y for x, y in zip(n, k, strict=True))
            mu = [0.5 * h * (end - start) * x for x in linear]
            u = tuple(
                times(1 / (1 - m), times(1 + m, v) + gamma * h * x)
                for m, v, x in zip(mu, u, k, strict=True)
            )
        return u


class Exact(AbstractStepper):
    """u' = e^z u, z = h L: for equations that are linear, whose N it does not look at."""

    order: ClassVar[float] = math.inf

    def __call__(
        self, linear: Fields, nonlinear: Nonlinear, first: Fields, u: Fields, t: Array, h: Array
    ) -> Fields:
        return tuple(times(jnp.exp(h * x), v) for x, v in zip(linear, u, strict=True))


STEPPERS: dict[str, AbstractStepper] = {
    "etdrk4": ETDRK4(),
    "etdrk2": ETDRK2(),
    "cn_rk4": CrankNicolsonRK4(),
}


def stepper_of(method: str | AbstractStepper) -> AbstractStepper:
    if isinstance(method, AbstractStepper):
        return method
    if method not in STEPPERS:
        raise ConfigError("unknown method", key="method", value=method, allowed=STEPPERS)
    return STEPPERS[method]


def times(c: Array, u: Array) -> Array:
    """c u, for complex c of a u held as real and imaginary part along its first axis."""
    if not jnp.iscomplexobj(c):
        return c * u
    return jnp.stack([c.real * u[0] - c.imag * u[1], c.real * u[1] + c.imag * u[0]])


class Phi(NamedTuple):
    """e^z and φ_n(z) = (φ_{n-1}(z) - 1/(n-1)!)/z with φ₀ = exp, and both at z/2."""

    exp: Array
    one: Array
    two: Array
    three: Array
    half_exp: Array
    half_one: Array


def phi_functions(z: Array) -> Phi:
    """e^z and φ₁ … φ₃, to a few roundings for every z, differentiable also at 0.

    At z/2 by the Taylor series of φ₃ where |z| < 1, else by the recursion; from there to z by
    doubling: 2 φ₁(2x) = (eˣ + 1) φ₁, 4 φ₂(2x) = eˣ φ₂ + φ₂ + φ₁,
    8 φ₃(2x) = eˣ φ₃ + φ₃ + φ₂ + φ₁/2.
    """
    x = 0.5 * z
    small = jnp.abs(x) < 0.5
    near, far = jnp.where(small, x, 0), jnp.where(small, 1, x)
    e = jnp.exp(x)
    three = _series(near)
    two = jnp.where(small, 0.5 + near * three, 0)
    one = jnp.where(small, 1 + near * two, (e - 1) / far)
    two = jnp.where(small, two, (one - 1) / far)
    three = jnp.where(small, three, (two - 0.5) / far)
    return Phi(
        exp=e * e,
        one=0.5 * (e + 1) * one,
        two=0.25 * ((e + 1) * two + one),
        three=0.125 * ((e + 1) * three + two + 0.5 * one),
        half_exp=e,
        half_one=one,
    )


def _series(x: Array) -> Array:
    """Σ xⁿ/(n + 3)! for |x| < ½, by Horner's rule to the precision of x."""
    terms = 13 if jnp.finfo(x.dtype).eps < 1e-10 else 7
    total = jnp.full_like(x, 1 / math.factorial(terms + 3))
    for n in range(terms - 1, -1, -1):
        total = total * x + 1 / math.factorial(n + 3)
    return total

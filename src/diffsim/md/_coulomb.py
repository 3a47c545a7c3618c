"""Coulomb's energy of charges in a periodic box, by Ewald's splitting."""

from __future__ import annotations

import functools
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PyTree

from .._errors import ConfigError
from .._units import convert
from ._box import volume
from ._composite import AbstractComposite, Groups
from ._exclusions import Exclusions, separation
from ._pair_engines import Path, Precision
from ._pair_potential import AbstractPairPotential, Truncation, kinds_of
from ._potential import AbstractPotential, Box, Positions, Thermo
from ._reciprocal import AbstractReciprocal, Ewald
from ._units import UnitSystem, unit_system

COULOMB = 14.3996454784  # e²/(4πε₀) [eV angstrom], CODATA 2018
LEAST_SPLITTING = 2.0  # of α rc: erfc(2) is 0.5 %
ROUNDING = 1e-14  # of the largest coefficient of a series


def coulomb_constant(units: str | UnitSystem) -> float:
    """1/(4πε₀) [energy length/e²] in a system of units: 332.06 kcal/mol angstrom; 1 in reduced."""
    system = unit_system(units)
    if system.reduced:
        return 1.0
    return convert(COULOMB, "eV", system.energy) * convert(1.0, "angstrom", system.length)


class Coulomb(AbstractComposite):
    """U = (1/4πε₀) Σ_{i<j} q_i q_j/r_ij over all periodic images, with conducting surroundings.

    Split at the width 1/α (Ewald 1921, doi:10.1002/andp.19213690304): pairs q_i q_j erfc(αr)/r up
    to `cutoff` by the same engine as other pair potentials; the smooth rest as a sum over waves by
    `reciprocal`; less α/√π Σ q² of each charge with itself and q_i q_j erf(αr)/r of excluded pairs.
    A net charge has a uniform background of the opposite.

    params: `{"charge": (kinds,)}` [e], one for each kind in `species`. Gradients in charges,
    positions and box are smooth, but for the step of erfc(α rc)/rc² in the force at the cutoff.

    **Arguments:** `cutoff`; `species`, the kind of each atom; `reciprocal`, `Ewald(waves)` or
    `PME(mesh)`; `alpha` [1/length], default 3.2/cutoff (an error of 1e-5); `exclusions`, pairs
    of a molecule, left out or scaled; `units`, for the constant; `precision`, `path` and `skin` of
    the pairs, as in `LennardJones`.
    """

    cutoff: float = eqx.field(static=True)
    species: Int[Array, " atoms"]
    reciprocal: AbstractReciprocal
    alpha: float = eqx.field(static=True)
    exclusions: Exclusions | None
    unit_system: UnitSystem = eqx.field(static=True)
    precision: Precision = eqx.field(static=True)
    path: Path = eqx.field(static=True)
    skin: float | None = eqx.field(static=True)
    groups: Groups = eqx.field(static=True)

    def __init__(
        self,
        cutoff: float,
        species: Any,
        reciprocal: AbstractReciprocal | None = None,
        *,
        alpha: float | None = None,
        exclusions: Exclusions | None = None,
        units: str | UnitSystem = "lj",
        precision: Precision = "state",
        path: Path = "auto",
        skin: float | None = None,
    ):
        self.cutoff, self.species = float(cutoff), jnp.asarray(species, jnp.int32)
        self.reciprocal = reciprocal if reciprocal is not None else Ewald()
        self.alpha = float(alpha) if alpha is not None else 3.2 / self.cutoff
        self.exclusions, self.unit_system = exclusions, unit_system(units)
        self.precision, self.path, self.skin = precision, path, skin
        self.groups = ((0,), (1,))

    def __check_init__(self):
        if not self.alpha * self.cutoff >= LEAST_SPLITTING:
            raise ConfigError(
                f"leaves charges unscreened at the cutoff: α rc = {self.alpha * self.cutoff:.3g}",
                key="alpha",
                value=self.alpha,
                suggestion=f"{3.2 / self.cutoff:.4g}",
            )

    def parts(self) -> list[AbstractPotential]:
        return [self.real, self.smooth]

    def shared(self, params: PyTree) -> list[PyTree]:
        return [params, params]

    @property
    def constant(self) -> float:
        return coulomb_constant(self.unit_system)

    @property
    def real(self) -> RealSpace:
        """The pairs within the cutoff."""
        return RealSpace(
            cutoff=self.cutoff,
            alpha=self.alpha,
            constant=self.constant,
            species=self.species,
            exclusions=self.exclusions,
            precision=self.precision,
            path=self.path,
            skin=self.skin,
        )

    @property
    def smooth(self) -> SmoothCharges:
        """The rest."""
        given = self.species, self.reciprocal, self.alpha, self.constant, self.exclusions
        return SmoothCharges(*given)

    def check(self, params: PyTree, box: Any) -> None:
        kinds = int(np.max(np.asarray(self.species), initial=-1)) + 1
        if set(params) != {"charge"}:
            raise ConfigError("needs the parameter charge", value=sorted(params))
        charge = np.asarray(params["charge"])
        if charge.ndim != 1 or len(charge) < kinds or not np.all(np.isfinite(charge)):
            raise ConfigError(
                f"must be {kinds} finite numbers, one a kind of atom", key="charge", value=charge
            )
        self.real.check_box(box)
        edges = np.asarray(box)
        if edges.shape != (3, 3):
            edges = np.min(edges.reshape(-1, 3), axis=0)
        if (error := self.reciprocal.error(edges, self.alpha)) > 0.05:
            raise ConfigError(
                f"has too few waves for alpha = {self.alpha:.4g}: an error of {error:.0%}",
                key="reciprocal",
            )

    def parameter_units(self) -> dict[str, str]:
        return {"charge": "charge"}


class RealSpace(AbstractPairPotential):
    """φ = q_i q_j erfc(αr)/r, where erf(αr)/r is a polynomial in r² to the last digits."""

    cutoff: float = eqx.field(static=True)
    alpha: float = eqx.field(static=True)
    constant: float = eqx.field(static=True)
    species: Int[Array, " atoms"] | None = eqx.field(converter=kinds_of)
    exclusions: Exclusions | None
    precision: Precision = eqx.field(static=True, default="state", kw_only=True)
    path: Path = eqx.field(static=True, default="auto", kw_only=True)
    skin: float | None = eqx.field(static=True, default=None, kw_only=True)
    truncation: Truncation = eqx.field(static=True, default="cut", kw_only=True)
    tail: bool = eqx.field(static=True, default=False, kw_only=True)
    onset: float | None = eqx.field(static=True, default=None, kw_only=True)

    def tables(self, params: PyTree) -> PyTree:
        charge = jnp.asarray(params["charge"])
        return {"strength": self.constant * charge[:, None] * charge[None, :]}

    def _smeared(self, s: Array, slope: bool) -> Array:
        """erf(αr)/r, or its derivative in s."""
        most = (self.alpha * self.cutoff) ** 2
        t = s * (2 * self.alpha**2 / most) - 1
        series = _error_function(most, slope, float(jnp.finfo(s.dtype).eps) / 20)
        return self.alpha * (2 * self.alpha**2 / most if slope else 1) * _series(series, t)

    def force_factor(self, params: PyTree, s: Array) -> Array:
        inside, s = self.inside(s)
        square = 1 / s
        factor = square * (square * jnp.sqrt(s)) + 2 * self._smeared(s, True)
        return jnp.where(inside, params["strength"] * factor, 0)

    def pair_thermo(self, params: PyTree, s: Array) -> Thermo:
        inside, s = self.inside(s)
        inverse = jax.lax.rsqrt(s)
        energy = params["strength"] * (inverse - self._smeared(s, False))
        end = math.erfc(self.alpha * self.cutoff) / self.cutoff
        virial = params["strength"] * (inverse + 2 * s * self._smeared(s, True))
        driving = energy - params["strength"] * end
        return Thermo(*(jnp.where(inside, x, 0) for x in (energy, driving, virial)))

    def force_scale(self, params: PyTree) -> Array:
        return jnp.max(jnp.abs(params["strength"])) * self.alpha**2

    def tail_correction(self, params: PyTree, atoms: int, box: Box) -> tuple[Array, Array]:
        raise ConfigError("has no tail: the waves carry it", key="tail")


@functools.lru_cache(maxsize=64)
def _error_function(most: float, slope: bool, small: float) -> tuple[float, ...]:
    """Chebyshev coefficients of erf(√y)/√y, y = (t + 1) most/2 in [0, most], or of its derivative
    in t, as far as they are more than `small` of the largest."""
    from scipy.special import erf

    def value(y: Any) -> Any:
        root = np.sqrt(y)
        return erf(root) / root

    def derivative(y: Any) -> Any:
        far = (2 / math.sqrt(math.pi) * np.exp(-y) - value(y)) / (2 * y)
        # Σ (-y)^k/(k! (2k + 1)), where that is a difference of equals
        terms = [(-1) ** k * k / (math.factorial(k) * (2 * k + 1)) for k in range(1, 20)]
        near = 2 / math.sqrt(math.pi) * np.polynomial.polynomial.polyval(y, terms)
        return np.where(y < 1, near, far) * most / 2

    of = derivative if slope else value
    found = np.polynomial.chebyshev.chebinterpolate(lambda t: of((t + 1) * most / 2), 80)
    size = np.abs(found) / np.max(np.abs(found))
    # Rounding leaves some 1e-15 in all of them, more in the last: not to be taken for terms.
    under = size <= max(small, ROUNDING)
    ends = np.flatnonzero(under[:-2] & under[1:-1] & under[2:])
    return tuple(found[: int(ends[0]) if ends.size else None].tolist())


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _series(coefficients: tuple[float, ...], t: Array) -> Array:
    """Σ c_k T_k(t), in powers of t where these are no larger: half the work. Its derivative is such
    a series again: through this one it would cost twice as much, and keep every partial sum."""
    powers = np.polynomial.chebyshev.cheb2poly(coefficients)
    if np.max(np.abs(powers)) <= 2 * np.max(np.abs(coefficients)):
        total = jnp.full_like(t, powers[-1])
        for c in powers[-2::-1].tolist():
            total = c + t * total
        return total
    one = other = jnp.zeros_like(t)
    for c in coefficients[:0:-1]:
        one, other = c + 2 * t * one - other, one
    return coefficients[0] + t * one - other


@_series.defjvp
def _series_jvp(
    coefficients: tuple[float, ...], primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
    (t,), (dt,) = primals, tangents
    slopes = tuple(np.polynomial.chebyshev.chebder(coefficients).tolist())
    return _series(coefficients, t), _series(slopes, t) * dt


class SmoothCharges(AbstractPotential):
    """The waves, less what each charge has with itself and with what it is bonded to."""

    species: Int[Array, " atoms"]
    reciprocal: AbstractReciprocal
    alpha: float = eqx.field(static=True)
    constant: float = eqx.field(static=True)
    exclusions: Exclusions | None

    def charges(self, params: PyTree, dtype: Any) -> Array:
        """(atoms,) [e]"""
        return jnp.asarray(params["charge"], dtype)[self.species]

    def energies(self, params: PyTree, positions: Positions, box: Box) -> dict[str, Array]:
        """`fourier`, `self`, `intramolecular` and `background`, which add up to the energy."""
        x = jnp.asarray(positions)
        box, q = jnp.asarray(box, x.dtype), self.charges(params, x.dtype)
        net = jnp.sum(q)
        return {
            "fourier": self.constant * self.reciprocal.energy(q, x, box, self.alpha),
            "self": -self.constant * self.alpha / math.sqrt(math.pi) * jnp.sum(q * q),
            "intramolecular": self._within(q, x, box),
            "background": -self.constant * math.pi / (2 * self.alpha**2) * net**2 / volume(box),
        }

    def _within(self, q: Array, x: Array, box: Array) -> Array:
        if self.exclusions is None:
            return jnp.zeros((), x.dtype)
        i, j = self.exclusions.pairs.T
        d = separation(x, box, i, j)
        s = jnp.sum(d * d, axis=1)
        # at r = 0, where it is regular, the root has no slope
        r = jnp.sqrt(jnp.maximum(s, (1e-4 / self.alpha) ** 2))
        left = (self.exclusions.kept - 1).astype(x.dtype)
        return self.constant * jnp.sum(
            left * q[i] * q[j] * jax.scipy.special.erf(self.alpha * r) / r
        )

    def energy(
        self, params: PyTree, positions: Positions, box: Box, neighbours: Any = None
    ) -> Array:
        return sum(self.energies(params, positions, box).values(), jnp.zeros(()))

"""What equilibrium fluctuations tell: response functions with error bars. On the host, in NumPy."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, overload

import numpy as np
from jaxtyping import Float

from .._errors import ConfigError
from .._statistics import Average, blocking, of_means
from .._units import convert
from ._checks import check_lengths, check_positive, checked_array
from ._units import UnitSystem, unit_system

Series = Float[np.ndarray, " saves"]
Bins = Float[np.ndarray, " bins"]
Histograms = Float[np.ndarray, "saves bins"]


class Estimate(NamedTuple):
    """A number, its standard error and its unit."""

    value: float
    stderr: float
    unit: str

    def to(self, unit: str) -> Estimate:
        """The same in another unit."""
        factor = convert(1.0, self.unit, unit)
        return Estimate(self.value * factor, self.stderr * factor, unit)


def _estimate(found: Average, factor: float, unit: str) -> Estimate:
    return Estimate(float(found.mean) * factor, float(found.stderr) * factor, unit)


def _covariance(
    a: np.ndarray, b: np.ndarray, factor: Any = 1.0, over: np.ndarray | None = None
) -> Average:
    """factor · cov(A, B)/⟨over⟩."""
    x, y = a - a.mean(), b - b.mean()
    if over is None:
        return of_means(lambda xy, x, y: factor * (xy - x * y), x * y, x, y)
    return of_means(lambda xy, x, y, v: factor * (xy - x * y) / v, x * y, x, y, over)


def _thermal(temperature: float, units: str | UnitSystem) -> tuple[UnitSystem, float]:
    system = unit_system(units)
    check_positive(temperature=temperature)
    return system, temperature * system.boltzmann


def heat_capacity(
    energy: Series,
    temperature: float,
    *,
    freedom: int = 0,
    units: str | UnitSystem = "lj",
) -> Estimate:
    """C = (⟨E²⟩ - ⟨E⟩²)/kT² + (g/2) k, of the whole system [energy/temperature].

    energy: (saves,) [energy]: in NVT the potential energy U, which gives C_V; in NPT U + P V, which
        gives C_P
    temperature: [temperature], that of the ensemble
    freedom: degrees of freedom g of the kinetic part, whose share is known: 3N of N atoms
    """
    system, kT = _thermal(temperature, units)
    energies = checked_array("energy", energy, "saves")
    found = _covariance(energies, energies, 1 / (kT * temperature))
    unit = system.filled("{energy}/{temperature}")
    value = float(found.mean) + freedom / 2 * system.boltzmann
    return Estimate(value, float(found.stderr), unit)


def compressibility(
    volume: Series, temperature: float, *, units: str | UnitSystem = "lj"
) -> Estimate:
    """κ_T = (⟨V²⟩ - ⟨V⟩²)/(⟨V⟩ kT) [1/pressure], of volumes (saves,) [length³] in NPT."""
    system, kT = _thermal(temperature, units)
    volumes = checked_array("volume", volume, "saves")
    found = _covariance(volumes, volumes, 1 / kT, over=volumes)
    return _estimate(found, 1 / system.pressure_factor, system.filled("1/({pressure})"))


def thermal_expansion(
    volume: Series, enthalpy: Series, temperature: float, *, units: str | UnitSystem = "lj"
) -> Estimate:
    """α_P = (⟨V H⟩ - ⟨V⟩⟨H⟩)/(⟨V⟩ kT²) [1/temperature], in NPT.

    volume: (saves,) [length³]
    enthalpy: (saves,) [energy], U + P V with the pressure that is held; the kinetic energy is
        independent of both and may be left out
    """
    system, kT = _thermal(temperature, units)
    v, h = checked_array("volume", volume, "saves"), checked_array("enthalpy", enthalpy, "saves")
    check_lengths(volume=v, enthalpy=h)
    found = _covariance(v, h, 1 / (kT * temperature), over=v)
    return _estimate(found, 1.0, system.filled("1/({temperature})"))


def heat_of_vaporisation(
    energy: Series,
    molecules: int,
    temperature: float,
    *,
    gas: float = 0.0,
    units: str | UnitSystem = "lj",
) -> Estimate:
    """ΔH = u_gas - ⟨U⟩/N + kT [energy], of a molecule, into an ideal gas.

    energy: (saves,) [energy], the potential energy of the liquid, within molecules included
    gas: u_gas, the mean potential energy of one molecule alone; 0 where it is rigid or an atom
    """
    system, kT = _thermal(temperature, units)
    check_positive(molecules=molecules)
    found = blocking(checked_array("energy", energy, "saves") / molecules)
    return Estimate(gas + kT - float(found.mean), float(found.stderr), system.filled("{energy}"))


def dielectric_constant(
    dipole: Float[np.ndarray, "saves 3"],
    volume: float | Series,
    temperature: float,
    *,
    units: str | UnitSystem = "metal",
) -> Estimate:
    """ε = 1 + (⟨M²⟩ - ⟨M⟩²)/(3 ε₀ ⟨V⟩ kT), with conducting boundaries (Ewald sums) [1].

    dipole: M, of the whole box [elementary charge · length], as `Dipole` observes it
    volume: [length³], a number or a series
    """
    system, _ = _thermal(temperature, units)
    if system.reduced:
        raise ConfigError("has no unit of charge in reduced units", key="units", value=system.name)
    # e²/(ε₀ · length · kT), a number
    charge = f"elementary_charge^2/(vacuum_permittivity*{system.length})"
    strength = convert(1.0, charge, system.energy) / (temperature * system.boltzmann)
    moments = [m - m.mean() for m in checked_array("dipole", dipole, "saves", 3).T]
    if np.ndim(volume) == 0:
        check_positive(volume=volume)
        edges = np.full(len(moments[0]), float(volume))
    else:
        edges = checked_array("volume", volume, "saves")
        check_lengths(dipole=moments[0], volume=edges)

    def epsilon(x2, y2, z2, x, y, z, v):
        return 1 + strength * (x2 - x * x + y2 - y * y + z2 - z * z) / (3 * v)

    return _estimate(of_means(epsilon, *(m * m for m in moments), *moments, edges), 1.0, "1")


@overload
def coordination(
    r: Bins, g: Bins, density: float, limit: float, *, saves: Literal[False] = False
) -> float: ...
@overload
def coordination(
    r: Bins, g: Histograms, density: float, limit: float, *, saves: Literal[True]
) -> Estimate: ...
def coordination(
    r: Bins, g: Bins | Histograms, density: float, limit: float, *, saves: bool = False
) -> float | Estimate:
    """n = 4πρ ∫₀^limit g(r) r² dr: neighbours within `limit`, from g in equal bins around r.

    g: (bins,)
    density: N/V [1/length³]
    limit: [length], not beyond the last bin
    saves: g is that of each save, (saves, bins), as `RadialDistribution` observes it: the mean over
        the saves, as an `Estimate` with its error
    """
    check_positive(density=density, limit=limit)
    centres = checked_array("r", r, "bins", least=2)
    every = np.atleast_2d(checked_array("g", g, *(("saves",) if saves else ()), "bins"))
    check_lengths(r=centres, g=every.T)
    half = (centres[1] - centres[0]) / 2
    if not half > 0 or not np.allclose(np.diff(centres), 2 * half, rtol=1e-3):
        raise ConfigError("must be the middles of bins of one thickness, ascending", key="r")
    last = float(centres[-1] + half)
    if limit > last * (1 + 1e-6):
        raise ConfigError(
            "is beyond the last bin", key="limit", value=limit, allowed=f"to {last:g}"
        )
    inner, outer = np.minimum(centres - half, limit), np.minimum(centres + half, limit)
    counts = 4 / 3 * math.pi * density * np.sum(every * (outer**3 - inner**3), axis=1)
    return _estimate(blocking(counts), 1.0, "1") if saves else float(counts[0])

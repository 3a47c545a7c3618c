"""The systems of units of molecular dynamics codes."""

import dataclasses
import functools
from typing import Any, overload

import numpy as np
from jaxtyping import Float

from .._errors import ConfigError
from .._units import convert


@dataclasses.dataclass(frozen=True)
class UnitSystem:
    """Names for the numbers of a simulation: ½ m v² · mass_factor is an energy, k_B T too.

    A simulation keeps lengths, times, energies, velocities (length/time) and forces
    (energy/length) in the units of the system as they are. Three of the user's units do not
    follow from these, and each has its factor:

    - mass: `mass_factor` [energy time² / length² / mass]. The integrators hold masses multiplied
      by it, so that m v² is an energy and force/m is an acceleration.
    - pressure: `pressure_factor` [pressure / (energy/length³)].
    - temperature: `boltzmann` [energy / temperature].

    Each field is a unit that `diffsim.convert` understands; `"1"` throughout makes reduced units,
    whose factors are all 1. Constants are those of pint: k_B, N_A and e are exact (SI 2019).
    """

    name: str
    length: str
    time: str
    energy: str
    mass: str
    temperature: str
    pressure: str
    density: str

    @property
    def reduced(self) -> bool:
        """Whether numbers carry no unit."""
        return self.length == "1"

    @functools.cached_property
    def boltzmann(self) -> float:
        """k_B [energy/temperature]."""
        return convert(1.0, self.temperature, self.energy)

    @functools.cached_property
    def mass_factor(self) -> float:
        """One mass of the user [energy time²/length²]; 1.0364e-4 in metal units."""
        return convert(1.0, self.mass, self.filled("{energy}*({time})^2/({length})^2"))

    @functools.cached_property
    def pressure_factor(self) -> float:
        """One energy per length³ [pressure]; 1.6022e6 bar in metal units."""
        return convert(1.0, self.filled("{energy}/({length})^3"), self.pressure)

    def unit_of(self, quantity: str) -> str:
        """The unit of a quantity: `units.unit_of("pressure")` is `"bar"` in metal units.

        quantity: one of `QUANTITIES`. A "number_density" counts atoms, a "density" is a mass
        per volume; a "momentum" is in the simulation's own energy · time / length.
        """
        if quantity not in QUANTITIES:
            raise ConfigError(
                "no such quantity", key="quantity", value=quantity, allowed=QUANTITIES
            )
        return self.filled(QUANTITIES[quantity])

    @overload
    def convert(self, value: float, unit: str, quantity: str) -> float: ...
    @overload
    def convert(
        self, value: Float[np.ndarray, "..."], unit: str, quantity: str
    ) -> Float[np.ndarray, "..."]: ...
    def convert(self, value: Any, unit: str, quantity: str) -> Any:
        """value [unit] in this system's unit of `quantity`."""
        return convert(value, unit, self.unit_of(quantity), key=quantity)

    @functools.cached_property
    def density_factor(self) -> float:
        """One of the integrators' masses per length³ [density]; 1.6022e4 in metal units."""
        per_volume = convert(1.0, self.filled("({mass})/({length})^3"), self.density)
        return per_volume / self.mass_factor

    def filled(self, template: str) -> str:
        """A unit made of the system's own: "{length}^2/{time}"."""
        if self.reduced:
            return "1"
        return template.format(**dataclasses.asdict(self))


QUANTITIES = {
    "dimensionless": "1",
    "length": "{length}",
    "time": "{time}",
    "energy": "{energy}",
    "mass": "{mass}",
    "temperature": "{temperature}",
    "pressure": "{pressure}",
    "density": "{density}",
    "velocity": "{length}/{time}",
    "force": "{energy}/{length}",
    "momentum": "{energy}*{time}/{length}",
    "number_density": "1/{length}^3",
    "volume": "{length}^3",
    "friction": "1/{time}",
    "charge": "e",
    "1/length": "1/{length}",
    "energy/length^2": "{energy}/({length})^2",
    "energy*length": "{energy}*{length}",
    "energy*length^6": "{energy}*({length})^6",
}

LJ = UnitSystem("lj", "1", "1", "1", "1", "1", "1", "1")
METAL = UnitSystem("metal", "angstrom", "ps", "eV", "dalton", "K", "bar", "g/cm^3")
REAL = UnitSystem("real", "angstrom", "fs", "kcal/mol", "g/mol", "K", "atm", "g/cm^3")
GROMACS = UnitSystem("gromacs", "nm", "ps", "kJ/mol", "dalton", "K", "bar", "kg/m^3")

SYSTEMS = {"lj": LJ, "metal": METAL, "real": REAL, "gromacs": GROMACS, "openmm": GROMACS}


def unit_system(name: str | UnitSystem) -> UnitSystem:
    """The system of units called `name`, in any case: lj, metal, real, gromacs or openmm."""
    if isinstance(name, UnitSystem):
        return name
    if name.casefold() not in SYSTEMS:
        raise ConfigError("no such system of units", key="units", value=name, allowed=SYSTEMS)
    return SYSTEMS[name.casefold()]


def dimensional(name: str | UnitSystem, counts: str = "kJ/mol and nm") -> UnitSystem:
    """The same, where numbers go to or come from a program that `counts` in units of its own."""
    system = unit_system(name)
    if system.reduced:
        raise ConfigError(
            f"reduced units have no {counts}",
            key="units",
            value=system.name,
            allowed="metal, real or gromacs, with parameters and cutoff in these units",
        )
    return system

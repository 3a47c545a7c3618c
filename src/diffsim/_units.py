"""Units at the edge: numbers are converted once, where they come in or go out.

Inside, every simulation computes in the units of its own system. Pint is imported on the first
conversion, since it takes about a second; a unit converted to itself never loads it.
"""

import difflib
import functools
import re
import tokenize
from typing import Any, overload

import numpy as np
from jaxtyping import Float

from ._errors import ConfigError

COMMON = (
    "1 K eV J/mol kJ/mol kcal/mol MPa bar atm angstrom nm fs ps dalton g/mol kg/m^3 mol/L"
).split()


@overload
def convert(value: float, from_unit: str, to_unit: str, *, key: str = "unit") -> float: ...
@overload
def convert(
    value: Float[np.ndarray, "..."], from_unit: str, to_unit: str, *, key: str = "unit"
) -> Float[np.ndarray, "..."]: ...
def convert(value: Any, from_unit: str, to_unit: str, *, key: str = "unit") -> Any:
    """value [to_unit] = value [from_unit] · factor.

    Two quantities that pint keeps apart are one here, as everywhere in molecular simulation:

    - a molar quantity is N_A times the quantity of one particle: `J/mol` ↔ `eV`,
      `g/mol` ↔ `dalton`, `kJ/mol/nm^3` ↔ `MPa`, `mol/L` ↔ `1/angstrom^3`;
    - a temperature is the energy k_B T of one particle: `K` ↔ `kcal/mol`.

    Exponents may be written `m^3`, `m**3` or `m3`. A unit converted to itself is the identity,
    even where pint does not know it, so that "thousand hares" serves a model of hares.
    Dimensionless is `"1"` or `""`, and converts to dimensionless only.

    value: a number, or an array of any shape [from_unit]
    from_unit, to_unit: pint expressions without a number in front
    key: the name that an error shows, such as `targets.pressure.unit`

    Returns a float for a number, a float64 array for an array.
    Raises ConfigError for an unknown unit, with the nearest known one, and for units of
    different dimensions.
    """
    values = np.asarray(value, dtype=float)
    if from_unit.strip() != to_unit.strip():
        values = _convert(values, from_unit, to_unit, key)
    return values if isinstance(value, np.ndarray) else float(values)


def _convert(values: np.ndarray, from_unit: str, to_unit: str, key: str) -> np.ndarray:
    source, from_particles = _per_particle(_parse(from_unit, key))
    target, to_particles = _per_particle(_parse(to_unit, key))
    import pint

    try:
        quantity = _registry().Quantity(values * from_particles, source)
        return np.asarray(quantity.to(target, "boltzmann").magnitude / to_particles)
    except (pint.DimensionalityError, pint.OffsetUnitCalculusError) as error:
        raise ConfigError(
            f"{from_unit!r} {_dimension(source)} does not convert to {to_unit!r} "
            f"{_dimension(target)}",
            key=key,
            value=from_unit,
        ) from error


@functools.cache
def _registry() -> Any:
    import pint

    # Pint's own cache on disk holds pickles: do without.
    return pint.UnitRegistry(cache_folder=None)


@functools.cache
def _parse(text: str, key: str) -> Any:
    import pint

    expression = re.sub(r"(?<=[A-Za-zµÅ])(-?[1-9])(?![\w.])", r"^\1", text)
    try:
        return _registry().parse_units(expression)
    except (pint.PintError, ValueError, TypeError, AssertionError, tokenize.TokenError) as error:
        raise ConfigError(
            f"{text!r} is not a unit",
            key=key,
            value=text,
            allowed="a unit of pint, such as " + ", ".join(COMMON),
            suggestion=_nearest(text),
        ) from error


def _nearest(text: str) -> str | None:
    """The known unit that looks most like `text`, one of the common ones if any does."""
    folded = {name.casefold(): name for name in COMMON}
    for names in (folded, {name: name for name in dir(_registry())}):
        found = difflib.get_close_matches(text.casefold(), names, n=1, cutoff=0.6)
        if found:
            return names[found[0]]
    return None


def _per_particle(unit: Any) -> tuple[Any, float]:
    """The unit without its amount of substance, and how many of it one of the given unit is."""
    moles = unit.dimensionality.get("[substance]", 0)
    if moles == 0:
        return unit, 1.0
    registry = _registry()
    avogadro = registry.Quantity(1.0, "avogadro_constant").to("1/mol").magnitude
    return unit / registry.Unit("mol") ** moles, avogadro**moles


def _dimension(unit: Any) -> str:
    return f"({str(unit.dimensionality).replace(' ', '')})"

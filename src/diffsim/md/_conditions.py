"""Conditions of many thermodynamic states at once."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._errors import ConfigError
from ._structures import lattice, number_density
from ._units import UnitSystem, unit_system


def state_points(
    *,
    atoms: int,
    temperature: Any,
    density: Any,
    molar_mass: float = 1.0,
    units: str | UnitSystem = "lj",
    density_unit: str | None = None,
    pressure: Any = None,
    pressure_unit: str | None = None,
) -> dict[str, np.ndarray]:
    """Conditions for `init`: `atoms` atoms on a lattice at each temperature and density.

    temperature: (states,) in the system's unit; density: (states,), a mass density in
    `density_unit` (with `molar_mass` in g/mol), or a number density when that is None; pressure:
    (states,) in `pressure_unit` (default: the system's own), for ensembles that hold one.
    Returns positions (states, atoms, 3), box (states, 3), temperature (states,), masses
    (states, atoms), and pressure (states,) if there is one.
    """
    system = unit_system(units)
    temperatures = np.atleast_1d(np.asarray(temperature, dtype=float))
    densities = np.atleast_1d(np.asarray(density, dtype=float))
    if temperatures.shape != densities.shape:
        raise ConfigError(
            f"has {densities.size} entries for {temperatures.size} temperatures", key="density"
        )
    for key, values in (("temperature", temperatures), ("density", densities)):
        if not np.all(np.isfinite(values)) or np.any(values <= 0):
            raise ConfigError("must be positive", key=key, value=float(np.min(values)))
    if density_unit is not None:
        densities = np.asarray(
            [number_density(d, molar_mass, system, density_unit=density_unit) for d in densities]
        )
    held = {} if pressure is None else {"pressure": pressures(pressure, pressure_unit, system)}
    for key, values in held.items():
        if values.shape != temperatures.shape:
            raise ConfigError(
                f"has {values.size} entries for {temperatures.size} temperatures", key=key
            )
    placed = [lattice(atoms, density=d) for d in densities]
    return {
        "positions": np.stack([positions for positions, _ in placed]),
        "box": np.stack([box for _, box in placed]),
        "temperature": temperatures,
        "masses": np.full((temperatures.size, atoms), molar_mass),
        **held,
    }


def pressures(pressure: Any, unit: str | None, system: UnitSystem) -> np.ndarray:
    """Pressures in the system's own unit, (states,)."""
    values = np.atleast_1d(np.asarray(pressure, dtype=float))
    if not np.all(np.isfinite(values)):
        raise ConfigError("must be finite", key="pressure")
    return values if unit is None else system.convert(values, unit, "pressure")

"""Water of three sites, rigid or flexible: SPC/E, SPC, TIP3P."""

from __future__ import annotations

import math
import os
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from .._errors import ConfigError
from .._units import convert
from ._bonded import Angles, Bonds
from ._composite import AbstractComposite, Groups, Sum
from ._conditions import pressures
from ._constraints import Constraints
from ._coulomb import Coulomb
from ._exclusions import Exclusions
from ._lennard_jones import LennardJones
from ._pair_engines import Path, Precision
from ._potential import AbstractPotential
from ._reciprocal import AbstractReciprocal, Ewald
from ._single_point import load_structures
from ._structures import lattice
from ._units import UnitSystem, unit_system


class WaterModel(NamedTuple):
    """In kJ/mol, angstrom, e and degrees; springs in kJ/mol/angstrom² and kJ/mol/rad²."""

    epsilon: float
    sigma: float
    charge: float  # of a hydrogen
    bond: float
    angle: float
    bond_k: float
    angle_k: float


# Berendsen et al. 1987, doi:10.1021/j100308a038 (SPC/E) and 1981 (SPC); Jorgensen et al. 1983,
# doi:10.1063/1.445869 (TIP3P). Springs: as GROMACS has them for SPC, and CHARMM for TIP3P.
_TETRAHEDRAL = math.degrees(math.acos(-1 / 3))
WATERS = {
    "spce": WaterModel(0.6501696, 3.16555789, 0.4238, 1.0, _TETRAHEDRAL, 3450.0, 383.0),
    "spc": WaterModel(0.6501696, 3.16555789, 0.41, 1.0, _TETRAHEDRAL, 3450.0, 383.0),
    "tip3p": WaterModel(0.635968, 3.15061, 0.417, 0.9572, 104.52, 3765.6, 460.24),
}
MASSES = (15.9994, 1.008, 1.008)
_WITHIN = np.asarray([[0, 1], [0, 2], [1, 2]])


def water_model(name: str) -> WaterModel:
    """One of `WATERS`, by its name in any spelling."""
    plain = name.casefold().replace("/", "").replace("-", "")
    if plain not in WATERS:
        raise ConfigError("no such water", key="model", value=name, allowed=WATERS)
    return WATERS[plain]


def water_parameters(
    model: str = "SPC/E", units: str | UnitSystem = "real", *, flexible: bool = False
) -> dict[str, float]:
    """The published parameters of a model, as `Water` takes them."""
    m, system = water_model(model), unit_system(units)
    energy = lambda value: convert(value, "kJ/mol", system.energy)  # noqa: E731
    length = lambda value: convert(value, "angstrom", system.length)  # noqa: E731
    found = {"epsilon": energy(m.epsilon), "sigma": length(m.sigma), "charge": m.charge}
    if flexible:
        per_area = energy(m.bond_k) / length(1.0) ** 2
        found |= {"bond_k": per_area, "bond_r0": length(m.bond)}
        found |= {"angle_k": energy(m.angle_k), "angle_theta0": math.radians(m.angle)}
    return found


class Water(AbstractComposite):
    """U of `molecules` waters O, H, H, O, H, H, ...: Lennard-Jones between oxygens, Coulomb
    between all sites of different molecules, and springs if flexible.

    params: `epsilon`, `sigma` of the oxygen, `charge` of a hydrogen (the oxygen's is -2 of it: the
    molecule stays neutral in a fit), and if `flexible` `bond_k`, `bond_r0`, `angle_k`,
    `angle_theta0`; `water_parameters` has the published ones. A rigid water needs constraints: its
    potential has no springs.

    **Arguments:** `molecules`; `cutoff` of both; `reciprocal`, `Ewald(waves)` or `PME(mesh)`;
    `alpha`; `tail`, for the dispersion beyond the cutoff; `truncation` of Lennard-Jones;
    `flexible`; `units`; `precision`, `path`, `skin` of the pairs, of which one pass serves both.
    """

    molecules: int = eqx.field(static=True)
    flexible: bool = eqx.field(static=True)
    terms_of: Sum
    groups: Groups = eqx.field(static=True)

    def __init__(
        self,
        molecules: int,
        cutoff: float,
        reciprocal: AbstractReciprocal | None = None,
        *,
        alpha: float | None = None,
        tail: bool = True,
        truncation: Literal["cut", "shift", "switch"] = "cut",
        flexible: bool = False,
        units: str | UnitSystem = "real",
        precision: Precision = "state",
        path: Path = "auto",
        skin: float | None = None,
    ):
        self.molecules, self.flexible = molecules, flexible
        species = jnp.asarray(water_species(molecules))
        shared: dict[str, Any] = dict(precision=precision, path=path, skin=skin)
        within = water_exclusions(molecules)
        first = 3 * np.arange(molecules)[:, None]
        terms: dict[str, AbstractPotential] = {
            "lj": LennardJones(cutoff, truncation, tail, species=species, **shared),
            "coulomb": Coulomb(
                cutoff,
                species,
                reciprocal if reciprocal is not None else Ewald(),
                alpha=alpha,
                exclusions=within,
                units=units,
                **shared,
            ),
        }
        if flexible:
            ends = np.concatenate([first + np.asarray(p) for p in ((0, 1), (0, 2))])
            terms |= {"bond": Bonds(ends), "angle": Angles(first + np.asarray([1, 0, 2]))}
        self.terms_of = Sum(terms)
        self.groups = self.terms_of.groups

    def _expanded(self, params: PyTree) -> dict[str, dict[str, Array]]:
        """Parameters of the terms, of those of the model."""
        epsilon, sigma = jnp.asarray(params["epsilon"]), jnp.asarray(params["sigma"])
        only = jnp.asarray([[1.0, 0.0], [0.0, 0.0]], epsilon.dtype)
        charge = jnp.asarray(params["charge"])
        found = {
            "lj": {"epsilon": epsilon * only, "sigma": jnp.broadcast_to(sigma, (2, 2))},
            "coulomb": {"charge": jnp.stack([-2 * charge, charge])},
        }
        if self.flexible:
            found["bond"] = {k: jnp.asarray(params[f"bond_{k}"]) for k in ("k", "r0")}
            found["angle"] = {k: jnp.asarray(params[f"angle_{k}"]) for k in ("k", "theta0")}
        return found

    def parts(self) -> list[AbstractPotential]:
        return self.terms_of.parts()

    def shared(self, params: PyTree) -> list[PyTree]:
        return self.terms_of.shared(self._expanded(params))

    def components(
        self, params: PyTree, positions: Any, box: Any, neighbours: Any = None
    ) -> dict[str, Array]:
        """The energies of Lennard-Jones (`lj`), `coulomb`, and of `bond` and `angle`."""
        return self.terms_of.components(self._expanded(params), positions, box, neighbours)

    def check(self, params: PyTree, box: Any) -> None:
        names = self.parameter_units()
        if sorted(params) != sorted(names):
            raise ConfigError(f"needs the parameters {', '.join(names)}", value=sorted(params))
        for key, value in params.items():
            if not np.all(np.isfinite(np.asarray(value))) or np.any(np.asarray(value) <= 0):
                raise ConfigError("must be positive", key=key, value=float(np.min(value)))
        self.terms_of.check(self._expanded(params), box)

    def parameter_units(self) -> dict[str, str]:
        found = {"epsilon": "energy", "sigma": "length", "charge": "charge"}
        if self.flexible:
            found |= {"bond_k": "energy/length^2", "bond_r0": "length"}
            found |= {"angle_k": "energy", "angle_theta0": "dimensionless"}
        return found


def water_species(molecules: int) -> np.ndarray:
    """0 for oxygen, 1 for hydrogen: O, H, H of each molecule, (3 molecules,)."""
    return np.tile(np.asarray([0, 1, 1], np.int32), molecules)


def water_exclusions(molecules: int) -> Exclusions:
    """The three pairs of each molecule."""
    first = 3 * np.arange(molecules)[:, None, None]
    return Exclusions((first + _WITHIN).reshape(-1, 2))


def rigid_water(
    molecules: int, *, model: str = "SPC/E", units: str | UnitSystem = "real"
) -> Constraints:
    """|OH| = l, |OH'| = l, |HH'| = 2 l sin(θ/2) of each molecule: what makes it rigid."""
    m, scale = water_model(model), convert(1.0, "angstrom", unit_system(units).length)
    edges = scale * m.bond * np.asarray([1.0, 1.0, 2 * math.sin(math.radians(m.angle) / 2)])
    first = 3 * np.arange(molecules)[:, None, None]
    return Constraints((first + _WITHIN).reshape(-1, 2), np.tile(edges, molecules))


def water_box(
    molecules: int,
    *,
    model: str = "SPC/E",
    density: float = 997.0,
    density_unit: str = "kg/m^3",
    units: str | UnitSystem = "real",
    seed: int = 0,
) -> dict[str, Any]:
    """Conditions for `init`: rigid molecules on a lattice, turned at random.

    Returns positions (3 molecules, 3), box (3,), masses (3 molecules,), in the system's units. The
    oxygens keep the distance of the lattice; hydrogens of neighbours may come near one another, so
    that a start wants `minimise` or a short step.
    """
    m, system = water_model(model), unit_system(units)
    edge = (sum(MASSES) / convert(density, density_unit, "dalton/angstrom^3") * molecules) ** (
        1 / 3
    )
    places, box = lattice(molecules, box=np.full(3, edge))
    sites = np.swapaxes(_turned(molecules, seed) @ _geometry(m), 1, 2)
    x = (places[:, None, :] + sites).reshape(-1, 3)
    scale = convert(1.0, "angstrom", system.length)
    mass = convert(1.0, "dalton", system.mass)
    return {"positions": x * scale, "box": box * scale, "masses": np.tile(MASSES, molecules) * mass}


def water_states(
    *,
    molecules: int,
    temperature: Any,
    pressure: Any = None,
    pressure_unit: str | None = None,
    density: float = 997.0,
    density_unit: str = "kg/m^3",
    model: str = "SPC/E",
    units: str | UnitSystem = "real",
    seed: int = 0,
    start: str | os.PathLike[str] | None = None,
) -> dict[str, np.ndarray]:
    """Conditions for `init`: a `water_box` at each temperature and, if there is one, pressure.

    temperature: (states,) or one; pressure: the same, in `pressure_unit` (default: the system's);
    start: an extended xyz file whose last frame holds the molecules, O, H, H each, in place of the
    lattice and its `density`.
    Returns positions (states, 3 molecules, 3), box (states, 3), masses (states, 3 molecules),
    temperature and pressure (states,).
    """
    temperatures = np.atleast_1d(np.asarray(temperature, dtype=float))
    if not np.all(np.isfinite(temperatures)) or np.any(temperatures <= 0):
        raise ConfigError("must be positive", key="temperature", value=temperature)
    boxes = [
        water_box(
            molecules,
            model=model,
            density=density,
            density_unit=density_unit,
            units=units,
            seed=seed + k,
        )
        for k in range(len(temperatures))
    ]
    found = {key: np.stack([box[key] for box in boxes]) for key in boxes[0]}
    if start is not None:
        for key, value in _last_frame(start, molecules, units).items():
            found[key] = np.broadcast_to(value, found[key].shape).copy()
    found["temperature"] = temperatures
    if pressure is not None:
        held = pressures(pressure, pressure_unit, unit_system(units))
        found["pressure"] = np.broadcast_to(held, temperatures.shape).copy()
    return found


def _last_frame(
    start: str | os.PathLike[str], molecules: int, units: str | UnitSystem
) -> dict[str, np.ndarray]:
    read = load_structures(os.fspath(start), units)
    if read.species != ("O", "H", "H") * molecules:
        raise ConfigError(
            f"{start} has {len(read.species)} atoms for {molecules} molecules of O, H, H",
            key="start",
        )
    return {"positions": read.positions[-1], "box": read.box[-1]}


def _geometry(m: WaterModel) -> Float[np.ndarray, "3 3"]:
    """The molecule's sites as columns, the oxygen at the origin [angstrom]."""
    half = math.radians(m.angle) / 2
    x, y = m.bond * math.sin(half), m.bond * math.cos(half)
    return np.asarray([[0.0, x, -x], [0.0, y, y], [0.0, 0.0, 0.0]])


def _turned(count: int, seed: int) -> Float[np.ndarray, "count 3 3"]:
    """Random rotations."""
    from scipy.spatial.transform import Rotation

    return Rotation.random(count, rng=np.random.default_rng(seed)).as_matrix()

"""A fitted potential in other programs: as an ASE calculator, and as a compiled function."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .._errors import ConfigError
from .._units import convert
from ._box import of_vectors, volume
from ._checks import check_atoms
from ._potential import AbstractPotential, volume_virial
from ._units import UnitSystem, dimensional


def ase_calculator(
    potential: AbstractPotential, params: PyTree, *, units: str | UnitSystem = "metal"
) -> Any:
    """An ASE calculator of U, F and σ_ab = (1/V) ∂U/∂ε_ab = -W_ab/V:
    `atoms.calc = md.ase_calculator(potential, params)`.

    Energies in eV, forces in eV/angstrom, stresses (6,) in eV/angstrom³ in ASE's order xx, yy, zz,
    yz, xz, xy, a compressed body's negative; a tail correction adds to the stress what it adds to
    the pressure. ASE's `free_energy` (`force_consistent=True`) is the energy whose slopes forces
    and stresses are, which for a plainly cut potential is the shifted one. Cells are periodic (a
    molecule wants one that keeps its images out), of any angles, turned as the potential wants
    them, and forces and stresses turned back. Neighbour structures are kept from call to call.
    Works for neural potentials as for all others, in ASE's optimisers, cell filters, dynamics and
    equations of state.

    `units`: the system of the parameters, metal, real or gromacs. Reduced units are refused, since
    ASE counts in eV and angstrom. Stress is refused where the potential does not know the energy of
    a sheared box: a `Potential` or `FlaxModule` that is not for triclinic ones.
    """
    from ase.calculators.calculator import (
        Calculator,
        PropertyNotImplementedError,
        all_changes,
    )

    evaluate = _Evaluation(potential, params, dimensional(units, "eV and angstrom"))

    class DiffsimCalculator(Calculator):
        implemented_properties = ["energy", "free_energy", "forces", "stress"]  # noqa: RUF012

        def calculate(
            self, atoms: Any = None, properties: Any = None, system_changes: Any = all_changes
        ) -> None:
            Calculator.calculate(self, atoms, properties, system_changes)
            if system_changes or not self.results:
                self.results = evaluate(self.atoms)
            if "stress" in (properties or ()):  # costs as much as the forces
                stress = evaluate.stress(self.atoms)
                if np.all(np.isnan(stress)) and np.isfinite(self.results["energy"]):
                    raise PropertyNotImplementedError(
                        f"stress: {type(potential).__name__} has no virial, as its energy does not "
                        "depend on the box: an energy_fn that takes box= has one"
                    )
                self.results["stress"] = stress

    return DiffsimCalculator()


class _Evaluation:
    """U, F and σ of ASE's atoms in eV and angstrom, with the neighbour structure of the last
    call."""

    def __init__(self, potential: AbstractPotential, params: PyTree, system: UnitSystem):
        self.potential, self.params, self.structure = potential, params, None
        self.atoms, self.box = 0, np.zeros(3)
        self.length = convert(1.0, "angstrom", system.length)
        self.energy = convert(1.0, system.energy, "eV")
        # a network holds functions beside its arrays
        self.compiled, self.strained = eqx.filter_jit(self._both), eqx.filter_jit(self._virial)

    def _both(self, params: PyTree, x: Any, box: Any, structure: Any) -> Any:
        structure = self.potential.update(structure, x, box)
        given = params, x, box, structure
        sloping = self.potential.driving_energy(*given)
        sloping = sloping + self.potential.volume_energy(params, len(x), box)
        energies = self.potential.energy(*given), sloping
        over = self.potential.overflowed(structure)
        return energies, self.potential.forces(*given), structure, over

    def _virial(self, params: PyTree, x: Any, box: Any, structure: Any) -> Any:
        tail = volume_virial(self.potential, params, len(x), box)
        tensor = self.potential.virial_tensor(params, x, box, structure)
        return (tensor + tail * jnp.eye(3, dtype=x.dtype)) / volume(box)

    def _placed(self, atoms: Any) -> tuple[jax.Array, jax.Array, np.ndarray]:
        """Positions and box in the potential's units, and the rotation that took them there."""
        try:
            edges, turn = of_vectors(np.asarray(atoms.cell))
        except ConfigError as error:
            raise ConfigError(error.cause, key="cell") from error
        places = np.asarray(atoms.positions)
        places = places @ turn if np.any(turn != np.eye(3)) else places
        return jnp.asarray(places * self.length), jnp.asarray(edges * self.length), turn

    def __call__(self, atoms: Any) -> dict[str, Any]:
        x, box, turn = self._placed(atoms)
        if self.atoms != len(atoms) or not np.array_equal(self.box, box):
            check_atoms(self.potential, len(atoms))
            self.potential.check(self.params, np.asarray(box))
            self.structure = self.potential.allocate(self.params, x, box)
            self.atoms, self.box = len(atoms), np.asarray(box)
        energies, forces, structure, over = self.compiled(self.params, x, box, self.structure)
        while bool(over):
            structure = self.potential.allocate(self.params, x, box, structure)
            energies, forces, structure, over = self.compiled(self.params, x, box, structure)
        self.structure = structure
        energy, sloping = (float(each) * self.energy for each in energies)
        forces = np.asarray(forces) * self.energy * self.length @ turn.T
        return {"energy": energy, "free_energy": sloping, "forces": forces}

    def stress(self, atoms: Any) -> np.ndarray:
        """σ of the atoms whose energy was the last, (6,)."""
        from ase.stress import full_3x3_to_voigt_6_stress

        x, box, turn = self._placed(atoms)
        try:
            found = np.asarray(self.strained(self.params, x, box, self.structure))
        except ConfigError as error:  # of the sheared box that is looked at, not of the atoms' own
            raise ConfigError(
                "wants the energy of sheared boxes, which this potential does not know",
                key="stress",
                allowed=error.allowed,
            ) from error
        whole = -turn @ found @ turn.T * self.energy * self.length**3
        return full_3x3_to_voigt_6_stress(whole)


def export_potential(
    potential: AbstractPotential,
    params: PyTree,
    atoms: int,
    *,
    dtype: Any = None,
    triclinic: bool = False,
) -> Any:
    """(positions, box) ↦ (U, F) with these parameters, exported by `jax.export` for `atoms` atoms.

    `.call(positions, box)` evaluates it, `.serialize()` makes bytes that any program with JAX loads
    without diffsim: `jax.export.deserialize(data)`. Both want flatbuffers:
    `pip install 'diffsim[export]'`. It takes all pairs. `dtype` defaults to JAX's floating-point
    type. The box is (3,) edges, with `triclinic` (3, 3) lattice vectors in rows, lower triangular.
    """
    from jax import export

    kind = jnp.dtype(dtype) if dtype is not None else jnp.result_type(float)

    @jax.jit
    def evaluate(positions: Any, box: Any) -> Any:
        given = params, positions, box
        return potential.energy(*given), potential.forces(*given)

    shapes = (
        jax.ShapeDtypeStruct((atoms, 3), kind),
        jax.ShapeDtypeStruct((3, 3) if triclinic else (3,), kind),
    )
    return export.export(evaluate)(*shapes)

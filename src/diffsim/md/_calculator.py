"""A fitted potential in other programs: as an ASE calculator, and as a compiled function."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .._errors import ConfigError
from .._units import convert
from ._box import of_vectors
from ._potential import AbstractPotential
from ._units import UnitSystem, unit_system


def ase_calculator(
    potential: AbstractPotential, params: PyTree, *, units: str | UnitSystem = "metal"
) -> Any:
    """An ASE calculator of U and F: `atoms.calc = md.ase_calculator(potential, params)`.

    Energies in eV, forces in eV/angstrom, whatever the system's units; cells are periodic (a
    molecule wants one that keeps its images out), of any angles, turned as the potential wants them
    and the forces turned back. Neighbour structures are kept from call to call. Works for neural
    potentials as for all others, in ASE's optimisers, dynamics and equations of state.
    """
    from ase.calculators.calculator import Calculator, all_changes

    system = unit_system(units)

    class DiffsimCalculator(Calculator):
        implemented_properties = ["energy", "forces"]  # noqa: RUF012, as ASE declares it

        def calculate(
            self, atoms: Any = None, properties: Any = None, system_changes: Any = all_changes
        ) -> None:
            Calculator.calculate(self, atoms, properties, system_changes)
            energy, forces = evaluate(self.atoms)
            self.results = {"energy": energy, "forces": forces}

    evaluate = _Evaluation(potential, params, system)
    return DiffsimCalculator()


class _Evaluation:
    """U and F of ASE's atoms in eV and angstrom, with the neighbour structure of the last call."""

    def __init__(self, potential: AbstractPotential, params: PyTree, system: UnitSystem):
        self.potential, self.params, self.structure = potential, params, None
        self.atoms, self.box = 0, np.zeros(3)
        reduced = system.reduced
        self.length = 1.0 if reduced else convert(1.0, "angstrom", system.length)
        self.energy = 1.0 if reduced else convert(1.0, system.energy, "eV")
        self.compiled = jax.jit(self._both)

    def _both(self, params: PyTree, x: Any, box: Any, structure: Any) -> Any:
        structure = self.potential.update(structure, x, box)
        forces = self.potential.forces(params, x, box, structure)
        over = self.potential.overflowed(structure)
        return self.potential.energy(params, x, box, structure), forces, structure, over

    def __call__(self, atoms: Any) -> tuple[float, np.ndarray]:
        try:
            edges, turn = of_vectors(np.asarray(atoms.cell))
        except ConfigError as error:
            raise ConfigError(error.cause, key="cell") from error
        turned = np.any(turn != np.eye(3))
        places = np.asarray(atoms.positions)
        x = jnp.asarray((places @ turn if turned else places) * self.length)
        box = jnp.asarray(edges * self.length)
        if self.atoms != len(atoms) or not np.array_equal(self.box, edges):
            self.potential.check(self.params, np.asarray(box))
            self.structure = self.potential.allocate(self.params, x, box)
            self.atoms, self.box = len(atoms), edges.copy()
        energy, forces, structure, over = self.compiled(self.params, x, box, self.structure)
        while bool(over):
            structure = self.potential.allocate(self.params, x, box, structure)
            energy, forces, structure, over = self.compiled(self.params, x, box, structure)
        self.structure = structure
        forces = np.asarray(forces) * self.energy * self.length
        return float(energy) * self.energy, forces @ turn.T if turned else forces


def export_potential(
    potential: AbstractPotential,
    params: PyTree,
    atoms: int,
    *,
    dtype: Any = None,
    triclinic: bool = False,
) -> Any:
    """(positions, box) ↦ (U, F) with these parameters, exported by `jax.export` for `atoms` atoms.

    `.call(positions, box)` evaluates it, `.serialize()` makes bytes (with the package flatbuffers)
    that any program with JAX loads without diffsim: `jax.export.deserialize(data)`. It takes all
    pairs. `dtype` defaults to JAX's floating-point type. The box is (3,) edges, with `triclinic`
    (3, 3) lattice vectors in rows, lower triangular.
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

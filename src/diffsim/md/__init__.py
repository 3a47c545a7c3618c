"""Molecular dynamics: ensembles, potentials, units, initial structures, observables."""

from ._conditions import state_points as state_points
from ._lennard_jones import LennardJones as LennardJones
from ._nve import NVE as NVE
from ._nvt import NVT as NVT
from ._potential import AbstractPotential as AbstractPotential
from ._potential import Potential as Potential
from ._potential import Thermo as Thermo
from ._rdf import RadialDistribution as RadialDistribution
from ._rdf import radial_distribution as radial_distribution
from ._state import State as State
from ._structures import Structure as Structure
from ._structures import lattice as lattice
from ._structures import load_structure as load_structure
from ._structures import maxwell_velocities as maxwell_velocities
from ._structures import number_density as number_density
from ._units import GROMACS as GROMACS
from ._units import LJ as LJ
from ._units import METAL as METAL
from ._units import REAL as REAL
from ._units import UnitSystem as UnitSystem
from ._units import unit_system as unit_system

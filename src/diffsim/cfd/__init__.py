"""Fluids: incompressible flow on staggered grids, what drives and closes it, how it is measured."""

from ._boundary import Box as Box
from ._boundary import Inflow as Inflow
from ._boundary import Outflow as Outflow
from ._boundary import Slip as Slip
from ._boundary import Wall as Wall
from ._closure import AbstractClosure as AbstractClosure
from ._closure import Smagorinsky as Smagorinsky
from ._convection import AbstractScheme as AbstractScheme
from ._convection import Central as Central
from ._convection import Upwind as Upwind
from ._convection import VanLeer as VanLeer
from ._forcing import AbstractForcing as AbstractForcing
from ._forcing import Acceleration as Acceleration
from ._forcing import BodyForce as BodyForce
from ._forcing import Buoyancy as Buoyancy
from ._forcing import Cylinder as Cylinder
from ._forcing import KolmogorovForcing as KolmogorovForcing
from ._forcing import LinearDrag as LinearDrag
from ._forcing import Modes as Modes
from ._grid import Grid as Grid
from ._incompressible import FlowState as FlowState
from ._incompressible import IncompressibleFlow as IncompressibleFlow
from ._measure import vorticity_correlation as vorticity_correlation
from ._scalar import Scalar as Scalar

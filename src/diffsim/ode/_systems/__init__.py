"""Systems: vector fields with their parameters, textbook starts and invariants, one a class."""

from ._abstract import AbstractHamiltonian as AbstractHamiltonian
from ._abstract import AbstractSystem as AbstractSystem
from ._celestial import Arenstorf as Arenstorf
from ._celestial import Pleiades as Pleiades
from ._double_pendulum import DoublePendulum as DoublePendulum
from ._epidemics import SEIR as SEIR
from ._epidemics import SIR as SIR
from ._gravity import Kepler as Kepler
from ._gravity import NBody as NBody
from ._lorenz import Lorenz63 as Lorenz63
from ._lotka_volterra import LotkaVolterra as LotkaVolterra
from ._networks import NeuralODE as NeuralODE
from ._networks import UniversalEquation as UniversalEquation
from ._ornstein_uhlenbeck import OrnsteinUhlenbeck as OrnsteinUhlenbeck
from ._oscillators import FitzHughNagumo as FitzHughNagumo
from ._oscillators import VanDerPol as VanDerPol
from ._robertson import Robertson as Robertson

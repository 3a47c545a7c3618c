"""How the gradient of a trajectory is taken: one strategy a file, one word to switch."""

from ._backsolve import Backsolve as Backsolve
from ._base import AbstractAdjoint as AbstractAdjoint
from ._base import Health as Health
from ._base import Trajectory as Trajectory
from ._checkpoint import RecursiveCheckpoint as RecursiveCheckpoint
from ._direct import Direct as Direct
from ._forward import ForwardMode as ForwardMode
from ._reversible import Reversible as Reversible
from ._reweight import Reweight as Reweight
from ._reweight import Samples as Samples

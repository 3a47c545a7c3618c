"""How the gradient of a trajectory is taken: one strategy a file, one word to switch."""

from ._auto import Auto as Auto
from ._auto import Choice as Choice
from ._backsolve import Backsolve as Backsolve
from ._base import AbstractAdjoint as AbstractAdjoint
from ._base import Health as Health
from ._base import Trajectory as Trajectory
from ._base import known_adjoints as known_adjoints
from ._checkpoint import RecursiveCheckpoint as RecursiveCheckpoint
from ._direct import Direct as Direct
from ._forward import ForwardMode as ForwardMode
from ._implicit import Implicit as Implicit
from ._plan import Ask as Ask
from ._plan import Candidate as Candidate
from ._plan import Plan as Plan
from ._reversible import Reversible as Reversible
from ._reweight import Reweight as Reweight
from ._reweight import Samples as Samples
from ._truncated import Truncated as Truncated

"""Several processes that compute one run together: how they find, start and watch each other."""

from ._detect import Group as Group
from ._detect import detected as detected
from ._gpus import VISIBLE as VISIBLE
from ._gpus import gpus as gpus
from ._launch import launch as launch
from ._member import Member as Member
from ._member import current as current
from ._member import joined as joined
from ._watch import LOST as LOST

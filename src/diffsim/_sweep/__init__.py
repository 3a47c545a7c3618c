"""Sweeps and searches: many runs, by any of Hydra's launchers, that survive a kill of them all."""

from .carry import begin as begin
from .carry import carry_out as carry_out
from .carry import claimed as claimed
from .carry import is_sweep as is_sweep
from .gpus import shared_out as shared_out
from .gpus import take_one as take_one
from .jobs import poll as poll
from .jobs import stop as stop
from .launch import Assigned as Assigned
from .launch import assigned as assigned
from .launch import resumed_launcher as resumed_launcher
from .record import Record as Record
from .search import ends as ends
from .search import require as require
from .space import settings as settings

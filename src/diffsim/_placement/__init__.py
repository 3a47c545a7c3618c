"""Where a batch of conditions lives."""

from ._abstract import AbstractPlacement as AbstractPlacement
from ._abstract import Strategy as Strategy
from ._batch import Batch as Batch
from ._rows import over_batch as over_batch
from ._single import SingleDevice as SingleDevice
from ._traffic import Collective as Collective
from ._traffic import collectives as collectives

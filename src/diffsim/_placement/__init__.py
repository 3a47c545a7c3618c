"""Where a batch of conditions lives."""

from ._single import AbstractPlacement as AbstractPlacement
from ._single import SingleDevice as SingleDevice

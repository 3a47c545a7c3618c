"""What is fitted, and what is known of it beforehand."""

from ._parameter import Parameter as Parameter
from ._prior import HalfNormal as HalfNormal
from ._prior import LogNormal as LogNormal
from ._prior import Normal as Normal
from ._prior import Prior as Prior

"""Fits: by gradients (optax), by least squares, each over the same `Problem`."""

from ._gradient import fit as fit
from ._least_squares import least_squares as least_squares
from ._result import FitResult as FitResult
from ._result import scalars as scalars

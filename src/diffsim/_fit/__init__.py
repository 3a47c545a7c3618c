"""Fits by gradients and by least squares, and posteriors, each over the same `Problem`."""

from ._batches import check_batch as check_batch
from ._curve import CurveFit as CurveFit
from ._curve import curve_fit as curve_fit
from ._gradient import fit as fit
from ._least_squares import check_squares as check_squares
from ._least_squares import least_squares as least_squares
from ._memory import FORGETFUL as FORGETFUL
from ._memory import Kept as Kept
from ._memory import Memory as Memory
from ._memory import Saved as Saved
from ._methods import NUTS as NUTS
from ._methods import SVI as SVI
from ._methods import AbstractMethod as AbstractMethod
from ._methods import Laplace as Laplace
from ._planned import planned as planned
from ._posterior import PosteriorResult as PosteriorResult
from ._posterior import explored as explored
from ._posterior import posterior as posterior
from ._result import FitResult as FitResult
from ._result import scalars as scalars

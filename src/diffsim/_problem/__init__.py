"""A fit as data: parameters, conditions, targets and the simulation that connects them."""

from ._multiple_shooting import multiple_shooting as multiple_shooting
from ._prediction import Prediction as Prediction
from ._prediction import fetched as fetched
from ._problem import Problem as Problem
from ._relative_entropy import AbstractReference as AbstractReference
from ._relative_entropy import Configurations as Configurations
from ._relative_entropy import RelativeEntropy as RelativeEntropy
from ._target import Target as Target

"""An experiment: a simulation or a fit from a configuration to a run directory."""

from ._change_study import ChangeStudy as ChangeStudy
from ._curve_study import CurveStudy as CurveStudy
from ._dynamics_studies import DriftStudy as DriftStudy
from ._dynamics_studies import PathsStudy as PathsStudy
from ._experiment import Experiment as Experiment
from ._fits import LeastSquaresFit as LeastSquaresFit
from ._fits import OptaxFit as OptaxFit
from ._fitted_studies import LearnedTermStudy as LearnedTermStudy
from ._fitted_studies import RatioStudy as RatioStudy
from ._fitted_studies import TruthStudy as TruthStudy
from ._posterior import PosteriorFit as PosteriorFit
from ._session import Session as Session
from ._shooting_study import ShootingStudy as ShootingStudy
from ._staged import StagedFit as StagedFit
from ._studies import AdjointStudy as AdjointStudy
from ._studies import StepSizeStudy as StepSizeStudy
from ._unfitted_study import UnfittedStudy as UnfittedStudy
from ._unseen_study import UnseenStudy as UnseenStudy
from ._values_studies import FrequencyStudy as FrequencyStudy
from ._values_studies import ValuesStudy as ValuesStudy

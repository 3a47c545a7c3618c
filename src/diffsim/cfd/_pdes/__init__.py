"""Partial differential equations of one or several fields, by Fourier modes and exponential
steps."""

from ._abstract import AbstractPDE as AbstractPDE
from ._abstract import PDEState as PDEState
from ._burgers import Burgers as Burgers
from ._kuramoto_sivashinsky import KuramotoSivashinsky as KuramotoSivashinsky
from ._linear import AdvectionDiffusion as AdvectionDiffusion
from ._linear import Heat as Heat
from ._reactions import FisherKPP as FisherKPP
from ._reactions import GrayScott as GrayScott
from ._reactions import ReactionDiffusion as ReactionDiffusion

"""Ensembles of small ODEs: each trajectory in a lane of its own, with its own steps."""

from ._lanes_step import rk_step as rk_step

"""Every figure of a report, in its order, with its title and the function that draws it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .figures_fit import adjoints, loss, parameters, parity
from .figures_flow import spectrum, vorticity, vorticity_film
from .figures_physics import convergence, drift, energy, observables, rdf
from .figures_posterior import pairs, phase, series, traces
from .run_data import RunData

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class FigureOf:
    """A figure: `draw` gives None where the run has no data for it, and the bytes of a GIF where it
    moves; `wide` ones fill the page."""

    name: str
    title: str
    draw: Callable[[RunData], Figure | bytes | None]
    wide: bool = False
    suffix: str = "png"


FIGURES = (
    FigureOf("parity", "Predicted against measured", parity, wide=True),
    FigureOf("series", "Data and fit", series, wide=True),
    FigureOf("phase", "Phase portrait", phase),
    FigureOf("pairs", "Pairs of parameters", pairs, wide=True),
    FigureOf("traces", "Draws, chain by chain", traces, wide=True),
    FigureOf("loss", "Loss", loss),
    FigureOf("parameters", "Parameters", parameters),
    FigureOf("observables", "Observables", observables, wide=True),
    FigureOf("vorticity", "Vorticity", vorticity, wide=True),
    FigureOf("vorticity", "Vorticity over time", vorticity_film, suffix="gif"),
    FigureOf("spectrum", "Energy by wave number", spectrum),
    FigureOf("rdf", "Radial distribution function", rdf),
    FigureOf("energy", "Total energy", energy),
    FigureOf("drift", "Invariants over time", drift, wide=True),
    FigureOf("convergence", "Energy error against time step", convergence),
    FigureOf("adjoints", "Cost of the gradient", adjoints),
)

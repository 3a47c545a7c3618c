"""The pair statistics of a liquid as the reference of a relative entropy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from .._errors import ConfigError
from .._problem import AbstractReference
from .._simulation import AbstractEquilibrium, AbstractSimulation
from ._box import volume
from ._npt import NPT
from ._pair_potential import AbstractPairPotential
from ._state import State

NODES, WEIGHTS = np.polynomial.legendre.leggauss(4)  # of a bin, -1 to 1


class PairStatistics(AbstractReference):
    """⟨U_θ⟩_ref = N(N-1)/(2V) ∫ φ(θ, r) g(r) 4πr² dr: all that relative entropy asks of a liquid of
    pairs.

    g(r) determines ⟨U_θ⟩ at every θ, so that no configuration is needed, and what is found is the
    pair potential with that g(r): the only one up to a constant (Henderson 1974,
    doi:10.1016/0375-9601(74)90847-0), which a potential that vanishes at its cutoff has not.

    **Arguments:** `r`: (bins,) centres of bins of equal width, up to the cutoff or beyond
    [length]; `g`: (bins,) or (conditions, bins) [1], normalised as by `md.radial_distribution`.
    Within a bin g is taken as linear, which is fourth order in its width: 0.01 σ leaves nothing to
    be seen, 0.05 σ a hundredth of kT where the potential is steep.

    For potentials of pairs of one kind of atom, at constant volume: the reference's own temperature
    and density. **Raises** `ConfigError` for bins that are not even, values that are negative or
    not finite, and where the cutoff lies beyond the last bin.
    """

    r: Any
    g: Any

    def __init__(self, r: Any, g: Any):
        self.g = np.atleast_2d(np.asarray(g, dtype=float))
        self.r = np.asarray(r, dtype=float)
        if self.r.ndim == 1 and self.r.shape == self.g.shape[1:]:
            self.r = np.tile(self.r, (len(self.g), 1))

    def __check_init__(self):
        if self.r.shape != self.g.shape or self.g.shape[1] < 2:
            cause = f"has the shape {self.g.shape} for distances of shape {self.r.shape}"
            raise ConfigError(cause, key="reference.g")
        if not np.all(np.isfinite(self.g)) or np.any(self.g < 0):
            raise ConfigError("must be finite and not negative", key="reference.g")
        width = np.diff(self.r[0])
        even = np.all(np.isfinite(width)) and np.allclose(width, width[0], rtol=1e-3)
        if not even or not 0 < width[0] <= 2.001 * self.r[0, 0]:
            raise ConfigError("must be centres of bins of equal width", key="reference.r")

    def reduced_energy(
        self, simulation: AbstractEquilibrium, params: PyTree, state: State, given: Mapping
    ) -> Array:
        del given
        assert state.kT is not None
        potential = getattr(simulation, "potential")  # noqa: B009
        dtype = state.positions.dtype
        width = self.r[1] - self.r[0]
        r = self.r[:, None] + width / 2 * jnp.asarray(NODES, dtype)
        slope = jnp.gradient(self.g) / width
        steepest = 2 * self.g / width  # a bin of few pairs has none below zero
        slope = jnp.clip(slope, -steepest, steepest)
        g = self.g[:, None] + slope[:, None] * (r - self.r[:, None])
        tables = potential.tables({k: jnp.asarray(v, dtype) for k, v in params.items()})
        phi = potential.pair_thermo(tables, r**2).driving
        mean = jnp.sum(jnp.asarray(WEIGHTS / 2, dtype) * width * phi * g * 4 * math.pi * r**2)
        return state.atoms * (state.atoms - 1) / (2 * volume(state.box)) * mean / state.kT

    def check(self, simulation: AbstractSimulation) -> None:
        potential = getattr(simulation, "potential", None)
        pairs = isinstance(potential, AbstractPairPotential)
        if not pairs or potential.species is not None or potential.exclusions is not None:
            raise ConfigError(
                "the energy of this potential does not follow from one g(r)",
                key="simulation.potential",
                value=type(potential).__name__,
                allowed="a potential of pairs of one kind of atom; or diffsim.Configurations",
            )
        if isinstance(simulation, NPT):
            raise ConfigError(
                "g(r) belongs to one density",
                key="simulation",
                value="NPT",
                allowed="diffsim.md.NVT; or diffsim.Configurations",
            )
        last = float(1.5 * self.r[0, -1] - 0.5 * self.r[0, -2])
        if last < potential.cutoff * (1 - 1e-6):
            raise ConfigError(
                f"lies beyond the last bin, which ends at {last:g}",
                key="cutoff",
                value=potential.cutoff,
            )

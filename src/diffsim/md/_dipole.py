"""The dipole moment of the whole box."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from .._errors import ConfigError
from ._checks import checked_array
from ._observable import AbstractObservable


class Dipole(AbstractObservable):
    """M = Σ_i q_i x_i, of the whole box, as one more observable of a simulation.

    charges: q, (atoms,) [elementary charge]; they should add up to zero, as M depends on the
        origin otherwise
    parameter: a number among the simulation's parameters that all of them are multiples of, so that
        M follows a charge that is fitted: of `Water` "charge", with -2, 1, 1 for each molecule

    Positions are unwrapped: a molecule that is whole at the start stays so, and an ion that leaves
    the box does not make M jump. One that the start has in two pieces adds a constant to M where
    the box stays as it is, of which `dielectric_constant` does not depend; in a box that changes
    give whole molecules.

    `sim = NVT(..., extra=(Dipole(charges),))` then has the observable "dipole", shape (3,)
    [elementary charge · length]. Raises ConfigError for charges of another number of atoms.
    """

    charges: tuple[float, ...] = eqx.field(static=True)
    parameter: str | None = eqx.field(static=True)
    name: str = eqx.field(static=True)
    unit: str = eqx.field(static=True)

    def __init__(self, charges: Any, parameter: str | None = None, name: str = "dipole"):
        each = checked_array("charges", charges, "atoms")
        if not np.all(np.isfinite(each)):
            raise ConfigError("must be finite", key="charges")
        self.charges, self.parameter = tuple(each.tolist()), parameter
        self.name, self.unit = name, "e*({length})"

    def __call__(self, params: PyTree, state: PyTree) -> Float[Array, "3"]:
        """M (3,) of `state.positions`."""
        x = state.positions
        if len(self.charges) != len(x):
            cause = f"has {len(self.charges)} entries for {len(x)} atoms"
            raise ConfigError(cause, key="charges")
        moment = jnp.asarray(np.asarray(self.charges), x.dtype) @ x
        return moment if self.parameter is None else moment * self._unit_charge(params)

    def _unit_charge(self, params: PyTree) -> Array:
        if self.parameter not in params:
            raise ConfigError(
                "no such parameter", key="parameter", value=self.parameter, allowed=params
            )
        charge = jnp.asarray(params[self.parameter])
        if charge.ndim:
            raise ConfigError(f"must be a number, not {charge.shape}", key=self.parameter)
        return charge

"""What is observed of a state beside the usual: the contract of `extra`."""

from __future__ import annotations

from abc import abstractmethod

import equinox as eqx
from jaxtyping import Array, PyTree

from ._units import UnitSystem


class AbstractObservable(eqx.Module):
    """One more observable of a simulation: A(θ, x), called with parameters and state."""

    name: eqx.AbstractVar[str]
    unit: eqx.AbstractVar[str]

    @abstractmethod
    def __call__(self, params: PyTree, state: PyTree) -> Array:
        """The observable of one state."""

    def unit_in(self, system: UnitSystem) -> str:
        """Its unit in a system of units: `unit`, in which "{length}" and the like are filled in."""
        return system.filled(self.unit)

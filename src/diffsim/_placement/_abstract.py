"""Where a batch lives: the contract of every placement."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
from jaxtyping import PyTree

from .._adjoint import AbstractAdjoint
from .._simulation import AbstractSimulation


class Strategy(NamedTuple):
    """How the devices share the work: a word, the reason, and whether the way back of a gradient is
    taken inside of each device's own program, on whose border it would otherwise be split."""

    name: str
    why: str
    inside: bool = False


class AbstractPlacement(eqx.Module):
    """Says where a batch is computed, its leading axis conditions, replicas, chains or populations.

    `map` is the only place where members meet devices; drives, problems, fits and samplers know of
    no other. What runs inside `fn` sees one member, of which a placement may hold as little on each
    device as it likes: nothing outside assumes that a state fits one.
    """

    @abstractmethod
    def check(self) -> None:
        """Refuse, before anything is traced or written, devices that there are not."""

    @abstractmethod
    def devices_of(self, rows: int) -> int:
        """On how many devices a batch of `rows` members is computed."""

    @abstractmethod
    def place(self, batch: PyTree) -> PyTree:
        """The batch where it will be computed."""

    @abstractmethod
    def map(
        self,
        fn: Callable[..., Any],
        shared: PyTree,
        *batch: PyTree,
        strategy: Strategy | None = None,
    ) -> PyTree:
        """`fn(shared, *member)` of every member (leading axis of the arrays in `batch`), each where
        it lives: every device runs its own members to their end without a word to the others.
        Differentiable in `shared` and `batch`; a cotangent of `shared` is summed over devices once,
        after the way back."""

    @abstractmethod
    def strategy(self, simulation: AbstractSimulation, adjoint: AbstractAdjoint | None) -> Strategy:
        """How gradients through `map` are taken."""

    @abstractmethod
    def readable(self, tree: PyTree) -> PyTree:
        """Inside of a compiled program: results that the host of every process will read."""

    @abstractmethod
    def fetch(self, tree: PyTree) -> PyTree:
        """The same arrays bound to no device, whole in every process."""

    def describe(
        self, rows: int, simulation: AbstractSimulation, adjoint: AbstractAdjoint | None
    ) -> dict[str, Any]:
        """What result.json says: devices, members of each, members that only fill up, strategy."""
        devices = self.devices_of(rows)
        share = -(-rows // devices)
        chosen = self.strategy(simulation, adjoint)
        return {
            "name": type(self).__name__,
            "devices": devices,
            "conditions": rows,
            "conditions_per_device": share,
            "padding": devices * share - rows,
            "strategy": chosen.name,
            "why": chosen.why,
        }

"""Everything on one device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
from jaxtyping import PyTree

from .._adjoint import AbstractAdjoint
from .._errors import ConfigError
from .._simulation import AbstractSimulation
from ._abstract import AbstractPlacement, Strategy
from ._rows import over_batch

ALONE = Strategy("vmap", "all conditions side by side on one device")


class SingleDevice(AbstractPlacement):
    """The identity, on device `index` of the default platform."""

    index: int = eqx.field(static=True, default=0)

    def check(self) -> None:
        count = jax.local_device_count()
        if not 0 <= self.index < count:
            allowed = f"0 to {count - 1}"
            raise ConfigError(
                "no such device", key="placement.index", value=self.index, allowed=allowed
            )
        if jax.process_count() > 1:
            raise ConfigError(
                f"{jax.process_count()} processes would each compute the same on one device",
                key="placement",
                value="single",
                allowed="batch, or one process",
            )

    def devices_of(self, rows: int) -> int:
        return 1

    def place(self, batch: PyTree) -> PyTree:
        device = jax.local_devices()[self.index]
        return jax.tree.map(lambda x: jax.device_put(x, device) if eqx.is_array(x) else x, batch)

    def map(
        self,
        fn: Callable[..., Any],
        shared: PyTree,
        *batch: PyTree,
        strategy: Strategy | None = None,
    ) -> PyTree:
        return over_batch(lambda *member: fn(shared, *member), *batch)

    def strategy(self, simulation: AbstractSimulation, adjoint: AbstractAdjoint | None) -> Strategy:
        return ALONE

    def readable(self, tree: PyTree) -> PyTree:
        return tree

    def fetch(self, tree: PyTree) -> PyTree:
        return tree

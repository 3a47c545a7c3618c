"""Everything on one device."""

from __future__ import annotations

from abc import abstractmethod

import equinox as eqx
import jax
from jaxtyping import PyTree


class AbstractPlacement(eqx.Module):
    """Says where a batch, leading axis conditions, is put before it is run."""

    @abstractmethod
    def place(self, batch: PyTree) -> PyTree:
        """The batch where it will be computed."""


class SingleDevice(AbstractPlacement):
    """The identity, on device `index` of the default platform."""

    index: int = eqx.field(static=True, default=0)

    def place(self, batch: PyTree) -> PyTree:
        device = jax.devices()[self.index]
        return jax.tree.map(lambda x: jax.device_put(x, device) if eqx.is_array(x) else x, batch)

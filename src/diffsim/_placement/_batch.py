"""The members of a batch over all devices, of one process or of several."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from .._adjoint import AbstractAdjoint, Auto, RecursiveCheckpoint
from .._errors import ConfigError
from .._simulation import AbstractFlow, AbstractSimulation
from ._abstract import AbstractPlacement, Strategy
from ._inside import pulled_inside
from ._rows import over_batch, rows_of
from ._single import ALONE

AXIS = "conditions"
ALL, ROWS = PartitionSpec(), PartitionSpec(AXIS)
SPLIT = Strategy(
    "shard_map",
    "each device runs its conditions as one program without collectives; cotangents of the "
    "parameters are summed over devices once, after the way back",
)
INSIDE = Strategy(
    "shard_map, pulled back inside",
    "the loops of Diffrax's checkpoints refuse to be traced over devices: they are traced for one, "
    "each device takes the way back inside of its own program, and cotangents of the parameters "
    "are summed explicitly, once",
    inside=True,
)


class Batch(AbstractPlacement):
    """Condition i on device ⌊i/share⌋, share = ⌈conditions/devices⌉: values and gradients are those
    of one device, to rounding.

    **When:** many conditions, replicas, chains or parameter sets, one of which fits a device.
    **Costs:** no communication in the time loop; an iteration of a fit sums the gradient once over
    devices. Each device waits for the slowest. **Cannot:** hold a single simulation too large for a
    device.

    Where the conditions do not divide, the last is repeated on the last device, and what it gives
    is cut off before anything sees it: losses, gradients, averages, laws and status codes are those
    of the conditions alone.

    **Arguments:** `devices`: how many, default all of them, in all processes. More than there are
    is a `ConfigError` before anything is traced; on CPU `XLA_FLAGS` gives a process more.
    """

    devices: int | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        wrong = isinstance(self.devices, bool) or not isinstance(self.devices, int | None)
        if wrong or (self.devices is not None and self.devices < 1):
            raise ConfigError(
                "must be a whole number of at least 1, or null for all",
                key="devices",
                value=self.devices,
            )

    def check(self) -> None:
        there, processes = jax.device_count(), jax.process_count()
        if self.devices is None:
            return
        if self.devices > there:
            raise ConfigError(
                f"there {'is' if there == 1 else 'are'} {there} here ({jax.default_backend()})",
                key="placement.devices",
                value=self.devices,
                allowed=f"1 to {there}, or null for all" + _remedy(self.devices),
            )
        if self.devices % processes or self.devices // processes > jax.local_device_count():
            raise ConfigError(
                f"each of the {processes} processes must have its share",
                key="placement.devices",
                value=self.devices,
                allowed=f"multiples of {processes} up to {there}",
            )

    def devices_of(self, rows: int) -> int:
        there = jax.device_count() if self.devices is None else self.devices
        if jax.process_count() > 1:
            return there  # every process takes part in every program
        share = -(-rows // there)
        return -(-rows // share)  # 9 on 8 devices are 2 on each of 5, in the same time

    def mesh(self, rows: int) -> Mesh:
        """The devices that compute a batch of `rows` members."""
        return _mesh(self.devices_of(rows))

    def place(self, batch: PyTree) -> PyTree:
        rows = rows_of(batch)
        if rows % self.devices_of(rows):
            return batch  # its program cuts it up
        return _put(batch, NamedSharding(self.mesh(rows), ROWS))

    def map(
        self,
        fn: Callable[..., Any],
        shared: PyTree,
        *batch: PyTree,
        strategy: Strategy | None = None,
    ) -> PyTree:
        rows = rows_of(batch)
        mesh = self.mesh(rows)
        if mesh.size == 1:
            return over_batch(lambda *member: fn(shared, *member), *batch)
        arrays, static = eqx.partition((shared, batch), eqx.is_array)
        rest: list[PyTree] = []

        def local(shared: PyTree, batch: PyTree) -> PyTree:
            shared, batch = eqx.combine((shared, batch), static)
            out = over_batch(lambda *member: fn(shared, *member), *batch)
            seen, other = eqx.partition(out, eqx.is_array)
            rest[:] = [other]
            return seen

        @jax.jit  # compiled as a whole where nothing around it is
        def run(shared: PyTree, batch: PyTree) -> PyTree:
            batch = jax.tree.map(lambda x: _filled(x, mesh.size), batch)
            if strategy is not None and strategy.inside:
                out = pulled_inside(local, mesh, AXIS)(shared, batch)
            else:
                out = jax.shard_map(
                    local, mesh=mesh, in_specs=(ALL, ROWS), out_specs=ROWS, check_vma=False
                )(shared, batch)
            return jax.tree.map(lambda x: _cut(x, rows, mesh), out)

        return eqx.combine(run(*arrays), rest[0])

    def strategy(self, simulation: AbstractSimulation, adjoint: AbstractAdjoint | None) -> Strategy:
        if self.devices_of(jax.device_count()) == 1:
            return ALONE
        adaptive = isinstance(simulation, AbstractFlow) and simulation.adaptive
        reverse = isinstance(adjoint, Auto) and adjoint.mode != "forward"
        if adaptive and (reverse or isinstance(adjoint, RecursiveCheckpoint)):
            return INSIDE
        return SPLIT

    def readable(self, tree: PyTree) -> PyTree:
        if jax.process_count() == 1:
            return tree
        everywhere = NamedSharding(_mesh(self.devices_of(1)), ALL)
        return _constrained(tree, everywhere)

    def fetch(self, tree: PyTree) -> PyTree:
        return jax.tree.map(lambda x: _whole(x) if isinstance(x, jax.Array) else x, tree)


@functools.cache
def _mesh(devices: int) -> Mesh:
    """The first devices, an equal number of each process."""
    each = devices // jax.process_count()
    chosen = [d for i in range(jax.process_count()) for d in jax.local_devices(i)[:each]]
    return Mesh(np.asarray(chosen), (AXIS,), axis_types=(AxisType.Auto,))


def _remedy(devices: int) -> str:
    """How a CPU shows itself as several devices."""
    if jax.default_backend() != "cpu":
        return ""
    return f"; for a try set XLA_FLAGS=--xla_force_host_platform_device_count={devices}"


def _filled(x: Any, parts: int) -> Any:
    """x with its last row repeated until it divides into `parts`."""
    more = -x.shape[0] % parts
    return jnp.concatenate([x, jnp.repeat(x[-1:], more, axis=0)]) if more else x


def _cut(x: Any, rows: int, mesh: Mesh) -> Any:
    """The first rows of what was filled up; what is left does not divide, so every device has
    it."""
    if x.shape[0] == rows:
        return x
    return jax.lax.with_sharding_constraint(x[:rows], NamedSharding(mesh, ALL))


def _put(tree: PyTree, where: NamedSharding) -> PyTree:
    return jax.tree.map(lambda x: jax.device_put(x, where) if eqx.is_array(x) else x, tree)


def _constrained(tree: PyTree, where: NamedSharding) -> PyTree:
    constrain = jax.lax.with_sharding_constraint
    return jax.tree.map(lambda x: constrain(x, where) if eqx.is_array(x) else x, tree)


def _whole(x: jax.Array) -> Any:
    """An array on the host's side, of typed keys too."""
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_whole(jax.random.key_data(x)), impl=jax.random.key_impl(x))
    if len(x.sharding.device_set) == 1:
        return x
    if not x.is_fully_addressable and not x.is_fully_replicated:
        from jax.experimental.multihost_utils import process_allgather

        return jnp.asarray(process_allgather(x, tiled=True))
    return jnp.asarray(np.asarray(x))

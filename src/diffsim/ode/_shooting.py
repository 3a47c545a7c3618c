"""Multiple shooting: a long trajectory as many short ones that must meet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._errors import ConfigError
from ._start import InitialState
from ._systems import AbstractSystem


class SegmentStarts(eqx.Module):
    """The starts of all segments: (θ[names[0]], θ[names[1]], ...), then the rows of θ[nodes].

    **Arguments:** `names`: of the parameters that are the first start, one a component; `nodes`: of
    the parameter (S - 1, n) that holds the others.
    """

    first: InitialState
    nodes: str = eqx.field(static=True)

    def __init__(self, names: Sequence[str], nodes: str = "nodes"):
        self.first, self.nodes = InitialState(names), nodes

    def __call__(self, params: Mapping[str, Any]) -> Float[Array, "segments n"]:
        if self.nodes not in params:
            raise ConfigError(
                "no such parameter", key="initial.nodes", value=self.nodes, allowed=params
            )
        first, nodes = self.first(params), jnp.asarray(params[self.nodes])
        if nodes.ndim != 2 or nodes.shape[1:] != first.shape:
            raise ConfigError(
                f"must be (segments - 1, {first.size})",
                key=f"parameters.{self.nodes}",
                value=nodes.shape,
            )
        return jnp.concatenate([first[None], nodes])


class Shooting(AbstractSystem):
    """dyᵢ/dt = f(yᵢ; θ) of S consecutive segments of one trajectory, all at once over the length of
    one, for a system whose f does not depend on time.

    From a far start the end of a chaotic trajectory says nothing of where to go: its error
    surface is rough on the scale exp(-λT). Over a segment it is smooth. Each segment starts at a
    free state near what was measured, and that they meet becomes data: the observable `gaps` must
    be zero, to a small sigma, which then acts as noise of the equation itself. Where it is far
    below what measurements tell of a state, the minimum is that of the one trajectory, with its
    error bars. A descent damped relative to such steep gaps would hold the trajectory where it is:
    start `least_squares` with next to no damping.

    y: (S, n). Parameters: the system's, and those of `starts`. Observed at the end of a segment:
    `points` (S + 1, n), the trajectory at the segments' starts and at its end, and `gaps`
    (S - 1, n), by how much each segment misses the next one's start.

    Source: Bock, in Modelling of Chemical Reaction Systems, 102 (1981),
    doi:10.1007/978-3-642-68220-9_8.

    **Arguments:** `system`: of one segment; `starts`: of all, also the simulation's `initial`.
    """

    system: AbstractSystem
    starts: SegmentStarts

    @property
    def components(self) -> tuple[str, ...]:
        return ()

    def __call__(self, t: Any, y: Any, args: Any) -> Float[Array, "segments n"]:
        return jax.vmap(lambda one: self.system(t, one, args))(jnp.asarray(y))

    def observe(self, t: Any, y: Any, args: Any) -> dict[str, Array]:
        del t
        starts, ends = self.starts(args), jnp.asarray(y)
        return {"points": jnp.concatenate([starts, ends[-1:]]), "gaps": ends[:-1] - starts[1:]}

    def defaults(self) -> dict[str, Any]:
        return self.system.defaults()

    def start(self) -> Float[Array, "segments n"]:
        raise ConfigError("must be given", key="initial", allowed="what Shooting has as `starts`")

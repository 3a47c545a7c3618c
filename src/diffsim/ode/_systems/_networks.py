"""Vector fields with a network in them: all of it, or the part that is not known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ..._errors import ConfigError
from ._abstract import AbstractSystem, Vector


def _mlp(inputs: int, outputs: int, width: int, depth: int, key: PRNGKeyArray) -> eqx.nn.MLP:
    """A perceptron with tanh and a last layer near zero, so that a fit starts near dy/dt = 0."""
    net = eqx.nn.MLP(inputs, outputs, width, depth, activation=jnp.tanh, key=key)
    last = net.layers[-1]
    small = (0.01 * last.weight, jnp.zeros_like(last.bias))  # pyright: ignore[reportArgumentType]
    return eqx.tree_at(lambda n: (n.layers[-1].weight, n.layers[-1].bias), net, small)


def _input(t: Any, y: Vector, timed: bool) -> Array:
    y = jnp.asarray(y)
    return jnp.concatenate([y, jnp.asarray(t, y.dtype)[None]]) if timed else y


def _check_names(names: tuple[str, ...]) -> None:
    if not names or len(set(names)) < len(names):
        raise ConfigError("one name a component, each once", key="names", value=names)
    if {"t", "y"} & set(names):
        raise ConfigError("t and y name the time and the whole state", key="names", value=names)


class NeuralODE(AbstractSystem):
    """dy/dt = net(y), or net((y, t)) with `timed`: a flow that is learned altogether.

    y: (n,), its entries called `names`. The network is a parameter, `args["net"]`: any callable of
    (n,), or (n+1,), to (n,) that is a pytree of arrays, be it an Equinox module, a Flax NNX module
    or your own. `network` makes a perceptron; tanh keeps the field smooth, which adaptive steps
    like.

    Source: Chen, Rubanova, Bettencourt and Duvenaud, NeurIPS (2018),
    doi:10.48550/arXiv.1806.07366.
    """

    names: tuple[str, ...] = eqx.field(static=True, converter=tuple, default=("y1", "y2"))
    timed: bool = eqx.field(static=True, default=False)

    def __check_init__(self):
        _check_names(self.names)

    @property
    def components(self) -> tuple[str, ...]:
        return self.names

    def __call__(self, t: Any, y: Vector, args: Any) -> Float[Array, "n"]:
        return args["net"](_input(t, y, self.timed))

    def network(self, key: PRNGKeyArray, *, width: int = 32, depth: int = 2) -> eqx.nn.MLP:
        """A perceptron of the right shape with `depth` hidden layers of `width`."""
        size = len(self.names)
        return _mlp(size + self.timed, size, width, depth, key)

    def defaults(self) -> dict[str, Any]:
        return {"net": self.network(jax.random.key(0))}

    def start(self) -> Float[Array, "n"]:
        return jnp.ones(len(self.names))


class UniversalEquation(AbstractSystem):
    """dy/dt = known(t, y, args) + term(t, y, args): known physics, and a network for the rest.

    `known`: a system, or any vector field together with the `names` of the components; `term`: the
    same signature, (n,), by default the whole field of a network, `args["net"](y)`. A term of your
    own places the network where it belongs, for one missing interaction of two species:

        term = lambda t, y, args: jnp.stack([-1.0, 1.0]) * args["net"](y)[0]

    `args` holds the parameters of both. Observed: `term` (n,), for a look at what was learned. What
    the known part conserves, the sum need not: no laws.

    Source: Rackauckas et al., Universal Differential Equations for Scientific Machine Learning
    (2020), doi:10.48550/arXiv.2001.04385.
    """

    known: Callable[..., Array]
    term: Callable[..., Array] | None = None
    names: tuple[str, ...] = eqx.field(static=True, converter=tuple, default=(), kw_only=True)

    def __check_init__(self):
        if self.names or not isinstance(self.known, AbstractSystem):
            _check_names(self.names)

    @property
    def components(self) -> tuple[str, ...]:
        if self.names or not isinstance(self.known, AbstractSystem):
            return self.names
        return self.known.components

    def _unknown(self, t: Any, y: Vector, args: Any) -> Array:
        return args["net"](jnp.asarray(y)) if self.term is None else self.term(t, y, args)

    def __call__(self, t: Any, y: Vector, args: Any) -> Float[Array, "n"]:
        return self.known(t, y, args) + self._unknown(t, y, args)

    def observe(self, t: Any, y: Vector, args: Any) -> dict[str, Array]:
        return {"term": self._unknown(t, y, args)}

    def network(
        self, key: PRNGKeyArray, *, outputs: int | None = None, width: int = 32, depth: int = 2
    ) -> eqx.nn.MLP:
        """A perceptron of (n,) to (`outputs`,), default n, that starts near zero."""
        size = len(self.components)
        return _mlp(size, size if outputs is None else outputs, width, depth, key)

    def defaults(self) -> dict[str, Any]:
        known = self.known.defaults() if isinstance(self.known, AbstractSystem) else {}
        return {**known, "net": self.network(jax.random.key(0))}

    def start(self) -> Float[Array, "n"]:
        if isinstance(self.known, AbstractSystem):
            return self.known.start()
        return jnp.ones(len(self.components))

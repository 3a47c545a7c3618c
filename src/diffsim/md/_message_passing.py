"""Neural potentials: a message-passing network of ours, and others' modules as they are."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from .._errors import ConfigError
from ._box import triclinic
from ._many_body import AbstractManyBody, Environment, Where
from ._pair_potential import kinds_of
from ._potential import AbstractPotential, Box, Positions


class MessagePassing(eqx.Module):
    """u_i = MLP(h_i) after some rounds of h_i ← h_i + MLP(m_i, |v_i|²), with

    m_i = Σ_j c(r_ij) R(r_ij) ∘ h_j   and   v_i = Σ_j c(r_ij) V(r_ij) ∘ h_j  (x_j - x_i)/r_ij:

    scalars and vectors of what is around, whose lengths tell angles by their cosines; with
    `degree=2` |t_i|² too, of t_i = Σ_j c T ∘ h_j (u uᵀ - 1/3), u = (x_j - x_i)/r_ij, by the
    cosines' squares: what holds tetrahedra in shape. R, V and T are linear in Bessel
    functions sin(kπr/rc)/r; c = (1 - (r/rc)²)³ takes energies, forces and their derivatives to zero
    at the cutoff. The same under rotations, reflections, translations and exchange of equal atoms.
    Called with an `Environment`, it gives the energy of each atom.

    **Arguments:** `cutoff`; `key`, or a seed; `features`, numbers an atom (default 16); `rounds`
    (2): an atom feels what is within rounds times the cutoff; `radial`, functions of the distance
    (8); `kinds` of atoms (1); `degree` of the tensors, 1 (the default) or 2. About 6,000 parameters
    as it stands. Ideas: Schütt et al. 2021, arXiv:2102.03150.
    """

    embedding: Array
    messages: list[Array]  # (radial, (degree + 1) features) each
    updates: list[eqx.nn.MLP]
    readout: eqx.nn.MLP
    cutoff: float = eqx.field(static=True)
    radial: int = eqx.field(static=True)
    degree: int = eqx.field(static=True)

    def __init__(
        self,
        cutoff: float,
        key: PRNGKeyArray | int,
        features: int = 16,
        rounds: int = 2,
        radial: int = 8,
        kinds: int = 1,
        degree: int = 1,
    ):
        if degree not in (1, 2):
            raise ConfigError("no such degree", key="degree", value=degree, allowed=("1", "2"))
        parts = degree + 1
        key = jax.random.key(key) if isinstance(key, int) else key
        keys = jax.random.split(key, 2 * rounds + 2)
        self.cutoff, self.radial, self.degree = float(cutoff), radial, degree
        self.embedding = jax.random.normal(keys[0], (kinds, features))
        size = math.sqrt(radial)
        shape = radial, parts * features
        self.messages = [jax.random.normal(k, shape) / size for k in keys[2::2]]
        mlp = lambda inputs, outputs, key: eqx.nn.MLP(  # noqa: E731
            inputs, outputs, features, 1, activation=jax.nn.silu, key=key
        )
        self.updates = [mlp(parts * features, features, k) for k in keys[3::2]]
        self.readout = mlp(features, 1, keys[1])

    def __call__(self, around: Environment) -> Float[Array, " atoms"]:
        h = self.embedding[around.species]
        basis = self._basis(around)
        unit = around.d / around.r[..., None]
        for weights, update in zip(self.messages, self.updates, strict=True):
            scalar, *tensors = jnp.split(basis @ weights, self.degree + 1, axis=-1)
            there = h[around.index]
            seen = [jnp.sum(scalar * there, axis=1)]
            for order, radial in enumerate(tensors, 1):
                seen.append(_squared(radial * there, unit, order))
            h = h + jax.vmap(update)(jnp.concatenate(seen, axis=-1))
        return jax.vmap(self.readout)(h)[:, 0]

    def _basis(self, around: Environment) -> Array:
        """c(r) sin(kπr/rc)/r, (atoms, slots, radial)."""
        x = around.r / self.cutoff
        envelope = jnp.where(around.near, (1 - jnp.minimum(x, 1) ** 2) ** 3, 0)
        k = jnp.arange(1, self.radial + 1, dtype=x.dtype) * math.pi
        return envelope[..., None] * jnp.sin(k * x[..., None]) / x[..., None]


def _squared(weights: Array, unit: Array, order: int) -> Array:
    """|Σ_j w_j u_j|², of order 2 |Σ_j w_j (u_j u_jᵀ - 1/3)|²; weights (atoms, slots, features)."""
    if order == 1:
        v = jnp.einsum("ijf,ijk->ifk", weights, unit)
        return jnp.sum(v * v, axis=-1)
    t = jnp.einsum("ijf,ijk,ijl->ifkl", weights, unit, unit)
    return jnp.sum(t * t, axis=(-2, -1)) - jnp.sum(weights, axis=1) ** 2 / 3


class Neural(AbstractManyBody):
    """U = Σ_i net(environment of i): any network over environments, as `MessagePassing`.

    params: `{"net": network}`, an Equinox module that is called with an `Environment` and gives
    (atoms,) energies; all its arrays are parameters (`ds.Parameter(network)`). `cutoff` is that of
    one round of messages; `species`, the kind of each atom.
    """

    cutoff: float = eqx.field(static=True, converter=float)
    path: Where = eqx.field(static=True, default="auto", kw_only=True)
    skin: float | None = eqx.field(static=True, default=None, kw_only=True)
    species: Int[Array, " atoms"] | None = eqx.field(default=None, kw_only=True, converter=kinds_of)

    def site_energies(self, params: PyTree, around: Environment) -> Float[Array, " atoms"]:
        return params["net"](around)

    def check(self, params: PyTree, box: Any) -> None:
        if set(params) != {"net"} or not callable(params["net"]):
            raise ConfigError("must be the only parameter, and a network", key="net")
        self.check_box(box)


class FlaxModule(AbstractPotential):
    """U = module(positions, box=...) of a Flax NNX module, whose parameters are the potential's.

    `FlaxModule(model)` keeps the structure of `model`; `initial(model)` gives its parameters, so
    that `{"net": FlaxModule.initial(model)}` are params. `call(module, positions, box)` says how it
    is called, where that is not `module(positions, box)`: JAX-MD's Behler-Parrinello networks take
    `lambda module, positions, box: module(positions, box=box)`. `triclinic=True` says that it knows
    boxes (3, 3), lattice vectors in rows.
    """

    graph: Any = eqx.field(static=True)
    rest: Any
    call: Callable[..., Array] = eqx.field(static=True)
    triclinic: bool = eqx.field(static=True)

    def __init__(
        self, model: Any, call: Callable[..., Array] | None = None, *, triclinic: bool = False
    ):
        from flax import nnx

        self.graph, _, self.rest = nnx.split(model, nnx.Param, ...)
        self.call = call if call is not None else _plain_call
        self.triclinic = triclinic

    @staticmethod
    def initial(model: Any) -> PyTree:
        """The parameters of a module, as a tree of arrays."""
        from flax import nnx

        return nnx.to_pure_dict(nnx.split(model, nnx.Param, ...)[1])

    def module(self, params: PyTree) -> Any:
        """The module with these parameters."""
        from flax import nnx

        given = nnx.State(jax.tree.map(nnx.Param, params["net"]))
        return nnx.merge(self.graph, given, self.rest)

    def energy(
        self, params: PyTree, positions: Positions, box: Box, neighbours: Any = None
    ) -> Array:
        x = jnp.asarray(positions)
        self._check_shape(box)
        energy = self.call(self.module(params), x, jnp.asarray(box, x.dtype))
        if jnp.shape(energy) != ():
            raise ConfigError(f"must return one number, not {jnp.shape(energy)}", key="call")
        return energy

    def _check_shape(self, box: Any) -> None:
        if triclinic(box) and not self.triclinic:
            raise ConfigError(
                "is triclinic, and this module may know edges alone",
                key="box",
                allowed="FlaxModule(..., triclinic=True) of a module that is made for (3, 3)",
            )

    def check(self, params: PyTree, box: Any) -> None:
        self._check_shape(box)
        if set(params) != {"net"}:
            raise ConfigError("needs the parameter net", value=sorted(params))


def _plain_call(module: Any, positions: Array, box: Array) -> Array:
    return module(positions, box)

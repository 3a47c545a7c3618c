"""Closures that are learned: interpolation, correction, eddy viscosity."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array

from .._errors import ConfigError
from ._boundary import Box
from ._closure import (
    AbstractClosure,
    Smagorinsky,
    mixing_length,
    rotation_rate,
    strain_rate,
    strains,
    stress_divergence,
)
from ._stencil import average, cut, difference, extended

WIDTH = 2  # values on each side of a face that an interpolation weighs


class LearnedInterpolation(AbstractClosure):
    """x_f = Σₖ cₖ xₖ, Σₖ cₖ = 1: the velocities that a flux is made of, carried and carrying, as
    sums over the four nearest values along one axis with weights that a network gives.

    Kochkov et al. 2021, doi:10.1073/pnas.2101784118. The network `net`, a parameter, maps the
    velocity (*grid, axes), each component at the upper face of its cell, to (*grid, `outputs`); of
    each flux the differences of the four values from the mean of the middle two get its six
    numbers. So a uniform flow passes unchanged whatever the weights, momentum is conserved, and
    with zeros for outputs the scheme is `convection` as it was, which this adds to: "central" for
    the paper's, "van_leer" to start from a stable one. For periodic boxes.
    """

    net: str = eqx.field(static=True, default="net")

    def parameters(self) -> tuple[str, ...]:
        return (self.net,)

    @staticmethod
    def outputs(ndim: int) -> int:
        """How many numbers a cell the network gives: 24 in 2D, 54 in 3D."""
        return 2 * (2 * WIDTH - 1) * ndim**2

    def check(self, box: Box) -> None:
        if not box.periodic:
            raise ConfigError(
                "LearnedInterpolation needs a periodic box",
                key="closure",
                allowed="LearnedCorrection or LearnedViscosity at sides",
            )

    def tendency(
        self, box: Box, params: Mapping[str, Any], velocity: Sequence[Array]
    ) -> tuple[Array, ...]:
        weights = _output(
            params, self.net, jnp.stack(velocity, axis=-1), self.outputs(box.grid.ndim)
        )
        parts = jnp.split(jnp.moveaxis(weights, -1, 0), 2 * box.grid.ndim**2)
        total = [jnp.zeros_like(u) for u in velocity]
        for (component, axis), carried, carrying in zip(
            itertools.product(range(box.grid.ndim), repeat=2), parts[::2], parts[1::2], strict=True
        ):
            x, more = _interpolated(velocity[component], axis, carried)
            speed, faster = _interpolated(velocity[axis], component, carrying)
            change = (speed + faster) * (x + more) - speed * x  # of the flux
            change = extended(change, axis, "wrap", None)
            flux = difference(change, axis) / box.grid.spacing[axis]
            total[component] = total[component] - flux
        return tuple(total)


def _interpolated(u: Array, axis: int, weights: Array) -> tuple[Array, Array]:
    """Between each value and the next, of a periodic axis: their mean, and what the weights (3,
    *grid) of the differences add to it."""
    wide = cut(extended(u, axis, "wrap", "wrap", WIDTH), axis, 1, None)
    steps, n = difference(wide, axis), u.shape[axis]
    terms = [w * cut(steps, axis, k, k + n) for k, w in enumerate(weights)]
    return average(cut(wide, axis, 1, n + 2), axis), sum(terms, jnp.zeros_like(u))


class LearnedCorrection(AbstractClosure):
    """f = net(u): an acceleration at the centres, of the velocity there, both (*grid, axes);
    averaged to the faces. In any box."""

    net: str = eqx.field(static=True, default="net")

    def parameters(self) -> tuple[str, ...]:
        return (self.net,)

    def tendency(
        self, box: Box, params: Mapping[str, Any], velocity: Sequence[Array]
    ) -> tuple[Array, ...]:
        seen = jnp.moveaxis(box.centred(velocity, params), 0, -1)
        force = _output(params, self.net, seen, box.grid.ndim)
        return tuple(box.to_faces(force[..., axis], axis) for axis in range(box.grid.ndim))


class LearnedViscosity(AbstractClosure):
    """f = ∇·(2 ν_t S),  ν_t = (C Δ)² |S| exp(net(|S|, |ω|)): Smagorinsky's eddy viscosity times a
    factor that a network gives, which maps both rates at the centres, (*grid, 2), to (*grid, 1).

    Never negative, so that it takes energy from the flow whatever the weights. In any box;
    `coefficient` C: a number, or the name of a parameter.
    """

    net: str = eqx.field(static=True, default="net")
    coefficient: Any = 0.17

    def parameters(self) -> tuple[str, ...]:
        return (self.net, *Smagorinsky(self.coefficient).parameters())

    def tendency(
        self, box: Box, params: Mapping[str, Any], velocity: Sequence[Array]
    ) -> tuple[Array, ...]:
        own, shear = strains(box, params, velocity)
        rate = strain_rate(own, shear)
        rates = jnp.stack([rate, rotation_rate(box, params, velocity)], axis=-1)
        factor = jnp.exp(_output(params, self.net, rates, 1)[..., 0])
        viscosity = mixing_length(box, self.coefficient, params) ** 2 * rate * factor
        return stress_divergence(box, viscosity, own, shear)


def _output(params: Mapping[str, Any], name: str, seen: Array, channels: int) -> Array:
    """What the network `name` makes of a field (*grid, inputs): (*grid, channels)."""
    net: Any = params[name]
    shape = (*seen.shape[:-1], channels)
    if not callable(net):
        raise ConfigError("must be a network, a function of a field", key=name, value=net)
    found: Any = net(seen)
    if jnp.shape(found) != shape:
        raise ConfigError(
            f"must map a field of shape {seen.shape} to {shape}", key=name, value=jnp.shape(found)
        )
    return jnp.asarray(found, seen.dtype)

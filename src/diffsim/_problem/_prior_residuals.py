"""Gaussian priors as residuals, for least squares."""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, PyTree

from .._errors import ConfigError
from .._parameter import Parameter


def prior_residuals(
    parameters: Mapping[str, Parameter], values: Mapping[str, PyTree]
) -> list[Array]:
    """(θ - mean)/sd of every parameter with a prior, which has to be Gaussian."""
    out = []
    for name, p in parameters.items():
        if p.prior is None:
            continue
        standardised = getattr(p.prior, "standardised", None)
        if standardised is None:
            raise ConfigError(
                "least squares needs a Gaussian prior",
                key=f"parameters.{name}.prior",
                allowed="diffsim.Normal, diffsim.HalfNormal, diffsim.LogNormal",
            )
        out.append(jnp.ravel(standardised(values[name])))
    return out

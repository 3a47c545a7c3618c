"""Curve fits to very many points, by nlsq."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from .._errors import ConfigError
from .._parameter import Parameter


class CurveFit(eqx.Module):
    """A fitted curve: parameters and standard errors in their own units, the covariance of the
    free ones (their entries one after another), and the loss ½ Σ r²."""

    values: dict[str, Any]
    stderr: dict[str, Any]
    covariance: np.ndarray
    loss: float


def curve_fit(
    model: Callable[[dict[str, Any], Any], Array],
    x: Any,
    y: Any,
    parameters: Mapping[str, Parameter],
    *,
    sigma: Any = None,
) -> CurveFit:
    """min over θ of ½ Σᵢ rᵢ²,  rᵢ = (yᵢ - f(θ, xᵢ)) / σᵢ, by nlsq's trust region, in float64.

    For curves given in closed form and up to 10⁷ points, where no simulation runs; for anything
    simulated take `least_squares`. Cov θ = T' (JᵀJ)⁻¹ T'ᵀ to first order, scaled by χ²/(n - p)
    where no `sigma` is given.

    **Arguments:** `model(parameters, x) -> y`, traceable by JAX; `x`: (n,) or a tree of arrays;
    `y`: (n,); `parameters`: as in `Problem`, transforms and fixed ones included, priors refused;
    `sigma`: a number or (n,), in the unit of y.

    Needs the extra `diffsim[nlsq]` (Python 3.12 or later). nlsq switches 64-bit arithmetic,
    compilation cache and environment of the whole program when it is imported: here all of it is
    put back as it was.

    **Raises** `ConfigError` before anything is traced where the data or parameters do not fit.
    """
    y = _checked(y, parameters)
    errors = None if sigma is None else _checked_sigma(sigma, y.shape)
    nlsq = _nlsq()
    free = {name: p for name, p in parameters.items() if not (p.fixed or p.tied)}
    own_ones = [(n, p) for n, p in parameters.items() if not p.tied]

    def values_of(z: dict[str, Any]) -> dict[str, Any]:
        own = {n: p.constrain(z[n] if n in free else p.unconstrained()) for n, p in own_ones}
        return {n: own[p.tied or n] for n, p in parameters.items()}

    with jax.enable_x64(True), quiet():
        start, unravel = ravel_pytree({n: p.unconstrained() for n, p in free.items()})
        start = start.astype(jnp.float64)
        points = np.arange(y.size)  # nlsq wants an array for x: the rows, here, whatever x is
        data = jax.tree.map(lambda leaf: jnp.asarray(leaf, float), x)

        def curve(rows: Any, *z: Any) -> Array:
            taken = jax.tree.map(lambda leaf: leaf[rows.astype(int)], data)
            return model(values_of(unravel(jnp.stack(z))), taken)

        shape = jax.eval_shape(curve, jnp.asarray(points), *start).shape
        if shape != y.shape:
            raise ConfigError(f"model gives shape {shape} for data of shape {y.shape}", key="model")
        try:
            best, covariance = nlsq.curve_fit(
                curve,
                points,
                y,
                p0=np.asarray(start),
                sigma=errors,
                absolute_sigma=sigma is not None,
            )
        except RuntimeError as error:
            raise ConfigError(
                f"the curve fit found no minimum: {error}",
                key="parameters",
                allowed="a start (init) nearer to the data",
            ) from error
        best = jnp.asarray(best)
        values = values_of(unravel(best))
        outward = lambda z: ravel_pytree({n: values_of(unravel(z))[n] for n in free})[0]  # noqa: E731
        slopes, unfold = (
            np.asarray(jax.jacobian(outward)(best)),
            ravel_pytree({n: values[n] for n in free})[1],
        )
        covariance = slopes @ np.asarray(covariance) @ slopes.T
        residuals = (y - np.asarray(curve(jnp.asarray(points), *best))) / (
            1.0 if errors is None else errors
        )
        stderr = unfold(jnp.sqrt(jnp.diag(jnp.asarray(covariance))))
        loss = 0.5 * float(residuals @ residuals)
    as_numpy = lambda tree: jax.tree.map(np.asarray, tree)  # noqa: E731
    return CurveFit(as_numpy(values), as_numpy(stderr), covariance, loss)


def _checked(y: Any, parameters: Mapping[str, Parameter]) -> np.ndarray:
    y = np.asarray(y, dtype=float)
    if y.ndim != 1 or not np.all(np.isfinite(y)):
        raise ConfigError("must be one row of finite numbers", key="y", value=y.shape)
    for name, parameter in parameters.items():
        if parameter.prior is not None:
            raise ConfigError(
                "a curve fit takes no priors",
                key=f"parameters.{name}.prior",
                allowed="least_squares over a Problem",
            )
        if parameter.tied and parameter.tied not in parameters:
            raise ConfigError(
                "no such parameter",
                key=f"parameters.{name}.tied",
                value=parameter.tied,
                allowed=tuple(parameters),
            )
    if all(p.fixed or p.tied for p in parameters.values()):
        raise ConfigError("nothing is free", key="parameters")
    return y


def _checked_sigma(sigma: Any, shape: tuple[int, ...]) -> np.ndarray:
    sigma = np.asarray(sigma, dtype=float)
    if sigma.shape not in ((), shape) or not np.all((sigma > 0) & np.isfinite(sigma)):
        raise ConfigError(f"must be positive and finite, one number or {shape}", key="sigma")
    return np.broadcast_to(sigma, shape)


def _nlsq() -> Any:
    """nlsq, its import undone in all but itself."""
    if importlib.util.find_spec("nlsq") is None:
        raise ConfigError(
            "curve_fit needs nlsq",
            allowed="pip install 'diffsim[nlsq]' (Python 3.12 or later); or least_squares",
        )
    with unchanged_settings():
        return importlib.import_module("nlsq")


@contextmanager
def unchanged_settings() -> Iterator[None]:
    """Leave JAX's settings and the environment as they were before."""
    settings, environment = dict(jax.config.values), dict(os.environ)
    try:
        yield
    finally:
        for name, value in settings.items():
            if jax.config.values.get(name) != value:
                jax.config.update(name, value)
        for name in set(os.environ) - set(environment):
            del os.environ[name]
        os.environ.update(environment)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the lines that nlsq logs for each fit and iteration."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)

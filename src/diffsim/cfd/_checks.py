"""What is refused before anything is traced: parameters, fields and steps that cannot be right."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from .._errors import ConfigError
from ._boundary import Box, boundary_speed, flow_balance
from ._grid import Grid
from ._tableaux import Tableau


def checked_dt(dt: Any) -> float:
    """A time step: a positive number."""
    if not (isinstance(dt, (int, float)) and math.isfinite(dt) and dt > 0):
        raise ConfigError("must be positive and finite", key="dt", value=dt)
    return float(dt)


def check_names(needed: Sequence[str], params: Mapping[str, Any]) -> None:
    """Every parameter that is read is there."""
    for name in needed:
        if name not in params:
            raise ConfigError("missing parameter", key=name, allowed=tuple(params) or needed)


def check_viscosity(grid: Grid, dt: float, viscosity: Any, diffusion: str, method: Tableau) -> None:
    """A viscosity that the step can take."""
    values = np.asarray(viscosity)
    if not (np.all(np.isfinite(values)) and np.all(values >= 0)):
        raise ConfigError("must be finite and not negative", key="viscosity", value=viscosity)
    largest = float(np.max(values))
    stiffness = 4 * largest * sum(1 / h**2 for h in grid.spacing)
    if diffusion == "explicit" and stiffness * dt > method.real:
        raise ConfigError(
            f"explicit diffusion with viscosity {largest:g} is unstable at this step",
            key="dt",
            value=dt,
            allowed=f"dt up to {method.real / stiffness:.2g}, or diffusion=implicit",
        )


def check_balance(box: Box, params: Mapping[str, Any]) -> None:
    """What flows in can flow out."""
    unbalanced = flow_balance(box, params) if box.closed else 0.0
    if unbalanced:
        raise ConfigError(
            f"the sides let {unbalanced:g} in on balance and no Outflow lets it go",
            key="boundaries",
            allowed="an Outflow at one side, or inflows that cancel",
        )


def components_of(grid: Grid, velocity: Any) -> tuple[Any, ...]:
    """A velocity as one array an axis, from a tuple of them or a stack; they may carry a batch
    axis in front."""
    if isinstance(velocity, (tuple, list)):
        fields = tuple(velocity)
    else:  # stacked: only where all components have one shape
        stacked = jnp.asarray(velocity)
        axis = stacked.ndim - grid.ndim - 1
        fields = tuple(jnp.moveaxis(stacked, axis, 0)) if axis >= 0 else ()
    if len(fields) != grid.ndim:
        raise ConfigError(f"needs {grid.ndim} components", key="velocity", value=np.shape(velocity))
    return fields


def check_fields(box: Box, fields: Sequence[Any]) -> None:
    """Initial velocities of the right shapes, finite."""
    for component, u in enumerate(fields):
        shape = np.shape(u)
        if shape[-box.grid.ndim :] != box.shape(component):
            raise ConfigError(
                f"component {component} needs shape {box.shape(component)}",
                key="velocity",
                value=shape,
            )
        if not np.all(np.isfinite(np.asarray(u))):
            raise ConfigError("must be finite", key="velocity")


def check_cfl(
    box: Box, dt: float, params: Mapping[str, Any], fields: Sequence[Any], limit: float
) -> None:
    """A first velocity, of the fluid or of a side, that the step can follow. Each component counts
    by itself, for two need not be large at one place; the run itself looks at their sum."""
    side = boundary_speed(box.sides, params)
    speeds = [max(side, float(np.max(np.abs(np.asarray(u))))) for u in fields]
    speeds = speeds or [side] * box.grid.ndim
    each = [s / h for s, h in zip(speeds, box.grid.spacing, strict=True)]
    if max(each) * dt > limit:
        raise ConfigError(
            f"the CFL number {max(each) * dt:.3g} is over the limit {limit:g}",
            key="dt",
            value=dt,
            allowed=f"dt up to {limit / sum(each):.2g}, a coarser grid, or max_substeps",
        )

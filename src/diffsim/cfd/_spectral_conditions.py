"""Host side: what a spectral flow can start from."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .._errors import ConfigError
from ._grid import Grid


def check_conditions(grid: Grid, velocity: Any, vorticity: Any, mean_velocity: Any) -> None:
    """Refuse fields of the wrong shape, infinite or contradictory; they may carry batch axes."""
    if vorticity is not None and grid.ndim != 2:
        raise ConfigError("is a condition in 2D alone", key="vorticity", allowed="velocity")
    velocity = stacked(grid, velocity)
    if velocity is not None and not (vorticity is None and mean_velocity is None):
        raise ConfigError("give velocity, or vorticity and mean_velocity", key="velocity")
    if mean_velocity is not None and vorticity is None:
        raise ConfigError("needs vorticity", key="mean_velocity", allowed="velocity")
    shapes = {"velocity": (grid.ndim, *grid.shape), "vorticity": grid.shape, "mean_velocity": (2,)}
    given = {"velocity": velocity, "vorticity": vorticity, "mean_velocity": mean_velocity}
    for key, value in given.items():
        if value is None:
            continue
        found = np.asarray(value)
        if found.shape[-len(shapes[key]) :] != shapes[key]:
            raise ConfigError(f"needs shape {shapes[key]}", key=key, value=found.shape)
        if not np.all(np.isfinite(found)):
            raise ConfigError("must be finite", key=key)
    if vorticity is not None:
        _check_mean(np.asarray(vorticity, float))


def stacked(grid: Grid, velocity: Any) -> np.ndarray | None:
    """Components along the axis before those of the grid, behind a batch where there is one."""
    if velocity is None or not isinstance(velocity, (tuple, list)):
        return None if velocity is None else np.asarray(velocity)
    parts = [np.asarray(u) for u in velocity]
    for component, u in enumerate(parts):
        if u.shape[-grid.ndim :] != grid.shape:
            raise ConfigError(
                f"component {component} needs shape {grid.shape}", key="velocity", value=u.shape
            )
    return np.stack(parts, axis=-grid.ndim - 1)


def _check_mean(vorticity: np.ndarray) -> None:
    mean = np.mean(vorticity, axis=(-2, -1))
    root = np.sqrt(np.mean(vorticity**2, axis=(-2, -1)))
    if np.any(np.abs(mean) > 1e-3 * root):
        raise ConfigError(
            "has a mean, which no periodic velocity has",
            key="vorticity",
            value=float(np.max(np.abs(mean))),
            allowed="the field less its mean",
        )


def fastest(grid: Grid, velocity: Any, vorticity: Any, mean_velocity: Any) -> list[float]:
    """max|uᵢ| of each component, over a batch where there is one."""
    if vorticity is not None:
        mean = np.zeros(2) if mean_velocity is None else np.asarray(mean_velocity, float)
        velocity = _from_vorticity(grid, np.asarray(vorticity, float)) + mean[..., None, None]
    velocity = stacked(grid, velocity)
    if velocity is None:
        return [0.0] * grid.ndim
    components = np.moveaxis(np.asarray(velocity, float), -grid.ndim - 1, 0)
    return [float(np.max(np.abs(u))) for u in components]


def _from_vorticity(grid: Grid, vorticity: np.ndarray) -> np.ndarray:
    (nx, ny), (lx, ly) = grid.shape, grid.size
    kx = 2 * math.pi / lx * np.fft.fftfreq(nx, 1 / nx)[:, None]
    ky = 2 * math.pi / ly * np.fft.rfftfreq(ny, 1 / ny)[None]
    squared = kx**2 + ky**2
    stream = np.fft.rfft2(vorticity) / np.where(squared > 0, squared, 1)
    parts = [np.fft.irfft2(1j * k * stream, s=grid.shape) for k in (ky, -kx)]
    return np.stack(parts, axis=-3)

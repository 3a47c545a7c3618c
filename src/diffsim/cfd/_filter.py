"""Resolved fields on coarser grids: what a large-eddy simulation is to reproduce."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .._errors import ConfigError
from ._grid import Grid


def face_averages(velocity: Any, fine: Grid, coarse: Grid) -> tuple[np.ndarray, ...]:
    """ū_a = <u_a> over each upper face of the cells of a coarser grid, of a periodic flow.

    `velocity`: (..., axes, *fine.shape) at the points xᵢ = lower + i h of `SpectralFlow`, taken as
    the trigonometric polynomial through them, so that the averages are exact. Returns a component
    an axis, (..., *coarse.shape), as `IncompressibleFlow` starts from; they are free of divergence
    where u is, to rounding, since the flux through a surface is what it is.
    """
    field = np.asarray(velocity)
    _check(field, fine, coarse)
    axes = tuple(range(-fine.ndim, 0))
    parts = []
    for component in range(fine.ndim):
        part = field[(..., component, *(slice(None),) * fine.ndim)]
        spectrum = np.fft.fftn(part, axes=axes)
        for axis, (n, m) in enumerate(zip(fine.shape, coarse.shape, strict=True)):
            k = np.fft.fftfreq(n, 1 / n)
            width = 2 * np.pi / m  # of a cell, as an angle
            # at the upper face along its own axis, averaged over the cell along the others
            across = np.exp(1j * k * width)
            along = np.exp(0.5j * k * width) * np.sinc(k / m)
            factor = across if axis == component else along
            if n % 2 == 0:  # of the last wave a real field shows the cosine alone
                factor[n // 2] = factor[n // 2].real
            shape = [1] * fine.ndim
            shape[axis] = n
            spectrum = spectrum * factor.reshape(shape)
        every = tuple(
            slice(None, None, n // m) for n, m in zip(fine.shape, coarse.shape, strict=True)
        )
        averaged = np.real(np.fft.ifftn(spectrum, axes=axes))[(..., *every)]
        parts.append(averaged.astype(part.dtype))
    return tuple(parts)


def coarsened(velocity: Sequence[Any], coarse: Grid) -> tuple[np.ndarray, ...]:
    """The same of staggered fields: face values (..., *shape) of a periodic `IncompressibleFlow`,
    averaged over the faces that make up a face of the coarser grid."""
    parts = []
    for component, u in enumerate(velocity):
        u = np.asarray(u)
        for axis, m in enumerate(coarse.shape):
            place = u.ndim - coarse.ndim + axis
            ratio, rest = divmod(u.shape[place], m)
            if rest:
                raise ConfigError(
                    "its cells do not divide those of the grid", key="coarse", value=coarse.shape
                )
            split = u.reshape(*u.shape[:place], m, ratio, *u.shape[place + 1 :])
            u = np.take(split, -1, place + 1) if axis == component else split.mean(place + 1)
        parts.append(u)
    return tuple(parts)


def corner_vorticity(velocity: Sequence[Any], grid: Grid) -> np.ndarray:
    """∂v/∂x - ∂u/∂y of face values (..., *grid.shape) of a plane periodic flow, at the upper
    corners: the observable `vorticity` of `IncompressibleFlow`."""
    u, v = map(np.asarray, velocity)
    hx, hy = grid.spacing
    return (np.roll(v, -1, -2) - v) / hx - (np.roll(u, -1, -1) - u) / hy


def _check(field: np.ndarray, fine: Grid, coarse: Grid) -> None:
    if field.shape[-fine.ndim - 1 :] != (fine.ndim, *fine.shape):
        raise ConfigError(
            f"needs shape (..., {fine.ndim}, {', '.join(map(str, fine.shape))})",
            key="velocity",
            value=field.shape,
        )
    same = fine.size == coarse.size and fine.lower == coarse.lower
    if not same or any(n % m for n, m in zip(fine.shape, coarse.shape, strict=True)):
        raise ConfigError(
            f"does not divide the grid {fine.shape}, or is of another box",
            key="coarse",
            value=coarse.shape,
        )

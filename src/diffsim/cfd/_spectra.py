"""Poisson's and Helmholtz's equations by fast diagonalisation, as the sides ask for."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ._boundary import AbstractSide, Box, Inflow, Outflow, Wall

DENSE_MOST = 160  # cells up to which a dense product is as quick as a cosine transform


class Spectrum(NamedTuple):
    """K = V diag(λ) Vᵀ: a symmetric second difference -d²/dx² along one axis.

    `kind`: "fourier" (V is the discrete Fourier transform), "cosine" (DCT-II), or "dense", with the
    eigenvectors in the columns of `vectors`.
    """

    kind: str
    eigenvalues: Float[np.ndarray, "n"]
    vectors: Float[np.ndarray, "n n"] | None


def pressure_spectra(box: Box) -> tuple[Spectrum, ...]:
    """Of minus the divergence of the gradient, an axis each."""
    kinds = [_ends(pair, "pressure") for pair in box.sides]
    return _spectra(box.grid.shape, box.grid.spacing, kinds)


def velocity_spectra(box: Box, component: int) -> tuple[Spectrum, ...]:
    """Of minus the Laplacian of a velocity component whose values at the sides are zero."""
    kinds = [
        _ends(pair, "normal" if axis == component else "tangential")
        for axis, pair in enumerate(box.sides)
    ]
    return _spectra(box.shape(component), box.grid.spacing, kinds)


def scalar_spectra(box: Box, fixed: Sequence[tuple[bool, bool]]) -> tuple[Spectrum, ...]:
    """Of minus the Laplacian at the centres, with zero values at `fixed` sides and zero slopes at
    the others."""
    kinds = [
        None if pair is None else tuple(3.0 if at else 1.0 for at in ends)
        for pair, ends in zip(box.sides, fixed, strict=True)
    ]
    return _spectra(box.grid.shape, box.grid.spacing, kinds)


def _ends(pair: Any, what: str) -> tuple[float, float] | None:
    """The first and last diagonal entries of the second difference, in units of 1/h²."""

    def entry(side: AbstractSide) -> float:
        out = isinstance(side, Outflow)
        if what == "pressure":
            return 2.0 if out else 1.0
        if what == "normal":
            return 1.0 if out else 2.0
        return 3.0 if isinstance(side, (Wall, Inflow)) else 1.0

    return None if pair is None else (entry(pair[0]), entry(pair[1]))


def _spectra(shape: Sequence[int], spacing: Sequence[float], kinds: Sequence[Any]) -> Any:
    return tuple(_spectrum(n, h, ends) for n, h, ends in zip(shape, spacing, kinds, strict=True))


@functools.lru_cache(maxsize=64)
def _spectrum(n: int, h: float, ends: tuple[float, float] | None) -> Spectrum:
    if ends is None:
        return Spectrum("fourier", (2 - 2 * np.cos(2 * np.pi * np.arange(n) / n)) / h**2, None)
    if ends == (1.0, 1.0) and n > DENSE_MOST:
        return Spectrum("cosine", (2 - 2 * np.cos(np.pi * np.arange(n) / n)) / h**2, None)
    matrix = 2 * np.eye(n) - np.eye(n, k=1) - np.eye(n, k=-1)
    matrix[0, 0], matrix[-1, -1] = ends
    eigenvalues, vectors = np.linalg.eigh(matrix)
    eigenvalues[np.abs(eigenvalues) < 1e-13] = 0.0
    return Spectrum("dense", eigenvalues / h**2, vectors)


def diagonally(x: Array, spectra: Sequence[Spectrum], symbol: Callable[[Any], Any]) -> Array:
    """V symbol(Λ) Vᵀ x, Λ the sum of the eigenvalues along the axes (a NumPy array)."""
    fourier = [axis for axis, s in enumerate(spectra) if s.kind == "fourier"]
    for axis, spectrum in enumerate(spectra):
        x = _transform(x, axis, spectrum, inverse=False)
    shape = [x.shape[axis] for axis in fourier]
    if fourier:
        x = jnp.fft.rfftn(x, axes=fourier)
    factor = symbol(_total(spectra, fourier))
    x = x * jnp.asarray(factor, jnp.finfo(x.dtype).dtype)
    if fourier:
        x = jnp.fft.irfftn(x, s=shape, axes=fourier)
    for axis, spectrum in enumerate(spectra):
        x = _transform(x, axis, spectrum, inverse=True)
    return x


def _transform(x: Array, axis: int, spectrum: Spectrum, *, inverse: bool) -> Array:
    if spectrum.kind == "dense":
        vectors = jnp.asarray(spectrum.vectors, x.dtype)
        matrix = vectors if inverse else vectors.T
        return jnp.moveaxis(jnp.tensordot(matrix, x, axes=(1, axis)), 0, axis)
    if spectrum.kind == "cosine":
        function = jax.scipy.fft.idct if inverse else jax.scipy.fft.dct
        return function(x, axis=axis, norm="ortho")
    return x


def _total(spectra: Sequence[Spectrum], fourier: list[int]) -> np.ndarray:
    """Λ, the last of the Fourier axes halved as the transform of real data is."""
    total = np.zeros((1,) * len(spectra))
    for axis, spectrum in enumerate(spectra):
        values = spectrum.eigenvalues
        if fourier and axis == fourier[-1]:
            values = values[: len(values) // 2 + 1]
        shape = [1] * len(spectra)
        shape[axis] = len(values)
        total = total + values.reshape(shape)
    return total


def inverse_laplacian(total: np.ndarray) -> np.ndarray:
    """-1/Λ, and 0 for the constant, which a closed box leaves open."""
    zero = total == 0
    return np.where(zero, 0.0, -1.0 / np.where(zero, 1.0, total))

"""How well fitted parameters are known, from the residuals' Jacobian and the samples' scatter."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from .._problem import Problem
from .._statistics import blocking

SAME = 1e-6  # of entries of a table, and of derivatives by them
Error = float | np.ndarray
NULL = 1e-6  # the component of a parameter in the null space of J from which it is undetermined


class Uncertainty(eqx.Module):
    """Standard errors in each parameter's own unit, by where they come from: a number for a
    number, an array of its shape for an array, the largest of all for a network.

    `statistical`: the finite simulation behind sampled averages, by blocking; zero for a
    deterministic problem. `model`: the scatter of the residuals, √(s² (JᵀJ)⁻¹), s² = χ²/(n - p):
    how far the model is from describing the data; of a Laplace approximation what data of such
    sigmas, and reference configurations so many, leave open.
    `systematic`: what the settings (size, cutoff, time step) shift, where it was measured and
    given. `covariance`: of θ, statistical and model.

    The model error of a parameter that the residuals do not determine, alone or in combination
    with others, is infinite, and so is its entry on the diagonal of `covariance`.
    """

    statistical: dict[str, Error]
    model: dict[str, Error]
    systematic: dict[str, float]
    covariance: np.ndarray

    @property
    def total(self) -> dict[str, Error]:
        """The root sum of squares of the three."""
        return {
            name: _plain(
                np.sqrt(
                    self.statistical[name] ** 2
                    + self.model[name] ** 2
                    + self.systematic.get(name, 0.0) ** 2
                )
            )
            for name in self.statistical
        }


def estimate(
    problem: Problem,
    theta: Mapping[str, jax.Array],
    residuals: np.ndarray,
    jacobian: np.ndarray,
    influences: Sequence[np.ndarray] = (),
    use: np.ndarray | None = None,
    systematic: Mapping[str, float] | None = None,
) -> Uncertainty:
    """The uncertainty of θ at a minimum of ½ Σ r².

    `jacobian`: ∂r/∂θ, (residuals, parameters); `influences`: for each target the deviation of each
    sample's residual from the mean, (conditions, samples, ...), whose blocked scatter, carried
    through the pseudo-inverse of J and summed over independent conditions, is the statistical part.
    """
    once = distinct_entries(theta, jacobian)
    inverse, lost = _inverse(jacobian @ once)
    inverse, lost = once @ inverse, once @ lost > 0
    statistical = _sampling(inverse, influences)
    freedom = max(_count(problem, use) - once.shape[1], 1)
    scatter = float(residuals @ residuals) / freedom * (inverse @ inverse.T)
    slopes = slopes_of(problem, theta)
    model = errors_of(problem, scatter, slopes)
    covariance = statistical + scatter
    covariance[lost, lost] = np.inf
    flat, unravel = ravel_pytree(dict(theta))
    for name, entries in unravel(jnp.asarray(lost, flat.dtype)).items():
        model[name] = _opened(model[name], jax.tree.leaves(entries))
    return Uncertainty(
        statistical=errors_of(problem, statistical, slopes),
        model=model,
        systematic=dict(systematic or {}),
        covariance=covariance,
    )


def distinct_entries(theta: Mapping[str, jax.Array], columns: np.ndarray) -> np.ndarray:
    """S (entries of z, independent ones), of zeros and ones: z = S y. The two of a pair of kinds in
    a symmetric table, z_ab and z_ba, are one number where what was fitted sees their mean alone.

    `columns`: derivatives by the entries of z, which are then equal for the two.
    """
    flat, unravel = ravel_pytree(dict(theta))
    same = np.arange(flat.size)
    for numbers in jax.tree.leaves(unravel(jnp.arange(flat.size, dtype=flat.dtype))):
        if numbers.ndim != 2 or numbers.shape[0] != numbers.shape[1]:
            continue
        number = np.asarray(numbers).astype(int)
        for a, b in itertools.combinations(range(len(number)), 2):
            one, other = number[a, b], number[b, a]
            pair, size = columns[:, [one, other]], np.max(np.abs(columns[:, one]), initial=0)
            near = np.isclose(float(flat[one]), float(flat[other]), rtol=SAME, atol=SAME)
            if near and np.all(np.abs(pair[:, 0] - pair[:, 1]) <= SAME * size):
                same[other] = one
    kept = np.unique(same)
    return (same[:, None] == kept).astype(float)


def _opened(error: Error, lost: Sequence[jax.Array]) -> Error:
    """The error with infinity where the residuals leave a parameter open; of shares, which do not
    stand for one unconstrained number each, and of networks, wherever they leave any of it."""
    if len(lost) == 1 and np.shape(lost[0]) == np.shape(error):
        return _plain(np.where(np.asarray(lost[0]) > 0, np.inf, error))
    if any(np.any(entry) for entry in lost):
        return _plain(np.full(np.shape(error), np.inf))
    return error


def sampling_errors(jacobian: np.ndarray, influences: Sequence[np.ndarray]) -> np.ndarray:
    """The statistical part of each entry of z, in the directions that the residuals
    determine."""
    return np.sqrt(np.diag(_sampling(_inverse(jacobian)[0], influences)))


def _inverse(jacobian: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """J⁺ (parameters, residuals) by the singular values of J with columns of length one, those
    that rounding leaves of zero left out; and which parameters lie in what is left out."""
    cut = float(np.finfo(jacobian.dtype).eps) ** 0.75  # rounding adds up over a trajectory
    jacobian = np.asarray(jacobian, dtype=float)
    length = np.linalg.norm(jacobian, axis=0)
    length = np.where(length > 0, length, 1.0)
    left, values, right = np.linalg.svd(jacobian / length, full_matrices=False)
    kept = values > cut * np.max(values, initial=0.0)
    left, values, right = left[:, kept], values[kept], right[kept]
    outside = 1 - np.sum(right**2, axis=0)  # squared component in the null space
    if len(values) == jacobian.shape[1]:
        outside = np.zeros_like(outside)
    return (right / length).T / values @ left.T, outside > NULL**2


def _sampling(inverse: np.ndarray, influences: Sequence[np.ndarray]) -> np.ndarray:
    """Covariance of θ by the samples' scatter, carried through J⁺."""
    return scatter_of(shifts_of(inverse, influences), len(inverse))


def shifts_of(inverse: np.ndarray, influences: Sequence[np.ndarray]) -> list[np.ndarray]:
    """By how much each sample's residuals move θ: (conditions, samples, parameters) a target;
    `inverse`: (parameters, residuals)."""
    columns = 0
    shifts = []
    for influence in influences:
        conditions, samples = influence.shape[:2]
        flat = influence.reshape(conditions, samples, -1)
        width = conditions * flat.shape[2]
        block = inverse[:, columns : columns + width].reshape(-1, conditions, flat.shape[2])
        shifts.append(np.einsum("pcf,csf->csp", block, flat))
        columns += width
    return shifts


def scatter_of(shifts: Sequence[np.ndarray], parameters: int) -> np.ndarray:
    """Covariance of θ, by blocking, of the sum of what moves it."""
    if not shifts:
        return np.zeros((parameters, parameters))
    return _statistical(np.sum(shifts, axis=0))


def _statistical(shifts: np.ndarray) -> np.ndarray:
    """Covariance of the mean shift of θ: blocked variances, correlations from the samples."""
    conditions, _, parameters = shifts.shape
    total = np.zeros((parameters, parameters))
    for c in range(conditions):
        error = np.asarray(blocking(shifts[c], axis=0).stderr)
        spread = np.std(shifts[c], axis=0)
        if np.all(spread > 0) and parameters > 1:
            correlation = np.corrcoef(shifts[c], rowvar=False)
        else:
            correlation = np.eye(parameters)
        total += correlation * np.outer(error, error)
    return total


def _count(problem: Problem, use: np.ndarray | None) -> int:
    """Residuals that count: what was measured under the used conditions, and the priors'."""
    used = np.ones(problem.batch, bool) if use is None else np.asarray(use) > 0
    count = 0
    for target in problem.targets:
        whole = np.ones(np.shape(target.data), bool)
        measured = whole if target.mask is None else np.asarray(target.mask, bool)
        count += int(np.sum(measured[used] if measured.ndim else used))
    return count + sum(np.size(p.init) for p in problem.parameters.values() if p.prior is not None)


def slopes_of(problem: Problem, theta: Mapping[str, jax.Array]) -> dict[str, np.ndarray]:
    """∂θ/∂z of each free parameter: (entries, unconstrained parameters)."""
    flat, unravel = ravel_pytree(dict(theta))

    def values(z):
        free = problem.values(unravel(z))
        return {name: ravel_pytree(free[name])[0] for name in problem.free}

    return {k: np.asarray(v) for k, v in jax.jacfwd(values)(flat).items()}


def errors_of(
    problem: Problem, covariance: np.ndarray, slopes: Mapping[str, np.ndarray]
) -> dict[str, Error]:
    """Standard errors of the free parameters in their own units, as `Uncertainty` holds them."""
    out = {}
    for name in sorted(problem.free):
        variances = np.einsum("ij,jk,ik->i", slopes[name], covariance, slopes[name])
        errors = np.sqrt(np.maximum(variances, 0.0))
        init = problem.parameters[name].init
        array = isinstance(init, (float, int, np.ndarray, np.generic, jax.Array))
        out[name] = _plain(errors.reshape(np.shape(init)) if array else np.max(errors))
    return out


def _plain(error: Any) -> Error:
    """A number as a float."""
    return error if np.ndim(error) else float(error)

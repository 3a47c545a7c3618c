"""Whether a gradient is right: four independent checks of it, and a verdict."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PRNGKeyArray

from ._adjoint import (
    AbstractAdjoint,
    Auto,
    Backsolve,
    ForwardMode,
    Reweight,
    Truncated,
    known_adjoints,
)
from ._errors import ConfigError
from ._fit import planned
from ._problem import Problem
from ._solve import default_adjoint

FEW_PARAMETERS = 8  # of which each gets a row of finite differences
LADDER = 2.0 ** -np.arange(3, 19)  # the steps of the Taylor remainders


class Check(NamedTuple):
    """A row: what was measured, what a right gradient gives, and whether they agree."""

    check: str
    value: float
    expected: str
    ok: bool


class Audit(NamedTuple):
    """What `audit` finds: `rows`, the `gradient` of the loss at the audited point by free
    parameter (unconstrained), and by which `adjoint`. `verdict`: "pass" or "fail"."""

    rows: tuple[Check, ...]
    gradient: dict[str, Any]
    adjoint: str

    @property
    def verdict(self) -> str:
        return "pass" if self.rows and all(row.ok for row in self.rows) else "fail"

    def as_dict(self) -> dict[str, Any]:
        """For `result.json`."""
        return {
            "adjoint": self.adjoint,
            "rows": [row._asdict() for row in self.rows],
            "verdict": self.verdict,
        }

    def __str__(self) -> str:
        wide = max((len(row.check) for row in self.rows), default=0)
        lines = [
            f"{'ok' if row.ok else 'WRONG':5}  {row.check:{wide}}  {row.value:<12.4g} "
            f"expected {row.expected}"
            for row in self.rows
        ]
        return "\n".join([*lines, f"gradient by {self.adjoint}: {self.verdict}"])


def audit(
    problem: Problem,
    params: Mapping[str, Any] | None = None,
    *,
    adjoint: AbstractAdjoint | None = None,
    key: PRNGKeyArray | None = None,
) -> Audit:
    """Checks the gradient g of the loss L at a point, by four ways that share no mistake.

    - Taylor: |L(z + hv) - L(z)| falls with h at the rate 1, |L(z + hv) - L(z) - h g·v| at 2;
    - finite differences: central ones of every parameter (of random directions where there are
      more than eight), extrapolated, within their own error;
    - dot product: u·(J v) by forward mode equals (Jᵀu)·v by the adjoint, J of the residuals;
    - agreement: g by every other exact adjoint that takes the problem.

    **Arguments:** `params`: values by parameter name, in the parameters' units (default: their
    starting values); `adjoint`: the one to audit (default: what a fit would take).

    In float64 agreement is asked to 1e-8, finite differences to 1e-6 or their own error; in float32
    to 1e-3 and 1e-2. `Reweight` and `Truncated` have other gradients than that of the trajectory:
    the first is audited over samples that are drawn once, the second is refused.
    """
    adjoint = default_adjoint(problem.simulation) if adjoint is None else adjoint
    if isinstance(adjoint, Truncated):
        raise ConfigError(
            "Truncated leaves a part of the gradient out, so no check can pass",
            key="adjoint",
            allowed="any other",
        )
    if isinstance(adjoint, Auto):
        adjoint = planned(problem, adjoint, "reverse")[0]
    problem = problem if params is None else problem.starting_at(params)
    problem.check()
    if not problem.free:
        raise ConfigError("there is no free parameter to differentiate in", key="parameters")
    key = jax.random.key(0) if key is None else key
    auditor = _Auditor(problem, adjoint, key)
    rows = [*auditor.taylor(), *auditor.differences(), *auditor.dot(), *auditor.agreement()]
    gradient = {k: np.asarray(v) for k, v in _arrays(auditor.unravel(auditor.gradient)).items()}
    return Audit(tuple(rows), gradient, type(adjoint).__name__)


def _arrays(theta: Mapping[str, Any]) -> dict[str, Any]:
    """Each parameter as one array: a network's leaves one after another."""
    return {name: ravel_pytree(value)[0] for name, value in theta.items()}


class _Auditor:
    """The loss and its derivatives at one point, compiled once for all checks."""

    def __init__(self, problem: Problem, adjoint: AbstractAdjoint, key: PRNGKeyArray):
        self.problem, self.chosen = problem, adjoint
        theta = problem.initial()
        flat, self.unravel = ravel_pytree(theta)
        self.z = flat
        self.double = flat.dtype == jnp.float64
        kd, ku, ks = jax.random.split(key, 3)
        direction = jax.random.normal(kd, flat.shape, flat.dtype)
        self.direction = direction / jnp.linalg.norm(direction)
        self.keys = ku
        # one start for every evaluation, so that all see the same noise; but a start that depends
        # on the parameters is made anew from the same key
        whole = not problem.simulation.traceable_init() or isinstance(adjoint, Reweight)
        self.start = problem.states(theta, ks) if whole else ks
        if isinstance(adjoint, Reweight) and adjoint.samples is None:
            prediction = problem.predict(theta, self.start, adjoint)
            self.chosen = Reweight(prediction.solution.samples)
        self.value, self.gradient = self._gradient(self.chosen)
        self.scale = self._scale()

    def _scale(self) -> float:
        """What the gradient is made of, Σ |r (J v)|, or its length if that is more: near a minimum
        large terms cancel in it, and so do their rounding errors not."""
        pusher = self.chosen if "forward" in self.chosen.modes else ForwardMode()
        push = lambda z: jax.jvp(lambda z: self.residuals(z, pusher), (z,), (self.direction,))  # noqa: E731
        residuals, self.moved = jax.jit(push)(self.z)
        terms = float(jnp.sum(jnp.abs(residuals * self.moved)))
        return max(terms, float(jnp.linalg.norm(self.gradient)), 1e-300)

    def _predict(self, z: Array, adjoint: AbstractAdjoint) -> tuple[Any, Any]:
        theta = self.unravel(z)
        keyed = eqx.is_array(self.start) and jnp.issubdtype(self.start.dtype, jax.dtypes.prng_key)
        states = self.problem.states(theta, self.start) if keyed else self.start
        return theta, self.problem.predict(theta, states, adjoint)

    def loss(self, z: Array, adjoint: AbstractAdjoint) -> Array:
        theta, prediction = self._predict(z, adjoint)
        return self.problem.loss(theta, prediction)

    def residuals(self, z: Array, adjoint: AbstractAdjoint) -> Array:
        theta, prediction = self._predict(z, adjoint)
        sets = zip(self.problem.targets, prediction.values, self.problem.sigmas(theta), strict=True)
        own = (t.residual(value, sigma).ravel() for t, value, sigma in sets)
        return jnp.concatenate([jnp.zeros(0), *own])

    def _gradient(self, adjoint: AbstractAdjoint) -> tuple[Array, Array]:
        fn = lambda z: self.loss(z, adjoint)  # noqa: E731
        if "reverse" in adjoint.modes:
            return jax.jit(jax.value_and_grad(fn))(self.z)
        push = lambda z: (fn(z), jax.jacfwd(fn)(z))  # noqa: E731
        return jax.jit(push)(self.z)

    def taylor(self) -> list[Check]:
        """The rates at which the loss leaves its tangent."""
        slope = float(jnp.vdot(self.gradient, self.direction))
        line = jax.jit(lambda h: self.loss(self.z + h * self.direction, self.chosen))
        losses = np.asarray([float(line(jnp.asarray(h, self.z.dtype))) for h in LADDER])
        change = np.abs(losses - float(self.value))
        rest = np.abs(losses - float(self.value) - LADDER * slope)
        floor = 1e3 * np.finfo(self.z.dtype).eps * max(abs(float(self.value)), change.max())
        first, second = _rate(change, floor), _rate(rest, floor)
        exact = math.isinf(second)  # a loss whose remainder is rounding: it is its own tangent
        return [
            Check("Taylor, first order", first, "1 ± 0.1", abs(first - 1) < 0.1 or first > 1.9),
            Check("Taylor, second order", second, "2 ± 0.1", exact or second > 1.9),
        ]

    def differences(self) -> list[Check]:
        """Central differences beside the gradient's components."""
        if self.z.size <= FEW_PARAMETERS:
            ways = list(np.eye(self.z.size))
            names = _component_names(self.unravel(self.z))
        else:
            drawn = jax.random.normal(self.keys, (3, self.z.size))
            ways = [np.asarray(v / jnp.linalg.norm(v)) for v in drawn]
            names = [f"random direction {i}" for i in range(3)]
        line = jax.jit(lambda h, v: self.loss(self.z + h * v, self.chosen))
        rows = []
        scale = self.scale
        for name, way in zip(names, ways, strict=True):
            v = jnp.asarray(way, self.z.dtype)
            estimate, error = _ridders(lambda h, v=v: float(line(jnp.asarray(h, v.dtype), v)))
            slope = float(jnp.vdot(self.gradient, v))
            off = abs(slope - estimate) / scale
            least = 1e-6 if self.double else 1e-2
            allowed = max(least, 10 * error / scale)
            ok = off <= allowed and allowed < 0.1
            rows.append(Check(f"finite differences, {name}", off, f"<= {allowed:.1g}", ok))
        return rows

    def dot(self) -> list[Check]:
        """u·(J v) beside (Jᵀu)·v."""
        if "reverse" not in self.chosen.modes:
            return []
        v, moved = self.direction, self.moved
        u = jax.random.normal(self.keys, moved.shape, moved.dtype)
        pull = lambda z: jax.vjp(lambda z: self.residuals(z, self.chosen), z)[1](u)[0]  # noqa: E731
        there, back = float(jnp.vdot(u, moved)), float(jnp.vdot(jax.jit(pull)(self.z), v))
        size = float(jnp.linalg.norm(u) * jnp.linalg.norm(moved))
        return [self._agrees("dot product of jvp and vjp", abs(there - back) / max(size, 1e-300))]

    def agreement(self) -> list[Check]:
        """The gradient by the other exact adjoints."""
        if isinstance(self.chosen, Reweight):
            return []
        rows = []
        for other in _others(self.chosen):
            try:
                other.check(self.problem.simulation)
                _, gradient = self._gradient(other)
            except ConfigError:
                continue  # this simulation cannot be differentiated so
            off = float(jnp.linalg.norm(gradient - self.gradient)) / self.scale
            rows.append(self._agrees(f"agreement with {type(other).__name__}", off))
        return rows

    def _agrees(self, what: str, off: float) -> Check:
        bound = 1e-8 if self.double else 1e-3
        if isinstance(self.chosen, Backsolve):
            bound = 1e-3  # the error of its backward solve
        elif getattr(self.problem.simulation, "adaptive", False):
            bound = max(bound, 1e-7)  # orders of summation differ, and with them the steps
        return Check(what, off, f"<= {bound:.0e}", off <= bound)


def _others(chosen: AbstractAdjoint) -> list[AbstractAdjoint]:
    """The exact adjoints but this one, with their default options."""
    exact = [a for a in known_adjoints() if a.exact and a is not type(chosen)]
    return [a() for a in exact]


def _component_names(theta: Mapping[str, Any]) -> list[str]:
    """A name for every number of θ, in the order of the flat vector."""
    names = []
    for name, value in sorted(theta.items()):
        count = sum(x.size for x in map(jnp.asarray, jax.tree.leaves(value)))
        names += [name] if count == 1 else [f"{name}[{i}]" for i in range(count)]
    return names


def _rate(remainders: np.ndarray, floor: float) -> float:
    """The order in h at which remainders fall, from the steps that rounding does not reach;
    infinite where it reaches them all."""
    clear = remainders > floor
    steps = np.nonzero(clear[:-1] & clear[1:])[0]
    if not len(steps):
        return math.inf
    rates = np.log2(remainders[steps] / remainders[steps + 1])
    return float(np.median(rates[-4:]))


def _ridders(line: Callable[[float], float], start: float = 0.05) -> tuple[float, float]:
    """The derivative at 0 and its error, by central differences extrapolated to no step
    (Ridders 1982, doi:10.1016/S0141-1195(82)80057-0)."""
    best, error = math.nan, math.inf
    table: list[list[float]] = []
    h = start
    for i in range(12):
        row = [(line(h) - line(-h)) / (2 * h)]
        for j in range(1, i + 1):
            factor = 4.0**j
            row.append((row[j - 1] * factor - table[i - 1][j - 1]) / (factor - 1))
            gap = max(abs(row[j] - row[j - 1]), abs(row[j] - table[i - 1][j - 1]))
            if gap <= error:
                best, error = row[j], gap
        table.append(row)
        h /= 2.0
    return best, error

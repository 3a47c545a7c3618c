"""Any explicit one-step method as a method that can be run backwards to the bit."""

from __future__ import annotations

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray, PyTree

from .._errors import ConfigError
from .._simulation import RESULTS, AbstractReversible
from ._equation import DifferentialEquation, FlowState
from ._grid import off_grid, on_grid, spacing

WORD = 60  # bits of an integer that the remainders of the coupling may fill
APART = 0.1  # of the largest |y|: further apart, the two copies follow different solutions


class PairState(eqx.Module):
    """Two copies y and z of the state of an equation, equal at the start."""

    y: FlowState
    z: PyTree


class ExactPair(eqx.Module):
    """Both copies as multiples of powers of two, `grid`; `bits` (words, ...): the remainders of the
    coupling, which is a contraction and forgets them; `taken`, steps since the start."""

    y: PyTree
    z: PyTree
    bits: PyTree
    grid: PyTree
    taken: Int[Array, ""]
    rest: PairState


class AlgebraicallyReversible(AbstractReversible):
    """y' = λ y + (1 - λ) z + Ψ_h(t, z),  z' = z - Ψ_{-h}(t + h, y'),  y + Ψ_h(t, y) a step of any
    explicit one-step method.

    McCallum & Foster 2024 (arXiv:2410.11648): the order of the method is kept, and y, z follow from
    y', z' in closed form, so that `Reversible` applies to equations without an energy. Solved for y
    in floating point, rounding errors would grow as λ⁻ⁿ; here y and z are integers of 2⁻⁴⁸ of the
    start's magnitude, and the remainder of each division by λ is kept, log₂ 1/λ bits a number and a
    step (as in Maclaurin et al. 2015, arXiv:1502.03492): the way back meets every state to the last
    bit. Memory: two states, and one more every 54/log₂(1/λ) steps (280 for λ = 7/8).

    Each step costs two of the method. It is stable for decay rates up to about (1 - λ)/h, so that
    stiff equations want other adjoints (`RecursiveCheckpoint`); where the copies part by more than
    a tenth of the largest |y|, the result is `unstable`.

    **Arguments:** `equation`, a `DifferentialEquation` with an explicit solver and fixed `dt`;
    `coupling`, λ = 1 - 2⁻ᵏ: small ones are more stable, large ones keep less.

    `init` and observables are those of the equation (of y), and `gap`, max |y - z|: an estimate of
    the local error.
    """

    equation: DifferentialEquation
    coupling: float = eqx.field(static=True, default=0.875)

    def __check_init__(self):
        if self.equation.dt is None or not self.equation.explicit:
            raise ConfigError(
                "must have an explicit solver and a fixed step",
                key="equation",
                value=type(self.equation.solver).__name__,
                allowed="DifferentialEquation(f, diffrax.Tsit5(), dt=0.01)",
            )
        if self.halvings < 1 or 1 - 2.0**-self.halvings != self.coupling:
            near = 1 - 2.0 ** -max(1, self.halvings)
            raise ConfigError(
                "must be 1 - 2⁻ᵏ", key="coupling", value=self.coupling, suggestion=f"{near:g}"
            )

    @property
    def halvings(self) -> int:
        """k of λ = 1 - 2⁻ᵏ."""
        inside = isinstance(self.coupling, float) and 0 < self.coupling < 1
        return min(20, round(-math.log2(1 - self.coupling))) if inside else 0

    @property
    def _steps_a_word(self) -> int:
        """Steps whose remainders fit one integer: b grows by 1/λ a step, from up to 4ᵏ."""
        return int((WORD - 2 * self.halvings) / -math.log2(self.coupling))

    def init(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, params: PyTree, key: PRNGKeyArray | None = None, *, y0: Any = None, t0: Any = 0.0
    ) -> PairState:
        state = self.equation.init(params, key, y0=y0, t0=t0)
        return self.prepare(params, PairState(state, state.y))

    def check(self, params: PyTree, **conditions: Any) -> None:
        self.equation.check(params, **conditions)

    def prepare(self, params: PyTree, state: PairState) -> PairState:
        y = state.y  # without the cache of the equation's own steps
        return PairState(FlowState(y.y, y.start, y.step), state.z)

    def time(self, state: PairState) -> Array:
        """When the state is, in the equation's time."""
        return self.equation.time(state.y)

    def at_time(self, state: PairState, t: Any) -> PairState:
        return PairState(self.equation.at_time(state.y, t), state.z)

    def variables(self, state: PairState) -> PyTree:
        return (state.y.y, state.z)

    def time_step(self) -> float | None:
        return self.equation.dt

    def units(self) -> dict[str, str]:
        return self.equation.units()

    def observe(self, params: PyTree, state: PairState) -> dict[str, Array]:
        return self.equation.observe(params, state.y) | {"gap": _largest(_minus(*_both(state)))}

    def status(self, state: PairState) -> RESULTS:
        y, z = _both(state)
        near = _largest(_minus(y, z)) <= APART * jnp.maximum(_largest(y), _largest(z))
        finite = jnp.isfinite(_largest(y) + _largest(z))
        result = RESULTS.where(near, RESULTS.successful, RESULTS.unstable)
        return RESULTS.where(finite, result, RESULTS.nonfinite)

    def _moved(self, params: PyTree, t: Array, y: PyTree, direction: int) -> PyTree:
        """Ψ_{±h}(t, y)."""
        assert self.equation.dt is not None
        return self.equation.increment(params, t, y, direction * self.equation.dt)

    def step(self, params: PyTree, state: PairState) -> PairState:
        (y, z), own, t = _both(state), self.coupling, self.time(state)
        ahead = self._moved(params, t, z, 1)
        y = jax.tree.map(lambda y, z, d: z + own * (y - z) + d, y, z, ahead)
        after = _later(state, 1)
        z = _minus(z, self._moved(params, self.time(after), y, -1))
        return PairState(FlowState(y, after.y.start, after.y.step), z)

    def unstep(self, params: PyTree, state: PairState) -> PairState:
        (y, z), own = _both(state), self.coupling
        start, count = state.y.start, state.y.step - 1
        t = self.time(state)
        back = FlowState(y, start, count)
        z = jax.tree.map(jnp.add, z, self._moved(params, t, y, -1))
        ahead = self._moved(params, self.equation.time(back), z, 1)
        y = jax.tree.map(lambda y, z, d: z + (y - z - d) / own, y, z, ahead)
        return PairState(FlowState(y, start, count), z)

    def to_exact(self, params: PyTree, state: PairState, steps: int) -> ExactPair:
        y, z = _both(state)
        moved = self._moved(params, self.time(state), y, 1)
        grid = jax.tree.map(spacing, y, moved)
        words = -(-steps // self._steps_a_word)
        bits = jax.tree.map(lambda x: jnp.zeros((words, *x.shape), jnp.int64), y)
        y, z = (jax.tree.map(on_grid, x, grid) for x in (y, z))
        return ExactPair(y, z, bits, grid, jnp.zeros((), jnp.int32), self.prepare(params, state))

    def same(self, exact: ExactPair, other: ExactPair) -> Array:
        copies = lambda e: jax.tree.leaves((e.y, e.z))  # noqa: E731
        pairs = zip(copies(exact), copies(other), strict=True)
        return jnp.all(jnp.stack([jnp.all(a == b) for a, b in pairs]))

    def from_exact(self, exact: ExactPair) -> PairState:
        y, z = self._floats(exact, exact.y), self._floats(exact, exact.z)
        return PairState(FlowState(y, exact.rest.y.start, exact.rest.y.step), z)

    def _floats(self, exact: ExactPair, x: PyTree) -> PyTree:
        like = exact.rest.z
        return jax.tree.map(lambda x, g, y: off_grid(x, g, y.dtype), x, exact.grid, like)

    def _increment(self, params: PyTree, exact: ExactPair, x: PyTree, direction: int) -> PyTree:
        """Ψ_h at the time before the step, Ψ_{-h} at the time after it, in integers."""
        t = self.time(exact.rest) if direction > 0 else self.time(_later(exact.rest, 1))
        # Barriers on both sides: forward and backward must compile to the same kernel.
        t, y = jax.lax.optimization_barrier((t, self._floats(exact, x)))
        moved = jax.lax.optimization_barrier(self._moved(params, t, y, direction))
        return jax.tree.map(on_grid, moved, exact.grid)

    def exact_step(self, params: PyTree, exact: ExactPair) -> ExactPair:
        ahead = self._increment(params, exact, exact.z, 1)
        apart, bits = self._coupled(exact, _minus(exact.y, exact.z), exact.taken, _contracted)
        y = jax.tree.map(lambda z, d, a: z + d + a, exact.z, apart, ahead)
        z = _minus(exact.z, self._increment(params, exact, y, -1))
        return ExactPair(y, z, bits, exact.grid, exact.taken + 1, _later(exact.rest, 1))

    def exact_unstep(self, params: PyTree, exact: ExactPair) -> ExactPair:
        exact = eqx.tree_at(lambda e: e.rest, exact, _later(exact.rest, -1))
        z = jax.tree.map(jnp.add, exact.z, self._increment(params, exact, exact.y, -1))
        ahead = self._increment(params, exact, z, 1)
        apart = jax.tree.map(lambda y, z, a: y - z - a, exact.y, z, ahead)
        apart, bits = self._coupled(exact, apart, exact.taken - 1, _expanded)
        y = jax.tree.map(jnp.add, z, apart)
        return ExactPair(y, z, bits, exact.grid, exact.taken - 1, exact.rest)

    def _coupled(
        self, exact: ExactPair, apart: PyTree, number: Array, coupled: Any
    ) -> tuple[PyTree, PyTree]:
        """λ times the distance of the copies, or 1/λ times, and the remainders of step `number`."""
        word = number // self._steps_a_word

        def one(d: Array, bits: Array) -> tuple[Array, Array]:
            d, b = coupled(d, bits[word], self.halvings)
            return d, bits.at[word].set(b)

        structure = jax.tree.structure(apart)
        leaves = map(one, jax.tree.leaves(apart), jax.tree.leaves(exact.bits))
        ds, bits = zip(*leaves, strict=True)
        return jax.tree.unflatten(structure, ds), jax.tree.unflatten(structure, bits)


def _contracted(d: Array, b: Array, k: int) -> tuple[Array, Array]:
    """(1 - 2⁻ᵏ) d, a bijection of integers: the digit that d loses goes into b, one of b's comes
    back."""
    less = 2**k - 1
    b, d = (b << k) | (d & less), d >> k
    return d * less + b % less, b // less


def _expanded(d: Array, b: Array, k: int) -> tuple[Array, Array]:
    """The inverse of `_contracted`."""
    less = 2**k - 1
    digit = d % less
    b, d = b * less + digit, (d - digit) // less
    return (d << k) | (b & less), b >> k


def _both(state: PairState) -> tuple[PyTree, PyTree]:
    return state.y.y, state.z


def _minus(a: PyTree, b: PyTree) -> PyTree:
    return jax.tree.map(jnp.subtract, a, b)


def _largest(tree: PyTree) -> Array:
    return jnp.max(jnp.stack([jnp.max(jnp.abs(x)) for x in jax.tree.leaves(tree)]))


def _later(state: PairState, steps: int) -> PairState:
    y = state.y
    return PairState(FlowState(y.y, y.start, y.step + steps), state.z)

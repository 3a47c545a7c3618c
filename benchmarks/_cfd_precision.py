"""Seconds to a relative velocity error at t = 1: each code by the cheapest way it has."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ._cfd_sides import Case, Side, exponax, jax_cfd_spectral, jax_cfd_volumes, ours, places
from ._measure import Row, fastest, less_is_better

WAYS: tuple[tuple[str, str, Callable[[Case], Side], tuple[str, ...]], ...] = (
    ("diffsim", "central", ours, ("rk2", "rk3", "rk4")),
    ("jax-cfd", "central", jax_cfd_volumes, ("rk2", "rk4")),
    ("diffsim", "spectral", ours, ("etdrk2", "etdrk4", "cn_rk4")),
    ("jax-cfd", "spectral", jax_cfd_spectral, ("cn_rk2", "cn_rk4")),
    ("exponax", "spectral", exponax, ("etdrk2", "etdrk4")),
)
CELLS = {"central": (64, 96, 128, 160, 192, 256, 384, 512), "spectral": (24, 32, 40, 48, 64, 96)}
COURANT = (2.0, 1.4, 1.0, 0.7, 0.5, 0.35)  # u dt/h of the finite volumes, u = 1
STEPS = (2, 3, 4, 6, 8, 11, 16, 22, 32, 45, 64, 90, 128)  # of the spectral codes
NOTES = {"central": "finite volumes", "spectral": "spectral", "all": "any method"}


class Found(NamedTuple):
    """A run that is accurate enough."""

    code: str
    scheme: str
    case: Case
    run: Callable[[], Any]

    @property
    def label(self) -> str:
        case = self.case
        return f"{case.scheme} {case.method}, {case.size}, {case.steps} steps"


def rows(quick: bool, with_exponax: bool) -> Iterator[Row]:
    target = 3e-2 if quick else 1e-3
    found: list[Found] = []
    with jax.enable_x64(False):
        for code, scheme, make, methods in WAYS:
            if code != "exponax" or with_exponax:
                tried = methods[-1:] if quick else methods
                found += [f for m in tried if (f := cheapest(code, scheme, make, m, target))]
        times = fastest({f.label + f.code: f.run for f in found}, 3 if quick else 15, 8.0)
    for scheme in ("central", "spectral", "all"):
        best: dict[str, Found] = {}
        for f in sorted(found, key=lambda f: -times[f.label + f.code]):
            if scheme in (f.scheme, "all"):
                best[f.code] = f
        mine = best.pop("diffsim")
        for peer in best.values():
            row = less_is_better(
                f"error {target:g}, {NOTES[scheme]}",
                mine.case.size,
                "time_to_error",
                times[mine.label + mine.code],
                "s",
                peer.code,
                times[peer.label + peer.code],
            )
            ways = "; ".join(f"{f.code} by {f.label}" for f in (mine, peer))
            yield replace(row, note=f"{row.system}: {ways}")


def cheapest(
    code: str, scheme: str, make: Callable[[Case], Side], method: str, target: float
) -> Found | None:
    """On the coarsest grid where the smallest steps are accurate enough, the largest that are."""
    for n in CELLS[scheme]:
        counts = STEPS if scheme == "spectral" else [_steps(n, c) for c in COURANT]
        for i, steps in enumerate((counts[-1], *counts)):
            case = Case((n, n), scheme, method, 1 / steps, steps)
            side = make(case)
            run = jax.jit(side.final)
            given = jnp.float32(case.viscosity), side.start
            if error(case, np.asarray(run(*given))) <= target:
                if i:
                    return Found(code, scheme, case, lambda f=run, x=given: f(*x))
            elif not i:
                break
    return None


def _steps(n: int, courant: float) -> int:
    return math.ceil(n / (2 * math.pi * courant))


def error(case: Case, velocity: np.ndarray) -> float:
    """|u - reference|/|reference|, each component where it is."""
    exact = np.stack([reference().at(a, case.shape, x) for a, x in enumerate(places(case))])
    return float(np.linalg.norm(velocity - exact) / np.linalg.norm(exact))


class Reference(NamedTuple):
    """A velocity by its Fourier coefficients."""

    coefficients: np.ndarray

    def at(self, component: int, shape: Sequence[int], where: Sequence[float]) -> np.ndarray:
        """At the points x = (index + where) 2π/n of a grid."""
        c = self.coefficients[component]
        k = np.fft.fftfreq(len(c), 1 / len(c)).astype(int)
        keep = np.abs(k) < min(len(c), *shape) // 2
        (n, m), k = shape, k[keep]
        shift = [np.exp(2j * np.pi * k * w / size) for w, size in zip(where, shape, strict=True)]
        total = np.zeros(tuple(shape), complex)
        total[np.ix_(k % n, k % m)] = c[np.ix_(keep, keep)] * np.outer(*shift)
        return np.real(np.fft.ifft2(total)) * n * m


@functools.cache
def reference(n: int = 256, steps: int = 256) -> Reference:
    with jax.enable_x64(True):
        case = Case((n, n), "spectral", "etdrk4", 1 / steps, steps)
        side = ours(case)
        end = np.asarray(jax.jit(side.final)(case.viscosity, side.start))
    return Reference(np.fft.fft2(end) / n**2)

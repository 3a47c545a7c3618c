"""Incompressible flow: a step, its gradient, their memory, and what an accurate answer costs.

A periodic box of 2π, a smooth random start, ν = 1e-3, dt at CFL 0.1, float32. Every side takes the
same number of the same steps in one compiled scan, and is refused if it does not arrive at the same
velocity: `difference` is that of two sides over what the run has changed (to PhiFlow, which has
another scheme of the same order, up to 0.1). The sides take turns, the best time of each counts.

- central, van_leer: finite volumes with a projection a stage. JAX-CFD: its function
  `semi_implicit_navier_stokes` and fast pressure solver. PhiFlow: central differences and Euler
  alone, pressure by conjugate gradients to 1e-5.
- spectral: Exponax takes ETDRK2 and ETDRK4, JAX-CFD the Crank-Nicolson RK4.

The gradient is of the final kinetic energy in viscosity and start (Exponax: in the start alone), by
`Direct` here and by autodiff through the scan there; rows named checkpoint are by
`RecursiveCheckpoint`. `gradient_over_forward` is each side's own ratio; memory is what a compiled
program keeps besides its arguments and results.

`time_to_error`: seconds to a relative velocity error (L2) at t = 1. Each code takes the cheapest of
its methods, resolutions and steps that gets there; the reference is spectral, 256², in float64.
"""

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import diffsim as ds
from diffsim import cfd

from . import _cfd_precision as precision
from ._cfd_phiflow import phiflow
from ._cfd_sides import Case, Side, exponax, jax_cfd_spectral, jax_cfd_volumes, ours, velocity
from ._measure import Row, fastest, less_is_better

CFL = 0.1
PEERS: tuple[tuple[str, str, Callable[[Case], Side]], ...] = (
    ("central, euler", "jax_cfd", jax_cfd_volumes),
    ("central, euler", "phi", phiflow),
    ("central, rk4", "jax_cfd", jax_cfd_volumes),
    ("van_leer, euler", "jax_cfd", jax_cfd_volumes),
    ("spectral, etdrk2", "exponax", exponax),
    ("spectral, etdrk4", "exponax", exponax),
    ("spectral, cn_rk4", "jax_cfd", jax_cfd_spectral),
)
SHAPES = {(64, 64): 100, (256, 256): 20, (64, 64, 64): 10}  # steps of each


def rows(quick: bool) -> Iterator[Row]:
    cfd.repair_jax_cfd()
    for module in ("exponax", "phi"):
        if not installed(module):
            print(f"{module} is not installed and is left out: it comes with diffsim[bench]")
    # PhiFlow's backend turns 64-bit types on as it is loaded; the other two need them off to stay
    # with float32. A list, because the setting is the thread's while it holds.
    with jax.enable_x64(False):
        found = [row for case in cases(quick) for row in side_by_side(case, 2 if quick else 8)]
    yield from found
    yield from precision.rows(quick, installed("exponax"))


def cases(quick: bool) -> Iterator[Case]:
    for shape, steps in ({(32, 32): 10} if quick else SHAPES).items():
        for system in dict.fromkeys(system for system, _, _ in PEERS):
            if quick and system.endswith(("rk4", "etdrk4")):
                continue
            scheme, method = system.split(", ")
            yield Case(shape, scheme, method, CFL * 2 * np.pi / shape[0], steps)


def side_by_side(case: Case, repeats: int) -> Iterator[Row]:
    makers = [make for system, module, make in PEERS if system == case.system and installed(module)]
    if len(case.shape) == 3:
        makers = [make for make in makers if make is not jax_cfd_spectral]
    mine, others = ours(case), [make(case) for make in makers]
    programs = {side.name: compiled(case, side) for side in (mine, *others)}
    checkpoint = compiled(case, ours(case, ds.RecursiveCheckpoint()))
    programs["checkpoint"] = {"gradient": checkpoint["gradient"]}
    for peer in others:
        yield from _agreeing(case, programs, mine, peer)
    tasks = {
        (name, what): lambda p=p: p() for name, each in programs.items() for what, p in each.items()
    }
    taken = fastest(tasks, repeats, 8.0)
    figures = {name: _figures(case, name, programs, taken) for name in programs}
    for metric, (value, unit) in figures["diffsim"].items():
        for peer in others:
            given = value, unit, peer.name, figures[peer.name][metric][0]
            yield less_is_better(case.system, case.size, metric, *given)
        if not others:
            yield Row(case.system, case.size, metric, value, unit)
    for metric, (value, unit) in figures["checkpoint"].items():
        yield Row(f"{case.system}, checkpoint", case.size, metric, value, unit)


class Program:
    """A compiled function on its arguments, and its memory [MB]."""

    def __init__(self, function: Callable[..., Any], *args: Any):
        self.run, self.args = jax.jit(function), args
        analysis = self.run.lower(*args).compile().memory_analysis()
        self.memory = analysis.temp_size_in_bytes / 1e6

    def __call__(self) -> Any:
        return self.run(*self.args)


def compiled(case: Case, side: Side) -> dict[str, Program]:
    def energy(viscosity: Any, start: Any) -> Any:
        return len(case.shape) * jnp.mean(side.final(viscosity, start) ** 2) / 2

    given = jnp.float32(case.viscosity), side.start
    return {
        "forward": Program(side.final, *given),
        "gradient": Program(jax.grad(energy, argnums=side.wrt), *given),
    }


def _figures(case: Case, name: str, programs: Any, taken: Any) -> dict[str, tuple[float, str]]:
    """Of one side: metric -> value, unit."""
    out = {f"{what}_step": (taken[name, what] / case.steps * 1e3, "ms") for what in programs[name]}
    forward = taken["diffsim" if name == "checkpoint" else name, "forward"]
    out["gradient_over_forward"] = taken[name, "gradient"] / forward, "1"
    return out | {f"{what}_memory": (p.memory, "MB") for what, p in programs[name].items()}


def _agreeing(case: Case, programs: Any, mine: Side, peer: Side) -> Iterator[Row]:
    """How far two sides are apart at the end and in the slope in viscosity; refused if far."""
    a, b = (np.asarray(programs[name]["forward"]()) for name in (mine.name, peer.name))
    apart = {"difference": np.linalg.norm(a - b) / np.linalg.norm(a - velocity(case))}
    if 0 in peer.wrt:
        a, b = (float(programs[name]["gradient"]()[0]) for name in (mine.name, peer.name))
        apart["gradient_difference"] = abs(a - b) / abs(a)
    for metric, value in apart.items():
        if not value < (0.1 if peer.name == "phiflow" else 0.01):
            raise RuntimeError(
                f"{case.system}, {case.size}: the {metric} to {peer.name} is {value:.2g}"
            )
        yield Row(case.system, case.size, metric, float(value), "1", peer.name)


def installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None

"""Over devices: bytes they exchange, a step and an iteration of a fit, and what that limits.

Loss and gradient of a fit over replicas, as many of them for each device (weak scaling), compiled
for 1, 2, 4 and 8 devices; on a machine without several, eight virtual ones of the CPU, which share
its cores: times then say nothing but that nothing is lost. Bytes are read from the compiled program
(docs/scaling.md has the method). `iteration_time`: its peer is the same batch on one device.
`break_even_devices`: where an all-reduce of these bytes takes as long as the iteration of one
device's share took here.
"""

import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

if "jax" not in sys.modules and "device_count" not in os.environ.get("XLA_FLAGS", ""):
    # of the CPU alone
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    )

import jax
import numpy as np

import diffsim as ds
from diffsim import md, ode
from diffsim._placement import collectives

from ._measure import Row, fastest, less_is_better

LINKS = {"NVLink": (450e9, 3e-6), "InfiniBand": (50e9, 6e-6)}  # bytes/s one way, s a message


def break_even(seconds: float, size: float, bandwidth: float, latency: float) -> float:
    """N at which 2 (N - 1)/N B/W + 2 (N - 1) α, the time of a ring, equals `seconds`; 1 where the
    bandwidth alone takes longer."""
    return max(1.0, 1 + (seconds - 2 * size / bandwidth) / (2 * latency))


def problems(quick: bool) -> Iterator[tuple[str, int, Callable[[int, Any], ds.Problem]]]:
    """Name, conditions a device, and the problem of so many conditions in a place."""
    steps = 40 if quick else 400

    def populations(rows: int, placement: Any) -> ds.Problem:
        equation = ode.DifferentialEquation(ode.LotkaVolterra(), dt=0.02)
        rates = {"alpha": 1.5, "beta": 1.0, "gamma": 3.0, "delta": 1.0}
        free = {name: ds.Parameter(value, transform="positive") for name, value in rates.items()}
        y0 = 1 + 0.3 * np.random.default_rng(0).random((rows, 2))
        seen = ds.Target("y", np.ones((rows, 2)), 0.1)
        plan = ds.Schedule(steps=steps, save_every=10)
        return ds.Problem(equation, free, [seen], plan, {"y0": y0}, placement=placement)

    def liquids(rows: int, placement: Any) -> ds.Problem:
        positions, box = md.lattice(32, density=0.6)
        liquid = md.NVE(md.LennardJones(float(box.min()) / 2, "switch"), dt=0.004)
        free = {name: ds.Parameter(1.0, transform="positive") for name in ("epsilon", "sigma")}
        noise = 0.02 * np.random.default_rng(0).standard_normal((rows, 32, 3))
        start = {"positions": positions + noise, "box": np.tile(box, (rows, 1))}
        start |= {"velocities": np.zeros((rows, 32, 3))}
        seen = ds.Target("pressure", np.ones(rows), 0.1)
        plan = ds.Schedule(steps=steps, save_every=10)
        return ds.Problem(liquid, free, [seen], plan, start, placement=placement)

    yield "Lotka-Volterra", 4 if quick else 256, populations
    if not quick:
        yield "liquid, 32 atoms", 2, liquids


def iteration(problem: ds.Problem) -> Any:
    """Loss and gradient at the start, compiled, and what they are taken at."""
    theta = problem.initial()
    states = problem.states(theta, jax.random.key(0))

    def loss(theta: Any, states: Any) -> Any:
        return problem.loss(theta, problem.predict(theta, states, ds.RecursiveCheckpoint()))

    program = jax.jit(jax.value_and_grad(loss)).lower(theta, states).compile()
    return program, lambda: program(theta, states)


def rows(quick: bool) -> Iterator[Row]:
    counts = [n for n in ((1, 4) if quick else (1, 2, 4, 8)) if n <= jax.device_count()]
    for name, each, problem in problems(quick):
        alone = None
        for count in counts:
            size = f"{count} x {each}"
            program, run = iteration(problem(count * each, ds.Batch(count)))
            _, single = iteration(problem(count * each, ds.SingleDevice()))
            taken = fastest({"batch": run, "single": single}, 2 if quick else 10, 5.0)
            said = collectives(program.as_text() or "")
            step = sum(one.bytes for one in said if one.in_loop)
            whole = sum(one.bytes for one in said if not one.in_loop)
            alone = taken["batch"] if alone is None else alone
            yield Row(name, size, "bytes_a_step", step, "B")
            yield Row(name, size, "bytes_an_iteration", whole, "B")
            pair = taken["batch"], "s", "one device", taken["single"]
            yield less_is_better(name, size, "iteration_time", *pair)
            for link, (bandwidth, latency) in LINKS.items() if count > 1 else ():
                most = break_even(alone, whole, bandwidth, latency)
                metric = f"break_even_devices_{link.lower()}"
                yield Row(name, size, metric, most, "devices", note=NOTE)


NOTE = (
    "break-even: 450 GB/s and 3 us a message by NVLink, 50 GB/s and 6 us by InfiniBand (assumed), "
    "against the time that one device's share took here"
)

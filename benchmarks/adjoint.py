"""Ways to a gradient: time and memory of each, and of what `Auto` chooses under three budgets.

A Lennard-Jones liquid, an equation of many components and a flow. The gradient is of the sum of
squares of what is saved, in the parameters; forward is the same run without it. Every way is
compiled ahead, its memory read from the program; they take turns, the best time of each counts.

`gradient_over_forward` and `gradient_memory` of each way; `predicted_memory` of `Auto`'s table, its
peer the compiled size. `auto_gradient`: what `Auto` took under a budget, its peer the fastest
hand-picked way whose compiled size is within the budget; a ratio of 0.87 is 1.15 times its time.

`python -m benchmarks._adjoint_figure FILE PNG` draws the rows that `--json FILE` wrote.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import diffsim as ds
from diffsim import cfd, md, ode

from ._measure import Row, fastest, less_is_better


class System(NamedTuple):
    """A run with what it is differentiated in, and the ways that apply."""

    name: str
    simulation: Any
    params: dict[str, Any]
    state: Any
    steps: int
    observables: tuple[str, ...]
    further: tuple[Any, ...] = ()


def systems(quick: bool) -> Iterator[System]:
    atoms, steps = (32, 40) if quick else (256, 400)
    positions, box = md.lattice(atoms, density=0.6)
    cutoff = min(2.5, float(box.min()) / 2)
    liquid = md.NVE(md.LennardJones(cutoff, "switch"), dt=0.004)
    params = {"epsilon": jnp.asarray(1.0), "sigma": jnp.asarray(1.0)}
    start = dict(positions=positions, box=box, temperature=1.0)
    state = liquid.init(params, jax.random.key(0), **start)
    seen = ("pressure", "total_energy")
    yield System(f"liquid, {atoms} atoms", liquid, params, state, steps, seen, (ds.Reversible(),))
    count = 100 if quick else 10_000
    equation = ode.DifferentialEquation(lambda t, y, p: jnp.sin(y) - p["k"] * y, dt=0.01)
    k = {"k": jnp.asarray(1.0)}
    y0 = jnp.linspace(0.0, 1.0, count)
    yield System(f"equation, {count}", equation, k, equation.init(k, y0=y0), steps, ("y",))
    n = 32 if quick else 64
    flow = cfd.IncompressibleFlow(cfd.Grid((n, n)), 0.3 / n, method="rk3")
    viscosity = {"viscosity": jnp.asarray(1e-2)}
    velocity = tuple(u[0] for u in cfd.random_velocity(flow, 4.0, 1.0))
    state = flow.init(viscosity, jax.random.key(0), velocity=velocity)
    yield System(f"flow, {n}x{n}", flow, viscosity, state, steps, ("kinetic_energy",))


class Program:
    """The gradient by one adjoint (None: the run alone), compiled."""

    def __init__(self, system: System, adjoint: Any):
        schedule = ds.Schedule(steps=system.steps, save_every=system.steps // 10)

        def loss(params: dict[str, Any], state: Any) -> Any:
            sol = ds.solve(
                system.simulation,
                params,
                state,
                schedule=schedule,
                adjoint=adjoint,
                observables=system.observables,
            )
            self.plan = sol.stats.get("plan")
            return sum(jnp.sum(x**2) for x in sol.observables.values())

        run = jax.jit(loss if adjoint is None else jax.grad(loss))
        self.args = system.params, system.state
        self.run = run.lower(*self.args).compile()
        self.memory = int(self.run.memory_analysis().temp_size_in_bytes)

    def __call__(self) -> Any:
        return self.run(*self.args)


def rows(quick: bool) -> Iterator[Row]:
    for system in systems(quick):
        yield from of(system, 2 if quick else 8)


def of(system: System, repeats: int) -> Iterator[Row]:
    """All rows of one system."""
    size = f"{system.steps} steps"
    ways = (ds.Direct(), ds.RecursiveCheckpoint(), *system.further)
    ways += tuple(ds.RecursiveCheckpoint(s) for s in (3, system.steps // 10, system.steps // 4))
    hand = {_name(way): Program(system, way) for way in ways}
    sizes = sorted(program.memory for program in hand.values())
    budgets = [int(1.05 * sizes[-1]), int(0.5 * sizes[-1]), int(1.5 * sizes[0])]
    auto = {b: Program(system, ds.Auto(memory=float(b))) for b in budgets}
    tasks: dict[Any, Any] = {"forward": Program(system, None), **hand, **auto}
    taken = fastest(tasks, repeats, 10.0)
    for name, program in hand.items():
        ratio = taken[name] / taken["forward"]
        yield Row(f"{system.name}, {name}", size, "gradient_over_forward", ratio, "1")
        yield Row(f"{system.name}, {name}", size, "gradient_memory", program.memory / 1e6, "MB")
    for budget, program in auto.items():
        plan = program.plan
        assert plan is not None
        chosen = next(row for row in plan.candidates if row.verdict == "chosen")
        label = f"{system.name}, Auto({budget / 1e6:.3g} MB): {plan.chosen}"
        sizes = chosen.predicted / 1e6, "MB", "compiled", program.memory / 1e6
        yield less_is_better(label, size, "predicted_memory", *sizes)
        fitting = {n: taken[n] for n, p in hand.items() if p.memory <= budget}
        best = min(fitting, key=lambda n: fitting[n])
        times = taken[budget] * 1e3, "ms", best, fitting[best] * 1e3
        yield less_is_better(label, size, "auto_gradient", *times)


def _name(adjoint: Any) -> str:
    slots = getattr(adjoint, "checkpoints", None)
    return type(adjoint).__name__ + (f"({slots})" if slots else "")

"""What the gradient of a Lennard-Jones run costs: time over the forward run, and memory.

NVE, ρ* = 0.8, T* = 1, cutoff 2.5 σ smoothed from 2 σ, dt* = 0.004; the gradient of the potential
energy at the end in ε, σ and the positions of the start. JAX-MD: autodiff through a scan that
updates its list in each step (its pair sum over a function of ours, since its own has no gradient
in σ, jax-md#258); its forward run is its own. Every way is compiled ahead, its memory read from the
program; they take turns, the best time of each counts. The ways agree to 1e-6 first.

`gradient_over_forward` and `gradient_memory` of each way. `memory_of_long_over_short`: of
`Reversible`, where the run is a hundred times as long. `solve_over_scan`: a forward run by `solve`
over the same steps in a bare scan.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax_md import simulate, smap, space
from jax_md.partition import NeighborListFormat, neighbor_list

import diffsim as ds

from ._measure import Row, fastest, less_is_better

DENSITY, CUTOFF, ONSET, DT, SKIN = 0.8, 2.5, 2.0, 0.004, 0.5
ADJOINTS = {
    "Reversible": ds.Reversible(),
    "RecursiveCheckpoint": ds.RecursiveCheckpoint(),
    "Direct": ds.Direct(),
}
Energy = Callable[[Any, Any], Any]


class Compiled:
    """A function of (parameters, positions), ahead of time."""

    def __init__(self, function: Callable[..., Any], *args: Any):
        self.args = args
        self.program = jax.jit(function).lower(*args).compile()
        self.memory = int(self.program.memory_analysis().temp_size_in_bytes)  # pyright: ignore

    def __call__(self) -> Any:
        return self.program(*self.args)


class Liquid:
    """N atoms on a lattice, in motion."""

    def __init__(self, atoms: int, dtype: Any):
        positions, box = ds.md.lattice(atoms, density=DENSITY)
        self.positions, self.box = jnp.asarray(positions, dtype), jnp.asarray(box, dtype)
        self.sim = ds.md.NVE(ds.md.LennardJones(CUTOFF, "switch", onset=ONSET), dt=DT)
        self.params = {k: jnp.asarray(1.0, dtype) for k in ("epsilon", "sigma")}
        start = {"positions": self.positions, "box": self.box, "temperature": 1.0}
        self.state = self.sim.init(self.params, jax.random.key(0), **start)

    def energy(self, steps: int, adjoint: Any) -> Energy:
        """The potential energy at the end, by `solve`."""

        def end(params: Any, positions: Any) -> Any:
            state = self.sim.with_variables(self.state, (positions, self.state.velocities))
            schedule = ds.Schedule(steps=steps)
            sol = ds.solve(
                self.sim,
                params,
                state,
                schedule=schedule,
                adjoint=adjoint,
                observables=["potential_energy"],
            )
            return sol.observables["potential_energy"][-1]

        return end

    def bare(self, steps: int) -> Energy:
        """The same, its steps in a scan of one's own."""

        def end(params: Any, positions: Any) -> Any:
            state = self.sim.with_variables(self.state, (positions, self.state.velocities))
            state = self.sim.prepare(params, state)
            step = lambda state, _: (self.sim.step(params, state), None)  # noqa: E731
            state, _ = jax.lax.scan(step, state, length=steps)
            return self.sim.observe(params, state)["potential_energy"]

        return end

    def jax_md(self, steps: int) -> Energy:
        """The same by JAX-MD."""
        displacement, shift = space.periodic(self.box)
        pairs = smap.pair_neighbor_list(
            _switched,
            space.canonicalize_displacement_or_metric(displacement),
            sigma=1.0,
            epsilon=1.0,
        )
        lists = neighbor_list(displacement, self.box, CUTOFF, SKIN, format=NeighborListFormat.Dense)
        listed = lists.allocate(self.positions, extra_capacity=8)
        init, step = simulate.nve(pairs, shift, dt=DT)
        velocities = self.state.velocities

        def end(params: Any, positions: Any) -> Any:
            state = init(jax.random.key(0), positions, kT=1.0, neighbor=listed, **params)
            state = state.set(momentum=velocities)

            def tick(carry: Any, _: None) -> Any:
                state, listed = carry
                listed = listed.update(state.position)
                return (step(state, neighbor=listed, **params), listed), None

            (state, last), _ = jax.lax.scan(tick, (state, listed), length=steps)
            return pairs(state.position, neighbor=last.update(state.position), **params)

        return end


def _switched(r: Any, sigma: Any, epsilon: Any) -> Any:
    """diffsim's smoothly switched Lennard-Jones, masked where two atoms are one."""
    apart = r > 0
    safe = jnp.where(apart, r, 1.0)
    s6 = (sigma / safe) ** 6
    x = jnp.clip((safe**2 - ONSET**2) / (CUTOFF**2 - ONSET**2), 0.0, 1.0)
    switch = 1 - x**3 * (10 - 15 * x + 6 * x**2)
    return jnp.where(apart, switch * 4 * epsilon * (s6**2 - s6), 0.0)


def rows(quick: bool) -> Iterator[Row]:
    for atoms in (108,) if quick else (500, 4000):
        for dtype in (jnp.float64,) if quick else (jnp.float32, jnp.float64):
            yield from of(Liquid(atoms, dtype), 10 if quick else 100, 1 if quick else 4)
    yield from long_runs(Liquid(108 if quick else 500, jnp.float64), quick)


def of(liquid: Liquid, steps: int, repeats: int) -> Iterator[Row]:
    """All ways for one system."""
    given = liquid.params, liquid.positions
    gradient = lambda energy: jax.grad(energy, argnums=(0, 1))  # noqa: E731
    tasks = {
        name: Compiled(gradient(liquid.energy(steps, a)), *given) for name, a in ADJOINTS.items()
    }
    tasks["forward"] = Compiled(liquid.energy(steps, None), *given)
    tasks["scan"] = Compiled(liquid.bare(steps), *given)
    tasks["JAX-MD forward"] = Compiled(liquid.jax_md(steps), *given)
    tasks["JAX-MD, autodiff"] = Compiled(gradient(liquid.jax_md(steps)), *given)
    dtype, atoms = liquid.positions.dtype, len(liquid.positions)
    _agree(tasks, 1e-6 if dtype == jnp.float64 else 1e-2)
    taken = fastest(tasks, repeats, 60.0)
    size = f"{atoms} atoms, {steps} steps"
    theirs = taken["JAX-MD, autodiff"] / taken["JAX-MD forward"]
    heavy = tasks["JAX-MD, autodiff"].memory / 1e6
    for name in ADJOINTS:
        system = f"{name}, {dtype.name}"
        ratio = taken[name] / taken["forward"]
        peer = "jax-md, autodiff"
        yield less_is_better(system, size, "gradient_over_forward", ratio, "1", peer, theirs)
        memory = tasks[name].memory / 1e6
        yield less_is_better(system, size, "gradient_memory", memory, "MB", peer, heavy)
        times = taken[name] * 1e3, "ms", peer, taken["JAX-MD, autodiff"] * 1e3
        yield less_is_better(system, size, "gradient_time", *times)
    over = taken["forward"] / taken["scan"]
    yield Row(f"forward, {dtype.name}", size, "solve_over_scan", over, "1")


def long_runs(liquid: Liquid, quick: bool) -> Iterator[Row]:
    """Memory over steps, and a gradient through the longer run."""
    short, long = (100, 1000) if quick else (1000, 100_000)
    given = liquid.params, liquid.positions
    programs = {
        steps: Compiled(jax.grad(liquid.energy(steps, ds.Reversible()), argnums=(0, 1)), *given)
        for steps in (short, long)
    }
    size = f"{len(liquid.positions)} atoms, {short} and {long} steps"
    ratio = programs[long].memory / programs[short].memory
    yield Row("Reversible, float64", size, "memory_of_long_over_short", ratio, "1")


def _agree(tasks: dict[str, Compiled], within: float) -> None:
    energies = [float(tasks[name]()) for name in ("forward", "scan", "JAX-MD forward")]
    np.testing.assert_allclose(energies, energies[0], rtol=within)
    names = (*ADJOINTS, "JAX-MD, autodiff")
    gradients = [np.concatenate([np.ravel(x) for x in jax.tree.leaves(tasks[n]())]) for n in names]
    scale = np.max(np.abs(gradients[0]))
    for name, found in zip(names, gradients, strict=True):
        np.testing.assert_allclose(found, gradients[0], atol=within * scale, err_msg=name)

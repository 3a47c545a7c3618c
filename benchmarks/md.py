"""NVE of a Lennard-Jones liquid: diffsim.md beside raw JAX-MD, OpenMM's CPU platform and LAMMPS.

ρ* = 0.8, T* = 1, cut at 2.5 σ, dt* = 0.004, every engine with its own skin and its neighbours
brought up to date as it goes; all start from the same atoms and agree on their energy to 1e-5
first. LAMMPS on one core (`-sf opt`) and with threads (`-sf omp -pk omp`). 27 × 128 atoms is a
batch of 27 systems. "mixture" has two kinds of atoms with a table of parameters, "coulomb" is the
real-space part of charges alone, "charges" both in one pass, all beside the same tiles with one
kind. Rates count atoms times steps; the fastest of several turns.
"""

import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import diffsim as ds

from . import _md_peers as peers
from ._measure import Row, fastest, more_is_better

DENSITY, CUTOFF, DT = 0.8, 2.5, 0.004
PARAMS = {"epsilon": 1.0, "sigma": 1.0}
SIZES = (500, 1000, 4000, 32_000, 100_000)
DENSE = 1000  # atoms up to which all pairs are worth a row
LISTS = 32_000  # atoms up to which JAX-MD is worth the wait
TURNS = 44  # steps at least: several rebuilds of every list
WORK = 800_000  # atoms times steps of a turn
KINDS = {"float32": jnp.float32, "mixed": jnp.float64, "float64": jnp.float64}
AGREE = 1e-5


def _simulation(path: Any, precision: str) -> ds.md.NVE:
    chosen: Any = "mixed" if precision == "mixed" else "state"
    return ds.md.NVE(ds.md.LennardJones(CUTOFF, "cut", path=path, precision=chosen), dt=DT)


def liquid(atoms: int, steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions, velocities and box after some time with a thermostat."""
    positions, box = ds.md.lattice(atoms, density=DENSITY)
    potential = ds.md.LennardJones(CUTOFF, "switch", precision="mixed")
    sim = ds.md.NVT(potential, dt=DT, friction=2.0)
    given = {"positions": positions, "box": box, "temperature": 1.0}
    state = sim.init(PARAMS, jax.random.key(0), **given)
    schedule = ds.Schedule(steps=steps, save_every=steps)
    end = jax.jit(lambda s: ds.solve(sim, PARAMS, s, schedule=schedule, observables=[]).state)
    state = end(state)
    return np.asarray(state.positions), np.asarray(state.velocities), np.asarray(box)


def ours(path: str, precision: str, x: np.ndarray, v: np.ndarray, box: np.ndarray) -> peers.Peer:
    sim, dtype = _simulation(path, precision), KINDS[precision]
    arrays = {"positions": x, "velocities": v, "box": box}
    given = {name: jnp.asarray(value, dtype) for name, value in arrays.items()}
    state = sim.init(PARAMS, jax.random.key(0), **given)

    @partial(jax.jit, static_argnums=1)
    def run(state: Any, steps: int) -> Any:
        schedule = ds.Schedule(steps=steps, save_every=steps)
        solution = ds.solve(sim, PARAMS, state, schedule=schedule, observables=[])
        return solution.state.positions, solution.result == ds.RESULTS.successful

    def advance(steps: int) -> Any:
        positions, fine = run(state, steps)
        if not bool(fine):
            raise RuntimeError(f"{path} {precision}: the run failed")
        return positions

    return peers.Peer(float(sim.observe(PARAMS, state)["potential_energy"]), advance)


def batch(members: int, atoms: int, steps: int, dtype: Any) -> Callable[[], Any]:
    sim = _simulation("dense", jnp.dtype(dtype).name)
    positions, box = ds.md.lattice(atoms, density=DENSITY)
    given = {"positions": jnp.asarray(positions, dtype), "box": jnp.asarray(box, dtype)}
    keys = jax.random.split(jax.random.key(0), members)
    states = jax.vmap(lambda key: sim.init(PARAMS, key, temperature=1.0, **given))(keys)

    def run(state: Any) -> Any:
        schedule = ds.Schedule(steps=steps, save_every=steps)
        return ds.solve(sim, PARAMS, state, schedule=schedule, observables=[]).state.positions

    program = jax.jit(jax.vmap(run))
    return lambda: program(states)


def _potentials(atoms: int, precision: Any) -> dict[str, tuple[ds.md.AbstractPotential, Any]]:
    """One kind of atom; two; charges alone; two with charges: with their parameters."""
    kinds = np.arange(atoms) % 2
    options: Any = {"path": "tiles", "precision": precision}
    tables = {k: jnp.ones((2, 2)) for k in PARAMS}
    mixture = ds.md.LennardJones(CUTOFF, "cut", species=kinds, **options)
    pairs_of_charges = ds.md.Coulomb(CUTOFF, kinds, **options).real
    both = ds.md.Sum({"lj": mixture, "coulomb": pairs_of_charges})
    charge = {"charge": jnp.asarray([0.1, -0.1])}
    return {
        "one kind": (ds.md.LennardJones(CUTOFF, "cut", **options), PARAMS),
        "mixture": (mixture, tables),
        # of one sign: without repulsion at short range others would fall into each other
        "coulomb": (pairs_of_charges, {"charge": jnp.ones(2)}),
        "charges": (both, {"lj": tables, "coulomb": charge}),
    }


def _of_kinds(atoms: int, steps: int) -> Iterator[Row]:
    """What more than one kind of atom costs, in a run and in its gradient."""
    x, v, box = liquid(atoms, 2 * steps)
    for precision in ("mixed", "float64"):
        tasks: dict[tuple[str, str], Callable[[], Any]] = {}
        for name, (potential, params) in _potentials(atoms, precision).items():
            sim = ds.md.NVE(potential, dt=DT)
            state = sim.init(params, jax.random.key(0), positions=x, box=box, velocities=v)

            def end(params: Any, state: Any, sim: Any = sim) -> Any:
                done = ds.solve(
                    sim,
                    params,
                    state,
                    schedule=ds.Schedule(steps=steps, save_every=steps),
                    adjoint=ds.Reversible(),
                    observables=["kinetic_energy"],
                )
                return done.observables["kinetic_energy"][-1]

            tasks[name, "forward"] = partial(jax.jit(end), params, state)
            tasks[name, "gradient"] = partial(jax.jit(jax.grad(end)), params, state)
        taken = fastest(tasks, 4, 40.0)
        for name in ("mixture", "coulomb", "charges"):
            for what in ("forward", "gradient"):
                given = f"lennard_jones_nve {name} {precision}", f"{atoms}", f"{what}_rate"
                rate, other = (atoms * steps / taken[which, what] for which in (name, "one kind"))
                yield more_is_better(*given, rate, "atom-steps/s", "one kind", other)


def _makers(atoms: int) -> dict[tuple[str, str], Callable[..., peers.Peer]]:
    """Every engine by its name and precision; ours first."""
    threads = os.cpu_count() or 1
    made: dict[tuple[str, str], Callable[..., peers.Peer]] = {}
    for path in ("dense", "tiles") if atoms <= DENSE else ("tiles",):
        for precision in KINDS:
            made[f"diffsim {path}", precision] = partial(ours, path, precision)
    for precision in ("float32", "float64") if atoms <= LISTS else ():
        made["jax-md", precision] = partial(peers.jax_md, dtype=KINDS[precision])
    made["openmm", "mixed"] = partial(peers.openmm, threads=threads)
    made["lammps opt", "float64"] = partial(peers.lammps, options=["-sf", "opt"])
    omp = ["-sf", "omp", "-pk", "omp", str(threads)]
    made["lammps omp", "float64"] = partial(peers.lammps, options=omp)
    return made


def _compared(ours: tuple[str, str], other: tuple[str, str]) -> bool:
    """JAX-MD at the same precision; other engines, which have one, with the tiles."""
    if other[0] == "jax-md":
        return other[1] == {"mixed": "float32"}.get(ours[1], ours[1])
    return ours[0] == "diffsim tiles"


def rows(quick: bool) -> Iterator[Row]:
    for atoms in SIZES[:1] if quick else SIZES:
        yield from _of_size(atoms, quick)
    yield from _of_kinds(500 if quick else 4000, 20 if quick else 200)
    if not quick:
        steps = 200
        for dtype in (jnp.float32, jnp.float64):
            taken = fastest({"ours": batch(27, 128, steps, dtype)}, 5, 20.0)
            rate = 27 * 128 * steps / taken["ours"]
            name = f"lennard_jones_nve dense {jnp.dtype(dtype).name}"
            yield Row(name, "27 x 128", "rate", rate, "atom-steps/s")


def _of_size(atoms: int, quick: bool) -> Iterator[Row]:
    x, v, box = liquid(atoms, 20 if quick else 400)
    # JAX-MD's share of the time would be nine tenths: it takes fewer steps
    steps = 20 if quick else max(TURNS, WORK // atoms)
    ready: dict[tuple[str, str], peers.Peer] = {}
    for name, make in _makers(atoms).items():
        try:
            ready[name] = make(x, v, box)
        except (ImportError, OSError) as problem:
            note = f"{name[0]} is not there: {problem}"
            yield Row("lennard_jones_nve", f"{atoms}", "rate", 0.0, "", name[0], note=note)
    wanted = ready["diffsim tiles", "float64"].energy
    for name, engine in ready.items():
        if abs(engine.energy - wanted) > AGREE * abs(wanted):
            raise RuntimeError(f"{name}: the energy is {engine.energy}, not {wanted}")
    few = 10 if quick else max(TURNS, steps // 8)
    count = {name: few if name[0] == "jax-md" else steps for name in ready}
    tasks = {name: partial(engine.advance, count[name]) for name, engine in ready.items()}
    taken = fastest(tasks, 1 if quick else 5, 30.0)
    rates = {name: atoms * count[name] / taken[name] for name in ready}
    for own in (name for name in ready if name[0].startswith("diffsim")):
        for other in (name for name in ready if not name[0].startswith("diffsim")):
            if _compared(own, other):
                yield more_is_better(
                    f"lennard_jones_nve {own[0].removeprefix('diffsim ')} {own[1]}",
                    f"{atoms}",
                    "rate",
                    rates[own],
                    "atom-steps/s",
                    " ".join(other) if other[0] == "jax-md" else other[0],
                    rates[other],
                )

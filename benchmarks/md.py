"""NVE of a Lennard-Jones liquid: all pairs of diffsim.md against JAX-MD's list in the scan.

ρ* = 0.8, T* = 1, cutoff 2.5 σ, dt* = 0.004, both smoothed at the cutoff; 27 × 128 atoms is a batch
of 27 systems. JAX-MD updates its list in each step, as its examples do (it is rebuilt when an atom
has moved by half of `dr_threshold`, the best of three). Rates count atoms times steps.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax_md import energy, simulate, space

import diffsim as ds

from ._measure import Row, more_is_better, seconds

DENSITY, CUTOFF, DT = 0.8, 2.5, 0.004
SKINS = (0.3, 0.5, 0.8)
SIZES = ((27, 128), (1, 250), (1, 500))


def ours(batch: int, atoms: int, steps: int, dtype: Any) -> Callable[[], Any]:
    sim = ds.md.NVE(ds.md.LennardJones(CUTOFF, "switch", path="dense"), dt=DT)
    positions, box = ds.md.lattice(atoms, density=DENSITY)
    params = {"epsilon": 1.0, "sigma": 1.0}
    keys = jax.random.split(jax.random.key(0), batch)
    given = {"positions": jnp.asarray(positions, dtype), "box": jnp.asarray(box, dtype)}
    states = jax.vmap(lambda key: sim.init(params, key, temperature=1.0, **given))(keys)

    def run(state: Any) -> Any:
        schedule = ds.Schedule(steps=steps, save_every=steps)
        return ds.solve(sim, params, state, schedule=schedule, observables=[]).state.positions

    program = jax.jit(jax.vmap(run))
    return lambda: program(states)


def theirs(batch: int, atoms: int, steps: int, dtype: Any, skin: float) -> Callable[[], Any]:
    positions, box = ds.md.lattice(atoms, density=DENSITY)
    positions, box = jnp.asarray(positions, dtype), jnp.asarray(box, dtype)
    displacement, shift = space.periodic(box)
    neighbour_fn, energy_fn = energy.lennard_jones_neighbor_list(
        displacement, box, r_onset=0.8 * CUTOFF, r_cutoff=CUTOFF, dr_threshold=skin
    )
    init, step = simulate.nve(energy_fn, shift, dt=DT)
    # the default's quarter to spare is enough for a liquid; an overflow is refused below
    listed = neighbour_fn.allocate(positions)  # pyright: ignore[reportFunctionMemberAccess]

    def start(key: Any) -> Any:
        return init(key, positions, kT=1.0, neighbor=listed), listed

    def tick(carry: Any, _: None) -> Any:
        state, listed = carry
        listed = listed.update(state.position)
        return (step(state, neighbor=listed), listed), None

    keys = jax.random.split(jax.random.key(0), batch)
    states = jax.vmap(start)(keys)

    def run(carry: Any) -> Any:
        state, listed = jax.lax.scan(tick, carry, length=steps)[0]
        return state.position, listed.did_buffer_overflow

    program = jax.jit(jax.vmap(run))
    if bool(jnp.any(program(states)[1])):
        raise RuntimeError(f"JAX-MD's list overflowed for {atoms} atoms and a skin of {skin}")
    return lambda: program(states)[0]


def rows(quick: bool) -> Iterator[Row]:
    steps = 20 if quick else 400
    for batch, atoms in SIZES[1:2] if quick else SIZES:
        for dtype in (jnp.float32, jnp.float64):
            given = batch, atoms, steps, dtype
            tasks = {f"{skin}": theirs(*given, skin) for skin in (SKINS[1:2] if quick else SKINS)}
            taken = seconds({"ours": ours(*given), **tasks}, 1 if quick else 5)
            work = batch * atoms * steps
            best = min(value for name, value in taken.items() if name != "ours")
            yield more_is_better(
                f"lennard_jones_nve {jnp.dtype(dtype).name}",
                f"{batch} x {atoms}" if batch > 1 else f"{atoms}",
                "rate",
                work / taken["ours"],
                "atom-steps/s",
                "jax-md",
                work / best,
            )

"""Makes start.extxyz: 128 molecules of SPC/E at 298.15 K and 1 bar, after 80 ps from a lattice.

    python make_start.py

Molecules that are turned at random heat up by some hundred kelvins, and their box needs tens of
picoseconds to come back from that. An experiment of five minutes starts from here instead.
"""

from pathlib import Path

import ase
import ase.io
import jax
import jax.numpy as jnp
import numpy as np

import diffsim as ds

MOLECULES, STEPS = 128, 40_000


def main() -> None:
    potential = ds.md.Water(
        MOLECULES, 7.2, ds.md.Ewald(6), units="metal", precision="mixed", path="dense"
    )
    simulation = ds.md.NPT(
        potential,
        dt=0.002,
        friction=1.0,
        relaxation=1.0,
        compressibility=4.6e-5,
        units="metal",
        constraints=ds.md.rigid_water(MOLECULES, units="metal"),
    )
    params = {k: jnp.asarray(v) for k, v in ds.md.water_parameters("SPC/E", "metal").items()}
    box = ds.md.water_box(MOLECULES, units="metal")
    state = simulation.init(params, jax.random.key(0), temperature=298.15, pressure=1.0, **box)
    schedule = ds.Schedule(steps=STEPS, save_every=50)

    @jax.jit
    def run(state):
        return ds.solve(simulation, params, state, schedule=schedule, observables=("density",))

    solution = run(state).check()
    end = solution.state
    atoms = ase.Atoms(
        "OHH" * MOLECULES, positions=np.asarray(end.positions), cell=np.asarray(end.box), pbc=True
    )
    ase.io.write(Path(__file__).parent / "start.extxyz", atoms, format="extxyz")


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    main()

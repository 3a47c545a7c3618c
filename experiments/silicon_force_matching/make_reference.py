"""The data of silicon_force_matching: thermal silicon, its energies and its forces.

    python experiments/silicon_force_matching/make_reference.py

Stillinger and Weber's potential (1985, doi:10.1103/PhysRevB.31.5262): 64 atoms of diamond, boxes of
two edges of 5.431 angstrom that are each stretched by up to 1 % either way, Langevin dynamics at
300 K for 4 ps, of which the last frame is kept. Energies and forces are those of the positions as
written. The first file is fitted, the second is not seen.
"""

from pathlib import Path

import ase
import ase.io
import jax
import jax.numpy as jnp
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator

from diffsim import Schedule, md, solve

EDGE, CELLS, STRETCH, TEMPERATURE, MASS = 5.431, 2, 0.01, 300.0, 28.0855
FRAMES = {"fitted.extxyz": 12, "unseen.extxyz": 12}
STEPS, DT, FRICTION, SEED = 2000, 0.002, 1.0, 1

POTENTIAL = md.StillingerWeber(3.78, path="dense")
PARAMS = {k: jnp.asarray(v) for k, v in md.stillinger_weber_silicon().items()}


def thermal(frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions (frames, atoms, 3) and boxes (frames, 3)."""
    stretch = np.random.default_rng(SEED).uniform(-STRETCH, STRETCH, (frames, 3))
    boxes = np.round(CELLS * EDGE * (1 + stretch), 4)
    cube = np.full(3, CELLS * EDGE)
    crystal, _ = md.lattice(8 * CELLS**3, box=cube, kind="diamond")
    sim = md.NVT(POTENTIAL, dt=DT, friction=FRICTION, units="metal")
    schedule = Schedule(steps=STEPS)

    def last(key, x, box):
        given = dict(positions=x, box=box, temperature=TEMPERATURE, masses=MASS)
        state = sim.init(PARAMS, key, **given)
        return solve(sim, PARAMS, state, schedule=schedule, observables=()).state.positions

    keys = jax.random.split(jax.random.key(SEED), frames)
    found = jax.jit(jax.vmap(last))(keys, crystal * (boxes / cube)[:, None], boxes)
    return np.round(np.mod(np.asarray(found), boxes[:, None]), 5), boxes


def main() -> None:
    here = Path(__file__).parent
    positions, boxes = thermal(sum(FRAMES.values()))
    seen = jax.jit(_labels)
    frames = []
    for x, box in zip(positions, boxes, strict=True):
        energy, forces = seen(x, box)
        atoms = ase.Atoms(f"Si{len(x)}", positions=x, cell=box, pbc=True)
        results = dict(energy=round(float(energy), 6), forces=np.round(forces, 5))
        atoms.calc = SinglePointCalculator(atoms, **results)
        frames.append(atoms)
    for name, count in FRAMES.items():
        ase.io.write(here / name, frames[:count], format="extxyz")
        frames = frames[count:]


def _labels(x, box):
    return POTENTIAL.energy(PARAMS, x, box), POTENTIAL.forces(PARAMS, x, box)


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    main()

"""Makes motion.csv and reference.json: how argon's atoms move for two picoseconds.

    python make_reference.py

Rahman's argon (1964, doi:10.1103/PhysRev.136.A405): Lennard-Jones atoms with epsilon/k = 119.8 K
and sigma = 3.405 angstrom, here cut at 8 angstrom and shifted to zero there, 108 of them; his state
of 94.4 K and 1374 kg/m^3, and one at 130 K and 1100 kg/m^3. For each state 16 replicas of Langevin
dynamics, dt = 5 fs and friction 1/ps, of 60,000 steps after 4,000; every 100 steps a window of
motion at constant energy begins.

motion.csv: the mean square displacement after each time, its standard error by blocking, and the
scale on which a fit judges deviations: eight standard errors, for its own simulation is a sixtieth
of this one. reference.json: the pressure, which the fit does not see, and self-diffusion from 0.4
nanoseconds at constant energy of each replica, of these small boxes as they are.
"""

import csv
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import diffsim as ds

ATOMS, CUTOFF, DT = 108, 8.0, 0.005
TEMPERATURES, DENSITIES = (94.4, 130.0), (1374.0, 1100.0)
REPLICAS, STEPS, EVERY, EQUILIBRATION = 16, 60_000, 100, 4_000
WINDOW, LAG = 420, 60
MOTION, WHOLE = 80_000, 40  # steps, and how many between two saves
LOOSER = 8.0  # scales of a fit, in standard errors
HERE = Path(__file__).parent


def main() -> None:
    potential = ds.md.LennardJones(CUTOFF, "shift", path="dense", precision="mixed")
    nve = ds.md.NVE(potential, dt=DT, units="metal")
    window = ds.md.TimeCorrelation(nve, WINDOW, LAG)
    nvt = ds.md.NVT(potential, dt=DT, friction=1.0, units="metal", extra=(window,))
    kelvin = ds.md.unit_system("metal").boltzmann
    params = {"epsilon": jnp.asarray(119.8 * kelvin), "sigma": jnp.asarray(3.405)}
    start = ds.md.state_points(
        atoms=ATOMS,
        temperature=TEMPERATURES,
        density=DENSITIES,
        density_unit="kg/m^3",
        molar_mass=39.948,
        units="metal",
    )
    names = (window.name, "pressure")

    @jax.jit
    def run(key, given):
        state = nvt.init(params, key, **given)
        rest = ds.Schedule(steps=EQUILIBRATION)
        state = ds.solve(nvt, params, state, schedule=rest, observables=()).state
        schedule = ds.Schedule(steps=STEPS, save_every=EVERY)
        sol = ds.solve(nvt, params, state, schedule=schedule, observables=names)
        begun = nve.continue_from(params, sol.state)
        longer = ds.Schedule(steps=MOTION, save_every=WHOLE)
        moved = ds.solve(nve, params, begun, schedule=longer, observables=("positions",))
        return sol.observables, moved.observables["positions"]

    table, facts = [window.times()], []
    for k, temperature in enumerate(TEMPERATURES):
        given = {name: values[k] for name, values in start.items()}
        keys = jax.random.split(jax.random.key(2026 + k), REPLICAS)
        runs = [jax.tree.map(np.asarray, run(key, given)) for key in keys]
        moved, error = mean_and_error([seen[window.name] for seen, _ in runs])
        table += [moved, error, LOOSER * error]
        pressure, its_error = mean_and_error([seen["pressure"] for seen, _ in runs])
        slopes = [
            ds.md.diffusion(x, DT * WHOLE, (2.0, 8.0), blocks=1, units="metal").value
            for _, x in runs
        ]
        scale = ds.convert(1.0, "angstrom^2/ps", "m^2/s")
        facts.append(
            {
                "temperature": temperature,
                "pressure": float(pressure),
                "pressure_stderr": float(its_error),
                "diffusion": scale * float(np.mean(slopes)),
                "diffusion_stderr": scale * float(np.std(slopes, ddof=1) / REPLICAS**0.5),
            }
        )
    names = ["time"] + [f"{what}_{k}" for k in (1, 2) for what in ("msd", "stderr", "scale")]
    with (HERE / "motion.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows([[f"{x:.7g}" for x in row] for row in zip(*table, strict=True)])
    (HERE / "reference.json").write_text(json.dumps(facts, indent=1) + "\n")


def mean_and_error(series: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    errors = [np.asarray(ds.blocking(each, axis=0).stderr) for each in series]
    return np.mean(series, axis=(0, 1)), np.sqrt(np.sum(np.square(errors), axis=0)) / len(series)


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    main()

"""Makes rdf.csv, rdf_merged.csv, knots.csv and reference.json: the structure of a Lennard-Jones
liquid.

    python make_reference.py

16 replicas of 108 atoms at rho* = 0.7, T* = 1, with epsilon = sigma = 1, cut at 2.5 and shifted to
zero there; Langevin dynamics with dt* = 0.005 and friction 1, 100,000 steps each after 10,000,
looked at every 40.

rdf.csv: g(r) in bins of 0.01 with its standard error by blocking; where no pair was seen, that of
one. rdf_merged.csv: the same in bins of 0.05, and the scale on which a fit judges deviations: three
standard errors, for its own simulation is an eighth of this one, but 0.001 at least. knots.csv:
where the sought potential has its knots but for the last, the potential of mean force -kT ln g
there (straight on below the first distance with g > 0.01) less its value at the cutoff, and the
potential that was run. reference.json: pressure and energy, which the fit does not see, and how
many independent configurations g(r) stands for.
"""

import csv
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import diffsim as ds

ATOMS, DENSITY, KT, CUTOFF = 108, 0.7, 1.0, 2.5
REPLICAS, STEPS, EVERY, EQUILIBRATION = 16, 100_000, 40, 10_000
BINS, KNOTS, START = 250, 28, 0.88
MERGED = 5  # of these bins make one of those that are fitted
LEAST = 1e-3  # of g(r): what a fit need not tell from zero
HERE = Path(__file__).parent


def simulated() -> dict[str, np.ndarray]:
    """Each observable (replicas, saves, ...)."""
    simulation = ds.md.NVT(
        ds.md.LennardJones(CUTOFF, "shift", path="dense", precision="mixed"),
        dt=0.005,
        friction=1.0,
        extra=(ds.md.RadialDistribution(bins=BINS, r_max=CUTOFF),),
    )
    params = {"epsilon": jnp.asarray(1.0), "sigma": jnp.asarray(1.0)}
    start = ds.md.state_points(atoms=ATOMS, temperature=[KT], density=[DENSITY])
    given = {name: values[0] for name, values in start.items()}

    @jax.jit
    def run(key):
        state = simulation.init(params, key, **given)
        rest = ds.Schedule(steps=EQUILIBRATION)
        state = ds.solve(simulation, params, state, schedule=rest, observables=()).state
        schedule = ds.Schedule(steps=STEPS, save_every=EVERY)
        names = ("rdf", "pressure", "residual_energy")
        return ds.solve(simulation, params, state, schedule=schedule, observables=names).observables

    seen = [run(key) for key in jax.random.split(jax.random.key(2026), REPLICAS)]
    return {name: np.stack([np.asarray(each[name]) for each in seen]) for name in seen[0]}


def mean_and_error(series: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    errors = [np.asarray(ds.blocking(each, axis=0).stderr) for each in series]
    return series.mean(axis=(0, 1)), np.sqrt(np.sum(np.square(errors), axis=0)) / len(series)


def lennard_jones(r: np.ndarray) -> np.ndarray:
    return 4 * (r**-12 - r**-6 - CUTOFF**-12 + CUTOFF**-6)


def mean_force(r: np.ndarray, centres: np.ndarray, g: np.ndarray) -> np.ndarray:
    """-kT ln g less its value at the cutoff, continued inwards where g is hardly sampled."""
    known = g > 0.01
    potential = -KT * np.log(g[known])
    slope = np.polyfit(centres[known][:5], potential[:5], 1)[0]
    inner = potential[0] + slope * (r - centres[known][0])
    potential = np.where(r < centres[known][0], inner, np.interp(r, centres[known], potential))
    return potential - potential[-1]


def write(name: str, **columns: np.ndarray) -> None:
    with open(HERE / name, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([f"{x:.6g}" for x in row] for row in zip(*columns.values(), strict=True))


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    seen = simulated()
    g, error = mean_and_error(seen["rdf"])
    edges = np.linspace(0, CUTOFF, BINS + 1)
    centres = (edges[1:] + edges[:-1]) / 2
    shells = np.diff(edges**3)
    one = ATOMS / DENSITY / (ATOMS * (ATOMS - 1) / 2 * 4 / 3 * np.pi * shells)
    error = np.maximum(error, one / np.prod(seen["rdf"].shape[:2]))
    write("rdf.csv", r=centres, g=g, g_error=error)
    share = shells / shells.reshape(-1, MERGED).sum(axis=1).repeat(MERGED)
    merged = (seen["rdf"] * share).reshape(*seen["rdf"].shape[:2], -1, MERGED).sum(axis=-1)
    wide, error = mean_and_error(merged)
    middle = centres.reshape(-1, MERGED).mean(axis=1)
    write("rdf_merged.csv", r=middle, g=wide, g_error=error, g_scale=np.hypot(3 * error, LEAST))
    knots = np.linspace(START, CUTOFF, KNOTS)
    start = mean_force(knots, centres, g)
    potentials = {"mean_force": start[:-1], "potential": lennard_jones(knots[:-1])}
    write("knots.csv", r=knots[:-1], **potentials)
    found = {
        "configurations": round(
            sum(float(ds.blocking(each).effective_samples) for each in seen["residual_energy"])
        )
    }
    for name in ("pressure", "residual_energy"):
        value, error = mean_and_error(seen[name])
        found[name] = {"value": float(value), "error": float(error)}
    (HERE / "reference.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""Systems and answers that several tests share."""

import contextlib
import functools
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from diffsim import md

DATA = Path(__file__).parent / "data"


class Nist(NamedTuple):
    """A row of NIST's table for its sample configurations, minimum image, reduced units."""

    config: int
    cutoff: float
    truncation: str
    energy: float
    virial: float
    tail: float  # of the energy


NIST = {
    "1, 3": Nist(1, 3.0, "cut", -4351.5401945439, -568.6654653182, -198.4888837442),
    "1, 4": Nist(1, 4.0, "cut", -4467.4957249480, -1263.8833718721, -83.7689864033),
    "1, 3, force": Nist(1, 3.0, "force_shift", -3870.9248857840, 317.5383460124, 0.0),
    "3, 3": Nist(3, 3.0, "cut", -1146.6674208337, -1164.9496507132, -49.6222209360),
    "3, 4": Nist(3, 4.0, "cut", -1175.3805672254, -1337.1026173010, -20.9422466008),
}
UNIT = {"epsilon": 1.0, "sigma": 1.0}


def slow_but(quick: Collection[Any], rows: Iterable[Any]) -> list[Any]:
    """A table's rows for `parametrize`, those that are not quick in the slow tests alone: each
    compiles for seconds what a quick row, or another file, shows of its kind."""
    return [
        row
        if row in quick
        else pytest.param(*(row if isinstance(row, tuple) else [row]), marks=pytest.mark.slow)
        for row in rows
    ]


@contextlib.contextmanager
def unchecked():
    """Annotations are not enforced: what they forbid reaches the code, as in a user's script."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def nist(config: int) -> tuple[np.ndarray, np.ndarray]:
    structure = md.load_structure(DATA / f"nist_lj_config{config}.xyz")
    return structure.positions, np.asarray(structure.box)


def parameters(epsilon: float = 1.0, sigma: float = 1.0) -> dict[str, jax.Array]:
    return {"epsilon": jnp.asarray(epsilon), "sigma": jnp.asarray(sigma)}


def liquid(atoms: int = 32, density: float = 0.6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Positions and box of atoms displaced from a lattice by a twentieth of their distance."""
    positions, box = md.lattice(atoms, density=density)
    noise = np.random.default_rng(seed).standard_normal(positions.shape)
    return positions + 0.05 * density ** (-1 / 3) * noise, box


def pair_by_pair(potential, params, positions, box):
    """Energy, virial and forces of a Lennard-Jones potential by its definition, in NumPy."""
    eps, sigma = float(params["epsilon"]), float(params["sigma"])
    rc, kind, onset = potential.cutoff, potential.truncation, potential.onset

    def plain(r):
        s6 = (sigma / r) ** 6
        return 4 * eps * (s6**2 - s6), -24 * eps * (2 * s6**2 - s6) / r

    positions = np.asarray(positions)
    i, j = np.triu_indices(len(positions), 1)
    d = positions[i] - positions[j]
    d -= box * np.round(d / box)
    r = np.linalg.norm(d, axis=1)
    near = (r < rc) & (r > 0)
    i, j, d, r = i[near], j[near], d[near], r[near]
    energy, slope = plain(r)
    if kind in ("shift", "force_shift"):
        energy = energy - plain(rc)[0]
    if kind == "force_shift":
        energy, slope = energy - (r - rc) * plain(rc)[1], slope - plain(rc)[1]
    if kind == "switch":
        on = 0.8 * rc if onset is None else onset
        x = np.clip((r**2 - on**2) / (rc**2 - on**2), 0, 1)
        value = 1 - x**3 * (10 - 15 * x + 6 * x**2)
        dvalue = -30 * (x * (1 - x)) ** 2 * 2 * r / (rc**2 - on**2)
        energy, slope = energy * value, slope * value + energy * dvalue
    forces = np.zeros_like(positions)
    push = -(slope / r)[:, None] * d
    np.add.at(forces, i, push)
    np.subtract.at(forces, j, push)
    return energy.sum(), -np.sum(slope * r), forces


def spring(positions, stiffness):
    """Every atom bound to the origin."""
    return 0.5 * stiffness * jnp.sum(positions**2)


def springs(dt: float, ensemble: Any = md.NVE, **options: Any) -> Any:
    """Independent harmonic oscillators as molecular dynamics; params: {"stiffness": k}."""
    return ensemble(md.Potential(spring), dt, **options)


def wells(positions, box, depth):
    """A periodic landscape that stretches with the box."""
    return depth * jnp.sum(1 - jnp.cos(2 * jnp.pi * positions / box))


def set_in_motion(state: md.State, velocities) -> md.State:
    return eqx.tree_at(lambda s: s.velocities, state, jnp.asarray(velocities))


@functools.cache
def argon_box(
    atoms: int = 32,
    density: float = 0.6,
    dt: float = 0.005,
    kind: Any = md.NVE,
    temperature: float = 1.0,
    truncation: Any = "switch",
    **options: Any,
) -> tuple[Any, dict[str, jax.Array], md.State]:
    """A small Lennard-Jones liquid in motion: simulation, parameters, state."""
    positions, box = liquid(atoms, density)
    cutoff = float(np.min(box)) / 2
    potential = md.LennardJones(cutoff, truncation, onset=0.7 * cutoff)
    simulation = kind(potential, dt, **options)
    params = parameters()
    state = simulation.init(
        params, jax.random.key(0), positions=positions, box=box, temperature=temperature
    )
    return simulation, params, state

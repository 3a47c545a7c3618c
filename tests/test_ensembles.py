"""What NVT samples: an equation of state, Maxwell's velocities, Boltzmann's energies.

Each comes in a small size, with room for what few atoms and a short cutoff change, and in the
full one, which is slow.
"""

import csv
import functools
import warnings
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import diffsim as ds
from diffsim import Schedule, blocking, md
from problems import DATA, argon_box, parameters, slow_but, springs

FULL = pytest.param("full", marks=pytest.mark.slow)


def equation_of_state(temperature: float, density: float) -> tuple[float, float]:
    """Pressure and residual energy an atom, by Thol et al. (2016), doi:10.1063/1.4945000."""
    with Path(DATA / "lj_eos_thol2016.csv").open() as file:
        for row in csv.DictReader(file):
            if float(row["T_star"]) == temperature and float(row["rho_star"]) == density:
                return float(row["p_star"]), float(row["u_residual_star"])
    raise LookupError((temperature, density))


@eqx.filter_jit
def equilibrium(simulation, params, state, equilibration, steps, save_every, observables):
    """Observables of one run, or of a batch of them, after equilibration."""

    def one(state):
        schedule = Schedule(steps=equilibration + steps, save_every=save_every)
        sol = ds.solve(simulation, params, state, schedule=schedule, observables=observables)
        early = equilibration // save_every
        return {name: value[early:] for name, value in sol.observables.items()}

    batched = jnp.ndim(state.step) == 1
    return (eqx.filter_vmap(one) if batched else one)(state)


# Atoms, longest cutoff, steps, and what is allowed beyond 4 standard errors in p and u.
SIZES = {"small": (108, 3.0, 12_000, 0.1, 0.05), "full": (500, 3.5, 60_000, 0.03, 0.015)}


@pytest.mark.slow  # to compile
@pytest.mark.parametrize("density", slow_but([0.8], [0.5, 0.8]))
@pytest.mark.parametrize("size", ["small", FULL])
def test_nvt_averages_are_those_of_the_equation_of_state(size, density):
    atoms, longest, steps, more_p, more_u = SIZES[size]
    positions, box = md.lattice(atoms, density=density)
    potential = md.LennardJones(min(longest, float(box[0]) / 2), tail=True)
    nvt = md.NVT(potential, 0.005, 1.0)
    start = dict(positions=positions, box=box, temperature=2.0)
    state = nvt.init(parameters(), jax.random.key(1), **start)
    names = ("pressure", "residual_energy", "temperature")
    seen = equilibrium(nvt, parameters(), state, steps // 10, steps, 10, names)
    p, u, temperature = (blocking(np.asarray(seen[name])) for name in names)
    exact_p, exact_u = equation_of_state(2.0, density)
    assert abs(p.mean - exact_p) < 4 * p.stderr + more_p
    assert abs(u.mean - exact_u) < 4 * u.stderr + more_u
    assert abs(temperature.mean - 2.0) < 4 * temperature.stderr
    # Errors small enough for the comparison to mean something.
    assert p.stderr < more_p and u.stderr < more_u


def replicas(simulation, params, count, **start):
    """States of `count` runs that differ in velocities and noise."""
    keys = jax.random.split(jax.random.key(2), count)
    return eqx.filter_jit(eqx.filter_vmap(lambda key: simulation.init(params, key, **start)))(keys)


@functools.cache
def thermal_liquid(size):
    """Kinetic energies of a liquid: (3N, kT, at the O step, at the end of the step)."""
    count, steps = {"small": (16, 4_000), "full": (32, 40_000)}[size]
    nvt, params, state = argon_box(
        atoms=16, density=0.5, dt=0.01, kind=md.NVT, friction=5.0, temperature=1.5
    )
    start = dict(positions=state.positions, box=state.box, temperature=1.5)
    states = replicas(nvt, params, count, **start)
    names = ("kinetic_energy", "velocities")
    seen = equilibrium(nvt, params, states, 500, steps, 100, names)
    last = 0.5 * np.sum(np.asarray(seen["velocities"]) ** 2, axis=(-1, -2))
    return 48, 1.5, np.asarray(seen["kinetic_energy"]), last


@functools.cache
def thermal_springs(size):
    """The same of oscillators at ω h = 0.8, with their potential energies: time steps that large
    show where the kinetic energy is taken."""
    count, steps = {"small": (16, 4_000), "full": (64, 40_000)}[size]
    nvt, params = springs(0.8, md.NVT, friction=1.0), {"stiffness": jnp.asarray(1.0)}
    x = np.random.default_rng(0).standard_normal((4, 3))
    start = dict(positions=x, box=np.full(3, 50.0), temperature=1.5)
    states = replicas(nvt, params, count, **start)
    names = ("kinetic_energy", "velocities", "potential_energy")
    seen = equilibrium(nvt, params, states, 500, steps, 20, names)
    last = 0.5 * np.sum(np.asarray(seen["velocities"]) ** 2, axis=(-1, -2))
    potential = np.asarray(seen["potential_energy"])
    return 12, 1.5, np.asarray(seen["kinetic_energy"]), last, potential


def kinetic_test(freedom, kT, energies):
    """physical_validation's test of the distribution: by how many errors mean and width are off,
    and the p-value of the distribution as a whole."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import physical_validation as pv
    data = pv.data.SimulationData(
        units=pv.data.UnitData(
            kb=1.0,
            energy_str="ε",
            energy_conversion=1.0,
            length_str="σ",
            length_conversion=1.0,
            volume_str="σ³",
            volume_conversion=1.0,
            temperature_str="ε/k",
            temperature_conversion=1.0,
            pressure_str="ε/σ³",
            pressure_conversion=1.0,
            time_str="τ",
            time_conversion=1.0,
        ),
        ensemble=pv.data.EnsembleData("NVT", natoms=freedom // 3, volume=1.0, temperature=kT),
        system=pv.data.SystemData(
            natoms=freedom // 3, nconstraints=0, ndof_reduction_tra=0, ndof_reduction_rot=0
        ),
        observables=pv.data.ObservableData(kinetic_energy=np.ravel(energies)),
    )
    test: Any = functools.partial(
        pv.kinetic_energy.distribution, data, verbosity=0, data_is_uncorrelated=True
    )
    mean, width = test(strict=False, bootstrap_seed=1)
    return abs(mean), abs(width), test(strict=True)


@pytest.mark.slow  # to compile
@pytest.mark.parametrize("system", slow_but([thermal_liquid], [thermal_liquid, thermal_springs]))
@pytest.mark.parametrize("size", ["small", FULL])
def test_kinetic_energies_are_those_of_maxwell(system, size):
    freedom, kT, energies, *_ = system(size)
    mean, width, p_value = kinetic_test(freedom, kT, energies)
    assert p_value > 0.001
    assert mean < 4 and width < 4


def test_the_end_of_a_step_is_colder():
    """⟨K⟩ is low there by ω²h²/4, 16 %: the test above sees that, and the observable is not it."""
    freedom, kT, _, energies, _ = thermal_springs("small")
    assert energies.mean() == pytest.approx(freedom * kT / 2 * (1 - 0.8**2 / 4), rel=0.02)
    mean, _, p_value = kinetic_test(freedom, kT, energies)
    assert mean > 10 and p_value < 1e-6


@pytest.mark.parametrize("size", ["small", FULL])
def test_potential_energies_are_those_of_boltzmann(size):
    """U/kT of oscillators has a gamma distribution, at any time step: BAOAB's positions are exact.
    With it go the temperature of configurations, ⟨|∇U|²⟩/⟨∇²U⟩ = 2k⟨U⟩/(3N k), and that of heat."""
    freedom, kT, _, _, energies = thermal_springs(size)
    average = blocking(np.asarray(energies).T)
    assert average.correlation_time.mean() < 1.6
    of_each = 2 * average.mean / freedom
    error = of_each.std(ddof=1) / np.sqrt(len(of_each))
    assert abs(of_each.mean() - kT) < 4 * error < 0.04 * kT
    independent = energies[:, ::2].ravel() / kT
    assert stats.kstest(independent, stats.gamma(freedom / 2).cdf).pvalue > 0.001
    heat = np.var(energies) / kT**2
    assert heat == pytest.approx(freedom / 2, rel=0.15 if size == "small" else 0.03)


def test_temperature_is_that_of_all_degrees_of_freedom():
    """A thermostat moves the centre of mass too: 3N in NVT; 3N - 3 where momentum is conserved."""
    nvt, params, state = argon_box(atoms=8, density=0.4, kind=md.NVT, friction=1.0)
    seen = nvt.observe(params, state)
    assert seen["temperature"] == pytest.approx(float(2 * seen["kinetic_energy"] / 24), rel=1e-12)
    volume = float(np.prod(state.box))
    virial = nvt.potential.virial(params, state.positions, state.box)
    expected = (8 * 1.0 + float(virial) / 3) / volume
    assert seen["pressure"] == pytest.approx(expected, rel=1e-12)
    nve, params, state = argon_box(atoms=8, density=0.4)
    seen = nve.observe(params, state)
    assert seen["temperature"] == pytest.approx(float(2 * seen["kinetic_energy"] / 21), rel=1e-12)
    expected = (2 / 3 * float(seen["kinetic_energy"]) + float(virial) / 3) / volume
    assert seen["pressure"] == pytest.approx(expected, rel=1e-12)


def test_noise_belongs_to_its_step():
    """A run in two parts, or begun again, repeats itself to the bit; another key does not."""
    nvt, params = springs(0.1, md.NVT, friction=1.0), {"stiffness": jnp.asarray(1.0)}
    positions = np.stack([np.ones(3), np.full(3, 2.0)])
    start = dict(positions=positions, box=np.full(3, 9.0), temperature=1.0)
    state = nvt.init(params, jax.random.key(0), **start)
    run = eqx.filter_jit(lambda state, n: ds.solve(nvt, params, state, schedule=Schedule(steps=n)))
    whole = run(state, 6).state
    parts = run(run(state, 3).state, 3).state
    assert eqx.tree_equal(whole, parts)
    other = eqx.tree_at(lambda s: s.key, state, jax.random.key(99))
    assert not np.allclose(run(other, 6).state.positions, whole.positions)

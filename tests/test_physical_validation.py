"""The ensembles by physical_validation: ratios of distributions at two states, and the convergence
of integrators."""

import functools
import warnings
from typing import Any

import equinox as eqx
import jax
import numpy as np
import pytest

import diffsim as ds
from diffsim import Schedule, md
from problems import liquid, parameters
from test_ensembles import equilibrium, replicas

pytestmark = pytest.mark.slow

ATOMS, REPLICAS = 16, 32


@functools.cache
def library():
    """Importing it warns, and switches types of JAX."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import physical_validation as pv
    return pv


def units() -> Any:
    names = ("energy", "length", "volume", "temperature", "pressure", "time")
    given: dict[str, Any] = {f"{name}_str": name for name in names}
    given |= {f"{name}_conversion": 1.0 for name in names}
    given["pressure_conversion"] = 1 / 6.022140857e-2  # the library's P V is in bar nm³ a molecule
    return library().data.UnitData(kb=1.0, **given)


def data(seen: dict[str, np.ndarray], dt: float = 1.0, **state: Any) -> Any:
    """Observables of replicas as one simulation of physical_validation."""
    pv = library()
    kind = "NPT" if "pressure" in state else "NVT"
    return pv.data.SimulationData(
        units=units(),
        dt=dt,
        system=pv.data.SystemData(
            natoms=ATOMS, nconstraints=0, ndof_reduction_tra=0, ndof_reduction_rot=0
        ),
        ensemble=pv.data.EnsembleData(kind, natoms=ATOMS, **state),
        observables=pv.data.ObservableData(**{k: np.ravel(v) for k, v in seen.items()}),
    )


def quantiles(one: Any, two: Any) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check = library().ensemble.check
        found = check(one, two, verbosity=0, bootstrap_seed=1, data_is_uncorrelated=True)
    return np.abs(np.asarray(found))


ENSEMBLES = {
    "Langevin": functools.partial(md.NVT, friction=2.0),
    "chain": functools.partial(md.NoseHoover, relaxation=0.4),
    "rescaling": functools.partial(md.VelocityRescaling, relaxation=0.4),
    "pressure": functools.partial(md.NPT, friction=2.0, relaxation=0.5, compressibility=0.3),
}


@functools.cache
def sampled(kind: str, temperature: float, pressure: float = 0.0) -> Any:
    positions, box = liquid(ATOMS, 0.4)
    potential = md.LennardJones(1.6 if kind != "pressure" else 1.3, "switch")
    simulation = ENSEMBLES[kind](potential, 0.008)
    start = dict(positions=positions, box=box, temperature=temperature)
    names = ["potential_energy"]
    state: dict[str, Any] = dict(temperature=temperature)
    if kind == "pressure":
        start["pressure"] = state["pressure"] = pressure
        names.append("volume")
    else:
        state["volume"] = float(np.prod(box))
    states = replicas(simulation, parameters(), REPLICAS, **start)
    seen = equilibrium(simulation, parameters(), states, 1_050, 24_000, 150, tuple(names))
    return data({name: np.asarray(value) for name, value in seen.items()}, **state)


@pytest.mark.parametrize("kind", ["Langevin", "chain", "rescaling"])
def test_potential_energies_at_two_temperatures(kind):
    """ln p₁(U)/p₂(U) is a straight line of slope 1/kT₂ - 1/kT₁."""
    assert quantiles(sampled(kind, 1.6), sampled(kind, 1.85)).max() < 4
    wrong = sampled(kind, 1.85)
    wrong = data(
        {"potential_energy": wrong.observables.potential_energy}, temperature=2.2, volume=1
    )
    assert quantiles(sampled(kind, 1.6), wrong).max() > 6


def test_volumes_and_energies_at_two_states():
    """The same in U and V, at two temperatures and at two pressures."""
    one = sampled("pressure", 1.8, 0.6)
    assert quantiles(one, sampled("pressure", 1.8, 0.75)).max() < 4
    assert quantiles(one, sampled("pressure", 2.0, 0.6)).max() < 4


@pytest.mark.parametrize("kind", ["energy", "chain"])
def test_integrators_converge(kind):
    """Fluctuations of what is conserved fall with the square of the time step."""
    pv = library()
    positions, box = liquid(ATOMS, 0.4)
    runs = []
    for dt in (0.004, 0.002, 0.001):
        make = md.NVE if kind == "energy" else functools.partial(md.NoseHoover, relaxation=0.5)
        simulation = make(md.LennardJones(1.6, "switch", onset=1.0), dt)
        given = dict(positions=positions, box=box, temperature=1.5)
        state = simulation.init(parameters(), jax.random.key(2), **given)
        name = "total_energy" if kind == "energy" else "conserved_energy"
        schedule = Schedule(steps=round(1.2 / dt), save_every=round(0.012 / dt))
        go = eqx.filter_jit(
            lambda sim, state, schedule, name: ds.solve(
                sim, parameters(), state, schedule=schedule, observables=(name,)
            )
        )
        series = np.asarray(go(simulation, state, schedule, name).observables[name])
        runs.append(data({"constant_of_motion": series}, dt=dt, temperature=1.5, volume=1.0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert pv.integrator.convergence(runs, verbose=False) < 0.35

"""Nosé and Hoover's chain and velocity rescaling: what they conserve, sample and run back through.

Averages come in a small size and in the full one, which is slow.
"""

import functools
import itertools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import diffsim as ds
from diffsim import ConfigError, Conserved, Schedule, blocking, md
from problems import argon_box, parameters, slow_but, springs, unchecked
from test_ensembles import equilibrium, kinetic_test, replicas
from test_reversible import there_and_back

FULL = pytest.param("full", marks=pytest.mark.slow)
KINDS = {
    "chain": functools.partial(md.NoseHoover, relaxation=0.4),
    "one link": functools.partial(md.NoseHoover, relaxation=0.4, links=1),
    "rescaling": functools.partial(md.VelocityRescaling, relaxation=0.4),
}


def small_liquid(kind, dt=0.004, **options):
    return argon_box(atoms=8, density=0.4, dt=dt, kind=KINDS[kind], temperature=1.5, **options)


def tethered(dt):
    """Oscillators, which are not chaotic, under a chain."""
    chain = functools.partial(md.NoseHoover, relaxation=1.5, zero_momentum=False)
    simulation, params = springs(dt, chain), {"stiffness": jnp.asarray(1.3)}
    x = np.random.default_rng(0).standard_normal((4, 3))
    start = dict(positions=x, box=np.full(3, 50.0), temperature=1.5)
    return simulation, params, simulation.init(params, jax.random.key(0), **start)


@eqx.filter_jit
def run(simulation, params, state, schedule, laws=(), observables=("conserved_energy",)):
    return ds.solve(
        simulation, params, state, schedule=schedule, laws=laws, observables=observables
    )


@pytest.mark.parametrize("kind", slow_but(["chain", "rescaling"], KINDS))
def test_the_energy_of_atoms_and_bath_is_conserved(kind):
    """While that of the atoms alone is not."""
    simulation, params, state = small_liquid(kind)
    law = Conserved("conserved_energy", rtol=0.02)
    schedule, names = Schedule(steps=1000, save_every=10), ("conserved_energy", "total_energy")
    sol = run(simulation, params, state, schedule, (law,), names).check()
    assert sol.ledger.ok.all()
    bare, whole = (float(np.std(sol.observables[name])) for name in reversed(names))
    assert bare > 20 * whole


def test_the_chain_is_of_second_order():
    """The scatter of the conserved energy of oscillators falls by four a halving."""
    scatter = []
    for dt in (0.06, 0.03, 0.015):
        simulation, params, state = tethered(dt)
        sol = run(simulation, params, state, Schedule(steps=round(12 / dt), save_every=1))
        scatter.append(float(np.std(sol.observables["conserved_energy"])))
    assert all(3.7 < a / b < 4.3 for a, b in itertools.pairwise(scatter)), scatter


@pytest.mark.parametrize("kind", slow_but(["chain"], ["chain", "one link"]))
def test_the_way_back_ends_on_the_start(kind):
    simulation, params, state = small_liquid(kind, 0.005)
    masses = jnp.asarray(np.random.default_rng(1).uniform(0.5, 3.0, state.atoms))
    state = eqx.tree_at(lambda s: s.masses, state, masses)
    start, end, back = there_and_back(simulation, params, state, 5000)
    assert simulation.same(start, back) and not simulation.same(start, end)
    assert back.rest.step == 0 and end.rest.step == 5000
    moved = np.abs(simulation.from_exact(end).positions - state.positions).max()
    assert moved > 0.1


def test_exact_steps_follow_the_floating_ones():
    """Those of oscillators, which are not chaotic; a floating step undoes itself to rounding."""
    simulation, params, state = tethered(0.1)
    _, end, _ = there_and_back(simulation, params, state, 60)
    sol = run(simulation, params, state, Schedule(steps=60))
    found = simulation.from_exact(end)
    for leaf, other in zip(
        jax.tree.leaves(found.bath), jax.tree.leaves(sol.state.bath), strict=True
    ):
        np.testing.assert_allclose(leaf, other, atol=1e-9)
    np.testing.assert_allclose(found.positions, sol.state.positions, atol=1e-9)
    np.testing.assert_allclose(found.velocities, sol.state.velocities, atol=1e-9)
    assert found.kinetic == pytest.approx(float(sol.state.kinetic), rel=1e-9)
    back = simulation.unstep(params, simulation.step(params, state))
    np.testing.assert_allclose(back.velocities, state.velocities, atol=1e-13)
    np.testing.assert_allclose(back.bath.velocity, state.bath.velocity, atol=1e-13)


@pytest.mark.slow  # to compile
def test_gradients_agree():
    """Of Reversible with autodiff through the chain, in every observable that depends on it."""
    simulation, params, state = small_liquid("chain", 0.005)

    def loss(params, adjoint):
        schedule = Schedule(steps=40, save_every=10)
        names = ("conserved_energy", "temperature", "pressure")
        sol = ds.solve(
            simulation, params, state, schedule=schedule, adjoint=adjoint, observables=names
        )
        return sum(jnp.sum(value**2) for value in sol.observables.values())

    slopes = [
        jax.jit(jax.grad(functools.partial(loss, adjoint=a)))(params)
        for a in (ds.Reversible(), ds.RecursiveCheckpoint())
    ]
    for name in params:
        assert float(slopes[0][name]) == pytest.approx(float(slopes[1][name]), rel=1e-7)


@pytest.mark.parametrize("kind", ["chain", "rescaling"])
def test_runs_do_not_depend_on_where_they_are_cut(kind):
    simulation, params, state = small_liquid(kind)
    go = eqx.filter_jit(
        lambda state, n: ds.solve(simulation, params, state, schedule=Schedule(steps=n)).state
    )
    assert eqx.tree_equal(go(state, 6), go(go(state, 3), 3))
    assert np.abs(simulation.observe(params, go(state, 6))["momentum"]).max() < 1e-12


BAD = {
    "relaxation": [0.0, -1.0, float("nan"), 0.001, "long"],
    "dt": [0.0, -0.1, float("inf")],
    "links": [0, 1.5, True],
}


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [(k, key, v) for k in ("chain", "rescaling") for key, values in BAD.items() for v in values],
)
def test_bad_values_are_refused(kind: Any, key, value):
    if kind == "rescaling" and key == "links":
        return
    ensemble = md.NoseHoover if kind == "chain" else md.VelocityRescaling
    given: dict[str, Any] = dict(dt=0.005, relaxation=0.5) | {key: value}
    with unchecked(), pytest.raises(ConfigError, match=key):
        ensemble(md.LennardJones(2.5), **given)


SIZES = {"small": (16, 4_000, 100), "full": (32, 40_000, 100)}


@pytest.mark.slow  # to compile
@pytest.mark.parametrize("kind", slow_but(["rescaling"], ["chain", "rescaling"]))
@pytest.mark.parametrize("size", ["small", FULL])
def test_kinetic_energies_are_those_of_maxwell(kind, size):
    """The whole distribution, of 3N - 3 degrees of freedom, in a liquid."""
    count, steps, every = SIZES[size]
    simulation, params, state = argon_box(
        atoms=16, density=0.5, dt=0.01, kind=KINDS[kind], temperature=1.5
    )
    start = dict(positions=state.positions, box=state.box, temperature=1.5)
    states = replicas(simulation, params, count, **start)
    seen = equilibrium(simulation, params, states, 500, steps, every, ("kinetic_energy",))
    kinetic = np.asarray(seen["kinetic_energy"])
    mean, width, p_value = kinetic_test(45, 1.5, kinetic)
    assert p_value > 0.001
    assert mean < 4 and width < 4
    assert stats.kstest(kinetic[:, ::2].ravel() / 1.5, stats.gamma(22.5).cdf).pvalue > 0.001


# Monte Carlo of 500 atoms, cutoff 3 with tail (NIST): temperature, density, U/N, p.
NIST_NVT = [(0.85, 0.82, -5.79508, 0.55355), (0.90, 0.86, -5.97521, 1.5781)]
THERMOSTATS = {**KINDS, "Langevin": functools.partial(md.NVT, friction=1.0)}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["chain", "rescaling", "Langevin"])
@pytest.mark.parametrize(("temperature", "density", "energy", "pressure"), NIST_NVT)
def test_averages_are_those_of_monte_carlo(kind, temperature, density, energy, pressure):
    """Within 3 standard errors and 0.01 in U, 0.03 in p."""
    positions, box = md.lattice(500, density=density)
    simulation = THERMOSTATS[kind](md.LennardJones(3.0, tail=True), 0.004)
    start = dict(positions=positions, box=box, temperature=temperature)
    state = simulation.init(parameters(), jax.random.key(1), **start)
    names = ("pressure", "residual_energy", "temperature")
    seen = equilibrium(simulation, parameters(), state, 5_000, 25_000, 10, names)
    p, u, found = (blocking(np.asarray(seen[name])) for name in names)
    assert abs(u.mean - energy) < 3 * u.stderr + 0.01
    assert abs(p.mean - pressure) < 3 * p.stderr + 0.03
    assert abs(found.mean - temperature) < 4 * found.stderr + 1e-3
    assert u.stderr < 0.01 and p.stderr < 0.05

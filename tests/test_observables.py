"""What series and trajectories tell, against closed forms: response functions, diffusion, spectra,
structure."""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffsim as ds
from diffsim import ConfigError, Schedule, convert, md
from diffsim._statistics import of_means
from problems import argon_box, springs, unchecked
from test_ensembles import equilibrium, replicas

RNG = np.random.default_rng


def many(function, draw, runs=200):
    """Mean of a statistic over runs, the scatter of it, and its mean error bar."""
    found = [function(*draw(RNG(seed))) for seed in range(runs)]
    values = np.array([f.value for f in found])
    return values.mean(), values.std(ddof=1), np.mean([f.stderr for f in found]), values


def gamma_volumes(rng, n=4000, exponent=9.0):
    """Volumes of an ideal gas at constant pressure, correlated over some saves."""
    x = rng.standard_normal((n, 18))
    for i in range(1, n):
        x[i] = 0.8 * x[i - 1] + 0.6 * x[i]
    return 0.5 * np.sum(x**2, axis=1) * (exponent / 9)


@pytest.fixture(scope="module")
def volumes():
    return [gamma_volumes(RNG(seed)) for seed in range(60)]


def test_error_bars_of_fluctuations_are_the_scatter(volumes):
    """κ_T of gamma-distributed volumes V^8 exp(-V), kT = 1.5: 1/1.5, with honest error bars."""
    found = [md.compressibility(v[200:], 1.5) for v in volumes]
    values = np.array([f.value for f in found])
    scatter = values.std(ddof=1)
    assert abs(values.mean() - 1 / 1.5) < 4 * scatter / np.sqrt(len(values))
    assert np.mean([f.stderr for f in found]) == pytest.approx(scatter, rel=0.3)


def test_response_functions_of_an_ideal_gas(volumes):
    """U = 0, H = P V: C_P - C_V = N + 1, α = 1/T, all in units of k."""
    v, kT, pressure = np.concatenate([v[200:] for v in volumes]), 1.5, 1.5
    heat = md.heat_capacity(pressure * v, kT, freedom=24)
    assert abs(heat.value - (9 + 12)) < 4 * heat.stderr < 1
    expansion = md.thermal_expansion(v, pressure * v, kT)
    assert abs(expansion.value - 1 / kT) < 4 * expansion.stderr < 0.05
    vapour = md.heat_of_vaporisation(np.full(100, -60.0), 10, kT)
    assert vapour.value == pytest.approx(6 + kT) and vapour.stderr == 0


def test_units_of_response_functions(volumes):
    v = volumes[0] * 1e3
    bare = md.compressibility(v, 100.0, units="metal")
    assert bare.unit == "1/(bar)"
    kT = 100.0 * md.METAL.boltzmann
    expected = np.var(v) / (v.mean() * kT) / md.METAL.pressure_factor
    assert bare.value == pytest.approx(expected, rel=1e-9)
    assert bare.to("1/MPa").value == pytest.approx(10 * expected, rel=1e-9)
    heat = md.heat_capacity(0.01 * v, 100.0, units="metal")
    joule = np.var(0.01 * v) / (kT * 100) * convert(1.0, "eV/K", "J/mol/K")
    assert heat.to("J/mol/K").value == pytest.approx(joule, rel=1e-9)


def test_functions_of_means_have_exact_derivatives():
    rng = RNG(0)
    a, b = 2 + rng.standard_normal((2, 5000))
    found = of_means(lambda a, b: np.exp(a) / b, a, b)
    value = np.exp(a.mean()) / b.mean()
    assert found.mean == pytest.approx(value)
    expected = value * np.sqrt(a.var() + b.var() / b.mean() ** 2) / np.sqrt(5000)
    assert found.stderr == pytest.approx(expected, rel=0.2)


def test_the_dielectric_constant_of_free_dipoles():
    """Onsager's moments: ⟨M²⟩ = 3 ε₀ V kT (ε - 1)."""
    kT = 300 * md.METAL.boltzmann
    vacuum = convert(1.0, "elementary_charge^2/(vacuum_permittivity*angstrom)", "eV")
    volume, epsilon = 3e4, 70.0
    width = np.sqrt((epsilon - 1) * volume * kT / vacuum)
    dipole = width * RNG(1).standard_normal((20_000, 3))
    found = md.dielectric_constant(dipole, volume, 300.0)
    assert abs(found.value - epsilon) < 4 * found.stderr < 6
    # a unit charge moved by 1 Å in 1 nm³ at 300 K: M²/(3 ε₀ V kT)
    one = md.dielectric_constant(np.array([[1.0, 0, 0], [-1.0, 0, 0]] * 8), 1000.0, 300.0)
    assert one.value - 1 == pytest.approx(180.9513 / 3 / 1000 / (300 * 8.617333262e-5), rel=1e-4)
    with pytest.raises(ConfigError, match="reduced"):
        md.dielectric_constant(dipole, volume, 300.0, units="lj")


def test_displacements_and_correlations_by_definition():
    x = np.cumsum(RNG(2).standard_normal((40, 3, 3)), axis=0) + 100.0
    found, wanted = md.mean_square_displacement(x, 30), np.zeros(30)
    v, products = md.velocity_autocorrelation(x - 100.0, 30), np.zeros(30)
    for k in range(30):
        wanted[k] = np.mean(np.sum((x[k:] - x[: 40 - k]) ** 2, axis=2))
        products[k] = np.mean(np.sum((x[k:] - 100) * (x[: 40 - k] - 100), axis=2))
    np.testing.assert_allclose(found, wanted, atol=1e-9)
    np.testing.assert_allclose(v, products, rtol=1e-10)
    for lags in (0, 41):
        with pytest.raises(ConfigError, match="lags"):
            md.mean_square_displacement(x, lags)


def test_spectra_of_oscillators():
    """A peak at its frequency, of area one."""
    t = 0.01 * np.arange(4000)
    frequency, density = md.vibrational_spectrum(np.cos(2 * np.pi * 3.0 * t), 0.01)
    assert frequency[np.argmax(density)] == pytest.approx(3.0, abs=0.02)
    assert np.sum(density) * frequency[1] == pytest.approx(1.0, rel=0.01)
    decay = md.vibrational_spectrum(np.exp(-2.0 * t), 0.01)[1]
    assert decay[0] == pytest.approx(4 / 2.0, rel=0.05)  # 4 ∫ C dt


FREE = {"friction": 2.0, "temperature": 1.5, "mass": 0.8}


@functools.cache
def free_particles():
    """Langevin motion without forces: positions and velocities of 64 atoms."""
    nvt = springs(0.05, md.NVT, friction=FREE["friction"])
    params = {"stiffness": jnp.asarray(0.0)}
    x = RNG(0).uniform(size=(64, 3)) * 10
    start = dict(positions=x, box=np.full(3, 10.0), temperature=FREE["temperature"])
    state = nvt.init(params, jax.random.key(5), masses=FREE["mass"], **start)
    seen = equilibrium(nvt, params, state, 500, 20_000, 4, ("positions", "velocities"))
    return {name: np.asarray(value) for name, value in seen.items()}


def test_free_particles_diffuse_as_langevin_says():
    """D = kT/(m γ), C(t) = 3 kT/m exp(-γ t)."""
    seen = free_particles()
    exact = FREE["temperature"] / FREE["mass"] / FREE["friction"]
    found = md.diffusion(seen["positions"], 0.2, (3.0, 12.0))
    assert abs(found.value - exact) < 4 * found.stderr < 0.15 * exact
    correlation = md.velocity_autocorrelation(seen["velocities"], 10)
    expected = 3 * FREE["temperature"] / FREE["mass"] * np.exp(-2.0 * 0.2 * np.arange(10))
    np.testing.assert_allclose(correlation, expected, atol=0.03 * expected[0])
    with pytest.raises(ConfigError, match="window"):
        md.diffusion(seen["positions"], 0.2, (3.0, 1e4))


def test_an_einstein_crystal_has_the_heat_capacity_of_dulong_and_petit():
    """Var(U)/kT² = 3N/2 k of the springs, 3N k with the kinetic part."""
    nvt, params = springs(0.3, md.NVT, friction=1.0), {"stiffness": jnp.asarray(1.0)}
    x = RNG(0).standard_normal((4, 3))
    start = dict(positions=x, box=np.full(3, 50.0), temperature=1.5)
    states = replicas(nvt, params, 32, **start)
    seen = equilibrium(nvt, params, states, 500, 6000, 20, ("potential_energy",))
    found = [md.heat_capacity(u, 1.5, freedom=12) for u in np.asarray(seen["potential_energy"])]
    values = np.array([f.value for f in found])
    error = values.std(ddof=1) / np.sqrt(len(values))
    assert abs(values.mean() - 12) < 4 * error + 0.05 < 0.8
    assert np.mean([f.stderr for f in found]) == pytest.approx(error * np.sqrt(32), rel=0.35)


def test_structure_of_an_ideal_gas_and_of_a_crystal():
    box = np.full(3, 5.0)
    nvt, params = springs(0.1, md.NVT, friction=1.0), {"stiffness": jnp.asarray(0.0)}
    observer = md.StructureFactor(largest=6)
    state = nvt.init(params, jax.random.key(0), positions=np.eye(3), box=box, temperature=1.0)
    see = jax.jit(jax.vmap(lambda x: observer(params, _at(state, x))))
    gas = np.asarray(see(jnp.asarray(RNG(3).uniform(size=(400, 27, 3)) * 5.0)))
    assert np.abs(gas.mean(axis=0) - 1).max() < 5 * gas.std(axis=0).max() / 20
    assert gas.mean() == pytest.approx(1, rel=0.01)
    crystal = np.asarray(see(jnp.asarray(md.lattice(27, box=box, kind="sc")[0])[None]))[0]
    k = observer.wave_numbers(5.0) * 5.0 / (2 * np.pi)
    assert crystal[np.isclose(k, 3)] == pytest.approx(27 * 3 / 15)  # 6 of 30 vectors with |n| = 3
    np.testing.assert_allclose(crystal[k < 2.9], 0, atol=1e-10)


def _at(state, positions):
    return eqx.tree_at(lambda s: s.positions, state, positions)


def test_coordination_counts_neighbours():
    """Of an ideal gas: those in a sphere."""
    r = (np.arange(50) + 0.5) * 0.1
    sphere = 4 / 3 * np.pi * 3.33**3
    assert md.coordination(r, np.ones(50), 0.7, 3.33) == pytest.approx(0.7 * sphere, rel=1e-12)


def test_coordination_of_saves_has_an_error_bar():
    """The mean of that of each save; its error is the scatter over runs."""
    r = (np.arange(30) + 0.5) * 0.1
    runs = 1 + 0.2 * RNG(6).standard_normal((60, 200, 30))
    found = [md.coordination(r, g, 0.7, 2.5, saves=True) for g in runs]
    assert found[0].unit == "1"
    plain = md.coordination(r, runs[0].mean(axis=0), 0.7, 2.5)
    assert isinstance(plain, float) and found[0].value == pytest.approx(plain, rel=1e-12)
    scatter = np.std([f.value for f in found], ddof=1)
    assert np.mean([f.stderr for f in found]) == pytest.approx(scatter, rel=0.3)


@pytest.mark.parametrize("curve", [md.mean_square_displacement, md.velocity_autocorrelation])
def test_curves_of_stretches_have_error_bars(curve):
    """Of independent steps: the mean of the stretches' curves, and their scatter over runs."""
    runs = RNG(7).standard_normal((40, 160, 4, 3))
    found = [curve(x, 10, blocks=8) for x in runs]
    parts = [curve(part, 10) for part in runs[0].reshape(8, 20, 4, 3)]
    np.testing.assert_allclose(found[0].values, np.mean(parts, axis=0), rtol=1e-12)
    scatter = np.std([f.values for f in found], axis=0, ddof=1)
    error = np.mean([f.stderr for f in found], axis=0)
    np.testing.assert_allclose(error, scatter, rtol=0.4, atol=1e-12)
    uneven = curve(runs[0][:157], 10, blocks=8)  # 19 saves a stretch
    assert uneven.values.shape == uneven.stderr.shape == (10,)
    assert isinstance(curve(runs[0], 10), np.ndarray)


WORDS: Any = ["a"]
ONE, TWO = np.ones(20), np.ones((20, 2))
R = (np.arange(50) + 0.5) * 0.1
WALK = np.zeros((40, 2, 3))
REFUSED = {
    "heat 2-D": (lambda: md.heat_capacity(TWO, 1.0), "energy: has the shape (20, 2)"),
    "heat empty": (lambda: md.heat_capacity(ONE[:0], 1.0), "energy: has 0 entries"),
    "heat words": (lambda: md.heat_capacity(WORDS, 1.0), "energy: must be an array of numbers"),
    "heat cold": (lambda: md.heat_capacity(ONE, -1.0), "temperature: must be a positive"),
    "compressed": (lambda: md.compressibility(TWO, 1.0), "volume: has the shape (20, 2)"),
    "expansion": (lambda: md.thermal_expansion(ONE, ONE[:7], 1.0), "enthalpy: has 7 entries"),
    "expansion 2-D": (lambda: md.thermal_expansion(ONE, TWO, 1.0), "enthalpy: has the shape"),
    "vapour": (lambda: md.heat_of_vaporisation(ONE, 0, 1.0), "molecules: must be a positive"),
    "dipole": (lambda: md.dielectric_constant(TWO, 1.0, 300.0), "dipole: has the shape (20, 2)"),
    "volume": (lambda: md.dielectric_constant(np.ones((20, 3)), ONE[:4], 300.0), "volume: has 4"),
    "no volume": (lambda: md.dielectric_constant(np.ones((20, 3)), 0.0, 300.0), "volume: must"),
    "viscosity": (lambda: md.finite_size_correction(1.0, 0.0, 1.0), "viscosity: must be"),
    "edge": (lambda: md.finite_size_correction(1.0, 1.0, -2.0), "edge: must be"),
    "no spectrum": (lambda: md.vibrational_spectrum(ONE[:0], 0.1), "correlation: has 0 entries"),
    "still": (lambda: md.vibrational_spectrum(0 * ONE, 0.1), "correlation: must begin"),
    "spacing": (lambda: md.vibrational_spectrum(ONE, 0.0), "spacing: must be"),
    "limit": (lambda: md.coordination(R, np.ones(50), 0.7, 30.0), "limit: is beyond the last bin"),
    "negative": (lambda: md.coordination(R, np.ones(50), 0.7, -1.0), "limit: must be"),
    "bins": (lambda: md.coordination(R, np.ones(40), 0.7, 3.0), "g: has 40 entries where r has 50"),
    "saves": (lambda: md.coordination(R, np.ones((9, 50)), 0.7, 3.0), "g: has the shape (9, 50)"),
    "uneven": (lambda: md.coordination(R**2, np.ones(50), 0.7, 3.0), "r: must be the middles"),
    "blocks": (lambda: md.diffusion(WALK, 0.1, (0.2, 1.0), blocks=0), "blocks: must be a whole"),
    "window": (lambda: md.diffusion(WALK, 0.1, (0.2, np.nan)), "window: must be two finite"),
    "flat": (lambda: md.diffusion(WALK[:, :, 0], 0.1, (0.2, 1.0)), "positions: has the shape"),
    "stretch": (lambda: md.mean_square_displacement(WALK, blocks=1), "blocks: must be a whole"),
    "short": (lambda: md.mean_square_displacement(WALK, blocks=21), "trajectory: has 40 entries"),
    "lags": (lambda: md.mean_square_displacement(WALK, 11, blocks=4), "lags: no such lag"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_observable_is_made_of_is_refused(name):
    call, says = REFUSED[name]
    with unchecked(), pytest.raises(ConfigError) as caught:
        call()
    assert str(caught.value).startswith(says)


def test_yeh_and_hummer():
    assert md.finite_size_correction(1.5, 2.0, 10.0) == pytest.approx(2.837297 * 1.5 / 120 / np.pi)


def test_windows_of_free_motion_and_of_springs():
    """C(t) of a window: 3 kT/m t² without forces; 3 kT/m cos(ωt) with springs."""
    nve = springs(0.01)
    x = RNG(4).standard_normal((50, 3))
    params = {"stiffness": jnp.asarray(0.0)}
    state = nve.init(params, jax.random.key(1), positions=x, box=np.full(3, 9.0), temperature=1.5)
    moved = md.TimeCorrelation(nve, 40, 10)
    square = jnp.mean(jnp.sum(state.velocities**2, axis=1))
    np.testing.assert_allclose(moved(params, state), square * moved.times() ** 2, rtol=1e-9)
    still = eqx.tree_at(lambda s: s.positions, state, 0 * state.positions)
    params = {"stiffness": jnp.asarray(4.0)}
    turned = md.TimeCorrelation(nve, 100, 20, of="velocity")
    expected = square * np.cos(2.0 * turned.times())
    np.testing.assert_allclose(turned(params, still), expected, rtol=1e-3)
    odd: Any = "distance"
    with unchecked(), pytest.raises(ConfigError, match="displacement"):
        md.TimeCorrelation(nve, 10, 5, of=odd)
    with pytest.raises(ConfigError, match="multiple"):
        md.TimeCorrelation(nve, 10, 3)


@pytest.mark.slow  # to compile
def test_the_gradient_of_a_correlation_is_complete():
    """Of springs: ⟨|x(t) - x(0)|²⟩ = 6 kT/k (1 - cos ωt), by the motion and by where it starts; for
    the centre, which a window sets at rest, 3 kT/k (1 - cos ωt)²."""
    atoms, kT = 16, 1.5
    window = md.TimeCorrelation(springs(0.05), 40, 10)
    nvt = springs(0.1, md.NVT, friction=1.0, extra=(window,))
    params = {"stiffness": jnp.asarray(1.0)}
    x = RNG(0).standard_normal((atoms, 3))
    start = dict(positions=x, box=np.full(3, 50.0), temperature=kT)
    states = replicas(nvt, params, 32, **start)

    def mean(params):
        def one(state):
            schedule = Schedule(steps=10_000, save_every=50)
            given: dict[str, Any] = dict(
                schedule=schedule, adjoint=ds.Reweight(), observables=(window.name,)
            )
            sol = ds.solve(nvt, params, state, **given)
            return jnp.mean(sol.observables[window.name], axis=0)

        return jax.vmap(one)(states)

    def exact(k):
        turned = 1 - jnp.cos(jnp.sqrt(k) * window.times())
        return 3 * kT / k * (2 * turned * (1 - 1 / atoms) + turned**2 / atoms)

    along = lambda p: jax.jvp(mean, (p,), ({"stiffness": jnp.ones(())},))  # noqa: E731
    expected = jax.jvp(exact, (jnp.ones(()),), (jnp.ones(()),))
    for found, wanted in zip(eqx.filter_jit(along)(params), expected, strict=True):
        error = np.std(found, axis=0, ddof=1) / np.sqrt(len(found))
        off = np.abs(np.mean(found, axis=0) - wanted)
        # velocities at the end of a step are cold by ω²h²/4
        assert np.all(off < 4 * error + 4e-3 * np.abs(expected[0]))
        assert np.all(error < 0.12 * np.abs(expected[0]).max())


def test_a_liquid_has_its_window_as_an_observable():
    """With tiles and without, by name and with a unit."""
    window = md.TimeCorrelation(argon_box(atoms=8, density=0.4)[0], 4, 2, of="velocity")
    nvt, params, state = argon_box(
        atoms=8, density=0.4, kind=md.NVT, friction=1.0, extra=(window,), units="metal"
    )
    assert nvt.units()["velocity_correlation"] == "(angstrom)^2/(ps)^2"
    assert nvt.observe(params, state)["velocity_correlation"].shape == (2,)


def opposite_charges(**words):
    """Two atoms of charges 2 and -2, one of them beyond the box's boundary, and their dipole."""
    nvt = springs(0.05, md.NVT, friction=1.0, extra=(md.Dipole([2.0, -2.0], **words),))
    x = np.array([[4.0, 1.0, 1.0], [11.0, 1.0, -2.0]])
    start = dict(positions=x, box=np.full(3, 10.0), temperature=1.0)
    params = {"stiffness": jnp.asarray(1.0)}
    return nvt, params, nvt.init(params, jax.random.key(0), **start)


def test_the_dipole_of_two_charges():
    nvt, params, state = opposite_charges()
    np.testing.assert_allclose(nvt.observe(params, state)["dipole"], [-14.0, 0.0, 6.0])
    assert nvt.units()["dipole"] == "1"
    assert md.Dipole([1.0]).unit_in(md.METAL) == "e*(angstrom)"
    nvt, params, state = opposite_charges(parameter="stiffness", name="M")
    seen = lambda k: nvt.observe({"stiffness": k}, state)["M"]  # noqa: E731
    np.testing.assert_allclose(seen(0.5), [-7.0, 0.0, 3.0])
    np.testing.assert_allclose(jax.jacfwd(seen)(0.5), [-14.0, 0.0, 6.0])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (dict(charges=[1.0, -1.0, 0.0]), "charges: has 3 entries for 2 atoms"),
        (dict(charges=[1.0, -1.0], parameter="stifness"), "did you mean stiffness"),
        (dict(charges=[1.0, np.nan]), "charges: must be finite"),
        (dict(charges=[[1.0], [-1.0]]), "charges: has the shape (2, 1)"),
    ],
)
def test_a_dipole_of_other_charges_is_refused(words, says):
    params, state = opposite_charges()[1:]
    with unchecked(), pytest.raises(ConfigError) as caught:
        md.Dipole(**words)(params, state)
    assert says in str(caught.value)


@pytest.mark.slow  # to compile
def test_a_run_of_water_has_a_dielectric_constant():
    """M = q Σ (x_H + x_H' - 2 x_O), at rest 0.489 e Å, 2.35 D, of a molecule."""
    waters = 8
    dipole = md.Dipole(np.tile([-2.0, 1.0, 1.0], waters), parameter="charge")
    kind: dict[str, Any] = dict(units="metal", tail=False, flexible=True, path="dense")
    potential = md.Water(waters, 3.0, md.Ewald(5), **kind)
    nvt = md.NVT(potential, 0.0005, 10.0, "metal", extra=(dipole,))
    given = md.water_parameters("SPC/E", "metal", flexible=True)
    params = {k: jnp.asarray(v) for k, v in given.items()}
    start = md.water_box(waters, units="metal", density=900.0)

    @eqx.filter_jit
    def run(params, start):
        state = nvt.init(params, jax.random.key(0), temperature=300.0, **start)
        schedule, seen = Schedule(steps=200, save_every=5), ("dipole", "positions")
        return ds.solve(nvt, params, state, schedule=schedule, observables=seen)

    sol = run(params, start).check()
    o, h1, h2 = np.moveaxis(np.asarray(sol.observables["positions"]).reshape(40, 8, 3, 3), 2, 0)
    each = float(params["charge"]) * (h1 + h2 - 2 * o)
    assert np.linalg.norm(each, axis=-1).mean() == pytest.approx(0.489, rel=0.1)
    found = np.asarray(sol.observables["dipole"])
    np.testing.assert_allclose(found, each.sum(axis=1), atol=1e-10)
    epsilon = md.dielectric_constant(found, float(np.prod(start["box"])), 300.0)
    assert epsilon.value > 1 and epsilon.stderr > 0 and epsilon.unit == "1"

"""Rigid molecules at constant pressure: an ideal gas of them, the pressure of their centres."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from diffsim import ConfigError, md
from test_constraints import molecules
from test_ensembles import equilibrium, replicas
from test_npt import off, on_volume

KT, PRESSURE, BODIES = 1.5, 0.01, 4
PRESSED = {"pressure": 1.0}
BATH: dict[str, Any] = dict(friction=1.0, relaxation=1.0, compressibility=100.0, every=1)


@pytest.mark.slow  # to compile
@pytest.mark.parametrize(
    "shape", ["isotropic", pytest.param("anisotropic", marks=pytest.mark.slow)]
)
def test_volumes_of_an_ideal_gas_of_molecules(shape):
    """exp(-P V/kT) V^N of two waters, a dimer and an atom: N = 4, not 9; and they stay rigid."""
    x, masses, rigid = molecules()
    options: dict[str, Any] = BATH | {"shape": shape, "constraints": rigid}
    npt = md.NPT(md.Potential(on_volume), 0.05, **options)
    params = {"strength": jnp.asarray(0.0)}
    start = dict(positions=x, box=np.full(3, 9.0), temperature=KT, pressure=PRESSURE, masses=masses)
    states = replicas(npt, params, 64, **start)
    names = ("volume", "pressure", "kinetic_energy", "positions", "box")
    seen = equilibrium(npt, params, states, 400, 6000, 50, names)
    seen = {name: np.asarray(value) for name, value in seen.items()}
    exact = stats.gamma(BODIES + 1, scale=KT / PRESSURE)
    assert off(seen["volume"], exact.mean()) < 4
    assert off(seen["volume"], exact.mean() + KT / PRESSURE) > 5
    assert off((seen["volume"] - exact.mean()) ** 2, exact.var()) < 4
    assert off(seen["pressure"], PRESSURE) < 4
    assert off(seen["kinetic_energy"], 20 / 2 * KT) < 4  # 27 coordinates less 7 distances
    i, j = rigid.ends
    d = seen["positions"][..., i, :] - seen["positions"][..., j, :]
    d = d - seen["box"][..., None, :] * np.round(d / seen["box"][..., None, :])
    lengths = np.broadcast_to(rigid.lengths, d.shape[:-1])
    np.testing.assert_allclose(np.linalg.norm(d, axis=-1), lengths, atol=1e-9)


@pytest.fixture(scope="module")
def water():
    """Eight waters, some of their atoms in the next box."""
    count = 8
    given = md.water_box(count, units="real")
    rigid = md.rigid_water(count, units="real")
    potential = md.Water(count, 3.0, md.Ewald(5))
    rng = np.random.default_rng(0)
    x = given["positions"] + given["box"] * rng.integers(-1, 2, size=given["positions"].shape)
    return potential, given | {"positions": x}, rigid


@pytest.mark.slow  # to compile
def test_the_pressure_is_that_of_the_centres(water):
    """-dU/dV where the box moves centres of mass alone, whichever image of an atom is at hand; each
    edge by itself as well."""
    potential, given, rigid = water
    params = {k: jnp.asarray(v) for k, v in md.water_parameters("SPC/E", "real").items()}
    bath: dict[str, Any] = BATH | {
        "constraints": rigid,
        "compressibility": 1e-4,
        "relaxation": 100.0,
    }
    npt = md.NPT(potential, 1.0, units="real", **bath)
    state = npt.init(params, jax.random.key(0), temperature=300.0, pressure=1.0, **given)
    x, box, masses = (np.asarray(v) for v in (state.positions, state.box, state.masses))
    triples, weights = x.reshape(-1, 3, 3), masses.reshape(-1, 3, 1)
    whole = triples - box * np.round((triples - triples[:, :1]) / box)
    centres = np.sum(weights * whole, axis=1, keepdims=True) / np.sum(weights, axis=1)[:, None]

    @jax.jit
    def energy(x, box):
        beyond = npt.potential.volume_energy(params, 24, box)
        return potential.driving_energy(params, x, box) + beyond

    def grown(scale):
        return float(energy((whole + (scale - 1) * centres).reshape(-1, 3), scale * box))

    step = 1e-5
    edges = [np.where(np.arange(3) == k, step, 0.0) for k in range(3)]
    along = np.asarray([(grown(1 - e) - grown(1 + e)) / (2 * step) for e in edges])
    virials = eqx.filter_jit(npt._virials)(params, state)
    np.testing.assert_allclose(virials, along, rtol=1e-6, atol=1e-5)
    assert state.kT is not None
    expected = (8 * float(state.kT) + along.sum() / 3) / np.prod(box)
    found = eqx.filter_jit(npt.observe)(params, state)["pressure"] / npt.unit_system.pressure_factor
    assert float(found) == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow  # to compile
def test_samples_are_seen_with_the_forces_of_other_parameters(water):
    """What holds a bond depends on the forces: those of the parameters that ask."""
    potential, given, rigid = water
    params = {k: jnp.asarray(v) for k, v in md.water_parameters("SPC/E", "real").items()}
    other = params | {"charge": jnp.asarray(0.40)}
    for sim, more in (
        (md.NVT(potential, 1.0, 0.01, "real", constraints=rigid), {}),
        (
            md.NPT(potential, 1.0, 0.01, 100.0, 1e-4, 5, "isotropic", "real", (), rigid),
            {"pressure": 1.0},
        ),
    ):
        state = sim.init(params, jax.random.key(0), temperature=300.0, **given, **more)
        observe = eqx.filter_jit(sim.observe)
        seen = observe(other, sim.sample(state))["pressure"]
        expected = observe(other, eqx.filter_jit(sim.prepare)(other, state))["pressure"]
        assert float(seen) == pytest.approx(float(expected), rel=1e-12)
        assert float(seen) != pytest.approx(float(observe(params, state)["pressure"]), rel=1e-3)


def test_rigid_water_is_that_of_its_model():
    rigid = md.rigid_water(2, model="TIP3P", units="gromacs")
    angle = np.deg2rad(104.52)
    expected = [0.09572, 0.09572, 2 * 0.09572 * np.sin(angle / 2)] * 2
    np.testing.assert_allclose(rigid.lengths, expected, rtol=1e-12)
    assert rigid.pairs[3:] == ((3, 4), (3, 5), (4, 5))
    with pytest.raises(ConfigError, match="no such water"):
        md.rigid_water(2, model="TIP9P")

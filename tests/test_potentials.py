"""Any JAX-MD energy, Equinox module or function as a potential: silicon and a small network."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffsim as ds
from diffsim import md

jax_md = pytest.importorskip("jax_md")
from jax_md import energy, partition, space  # noqa: E402

SILICON = 28.0855
LATTICE = 5.431
EPSILON = 2.16826


def _silicon(cells: int) -> tuple[np.ndarray, np.ndarray]:
    atoms = 8 * cells**3
    return md.lattice(atoms, box=[cells * LATTICE] * 3, kind="diamond")


def _moved(x: np.ndarray, by: float, seed: int = 0) -> jax.Array:
    return jnp.asarray(x + np.random.default_rng(seed).normal(0, by, x.shape))


# Stillinger-Weber silicon: an energy whose parameters JAX-MD takes when it is made.


def _stillinger_weber(box: np.ndarray):
    displacement, _ = space.periodic(box)
    return lambda x, epsilon: energy.stillinger_weber(displacement, epsilon=epsilon)(x)


def _stillinger_weber_list(box: np.ndarray, **options) -> md.Potential:
    displacement, _ = space.periodic(box)

    def make(epsilon):
        return energy.stillinger_weber_neighbor_list(
            displacement, box, epsilon=epsilon, dr_threshold=0.4, **options
        )

    def energy_fn(x, neighbor, epsilon):
        return make(epsilon)[1](x, neighbor)

    return md.Potential(energy_fn, neighbor_fn=make(EPSILON)[0])


@pytest.fixture(scope="module")
def silicon():
    x, box = _silicon(2)
    return x, box, {"epsilon": jnp.asarray(EPSILON)}


def test_an_energy_is_taken_as_it_is(silicon):
    x, box, _ = silicon
    plain = md.Potential(energy.stillinger_weber(space.periodic(box)[0]))
    per_atom = plain.energy({}, jnp.asarray(x), jnp.asarray(box)) / len(x)
    # The cohesive energy that Stillinger and Weber fitted their potential to.
    np.testing.assert_allclose(per_atom, -2 * EPSILON, rtol=1e-4)
    assert np.abs(plain.forces({}, jnp.asarray(x), jnp.asarray(box))).max() < 1e-3
    assert np.isnan(plain.virial({}, jnp.asarray(x), jnp.asarray(box)))


def test_a_neighbour_list_changes_nothing(silicon):
    x, box, params = silicon
    x, box = _moved(x, 0.1), jnp.asarray(box)
    whole, listed = md.Potential(_stillinger_weber(silicon[1])), _stillinger_weber_list(silicon[1])
    neighbours = listed.allocate(params, x, box)
    w = jnp.cos(x)
    np.testing.assert_allclose(
        listed.energy(params, x, box), whole.energy(params, x, box), rtol=1e-12
    )
    for a, b in zip(
        jax.tree.leaves(jax.jit(listed.pullback)(params, x, box, w, neighbours)),
        jax.tree.leaves(jax.jit(whole.pullback)(params, x, box, w)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9 * np.abs(b).max())


@pytest.mark.parametrize("listed", [False, True])
def test_silicon_conserves_energy_and_its_parameter_is_found(silicon, listed):
    x, box, truth = silicon
    potential = _stillinger_weber_list(box) if listed else md.Potential(_stillinger_weber(box))
    sim = md.NVE(potential, 0.001, "metal")
    conditions = dict(positions=x, box=box, temperature=600.0, masses=SILICON)
    start = sim.init(truth, jax.random.key(1), **conditions)

    @eqx.filter_jit
    def run(params, start, adjoint=ds.RecursiveCheckpoint()):  # noqa: B008
        return ds.solve(
            sim,
            params,
            start,
            schedule=ds.Schedule(steps=40, save_every=10),
            adjoint=adjoint,
            laws=(ds.Conserved("total_energy", rtol=2e-3),),
            observables=("positions", "temperature"),
        )

    reference = run(truth, start).check()
    assert reference.ledger.ok.all()
    assert not listed or int(reference.state.neighbours.rebuilds) >= 1

    # One Gauss-Newton step in log ε from 5 % off, and another, come to the truth.
    def deviation(z):
        params = {"epsilon": EPSILON * jnp.exp(z)}
        found = run(params, start, ds.Direct()).observables["positions"]
        return (found - reference.observables["positions"]).ravel()

    z = jnp.asarray(0.05)
    for _ in range(3):
        r, slope = jax.jvp(deviation, (z,), (jnp.ones(()),))
        z = z - jnp.vdot(slope, r) / jnp.vdot(slope, slope)
    assert abs(z) < 1e-6

    def loss(params):
        return jnp.sum((run(params, start).observables["positions"] - jnp.asarray(x)) ** 2)

    slope = jax.grad(loss)(truth)["epsilon"]
    h = 1e-4
    ends = [loss({"epsilon": jnp.asarray(EPSILON + s * h)}) for s in (1, -1)]
    np.testing.assert_allclose(slope, (ends[0] - ends[1]) / (2 * h), rtol=1e-5)

"""Silicon, metals and molecules: published energies, derivatives, invariances."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree
from scipy.spatial.transform import Rotation

from diffsim import ConfigError, md
from problems import slow_but


def arrays(params: dict[str, float]) -> dict[str, Any]:
    return {k: jnp.asarray(v, float) for k, v in params.items()}


SW = md.StillingerWeber(3.78), arrays(md.stillinger_weber_silicon())
TERSOFF = md.Tersoff(3.0), arrays(md.tersoff_silicon())
SILVER = md.EAM(4.8, onset=4.0), arrays(md.sutton_chen("Ag"))
GUPTA = (
    md.EAM(4.8, md.Exponential(), md.Exponential(), onset=4.0),
    arrays(
        {
            "pair_A": 2 * 0.1028,
            "pair_p": 10.928,
            "pair_r0": 2.8921,
            "density_A": 1.178**2,
            "density_p": 2 * 3.139,
            "density_r0": 2.8921,
            "embedding_A": 1.0,
        }
    ),
)
NETWORK = md.Neural(3.2), {"net": md.MessagePassing(3.2, jax.random.key(3), features=4, radial=4)}
ALL = {"stillinger-weber": SW, "tersoff": TERSOFF, "sutton-chen": SILVER, "gupta": GUPTA}
ALL["network"] = NETWORK
TENSORS = md.MessagePassing(3.2, 3, features=4, rounds=1, radial=4, degree=2)
ALL["tensors"] = md.Neural(3.2), {"net": TENSORS}
QUICK = ("sutton-chen", "gupta", "network", "tensors")


@eqx.filter_jit
def everything(potential, params, x, box, neighbours=None):
    return (
        potential.energy(params, x, box, neighbours),
        potential.forces(params, x, box, neighbours),
        potential.virial(params, x, box, neighbours),
    )


@eqx.filter_jit
def gradient(potential, params, x, box):
    return eqx.filter_grad(lambda p: potential.energy(p, x, box))(params)


def crystal(edge: float, kind: str = "diamond", cells: int = 2) -> tuple[Any, Any]:
    sites = {"diamond": 8, "fcc": 4}[kind]
    x, box = md.lattice(sites * cells**3, box=np.full(3, cells * edge), kind=kind)
    return jnp.asarray(x), jnp.asarray(box)


@pytest.mark.parametrize(
    ("name", "edge", "energy"),
    [("stillinger-weber", 5.431, -4.3363), ("tersoff", 5.432, -4.6296)],
)
def test_silicon_has_its_published_cohesive_energy(name, edge, energy):
    """Balamane, Halicioglu and Tiller 1992, doi:10.1103/PhysRevB.46.2250: -2ε, and Tersoff's."""
    potential, params = ALL[name]
    edges = (edge, 0.999 * edge, 1.001 * edge)
    found = [float(everything(potential, params, *crystal(a))[0]) / 64 for a in edges]
    assert found[0] == pytest.approx(energy, abs=3e-4)
    assert found[0] < min(found[1:])  # the lattice constant is the published one too


def lattice_sum(power: float, reach: float) -> float:
    """Σ (a/r)ⁿ over an fcc crystal up to `reach` in units of a."""
    n = np.arange(-math.ceil(2 * reach), math.ceil(2 * reach) + 1)
    sites = np.stack(np.meshgrid(n, n, n), -1).reshape(-1, 3)
    r = np.sqrt((sites[sites.sum(1) % 2 == 0] ** 2).sum(1) / 4)
    return float(np.sum(r[(r > 0) & (r < reach)] ** -power))


def test_a_metal_is_its_lattice_sums():
    """Sutton and Chen's form, shell by shell; silver's cohesive energy of 2.96 eV as published is
    that of all shells."""
    epsilon, a, c, n, m = 2.5415e-3, 4.09, 144.41, 12, 6
    x, box = crystal(a, "fcc", 3)
    potential = md.EAM(6.0, onset=5.9)  # between shells: nothing is switched
    found = float(everything(potential, arrays(md.sutton_chen("Ag")), x, box)[0]) / len(x)

    def shells(reach):
        return epsilon * (0.5 * lattice_sum(n, reach) - c * math.sqrt(lattice_sum(m, reach)))

    assert found == pytest.approx(shells(5.9 / a), rel=1e-10)
    assert shells(12.0) == pytest.approx(-2.96, abs=0.02)


def disordered(seed: int, atoms: int = 20) -> tuple[Any, Any]:
    box = np.array([7.6, 8.0, 9.7])
    x, _ = md.lattice(atoms, box=box)
    return jnp.asarray(x + np.random.default_rng(seed).uniform(-0.3, 0.3, x.shape)), jnp.asarray(
        box
    )


@pytest.mark.parametrize("name", slow_but(ALL.keys() - {"network", "stillinger-weber"}, ALL))
def test_derivatives_against_differences(name):
    potential, params = ALL[name]
    if name in ("sutton-chen", "gupta"):
        potential = md.EAM(3.79, potential.pair, potential.density)
    x, box = disordered(0)
    energy, forces, virial = everything(potential, params, x, box)
    w, h = jnp.asarray(np.random.default_rng(1).normal(size=x.shape)), 1e-5
    of = lambda p, x, box: float(everything(potential, p, x, box)[0])  # noqa: E731
    size = float(np.abs(forces).max())
    slope = -(of(params, x + h * w, box) - of(params, x - h * w, box)) / (2 * h)
    np.testing.assert_allclose(jnp.vdot(w, forces), slope, rtol=1e-6, atol=1e-7 * size)
    scaled = [of(params, x * (1 + s * h), box * (1 + s * h)) for s in (1, -1)]
    np.testing.assert_allclose(virial, -(scaled[0] - scaled[1]) / (2 * h), rtol=1e-6)
    grads = gradient(potential, params, x, box)
    leaves, tree = jax.tree.flatten(eqx.filter(params, eqx.is_array))
    static = eqx.filter(params, eqx.is_array, inverse=True)
    for k, (leaf, grad) in enumerate(zip(leaves, jax.tree.leaves(grads), strict=True)):
        assert np.isfinite(grad).all()
        index = tuple(n // 2 for n in leaf.shape)
        d = 1e-5 * (float(abs(leaf[index])) or 1.0)

        def at(step, k=k, leaf=leaf, index=index):
            moved = [*leaves[:k], leaf.at[index].add(step), *leaves[k + 1 :]]
            return of(eqx.combine(jax.tree.unflatten(tree, moved), static), x, box)

        slope = (at(d) - at(-d)) / (2 * d)
        np.testing.assert_allclose(grad[index], slope, rtol=2e-5, atol=1e-9 * abs(energy) / d)


@pytest.mark.parametrize("name", slow_but(QUICK, ALL))
@settings(max_examples=4)
@given(kind=st.sampled_from(["alone", "coincident", "one pair", "at the cutoff"]))
def test_gradients_are_finite_in_every_corner(name, kind):
    potential, params = ALL[name]
    x = 8.0 * np.arange(5)[:, None] * np.ones(3)
    if kind == "coincident":
        x[1], x[2] = x[0], x[0] + (2.3, 0.2, 0)
    if kind == "one pair":
        x[1] = x[0] + (2.4, 0, 0)
    if kind == "at the cutoff":
        x[1] = x[0] + (potential.cutoff, 0, 0)
        x[2] = x[0] + (0, 2.4, 0)
    box = jnp.full(3, 60.0)
    found = everything(potential, params, jnp.asarray(x), box)
    grads = gradient(potential, params, jnp.asarray(x), box)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((found, grads)))
    if kind == "alone":
        np.testing.assert_array_equal(found[1], 0)


@pytest.mark.parametrize("name", slow_but(QUICK, ["tersoff", "network"]))
def test_energies_know_no_direction_place_or_order(name):
    potential, params = ALL[name]
    x, _ = disordered(4, 12)
    free = jnp.full(3, 60.0)  # a cluster in empty space
    x = x / 1.3
    energy, forces, _ = everything(potential, params, x, free)
    turn = jnp.asarray(Rotation.random(rng=np.random.default_rng(1)).as_matrix())
    order = np.random.default_rng(2).permutation(len(x))
    for moved, wanted in (
        (x @ turn.T, forces @ turn.T),
        (x + jnp.asarray([3.0, -70.0, 11.0]), forces),
        (-x, -forces),
        (x[order], forces[order]),
    ):
        other, other_forces, _ = everything(potential, params, moved, free)
        np.testing.assert_allclose(other, energy, rtol=1e-10)
        np.testing.assert_allclose(other_forces, wanted, atol=1e-10 * np.abs(forces).max())
    assert np.abs(np.sum(forces, axis=0)).max() < 1e-11 * np.abs(forces).max() * len(x)


@pytest.mark.parametrize("name", slow_but(QUICK, ["stillinger-weber", "sutton-chen", "network"]))
def test_energies_and_forces_are_smooth_at_the_cutoff(name):
    potential, params = ALL[name]
    reach = 1.8 * 2.0951 if name == "stillinger-weber" else potential.cutoff
    box = jnp.full(3, 40.0)

    def at(r):
        x = jnp.asarray([[0.0, 0, 0], [2.4, 0, 0], [0, r, 0], [0, r, 2.4]])
        return everything(potential, params, x, box)[:2]

    inside, outside = at(reach * (1 - 1e-5)), at(reach * (1 + 1e-5))
    np.testing.assert_allclose(inside[0], outside[0], atol=1e-10)
    np.testing.assert_allclose(inside[1], outside[1], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["network", "tersoff"])
def test_a_neighbour_list_changes_nothing(name):
    potential, params = ALL[name]
    x, box = crystal(5.43, "diamond", 2)
    x = x + jnp.asarray(np.random.default_rng(0).normal(0, 0.1, x.shape))
    listed = type(potential)(potential.cutoff, path="list")
    neighbours = listed.allocate(params, x, box)
    found = everything(listed, params, x, box, neighbours)
    wanted = everything(potential, params, x, box)
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-9)


def test_what_cannot_be_is_refused():
    box = np.full(3, 20.0)
    with pytest.raises(ConfigError, match="cutoff: is under aσ"):
        md.StillingerWeber(3.5).check(md.stillinger_weber_silicon(), box)
    with pytest.raises(ConfigError, match=r"cutoff: is under R \+ D"):
        md.Tersoff(2.9).check(md.tersoff_silicon(), box)
    with pytest.raises(ConfigError, match="repeat the cell"):
        md.Tersoff(3.0).check(md.tersoff_silicon(), np.full(3, 5.4))
    with pytest.raises(ConfigError, match="needs the parameters"):
        md.EAM(5.0).check({"pair_epsilon": 1.0}, box)
    with pytest.raises(ConfigError, match="element"):
        md.sutton_chen("Fe")


class OfPairs(nnx.Module):
    """Σ of a network of r², in the box."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.inner = nnx.Linear(1, 4, param_dtype=float, rngs=rngs)
        self.outer = nnx.Linear(4, 1, param_dtype=float, rngs=rngs)
        self.scale = nnx.Variable(jnp.asarray(0.1))  # no parameter: it stays

    def __call__(self, positions, box):
        i, j = np.triu_indices(len(positions), 1)
        d = positions[i] - positions[j]
        d = d - box * jnp.round(d / box)
        s = self.scale[...] * jnp.sum(d * d, axis=1, keepdims=True)
        return jnp.sum(self.outer(jnp.tanh(self.inner(s))))


def test_a_module_of_flax_is_a_potential():
    model: Any = OfPairs()
    potential, params = md.FlaxModule(model), {"net": md.FlaxModule.initial(model)}
    potential.check(params, np.ones(3))
    x, box = disordered(2, 5)
    flat, unflat = ravel_pytree((params, x))
    value = jax.jit(lambda flat: potential.energy(unflat(flat)[0], unflat(flat)[1], box))
    slope, h = jax.jit(jax.grad(value))(flat), 1e-5
    assert float(value(flat)) == pytest.approx(float(model(x, box)), rel=1e-14)
    along = np.random.default_rng(4).normal(size=flat.shape)
    of_weights = np.arange(len(flat)) < len(flat) - x.size
    for v in (along * of_weights, along * ~of_weights):
        found = (float(value(flat + h * v)) - float(value(flat - h * v))) / (2 * h)
        assert found == pytest.approx(float(slope @ v), rel=1e-7)
    with pytest.raises(ConfigError, match="net"):
        potential.check({"net": 1, "other": 2}, np.ones(3))


@pytest.mark.parametrize(("name", "near"), [("Cuu", "Cu"), ("cu", "Cu"), ("Xx", None)])
def test_a_metal_that_is_none_suggests_a_near_one(name, near):
    with pytest.raises(ConfigError, match="allowed: Ni, Cu") as caught:
        md.sutton_chen(name)
    assert caught.value.suggestion == near

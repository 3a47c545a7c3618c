"""Bonds, angles, dihedrals and what they are composed to."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffsim import ConfigError, md

BOX = jnp.asarray([11.0, 12.0, 13.0])
BUTANE = np.asarray([[0, 1], [1, 2], [2, 3]])


def chain(phi: float, theta: float = 1.9, r: float = 1.5) -> np.ndarray:
    """Four atoms with these internal coordinates, across the box's boundary."""
    b = np.array([r, 0.0, 0.0])
    a = r * np.array([-math.cos(math.pi - theta), -math.sin(math.pi - theta), 0.0])
    c = r * np.array(
        [-math.cos(theta), -math.sin(theta) * math.cos(phi), -math.sin(theta) * math.sin(phi)]
    )
    x = np.stack([a, np.zeros(3), b, b + c])
    return x + np.array([10.5, 0.1, 12.8])


def wrapped(x: np.ndarray) -> jax.Array:
    return jnp.asarray(np.mod(x, BOX))


TERMS = {
    "bonds": (md.Bonds(BUTANE, kinds=[0, 1, 0]), {"k": [90.0, 80.0], "r0": 1.45}),
    "angles": (md.Angles([[0, 1, 2], [1, 2, 3]]), {"k": 60.0, "theta0": 1.8}),
    "dihedrals": (
        md.Dihedrals([[0, 1, 2, 3]] * 3, periodicity=[1, 2, 3], kinds=[0, 1, 2]),
        {"k": [1.4, -0.2, 3.1], "phi0": [0.0, math.pi, 0.1]},
    ),
}
PARAMS = {n: {k: jnp.asarray(v, float) for k, v in p.items()} for n, (_, p) in TERMS.items()}
FIELD = md.Sum({name: term for name, (term, _) in TERMS.items()})


@jax.jit
def parts_and_sum(params, x, box):
    return FIELD.components(params, x, box), FIELD.energy(params, x, box)


@pytest.mark.parametrize("phi", [0.3, 1.0, 2.5, -1.2, -3.0])
def test_energies_are_those_of_the_internal_coordinates(phi):
    theta, r = 1.95, 1.52
    parts, total = parts_and_sum(PARAMS, wrapped(chain(phi, theta, r)), BOX)
    assert parts["bonds"] == pytest.approx(0.5 * (r - 1.45) ** 2 * (90 + 80 + 90))
    assert parts["angles"] == pytest.approx(0.5 * 60 * (theta - 1.8) ** 2 * 2)
    k, start = TERMS["dihedrals"][1]["k"], TERMS["dihedrals"][1]["phi0"]
    wanted = sum(k[n] * (1 + math.cos((n + 1) * phi - start[n])) for n in range(3))
    assert parts["dihedrals"] == pytest.approx(wanted)
    assert total == pytest.approx(float(sum(parts.values())))


@jax.jit
def derivatives(params, x, box):
    return (
        FIELD.energy(params, x, box),
        FIELD.forces(params, x, box),
        FIELD.virial(params, x, box),
        FIELD.pullback(params, x, box, jnp.cos(3 * x)),
        jax.grad(FIELD.energy)(params, x, box),
    )


def test_derivatives_against_differences():
    x, h = wrapped(chain(1.1)), 1e-6
    _, forces, virial, back, grads = derivatives(PARAMS, x, BOX)
    w = jnp.cos(3 * x)
    up, down = (derivatives(PARAMS, x + s * h * w, BOX) for s in (1, -1))
    np.testing.assert_allclose(jnp.vdot(w, forces), -(up[0] - down[0]) / (2 * h), rtol=1e-7)
    np.testing.assert_allclose(back[1], (up[1] - down[1]) / (2 * h), atol=1e-5)
    up, down = (derivatives(PARAMS, x * (1 + s * h), BOX * (1 + s * h))[0] for s in (1, -1))
    np.testing.assert_allclose(virial, -(up - down) / (2 * h), rtol=1e-7)
    for name, params in PARAMS.items():
        for key, value in params.items():
            for index in np.ndindex(value.shape):
                at = [
                    derivatives(
                        {**PARAMS, name: {**params, key: value.at[index].add(s * h)}}, x, BOX
                    )
                    for s in (1, -1)
                ]
                slope = (at[0][0] - at[1][0]) / (2 * h)
                np.testing.assert_allclose(grads[name][key][index], slope, rtol=1e-6, atol=1e-7)
                slope = jnp.vdot(w, at[0][1] - at[1][1]) / (2 * h)
                np.testing.assert_allclose(back[0][name][key][index], slope, rtol=1e-5, atol=1e-6)


@settings(max_examples=15)
@given(
    kind=st.sampled_from(["straight", "bent back", "coincident", "random"]), seed=st.integers(0, 99)
)
def test_gradients_are_finite_in_every_corner(kind, seed):
    x = np.random.default_rng(seed).uniform(0, 3, (4, 3))
    if kind == "straight":
        x = np.arange(4)[:, None] * np.asarray([[1.0, 0, 0]]) + 1
    if kind == "bent back":
        x[2] = x[0]
    if kind == "coincident":
        x[:] = x[0]
    found = derivatives(PARAMS, jnp.asarray(x), BOX)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


def test_parameters_by_name_or_flat():
    flat = {f"{name}_{key}": v for name, p in PARAMS.items() for key, v in p.items()}
    assert set(FIELD.parameter_units()) == set(flat)
    x = wrapped(chain(0.4))
    (_, one), (_, other) = (parts_and_sum(params, x, BOX) for params in (flat, PARAMS))
    np.testing.assert_allclose(one, other)
    FIELD.check(flat, np.asarray(BOX))
    FIELD.check(PARAMS, np.asarray(BOX))
    with pytest.raises(ConfigError, match=r"bond_k: belongs to no potential.*bonds"):
        FIELD.check({**flat, "bond_k": 1.0}, np.asarray(BOX))
    with pytest.raises(ConfigError, match="k: must be a number, or one for each"):
        FIELD.check({**flat, "angles_k": np.ones(2)}, np.asarray(BOX))


TWICE = "different atoms each"
REFUSED = [
    (lambda: md.Angles([[0, 1]]), "atoms: has the shape (1, 2); allowed: (terms, 3)"),
    (lambda: md.Bonds([[0, 0]]), f"atoms: must be 2 {TWICE} (got [0, 0])"),
    (lambda: md.Bonds([[0, 1], [2, -1]]), "atoms: must be numbers of atoms"),
    (lambda: md.Bonds([[0, 1.5]]), "atoms: must be numbers of atoms"),
    (lambda: md.Bonds([[0, 1], [2]]), "atoms: must be an array of numbers"),
    (lambda: md.Angles([[0, 1, 2], [3, 4, 3]]), f"atoms: must be 3 {TWICE} (got [3, 4, 3])"),
    (lambda: md.Dihedrals([[0, 1, 2, 1]]), f"atoms: must be 4 {TWICE}"),
    (lambda: md.Exclusions([[4, 4]]), f"exclusions: must be 2 {TWICE}"),
    (lambda: md.exclusions([[0, 1], [2, 2]]), f"bonds: must be 2 {TWICE}"),
    (lambda: md.Dihedrals([[0, 1, 2, 3]], periodicity=-1), "periodicity: must be whole numbers"),
    (lambda: md.Dihedrals([[0, 1, 2, 3]], periodicity=1.5), "periodicity: must be whole numbers"),
    (lambda: md.Dihedrals([[0, 1, 2, 3]], periodicity=[1, 2]), "periodicity: has the shape (2,)"),
]


@pytest.mark.parametrize(("make", "says"), REFUSED, ids=[says for _, says in REFUSED])
def test_terms_of_no_molecule_are_refused(make, says):
    with pytest.raises(ConfigError) as caught:
        make()
    assert str(caught.value).startswith(says)


def test_terms_of_no_atoms_and_waves_as_floats():
    assert md.Bonds([]).atoms.shape == (0, 2) and md.Exclusions([]).pairs.shape == (0, 2)
    assert md.Dihedrals([[0, 1, 2, 3]], periodicity=[3.0]).periodicity.tolist() == [3]


FAR = wrapped(chain(0.3, 1.9, 1.5))
NAMES_TOO_MANY = {
    "energy": lambda bonds, p: bonds.energy(p, FAR, BOX),
    "forces": lambda bonds, p: bonds.forces(p, FAR, BOX),
    "NVE": lambda bonds, p: md.NVE(bonds, 0.01).check(p, positions=FAR, box=BOX),
    "Langevin of a sum": lambda bonds, p: md.NVT(
        md.Sum({"bonds": bonds}), dt=0.01, friction=1.0
    ).check({"bonds": p}, positions=FAR, box=BOX, temperature=1.0),
    "SinglePoint": lambda bonds, p: md.SinglePoint(bonds).check(p, positions=FAR, box=BOX),
    "Minimise": lambda bonds, p: md.Minimisation(bonds).init(p, positions=FAR, box=BOX),
}


@pytest.mark.parametrize("use", NAMES_TOO_MANY)
def test_atoms_that_do_not_exist_are_refused(use):
    bonds = md.Bonds([[0, 1], [3, 4]])
    with pytest.raises(ConfigError, match="atoms: names atom 4 of 4; allowed: 0 to 3"):
        NAMES_TOO_MANY[use](bonds, {"k": 1.0, "r0": 1.5})


def test_exclusions_of_atoms_that_do_not_exist_are_refused():
    law = md.LennardJones(2.5, "cut", exclusions=md.Exclusions([[1, 7]]))
    start = dict(positions=FAR, box=BOX, temperature=1.0)
    with pytest.raises(ConfigError, match=r"exclusions\.pairs: names atom 7 of 4"):
        md.NVE(law, 0.01).check({"epsilon": 1.0, "sigma": 0.5}, **start)

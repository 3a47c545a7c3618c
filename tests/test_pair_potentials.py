"""Pair potentials on one engine: values, every derivative, every path, mixtures, exclusions."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffsim import ConfigError, md
from problems import liquid, parameters, slow_but, unchecked

RC = 2.2
TABLE = md.Tabulated(12, 0.7, RC)

LAWS: dict[str, tuple[Any, dict[str, Any]]] = {
    "lennard-jones": (md.LennardJones, {"epsilon": 0.8, "sigma": 0.9}),
    "mie": (md.Mie(), {"epsilon": 0.8, "sigma": 0.9, "n": 14.0, "m": 6.5}),
    "morse": (md.Morse(), {"epsilon": 1.2, "alpha": 2.5, "r0": 1.1}),
    "buckingham": (md.Buckingham(), {"A": 900.0, "rho": 0.15, "C": 1.1}),
    "soft sphere": (md.SoftSphere(), {"epsilon": 3.0, "sigma": 1.6, "alpha": 2.5}),
    "inverse power": (md.InversePower(), {"epsilon": 0.7, "sigma": 0.9, "n": 9.0}),
    "yukawa": (md.Yukawa(), {"A": -1.5, "kappa": 1.3}),
    "tabulated": (TABLE, {"values": np.cos(3 * TABLE.distances) / TABLE.distances**3}),
}
SPLIT = ("lennard-jones", "mie", "morse", "buckingham", "yukawa")
TRUNCATIONS = ("cut", "shift", "force_shift", "switch")


def made(name: str, truncation: str = "switch", **options) -> Any:
    law: Any = LAWS[name][0]
    build: Any = law if law is md.LennardJones else lambda *a, **k: md.Pair(law, *a, **k)
    return build(RC, truncation, **options)


def given_params(name: str) -> Any:
    return {k: jnp.asarray(v, float) for k, v in LAWS[name][1].items()}


def phi(name: str, r: np.ndarray) -> np.ndarray:
    """The laws again, from their definitions."""
    p = LAWS[name][1]
    if name == "lennard-jones":
        x = (p["sigma"] / r) ** 6
        return 4 * p["epsilon"] * (x * x - x)
    if name == "mie":
        n, m = p["n"], p["m"]
        factor = n / (n - m) * (n / m) ** (m / (n - m))
        return factor * p["epsilon"] * ((p["sigma"] / r) ** n - (p["sigma"] / r) ** m)
    if name == "morse":
        return p["epsilon"] * ((1 - np.exp(-p["alpha"] * (r - p["r0"]))) ** 2 - 1)
    if name == "buckingham":
        return p["A"] * np.exp(-r / p["rho"]) - p["C"] / r**6
    if name == "soft sphere":
        return p["epsilon"] / p["alpha"] * np.maximum(1 - r / p["sigma"], 0) ** p["alpha"]
    if name == "inverse power":
        return p["epsilon"] * (p["sigma"] / r) ** p["n"]
    if name == "yukawa":
        return p["A"] * np.exp(-p["kappa"] * r) / r
    from scipy.interpolate import CubicSpline

    return CubicSpline(TABLE.distances, p["values"], bc_type="natural")(r)


WIDE = jnp.asarray([50.0, 50.0, 50.0])


@eqx.filter_jit
def curve(potential, params, r):
    """Energy, and force along the line, of two atoms at each distance."""

    def one(r):
        x = jnp.zeros((2, 3)).at[1, 0].set(r)
        forces = potential.forces(params, x, WIDE)
        return potential.energy(params, x, WIDE), forces[1, 0], potential.virial(params, x, WIDE)

    return jax.vmap(one)(r)


@pytest.mark.parametrize("name", LAWS)
def test_the_law_is_that_of_its_definition(name):
    r = np.linspace(0.85, RC - 1e-6, 23)
    energy, force, virial = curve(made(name, "cut"), given_params(name), jnp.asarray(r))
    np.testing.assert_allclose(energy, phi(name, r), rtol=1e-11, atol=1e-12)
    h = 1e-5
    slope = (phi(name, r + h) - phi(name, r - h)) / (2 * h)
    np.testing.assert_allclose(force, -slope, rtol=1e-7, atol=1e-7 * np.abs(slope).max())
    np.testing.assert_allclose(virial, r * force, rtol=1e-11, atol=1e-12)


X, BOX = map(jnp.asarray, liquid(24, 0.25, seed=2))
DIRECTION = jnp.asarray(np.random.default_rng(5).normal(size=X.shape))


@eqx.filter_jit
def everything(potential, params, x, box):
    """Energies, virial, forces, their pullback, and gradients of the energy."""
    found = (
        potential.thermo(params, x, box),
        potential.forces(params, x, box),
        potential.pullback(params, x, box, DIRECTION[: len(x)]),
    )
    return found, jax.grad(potential.driving_energy, argnums=(0, 1, 2))(params, x, box)


def slopes(potential, params, x, box, h=1e-5):
    """∂U/∂θ, -F·w and the virial by differences of the driving energy; ∂(F·w)/∂θ by those of
    forces."""
    w = DIRECTION[: len(x)]
    up, down = (everything(potential, params, x + s * h * w, box)[0][0].driving for s in (1, -1))
    yield "forces", -(up - down) / (2 * h)
    up, down = (
        everything(potential, params, (1 + s * h) * x, (1 + s * h) * box)[0][0].driving
        for s in (1, -1)
    )
    yield "virial", -(up - down) / (2 * h)
    for key, value in params.items():
        for index in np.ndindex(value.shape):
            d = h * max(1.0, abs(float(value[index])))
            at = [{**params, key: value.at[index].add(s * d)} for s in (1, -1)]
            found = [everything(potential, p, x, box)[0] for p in at]
            yield (
                (key, *index),
                [
                    (a - b) / (2 * d)
                    for a, b in (
                        (found[0][0].driving, found[1][0].driving),
                        (jnp.vdot(w, found[0][1]), jnp.vdot(w, found[1][1])),
                    )
                ],
            )


def check_derivatives(potential, params, x, box, rtol=2e-6):
    (thermo, forces, back), grads = everything(potential, params, x, box)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((thermo, forces, back, grads)))
    size = float(np.abs(forces).max()) + 1e-3
    np.testing.assert_allclose(forces, -grads[1], atol=1e-10 * size)
    for name, slope in slopes(potential, params, x, box):
        if name == "forces":
            np.testing.assert_allclose(
                jnp.vdot(DIRECTION[: len(x)], forces), slope, rtol=rtol, atol=rtol * size
            )
        elif name == "virial":
            np.testing.assert_allclose(thermo.virial, slope, rtol=rtol, atol=10 * rtol * size)
        else:
            key, index = name[0], name[1:]
            got = grads[0][key][index], back[0][key][index]
            for one, wanted in zip(got, slope, strict=True):
                scale = rtol * (size + float(np.abs(wanted)))
                np.testing.assert_allclose(one, wanted, rtol=rtol, atol=scale, err_msg=str(name))


@pytest.mark.parametrize("name", slow_but(["tabulated"], LAWS))
def test_every_derivative_against_differences(name):
    check_derivatives(made(name), given_params(name), X, BOX)


@pytest.mark.parametrize("truncation", slow_but(["force_shift"], TRUNCATIONS))
def test_every_truncation_against_differences(truncation):
    check_derivatives(made("morse", truncation), given_params("morse"), X, BOX)


def corner_case(kind: str, seed: int) -> tuple[Any, Any]:
    """Atoms at one place, at the cutoff, and with nobody near."""
    rng = np.random.default_rng(seed)
    x = np.asarray(rng.uniform(0, 3, (6, 3)))
    box = np.array([9.0, 10.0, 11.0])
    if kind == "coincident":
        x[1] = x[0]
        x[2] = x[0] + (1.2, 0.3, 0.1)
    if kind == "at the cutoff":
        x[1] = x[0] + (RC, 0, 0)
        x[2] = x[0] - (0, RC * (1 - 1e-15), 0)
    if kind == "alone":
        x = 2.5 * np.arange(6)[:, None] * np.ones(3) + 0.1 * x
        box = np.full(3, 40.0)
    if kind == "touching":
        x[1] = x[0] + (1e-7, 0, 0)
    return jnp.asarray(x), jnp.asarray(box)


@pytest.mark.parametrize("name", slow_but(["buckingham"], LAWS))
@settings(max_examples=6)
@given(
    kind=st.sampled_from(["coincident", "at the cutoff", "alone", "touching"]),
    seed=st.integers(0, 2**31),
)
def test_gradients_are_finite_in_every_corner(name, kind, seed):
    x, box = corner_case(kind, seed)
    (thermo, forces, back), grads = everything(made(name), given_params(name), x, box)
    if kind == "touching" and name in ("mie", "lennard-jones", "inverse power"):
        assert not np.isnan(float(thermo.energy))
        return
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((thermo, forces, back, grads)))
    if kind == "alone":
        np.testing.assert_array_equal(forces, 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", LAWS)
def test_tiles_and_lists_have_the_numbers_of_all_pairs(name):
    x, box = map(jnp.asarray, liquid(200, 0.3, seed=7))
    params, dense = given_params(name), made(name, "shift", path="dense")
    w = jnp.cos(x)

    @eqx.filter_jit
    def numbers(potential, neighbours):
        return (
            potential.thermo(params, x, box, neighbours),
            potential.forces(params, x, box, neighbours),
            potential.pullback(params, x, box, w, neighbours),
        )

    wanted = numbers(dense, None)
    for path in ("tiles", "list"):
        potential = made(name, "shift", path=path)
        found = numbers(potential, potential.allocate(params, x, box))
        for a, b in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-11 * (1e-9 + np.abs(b).max()))


# Mixtures.

KINDS = np.arange(24) % 3 == 0


def two_kinds(name: str) -> tuple[Any, Any]:
    """One number a kind, and the tables of them as the law mixes them."""
    each = {k: np.asarray([v, 1.1 * v if v > 0 else 0.8 * v]) for k, v in LAWS[name][1].items()}
    rules = LAWS[name][0].rules if name != "lennard-jones" else {"epsilon": "root", "sigma": "mean"}
    tables = {
        k: np.sqrt(np.outer(v, v)) if rules[k] == "root" else (v[:, None] + v) / 2
        for k, v in each.items()
    }
    as_arrays = lambda tree: {k: jnp.asarray(v) for k, v in tree.items()}  # noqa: E731
    return as_arrays(each), as_arrays(tables)


@pytest.mark.parametrize(
    "name", slow_but(["lennard-jones"], ["lennard-jones", "mie", "buckingham"])
)
def test_mixtures_are_mixed_as_the_law_says_and_pairs_may_be_free(name):
    each, tables = two_kinds(name)
    potential = made(name, species=KINDS)
    found, wanted = (everything(potential, p, X, BOX)[0][0] for p in (each, tables))
    for a, b in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)
    check_derivatives(potential, each, X, BOX)
    free = {k: v * jnp.asarray([[1.0, 0.95], [0.95, 1.0]]) for k, v in tables.items()}
    (_, forces, back), grads = everything(potential, free, X, BOX)
    key = next(iter(free))
    np.testing.assert_allclose(grads[0][key], grads[0][key].T, rtol=1e-10)
    np.testing.assert_allclose(back[0][key], back[0][key].T, rtol=1e-10)
    assert np.abs(forces - everything(potential, tables, X, BOX)[0][1]).max() > 1e-3


def test_a_kind_without_attraction_has_finite_gradients():
    params = {"epsilon": jnp.asarray([1.0, 0.0]), "sigma": jnp.asarray([1.0, 0.5])}
    potential = md.LennardJones(RC, "switch", species=KINDS)
    potential.check(params, np.asarray(BOX))
    (_, forces, back), grads = everything(potential, params, X, BOX)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((back, grads)))
    np.testing.assert_array_equal(np.asarray(forces)[KINDS], 0)


@pytest.mark.slow  # to compile; of two kinds: above
@pytest.mark.parametrize("path", ["dense", "list", "tiles"])
def test_many_kinds_have_the_numbers_of_few(path):
    """Twelve kinds, which are looked up, four each with the numbers of one of three."""
    x, box = map(jnp.asarray, liquid(72, 0.3, seed=7))
    kinds, w = np.arange(72) % 12, jnp.cos(x)
    few = {"epsilon": jnp.asarray([1.0, 0.8, 1.3]), "sigma": jnp.asarray([1.0, 0.9, 0.8])}
    many = {k: jnp.tile(v, 4) for k, v in few.items()}

    @eqx.filter_jit
    def numbers(potential, params, neighbours):
        given = params, x, box
        back, moved = potential.pullback(*given, w, neighbours)
        summed = {k: jnp.sum(v.reshape(-1, 3), axis=0) for k, v in back.items()}
        forces = potential.forces(*given, neighbours)
        return potential.thermo(*given, neighbours), forces, moved, summed

    found = []
    for params, species in ((few, kinds % 3), (many, kinds)):
        potential = md.LennardJones(2.0, "switch", path=path, species=species)
        found.append(numbers(potential, params, potential.allocate(params, x, box)))
    for a, b in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-11 * np.abs(b).max())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mie", "morse", "inverse power", "yukawa", "buckingham"])
@pytest.mark.parametrize("truncation", ["cut", "switch"])
def test_tails_are_integrals_over_what_is_beyond(name, truncation):
    from scipy.integrate import quad

    plain, tailed = made(name, truncation), made(name, truncation, tail=True)
    params = given_params(name)
    bare, whole = (everything(p, params, X, BOX)[0][0] for p in (plain, tailed))

    def left(r: float) -> float:
        value = phi(name, np.asarray(r))
        return (
            float(value - curve(plain, params, jnp.asarray([r]))[0][0]) if r < RC else float(value)
        )

    pieces = [quad(lambda r: left(r) * r * r, a, b, epsabs=1e-13, epsrel=1e-10)[0]
              for a, b in ((0.8 * RC, RC), (RC, 5 * RC), (5 * RC, np.inf))]  # fmt: skip
    atoms, volume = len(X), float(np.prod(BOX))
    wanted = 2 * math.pi * atoms**2 / volume * sum(pieces)
    np.testing.assert_allclose(whole.energy - bare.energy, wanted, rtol=1e-7)
    # p_tail = -(dU_tail/dV): the virial is three times V times it
    h = 1e-4
    tails = [tailed.tail_correction(params, atoms, BOX * (1 + s * h))[0] for s in (1, -1)]
    if truncation == "cut":  # the cutoff is a length: only the density changes
        surface = 2 * math.pi * atoms**2 / volume * RC**3 * float(phi(name, np.asarray(RC)))
        slope = float(tails[0] - tails[1]) / (2 * h)
        np.testing.assert_allclose(whole.virial - bare.virial, surface - slope, rtol=1e-5)


# What is left out.


@pytest.mark.slow
@pytest.mark.parametrize("path", ["dense", "tiles", "list"])
def test_excluded_pairs_do_not_interact(path):
    x, box = map(jnp.asarray, liquid(200, 0.3, seed=7))
    params = given_params("lennard-jones")
    pairs, kept = np.asarray([[0, 1], [5, 9], [3, 150]]), np.asarray([0.0, 0.5, 0.25])
    x = x.at[9].set(x[5] + jnp.asarray([0.9, 0.1, 0.2]))
    excluded = md.LennardJones(RC, "shift", path=path, exclusions=md.Exclusions(pairs, kept))
    whole = md.LennardJones(RC, "shift", path="dense")
    made_ = excluded.allocate(params, x, box)
    found, all_ = excluded.energy(params, x, box, made_), whole.energy(params, x, box)
    single = lambda i, j: whole.energy(params, x[jnp.asarray([i, j])], box)  # noqa: E731
    wanted = all_ - sum((1 - k) * single(i, j) for (i, j), k in zip(pairs, kept, strict=True))
    np.testing.assert_allclose(found, wanted, rtol=1e-10)
    forces = excluded.forces(params, x, box, made_)
    slope = -jax.grad(excluded.driving_energy, argnums=1)(params, x, box, made_)
    np.testing.assert_allclose(forces, slope, atol=1e-10 * np.abs(slope).max())
    back = excluded.pullback(params, x, box, jnp.cos(x), made_)
    w = jnp.cos(x)
    plain = lambda p, x: jnp.vdot(w, excluded.forces(p, x, box, made_))  # noqa: E731
    wanted = jax.grad(plain, argnums=(0, 1))(params, x)
    for a, b in zip(*map(jax.tree.leaves, (back, wanted)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-9 * np.abs(b).max())


def test_exclusions_follow_the_bonds():
    chain = [[0, 1], [1, 2], [2, 3], [3, 4]]
    found = md.exclusions(chain, one_four=0.5)
    listed = {tuple(p): float(k) for p, k in zip(found.pairs.tolist(), found.kept, strict=True)}
    assert listed == {
        **dict.fromkeys([(0, 1), (1, 2), (2, 3), (3, 4), (0, 2), (1, 3), (2, 4)], 0.0),
        **dict.fromkeys([(0, 3), (1, 4)], 0.5),
    }
    ring = md.exclusions([[0, 1], [1, 2], [2, 0]])
    assert sorted(map(tuple, ring.pairs.tolist())) == [(0, 1), (0, 2), (1, 2)]
    assert md.exclusions([]).pairs.shape == (0, 2)


# The core of Buckingham's potential.


def test_buckingham_has_no_catastrophe():
    params = given_params("buckingham")
    prepared = md.Buckingham().prepare(params)
    top = float(prepared["top"])
    r = np.linspace(1e-3, top, 50)
    energy, force, _ = curve(made("buckingham", "cut"), params, jnp.asarray(r))
    assert np.all(np.diff(energy) < 0)  # ever higher inwards
    assert np.all(np.asarray(force) >= 0)
    beside = jnp.asarray([top * (1 - 1e-9), top * (1 + 1e-9)])
    energy, force, _ = curve(made("buckingham", "cut"), params, beside)
    np.testing.assert_allclose(energy[0], energy[1], rtol=1e-9)
    np.testing.assert_allclose(force, 0, atol=1e-4)
    with pytest.raises(ConfigError, match="attraction wins"):
        made("buckingham").check({"A": 900.0, "rho": 0.15, "C": 9.0}, np.asarray(BOX))


ANY: Any = md  # laws as they are misunderstood


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: ANY.Pair("mie", 3.0), "law: is not a law of pairs (got 'mie')"),
        (lambda: ANY.Pair(md.Mie, 3.0), "did you mean md.Mie()?"),
        (lambda: ANY.Pair("bukingham", 3.0), "did you mean md.Buckingham()?"),
        (lambda: ANY.Pair(None, 3.0), "law: is not a law"),
        (lambda: ANY.EAM(5.0, pair=md.InversePower), "pair: is not a law"),
    ],
)
def test_names_and_classes_are_no_laws(make, says):
    with unchecked(), pytest.raises(ConfigError) as caught:
        make()
    assert says in str(caught.value)


SILENT = {
    "lj": (lambda path: md.LennardJones(RC, path=path), {"sigma": 1.0}),
    "mie": (lambda path: md.Pair(md.Mie(), RC, path=path), {"sigma": 1.0, "n": 12.0, "m": 6.0}),
}


@pytest.mark.parametrize(
    ("name", "path"), [("lj", "dense"), ("lj", "tiles"), ("lj", "list"), ("mie", "dense")]
)
def test_atoms_without_epsilon_do_not_interact(name, path):
    """No energy and no force, in every path, and a slope in ε that leads out of it."""
    make, rest = SILENT[name]
    potential, (x, box) = make(path), liquid(108, 0.6)
    params = {"epsilon": jnp.asarray(0.0), **{k: jnp.asarray(v) for k, v in rest.items()}}
    potential.check(params, box)
    near = potential.allocate(params, jnp.asarray(x), jnp.asarray(box))
    forces = jax.jit(potential.forces)(params, jnp.asarray(x), jnp.asarray(box), near)
    np.testing.assert_array_equal(forces, 0)
    energy = lambda e: potential.energy({**params, "epsilon": e}, jnp.asarray(x), box, near)  # noqa: E731
    energy = jax.jit(jax.value_and_grad(energy))
    assert energy(0.0)[0] == 0
    assert energy(0.0)[1] == pytest.approx(float(energy(1.0)[0]), rel=1e-9)
    for bad in (-1.0, np.nan):
        with pytest.raises(ConfigError, match="epsilon: must"):
            potential.check({**params, "epsilon": bad}, box)
    with pytest.raises(ConfigError, match="sigma: must be positive"):
        potential.check({**params, "sigma": 0.0}, box)


def test_bad_parameters_are_refused():
    box = np.asarray(BOX)
    with pytest.raises(ConfigError, match="n: must be over m"):
        made("mie").check({**LAWS["mie"][1], "n": 6.0}, box)
    with pytest.raises(ConfigError, match="sigma: is over the cutoff"):
        made("soft sphere").check({**LAWS["soft sphere"][1], "sigma": 3.0}, box)
    with pytest.raises(ConfigError, match="needs the parameters"):
        made("morse").check({"epsilon": 1.0}, box)
    with pytest.raises(ConfigError, match="values: must be 12 numbers"):
        made("tabulated").check({"values": np.zeros(9)}, box)
    with pytest.raises(ConfigError, match="tail"):
        made("tabulated", "cut", tail=True)
    with unchecked(), pytest.raises(ConfigError, match="mixing"):
        md.LennardJones(RC, mixing="arithmetic")  # pyright: ignore


def test_the_names_of_a_sum_need_no_order():
    """A dictionary that goes through jit comes back sorted."""
    x, box = (jnp.asarray(v) for v in liquid(8, 0.1))
    lj = md.LennardJones(2.0, "shift", path="dense")
    other = md.Pair(md.Mie(), 1.8, "shift", path="dense")
    mie = {"epsilon": 0.8, "sigma": 1.1, "n": 13.0, "m": 6.5}
    ends = md.Bonds([[0, 1]])
    terms = {"z": lj, "y": other, "x": lj, "b": ends}
    whole = md.Sum(terms)
    params = {"z": parameters(), "y": mie, "x": parameters(), "b": {"k": 1.0, "r0": 1.0}}
    params = jax.tree.map(jnp.asarray, params)
    expected = sum(float(t.energy(params[n], x, box)) for n, t in terms.items())
    found = eqx.filter_jit(lambda p, x: p.energy(params, x, box))(whole, x)
    assert float(found) == pytest.approx(expected, rel=1e-12)

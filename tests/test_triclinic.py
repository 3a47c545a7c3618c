"""Boxes of lattice vectors: the same lattice however it is written down, sums over images by brute
force, Madelung's constants. Those that a pressure shears: tests/test_triclinic_pressure.py."""

import dataclasses
import functools
import itertools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import diffsim as ds
from diffsim import ConfigError, Schedule, md
from diffsim._store import TrajectoryWriter, read_trajectory
from diffsim.md._box import grown, nearest, of_vectors, volume, widths
from diffsim.md._neighbours import list_functions
from problems import liquid, parameters, unchecked

KEY = jax.random.key(0)
ATOMS = 24
X, EDGES = liquid(ATOMS, 0.25, seed=1)  # of edge 4.6
TILTS = np.array([[0, 0, 0], [0.9, 0, 0], [-1.3, 0.7, 0]])
LEANING = np.diag(EDGES) + TILTS


def harmonic(positions, box, k):
    """All pairs, by their nearest images: a function of a user's, for boxes of either shape."""
    d = nearest(positions[:, None] - positions, box)
    s = jnp.sum(d * d, axis=-1)
    return k * jnp.sum(jnp.where(s < 4, (4 - s) ** 3, 0))


KINDS = np.arange(ATOMS) % 2
SALT = {"charge": jnp.asarray([1.0, -1.0])}
TABLES = {"epsilon": jnp.asarray([1.0, 0.5]), "sigma": jnp.asarray([1.0, 0.9])}
MIE = {"epsilon": 0.8, "sigma": 1.1, "n": 13.0, "m": 6.5}
SILICON = md.stillinger_weber_silicon("metal") | {"sigma": 1.1}
TERSOFF = md.tersoff_silicon("metal") | {"R": 1.9, "D": 0.2, "lambda1": 4.5, "lambda2": 3.2}
CHAIN = {
    "bonds": md.Bonds([[0, 1], [1, 2], [2, 3]]),
    "angles": md.Angles([[0, 1, 2]]),
    "dihedrals": md.Dihedrals([[0, 1, 2, 3]]),
}
OF_CHAIN = {"bonds_k": 3.0, "bonds_r0": 1.0, "angles_k": 2.0, "angles_theta0": 1.9}
OF_CHAIN |= {"dihedrals_k": 0.7, "dihedrals_phi0": 0.4}
WAVES: dict[str, Any] = dict(alpha=1.0, exclusions=md.Exclusions([[0, 1], [2, 3]], 0.5))
NETWORK = md.MessagePassing(2.0, 0, features=4, rounds=1, radial=4)
POTENTIALS: dict[str, tuple[Any, Any]] = {
    "lj": (md.LennardJones(2.1, "switch", tail=True), parameters()),
    "lj, list": (md.LennardJones(2.1, "switch", tail=True, path="list"), parameters()),
    "mixture": (md.LennardJones(2.0, "force_shift", species=KINDS), TABLES),
    "mixture, list": (md.LennardJones(2.0, "shift", species=KINDS, path="list"), TABLES),
    "pair": (md.Pair(md.Mie(), 2.0, "switch", exclusions=md.Exclusions([[0, 1]])), MIE),
    "ewald": (md.Coulomb(2.2, KINDS, md.Ewald(9, 170), **WAVES), SALT),
    "pme": (md.Coulomb(2.2, KINDS, md.PME(48, 8), **WAVES), SALT),
    "chain": (md.Sum(CHAIN), OF_CHAIN),
    "stillinger-weber": (md.StillingerWeber(2.1, path="dense"), SILICON),
    "stillinger-weber, list": (md.StillingerWeber(2.1, path="list"), SILICON),
    "tersoff": (md.Tersoff(2.1, path="dense"), TERSOFF),
    "eam": (md.EAM(2.0, path="dense"), md.sutton_chen("Cu") | dict.fromkeys(
        ("pair_sigma", "density_sigma"), 1.2)),
    "neural": (md.Neural(2.0, path="dense"), {"net": NETWORK}),
    "function": (md.Potential(harmonic, triclinic=True), {"k": 0.3}),
}  # fmt: skip
LOOSE = {"ewald": 1e-5, "pme": 2e-5}  # other waves, another mesh
SLOW = {*POTENTIALS} - {"lj", "function"}


@eqx.filter_jit
def seen(potential, params, x, box, neighbours):
    given = params, x, box, neighbours
    thermo = potential.thermo(*given)
    return thermo, potential.forces(*given), potential.virial_tensor(*given)


def measured(potential, params, x, box):
    x, box = jnp.asarray(x), jnp.asarray(box)
    potential.check(params, np.asarray(box))
    return seen(potential, params, x, box, potential.allocate(params, x, box))


def close(found, expected, rtol=1e-11):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * float(np.max(np.abs(b))))


def rows(slow, table):
    marked = lambda n: pytest.param(n, marks=pytest.mark.slow) if n in slow else n  # noqa: E731
    return [marked(name) for name in table]


@pytest.mark.parametrize("name", rows(SLOW, POTENTIALS))
def test_a_lattice_is_the_same_however_it_is_written(name):
    """Edges as a matrix; b + a and c - b for b and c; atoms in other cells. The virial is the trace
    of its tensor, which is symmetric."""
    potential, params = POTENTIALS[name]
    straight = measured(potential, params, X, EDGES)
    close(measured(potential, params, X, np.diag(EDGES)), straight)
    first = measured(potential, params, X, LEANING)
    assert abs(first[0].energy - straight[0].energy) > 1e-6 or name == "chain"
    other = np.array([[1, 0, 0], [1, 1, 0], [0, -1, 1]]) @ LEANING
    turns = np.random.default_rng(0).integers(-2, 3, X.shape)
    close(measured(potential, params, X + turns @ LEANING, other), first, LOOSE.get(name, 1e-10))
    np.testing.assert_array_equal(first[2], first[2].T)
    if name.startswith("lj"):  # the tail is no part of the tensor
        potential = dataclasses.replace(potential, tail=False)
    virial = potential.virial(params, jnp.asarray(X), jnp.asarray(LEANING))
    assert float(jnp.trace(first[2])) == pytest.approx(float(virial), rel=1e-9, abs=1e-9)


def by_brute_force(x, h, cutoff):
    """Energy, forces and Σ d_a F_b of the shifted Lennard-Jones potential over images."""
    n = np.array(list(itertools.product(range(-4, 5), repeat=3)))
    d = x[:, None, None] - x[None, :, None] - n @ h
    s = np.sum(d * d, axis=-1)
    near = (s > 0) & (s < cutoff**2)
    s6 = np.where(near, s, 1.0) ** -3
    at = cutoff**-6
    energy = np.where(near, 4 * (s6 * s6 - s6) - 4 * (at * at - at), 0)
    forces = np.where(near, 24 * (2 * s6 * s6 - s6) / np.where(near, s, 1), 0)[..., None] * d
    virial = np.einsum("ijna,ijnb->ab", d, forces) / 2
    return energy.sum() / 2, forces.sum(axis=(1, 2)), virial


@settings(max_examples=15)
@given(
    sides=st.tuples(*[st.floats(4.0, 6.0)] * 3),
    tilts=st.tuples(*[st.floats(-6.0, 6.0)] * 3),
    seed=st.integers(0, 10),
)
def test_pairs_are_those_of_all_images(sides, tilts, seed):
    """However far the box leans: what limits the cutoff is half of a_x, b_y, c_z."""
    h = np.diag(sides)
    h[np.tril_indices(3, -1)] = tilts
    x = np.random.default_rng(seed).uniform(size=(12, 3)) @ h
    cutoff = 2.0
    potential = md.LennardJones(cutoff, "shift")
    thermo, forces, virial = measured(potential, parameters(), x, h)
    energy, *expected = by_brute_force(x, h, cutoff)
    assert float(thermo.energy) == pytest.approx(energy, rel=1e-11)
    scale = np.max(np.abs(expected[0]))
    np.testing.assert_allclose(forces, expected[0], rtol=1e-11, atol=1e-12 * scale)
    scale = np.max(np.abs(expected[1]))
    np.testing.assert_allclose(virial, expected[1], rtol=1e-11, atol=1e-12 * scale)


def test_a_larger_cutoff_would_miss_images():
    """The limit is sharp: beyond it brute force finds pairs that the nearest image does not."""
    h, x = np.diag([4.0, 4.0, 4.0]) + TILTS, np.array([[0, 0, 0], [1.9, 0, 0.0]])
    with pytest.raises(ConfigError, match="smallest of a_x, b_y, c_z"):
        md.LennardJones(2.3).check(parameters(), h)
    found = md.LennardJones(2.3, "shift").energy(parameters(), jnp.asarray(x), jnp.asarray(h))
    assert abs(float(found) - by_brute_force(x, h, 2.3)[0]) > 1e-3


@pytest.mark.parametrize("name", ["lj", pytest.param("ewald", marks=pytest.mark.slow)])
def test_derivatives_are_those_of_finite_differences(name):
    """In positions, box and parameters, and the virial tensor in strain."""
    potential, params = POTENTIALS[name]
    x, box = jnp.asarray(X), jnp.asarray(LEANING)
    energy = jax.jit(lambda *given: potential.driving_energy(*given))
    slopes = jax.jit(jax.grad(lambda *given: potential.driving_energy(*given), argnums=(0, 1, 2)))(
        params, x, box
    )
    rng = np.random.default_rng(0)
    step = lambda v: rng.normal(size=np.shape(v))  # noqa: E731
    for k, part in enumerate((params, x, box)):
        along = jax.tree.map(step, part)
        along = np.tril(along) if k == 2 else along
        given = lambda e, k=k, part=part, along=along: [  # noqa: E731
            jax.tree.map(lambda v, d: v + e * d, part, along) if j == k else each
            for j, each in enumerate((params, x, box))
        ]
        e = 1e-5
        expected = float(energy(*given(e)) - energy(*given(-e))) / (2 * e)
        dot = sum(jax.tree.leaves(jax.tree.map(jnp.vdot, slopes[k], along)))
        assert float(dot) == pytest.approx(expected, rel=1e-6, abs=1e-6)
    # a symmetric strain, turned back to a lower triangular box
    strain = step(np.eye(3))
    strain = jnp.asarray(strain + strain.T)
    strained = lambda e: energy(params, *(v @ grown(e * strain)[0] for v in (x, box)))  # noqa: E731
    expected = -float(strained(1e-6) - strained(-1e-6)) / 2e-6
    virial = potential.virial_tensor(params, x, box)
    assert float(jnp.vdot(virial, strain)) == pytest.approx(expected, rel=1e-6)


CRYSTALS = {
    # lattice vectors, the other ion, Madelung's constant for the distance of neighbours
    "NaCl": (np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]]) / 2, [0.5, 0, 0], 1.7475645946331822),
    "CsCl": (np.array([[1, 0, 0], [1, 1, 0], [0, -1, 1]]), [0.5, 0.5, 0.5], 1.7626747730709884),
    "ZnS": (
        np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]]) / 2,
        [0.25, 0.25, 0.25],
        1.6380550533887898,
    ),
}


@pytest.mark.parametrize("name", CRYSTALS)
def test_madelung_constants(name):
    """Of primitive cells, two ions each, turned to be lower triangular."""
    vectors, other, constant = CRYSTALS[name]
    vectors = vectors if np.linalg.det(vectors) > 0 else vectors[[1, 0, 2]]
    box, turn = of_vectors(vectors)
    x = np.array([[0, 0, 0], other]) @ turn
    cutoff = 0.49 * float(np.min(np.diagonal(box)))
    ions = md.Coulomb(cutoff, [0, 1], md.Ewald(30), alpha=5.2 / cutoff)
    ions.check(SALT, box)
    r = float(np.linalg.norm(other))
    energy = eqx.filter_jit(ions.energy)(SALT, jnp.asarray(x), jnp.asarray(box))
    assert -r * float(energy) == pytest.approx(constant, rel=1e-10)


def test_a_mesh_gives_the_sum_over_waves():
    x, box = jnp.asarray(X), jnp.asarray(LEANING)
    close(
        *(
            eqx.filter_jit(lambda waves, x, h: jax.value_and_grad(
                md.Coulomb(2.2, KINDS, waves).smooth.driving_energy, argnums=(1, 2)
            )(SALT, x, h))(waves, x, box)
            for waves in (md.PME(48), md.Ewald(12, 400))
        ),
        rtol=2e-5,
    )  # fmt: skip


def primitive(cells, edge):
    """A face-centred cubic crystal by its primitive cell."""
    box, _ = of_vectors(np.array([[1, 0, 1], [1, 1, 0], [0, 1, 1]]) * edge / 2)
    n = np.array(list(itertools.product(range(cells), repeat=3)))
    return n @ box + 0.1, cells * box


@pytest.mark.slow  # to compile
def test_a_primitive_cell_is_the_crystal():
    """Energy an atom, and the stress, of 216 atoms in a rhombohedron and of 256 in a cube."""
    edge, potential = 1.6, md.LennardJones(2.4, "switch", tail=True)
    x, box = primitive(6, edge)
    cube = np.full(3, 4 * edge)
    found = measured(potential, parameters(), x, box)
    expected = measured(potential, parameters(), md.lattice(256, box=cube)[0], cube)
    for a, b in ((found[0].energy, expected[0].energy), (found[0].virial, expected[0].virial)):
        assert float(a) / 216 == pytest.approx(float(b) / 256, rel=1e-11)
    np.testing.assert_allclose(found[2] / 216, expected[2] / 256, atol=1e-10)
    assert float(volume(box)) == pytest.approx(216 * edge**3 / 4)
    np.testing.assert_allclose(widths(box), 6 * edge / np.sqrt(3), rtol=1e-12)


def moving(**options):
    sim = md.NVE(md.LennardJones(2.1, "switch", **options), 0.004)
    x, v = X, np.random.default_rng(3).normal(size=X.shape)
    v = 0.8 * (v - v.mean(axis=0))
    return sim, sim.init(parameters(), KEY, positions=x, box=LEANING, velocities=v)


@pytest.mark.parametrize("path", ["dense", pytest.param("list", marks=pytest.mark.slow)])
def test_energy_is_conserved(path):
    sim, state = moving(path=path)
    sol = eqx.filter_jit(ds.solve)(
        sim, parameters(), state, schedule=Schedule(steps=1000, save_every=50),
        laws=(ds.Conserved("total_energy", rtol=1e-3), ds.Conserved("momentum", atol=1e-10)),
    )  # fmt: skip
    sol.check()
    assert float(np.abs(sol.observables["positions"][-1] - X).max()) > 1


@pytest.mark.slow  # to compile
def test_adjoints_agree():
    def slope(adjoint):
        def loss(params):
            sim, state = moving()
            state = sim.prepare(params, state)
            schedule = Schedule(steps=20, save_every=20)
            sol = ds.solve(sim, params, state, schedule=schedule, adjoint=adjoint)
            return jnp.sum(sol.observables["potential_energy"])

        return jax.jit(jax.grad(loss))(parameters())

    close(slope(ds.Reversible()), slope(ds.RecursiveCheckpoint()), 1e-7)


@pytest.mark.parametrize("width", [0.0, 0.1])
def test_an_ideal_gas_has_no_structure(width):
    x = np.random.default_rng(0).uniform(size=(400, 60, 3)) @ LEANING
    g = functools.partial(md.radial_distribution, box=LEANING, bins=8, width=width)
    found = np.asarray(jax.lax.map(lambda x: g(x)[1], jnp.asarray(x)))
    error = found.std(axis=0, ddof=1) / 20
    assert np.all(np.abs(found.mean(axis=0) - 1) < 4 * error) and np.all(error[2:] < 0.02)


@pytest.mark.slow  # to compile
def test_rigid_distances_hold_across_faces():
    x = np.concatenate([X[:, None], X[:, None] + [0.4, 0, 0.3]], axis=1).reshape(-1, 3)
    x[1::2] += np.random.default_rng(1).integers(-1, 2, X.shape) @ LEANING
    rigid = md.Constraints(np.arange(2 * ATOMS).reshape(-1, 2), 0.5)
    sim = md.NVE(md.LennardJones(2.1, "switch", exclusions=md.Exclusions(rigid.pairs)), 0.002,
                 constraints=rigid)  # fmt: skip
    params = parameters(1.0, 0.6)
    state = sim.init(params, KEY, positions=x, box=LEANING, temperature=1.0)
    sol = ds.solve(sim, params, state, schedule=Schedule(steps=100, save_every=10))
    end = np.asarray(sol.state.positions)
    d = np.asarray(nearest(end[::2] - end[1::2], LEANING))
    np.testing.assert_allclose(np.linalg.norm(d, axis=1), 0.5, rtol=1e-10)
    energy = np.asarray(sol.observables["total_energy"])
    assert np.ptp(energy) < 1e-3 * float(sol.observables["kinetic_energy"][0])


@pytest.mark.slow  # to compile
def test_a_structure_comes_to_rest_at_a_fixed_box():
    x, box = primitive(4, 1.6)
    potential = md.LennardJones(1.8, "switch")
    moved = x + 0.03 * np.random.default_rng(0).normal(size=x.shape)
    rest = md.minimise(potential, parameters(), moved, box, tolerance=1e-8).check()
    expected = potential.energy(parameters(), jnp.asarray(x), jnp.asarray(box))
    assert float(rest.energy) == pytest.approx(float(expected), rel=1e-12)
    np.testing.assert_array_equal(rest.box, box)


def test_files_and_programs_have_the_same_lattice(tmp_path):
    """A turned cell is read, and its forces are turned back for ASE."""
    ase: Any = pytest.importorskip("ase")
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    turn *= np.linalg.det(turn)
    potential, params = md.LennardJones(2.1, "switch"), parameters()
    _, forces, _ = measured(potential, params, X, LEANING)
    atoms = ase.Atoms(f"Ar{ATOMS}", X @ turn, cell=LEANING @ turn, pbc=True)
    atoms.calc = md.ase_calculator(potential, params)
    np.testing.assert_allclose(atoms.get_forces(), forces @ turn, atol=1e-9)
    path = tmp_path / "atoms.xyz"
    atoms.write(path, format="extxyz")
    read = md.load_structures(path, "lj")
    np.testing.assert_allclose(read.box[0], LEANING, atol=1e-7)
    assert read.forces is not None
    np.testing.assert_allclose(read.forces[0], forces, atol=1e-6)
    again = md.load_structure(path)
    energy = potential.energy(params, jnp.asarray(again.positions), jnp.asarray(again.box))
    assert float(energy) == pytest.approx(atoms.get_potential_energy(), rel=1e-5)
    with TrajectoryWriter(tmp_path / "t.h5", atoms=ATOMS, box=LEANING) as out:
        out.extend([0, 1], [0.0, 1.0], np.stack([X, X]), box=np.stack([LEANING, 2 * LEANING]))
        out.append(2, 2.0, X)
    box = read_trajectory(tmp_path / "t.h5").box
    assert box is not None
    np.testing.assert_array_equal(box.value, np.stack([LEANING, 2 * LEANING, LEANING]))


def started(sim, box, **options):
    given = dict(positions=X, box=box, temperature=1.0) | options
    return lambda: sim.init(parameters(), KEY, **given)


LJ = md.LennardJones(1.8)
NPT = functools.partial(md.NPT, LJ, 0.004, 1.0, 0.5, 0.1)
UPPER = LEANING.T.copy()
REFUSED: dict[str, tuple[Any, str]] = {
    "upper triangle": (started(md.NVE(LJ, 0.01), UPPER), "lower triangular.*did you mean the same"),
    "left-handed": (started(md.NVE(LJ, 0.01), LEANING * [[1], [1], [-1]]), "right-handed"),
    "flat": (started(md.NVE(LJ, 0.01), LEANING * [[1], [1], [0]]), "span a volume"),
    "two vectors": (started(md.NVE(LJ, 0.01), LEANING[:2]), r"\(3,\) edge lengths or \(3, 3\)"),
    "not finite": (started(md.NVE(LJ, 0.01), LEANING * np.nan), "finite"),
    "cutoff": (started(md.NVE(md.LennardJones(2.5), 0.01), LEANING), "cutoff: is over half"),
    "many-body": (lambda: md.EAM(2.5).check_box(LEANING), "repeat the cell"),
    "tiles": (started(md.NVE(md.LennardJones(1.8, path="tiles"), 0.01), LEANING), "path: tiles"),
    "tiles under pressure": (
        started(md.NPT(md.LennardJones(1.8, path="tiles"), 0.004, 1.0, 0.5, 0.1, shape="triclinic"),
                EDGES, pressure=1.0), "path: tiles"),
    "list under pressure": (
        started(md.NPT(md.LennardJones(1.8, path="list"), 0.004, 1.0, 0.5, 0.1, shape="triclinic"),
                EDGES, pressure=1.0), "holds in one box only"),
    "edges of vectors": (started(NPT(shape="anisotropic"), LEANING, pressure=1.0), "one by one"),
    "a function of edges": (
        lambda: md.Potential(harmonic).energy({"k": 1.0}, jnp.asarray(X), jnp.asarray(LEANING)),
        "triclinic=True"),
    "JAX-MD's list": (
        lambda: md.Potential(harmonic, neighbor_fn=list_functions(
            (4.0, 4.0, 4.0), 1.0, 0.2)[0], triclinic=True).check({}, LEANING), "no triclinic"),
    "structure factor": (
        lambda: md.StructureFactor()(None, moving()[1]), "waves of one"),
    "elastic constants": (
        lambda: md.elastic_constants(LJ, parameters(), X, LEANING), "rectangular cell"),
    "a cell at rest": (
        lambda: md.minimise(LJ, parameters(), X, LEANING, cell="edges"), "stays as it is"),
    "g(r) too far": (lambda: md.radial_distribution(X, LEANING, r_max=2.5), "r_max: is over half"),
    "g(r) of an upper triangle": (lambda: md.radial_distribution(X, UPPER), "lower triangular"),
}  # fmt: skip


@pytest.mark.parametrize("name", rows(["list under pressure"], REFUSED))
def test_what_is_not_served_is_refused(name):
    call, match = REFUSED[name]
    with unchecked(), pytest.raises(ConfigError, match=match):
        call()


def test_what_cannot_be_refused_is_not_a_number():
    """An upper triangle inside of a program; and three boxes of a batch are no three vectors."""
    for potential, params in (POTENTIALS[n] for n in ("lj", "ewald", "chain", "stillinger-weber")):
        given = params, jnp.asarray(X)
        energy = eqx.filter_jit(lambda h, u=potential, p=given: u.energy(*p, h))
        assert np.isnan(energy(UPPER)) and np.isfinite(energy(LEANING))
    sim = md.NVE(LJ, 0.01)
    sim.check(parameters(), positions=np.stack([X] * 3), box=np.tile(EDGES, (3, 1)))
    sim.check(parameters(), positions=np.stack([X] * 3), box=np.stack([LEANING] * 3))

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffsim._errors import ConfigError
from diffsim.md._structures import lattice, load_structure, maxwell_velocities, number_density
from diffsim.md._units import GROMACS, LJ, METAL, REAL


def distances(positions, box):
    d = positions[:, None] - positions
    d -= box * np.round(d / box)
    r = np.sqrt((d**2).sum(axis=-1))
    np.fill_diagonal(r, np.inf)
    return r


# Lattice that "auto" takes, and the nearest distance times the cube root of the density of sites.
AUTOMATIC = [
    (108, 108, 2 ** (1 / 6)),
    (125, 125, 1.0),
    (128, 128, 3**0.5 / 2 ** (2 / 3)),
    (216, 216, 1.0),
    (250, 250, 3**0.5 / 2 ** (2 / 3)),
    (256, 256, 2 ** (1 / 6)),
    (500, 500, 2 ** (1 / 6)),
    (1000, 1000, 1.0),
    (254, 256, 2 ** (1 / 6)),
    (200, 216, 1.0),
    (1, 1, 1.0),
]


@pytest.mark.parametrize(("atoms", "sites", "nearest"), AUTOMATIC)
def test_the_lattice_is_the_one_that_fits(atoms, sites, nearest):
    positions, box = lattice(atoms, density=0.7)
    assert positions.shape == (atoms, 3)
    np.testing.assert_allclose(box, (atoms / 0.7) ** (1 / 3), rtol=1e-14)
    assert np.all((positions > 0) & (positions < box))
    if atoms > 1:
        spacing = (sites / np.prod(box)) ** (-1 / 3)
        closest = distances(positions, box).min(axis=1)
        np.testing.assert_allclose(closest, nearest * spacing, rtol=1e-10)


@pytest.mark.parametrize(
    ("kind", "atoms", "neighbours"), [("sc", 27, 6), ("bcc", 54, 8), ("fcc", 108, 12)]
)
def test_neighbours(kind, atoms, neighbours):
    positions, box = lattice(atoms, density=1.0, kind=kind)
    r = distances(positions, box)
    assert np.all(np.sum(r < r.min() * 1.01, axis=1) == neighbours)


def test_diamond_has_four_neighbours_at_silicon_distance():
    positions, box = lattice(64, box=[10.86, 10.86, 10.86], kind="diamond")
    r = distances(positions, box)
    assert r.min() == pytest.approx(5.43 * 3**0.5 / 4, rel=1e-12)
    assert np.all(np.sum(r < 2.4, axis=1) == 4)


def test_a_long_box_holds_cubic_cells():
    positions, box = lattice(128, box=(4.0, 4.0, 16.0), kind="fcc")
    np.testing.assert_array_equal(box, [4, 4, 16])
    r = distances(positions, box)
    np.testing.assert_allclose(r.min(axis=1), 2**0.5, rtol=1e-12)


@pytest.mark.parametrize("atoms", [1340, 460, 1367])
def test_vacancies_are_spread(atoms):
    """No two empty sites are neighbours, as many of a random choice would be."""
    sites = 500 if atoms == 460 else 1372
    box = np.full(3, 10.0)
    full, _ = lattice(sites, box=box, kind="fcc")
    positions, _ = lattice(atoms, box=box, kind="fcc")
    kept = {tuple(np.round(p, 6)) for p in positions}
    empty = np.array([p for p in full if tuple(np.round(p, 6)) not in kept])
    assert len(empty) == sites - atoms == len({tuple(p) for p in empty})
    apart = distances(empty, box).min() / (10 / sites ** (1 / 3))
    # In units of the mean spacing of as many points as there are empty sites.
    assert apart > 0.75 * (sites / len(empty)) ** (1 / 3)


@pytest.mark.parametrize(
    ("atoms", "options", "word"),
    [
        (0, {"density": 1.0}, "atoms"),
        (-3, {"density": 1.0}, "atoms"),
        (10, {}, "box"),
        (10, {"density": 1.0, "box": (1.0, 1.0, 1.0)}, "box"),
        (10, {"density": -1.0}, "density"),
        (10, {"density": float("nan")}, "density"),
        (10, {"box": (1.0, 1.0)}, "box"),
        (10, {"box": (1.0, 0.0, 1.0)}, "box"),
        (10, {"density": 1.0, "kind": "fccc"}, "fcc"),
    ],
)
def test_lattices_that_cannot_be(atoms, options, word):
    with pytest.raises(ConfigError, match=word) as error:
        lattice(atoms, **options)
    assert "\n" not in str(error.value)


NIST = (
    "3\n    cell: 10  10  10\n"
    "H -1.126362593256e-01  1.385093082507e+00 -8.842035145736e-01\n"
    "H -5.0 5.0 0\nH 4.9 -4.9 2\n"
)
EXTENDED = (
    '2\nLattice="5.0 0 0 0 6.0 0 0 0 7.0" Properties=species:S:1:pos:R:3 pbc="T T T"\n'
    "Ar 1.0 2.0 3.0\nKr -1.0 0.0 7.5\n"
)
PLAIN = "2\nargon\nAr 1.0 2.0 3.0\nAr 4.0 2.0 3.0\n"


def write(tmp_path, text, name="atoms.xyz"):
    path = tmp_path / name
    path.write_text(text)
    return path


def test_nist_files(tmp_path):
    structure = load_structure(write(tmp_path, NIST), units=LJ)
    np.testing.assert_array_equal(structure.box, [10, 10, 10])
    assert structure.positions[0] == pytest.approx([9.8873637406744, 1.385093082507, 9.1157964854])
    assert np.all((structure.positions >= 0) & (structure.positions < 10))
    np.testing.assert_allclose(structure.positions[1], [5, 5, 0])


@pytest.mark.parametrize("name", ["atoms.xyz", "atoms.extxyz", "at@oms.XYZ"])
def test_extended_files(tmp_path, name):
    structure = load_structure(write(tmp_path, EXTENDED, name))
    np.testing.assert_array_equal(structure.box, [5, 6, 7])
    np.testing.assert_allclose(structure.positions, [[1, 2, 3], [4, 0, 0.5]])
    assert structure.species == ("Ar", "Kr")
    np.testing.assert_allclose(structure.masses, [39.948, 83.798], rtol=1e-4)


def test_files_are_converted(tmp_path):
    path = write(tmp_path, EXTENDED)
    metal, gromacs = load_structure(path, units=METAL), load_structure(path, units=GROMACS)
    np.testing.assert_allclose(gromacs.positions, metal.positions / 10, rtol=1e-14)
    np.testing.assert_allclose(gromacs.box, [0.5, 0.6, 0.7], rtol=1e-14)
    np.testing.assert_allclose(load_structure(path, units=REAL).masses, metal.masses, rtol=2e-9)


def test_frames_and_a_box_of_ones_own(tmp_path):
    path = write(tmp_path, PLAIN + PLAIN.replace("4.0", "5.0"))
    box = np.array([8.0, 8.0, 8.0])
    assert load_structure(path, box=box).positions[1, 0] == 5
    assert load_structure(path, box=box, frame=0).positions[1, 0] == 4


MALFORMED = {
    "text": (NIST.replace("4.9 -4.9", "4.9 oops"), "line 5"),
    "text, extended": (EXTENDED.replace("-1.0", "minus"), "line 4"),
    "not a number": (EXTENDED.replace("-1.0", "nan"), "line 4"),
    "missing column": (EXTENDED.replace(" 7.5", ""), "line 4"),
    "too few atoms": (EXTENDED.replace("Kr -1.0 0.0 7.5\n", ""), "atoms.xyz"),
    "symbol": (EXTENDED.replace("Kr", "Qq"), "Qq"),
    "empty": ("", "line 1"),
    "words": ("hello\nworld\n", "line 1"),
    "no atoms": ('0\nLattice="5 0 0 0 5 0 0 0 5"\n', "atoms"),
    "no box": (PLAIN, "box"),
    "left-handed": (EXTENDED.replace("5.0 0 0", "-5.0 1 0"), "left-handed"),
    "flat": (EXTENDED.replace("7.0", "0"), "no volume"),
    "text for a cell": (NIST.replace("10  10  10", "10  ten  10"), "box"),
    "lattice of words": (EXTENDED.replace("5.0 0 0", "five 0 0"), "atoms.xyz"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_files_are_refused_in_one_line(tmp_path, name):
    text, word = MALFORMED[name]
    with pytest.raises(ConfigError, match=word) as error:
        load_structure(write(tmp_path, text))
    assert "\n" not in str(error.value)
    assert "atoms.xyz" in str(error.value)


def test_files_that_are_not_there(tmp_path):
    for name, word in (("none.xyz", "exist"), ("none.traj", "named")):
        with pytest.raises(ConfigError, match=word):
            load_structure(tmp_path / name)
    (tmp_path / "folder.xyz").mkdir()
    (tmp_path / "bytes.xyz").write_bytes(b"\xff\xfe\x00")
    for name, word in (("folder.xyz", "is a folder"), ("bytes.xyz", "read")):
        with pytest.raises(ConfigError, match=word):
            load_structure(tmp_path / name)
    with pytest.raises(ConfigError, match="frame"):
        load_structure(write(tmp_path, EXTENDED), frame=3)


def test_number_density():
    # Liquid argon: 1400 kg/m³ are 35.05 mol/L.
    assert number_density(1400.0, 39.948, METAL) == pytest.approx(0.02110493, rel=1e-6)
    assert number_density(1400.0, 39.948, GROMACS) == pytest.approx(21.10493, rel=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_velocities_have_no_momentum(dtype):
    masses = np.linspace(1, 40, 301).astype(dtype)
    v = maxwell_velocities(jax.random.key(0), masses, 1.5)
    assert v.dtype == dtype
    momentum = np.abs(np.sum(masses[:, None] * np.asarray(v), axis=0))
    assert np.all(momentum < 301 * np.finfo(dtype).eps * np.sqrt(1.5 * 40))


def test_velocities_are_maxwellian():
    masses = np.repeat([1.0, 16.0], 20)
    keys = jax.random.split(jax.random.key(1), 2000)
    v = np.asarray(jax.vmap(lambda key: maxwell_velocities(key, masses, 2.0))(keys))
    kinetic = 0.5 * np.sum(masses[:, None] * v**2, axis=(1, 2))
    freedom = 3 * 40 - 3
    assert kinetic.mean() == pytest.approx(freedom, abs=4 * np.sqrt(2 * freedom / 2000))
    assert kinetic.var() == pytest.approx(2 * freedom, rel=0.15)
    # The light half moves √16 times as fast; each loses its share of the centre of mass.
    total = masses.sum()
    for mass, part in ((1.0, v[:, :20]), (16.0, v[:, 20:])):
        expected = 2.0 / mass * (1 - mass / total)
        assert part.var() == pytest.approx(expected, rel=0.03)


def test_velocities_at_an_exact_temperature():
    masses = np.full(50, 3.0)
    for zero_momentum, freedom in ((True, 147), (False, 150)):
        v = maxwell_velocities(
            jax.random.key(2), masses, 0.7, zero_momentum=zero_momentum, exact=True
        )
        assert float(jnp.sum(masses[:, None] * v**2)) == pytest.approx(freedom * 0.7, rel=1e-12)
    with pytest.raises(ConfigError, match="temperature"):
        maxwell_velocities(jax.random.key(2), masses[:1], 0.7, exact=True)


def test_velocities_of_several_temperatures():
    kT = jnp.array([0.5, 2.0])
    keys = jnp.stack([jax.random.key(3)] * 2)
    v = jax.vmap(lambda key, kT: maxwell_velocities(key, np.ones(10), kT))(keys, kT)
    np.testing.assert_allclose(v[1], 2 * v[0], rtol=1e-12)

"""What `init` of a simulation of atoms refuses: conditions that are missing or of other shapes."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffsim as ds
from diffsim import ConfigError, md
from problems import parameters, unchecked

LJ = md.LennardJones(1.5)
POSITIONS, BOX = md.lattice(8, density=0.1)
ENSEMBLES = {
    "nve": md.NVE(LJ, 0.003),
    "nvt": md.NVT(LJ, 0.003, 1.0),
    "chain": md.NoseHoover(LJ, 0.003, 0.5),
    "rescaling": md.VelocityRescaling(LJ, 0.003, 0.5),
    "npt": md.NPT(LJ, 0.003, 1.0, 1.0, 0.1),
}
GOOD = {"positions": POSITIONS, "box": BOX, "temperature": 1.0}
SHAPES = {
    "flat positions": ("positions", np.zeros((8, 2)), "(8, 2)"),
    "one atom": ("positions", np.zeros(3), "(atoms, 3)"),
    "batched positions": ("positions", np.stack([POSITIONS] * 2), "(2, 8, 3)"),
    "ragged positions": ("positions", [[0.0, 1.0, 2.0], [1.0]], "different lengths"),
    "velocities": ("velocities", np.zeros((7, 3)), "(8, 3)"),
    "flat velocities": ("velocities", np.zeros((8, 2)), "(8, 3)"),
    "masses": ("masses", np.ones(7), "(8,)"),
    "temperatures": ("temperature", np.ones(3), "(3,)"),
    "box": ("box", [9.0, 9.0], "(3,) edge lengths"),
}


def conditions(name):
    return GOOD | ({"pressure": 1.0} if name == "npt" else {})


def start(name, given):
    with unchecked():
        return ENSEMBLES[name].init(parameters(), jax.random.key(0), **given)


@pytest.mark.parametrize("name", ENSEMBLES)
@pytest.mark.parametrize("case", SHAPES)
def test_conditions_of_another_shape_are_refused(name, case):
    key, value, says = SHAPES[case]
    with pytest.raises(ConfigError) as caught:
        start(name, conditions(name) | {key: value})
    assert str(caught.value).startswith(f"{key}: ")
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("name", "key"),
    [(name, "temperature") for name in ENSEMBLES if name != "nve"] + [("npt", "pressure")],
)
def test_what_an_ensemble_needs_is_asked_for(name, key):
    given = conditions(name) | {"velocities": np.zeros((8, 3))}
    del given[key]
    with pytest.raises(ConfigError, match=f"{key}: is not given"):
        start(name, given)


@pytest.mark.parametrize("name", ENSEMBLES)
@pytest.mark.parametrize("masses", [2.0, np.full(8, 2.0), np.full(8, 2.0).tolist()])
def test_what_fits_is_taken(name, masses):
    given = conditions(name) | {"masses": masses, "velocities": np.ones((8, 3)).tolist()}
    state = start(name, given | {"positions": POSITIONS.tolist()})
    assert state.velocities.shape == (8, 3)


@pytest.mark.parametrize("rigid", [None, md.Constraints([[0, 1]], 1.0)])
def test_masses_of_too_few_atoms_with_and_without_rigid_bonds(rigid):
    nve = md.NVE(LJ, 0.003, constraints=rigid)
    with pytest.raises(ConfigError, match="masses: has the shape"):
        nve.init(parameters(), jax.random.key(0), **GOOD, masses=np.ones(7))


def test_shapes_are_checked_inside_of_jit():
    def started(positions):
        given = {**GOOD, "positions": positions, "masses": np.ones(7)}
        return ENSEMBLES["nvt"].init(parameters(), jax.random.key(0), **given).kT

    with pytest.raises(ConfigError, match="masses"):
        jax.eval_shape(started, jnp.asarray(POSITIONS))


def test_single_points_and_minima():
    flat = np.zeros((8, 2))
    with unchecked(), pytest.raises(ConfigError, match="positions: has the shape"):
        md.SinglePoint(LJ).init(parameters(), jax.random.key(0), positions=flat, box=BOX)
    with unchecked(), pytest.raises(ConfigError, match="positions: has the shape"):
        md.minimise(LJ, parameters(), flat, BOX)


BATCHED = [
    ("nvt", {"masses": np.ones((2, 7))}, "masses: has the shape"),
    ("nvt", {"velocities": np.zeros((2, 7, 3))}, "velocities: has the shape"),
    ("nvt", {"temperature": np.ones((2, 8))}, "temperature: has the shape"),
    ("nvt", {"temperature": None}, "temperature: is not given"),
    ("nvt", {"box": None}, "conditions.box: is not given"),
    ("nvt", {"positions": None}, "conditions.positions: is not given"),
    ("npt", {}, "pressure: is not given"),
    ("nvt", {}, None),
    ("nvt", {"masses": np.ones((2, 8))}, None),
    ("nvt", {"masses": np.ones(2)}, None),
]


@pytest.mark.parametrize(("name", "changes", "says"), BATCHED)
def test_conditions_of_a_problem(name, changes, says):
    given = {k: np.stack([np.asarray(v)] * 2) for k, v in GOOD.items()} | changes
    given = {k: v for k, v in given.items() if v is not None}
    free = {name: ds.Parameter(1.0) for name in parameters()}
    problem = ds.Problem(ENSEMBLES[name], free, [], ds.Schedule(steps=1), given)
    with contextlib.nullcontext() if says is None else pytest.raises(ConfigError, match=says):
        problem.check()

"""Fields on disk: with coordinates for xarray, described for ParaView, as a film for people."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from PIL import Image

import diffsim as ds
from diffsim import cfd
from diffsim._report.figures_flow import vorticity_film
from diffsim._report.run_data import RunData
from diffsim._simulation import Axis
from diffsim._store import Series, TrajectoryWriter, read_trajectory, write_xdmf
from diffsim.cfd._axes import field_axes
from flows import KEY, STILL, run
from problems import slow_but

TIMES = np.array([0.5, 1.0, 1.5])
NU = {"viscosity": 0.1}
GRID2, GRID3 = cfd.Grid((8, 10), size=(2.0, 3.0)), cfd.Grid((4, 5, 6), size=(1.0, 2.0, 3.0))
FLOWS = {
    "periodic": cfd.IncompressibleFlow(GRID2, 0.01, extra=cfd.Probes(counts=[2, 3])),
    "cavity": cfd.IncompressibleFlow(GRID2, 0.01, boundaries=(STILL, STILL)),
    "scalar": cfd.IncompressibleFlow(GRID2, 0.01, scalars=cfd.Scalar("heat", 0.1)),
    "3D": cfd.IncompressibleFlow(GRID3, 0.01),
    "spectral": cfd.SpectralFlow(cfd.Grid((8, 8)), 0.01),
    "spectral 3D": cfd.SpectralFlow(cfd.Grid((8, 8, 8)), 0.01),
}
FIELDS = {"velocity", "vorticity", "pressure", "spectrum", "centreline_u", "probes", "heat"}


def written(path: Path, axes: dict[str, tuple[Axis, ...]], **observables: Any) -> Path:
    with TrajectoryWriter(path, axes=axes) as writer:
        writer.extend([1, 2, 3], TIMES, observables=observables)
    return path


def opened(path: Path) -> xr.Dataset:
    with xr.open_dataset(path, engine="h5netcdf") as found:
        return found.load()


@pytest.mark.parametrize("name", FLOWS)
def test_every_field_of_a_flow_has_axes_of_its_shape(name):
    flow = FLOWS[name]
    seen = jax.eval_shape(flow.observe, NU, flow.init(NU, KEY))
    axes = field_axes(flow)
    assert {n for n in seen if np.ndim(seen[n])} == set(axes) & set(seen)
    for field in set(axes) & set(seen):
        assert seen[field].shape == tuple(len(axis.points) for axis in axes[field])


@pytest.mark.parametrize("name", ["periodic", "cavity"])
def test_the_coordinates_of_the_vorticity_are_where_it_is(name):
    """Of u = (y², x²) the vorticity is 2x - 2y at the corners inside."""
    flow = FLOWS[name]
    fields = tuple(jnp.asarray(flow.box.coordinates(c)[1 - c]) ** 2 for c in range(2))
    state = cfd.FlowState(fields, {}, None, jnp.zeros(()))
    vorticity = np.asarray(flow.observe(NU, state)["vorticity"])
    x, y = (axis.points for axis in field_axes(flow)["vorticity"])
    inside = (slice(1, -2), slice(1, -2))
    exact = 2 * x[:, None] - 2 * y
    np.testing.assert_allclose(vorticity[inside], exact[inside], atol=1e-12)


def test_pdes_have_axes_too():
    equation = cfd.GrayScott(cfd.Grid((8, 8)), 0.1)
    assert [axis.name for axis in field_axes(equation)["v"]] == ["x", "y"]


@pytest.mark.slow  # to compile
@pytest.mark.parametrize("batch", slow_but([2], [1, 2]))
def test_xarray_opens_the_trajectory_of_a_run(tmp_path, batch):
    grid = "{_target_: diffsim.cfd.Grid, shape: [8, 8]}"
    flow = f"{{_target_: diffsim.cfd.IncompressibleFlow, grid: {grid}, dt: 0.1}}"
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "vortices.yaml").write_text(
        "# @package _global_\nname: vortices\nquestion: How do they decay?\n"
        f"simulation: {flow}\n"
        "parameters: {viscosity: {_target_: diffsim.Parameter, init: 0.1, fixed: true}}\n"
        "conditions: {velocity: {_target_: diffsim.cfd.random_velocity, "
        f"flow: '${{simulation}}', peak_wavenumber: 1, seeds: {list(range(batch))}}}}}\n"
        "schedule: {_target_: diffsim.Schedule, steps: 4, save_every: 2}\n"
    )
    from diffsim import run as command

    words = ["experiment=vortices", "--config-dir", str(tmp_path)]
    place = tmp_path / "run"
    assert command.main([*words, f"hydra.run.dir={place}"]) == 0
    found = opened(place / "trajectory.h5")
    samples = ("sample",) if batch > 1 else ()
    assert found["velocity"].dims == ("time", *samples, "component", "x", "y")
    assert found["vorticity"].dims == ("time", *samples, "x_face", "y_face")
    assert found["kinetic_energy"].dims == ("time", *samples)
    np.testing.assert_allclose(found["time"], [0.2, 0.4])
    np.testing.assert_allclose(found["x"], (np.arange(8) + 0.5) * np.pi / 4)
    np.testing.assert_allclose(found["x_face"], (np.arange(8) + 1) * np.pi / 4)
    assert list(found["component"].values) == ["u", "v"]
    assert list(found["velocity"].attrs["offset"]) == [0.5, 0.5]
    recorded = read_trajectory(place / "trajectory.h5").observables
    np.testing.assert_array_equal(found["vorticity"], recorded["vorticity"].value)
    assert bool((found["kinetic_energy"].diff("time") < 0).all())
    assert (place / "trajectory.xdmf").exists()
    assert (place / "figures" / "vorticity.gif").exists()
    assert "data:image/gif;base64," in (place / "report.html").read_text()


def test_what_has_no_axes_stays_a_plain_trajectory(tmp_path):
    plain = written(tmp_path / "plain.h5", {}, energy=TIMES, odd=np.zeros((3, 7)))
    assert set(opened(plain)) == {"energy", "step"}
    with TrajectoryWriter(tmp_path / "md.h5") as writer:
        writer.extend([1], [0.1], observables={"energy": [1.0]})
    with h5py.File(tmp_path / "md.h5") as file:
        assert set(file) == {"h5md", "observables"}
    assert write_xdmf(plain) is None


def test_a_resumed_trajectory_stays_labelled(tmp_path):
    axes = {"s": (Axis("x", np.arange(4.0), 0.0),)}
    path = written(tmp_path / "t.h5", axes, s=np.arange(12.0).reshape(3, 4))
    with TrajectoryWriter(path, axes=axes, resume_at=2) as writer:
        writer.extend([3, 4], [1.5, 2.0], observables={"s": np.ones((2, 4))})
    found = opened(path)
    np.testing.assert_array_equal(found["time"], [0.5, 1.0, 1.5, 2.0])
    assert found["s"].sel(x=3.0).values.tolist() == [3.0, 7.0, 1.0, 1.0]


def test_what_was_appended_can_be_read_after_a_kill(tmp_path):
    axes = {"s": (Axis("x", np.arange(4.0), 0.5), Axis("y", np.arange(5.0), 0.5))}
    with TrajectoryWriter(tmp_path / "t.h5", axes=axes) as writer:
        for step in (1, 2):
            writer.extend([step], [0.5 * step], observables={"s": np.full((1, 4, 5), step)})
            (tmp_path / "killed.h5").write_bytes((tmp_path / "t.h5").read_bytes())
            assert opened(tmp_path / "killed.h5")["s"].isel(x=0, y=0).values[-1] == step
    assert write_xdmf(tmp_path / "killed.h5") == tmp_path / "killed.xdmf"


# ParaView


def told(side: Path) -> Iterator[tuple[float, str, np.ndarray, np.ndarray]]:
    """What XDMF says: the time and name of each attribute, its values and their positions."""
    document = ET.parse(side).getroot()
    for grid in document.iterfind("Domain/Grid/Grid"):
        time = float(_found(grid, "Time").attrib["Value"])
        topology = _found(grid, "Topology").attrib
        shape = tuple(map(int, topology["Dimensions"].split()))
        assert topology["TopologyType"] == f"{len(shape)}DSMesh"
        geometry = _found(grid, "Geometry")
        assert geometry.attrib["GeometryType"] == "XYZ"[: len(shape)]
        points = _stored(side, _found(geometry, "DataItem"))
        assert points.shape == (*shape, len(shape))
        for attribute in grid.iterfind("Attribute"):
            slab = _found(attribute, "DataItem")
            select, item = slab.findall("DataItem")
            start, stride, count = np.array((select.text or "").split(), int).reshape(3, -1)
            index = tuple(
                slice(a, a + n * s, s) for a, s, n in zip(start, stride, count, strict=True)
            )
            values = _stored(side, item)[index].reshape(shape)
            assert slab.attrib["Dimensions"] == topology["Dimensions"]
            yield time, attribute.attrib["Name"], values, points


def _found(element: ET.Element, tag: str) -> ET.Element:
    found = element.find(tag)
    assert found is not None
    return found


def _stored(side: Path, item: ET.Element) -> np.ndarray:
    file, _, place = (item.text or "").partition(":")
    with h5py.File(side.with_name(file)) as opened_file:
        dataset: Any = opened_file[place]
        assert list(dataset.shape) == [int(n) for n in item.attrib["Dimensions"].split()]
        assert str(dataset.dtype.itemsize) == item.attrib["Precision"]
        return dataset[()]


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 6)], ids=["2D", "3D"])
def test_paraview_is_told_where_each_value_is(tmp_path, shape):
    """Fields that are functions of the place and the time, at centres and at faces."""
    names = "xyz"[: len(shape)]
    along = [np.arange(n) * (1.0 + i) for i, n in enumerate(shape)]
    centres = tuple(Axis(a, x + 0.5, 0.5) for a, x in zip(names, along, strict=True))
    corners = tuple(Axis(f"{a}_face", x, 0.0) for a, x in zip(names, along, strict=True))
    component = Axis("component", list("uvw"[: len(shape)]))
    x = np.stack(np.meshgrid(*(a.points for a in centres), indexing="ij"))
    corner = np.stack(np.meshgrid(*along, indexing="ij"))
    velocity = np.stack([t * x for t in TIMES])
    curl = np.stack([t * (corner[0] + 10 * corner[1]) for t in TIMES])
    side = write_xdmf(
        written(
            tmp_path / "trajectory.h5",
            {"velocity": (component, *centres), "curl": corners},
            velocity=velocity,
            curl=curl,
        ).parent
    )
    assert side is not None and side == tmp_path / "trajectory.xdmf"
    seen = []
    for time, name, values, points in told(side):
        exact = points[..., 0] + 10 * points[..., 1] if name == "curl" else None
        exact = points[..., "uvw".index(name[-1])] if exact is None else exact
        np.testing.assert_allclose(values, time * exact, rtol=1e-6)
        seen.append((time, name))
    fields = ["curl", *(f"velocity_{c}" for c in component.points)]
    assert sorted(seen) == sorted((t, name) for t in TIMES for name in fields)


def test_conditions_have_names_of_their_own_for_paraview(tmp_path):
    space = (Axis("x", np.arange(4.0), 0.0), Axis("y", np.arange(5.0), 0.0))
    axes = {"s": (Axis("sample", np.arange(2)), *space)}
    s = np.arange(3 * 2 * 20.0).reshape(3, 2, 4, 5)
    side = write_xdmf(written(tmp_path / "t.h5", axes, s=s))
    assert side is not None
    found = {(t, name): values for t, name, values, _ in told(side)}
    np.testing.assert_array_equal(found[1.0, "s_1"], s[1, 1])


@pytest.mark.parametrize(
    ("content", "message"), [(None, "does not exist"), (b"not HDF5", "cannot be read")]
)
def test_xdmf_of_no_trajectory_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "trajectory.h5").write_bytes(content)
    with pytest.raises(ds.ConfigError, match=message):
        write_xdmf(tmp_path)
    assert not (tmp_path / "trajectory.xdmf").exists()


# The film


def filmed(fields: np.ndarray) -> bytes | None:
    steps, times = np.arange(len(fields)), np.arange(len(fields), dtype=float)
    return vorticity_film(RunData("x", series={"vorticity": Series(steps, times, fields)}))


@pytest.mark.parametrize(
    ("frames", "shape", "shown", "size"),
    [
        (3, (16, 16), 3, (320, 320)),
        (100, (12, 6), 40, (312, 156)),
        (5, (700, 350), 5, (234, 117)),
        (5, (2, 16, 16), 5, (320, 320)),
    ],
)
def test_a_film_has_its_frames(frames, shape, shown, size):
    rng = np.random.default_rng(0)
    film = filmed(rng.standard_normal((frames, *shape)))
    assert film is not None and len(film) < 1_000_000
    with Image.open(io.BytesIO(film)) as picture:
        assert getattr(picture, "n_frames", 1) == shown
        assert picture.size == size


def test_a_film_stands_as_the_flow_does():
    """Positive vorticity, red, where x is small and y large: top left."""
    fields = np.zeros((2, 16, 16))
    fields[:, :8, 8:], fields[:, 8:, :8] = 1.0, -1.0
    film = filmed(fields)
    assert film is not None
    with Image.open(io.BytesIO(film)) as picture:
        pixels = np.asarray(picture.convert("RGB"), int)
    red, blue = pixels[80, 80], pixels[240, 300]
    assert red[0] > red[2] + 50 and blue[2] > blue[0] + 50


def test_a_film_that_is_hard_to_compress_has_fewer_frames():
    film = filmed(np.random.default_rng(0).standard_normal((40, 320, 320)))
    assert film is not None and len(film) < 1_000_000
    with Image.open(io.BytesIO(film)) as picture:
        assert 2 <= getattr(picture, "n_frames", 1) < 40


@pytest.mark.parametrize(
    "fields", [np.zeros((1, 8, 8)), np.full((3, 8, 8), np.nan), np.zeros((3, 3, 8, 8, 8))]
)
def test_no_film_of_what_does_not_move_in_a_plane(fields):
    assert filmed(fields) is None


def test_the_spectrum_has_a_wave_number_for_each_shell():
    flow = cfd.IncompressibleFlow(cfd.Grid((6, 9)), 0.01)
    seen = run(flow, NU, 1).observables["spectrum"]
    assert seen.shape[1] == len(field_axes(flow)["spectrum"][0].points)

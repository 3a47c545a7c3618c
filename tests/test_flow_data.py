"""Data sets of others in JAX-CFD's layout: read as grids, times, starts, targets and references."""

import sys
from pathlib import Path
from typing import Any

import h5py
import jax
import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import diffsim as ds
from diffsim import cfd, config
from diffsim._store import TrajectoryWriter
from diffsim.cfd._axes import field_axes
from flows import KEY, STILL, taylor_green

NU = 0.05
TIMES = np.array([0.0, 0.2, 0.4, 0.6])
GRID = cfd.Grid((16, 16))
FLOW = cfd.IncompressibleFlow(GRID, 0.1, extra=cfd.Probes(counts=[3, 3]))


def decaying(flow: cfd.IncompressibleFlow, samples: int = 2) -> list[np.ndarray]:
    """Taylor-Green vortices, exp(-2 ν t), of strength 1, 2, ...: (samples, times, *unknowns)."""
    size = np.arange(1.0, samples + 1)[:, None] * np.exp(-2 * NU * TIMES)
    return [size[..., None, None] * u for u in taylor_green(flow.box)]


def jax_cfd_data(flow: cfd.IncompressibleFlow = FLOW) -> xr.Dataset:
    """As `jax_cfd.data.xarray_utils.velocity_trajectory_to_xarray` lays it out: the coordinates are
    the centres for all, and an attribute says where in a cell a variable is."""
    dims = ("sample", "time", "x", "y")
    u, v = decaying(flow)
    variables = {
        "u": (dims, u, {"offset": (1.0, 0.5)}),
        "v": (dims, v, {"offset": (0.5, 1.0)}),
    }
    x, y = (flow.grid.centres(axis) for axis in range(2))
    return xr.Dataset(variables, {"x": x, "y": y, "time": TIMES, "sample": np.arange(2)})


@pytest.mark.parametrize("kind", ["netcdf4", "netcdf3", "dataset", "float32"])
def test_what_jax_cfd_saved_comes_back(tmp_path, kind):
    data = jax_cfd_data()
    file: Any = tmp_path / "flow.nc"
    if kind == "netcdf4":
        data.to_netcdf(file, engine="h5netcdf")
    elif kind == "netcdf3":
        data.to_netcdf(file, engine="scipy")
    elif kind == "float32":
        single = data.astype("float32").assign_coords(
            {name: data[name].astype("float32") for name in ("x", "y", "time")}
        )
        single.to_netcdf(file, engine="h5netcdf")
    else:
        file = data
    found = cfd.FlowData(file)
    assert found.grid == GRID
    assert found.offset == ((1.0, 0.5), (0.5, 1.0))
    assert (found.samples, found.ndim) == (2, 2)
    np.testing.assert_array_equal(cfd.data_times(file), TIMES)
    np.testing.assert_array_equal(cfd.data_times(file, after=0.0, until=0.4), TIMES[1:3])
    np.testing.assert_array_equal(cfd.data_times(file, every=2), TIMES[1::2])
    start = cfd.data_velocity(file, FLOW, time=0.2, samples=[1])
    for u, exact in zip(start, decaying(FLOW), strict=True):
        np.testing.assert_allclose(u, exact[1:, 1], rtol=1e-6 if kind == "float32" else 0)


def test_any_order_of_dimensions_and_a_missing_sample():
    data = jax_cfd_data().isel(sample=0, drop=True).transpose("y", "x", "time")
    found = cfd.data_velocity(data, FLOW)
    np.testing.assert_array_equal(found[0], decaying(FLOW)[0][:1, 0])


@pytest.mark.parametrize("name", ["velocity", "vorticity", "probes", "kinetic_energy", "spectrum"])
def test_data_are_seen_as_the_simulation_sees_itself(name):
    seen = cfd.data_observed(jax_cfd_data(), FLOW, name)
    observed = jax.jit(lambda state: FLOW.observe({"viscosity": NU}, state))
    for sample in range(2):
        for save in range(len(TIMES)):
            fields = tuple(u[sample, save] for u in decaying(FLOW))
            own = observed(FLOW.init({"viscosity": NU}, KEY, velocity=fields))
            np.testing.assert_allclose(seen[sample, save], own[name], atol=1e-13)
    one = cfd.data_observed(jax_cfd_data(), FLOW, name, samples=1)
    np.testing.assert_array_equal(one, seen[1])


@pytest.mark.parametrize("factor", [2, 4])
def test_coarse_fields_are_means_over_faces_and_free_of_divergence(factor):
    grid = cfd.data_grid(jax_cfd_data(), coarsen=factor)
    assert grid.shape == (16 // factor, 16 // factor)
    coarse = cfd.IncompressibleFlow(grid, 0.1)
    u, v = (x[0] for x in cfd.data_velocity(jax_cfd_data(), coarse))
    # the mean of cos x sin y over the face at x from y to y + H
    shrink = np.sin(GRID.spacing[1] * factor / 2) / np.sin(GRID.spacing[1] / 2) / factor
    exact = taylor_green(coarse.box)
    np.testing.assert_allclose(u, shrink * exact[0], atol=1e-13)
    np.testing.assert_allclose(v, shrink * exact[1], atol=1e-13)
    fields = (jax.numpy.asarray(u), jax.numpy.asarray(v))
    assert float(np.max(np.abs(coarse.box.divergence(fields, {})))) < 1e-13


def test_coarse_fields_are_those_of_jax_cfd():
    cfd.repair_jax_cfd()
    from jax_cfd.base import grids, resize

    fine, coarse = (grids.Grid((n, n), domain=[(0, 2 * np.pi)] * 2) for n in (16, 4))
    rng = np.random.default_rng(0)
    fields = {n: (("time", "x", "y"), rng.standard_normal((1, 16, 16))) for n in "uv"}
    bare = tuple(jax.numpy.asarray(u[0]) for _, u in fields.values())
    theirs = resize.downsample_staggered_velocity(fine, coarse, bare)
    x, y = (GRID.centres(axis) for axis in range(2))
    data = xr.Dataset(fields, {"time": [0.0], "x": x, "y": y})
    flow = cfd.IncompressibleFlow(cfd.Grid((4, 4)), 0.1)
    ours = cfd.data_velocity(data, flow, offset="staggered")
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a[0], b, atol=1e-14)


@given(st.integers(0, 2**32 - 1), st.sampled_from([2, 3]), st.sampled_from([2, 3]))
def test_coarsening_keeps_divergence_and_momentum(seed, ndim, factor):
    """The divergence of the means is the mean of the divergence."""
    fine = cfd.IncompressibleFlow(cfd.Grid((4 * factor,) * ndim), 0.1)
    coarse = cfd.IncompressibleFlow(cfd.Grid((4,) * ndim), 0.1)
    rng = np.random.default_rng(seed)
    fields = [rng.standard_normal((1, 1, *fine.grid.shape)) for _ in range(ndim)]
    dims = ("sample", "time", *"xyz"[:ndim])
    coords = {a: fine.grid.centres(i) for i, a in enumerate("xyz"[:ndim])}
    data = xr.Dataset(
        {n: (dims, u) for n, u in zip("uvw", fields, strict=False)}, {**coords, "time": [0.0]}
    )
    found = cfd.data_velocity(data, coarse, offset="staggered")
    split = [n for _ in range(ndim) for n in (4, factor)]
    source = np.asarray(fine.box.divergence([jax.numpy.asarray(u[0, 0]) for u in fields], {}))
    mean = source.reshape(split).mean(axis=tuple(range(1, 2 * ndim, 2)))
    here = coarse.box.divergence([jax.numpy.asarray(u[0]) for u in found], {})
    np.testing.assert_allclose(here, mean, atol=1e-12)


def at_offset(offset: Any, **attributes: Any) -> xr.Dataset:
    """Taylor-Green with u and v at places of a cell."""
    at = [[(np.arange(16) + o) * GRID.spacing[0] for o in one] for one in offset]
    (xu, yu), (xv, yv) = at
    u, v = np.outer(np.cos(xu), np.sin(yu)), -np.outer(np.sin(xv), np.cos(yv))
    coords = {"x": GRID.centres(0), "y": GRID.centres(1), "time": [0.0]}
    variables = {"u": (("time", "x", "y"), u[None]), "v": (("time", "x", "y"), v[None])}
    data = xr.Dataset(variables, coords)
    for name, one in zip("uv", offset, strict=True):
        data[name].attrs["offset"] = one
    return data.assign_attrs(attributes)


LOWER = ((0.0, 0.5), (0.5, 0.0))
CENTRES = ((0.5, 0.5), (0.5, 0.5))
POINTS = ((0.0, 0.0), (0.0, 0.0))


@pytest.mark.parametrize("offset", [((1.0, 0.5), (0.5, 1.0)), LOWER], ids=["upper", "lower"])
def test_faces_are_taken_where_they_are(offset):
    found = cfd.data_velocity(at_offset(offset), FLOW)
    for u, exact in zip(found, taylor_green(FLOW.box), strict=True):
        np.testing.assert_allclose(u[0], exact, atol=1e-14)


def test_velocities_at_centres_are_compared_as_they_are_and_averaged_to_start():
    data = at_offset(CENTRES)
    seen = cfd.data_observed(data, FLOW)
    x, y = GRID.mesh()
    np.testing.assert_allclose(seen[0, 0, 0], np.cos(x) * np.sin(y), atol=1e-14)
    start = cfd.data_velocity(data, FLOW)
    shrink = np.cos(GRID.spacing[0] / 2)
    np.testing.assert_allclose(start[0][0], shrink * taylor_green(FLOW.box)[0], atol=1e-14)


@pytest.mark.parametrize("offset", [((1.0, 0.5), (0.5, 1.0)), LOWER, CENTRES, POINTS])
@pytest.mark.parametrize("cells", [16, 8, 12])
def test_a_spectral_flow_takes_any_offset_exactly(offset, cells):
    flow = cfd.SpectralFlow(cfd.Grid((cells, cells)), 0.1)
    if 16 % cells:
        with pytest.raises(ds.ConfigError, match="no whole number a cell"):
            cfd.data_velocity(at_offset(offset), flow)
        return
    x, y = flow.points()
    start = cfd.data_velocity(at_offset(offset), flow)
    np.testing.assert_allclose(start[0][0], np.cos(x) * np.sin(y), atol=1e-13)
    vorticity = cfd.data_observed(at_offset(offset), flow, "vorticity")
    np.testing.assert_allclose(vorticity[0, 0], -2 * np.cos(x) * np.cos(y), atol=1e-12)


def test_offsets_are_told_by_coordinates():
    """u(time, x_face, y) and v(time, x, y_face), as xgcm and many codes have them."""
    plain = at_offset(LOWER)
    faces, centres = GRID.faces(0)[:-1], GRID.centres(0)
    data = xr.Dataset(
        {
            "u": (("time", "x_face", "y"), plain["u"].values),
            "v": (("time", "x", "y_face"), plain["v"].values),
        },
        {"time": [0.0], "x": centres, "y": centres, "x_face": faces, "y_face": faces},
    )
    found = cfd.FlowData(data)
    assert found.offset == LOWER
    assert found.grid == GRID
    told = cfd.FlowData(plain, offset=LOWER)
    assert told.offset == LOWER


def test_walls_take_the_faces_between_them():
    flow = cfd.IncompressibleFlow(GRID, 0.1, boundaries=("periodic", STILL))
    data = jax_cfd_data()
    u, v = cfd.data_velocity(data, flow, samples=[0])
    np.testing.assert_array_equal(u[0], decaying(FLOW)[0][0, 0])
    np.testing.assert_array_equal(v[0], decaying(FLOW)[1][0, 0][:, :-1])
    out = cfd.IncompressibleFlow(GRID, 0.1, boundaries=((cfd.Outflow(), cfd.Slip()), "periodic"))
    with pytest.raises(ds.ConfigError, match="both sides"):
        cfd.data_velocity(data, out)


@pytest.mark.slow  # to compile
@pytest.mark.parametrize(
    "flow",
    [FLOW, pytest.param(cfd.SpectralFlow(cfd.Grid((16, 16)), 0.1), marks=pytest.mark.slow)],
    ids=["staggered", "spectral"],
)
def test_a_run_of_ours_is_a_data_set(tmp_path, flow):
    params = {"viscosity": NU}
    state = flow.init(params, KEY, velocity=[u[0] for u in cfd.taylor_green(flow)])
    seen = ds.solve(flow, params, state, schedule=ds.Schedule(steps=2, save_every=1)).observables
    place = tmp_path / "trajectory.h5"
    with TrajectoryWriter(place, axes=field_axes(flow)) as writer:
        writer.extend([1, 2], [0.1, 0.2], observables={"velocity": np.asarray(seen["velocity"])})
    found = cfd.FlowData(place)
    assert found.grid == flow.grid
    np.testing.assert_allclose(cfd.data_observed(found, flow)[0], seen["velocity"], atol=1e-13)


@pytest.mark.slow  # to compile
def test_viscosity_is_fitted_to_a_data_set_named_in_yaml(tmp_path):
    file = tmp_path / "vortices.nc"
    jax_cfd_data().to_netcdf(file, engine="h5netcdf")
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "vortices.yaml").write_text(f"""# @package _global_
defaults:
  - override /adjoint: forward
  - override /fit: least_squares
name: vortices
question: How viscous is what JAX-CFD saved?
simulation:
  _target_: diffsim.cfd.IncompressibleFlow
  grid: {{_target_: diffsim.cfd.data_grid, file: "{file}"}}
  dt: 0.1
parameters:
  viscosity: {{_target_: diffsim.Parameter, init: 0.02, transform: positive}}
conditions:
  velocity: {{_target_: diffsim.cfd.data_velocity, file: "{file}", flow: "${{simulation}}"}}
targets:
  - _target_: diffsim.Target
    observable: velocity
    data: {{_target_: diffsim.cfd.data_observed, file: "{file}", flow: "${{simulation}}", after: 0}}
    sigma: 0.1
    statistic: each
schedule:
  _target_: diffsim.Schedule
  ts: {{_target_: diffsim.cfd.data_times, file: "{file}", after: 0}}
""")
    composed = config.prepare(["experiment=vortices"], str(tmp_path))
    problem = config.build(composed.config).problem
    assert problem.batch == 2
    fitted = ds.least_squares(problem, adjoint=ds.ForwardMode())
    # the grid's own wave number: exp(-2 ν k² t) with k² = (2/h)² sin²(h/2)
    squared = (2 / GRID.spacing[0] * np.sin(GRID.spacing[0] / 2)) ** 2
    assert fitted.values["viscosity"] == pytest.approx(NU / squared, rel=1e-6)


# Refusals

WRONG: dict[str, tuple[Any, str]] = {
    "no v": (lambda d: d.drop_vars("v"), "has the variables u"),
    "no time": (lambda d: d.isel(time=0, drop=True), "no dimension 'time'"),
    "no times": (lambda d: d.drop_vars("time"), "no coordinate 'time'"),
    "dates": (
        lambda d: d.assign_coords(time=d["time"].values.astype("M8[s]").astype("M8[ns]")),
        "dates",
    ),
    "backwards": (lambda d: d.isel(time=slice(None, None, -1)), "do not increase"),
    "no x": (lambda d: d.drop_vars("x"), "no coordinate 'x'"),
    "mirrored": (lambda d: d.isel(x=slice(None, None, -1)), "x does not increase"),
    "stretched": (lambda d: d.assign_coords(y=d["y"] ** 1.1), "y is not uniform"),
    "other dimension": (lambda d: d.rename(sample="member"), "dimension 'member'"),
    "3D": (lambda d: d.expand_dims(z=np.arange(4.0)), "2 components"),
    "thin": (lambda d: d.isel(x=slice(3)), "at least 4"),
    "silent": (lambda d: without_offset(d), "faces or centres"),
    "odd offset": (lambda d: d.assign(u=d["u"].assign_attrs(offset=[0.7, 0.5])), "needs 2 numbers"),
}


def without_offset(data: xr.Dataset) -> xr.Dataset:
    data = data.copy()
    for name in ("u", "v"):
        data[name] = data[name].drop_attrs()
    return data


@pytest.mark.parametrize(("change", "told"), WRONG.values(), ids=WRONG)
def test_other_layouts_are_refused(change, told):
    with pytest.raises(ds.ConfigError, match=told):
        cfd.FlowData(change(jax_cfd_data()))


def test_an_argument_says_what_a_file_does_not():
    data = without_offset(jax_cfd_data())
    assert cfd.FlowData(data, "staggered").offset == ((1.0, 0.5), (0.5, 1.0))
    assert cfd.FlowData(data, "centres").offset == CENTRES
    with pytest.raises(ds.ConfigError, match="did you mean staggered"):
        cfd.FlowData(data, "stagered")


ASKED: dict[str, tuple[Any, str]] = {
    "time": (lambda d: cfd.data_velocity(d, FLOW, time=0.21), "did you mean 0.2"),
    "sample": (lambda d: cfd.data_velocity(d, FLOW, samples=[2]), "0 to 1"),
    "after": (lambda d: cfd.data_times(d, after=0.6), "no such time"),
    "every": (lambda d: cfd.data_times(d, every=0), "at least 1"),
    "coarsen": (lambda d: cfd.data_grid(d, coarsen=3), "must divide"),
    "observable": (lambda d: cfd.data_observed(d, FLOW, "vortcity"), "did you mean vorticity"),
    "parameters": (lambda d: cfd.data_observed(d, FLOW, "dissipation"), "depends on parameters"),
    "box": (lambda d: cfd.data_grid(d) and cfd.data_velocity(d, in_a_box(1.0)), "data_grid"),
    "finer": (lambda d: cfd.data_velocity(d, in_a_box(2 * np.pi)), "no whole number a cell"),
    "points": (lambda d: cfd.data_velocity(d, FLOW, offset=POINTS), "at faces or at centres"),
    "nan": (lambda d: cfd.data_velocity(d.where(d["x"] > 1), FLOW), "not finite"),
    "number": (lambda d: cfd.FlowData(3), "path or an xarray.Dataset"),
}


def in_a_box(size: float) -> cfd.IncompressibleFlow:
    return cfd.IncompressibleFlow(cfd.Grid((24, 24), size=size), 0.1)


@pytest.mark.parametrize(("ask", "told"), ASKED.values(), ids=ASKED)
def test_what_data_do_not_have_is_refused(ask, told):
    with pytest.raises(ds.ConfigError, match=told):
        ask(jax_cfd_data())


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("flow.nx", None, "did you mean flow.nc"),
        ("text.nc", b"time, u, v", "neither NetCDF"),
        ("torn.nc", b"\x89HDF\r\n\x1a\n", "cannot be read"),
        ("torn3.nc", b"CDF\x01", "cannot be read"),
    ],
)
def test_what_is_no_data_set_is_refused(tmp_path: Path, name, content, told):
    (tmp_path / "flow.nc").write_bytes(b"CDF")
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ds.ConfigError, match=told):
        cfd.FlowData(tmp_path / name)


def test_links_to_other_files_are_not_followed(tmp_path):
    jax_cfd_data().to_netcdf(tmp_path / "flow.nc", engine="h5netcdf")
    with h5py.File(tmp_path / "linked.nc", "w") as file:
        file["u"] = h5py.ExternalLink("flow.nc", "u")
    with pytest.raises(ds.ConfigError, match="keeps 'u' elsewhere"):
        cfd.FlowData(tmp_path / "linked.nc")


@pytest.mark.parametrize("package", ["xarray", "h5netcdf"])
def test_without_its_packages_the_extra_is_named(tmp_path, monkeypatch, package):
    jax_cfd_data().to_netcdf(tmp_path / "flow.nc", engine="h5netcdf")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ds.ConfigError, match=rf"{package}.*pip install 'diffsim\[xarray\]'"):
        cfd.FlowData(tmp_path / "flow.nc")

"""Flows that others computed or measured, from files in JAX-CFD's layout."""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from .._errors import ConfigError, nearest
from .._hdf5 import check_file, opened
from ._axes import COMPONENTS
from ._grid import AXES, Grid

if TYPE_CHECKING:
    import xarray

File = Any  # a path, or an xarray.Dataset that is open already
OFFSETS = ("staggered", "centres")
LARGEST = 2**32  # bytes that are read at once


class FlowData:
    """u(sample, time, x, y[, z]) of a data set: velocities on a uniform grid, at given times.

    **Arguments:** `file`: NetCDF 3 or 4, HDF5 with dimension scales (a run's `trajectory.h5`) or
    Zarr, or an open `xarray.Dataset`; read as far as it is asked for. It has the variables `u`, `v`
    and in 3D `w`, or `velocity` with the dimension `component`; the dimensions `time`, `x`, `y` and
    in 3D `z`, in any order, each with its coordinate; without `sample` it is one. `offset`: where
    in a cell each component is, "staggered" (at the upper face along its own axis: (1, ½) for u and
    (½, 1) for v, as JAX-CFD has it), "centres", or for each component a tuple of 0 (lower face), ½
    and 1 along the axes. Needed only of files that do not say it, be it by an attribute `offset` of
    each variable or by coordinates of its own, as `u(time, x_face, y)`.

    The coordinates of a file are the centres of the cells, as JAX-CFD writes them for all
    variables, unless they have the attribute `offset` themselves.

    **Attributes:** `grid`; `times` (times,), increasing; `samples`, their number; `offset`.

    **Raises** `ConfigError` for a file that is missing, cannot be read or is laid out otherwise.
    Needs xarray: `pip install 'diffsim[xarray]'`.
    """

    grid: Grid
    times: Float[np.ndarray, "times"]
    samples: int
    offset: tuple[tuple[float, ...], ...]

    def __init__(self, file: File, offset: Any = None):
        data = _opened(file)
        self._components = _components(data)
        self._dims = [_space(u) for u in self._components]
        self.times = _times(data)
        self.samples = int(data.sizes.get("sample", 1))
        shared = [_shared(self._dims, axis) for axis in range(self.ndim)]
        lines = [_line(data, name) for name in shared]
        self.grid = Grid(
            [len(x) for x, _, _ in lines],
            [_edge(data, len(x), h) for x, h, _ in lines],
            [_clean(x[0] - at * h, h) for x, h, at in lines],
        )
        self.offset = _offsets(data, self._components, self._dims, shared, self.grid, offset)

    @property
    def ndim(self) -> int:
        return len(self._components)

    def velocity(
        self, times: Sequence[int], samples: Sequence[int]
    ) -> tuple[Float[np.ndarray, "samples times *cells"], ...]:
        """The components at the times and of the samples with these numbers."""
        claimed = self.ndim * len(times) * len(samples) * math.prod(self.grid.shape) * 8
        if claimed > LARGEST:
            raise ConfigError(
                f"these are {claimed / 2**30:.1f} GiB; ask for fewer times or samples", key="file"
            )
        found = []
        for u, space in zip(self._components, self._dims, strict=True):
            part = u.isel(time=list(times))
            part = (
                part.isel(sample=list(samples))
                if "sample" in u.dims
                else part.expand_dims("sample")
            )
            values = np.asarray(part.transpose("sample", "time", *space).values, dtype=float)
            if not np.all(np.isfinite(values)):
                raise ConfigError("holds numbers that are not finite", key=f"file: {u.name}")
            found.append(values)
        return tuple(found)


def _opened(file: File) -> xarray.Dataset:
    _require("xarray")
    import xarray

    if isinstance(file, xarray.Dataset):
        return file
    if not isinstance(file, (str, os.PathLike)):
        raise ConfigError(
            "must be a path or an xarray.Dataset", key="file", value=type(file).__name__
        )
    path = Path(file)
    engine: Any = _engine(path)
    if engine == "h5netcdf":
        _require(engine)
    try:
        return xarray.open_dataset(path, engine=engine, decode_times=False)
    except Exception as error:  # each engine has errors of its own
        line = next(iter(str(error).splitlines()), type(error).__name__)
        raise _refused(path, f"cannot be read ({line[:200]})") from None


def _require(package: str) -> None:
    try:
        importlib.import_module(package)
    except ImportError:
        raise ConfigError(
            f"needs {package}, which is not installed",
            key="file",
            suggestion="pip install 'diffsim[xarray]'",
        ) from None


def _engine(path: Path) -> str:
    """What reads the file, by its first bytes; none of them is asked to follow an address."""
    if path.is_dir():
        return "zarr"
    if not path.is_file():
        try:
            close = nearest(path.name, sorted(each.name for each in path.parent.iterdir()))
        except OSError:
            close = None
        raise _refused(path, "does not exist", close)
    with open(path, "rb") as opened:
        start = opened.read(8)
    if start[:3] == b"CDF":
        return "scipy"
    if start != b"\x89HDF\r\n\x1a\n":
        raise _refused(path, "is neither NetCDF nor HDF5 nor Zarr")
    _check_inside(path)
    return "h5netcdf"


def _check_inside(path: Path) -> None:
    """Refuse arrays that HDF5 would fetch from other files."""
    with opened(path) as file:
        check_file(file, claims=True)


def _refused(path: Path, cause: str, suggestion: str | None = None) -> ConfigError:
    return ConfigError(f"{str(path)!r} {cause}", key="file", suggestion=suggestion)


def _components(data: xarray.Dataset) -> list[xarray.DataArray]:
    """u, v[, w], checked for their dimensions."""
    names = [name for name in COMPONENTS if name in data]
    if names[:2] == ["u", "v"]:
        found = [data[name] for name in names]
    elif "velocity" in data and "component" in data["velocity"].dims:
        velocity = data["velocity"]
        found = [velocity.isel(component=i) for i in range(velocity.sizes["component"])]
    else:
        raise ConfigError(
            f"has the variables {', '.join(map(str, data.data_vars)) or 'none'}",
            key="file",
            allowed="u, v[, w], or velocity with the dimension component",
        )
    for u in found:
        if len(_space(u)) != len(found):
            raise ConfigError(
                f"{u.name} has the dimensions ({', '.join(map(str, u.dims))}) where there are "
                f"{len(found)} components",
                key="file",
                allowed=", ".join(("(sample)", "time", *AXES[: len(found)])),
            )
    return found


def _space(u: xarray.DataArray) -> tuple[str, ...]:
    """The dimensions of a variable along x, y, z: `x`, or `x_face` where it has its own."""
    rest = [str(dim) for dim in u.dims if dim not in ("sample", "time")]
    along = [[dim for dim in rest if dim.partition("_")[0] == axis] for axis in AXES]
    known = [dims[0] for dims in along if len(dims) == 1]
    odd = [dim for dim in rest if dim not in known]
    if odd or "time" not in u.dims:
        cause = f"has a dimension {odd[0]!r}" if odd else "has no dimension 'time'"
        raise ConfigError(
            f"{u.name} {cause}", key="file", allowed="time, x, y[, z] and sample", suggestion=None
        )
    return tuple(known)


def _shared(dims: Sequence[Sequence[str]], axis: int) -> str:
    """The coordinate of the cells along an axis: that of the components across it."""
    return next(d[axis] for c, d in enumerate(dims) if c != axis)


def _times(data: xarray.Dataset) -> np.ndarray:
    if "time" not in data.coords:
        raise ConfigError("has no coordinate 'time'", key="file", allowed="times as numbers")
    times = np.asarray(data["time"].values)
    if times.dtype.kind not in "iuf":
        raise ConfigError(
            "has dates for times", key="file", allowed="numbers: open it with decode_times=False"
        )
    # 0.1 in single precision is no multiple of a time step of 0.1
    single = times.dtype == np.float32
    times = np.array([float(str(t)) for t in times]) if single else times.astype(float)
    if not np.all(np.isfinite(times)) or np.any(np.diff(times) <= 0):
        raise ConfigError("has times that do not increase", key="file")
    return times


def _line(data: xarray.Dataset, name: str) -> tuple[np.ndarray, float, float]:
    """A uniform coordinate: its values, their spacing, and where in its cell each is."""
    if name not in data.coords:
        raise ConfigError(f"has no coordinate {name!r}", key="file", allowed="uniform positions")
    x = np.asarray(data[name].values, dtype=float)
    if x.ndim != 1 or len(x) < 4:
        raise ConfigError(f"{name} needs at least 4 positions", key="file", value=x.shape)
    h = (x[-1] - x[0]) / (len(x) - 1)
    if not h > 0:
        raise ConfigError(f"{name} does not increase", key="file")
    if not np.all(np.abs(np.diff(x) - h) <= 1e-3 * h):
        raise ConfigError(
            f"{name} is not uniform: spacings from {np.min(np.diff(x)):.4g} to "
            f"{np.max(np.diff(x)):.4g}",
            key="file",
        )
    return x, float(h), float(data[name].attrs.get("offset", 0.5))


def _edge(data: xarray.Dataset, cells: int, h: float) -> float:
    """The edge of the box; files in single precision know it better by their attribute."""
    named = np.asarray(data.attrs.get("domain_size", math.nan))
    for edge in (named, 2 * math.pi):
        if np.ndim(edge) == 0 and abs(float(edge) - cells * h) < 1e-5 * cells * h:
            return float(edge)
    return cells * h


def _clean(lower: float, h: float) -> float:
    """0 for what is 0 to rounding."""
    return 0.0 if abs(lower) < 1e-3 * h else float(lower)


def _offsets(
    data: xarray.Dataset,
    components: Sequence[xarray.DataArray],
    dims: Sequence[Sequence[str]],
    shared: Sequence[str],
    grid: Grid,
    asked: Any,
) -> tuple[tuple[float, ...], ...]:
    """Where in its cell each component is: as asked, else as the file says."""
    ndim = grid.ndim
    if isinstance(asked, str):
        if asked not in OFFSETS:
            raise ConfigError("unknown", key="offset", value=asked, allowed=OFFSETS)
        own = 1.0 if asked == "staggered" else 0.5
        given: list[Any] = [[own if a == c else 0.5 for a in range(ndim)] for c in range(ndim)]
    elif asked is not None:
        given = list(asked)
    elif all(u.attrs.get("offset") is not None for u in components):
        given = [u.attrs["offset"] for u in components]
    elif all(dims[c][c] != shared[c] for c in range(ndim)):
        given = [_own(data, own, shared, grid) for own in dims]
    else:
        raise ConfigError(
            "the file does not say whether velocities are at faces or centres",
            key="offset",
            allowed=OFFSETS,
            suggestion="",
        )
    found = tuple(tuple(np.atleast_1d(np.asarray(one, float)).tolist()) for one in given)
    if len(found) != ndim or any(len(o) != ndim or not set(o) <= {0.0, 0.5, 1.0} for o in found):
        raise ConfigError(
            f"needs {ndim} numbers for each of {ndim} components",
            key="offset",
            value=found,
            allowed="0, 0.5 and 1",
        )
    return found


def _own(
    data: xarray.Dataset, own: Sequence[str], shared: Sequence[str], grid: Grid
) -> list[float]:
    """Offsets by coordinates: twice a shift in cells is a whole number."""
    found = []
    for axis, (mine, cells) in enumerate(zip(own, shared, strict=True)):
        x, h, at = _line(data, cells)
        here = x if mine == cells else _line(data, mine)[0]
        if len(here) != grid.shape[axis]:
            raise ConfigError(
                f"{mine} has {len(here)} positions for {grid.shape[axis]} cells", key="file"
            )
        shift = 2 * (at + (here[0] - x[0]) / h)
        if abs(shift - round(shift)) > 1e-2:
            raise ConfigError(f"{mine} is neither at faces nor at centres", key="file")
        found.append(round(shift) / 2)
    return found

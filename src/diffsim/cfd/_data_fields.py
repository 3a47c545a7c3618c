"""What a configuration takes from a data set: the grid, times, initial fields, and what a
simulation would have seen of the flow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._errors import ConfigError
from ._axes import COMPONENTS
from ._boundary import parameters_of
from ._data import File, FlowData
from ._grid import Grid
from ._incompressible import FlowState, IncompressibleFlow
from ._spectral import SpectralFlow

Flow = IncompressibleFlow | SpectralFlow
Samples = int | Sequence[int] | None


def data_grid(file: File, coarsen: int = 1) -> Grid:
    """The grid of a data set (see `FlowData`), or one whose cells are `coarsen` of its along each
    axis."""
    grid = _data(file, "centres").grid
    if coarsen < 1 or any(n % coarsen for n in grid.shape):
        raise ConfigError(f"must divide the cells {grid.shape}", key="coarsen", value=coarsen)
    return Grid([n // coarsen for n in grid.shape], grid.size, grid.lower)


def data_times(
    file: File, after: float | None = None, until: float | None = None, every: int = 1
) -> Float[np.ndarray, "times"]:
    """The times of a data set (see `FlowData`) after `after`, up to `until`, every so many of them:
    `Schedule(ts=)` for a run that is compared with it."""
    data = _data(file, "centres")
    return data.times[_numbers(data, after, until, every)]


def data_velocity(
    file: File,
    flow: Flow,
    time: float | None = None,
    samples: Sequence[int] | None = None,
    offset: Any = None,
) -> tuple[Float[np.ndarray, "samples *unknowns"], ...]:
    """u(t) of a data set (see `FlowData`) as the condition `velocity` of a flow, a condition a
    sample.

    flow: on the grid of the data, or one whose cells are a whole number of its along each axis
    time: one of the file's (default: its first)
    samples: their numbers (default: all)
    offset: see `FlowData`

    Staggered velocities become means over the faces of the coarse cells, which stay as free of
    divergence as they were. Velocities at the centres become means over the cells, then over
    neighbours; `init` makes them free of divergence. For a `SpectralFlow` they are carried to its
    points by their Fourier modes, of which a coarser grid keeps its own.
    """
    data = _data(file, offset)
    place = 0 if time is None else int(np.argmin(np.abs(data.times - time)))
    off = 0.0 if time is None else abs(data.times[place] - time)
    if off > 1e-6 * max(1.0, abs(data.times[place])):
        near = f"{data.times[place]:g}"
        raise ConfigError("is no time of the data", key="time", value=time, suggestion=near)
    found = data.velocity([place], _samples(data, samples))
    return tuple(u[:, 0] for u in _unknowns(flow, data, found))


def data_observed(
    file: File,
    flow: Flow,
    observable: str = "velocity",
    after: float | None = None,
    until: float | None = None,
    every: int = 1,
    samples: Samples = None,
    offset: Any = None,
) -> Float[np.ndarray, "..."]:
    """A(u(t)) of a data set (see `FlowData`), for an observable A of a flow: `Target(data=)` with
    statistic "each", or what a study compares with.

    flow: on the grid of the data, or a coarser one (see `data_velocity`)
    observable: `velocity`, `vorticity`, `spectrum`, `kinetic_energy`, the name of its `Probes`, …:
        what needs no parameters
    after, until, every: which times; see `data_times`
    samples: their numbers (default: all)
    offset: see `FlowData`

    Returns (samples, times, ...); of one sample, given by its number alone, (times, ...).
    """
    data = _data(file, offset)
    numbers = _numbers(data, after, until, every)
    fields = data.velocity(numbers, _samples(data, samples))
    if (
        observable == "velocity"
        and _kind(data) == "centres"
        and isinstance(flow, IncompressibleFlow)
    ):
        factors = _factors(flow.grid, data.grid)
        found = np.stack([_means(u, factors) for u in fields], axis=2)
    else:
        found = _observed(flow, _unknowns(flow, data, fields), observable)
    return found[0] if isinstance(samples, int) else found


def _data(file: File, offset: Any) -> FlowData:
    return file if isinstance(file, FlowData) else FlowData(file, offset)


def _numbers(data: FlowData, after: float | None, until: float | None, every: int) -> list[int]:
    if every < 1:
        raise ConfigError("must be at least 1", key="every", value=every)
    low, high = (-np.inf if after is None else after, np.inf if until is None else until)
    slack = 1e-6 * max(1.0, float(np.max(np.abs(data.times))))
    inside = (data.times > low + slack) & (data.times <= high + slack)
    found = np.flatnonzero(inside)[every - 1 :: every].tolist()
    if not found:
        span = f"{data.times[0]:g} to {data.times[-1]:g}"
        raise ConfigError("there is no such time", key="after", value=after, allowed=span)
    return found


def _samples(data: FlowData, samples: Samples) -> list[int]:
    wanted = range(data.samples) if samples is None else samples
    found = [wanted] if isinstance(wanted, int) else list(wanted)
    if not found or not set(found) <= set(range(data.samples)):
        allowed = f"0 to {data.samples - 1}"
        raise ConfigError("there is no such sample", key="samples", value=samples, allowed=allowed)
    return found


def _factors(grid: Grid, fine: Grid) -> tuple[int, ...]:
    """How many cells of the data a cell of the flow has along each axis."""
    h = np.asarray(fine.spacing)
    near = grid.ndim == fine.ndim and all(
        np.all(np.abs(np.subtract(a, b)) < 1e-2 * h)
        for a, b in ((grid.size, fine.size), (grid.lower, fine.lower))
    )
    if not near:
        raise ConfigError(
            f"the flow's box has the edges {grid.size} from {grid.lower}",
            key="flow.grid",
            allowed=f"those of the data, {fine.size} from {fine.lower}: see data_grid",
        )
    if any(n % m for n, m in zip(fine.shape, grid.shape, strict=True)):
        raise ConfigError(
            f"the data have {fine.shape} cells, which are no whole number a cell of the flow",
            key="flow.grid.shape",
            value=grid.shape,
        )
    return tuple(n // m for n, m in zip(fine.shape, grid.shape, strict=True))


def _kind(data: FlowData) -> str:
    """Whether all components are at "centres", each at its "faces", or elsewhere."""
    if all(set(one) == {0.5} for one in data.offset):
        return "centres"
    across = [o for c, one in enumerate(data.offset) for a, o in enumerate(one) if a != c]
    own = [one[c] for c, one in enumerate(data.offset)]
    return "faces" if set(across) == {0.5} and 0.5 not in own else "elsewhere"


def _unknowns(flow: Flow, data: FlowData, fields: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
    """Fields (samples, times, *cells) as the unknowns of a flow."""
    factors = _factors(flow.grid, data.grid)
    if isinstance(flow, SpectralFlow):
        shape = flow.grid.shape
        return tuple(_at_points(u, o, shape) for u, o in zip(fields, data.offset, strict=True))
    kind = _kind(data)
    if kind == "elsewhere":
        raise ConfigError(
            "a staggered flow takes velocities at faces or at centres",
            key="offset",
            value=data.offset,
            allowed="SpectralFlow takes any",
        )
    if kind == "faces":
        pairs = enumerate(fields)
        return tuple(_coarse_faces(flow, u, c, data.offset[c][c], factors) for c, u in pairs)
    centred = [_means(u, factors) for u in fields]
    return tuple(_to_faces(flow, u, c) for c, u in enumerate(centred))


def _coarse_faces(
    flow: IncompressibleFlow, u: np.ndarray, c: int, offset: float, factors: Sequence[int]
) -> np.ndarray:
    """The flux through each unknown face, by its area."""
    box, cells = flow.box, u.shape[2 + c]
    first = box.first_face(c)
    place = factors[c] * np.arange(first, first + box.face_count(c)) - round(offset)
    if box.sides[c] is None:
        place %= cells
    elif place[0] < 0 or place[-1] >= cells:
        raise ConfigError(
            f"the data do not have {COMPONENTS[c]} at both sides of the box", key="flow.boundaries"
        )
    return _means(
        np.take(u, place, axis=2 + c), [1 if a == c else f for a, f in enumerate(factors)]
    )


def _means(u: np.ndarray, factors: Sequence[int]) -> np.ndarray:
    """Means over blocks of the last axes."""
    split = [n for size, f in zip(u.shape[2:], factors, strict=True) for n in (size // f, f)]
    return u.reshape(*u.shape[:2], *split).mean(axis=tuple(range(3, 3 + 2 * len(factors), 2)))


def _to_faces(flow: IncompressibleFlow, q: np.ndarray, axis: int) -> np.ndarray:
    to_faces = jax.vmap(jax.vmap(lambda field: flow.box.to_faces(field, axis)))
    return np.asarray(to_faces(jnp.asarray(q)))


def _at_points(u: np.ndarray, offset: Sequence[float], shape: Sequence[int]) -> np.ndarray:
    """Σ_k û_k exp(i k·x) at the points of a grid of this shape, given at (i + offset) h of a finer
    one; of an even number of points the highest wave number has no phase, and is left out."""
    for axis, (o, n) in enumerate(zip(offset, shape, strict=True), start=2):
        cells = u.shape[axis]
        if o == 0 and n == cells:
            continue
        k = np.rint(np.fft.fftfreq(n, 1 / n)).astype(int)
        phase = np.exp(-2j * np.pi * k * o / cells) * (2 * np.abs(k) < n) * (n / cells)
        modes = np.moveaxis(np.fft.fft(u, axis=axis), axis, -1)[..., k] * phase
        u = np.moveaxis(np.fft.ifft(modes).real, -1, axis)
    return u


def _observed(flow: Flow, fields: Sequence[np.ndarray], name: str) -> np.ndarray:
    """The observable of each field; parameters are no numbers, which what needs them is then."""
    bare = _bare(flow)
    sides = () if isinstance(flow, SpectralFlow) else parameters_of(flow.box.sides)
    params = dict.fromkeys(("viscosity", *sides), jnp.nan)

    def seen(velocity: tuple[Array, ...]) -> dict[str, Array]:
        if isinstance(bare, SpectralFlow):
            state: Any = bare.init(params, jax.random.key(0), velocity=jnp.stack(velocity))
        else:
            state = FlowState(velocity, {}, None, jnp.zeros((), velocity[0].dtype))
        return bare.observe(params, state)

    flat = tuple(jnp.asarray(u.reshape(-1, *u.shape[2:])) for u in fields)
    known = jax.eval_shape(seen, tuple(u[0] for u in flat))
    if name not in known:
        raise ConfigError("no such observable", key="observable", value=name, allowed=known)
    found = np.asarray(jax.jit(lambda every: jax.lax.map(lambda u: seen(u)[name], every))(flat))
    if not np.all(np.isfinite(found)):
        raise ConfigError(
            "depends on parameters: of the data it is not known", key="observable", value=name
        )
    return found.reshape(*fields[0].shape[:2], *found.shape[1:])


def _bare(flow: Flow) -> Flow:
    """The flow without what has parameters of its own."""
    if isinstance(flow, SpectralFlow):
        return eqx.tree_at(lambda f: f.forcing, flow, ()) if flow.forcing else flow
    return IncompressibleFlow(flow.grid, flow.dt, boundaries=flow.box.sides, extra=flow.extra)

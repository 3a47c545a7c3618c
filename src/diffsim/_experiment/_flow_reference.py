"""Resolved flows that closures are fitted to and judged by."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._errors import ConfigError, SimulationError
from .._report import Console
from .._schedule import Schedule
from .._solve import solve
from .._store import cached_arrays
from ..cfd import Grid, RandomPotential, SpectralFlow, corner_vorticity, face_averages

Velocity = tuple[np.ndarray, ...]


class FlowReference:
    """ū(t): a resolved periodic flow, each component averaged over the upper faces of the cells of
    a coarser grid (`cfd.face_averages`), for several random starts.

    It is computed when first asked for and kept in the cache folder (`$DIFFSIM_CACHE`, by default
    `~/.cache/diffsim`).

    **Arguments:** `flow`: a `cfd.SpectralFlow` that resolves everything; `parameters`: its numbers;
    `grid`: the coarser grid; `seeds`: one a trajectory; `saves` fields beside the first, `every`
    apart in time; `finer`: further grids, on which the first fields are kept too; `spin_up`: the
    time from random fields of `peak_wavenumber` and `max_velocity` to the flow's own turbulence, on
    a grid `thrift` times coarser than the flow's and for `settle` on its own.
    """

    def __init__(
        self,
        flow: SpectralFlow,
        grid: Grid,
        *,
        parameters: Mapping[str, float],
        seeds: Sequence[int],
        saves: int,
        every: float,
        finer: Sequence[Grid] = (),
        spin_up: float = 30.0,
        settle: float = 2.0,
        thrift: int = 4,
        peak_wavenumber: float = 4.0,
        max_velocity: float = 3.0,
    ):
        self.flow, self.grid, self.finer = flow, grid, tuple(finer)
        self.parameters = {name: float(v) for name, v in parameters.items()}
        self.seeds, self.saves, self.every = tuple(map(int, seeds)), int(saves), float(every)
        self.spin_up, self.settle, self.thrift = float(spin_up), float(settle), int(thrift)
        self.peak_wavenumber, self.max_velocity = float(peak_wavenumber), float(max_velocity)
        self._check()

    def _check(self) -> None:
        if not isinstance(self.flow, SpectralFlow):
            raise ConfigError("must be a SpectralFlow", key="flow", value=self.flow)
        for name in self.flow.parameters():
            if name not in self.parameters:
                raise ConfigError("missing parameter", key=f"parameters.{name}")
        if not self.seeds:
            raise ConfigError("needs at least one", key="seeds")
        for key in ("saves", "thrift"):
            if getattr(self, key) < 1:
                raise ConfigError("must be at least 1", key=key, value=getattr(self, key))
        if any(n % self.thrift for n in self.flow.grid.shape):
            raise ConfigError("must divide the flow's cells", key="thrift", value=self.thrift)
        for grid in (self.grid, *self.finer):  # of one point, for its refusals
            face_averages(
                np.zeros((self.flow.grid.ndim, *self.flow.grid.shape)), self.flow.grid, grid
            )
        for key in ("every", "settle"):
            ratio = getattr(self, key) / self.flow.dt
            if not (ratio > 0.5 and abs(ratio - round(ratio)) < 1e-6 * ratio):
                raise ConfigError(
                    f"must be a whole number of the flow's steps of {self.flow.dt:g}",
                    key=key,
                    value=getattr(self, key),
                )

    def velocity(self) -> Velocity:
        """(seeds, saves + 1, *grid.shape) of each component."""
        return self._fields("kept")

    def first(self, grid: Grid) -> Velocity:
        """The first fields on `grid`, which is the reference's own or one of `finer`: (seeds,
        *grid.shape) of each component."""
        if grid.shape == self.grid.shape:
            return tuple(u[:, 0] for u in self.velocity())
        shapes = [g.shape for g in self.finer]
        if grid.shape not in shapes:
            raise ConfigError(
                "is not kept", key="finer", value=grid.shape, allowed=map(str, shapes)
            )
        return self._fields(f"first_{shapes.index(grid.shape)}")

    def vorticity(self) -> np.ndarray:
        """∂v̄/∂x - ∂ū/∂y at the corners of the coarser grid: (seeds, saves + 1, *grid.shape)."""
        return corner_vorticity(self.velocity(), self.grid)

    def _fields(self, name: str) -> Velocity:
        arrays = self._arrays()
        return tuple(arrays[f"{name}_{c}"] for c in range(self.grid.ndim))

    def _arrays(self) -> dict[str, np.ndarray]:
        if not hasattr(self, "_kept"):
            self._kept = cached_arrays("flow", self._key(), self._compute)
        return self._kept

    def _key(self) -> dict[str, Any]:
        grids = [dataclasses.asdict(g) for g in (self.grid, *self.finer)]
        numbers = {k: v for k, v in vars(self).items() if isinstance(v, (int, float, tuple, dict))}
        numbers.pop("finer")
        precision = str(jnp.zeros(()).dtype)
        return numbers | {"flow": _text(self.flow), "grids": grids, "precision": precision}

    def _compute(self) -> dict[str, np.ndarray]:
        flow, say = self.flow, Console().say
        grids = {"kept": self.grid, **{f"first_{i}": g for i, g in enumerate(self.finer)}}
        params = {name: jnp.asarray(v) for name, v in self.parameters.items()}
        found: dict[str, list[np.ndarray]] = {}
        for number, seed in enumerate(self.seeds, start=1):
            say(f"computing the resolved flow {number} of {len(self.seeds)}, kept for later runs")
            points = self._spun_up(params, seed)
            state = flow.init(params, jax.random.key(seed), velocity=points)
            state = _advanced(flow, params, state, self.settle)
            series = [_points(flow, state)]
            for _ in range(self.saves):
                state = _advanced(flow, params, state, self.every)
                series.append(_points(flow, state))
            for name, grid in grids.items():
                chosen = np.stack(series if name == "kept" else series[:1])
                for c, part in enumerate(face_averages(chosen, flow.grid, grid)):
                    found.setdefault(f"{name}_{c}", []).append(part if name == "kept" else part[0])
        return {name: np.stack(parts) for name, parts in found.items()}

    def _spun_up(self, params: Mapping[str, Any], seed: int) -> Any:
        """A developed velocity at the flow's points."""
        flow, fine = self.flow, self.flow.grid
        grid = Grid([n // self.thrift for n in fine.shape], fine.size, fine.lower)
        quick = SpectralFlow(
            grid,
            flow.dt * self.thrift,
            method=flow.method,
            forcing=flow.forcing,
            cfl_limit=flow.cfl_limit,
        )
        potential = RandomPotential(grid, self.peak_wavenumber, self.max_velocity, seed)
        start = np.stack([potential.velocity(a, grid.shape) for a in range(grid.ndim)])
        state = quick.init(params, jax.random.key(seed), velocity=jnp.asarray(start, float))
        state = _advanced(quick, params, state, self.spin_up)
        return _refined(_points(quick, state), fine.shape)


def window_starts(reference: FlowReference, saves: int, stride: int) -> Velocity:
    """The first velocity of each window of `saves` further fields, `stride` saves apart: (windows,
    *grid.shape) of each component, as the condition `velocity`."""
    first = _starts(reference, saves, stride)
    return tuple(np.concatenate(u[:, first]) for u in reference.velocity())  # seeds outside


def window_vorticity(reference: FlowReference, saves: int, stride: int) -> np.ndarray:
    """The vorticity of the further fields of each window: (windows, saves, *grid.shape), as the
    data of a target."""
    first = _starts(reference, saves, stride)
    w = reference.vorticity()
    windows = np.stack([w[:, i + 1 : i + 1 + saves] for i in first], axis=1)
    return windows.reshape(-1, *windows.shape[2:])


def _starts(reference: FlowReference, saves: int, stride: int) -> np.ndarray:
    if not 1 <= saves <= reference.saves:
        raise ConfigError(
            "must fit into the reference",
            key="saves",
            value=saves,
            allowed=f"1 to {reference.saves}",
        )
    if stride < 1:
        raise ConfigError("must be at least 1", key="stride", value=stride)
    return np.arange(0, reference.saves - saves + 1, stride)


def _advanced(flow: SpectralFlow, params: Any, state: Any, time: float) -> Any:
    steps = round(time / flow.dt)
    if not steps:
        return state
    try:
        return _run(flow, params, state, steps).check().state
    except SimulationError as error:
        raise ConfigError(f"the resolved flow: {error}", key="flow", value=flow.dt) from None


@eqx.filter_jit
def _run(flow: SpectralFlow, params: Any, state: Any, steps: int) -> Any:
    return solve(flow, params, state, schedule=Schedule(steps=steps), observables=())


def _points(flow: SpectralFlow, state: Any) -> np.ndarray:
    return np.asarray(jnp.stack(flow.at_points(state.fields)))


def _refined(points: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """The same trigonometric polynomial at more points, its last waves left out."""
    axes = tuple(range(1, points.ndim))
    spectrum = np.fft.fftshift(np.fft.fftn(points, axes=axes), axes=axes)
    widths = [(0, 0)]
    for axis, (n, m) in enumerate(zip(points.shape[1:], shape, strict=True), start=1):
        if n % 2 == 0:
            spectrum[(slice(None),) * axis + (0,)] = 0
        before = m // 2 - n // 2
        widths.append((before, m - n - before))
    wide = np.fft.ifftshift(np.pad(spectrum, widths), axes=axes)
    scale = np.prod(shape) / np.prod(points.shape[1:])
    return (scale * np.real(np.fft.ifftn(wide, axes=axes))).astype(points.dtype)


def _text(flow: SpectralFlow) -> str:
    """The flow as a text that tells everything the fields follow from."""
    return repr(eqx.tree_pformat(flow, short_arrays=False))

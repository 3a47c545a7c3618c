"""Resolved flows on coarser grids: averages that are exact, kept between runs, cut into windows."""

import itertools
from typing import Any

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffsim as ds
from diffsim import cfd
from diffsim._store import cached_arrays
from flows import KEY, run

FINE = cfd.Grid((32, 32))


def points(seed=0, grid=FINE):
    potential = cfd.RandomPotential(grid, 3.0, 1.0, seed)
    return np.stack([potential.velocity(a, grid.shape) for a in range(grid.ndim)])


@pytest.mark.parametrize(
    ("fine", "coarse"), [((32, 32), (16, 16)), ((32, 24), (8, 12)), ((16, 16, 16), (8, 8, 4))]
)
def test_averages_over_faces_are_free_of_divergence(fine, coarse):
    fine, coarse = cfd.Grid(fine, 3.0, 0.5), cfd.Grid(coarse, 3.0, 0.5)
    field = points(1, fine)
    parts = cfd.face_averages(field, fine, coarse)
    divergence = cfd.Box(coarse).divergence(tuple(map(jnp.asarray, parts)), {})
    assert np.max(np.abs(divergence)) < 1e-12
    stacked = cfd.face_averages(np.stack([field, 2 * field]), fine, coarse)
    for one, two in zip(parts, stacked, strict=True):
        np.testing.assert_allclose(two, [one, 2 * one], atol=1e-14)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_an_average_is_the_integral_over_the_face(k):
    x = 2 * np.pi * np.arange(32) / 32
    field = np.stack([np.cos(x)[:, None] * np.sin(k * x), np.zeros((32, 32))])
    u, v = cfd.face_averages(field, FINE, cfd.Grid((8, 8)))
    edges = 2 * np.pi * np.arange(9) / 8
    mean = -np.diff(np.cos(k * edges)) / (k * 2 * np.pi / 8)
    np.testing.assert_allclose(u, np.cos(edges[1:])[:, None] * mean, atol=1e-14)
    np.testing.assert_array_equal(v, 0)


def test_coarser_in_two_steps_is_coarser_in_one():
    grids = [cfd.Grid((n, n)) for n in (16, 8)]
    medium, coarse = (cfd.face_averages(points(), FINE, grid) for grid in grids)
    for a, b in zip(cfd.coarsened(medium, grids[1]), coarse, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-14)


def test_the_vorticity_at_corners_is_what_the_flow_observes():
    grid = cfd.Grid((16, 12), (3.0, 2.0))
    flow = cfd.IncompressibleFlow(grid, 0.01)
    velocity = flow.project(
        [np.random.default_rng(c).standard_normal(grid.shape) for c in range(2)], {}
    )[0]
    state = flow.init({"viscosity": 0.1}, KEY, velocity=velocity)
    seen = flow.observe({"viscosity": 0.1}, state)["vorticity"]
    np.testing.assert_allclose(cfd.corner_vorticity(velocity, grid), seen, atol=1e-12)


def reference(**changes):
    flow = cfd.SpectralFlow(FINE, 0.02, forcing=cfd.KolmogorovForcing(wavenumber=2))
    words: dict[str, Any] = dict(
        parameters={"viscosity": 0.05}, seeds=[3, 4], saves=6, every=0.1, spin_up=0.4, settle=0.2,
        thrift=2, max_velocity=1.0, finer=[FINE],
    )  # fmt: skip
    return ds.FlowReference(flow, cfd.Grid((16, 16)), **words | changes)


@pytest.fixture(scope="module")
def made():
    return reference()


@pytest.mark.slow  # to compile
def test_a_reference_is_a_resolved_flow(made):
    """From its first field on, kept on the flow's own grid, the flow itself goes there."""
    u, v = made.first(FINE)
    x = np.pi / 32  # from the upper faces, averaged over, back to the points
    k = np.fft.fftfreq(32, 1 / 32)
    shift = np.exp(-1j * k * x) / np.where(np.abs(k) < 16, np.sinc(k / 32), 1)
    at, over = np.exp(-2j * k * x)[:, None], shift[None, :]
    u = np.real(np.fft.ifft2(np.fft.fft2(u) * at * over))
    v = np.real(np.fft.ifft2(np.fft.fft2(v) * at.T * over.T))
    for seed, start in enumerate(np.stack([u, v], axis=1)):
        end = run(made.flow, {"viscosity": 0.05}, 30, velocity=start).observables["velocity"][-1]
        for mine, kept in zip(
            cfd.face_averages(end, FINE, made.grid), made.velocity(), strict=True
        ):
            np.testing.assert_allclose(mine, kept[seed, -1], atol=1e-9)


@pytest.mark.slow  # to compile
def test_windows_are_pieces_of_the_reference(made):
    starts = ds.window_starts(made, saves=3, stride=2)
    data = ds.window_vorticity(made, saves=3, stride=2)
    assert data.shape == (4, 3, 16, 16)
    whole = made.vorticity()
    for row, (seed, first) in enumerate(itertools.product((0, 1), (0, 2))):
        np.testing.assert_array_equal(data[row], whole[seed, first + 1 : first + 4])
        for kept, start in zip(made.velocity(), starts, strict=True):
            np.testing.assert_array_equal(start[row], kept[seed, first])


def test_a_reference_is_computed_once(made, monkeypatch: pytest.MonkeyPatch):
    made.velocity()
    monkeypatch.setattr(ds.FlowReference, "_compute", lambda self: pytest.fail("computed again"))
    for kept, read in zip(made.velocity(), reference().velocity(), strict=True):
        np.testing.assert_array_equal(kept, read)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(parameters={}), "viscosity"),
        (dict(seeds=[]), "seeds"),
        (dict(saves=0), "saves"),
        (dict(every=0.03), "whole number"),
        (dict(thrift=3), "thrift"),
        (dict(finer=[cfd.Grid((12, 12))]), "does not divide"),
        (dict(finer=[cfd.Grid((16, 16), 1.0)]), "another box"),
    ],
)
def test_references_that_cannot_be_are_refused(changes, words):
    with pytest.raises(ds.ConfigError, match=words):
        reference(**changes)


def test_a_reference_that_fails_says_how(monkeypatch, tmp_path):
    monkeypatch.setenv("DIFFSIM_CACHE", str(tmp_path))
    with pytest.raises(ds.ConfigError, match="CFL"):
        reference(max_velocity=80.0).velocity()
    assert not list(tmp_path.iterdir())


def test_windows_that_do_not_fit_are_refused(made):
    with pytest.raises(ds.ConfigError, match="1 to 6"):
        ds.window_starts(made, saves=7, stride=1)
    with pytest.raises(ds.ConfigError, match="stride"):
        ds.window_vorticity(made, saves=2, stride=0)
    with pytest.raises(ds.ConfigError, match="not kept"):
        made.first(cfd.Grid((8, 8)))


def test_cached_arrays_outlive_what_made_them(tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DIFFSIM_CACHE", str(tmp_path / "new"))
    calls = []

    def make():
        calls.append(1)
        return {"x": np.arange(3.0)}

    for key in ({"a": 1}, {"a": 1}, {"a": 2}):
        np.testing.assert_array_equal(cached_arrays("test", key, make)["x"], [0, 1, 2])
    assert len(calls) == 2
    (first, second) = sorted((tmp_path / "new").iterdir())
    first.write_bytes(b"torn")
    with h5py.File(second, "r+") as file:
        file.attrs["key"] = "of something else"
    for key in ({"a": 1}, {"a": 2}, {"a": 1}):
        cached_arrays("test", key, make)
    assert len(calls) == 4
    monkeypatch.setenv("DIFFSIM_CACHE", str(first / "below a file"))
    assert list(cached_arrays("test", {"a": 1}, make)) == ["x"]


class TestControl:
    force = cfd.SolenoidalForce(most=3)
    grid = cfd.Grid((16, 16))

    def test_the_force_has_no_divergence_and_pushes_no_mean_flow(self):
        box, rng = cfd.Box(self.grid), np.random.default_rng(0)
        c = rng.standard_normal(cfd.no_control(self.force).shape)
        velocity = (jnp.zeros((16, 16)),) * 2
        force = self.force(box, {"control": c}, velocity, {}, 0.0)
        np.testing.assert_allclose(np.mean(force[0], axis=0), 0, atol=1e-14)
        centred = np.mean([np.sum(np.square(f)) for f in force]) * 2 / 256
        assert centred == pytest.approx(np.sum(c**2) / 2, rel=1e-12)
        h = self.grid.spacing[0]
        # the spectral divergence, at the corners of neither: of the exact waves it is zero
        k = np.fft.fftfreq(16, 1 / 16)
        half = np.exp(0.5j * k * h)
        fx = np.fft.fft2(force[0]) / half[:, None]
        fy = np.fft.fft2(force[1]) / half[None, :]
        assert np.max(np.abs(k[:, None] * fx + k[None, :] * fy)) < 1e-10

    def test_the_profile_of_the_laminar_flow(self):
        flow = cfd.IncompressibleFlow(
            self.grid,
            0.02,
            forcing=[cfd.KolmogorovForcing(wavenumber=2), cfd.LinearDrag(0.5), self.force],
            extra=cfd.MeanProfile(wavenumber=2),
        )
        params = {"viscosity": 0.1, "control": cfd.no_control(self.force)}
        seen = run(flow, params, 2000, 2000).observables["profile"][-1]
        eigenvalue = (2 - 2 * np.cos(2 * self.grid.spacing[1])) / self.grid.spacing[1] ** 2
        assert float(seen) == pytest.approx(1 / (0.1 * eigenvalue + 0.5), rel=1e-6)

    def test_what_does_not_fit_is_refused(self):
        walls = ("periodic", (cfd.Wall(), cfd.Wall()))
        with pytest.raises(ds.ConfigError, match="periodic"):
            cfd.IncompressibleFlow(self.grid, 0.01, boundaries=walls, forcing=self.force)
        with pytest.raises(ds.ConfigError, match="most"):
            cfd.IncompressibleFlow(self.grid, 0.01, forcing=cfd.SolenoidalForce(most=5))
        with pytest.raises(ds.ConfigError, match="two axes"):
            cfd.IncompressibleFlow(self.grid, 0.01, extra=cfd.MeanProfile(across=2))
        flow = cfd.IncompressibleFlow(self.grid, 0.01, forcing=self.force)
        params = {"viscosity": 0.1, "control": np.zeros((2, 3))}
        with pytest.raises(ds.ConfigError, match=r"\(2, 11\)"):
            jax.eval_shape(flow.step, params, flow.init(params, KEY))

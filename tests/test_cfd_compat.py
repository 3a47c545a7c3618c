"""JAX-CFD's faults without their repairs, their absence with them, and JAX-CFD's own tests.

Each fault is shown in a process of its own, where JAX-CFD is as it was installed, with the repairs
before its own in place. A fault that no longer shows is mended upstream: drop its repair.
"""

import functools
import importlib
import inspect
import json
import os
import subprocess
import sys
import types
import warnings
from importlib import util
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from conftest import CHECKOUT, command
from diffsim.cfd import _compat

WALL = ("dirichlet", "dirichlet")
PERIODIC = ("periodic", "periodic")


def grid_of(cfd, n=8):
    return cfd.grids.Grid((n, n), domain=((0, 1), (0, 1)))


def flow(cfd, *conditions, noise=0.0):
    """A velocity between walls, at rest or at random, and its grid."""
    grid, keys = grid_of(cfd), jax.random.split(jax.random.key(0), 2)
    arrays = (noise * jax.random.normal(key, grid.shape) for key in keys)
    parts = zip(conditions, arrays, grid.cell_faces, strict=True)
    return grid, tuple(bc.impose_bc(cfd.grids.GridArray(u, o, grid)) for bc, u, o in parts)


def van_leer(cfd, grid, dt=1e-3, viscosity=0.1, **options):
    """The step for walls: of JAX-CFD's schemes this one knows them."""

    def convect(v):
        return tuple(cfd.advection.advect_van_leer(u, v, dt) for u in v)

    return cfd.equations.semi_implicit_navier_stokes(
        density=1.0, viscosity=viscosity, dt=dt, grid=grid, convect=convect, **options
    )


def lid(cfd):
    moving = cfd.boundaries.ConstantBoundaryConditions((WALL, WALL), ((0.0, 0.0), (0.0, 1.0)))
    return moving, cfd.boundaries.HomogeneousBoundaryConditions((WALL, WALL))


# What each fault spoils; it raises where it does.


def trees(cfd):
    """Sums of forcings, slices, Smagorinsky's closure, collocated steps, fields at centres."""
    collocated = importlib.import_module("jax_cfd.collocated")
    problem = cfd.validation_problems.TaylorGreen((8, 8))
    grid, v = problem.grid, problem.velocity()
    made = {"density": 1.0, "viscosity": 0.1, "dt": 1e-3, "grid": grid}
    central = cfd.advection.convect_linear
    forcing = cfd.forcings.simple_turbulence_forcing(grid, 1.0, 4, -0.1)
    cfd.equations.semi_implicit_navier_stokes(**made, convect=central, forcing=forcing)(v)
    cfd.equations.implicit_diffusion_navier_stokes(**made, convect=central)(v)
    cfd.subgrid_models.explicit_smagorinsky_navier_stokes(
        cs=0.2, forcing=None, convect=central, **made
    )(v)
    cfd.array_utils.split_along_axis(v[0].data, 2, 0)
    cfd.resize.downsample_staggered_velocity(grid, cfd.grids.Grid((4, 4), domain=grid.domain), v)
    w = tuple(cfd.grids.GridVariable(grid.center(u.data), u.bc) for u in v)
    collocated.equations.semi_implicit_navier_stokes(
        **made, convect=collocated.advection.convect_linear
    )(w)


def walls(cfd):
    """A channel, by explicit and by implicit diffusion; values beside periodic sides."""
    channel = cfd.boundaries.channel_flow_boundary_conditions(2)
    grid, v = flow(cfd, channel, channel, noise=1.0)
    van_leer(cfd, grid)(v)
    couette = cfd.boundaries.ConstantBoundaryConditions(
        (PERIODIC, WALL), ((None, None), (0.0, 1.0))
    )
    _, (u, _) = flow(cfd, couette, channel)
    assert not np.isnan(cfd.finite_differences.laplacian(u).data).any()


def closed_box(cfd):
    """No flow is left over in the cells along a wall."""
    box = cfd.boundaries.dirichlet_boundary_conditions(2)
    for solve in (
        cfd.pressure.solve_fast_diag,
        functools.partial(cfd.pressure.solve_cg, rtol=1e-12),
    ):
        grid, v = flow(cfd, box, box, noise=1.0)
        v = van_leer(cfd, grid, pressure_solve=solve)(v)
        largest = float(abs(cfd.finite_differences.divergence(v).data).max())
        assert largest < 1e-5, f"the divergence is {largest:.1g}"


def moving_lid(cfd):
    """A lid drags the fluid along; a wall that blows through itself is refused as before."""
    grid, v = flow(cfd, *lid(cfd))
    v = van_leer(cfd, grid)(v)
    sheared = 2 * 0.1 * 1e-3 / grid.step[1] ** 2  # ν Δt ∂²u/∂y² beside the lid, at rest before
    assert 0.5 * sheared < v[0].data[:, -1].max() < sheared
    assert v[0].data[:, 0].min() < 0
    jet = cfd.boundaries.ConstantBoundaryConditions((WALL, WALL), ((0.0, 1.0), (0.0, 0.0)))
    grid, v = flow(cfd, jet, lid(cfd)[1])
    with pytest.raises(NotImplementedError, match="Flux boundary condition"):
        van_leer(cfd, grid)(v)


def implicit_lid(cfd):
    """(1 - ν Δt ∇²) u' = u, to round-off, between walls of which one moves."""
    for offset in ((0.5, 0.5), (1.0, 0.5), (0.5, 1.0)):
        bc = lid(cfd)[0]
        array = cfd.grids.GridArray(
            jax.random.normal(jax.random.key(1), (8, 8)), offset, grid_of(cfd)
        )
        u = bc.impose_bc(array)
        (w,) = cfd.diffusion.solve_fast_diag((u,), 1.0, 0.01)
        left = w.data - 0.01 * cfd.finite_differences.laplacian(w).data - u.data
        inside = bc.trim_boundary(cfd.grids.GridArray(left, offset, u.grid)).data
        assert abs(inside).max() < 1e-12, f"the residual is {abs(inside).max():.1g}"


def vortex(cfd):
    """exp(-(kx² + ky²) ν t), and nothing new for kx = ky = 1."""
    for k in (1, 2):
        problem = cfd.validation_problems.TaylorGreen((8, 8), viscosity=0.1, kx=k, ky=k)
        decay = problem.velocity(3.0)[0].data[0, 0] / problem.velocity(0.0)[0].data[0, 0]
        np.testing.assert_allclose(decay, np.exp(-2 * k**2 * 0.1 * 3.0))
        np.testing.assert_array_equal(problem.velocity()[1].data, problem.velocity(0.0)[1].data)


def time_step_in_jit(cfd):
    """The same number as outside; NaN where the error cannot be raised."""
    problem = cfd.validation_problems.TaylorGreen((8, 8))
    choose = lambda v, nu: cfd.equations.dynamic_time_step(v, 0.5, nu, problem.grid)  # noqa: E731
    v = problem.velocity()
    np.testing.assert_allclose(jax.jit(choose)(v, 1e-3), choose(v, 1e-3), rtol=1e-12)
    np.testing.assert_allclose(jax.jit(choose)(v, 0.0), choose(v, 0.0), rtol=1e-12)
    assert np.isnan(jax.jit(choose)(v, 10.0))
    with pytest.raises(ValueError, match="stable time step for diffusion"):
        choose(v, 10.0)


def conjugate_gradients(cfd):
    """A step in float32 where 64-bit types are on, on faces and in cell centres."""
    collocated = importlib.import_module("jax_cfd.collocated")
    problem = cfd.validation_problems.TaylorGreen((8, 8))
    grid, v = problem.grid, problem.velocity()
    w = tuple(cfd.grids.GridVariable(grid.center(u.data), u.bc) for u in v)
    for kind, start in ((cfd, v), (collocated, w)):
        step = kind.equations.semi_implicit_navier_stokes(
            density=1.0,
            viscosity=0.1,
            dt=1e-3,
            grid=grid,
            convect=kind.advection.convect_linear,
            pressure_solve=kind.pressure.solve_cg,
        )
        single = jax.jit(step)(jax.tree.map(lambda x: x.astype(jnp.float32), start))[0].data
        assert single.dtype == jnp.float32
        np.testing.assert_allclose(single, step(start)[0].data, atol=1e-6)


def fft_solver(cfd):
    """No cast from complex to real, and the same pressure."""
    problem = cfd.validation_problems.TaylorGreen((8, 8))
    v = tuple(cfd.grids.GridVariable(u.array**2, u.bc) for u in problem.velocity())
    found = {
        how: cfd.pressure.solve_fast_diag(v, implementation=how).data for how in ("fft", "rfft")
    }
    assert found["fft"].dtype == found["rfft"].dtype == jnp.float64
    np.testing.assert_allclose(found["fft"], found["rfft"], atol=1e-12)


FAULTS = {
    trees: "AttributeError: module 'jax' has no attribute 'tree_map'",
    walls: "ValueError: None is not a valid value for jnp.array",
    closed_box: "AssertionError: the divergence is",
    moving_lid: "NotImplementedError: Flux boundary condition is not implemented",
    implicit_lid: "AssertionError: the residual is",
    vortex: "AssertionError: \nNot equal to tolerance",
    time_step_in_jit: "TracerBoolConversionError",
    conjugate_gradients: "ValueError: Cannot lower jaxpr with verifier errors",
    fft_solver: "DeprecationWarning: Casting from complex to real",
}


def outcome(fault: Any, cfd: Any) -> str:
    """What a fault raises, or nothing."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            fault(cfd)
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:300]
    return ""


def report() -> None:
    """Write out what shows before and after each repair, in the order in which they are made."""
    assert not [name for name in sys.modules if name.startswith("jax_cfd")]
    cfd = importlib.import_module("jax_cfd.base")
    vars(sys.modules["jax_cfd"])["__version__"] = "0.3.0"
    _compat.repair_jax_cfd()
    assert cfd.boundaries.jnp is jnp, "another version is not mended"
    found = {}
    for fault, mend in zip(FAULTS, _compat.REPAIRS, strict=True):
        before = outcome(fault, cfd)
        mend(cfd)
        found[fault.__name__] = [before, outcome(fault, cfd)]
    sys.stdout.write(json.dumps(found))


@pytest.mark.slow  # a process that compiles without the repairs and with them
def test_faults_show_without_their_repairs_and_not_with_them():
    """In one test: what shows them takes a process of its own."""
    code = "import test_cfd_compat; test_cfd_compat.report()"
    found = json.loads(command(sys.executable, "-c", code, cwd=CHECKOUT / "tests").splitlines()[-1])
    wanted = {fault.__name__: words for fault, words in FAULTS.items()}
    other = {name: found[name][0] for name in wanted if not found[name][0].startswith(wanted[name])}
    assert not other, f"mended upstream, or failing in another way: {other}"
    assert {name: after for name, (_, after) in found.items() if after} == {}


def mended() -> Any:
    _compat.repair_jax_cfd()
    return importlib.import_module("jax_cfd.base")


def settled(cfd, step, v, steps):
    return jax.jit(cfd.funcutils.repeated(step, steps))(v)


def test_a_channel_flows_as_poiseuille_has_it():
    cfd = mended()
    channel = cfd.boundaries.channel_flow_boundary_conditions(2)
    grid, v = flow(cfd, channel, channel)
    push = lambda v: tuple(0 * u.array + g for u, g in zip(v, (1.0, 0.0), strict=True))  # noqa: E731
    u, _ = settled(cfd, van_leer(cfd, grid, dt=0.03, forcing=push), v, 1500)
    y, h = grid.mesh(u.offset)[1], grid.step[1]
    # The parabola, and what values on walls half a cell away from the first ones add to it.
    np.testing.assert_allclose(u.data, (y * (1 - y) + h**2 / 4) / (2 * 0.1), rtol=1e-10)


def test_a_lid_drives_the_cavity_as_published():
    """Botella and Peyret 1998 (doi:10.1016/S0045-7930(98)00002-4), Re = 100; second order: 4 % on
    32² cells."""
    cfd = mended()
    moving, resting = lid(cfd)
    grid = cfd.grids.Grid((32, 32), domain=((0, 1), (0, 1)))
    v = tuple(
        bc.impose_bc(cfd.grids.GridArray(jnp.zeros(grid.shape), offset, grid))
        for bc, offset in zip((moving, resting), grid.cell_faces, strict=True)
    )
    u, v = settled(cfd, van_leer(cfd, grid, dt=0.0125, viscosity=0.01), v, 1600)
    middle = cfd.interpolation.linear(u, (1.0, 0.5)).data[15]
    across = cfd.interpolation.linear(v, (0.5, 1.0)).data[:, 15]
    found = middle.min(), across.max(), across.min()
    np.testing.assert_allclose(found, (-0.2140424, 0.1795728, -0.2538030), rtol=0.04)
    assert abs(cfd.finite_differences.divergence((u, v)).data).max() < 1e-12


def test_what_stays_as_it_is():
    """What docs/from_jax_cfd.md says that repairs leave alone."""
    cfd = mended()
    assert inspect.signature(cfd.forcings.kolmogorov_forcing).parameters["k"].default == 2
    uneven = cfd.validation_problems.TaylorGreen((8, 8), kx=2, ky=1).velocity()
    assert abs(cfd.finite_differences.divergence(uneven).data).max() > 0.1
    grid, v = flow(cfd, *lid(cfd))
    with pytest.raises(ValueError, match="does not contain all interior grid values"):
        cfd.advection.convect_linear(v)
    with pytest.raises(NotImplementedError, match="Non-periodic"):
        cfd.advection.advect_linear(v[0], v)
    implicit = cfd.equations.implicit_diffusion_navier_stokes(
        1.0, 0.1, 1e-3, grid, convect=lambda v: tuple(0 * u.array for u in v)
    )
    assert abs(cfd.finite_differences.divergence(implicit(v)).data).max() > 1e-3


def test_repairs_stay_inside_jax_cfd():
    pad, cfd = jnp.pad, mended()
    first = cfd.boundaries.jnp, cfd.pressure.fd, cfd.boundaries.jnp.pad
    mended()
    assert (cfd.boundaries.jnp, cfd.pressure.fd, cfd.boundaries.jnp.pad) == first
    for name in _compat.TREE_FUNCTIONS:
        assert getattr(cfd.equations.jax, name) is getattr(jax.tree_util, name)
        assert not hasattr(jax, name)
    assert jnp.pad is pad
    with pytest.raises((ValueError, TypeError)):
        jnp.pad(jnp.zeros(3), 1, constant_values=None)  # pyright: ignore[reportArgumentType]
    assert cfd.grids.jax.Array is jax.Array
    ours = (m for n, m in sys.modules.items() if not n.startswith(("jax_cfd", "test_cfd")))
    assert not [m for m in ours for x in list(vars(m).values()) if type(x) is _compat.StandIn]


def test_what_is_loaded_later_is_mended_by_the_next_call():
    _compat.repair_jax_cfd()
    late = types.ModuleType("jax_cfd.late")
    vars(late)["jax"] = jax
    sys.modules[late.__name__] = late
    try:
        _compat.repair_jax_cfd()
        assert vars(late)["jax"].tree_map is jax.tree_util.tree_map
    finally:
        del sys.modules[late.__name__]


def test_importing_diffsim_loads_no_jax_cfd():
    code = "import sys, diffsim.cfd._from_jax_cfd; print('jax_cfd' in sys.modules)"
    assert command(sys.executable, "-c", code).strip() == "False"


# JAX-CFD's own tests, as its authors run them: a file in the precision that it asks for.

ROUND_OFF = (
    "sums 20000 values in float32: the sum at the start, nought, comes out as 0.017; JAX-CFD's "
    "main branch allows for 0.015 to 0.02 where this release does for 0.002 to 0.005"
)
REMAINING = {  # on jax 0.10; none on 0.12, which adds up in another order
    "base/equations_test.py::SemiImplicitNavierStokesTest::"
    "test_divergence_and_momentum_semi_implicit_sinusoidal_velocity_base": ROUND_OFF,
    "base/equations_test.py::ImplicitDiffusionNavierStokesTest::"
    "test_divergence_and_momentum_implicit_sinusoidal_velocity_base": ROUND_OFF,
    "collocated/equations_test.py::SemiImplicitNavierStokesTest::"
    "test_divergence_and_momentum_semi_implicit_sinusoidal_velocity_base": ROUND_OFF,
}
# Not run: `ml` needs haiku and gin, `data` xarray; eight of validation_test take hours, on 1024²
# cells for tens of thousands of steps.
LEFT_OUT = ("ml", "data", "base/validation_test.py")


def over_blocks(image, block_size, func=np.sum):
    """What array_utils_test asks of scikit-image, where that is not installed."""
    shape = [n for pair in zip(image.shape, block_size, strict=True) for n in pair]
    shape[::2] = [n // b for n, b in zip(image.shape, block_size, strict=True)]
    return func(image.reshape(shape), axis=tuple(range(1, 2 * image.ndim, 2)))


class Upstream:
    """A pytest plugin: mends, sets the precision, notes what came out."""

    def __init__(self, double: bool):
        self.double, self.outcomes = double, {}

    def pytest_collection_finish(self):
        _compat.repair_jax_cfd()  # the test modules too use the tree functions

    @pytest.fixture(autouse=True)
    def _precision(self, request):
        asks = "'jax_enable_x64', True" in request.path.read_text()
        jax.config.update("jax_enable_x64", self.double or asks)

    def pytest_runtest_logreport(self, report):
        name = report.nodeid.partition("jax_cfd/")[2]
        self.outcomes.setdefault(name, True)
        self.outcomes[name] &= not report.failed


def run_upstream(where: str, *options: str, double: bool = False) -> None:
    """Run JAX-CFD's tests and leave {name: passed} at `where`."""
    import jax_cfd

    if util.find_spec("skimage") is None:
        measure = types.ModuleType("skimage.measure")
        vars(measure).update(measure=measure, block_reduce=over_blocks)
        sys.modules.update({"skimage": measure, "skimage.measure": measure})
    _compat.repair_jax_cfd()
    root = Path(jax_cfd.__file__).parent
    paths = [str(root / part) for part in ("base", "collocated", "spectral")]
    ignored = [f"--ignore={root / part}" for part in LEFT_OUT]
    settings = ["-q", "-c", os.devnull, "--rootdir", str(root.parent), "-p", "no:cacheprovider"]
    deprecated = ["-W", "error::DeprecationWarning"]
    plugin = Upstream(double)
    pytest.main([*settings, *deprecated, *ignored, *paths, *options], plugins=[plugin])
    Path(where).write_text(json.dumps(plugin.outcomes))


def upstream(folder: Path, *options: str, double: bool = False, timeout: float = 280) -> Any:
    """{name: passed} of JAX-CFD's tests, run in a process of their own."""
    where = folder / "outcomes.json"
    arguments = f"*{[str(where), *options]}, double={double}"
    code = f"import test_cfd_compat; test_cfd_compat.run_upstream({arguments})"
    environment = os.environ | {"JAX_ENABLE_X64": "0"}
    subprocess.run(
        [sys.executable, "-c", code],
        cwd=CHECKOUT / "tests",
        env=environment,
        check=True,
        timeout=timeout,
        stdout=subprocess.DEVNULL,
    )
    return json.loads(where.read_text())


MENDED = (  # what failed and takes no minutes
    "test_split or periodic_and_dirichlet or simple_turbulence or sum_forcings or tree_util or "
    "test_center or ownsample_velocity or DownsampleVelocity or evm_model or smagorinsky_viscosity "
    "or _fft or identity_nd or implicit_sinusoidal_velocity_fast_diag"
)


@pytest.mark.slow
def test_what_failed_of_jax_cfds_tests_passes(tmp_path):
    outcomes = upstream(tmp_path, "-k", MENDED)
    assert len(outcomes) > 60
    assert [name for name, passed in outcomes.items() if not passed] == []


@pytest.mark.slow
def test_jax_cfds_tests_pass(tmp_path):
    outcomes = upstream(tmp_path, timeout=3000)
    assert len(outcomes) >= 440
    failed = {name for name, passed in outcomes.items() if not passed}
    assert failed <= set(REMAINING)


@pytest.mark.slow
def test_what_remains_is_round_off(tmp_path):
    outcomes = upstream(tmp_path, "-k", "sinusoidal_velocity_base", double=True)
    assert set(outcomes) >= set(REMAINING)
    assert all(outcomes.values())

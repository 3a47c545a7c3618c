"""JAX-CFD's steps as simulations: values, gradients, fits, refusals, the page that shows it."""

import contextlib
import functools
import importlib
import io
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffsim as ds
import diffsim.cfd
from conftest import CHECKOUT
from diffsim import ConfigError, Schedule
from diffsim._drive import drive
from diffsim.cfd._from_jax_cfd import from_jax_cfd

cfd = importlib.import_module("jax_cfd.base")

DT, NU = 0.02, 0.05
GRID = cfd.grids.Grid((12, 12), domain=((0, 2 * np.pi), (0, 2 * np.pi)))
WAVES = (
    lambda x, y: jnp.sin(y) + 0.5 * jnp.cos(x) * jnp.sin(2 * y),
    lambda x, y: 0.3 * jnp.sin(x + y),
)
START = cfd.initial_conditions.initial_velocity_field(WAVES, GRID)
STEPS = 12
RUN = Schedule(steps=STEPS, save_every=4)


def make(params, **options):
    options = {"convect": cfd.advection.convect_linear} | options
    return cfd.equations.semi_implicit_navier_stokes(
        density=1.0, viscosity=params["viscosity"], dt=DT, grid=GRID, **options
    )


PLAIN = from_jax_cfd(make({"viscosity": NU}), GRID, dt=DT)
MADE = from_jax_cfd(make, GRID, dt=DT, parametric=True)
VISCOSITY = {"viscosity": jnp.asarray(NU)}


def walled():
    wall = ("dirichlet", "dirichlet")
    lid = cfd.boundaries.ConstantBoundaryConditions((wall, wall), ((0.0, 0.0), (0.0, 1.0)))
    return lid, cfd.boundaries.dirichlet_boundary_conditions(2)


def test_values_are_those_of_the_bare_step():
    step = make({"viscosity": NU}, convect=None)  # Van Leer, JAX-CFD's default
    flow = from_jax_cfd(step, GRID, dt=DT)
    sol = jax.jit(lambda v: ds.solve(flow, {}, v, schedule=RUN))(flow.init({}, velocity=START))
    sol.check()
    bare, v = jax.jit(step), START
    for k in range(STEPS):
        v = bare(v)
        if (k + 1) % 4 == 0:
            seen = sol.observables["velocity"][(k + 1) // 4 - 1]
            np.testing.assert_allclose(seen, np.stack([u.data for u in v]), atol=1e-14)
    assert jax.tree.structure(sol.state) == jax.tree.structure(START)
    np.testing.assert_allclose(sol.times, [0.08, 0.16, 0.24])


def test_observables_are_means_over_the_volume():
    problem = cfd.validation_problems.TaylorGreen((32, 32))
    flow = from_jax_cfd(lambda v: v, problem.grid, dt=0.1)
    seen = flow.observe({}, flow.init({}, velocity=problem.velocity()))
    np.testing.assert_allclose(seen["kinetic_energy"], 0.25)
    np.testing.assert_allclose(seen["momentum"], [0, 0], atol=1e-15)
    x, y = problem.grid.mesh((1.0, 1.0))
    np.testing.assert_allclose(seen["vorticity"], -2 * np.cos(x) * np.cos(y), atol=4e-3)
    assert seen["divergence"] < 1e-14
    np.testing.assert_allclose(seen["cfl"], 2 * 0.1 / problem.grid.step[0], rtol=1e-2)
    assert seen["velocity"].shape == (2, 32, 32)


def test_further_observables_and_units():
    flow = from_jax_cfd(
        make,
        GRID,
        parametric=True,
        observe=lambda p, v: {"stress": p["viscosity"] * jnp.max(v[0].data)},
        unit_names={"kinetic_energy": "m²/s²"},
    )
    seen = flow.observe(VISCOSITY, flow.init(VISCOSITY, velocity=START))
    np.testing.assert_allclose(seen["stress"], NU * START[0].data.max())
    assert "cfl" not in seen
    assert flow.units()["kinetic_energy"] == "m²/s²"


def loss(adjoint, params, velocity):
    sol = ds.solve(MADE, params, velocity, schedule=RUN, adjoint=adjoint)
    return jnp.sum(sol.observables["kinetic_energy"]) + jnp.sum(sol.state[0].data[3] ** 3)


def along(direction):
    """Finite differences of the loss, of fourth order, and its argument moved along."""

    def moved(h):
        return jax.tree.map(lambda x, d: x + h * d, (VISCOSITY, START), direction)

    value = jax.jit(functools.partial(loss, ds.Direct()))
    h = 1e-3
    near, far = (value(*moved(k * h)) - value(*moved(-k * h)) for k in (1, 2))
    return (8 * near - far) / (12 * h)


@pytest.mark.parametrize(
    "adjoint",
    [pytest.param(ds.Direct(), marks=pytest.mark.slow), ds.RecursiveCheckpoint(), ds.ForwardMode()],
)
def test_gradients_agree_with_finite_differences(adjoint):
    noise = jax.random.normal(jax.random.key(0), GRID.shape)
    directions = [
        ({"viscosity": jnp.ones(())}, jax.tree.map(jnp.zeros_like, START)),
        ({"viscosity": jnp.zeros(())}, jax.tree.map(lambda x: x * 0 + noise, START)),
    ]
    f = functools.partial(loss, adjoint)
    for direction in directions:
        if "reverse" in adjoint.modes:
            slope = jax.jit(jax.grad(f, (0, 1)))(VISCOSITY, START)
            found = jax.tree.reduce(
                jnp.add, jax.tree.map(lambda a, b: jnp.sum(a * b), slope, direction)
            )
        else:
            found = jax.jit(lambda d: jax.jvp(f, (VISCOSITY, START), d)[1])(direction)
        np.testing.assert_allclose(found, along(direction), rtol=1e-9)


def test_a_fit_recovers_the_viscosity():
    truth = ds.solve(PLAIN, {}, PLAIN.init({}, velocity=START), schedule=RUN)
    energies = jnp.stack([truth.observables["kinetic_energy"]] * 2)
    problem = ds.Problem(
        MADE,
        {"viscosity": ds.Parameter(0.2, transform="positive")},
        [ds.Target("kinetic_energy", energies, 1e-4, statistic="each")],
        RUN,
        conditions={"velocity": jax.tree.map(lambda x: jnp.stack([x, x]), START)},
    )
    fitted = ds.least_squares(problem)
    np.testing.assert_allclose(fitted.values["viscosity"], NU, rtol=1e-6)


def test_a_fit_recovers_the_start():
    """`initial` takes parameters to a velocity; the step needs none."""

    def initial(params):
        return tuple(cfd.grids.GridVariable(params["size"] * u.array, u.bc) for u in START)

    flow = from_jax_cfd(make({"viscosity": NU}), GRID, dt=DT, initial=initial)
    truth = ds.solve(PLAIN, {}, PLAIN.init({}, velocity=START), schedule=RUN)
    problem = ds.Problem(
        flow,
        {"size": ds.Parameter(0.7)},
        [ds.Target("velocity", truth.observables["velocity"][None], 1e-3, statistic="each")],
        RUN,
    )
    np.testing.assert_allclose(ds.least_squares(problem).values["size"], 1.0, rtol=1e-6)


def test_a_driven_run_is_the_same_run():
    states = jax.tree.map(lambda x: x[None], PLAIN.init({}, velocity=START))
    laws = [ds.Conserved("momentum", atol=1e-12)]
    chunks = list(drive(PLAIN, {}, states, steps=12, save_every=4, chunk=4, laws=laws))
    sol = ds.solve(PLAIN, {}, START, schedule=RUN)
    for a, b in zip(chunks[-1].state, sol.state, strict=True):
        np.testing.assert_allclose(a.data[0], b.data, atol=1e-14)


def test_arrays_become_gridvariables():
    velocity = np.stack([u.data for u in START])
    for given in (velocity, list(velocity), tuple(u.array for u in START)):
        state = PLAIN.init({}, velocity=given)
        assert jax.tree.structure(state) == jax.tree.structure(START)
    flow = from_jax_cfd(lambda v: v, GRID, boundary_conditions=walled())
    u, v = flow.init({}, velocity=np.ones((2, 12, 12), int))
    assert (u.bc, v.bc) == walled()
    assert u.data.dtype == float
    np.testing.assert_array_equal(u.data[-1], 0)  # the wall's own


def test_a_lid_and_a_collocated_grid():
    def convect(v):
        return tuple(cfd.advection.advect_van_leer(u, v, DT) for u in v)

    moving = from_jax_cfd(
        make({"viscosity": 0.5}, convect=convect), GRID, dt=DT, boundary_conditions=walled()
    )
    start = moving.init({}, velocity=np.zeros((2, 12, 12)))
    seen = ds.solve(moving, {}, start, schedule=RUN).observables
    assert np.all(np.diff(seen["kinetic_energy"]) > 0)
    assert seen["divergence"].max() < 1e-12

    collocated = importlib.import_module("jax_cfd.collocated")
    step = collocated.equations.semi_implicit_navier_stokes(
        density=1.0, viscosity=NU, dt=DT, grid=GRID, convect=collocated.advection.convect_linear
    )
    flow = from_jax_cfd(step, GRID, dt=DT)
    centred = tuple(
        cfd.grids.GridVariable(GRID.eval_on_mesh(f), u.bc)
        for f, u in zip(WAVES, START, strict=True)
    )
    seen = ds.solve(flow, {}, flow.init({}, velocity=centred), schedule=RUN).observables
    assert seen["vorticity"].shape == (3, 12, 12)
    assert seen["divergence"].max() < 1e-5  # its pressure solver's tolerance


def test_three_dimensions():
    grid = cfd.grids.Grid((6, 6, 6), domain=((0, 1),) * 3)
    step = cfd.equations.semi_implicit_navier_stokes(
        density=1.0, viscosity=NU, dt=1e-3, grid=grid, convect=cfd.advection.convect_linear
    )
    flow = from_jax_cfd(step, grid)
    velocity = jax.random.normal(jax.random.key(0), (3, 6, 6, 6))
    sol = ds.solve(flow, {}, flow.init({}, velocity=velocity), schedule=Schedule(steps=2))
    assert "vorticity" not in sol.observables
    assert sol.times is None
    assert sol.observables["divergence"][-1] < 1e-12


def test_a_spectral_step_needs_no_adapter():
    spectral = importlib.import_module("jax_cfd.spectral")
    equation = spectral.equations.NavierStokes2D(NU, GRID)
    step = spectral.time_stepping.crank_nicolson_rk2(equation, DT)
    flow = ds.FunctionSimulation(lambda params, state: step(state), dt=DT)
    start = jnp.fft.rfftn(cfd.finite_differences.curl_2d(START).data)
    sol = ds.solve(flow, {}, start, schedule=RUN).check()
    after = step(step(step(step(start))))
    np.testing.assert_allclose(sol.observables["state"][0], after, atol=1e-12)


def test_a_fast_flow_is_a_failure_where_a_limit_is_set():
    flow = from_jax_cfd(make({"viscosity": NU}), GRID, dt=DT, cfl_limit=1.0)
    fast = tuple(cfd.grids.GridVariable(40 * u.array, u.bc) for u in START)
    result = ds.solve(flow, {}, flow.init({}, velocity=fast), schedule=RUN)
    with pytest.raises(ds.SimulationError, match=r"CFL.*at step 1"):
        result.check()
    ds.solve(flow, {}, flow.init({}, velocity=START), schedule=RUN).check()
    burst = tuple(cfd.grids.GridVariable(np.inf * u.array, u.bc) for u in START)
    with pytest.raises(ds.SimulationError, match="non-finite"):
        ds.solve(flow, {}, burst, schedule=RUN).check()


def swapped(v):
    return v[::-1]


def rounded(v):
    return jax.tree.map(lambda x: x.astype(jnp.float32), v)


COARSE = cfd.grids.Grid((6, 6), domain=GRID.domain)
CORNERS = tuple(
    cfd.grids.GridVariable(cfd.grids.GridArray(u.data, (1.0, 1.0), GRID), u.bc) for u in START
)
LISTS = cfd.boundaries.ConstantBoundaryConditions(
    [["periodic", "periodic"]] * 2, [[None, None]] * 2
)
UNHASHED = tuple(cfd.grids.GridVariable(u.array, LISTS) for u in START)

BAD = {
    "not a grid": (lambda: from_jax_cfd(make, (12, 12)), "grid: must be JAX-CFD's own"),
    "dt": (lambda: from_jax_cfd(make, GRID, dt=-1.0), "dt: must be positive"),
    "limit": (lambda: from_jax_cfd(make, GRID, cfl_limit=1.0), "cfl_limit: needs the time step"),
    "conditions": (
        lambda: from_jax_cfd(make, GRID, boundary_conditions=walled()[:1]),
        "boundary_conditions: has 1 entries for 2 components",
    ),
    "no start": (lambda: PLAIN.init({}), "velocity: must be given once"),
    "two starts": (
        lambda: from_jax_cfd(make, GRID, parametric=True, initial=lambda p: START).init(
            VISCOSITY, velocity=START
        ),
        "velocity: must be given once",
    ),
    "one component": (
        lambda: PLAIN.init({}, velocity=START[:1]),
        "has 1 components on a grid with 2",
    ),
    "a GridVariable": (
        lambda: PLAIN.init({}, velocity=START[0]),
        "velocity: has 1 components",
    ),
    "a number": (lambda: PLAIN.init({}, velocity=1.0), "velocity: has 1 components"),
    "shape": (lambda: PLAIN.init({}, velocity=np.zeros((2, 12, 6))), r"component 0 has \(12, 6\)"),
    "grid": (
        lambda: from_jax_cfd(lambda v: v, COARSE).init({}, velocity=START),
        "velocity: component 0 has .* the simulation's is .*allowed: .*from_jax_cfd",
    ),
    "offset": (lambda: PLAIN.init({}, velocity=CORNERS), "neither on faces nor in cell centres"),
    "lists": (lambda: PLAIN.init({}, velocity=UNHASHED), "velocity: holds a list or an array"),
    "unread": (
        lambda: PLAIN.init(VISCOSITY, velocity=START),
        r"params: .*takes no parameters.*parametric",
    ),
    "missing": (
        lambda: MADE.init({"viscosty": 0.1}, velocity=START),
        "step_fn: reads the parameter 'viscosity'.*did you mean|step_fn: reads the parameter",
    ),
    "maker": (
        lambda: from_jax_cfd(make, GRID).init({}, velocity=START),
        "step_fn: failed.*parametric=True",
    ),
    "maker of makers": (
        lambda: from_jax_cfd(lambda v: make, GRID).init({}, velocity=START),
        "step_fn: returns function",
    ),
    "step as maker": (
        lambda: from_jax_cfd(PLAIN.step_fn, GRID, parametric=True).init(VISCOSITY, velocity=START),
        "step_fn: failed",
    ),
    "order": (
        lambda: from_jax_cfd(swapped, GRID).init({}, velocity=START),
        r"step_fn: returns component 0 with the offset \(0.5, 1.0\) for \(1.0, 0.5\)",
    ),
    "list": (
        lambda: from_jax_cfd(list, GRID).init({}, velocity=START),
        r"returns list\(.*for tuple\(",
    ),
    "precision": (
        lambda: from_jax_cfd(rounded, GRID).init({}, velocity=START),
        "step_fn: returns float32.* for float64.*one precision",
    ),
    "solve": (
        lambda: ds.solve(from_jax_cfd(rounded, GRID), {}, START, schedule=RUN),
        "step_fn: returns float32",
    ),
    "not finite": (
        lambda: PLAIN.check({}, velocity=np.full((1, 2, 12, 12), np.nan)),
        "conditions.velocity: must be finite",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_before_tracing(case):
    call, words = BAD[case]
    with pytest.raises(ConfigError, match=words):
        call()


PAGE = (CHECKOUT / "docs" / "from_jax_cfd.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```\s+```text\n(.*?)```", PAGE, re.S)


@pytest.mark.slow  # to compile
def test_the_page_prints_what_it_shows(monkeypatch):
    assert len(EXAMPLES) == 2
    monkeypatch.setattr(diffsim.cfd, "from_jax_cfd", from_jax_cfd, raising=False)
    names = {}
    for code, shown in EXAMPLES:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, "from_jax_cfd.md", "exec"), names)
        assert printed.getvalue() == shown

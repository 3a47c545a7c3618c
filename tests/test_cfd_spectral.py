"""Flow between Fourier modes: exact solutions, budgets, exponential steps, gradients."""

import functools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffsim as ds
from diffsim import cfd
from diffsim.cfd._spectral import SpectralFlow

KEY = jax.random.key(0)
METHODS = ("etdrk4", "etdrk2", "cn_rk4")


@eqx.filter_jit
def solved(flow, params, start, schedule, observables):
    state = flow.init(params, KEY, **start)
    return ds.solve(flow, params, state, schedule=schedule, observables=observables)


def run(flow, params, steps, observables, save_every=None, **start):
    flow.check(params, **start)
    start = jax.tree.map(jnp.asarray, start)
    schedule = ds.Schedule(steps=steps, save_every=save_every)
    return solved(flow, params, start, schedule, observables).check()


def off(found, expected):
    """The largest difference."""
    return float(np.max(np.abs(np.asarray(found) - np.asarray(expected))))


def taylor_green(flow, k=1, time=0.0, viscosity=0.0, carried=(0.0, 0.0)):
    """The solution in a box whose edges are multiples of 2π, carried along by a mean velocity."""
    x, y = (c - u * time for c, u in zip(flow.points(), carried, strict=True))
    decay = math.exp(-2 * k**2 * viscosity * time)
    u, v = np.cos(k * x) * np.sin(k * y), -np.sin(k * x) * np.cos(k * y)
    pressure = -(np.cos(2 * k * x) + np.cos(2 * k * y)) / 4 * decay**2
    velocity = np.stack([carried[0] + decay * u, carried[1] + decay * v])
    return velocity, -2 * k * decay * np.cos(k * x) * np.cos(k * y), pressure


def brachet(flow):
    """Taylor and Green's vortex in three dimensions."""
    x, y, z = flow.points()
    u, v = np.sin(x) * np.cos(y) * np.cos(z), -np.cos(x) * np.sin(y) * np.cos(z)
    return np.stack([u, v, np.zeros_like(u)])


def rough(flow, seed=0, size=1.0):
    """A random velocity with every mode that is kept."""
    noise = np.random.default_rng(seed).standard_normal((flow.grid.ndim, *flow.grid.shape))
    return size * np.stack(flow.project(noise, {})[0])


# Exact solutions


@pytest.mark.parametrize("method", METHODS)
def test_taylor_green_decays_to_rounding(method):
    flow = SpectralFlow(cfd.Grid((20, 20)), 0.02, method=method)
    params = {"viscosity": 0.1}
    for k in (1, 3):
        velocity, vorticity, _ = taylor_green(flow, k)
        sol = run(flow, params, 25, ("velocity",), velocity=velocity)
        # the trapezoidal rule is of second order in viscosity
        tolerance = 2e-5 * k**4 if method == "cn_rk4" else 1e-14
        assert off(sol.observables["velocity"][-1], taylor_green(flow, k, 0.5, 0.1)[0]) < tolerance
    by_vorticity, by_velocity = (
        flow.init(params, KEY, **start)
        for start in (dict(vorticity=vorticity), dict(velocity=velocity))
    )
    assert off(by_vorticity.spectrum, by_velocity.spectrum) < 1e-12


def test_a_mean_velocity_carries_the_flow_along():
    """On odd numbers of points and unequal edges; pressure and budget do not see the mean."""
    flow = SpectralFlow(cfd.Grid((15, 24), (2 * np.pi, 4 * np.pi), lower=(0.5, -1.0)), 0.01)
    carried, viscosity = (0.7, -0.4), 0.05
    velocity, vorticity, _ = taylor_green(flow, 1, 0.0, viscosity, carried)
    params = {"viscosity": viscosity}
    sol = run(flow, params, 50, None, vorticity=vorticity, mean_velocity=carried)
    expected = taylor_green(flow, 1, 0.5, viscosity, carried)
    seen = {name: value[-1] for name, value in sol.observables.items()}
    for name, value in zip(("velocity", "vorticity", "pressure"), expected, strict=True):
        assert off(seen[name], value) < 1e-10, name
    assert off(seen["momentum"], carried) < 1e-14
    energy = 0.25 * math.exp(-4 * viscosity * 0.5)
    assert off(seen["kinetic_energy"], energy + np.sum(np.square(carried)) / 2) < 1e-11
    assert off(seen["enstrophy"], 2 * energy) < 1e-11
    assert off(seen["dissipation"], 4 * viscosity * energy) < 1e-11
    assert seen["divergence"] < 1e-14
    assert abs(seen["energy_residual"]) < 1e-15
    assert off(seen["cfl"], flow.cfl(list(jnp.asarray(expected[0])))) < 1e-10
    assert "spectrum" not in seen
    start = flow.init(params, KEY, velocity=velocity)
    assert off(start.mean, carried) < 1e-15


@pytest.mark.parametrize("method", ["etdrk4", "etdrk2"])
def test_a_shear_flow_builds_up_exactly(method):
    """u = A sin(k y)/λ (1 - exp(-λ t)), λ = ν k² + α: the force is constant, the rest linear."""
    forcing = (cfd.KolmogorovForcing(2, "amplitude"), cfd.LinearDrag("drag"))
    flow = SpectralFlow(cfd.Grid((8, 16)), 0.5, method=method, forcing=forcing)
    params = {"viscosity": 0.1, "amplitude": 0.3, "drag": 0.2}
    names = ("velocity", "dissipation", "injection", "energy_residual")
    sol = run(flow, params, 6, names)
    rate = 0.1 * 4 + 0.2
    _, y = flow.points()
    speed = 0.3 / rate * (1 - math.exp(-rate * 3))
    assert off(sol.observables["velocity"][-1, 0], speed * np.sin(2 * y)) < 1e-14
    assert sol.observables["dissipation"][-1] == pytest.approx(0.1 * 4 * speed**2 / 2, rel=1e-12)
    driven = (0.3 * speed - 0.2 * speed**2) / 2
    assert sol.observables["injection"][-1] == pytest.approx(driven, rel=1e-12)
    assert abs(sol.observables["energy_residual"][-1]) < 1e-15


FORCES = {
    "modes": (
        cfd.Modes(2, "force"),
        {"force": np.array([[0.1, 0.2], [0.3, -0.4]])},
        lambda x, t: (
            0.1 * np.sin(x[1])
            + 0.2 * np.sin(2 * x[1])
            + 0.3 * np.cos(x[1])
            - 0.4 * np.cos(2 * x[1])
        ),
    ),
    "constant": (cfd.KolmogorovForcing(1, 0.5), {}, lambda x, t: 0.5 * np.sin(x[1])),
    "uniform": (cfd.Acceleration(("g", 0.0)), {"g": 0.5}, lambda x, t: 0.5 + 0 * x[0]),
    "body": (
        cfd.BodyForce(lambda t, x, p: (p["a"] * jnp.cos(t) * jnp.sin(x[1]), 0.0), ("a",)),
        {"a": 0.5},
        lambda x, t: 0.5 * math.cos(t) * np.sin(x[1]),
    ),
}


@pytest.mark.parametrize("name", FORCES)
def test_forcing_is_the_curl_of_what_the_pieces_say(name):
    """From rest the first change of the velocity is the force; <u·f> is the injection."""
    piece, extra, expected = FORCES[name]
    flow = SpectralFlow(cfd.Grid((8, 8)), 0.1, forcing=piece)
    params = {"viscosity": 0.0, **extra}
    state = flow.at_time(flow.init(params, KEY), 0.4)
    change = flow.nonlinear(params, jnp.float64)(flow.at_points(state.fields), state.time)
    u, v = map(flow.modes.points, flow.equation.velocity(change))
    assert off(u, expected(flow.points(), 0.4)) < 1e-14
    assert off(v, 0) < 1e-14


def test_a_force_in_time_moves_the_mean():
    """dU/dt = cos t: every stage has its own time."""
    push = cfd.BodyForce(lambda t, x, p: (jnp.cos(t) + 0 * x[0], 0.0, jnp.sin(t)))
    flow = SpectralFlow(cfd.Grid((4, 4, 4)), 0.1, forcing=push)
    sol = run(flow, {"viscosity": 0.1}, 10, ("momentum",))
    expected = (math.sin(1.0), 0.0, 1 - math.cos(1.0))
    assert off(sol.observables["momentum"][-1], expected) < 1e-7


def test_taylor_green_in_three_dimensions():
    """Energies of 512³ at Re = 1600, from 16³: at t = 2 the small scales have only begun."""
    flow = SpectralFlow(cfd.Grid((16, 16, 16)), 0.1)
    params = {"viscosity": 1 / 1600}
    start = jax.jit(flow.observe)(params, flow.init(params, KEY, velocity=brachet(flow)))
    assert start["kinetic_energy"] == pytest.approx(1 / 8, abs=1e-15)
    assert start["enstrophy"] == pytest.approx(3 / 8, abs=1e-15)
    assert start["dissipation"] == pytest.approx(0.75 / 1600, abs=1e-15)
    assert jnp.sum(start["spectrum"]) == pytest.approx(1 / 8, abs=1e-15)
    x, y, z = flow.points()
    pressure = (np.cos(2 * x) + np.cos(2 * y)) * (np.cos(2 * z) + 2) / 16
    assert off(start["pressure"], pressure) < 1e-15
    seen = ("kinetic_energy", "energy_residual", "divergence")
    sol = run(flow, params, 20, seen, 10, velocity=brachet(flow))
    assert off(sol.observables["kinetic_energy"], [0.1245153, 0.1239168]) < 1e-5
    assert jnp.max(jnp.abs(sol.observables["energy_residual"])) < 1e-15
    assert jnp.max(sol.observables["divergence"]) < 1e-14


@pytest.mark.slow
def test_taylor_green_in_three_dimensions_on_a_finer_grid():
    flow = SpectralFlow(cfd.Grid((48, 48, 48)), 0.05)
    sol = run(flow, {"viscosity": 1 / 1600}, 40, ("kinetic_energy",), 20, velocity=brachet(flow))
    assert off(sol.observables["kinetic_energy"], [0.1245153, 0.1239168]) < 1e-7


# Conservation


def test_convection_keeps_energy_and_enstrophy_without_aliases():
    params, schedule = {"viscosity": 0.0}, ds.Schedule(steps=100)
    laws = [ds.Conserved(name, rtol=1e-7) for name in ("kinetic_energy", "enstrophy")]
    for dealias, kept in (("2/3", True), ("none", False)):
        flow = SpectralFlow(cfd.Grid((16, 16)), 0.005, dealias=dealias)

        @jax.jit
        def solve(velocity, flow=flow):
            state = flow.init(params, KEY, velocity=velocity)
            names = ("energy_residual",)
            return ds.solve(flow, params, state, schedule=schedule, laws=laws, observables=names)

        sol = solve(rough(flow))
        assert (abs(sol.observables["energy_residual"][-1]) < 1e-15) == kept
        assert all(row["ok"] for row in sol.ledger.rows()) == kept


def test_observables_are_those_of_the_finite_volumes():
    grid, params = cfd.Grid((8, 8)), {"viscosity": 0.1}
    names = [
        set(jax.eval_shape(flow.observe, params, flow.init(params, KEY)))
        for flow in (cfd.IncompressibleFlow(grid, 0.1), SpectralFlow(grid, 0.1))
    ]
    assert {n for n in names[0] if not n.startswith("centreline")} == names[1] - {"time"}


# Gradients


def forced(**kwargs):
    forcing = (cfd.KolmogorovForcing(2, "amplitude"), cfd.LinearDrag("drag"))
    return SpectralFlow(cfd.Grid((8, 8)), 0.05, forcing=forcing, **kwargs)


FORCED = {"viscosity": 0.05, "amplitude": 0.7, "drag": 0.1}
FLOWS = {
    "2d": (forced(method="etdrk2"), FORCED),
    "3d": (SpectralFlow(cfd.Grid((6, 6, 6)), 0.05, method="etdrk2"), {"viscosity": 0.05}),
    "etdrk4": (forced(), FORCED),
    "cn_rk4": (forced(method="cn_rk4"), FORCED),
}
SLOW = pytest.mark.slow


def started(name):
    flow, params = FLOWS[name]
    return jax.tree.map(jnp.asarray, params), jnp.asarray(rough(flow, size=0.5))


def loss_of(name, adjoint):
    """Of parameters and first velocity: every component of the last one and every save count."""
    flow, _ = FLOWS[name]

    def loss(params, velocity):
        state = flow.init(params, KEY, velocity=velocity)
        schedule, names = ds.Schedule(steps=6, save_every=2), ("velocity", "kinetic_energy")
        sol = ds.solve(flow, params, state, schedule=schedule, adjoint=adjoint, observables=names)
        last = sol.observables["velocity"][-1]
        weights = np.random.default_rng(3).standard_normal(last.shape)
        return jnp.sum(weights * last) + jnp.sum(sol.observables["kinetic_energy"])

    return loss


@functools.cache
def gradient(name, adjoint):
    return jax.jit(jax.grad(loss_of(name, adjoint), argnums=(0, 1)))(*started(name))


@pytest.mark.parametrize(
    "name", ["2d", *(pytest.param(name, marks=SLOW) for name in ("3d", "etdrk4", "cn_rk4"))]
)
def test_gradients_are_those_of_finite_differences(name):
    params, start = started(name)
    loss = jax.jit(loss_of(name, ds.Direct()))
    slopes, field = gradient(name, ds.Direct())
    for key, slope in slopes.items():
        up, down = ({**params, key: params[key] + step} for step in (1e-5, -1e-5))
        difference = (loss(up, start) - loss(down, start)) / 2e-5
        assert slope == pytest.approx(float(difference), rel=1e-6, abs=1e-8), key
    along = jnp.asarray(rough(FLOWS[name][0], seed=1))
    difference = (loss(params, start + 1e-5 * along) - loss(params, start - 1e-5 * along)) / 2e-5
    assert jnp.vdot(field, along) == pytest.approx(float(difference), rel=1e-6)


@pytest.mark.slow  # to compile
@pytest.mark.parametrize("name", ["2d", "3d"])
def test_adjoints_agree(name):
    direct, checkpointed = gradient(name, ds.Direct()), gradient(name, ds.RecursiveCheckpoint(2))
    for a, b in zip(*map(jax.tree.leaves, (direct, checkpointed)), strict=True):
        assert off(a, b) < 1e-11


@pytest.mark.slow
@pytest.mark.parametrize("name", ["2d", "3d"])
def test_forward_mode_agrees(name):
    pushed = jax.jit(jax.jacfwd(loss_of(name, ds.ForwardMode())))(*started(name))
    for key, value in pushed.items():
        assert value == pytest.approx(float(gradient(name, ds.Direct())[0][key]), rel=1e-10), key


def test_the_gradient_keeps_states_alone():
    """Memory by step: the modes that are kept, not the fields at the points."""
    flow, steps = SpectralFlow(cfd.Grid((16, 16)), 0.01, method="etdrk2"), 500
    state = jax.eval_shape(lambda: flow.init({"viscosity": 0.1}, KEY))
    state = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), state)

    def loss(params):
        schedule, names = ds.Schedule(steps=steps), ("kinetic_energy",)
        sol = ds.solve(flow, params, state, schedule=schedule, observables=names)
        return sol.observables["kinetic_energy"][-1]

    compiled = jax.jit(jax.grad(loss)).lower({"viscosity": jnp.asarray(0.1)}).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < 1.2 * steps * state.spectrum.nbytes
    assert state.spectrum.nbytes < 0.6 * 8 * 16**2


# Transformations, precision, failure


def test_a_batch_is_its_members():
    flow, names = forced(method="etdrk2"), ("vorticity",)
    schedule = ds.Schedule(steps=3)
    viscosities = jnp.array([0.05, 0.1])
    starts = jnp.stack([rough(flow, seed=i) for i in (0, 1)])

    def one(viscosity, velocity):
        params = {**FORCED, "viscosity": viscosity}
        return solved(flow, params, {"velocity": velocity}, schedule, names).observables[names[0]]

    batch = jax.vmap(one)(viscosities, starts)
    for i in (0, 1):
        assert off(batch[i], one(viscosities[i], starts[i])) < 1e-13


def test_single_precision_stays_single():
    flow = SpectralFlow(cfd.Grid((20, 20)), 0.02, forcing=cfd.LinearDrag("drag"))
    velocity = taylor_green(flow)[0].astype(np.float32)
    params = {"viscosity": 0.1, "drag": jnp.asarray(0.3)}
    sol = run(flow, params, 25, ("velocity", "pressure", "injection"), velocity=velocity)
    kinds = {str(x.dtype) for x in jax.tree.leaves((sol.state, sol.observables))}
    assert kinds == {"float32"}
    expected = math.exp(-0.3 * 0.5) * taylor_green(flow, 1, 0.5, 0.1)[0]
    assert off(sol.observables["velocity"][-1], expected) < 3e-6


def test_a_step_too_long_is_reported():
    flow = SpectralFlow(cfd.Grid((16, 16)), 0.2, forcing=cfd.Acceleration((20.0, 0.0)))
    params = {"viscosity": jnp.asarray(0.01)}
    sol = solved(flow, params, {}, ds.Schedule(steps=5), ("cfl",))
    assert sol.result == ds.RESULTS.cfl_exceeded
    first = int(jnp.argmax(sol.observables["cfl"] > 1)) + 1
    assert sol.first_bad_step == first + 1
    with pytest.raises(ds.SimulationError, match="reduce the time step"):
        sol.check()
    broken = solved(flow, {"viscosity": jnp.asarray(math.nan)}, {}, ds.Schedule(steps=5), ("cfl",))
    assert broken.result == ds.RESULTS.nonfinite
    assert broken.first_bad_step == 1


FIELD = np.zeros((2, 8, 8))
WRONG = {
    "one axis": (dict(grid=cfd.Grid((8,))), {}, "two or three axes"),
    "method": (dict(method="etdrk3"), {}, "did you mean etdrk"),
    "dealias": (dict(dealias="3/2"), {}, "allowed: 2/3, 1/2, none"),
    "dt": (dict(dt=-0.1), {}, "dt: must be positive"),
    "limit": (dict(cfl_limit=0.0), {}, "cfl_limit: must be positive"),
    "few points": (dict(grid=cfd.Grid((4, 4)), dealias="1/2"), {}, "too few points"),
    "scalar": (dict(forcing=cfd.Buoyancy()), {}, "no such scalar"),
    "axis": (dict(forcing=cfd.KolmogorovForcing(across=2)), {}, "no such axis"),
    "parameter": (dict(forcing=cfd.LinearDrag("drag")), {}, "drag: missing parameter"),
    "negative": ({}, dict(viscosity=-1.0), "viscosity: must be finite and not negative"),
    "shape": ({}, dict(velocity=np.zeros((2, 8, 9))), "needs shape"),
    "component": ({}, dict(velocity=(np.zeros((8, 8)), np.zeros((8, 9)))), "component 1 needs"),
    "both": ({}, dict(velocity=FIELD, vorticity=FIELD[0]), "give velocity, or vorticity"),
    "mean alone": ({}, dict(mean_velocity=(1.0, 0.0)), "needs vorticity"),
    "mean": ({}, dict(vorticity=FIELD[0] + 1), "vorticity: has a mean"),
    "infinite": ({}, dict(velocity=FIELD + np.inf), "velocity: must be finite"),
    "fast": ({}, dict(velocity=FIELD + 100.0), "the CFL number"),
    "spin": ({}, dict(vorticity=100 * np.sin(np.arange(8))[:, None] * np.ones(8)), "has a mean"),
    "3d": (dict(grid=cfd.Grid((8, 8, 8))), dict(vorticity=np.zeros((8, 8, 8))), "in 2D alone"),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_input_is_refused_before_anything_is_traced(name):
    built, started, message = WRONG[name]
    started = dict(started)
    viscosity = started.pop("viscosity", 0.1)

    def begin():
        flow = SpectralFlow(**{"grid": cfd.Grid((8, 8)), "dt": 0.1, **built})
        flow.init({"viscosity": viscosity}, KEY, **started)

    with pytest.raises(ds.ConfigError, match=message):
        begin()


def test_a_fast_vortex_is_refused_by_its_velocity():
    flow = SpectralFlow(cfd.Grid((16, 16)), 0.1)
    _, vorticity, _ = taylor_green(flow)
    with pytest.raises(ds.ConfigError, match=r"CFL number 2.5.*dt up to 0.039"):
        flow.check({"viscosity": 0.1}, vorticity=np.stack([vorticity, 10 * vorticity]))
    flow.check({"viscosity": 0.1}, vorticity=vorticity, mean_velocity=(1.0, 0.0))

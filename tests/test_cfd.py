"""Incompressible flow on staggered grids: exact solutions, conservation, orders, bad input."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffsim as ds
from diffsim import cfd
from diffsim.cfd._stencil import average
from flows import BOXES, CHANNEL, KEY, STILL, random_start, run, taylor_green
from problems import slow_but

SLOW = pytest.mark.slow  # other rows of the same tables run always
MORE = [pytest.param(name, marks=SLOW) for name in ("central", "upwind")]

# Exact solutions


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("convection", ["central", "van_leer"])
def test_taylor_green_decays_as_the_grid_has_it(k, convection):
    flow = cfd.IncompressibleFlow(cfd.Grid((32, 32)), 0.005, method="rk4", convection=convection)
    u, v = taylor_green(flow.box, k)
    sol = run(flow, {"viscosity": 0.05}, 100, velocity=(u, v))
    h = flow.grid.spacing[0]
    factor = math.exp(-0.05 * 2 * (2 - 2 * math.cos(k * h)) / h**2 * 0.5)
    # the limiter clips extrema, at second order in h
    tolerance = 1e-9 if convection == "central" else 0.02 * k**2
    assert float(jnp.max(jnp.abs(sol.state.velocity[0] - factor * u))) < tolerance
    assert float(sol.observables["divergence"][-1]) < 1e-14


def test_taylor_green_in_three_dimensions_begins_as_known():
    flow = cfd.IncompressibleFlow(cfd.Grid((24, 24, 24)), 0.02)
    (xu, yu, zu), (xv, yv, zv) = flow.box.coordinates(0), flow.box.coordinates(1)
    u = np.cos(xu) * np.sin(yu) * np.cos(zu)
    v = -np.sin(xv) * np.cos(yv) * np.cos(zv)
    state = flow.init({"viscosity": 1 / 1600}, KEY, velocity=(u, v, np.zeros(flow.grid.shape)))
    seen = jax.jit(flow.observe)({"viscosity": 1 / 1600}, state)
    h = flow.grid.spacing[0]
    assert seen["kinetic_energy"] == pytest.approx(1 / 8, abs=1e-12)
    # of the discrete curl: sin(h/2)/(h/2) in place of 1 in every derivative
    assert seen["enstrophy"] == pytest.approx(3 / 8 * (math.sin(h / 2) / (h / 2)) ** 2, rel=1e-12)
    assert seen["dissipation"] == pytest.approx(2 / 1600 * float(seen["enstrophy"]), rel=1e-10)
    assert float(jnp.sum(seen["spectrum"])) == pytest.approx(1 / 8, abs=1e-12)


@pytest.mark.parametrize("diffusion", slow_but(["implicit"], ["explicit", "implicit"]))
def test_couette_and_poiseuille_are_exact(diffusion):
    nu, lid, push = 0.1, 0.7, 0.3
    flow = cfd.IncompressibleFlow(
        cfd.Grid((4, 16), size=(1.0, 1.0)),
        0.02 if diffusion == "implicit" else 0.005,
        boundaries=("periodic", (cfd.Wall(), cfd.Wall(velocity=("lid", 0.0)))),
        forcing=cfd.Acceleration((push, 0.0)),
        diffusion=diffusion,
    )
    params = {"viscosity": nu, "lid": lid}
    sol = run(flow, params, 4000, velocity=None)
    y = flow.box.coordinates(0)[1]
    h = flow.grid.spacing[1]
    # the mirrored ghost puts the walls where the parabola has its own value less G h²/(8 ν)
    parabola = push / (2 * nu) * (y * (1 - y) + h**2 / 4)
    np.testing.assert_allclose(sol.state.velocity[0], lid * y + parabola, atol=1e-10)


def test_laminar_kolmogorov_flow_is_exact():
    nu, k, amplitude, drag = 0.05, 2, 0.4, 0.1
    forcing = (cfd.KolmogorovForcing(k, "amplitude"), cfd.LinearDrag(drag))
    flow = cfd.IncompressibleFlow(cfd.Grid((8, 32)), 0.05, forcing=forcing)
    sol = run(flow, {"viscosity": nu, "amplitude": amplitude}, 2500)
    y, h = flow.box.coordinates(0)[1], flow.grid.spacing[1]
    exact = amplitude / (nu * (2 - 2 * np.cos(k * h)) / h**2 + drag) * np.sin(k * y)
    np.testing.assert_allclose(sol.state.velocity[0], exact, atol=1e-12)
    seen = sol.observables
    assert seen["injection"][-1] == pytest.approx(float(seen["dissipation"][-1]), rel=1e-9)


GHIA_Y = np.array([0.9766, 0.9531, 0.7344, 0.5, 0.2813, 0.1016, 0.0547])
GHIA_U = np.array([0.84123, 0.68717, 0.00332, -0.20581, -0.15662, -0.06434, -0.03717])


def cavity(n: int, dt: float, **options):
    flow = cfd.IncompressibleFlow(
        cfd.Grid((n, n), size=1.0), dt, boundaries=BOXES["cavity"], **options
    )
    return flow, {"viscosity": 0.01, "lid": 1.0}


def centre_lines(flow, state, params):
    u = flow.box.faces(state.velocity[0], 0, params)[flow.grid.shape[0] // 2]
    v = flow.box.faces(state.velocity[1], 1, params)[:, flow.grid.shape[1] // 2]
    return np.asarray(u), np.asarray(v)


@pytest.mark.parametrize(
    ("n", "within"), [(32, 0.03), pytest.param(128, 0.01, marks=pytest.mark.slow)]
)
def test_lid_driven_cavity(n, within):
    flow, params = cavity(n, 0.4 / n, diffusion="implicit")
    sol = run(flow, params, 100 * n // 2)
    u, v = centre_lines(flow, sol.state, params)
    # Botella and Peyret 1998, doi:10.1016/S0045-7930(98)00002-4
    assert u.min() == pytest.approx(-0.2140424, rel=within)
    assert v.max() == pytest.approx(0.1795728, rel=within)
    assert v.min() == pytest.approx(-0.2538030, rel=within)
    seen = sol.observables
    assert seen["injection"][-1] == pytest.approx(float(seen["dissipation"][-1]), rel=1e-3)
    along = np.interp(GHIA_Y, flow.grid.centres(1), u)
    np.testing.assert_allclose(along, GHIA_U, atol=0.005 if n == 128 else 0.02)


# Conservation


@pytest.mark.parametrize("boundaries", slow_but(["periodic"], ["periodic", "channel", "slip"]))
def test_central_convection_keeps_the_kinetic_energy(boundaries):
    flow = cfd.IncompressibleFlow(
        cfd.Grid((16, 12)), 0.002, boundaries=BOXES[boundaries], method="rk4"
    )
    params = {"viscosity": 0.0}
    sol = run(flow, params, 500, 500, state=random_start(flow, params, size=0.5))
    start = flow.observe(params, random_start(flow, params, size=0.5))
    assert sol.observables["kinetic_energy"][-1] == pytest.approx(
        float(start["kinetic_energy"]), rel=1e-8
    )
    assert abs(float(sol.observables["energy_residual"][-1])) < 1e-12
    if boundaries == "periodic":
        np.testing.assert_allclose(sol.observables["momentum"][-1], start["momentum"], atol=1e-13)


EITHER = [(name, way) for name in BOXES for way in ("explicit", "implicit")]


@pytest.mark.parametrize(("name", "diffusion"), slow_but([*EITHER[::4], *EITHER[3::4]], EITHER))
def test_divergence_stays_at_rounding(name, diffusion):
    flow = cfd.IncompressibleFlow(
        cfd.Grid((16, 12), size=(2.0, 1.0)), 0.004, boundaries=BOXES[name], diffusion=diffusion
    )
    params = {"viscosity": 0.02, "lid": 1.0}
    sol = run(flow, params, 200, state=random_start(flow, params, size=0.1))
    assert float(sol.observables["divergence"][-1]) < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-5), ("float64", 1e-12)])
@pytest.mark.parametrize("name", ["periodic", "cavity"])
def test_divergence_after_ten_thousand_steps(dtype, bound, name):
    flow = cfd.IncompressibleFlow(cfd.Grid((64, 64)), 0.01, boundaries=BOXES[name])
    params = {"viscosity": jnp.asarray(1e-3, dtype), "lid": jnp.asarray(1.0, dtype)}
    start = random_start(flow, {"viscosity": 1e-3, "lid": 1.0})
    state = jax.tree.map(lambda x: x.astype(dtype), start)
    sol = run(flow, params, 10_000, state=state)
    assert sol.state.velocity[0].dtype == dtype
    assert float(sol.observables["divergence"][-1]) <= bound


@pytest.mark.slow  # to compile
def test_budget_of_energy_over_a_run():
    flow = cfd.IncompressibleFlow(
        cfd.Grid((24, 24)),
        0.002,
        method="rk4",
        forcing=(cfd.KolmogorovForcing(2.0), cfd.LinearDrag(0.1)),
    )
    params = {"viscosity": 0.02}
    sol = run(flow, params, 400, 2, state=random_start(flow, params))
    seen = sol.observables
    rate = np.asarray(seen["injection"] - seen["dissipation"])
    energy = np.asarray(seen["kinetic_energy"])
    simpson = (rate[:-2:2] + 4 * rate[1:-1:2] + rate[2::2]) * 0.004 / 3
    np.testing.assert_allclose(energy[2::2] - energy[:-2:2], simpson, atol=2e-9)
    assert float(jnp.max(jnp.abs(seen["energy_residual"]))) < 1e-9


@pytest.mark.parametrize("convection", ["van_leer", *MORE])
@pytest.mark.parametrize("name", [pytest.param("periodic", marks=SLOW), "cavity"])
def test_scalars_are_neither_made_nor_lost(convection, name):
    flow = cfd.IncompressibleFlow(
        cfd.Grid((16, 16)),
        0.01,
        boundaries=BOXES[name],
        convection=convection,
        scalars=cfd.Scalar("dye", 0.01),
    )
    params = {"viscosity": 0.02, "lid": 1.0}
    dye = np.zeros((16, 16))
    dye[4:9, 5:8] = 1.0
    start = random_start(flow, params)
    start = eqx.tree_at(lambda s: s.scalars, start, {"dye": jnp.asarray(dye)})
    sol = run(flow, params, 100, 10, state=start)
    np.testing.assert_allclose(sol.observables["dye_mean"], dye.mean(), rtol=1e-12)
    if convection != "central":  # no new extrema
        assert float(jnp.min(sol.observables["dye"])) > -1e-9
        assert float(jnp.max(sol.observables["dye"])) < 1 + 1e-9


# Orders


def errors(make, halvings, of):
    found = [of(make(i)) for i in range(halvings + 1)]
    return [
        math.log2(float(jnp.max(jnp.abs(a - b))) / float(jnp.max(jnp.abs(b - c))))
        for a, b, c in zip(found, found[1:], found[2:], strict=False)
    ]


ORDERS = [
    pytest.param("periodic", "explicit", "rk3", 3, marks=SLOW),
    pytest.param("periodic", "explicit", "euler", 1, marks=SLOW),
    pytest.param("periodic", "explicit", "rk2", 2, marks=SLOW),
    pytest.param("cavity", "explicit", "rk3", 3, marks=SLOW),
    pytest.param("channel", "explicit", "rk4", 4, marks=SLOW),
    pytest.param("periodic", "implicit", "rk3", 2, marks=SLOW),
    ("cavity", "implicit", "rk3", 2),
]


@pytest.mark.slow  # to compile
@pytest.mark.parametrize(("name", "diffusion", "method", "order"), ORDERS)
def test_order_in_time(name, diffusion, method, order):
    def final(i):
        flow = cfd.IncompressibleFlow(
            cfd.Grid((16, 16)),
            0.05 / 2**i,
            boundaries=BOXES[name],
            diffusion=diffusion,
            method=method,
        )
        u, v = (jnp.asarray(f) for f in smooth(flow.box))
        params = {"viscosity": 0.05, "lid": 0.0}
        return run(flow, params, 10 * 2**i, velocity=(u, v)).state.velocity[0]

    assert errors(final, 2, lambda u: u)[-1] == pytest.approx(order, abs=0.3)


def smooth(box):
    """A stream function that vanishes with its slope at walls."""
    x, y = np.meshgrid(*(box.grid.faces(a) for a in range(2)), indexing="ij")
    psi = np.sin(x / 2) ** 4 * np.sin(y / 2) ** 4 * (1 + 0.5 * np.cos(x) + 0.3 * np.sin(2 * y))
    u = np.diff(psi, axis=1) / box.grid.spacing[1]
    v = -np.diff(psi, axis=0) / box.grid.spacing[0]
    first = [box.first_face(a) for a in range(2)]
    return (
        2 * u[first[0] : first[0] + box.face_count(0)],
        2 * v[:, first[1] : first[1] + box.face_count(1)],
    )


@pytest.mark.slow  # to compile
@pytest.mark.parametrize("convection", ["central", pytest.param("van_leer", marks=SLOW)])
@pytest.mark.parametrize("name", [pytest.param("periodic", marks=SLOW), "cavity"])
def test_second_order_in_space(convection, name):
    def centred(i):
        n = 16 * 2**i
        flow = cfd.IncompressibleFlow(
            cfd.Grid((n, n)), 0.01, boundaries=BOXES[name], convection=convection, method="rk2"
        )
        sol = run(flow, {"viscosity": 0.02, "lid": 0.0}, 20, velocity=smooth(flow.box))
        u = sol.observables["velocity"][-1, 0]
        while u.shape[0] > 16:  # cells of the coarsest grid
            u = average(average(u, 0)[::2], 1)[:, ::2]
        return u

    rate = errors(centred, 2, lambda u: u)[-1]
    assert rate == pytest.approx(2, abs=0.3 if convection == "central" else 0.6)


# Bad input and failures


GRID = cfd.Grid((16, 16))
WRONG = {
    "scheme": (lambda: cfd.IncompressibleFlow(GRID, 0.1, convection="centrl"), "central"),
    "method": (lambda: cfd.IncompressibleFlow(GRID, 0.1, method="rk5"), "rk"),
    "dt": (lambda: cfd.IncompressibleFlow(GRID, -0.1), "positive"),
    "axes": (lambda: cfd.IncompressibleFlow(GRID, 0.1, boundaries=("periodic",)), "2 entries"),
    "boundary": (lambda: cfd.Box(GRID, ("periodik", STILL)), "periodic"),
    "lid through the wall": (
        lambda: cfd.Box(GRID, ("periodic", (cfd.Wall(), cfd.Wall((0.0, 1.0))))),
        "Inflow",
    ),
    "body outside": (
        lambda: cfd.IncompressibleFlow(GRID, 0.1, body=cfd.Cylinder((0.5, 3.0), 1.0)),
        "outside of the domain",
    ),
    "body too small": (
        lambda: cfd.IncompressibleFlow(GRID, 0.1, body=cfd.Cylinder((3.0, 3.0), 0.2)),
        "two cells",
    ),
    "buoyancy of nothing": (
        lambda: cfd.IncompressibleFlow(GRID, 0.1, forcing=cfd.Buoyancy("temprature")),
        "no such scalar",
    ),
    "one axis": (lambda: cfd.IncompressibleFlow(cfd.Grid((16,)), 0.1), "two or three"),
    "profile": (
        lambda: cfd.Box(GRID, ((cfd.Inflow((np.ones(9), 0.0)), cfd.Outflow()), STILL)),
        "profile",
    ),
}


@pytest.mark.parametrize(("make", "told"), WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_refused(make, told):
    with pytest.raises(ds.ConfigError, match=told):
        make()


CHECKS = {
    "cfl": (dict(dt=0.5), {"viscosity": 1e-3}, "CFL"),
    "diffusion": (dict(dt=0.1), {"viscosity": 1.0}, "implicit"),
    "missing": (dict(dt=0.1), {"viscosty": 1e-3}, "did you mean viscosty"),
    "negative": (dict(dt=0.1), {"viscosity": -1.0}, "not negative"),
}


@pytest.mark.parametrize(("options", "params", "told"), CHECKS.values(), ids=CHECKS)
def test_what_cannot_run_is_refused(options, params, told):
    flow = cfd.IncompressibleFlow(GRID, **options)
    with pytest.raises(ds.ConfigError, match=told):
        flow.init(params, KEY, velocity=taylor_green(flow.box))


def test_a_flow_that_outruns_its_step_is_told_and_sub_steps_save_it():
    push = cfd.Acceleration((2.0, 0.0))
    flow = cfd.IncompressibleFlow(GRID, 0.05, forcing=push)
    with pytest.raises(ds.SimulationError, match="CFL"):
        run(flow, {"viscosity": 0.01}, 100)
    finer = cfd.IncompressibleFlow(GRID, 0.05, forcing=push, max_substeps=4)
    sol = run(finer, {"viscosity": 0.01}, 100)
    np.testing.assert_allclose(sol.state.velocity[0], 10.0, rtol=1e-12)


def test_inflow_without_outflow_is_refused():
    sides = ((cfd.Inflow((1.0, 0.0)), cfd.Wall()), "periodic")
    flow = cfd.IncompressibleFlow(GRID, 0.01, boundaries=sides)
    with pytest.raises(ds.ConfigError, match="Outflow"):
        flow.init({"viscosity": 0.1}, KEY)


# Physics beyond one phase


@pytest.mark.slow  # to compile
@pytest.mark.parametrize(("rayleigh", "grows"), [(1500.0, False), (2100.0, True)])
def test_convection_sets_in_at_its_critical_rayleigh_number(rayleigh, grows):
    """A layer heated from below between walls: Ra_c = 1707.76 at wave length 2.016 H."""
    flow = cfd.IncompressibleFlow(
        cfd.Grid((24, 24), size=(2.016, 1.0)),
        2e-3,
        boundaries=CHANNEL,
        diffusion="implicit",
        scalars=cfd.Scalar("temperature", 1.0, sides=(None, (1.0, 0.0))),
        forcing=cfd.Buoyancy("temperature", rayleigh),
    )
    x, y = flow.box.coordinates()
    heat = 1 - y + 1e-4 * np.sin(2 * np.pi * x / 2.016) * np.sin(np.pi * y)
    sol = run(flow, {"viscosity": 1.0}, 600, 100, scalars={"temperature": heat})
    energy = np.asarray(sol.observables["kinetic_energy"])
    assert (energy[-1] > energy[-2]) == grows


@pytest.mark.slow
def test_a_cylinder_sheds_vortices_at_its_strouhal_number():
    """Re = 100: St = 0.164 to 0.17 in a wide domain, drag coefficient 1.3 to 1.45; a channel
    eight diameters wide with slip sides raises both by some per cent."""
    flow = cfd.IncompressibleFlow(
        cfd.Grid((256, 128), size=(16.0, 8.0)),
        0.02,
        boundaries=((cfd.Inflow((1.0, 0.0)), cfd.Outflow()), (cfd.Slip(), cfd.Slip())),
        body=cfd.Cylinder((4.0, 4.05), 0.5, 1e-3),
    )
    params = {"viscosity": 0.01}
    u = np.ones(flow.velocity_shapes()[0])
    sol = run(flow, params, 7500, 5, velocity=(u, np.zeros(flow.velocity_shapes()[1])))
    lift = np.asarray(sol.observables["lift"])[-750:]
    crossings = np.flatnonzero((lift[:-1] < 0) & (lift[1:] >= 0))
    period = np.mean(np.diff(crossings)) * 0.1
    assert 0.16 < 1 / period < 0.19
    assert 1.25 < 2 * np.mean(np.asarray(sol.observables["drag"])[-750:]) < 1.65


def test_vorticity_correlation():
    rng = np.random.default_rng(0)
    a = jnp.asarray(rng.standard_normal((3, 16, 16)))
    np.testing.assert_allclose(cfd.vorticity_correlation(a, 2 * a + 1), 1.0)
    assert float(jnp.max(jnp.abs(cfd.vorticity_correlation(a, a[::-1])[::2]))) < 0.3

"""What stands around the flow solver: starting fields, probes, numbers read off a run, figures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffsim as ds
import fake_runs
from diffsim import cfd
from diffsim._report import write_report
from diffsim._store import Series

KEY = jax.random.key(0)
STILL = (cfd.Wall(), cfd.Wall())


def periodic(*shape: int) -> cfd.IncompressibleFlow:
    return cfd.IncompressibleFlow(cfd.Grid(shape), 0.01)


@pytest.mark.parametrize("shape", [(32, 40), (24, 24, 24)])
def test_random_fields_are_free_of_divergence_and_as_fast_as_asked(shape):
    flow = periodic(*shape)
    fields = cfd.random_velocity(flow, 3.0, 2.0, seeds=[1, 2])
    for member in range(2):
        one = tuple(jnp.asarray(u[member]) for u in fields)
        assert float(jnp.max(jnp.abs(flow.box.divergence(one, {})))) < 1e-12
        fastest = max(float(jnp.max(jnp.abs(u))) for u in one)
        assert 1.6 < fastest <= 2.001  # the largest value may lie between the faces
    assert not np.allclose(fields[0][0], fields[0][1])


def test_a_random_field_is_the_same_on_every_grid():
    """The averages over coarse faces of the fine field are the coarse field."""
    coarse = cfd.random_velocity(periodic(24, 24), 3.0, 1.0, seeds=[5])[0][0]
    fine = cfd.random_velocity(periodic(48, 48), 3.0, 1.0, seeds=[5])[0][0]
    np.testing.assert_allclose(0.5 * (fine[1::2, ::2] + fine[1::2, 1::2]), coarse, atol=1e-13)
    flow = periodic(48, 48)
    velocity = tuple(u[0] for u in cfd.random_velocity(flow, 3.0, 1.0))
    spectrum = flow.observe(
        {"viscosity": 0.0}, flow.init({"viscosity": 0.0}, KEY, velocity=velocity)
    )
    assert 2 <= int(np.argmax(spectrum["spectrum"])) <= 4


@pytest.mark.parametrize("boundaries", [None, (STILL, STILL)], ids=["periodic", "walls"])
def test_probes_are_second_order(boundaries):
    points = np.random.default_rng(0).uniform(0.3, 6.0, (40, 2))
    errors = []
    for n in (16, 32, 64):
        grid = cfd.Grid((n, n))
        probes = cfd.Probes(points)
        flow = cfd.IncompressibleFlow(grid, 0.01, boundaries=boundaries, extra=probes)
        fields = []
        for component in range(2):
            x, y = flow.box.coordinates(component)
            fields.append(jnp.asarray(np.sin(x) * np.sin(y + component)))
        seen = probes(flow.box, fields, {})
        exact = [np.sin(points[:, 0]) * np.sin(points[:, 1] + c) for c in range(2)]
        errors.append(float(jnp.max(jnp.abs(seen[:, 0] - exact[0]))))
        assert seen.shape == (40, 2)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.5)


PROBES = {
    "outside": (lambda: cfd.Probes([[7.0, 1.0]]), "outside of the domain"),
    "shape": (lambda: cfd.Probes([1.0, 2.0]), "points, 2"),
    "counts": (lambda: cfd.Probes(counts=[4]), "2 numbers"),
    "nothing": (lambda: cfd.Probes(), "either points or counts"),
}


@pytest.mark.parametrize(("make", "told"), PROBES.values(), ids=PROBES)
def test_probes_that_do_not_fit_are_refused(make, told):
    with pytest.raises(ds.ConfigError, match=told):
        cfd.IncompressibleFlow(cfd.Grid((8, 8)), 0.1, extra=make())


def test_a_start_that_does_not_fit_is_refused():
    walled = cfd.IncompressibleFlow(cfd.Grid((8, 8)), 0.1, boundaries=(STILL, STILL))
    with pytest.raises(ds.ConfigError, match="periodic"):
        cfd.random_velocity(walled)
    with pytest.raises(ds.ConfigError, match="sixth"):
        cfd.random_velocity(periodic(16, 16), 4.0)
    with pytest.raises(ds.ConfigError, match="needs shape"):
        walled.init({"viscosity": 0.1}, KEY, velocity=np.zeros((2, 8, 8)))
    with pytest.raises(ds.ConfigError, match="components"):
        cfd.uniform(walled, [1.0])


@pytest.mark.slow  # to compile
def test_viscosity_comes_back_from_probes():
    """A fit through the solver, from noiseless data of its own."""
    flow = cfd.IncompressibleFlow(cfd.Grid((16, 16)), 0.05, extra=cfd.Probes(counts=[4, 4]))
    start = cfd.random_velocity(flow, 2.0, 1.0)
    schedule = ds.Schedule(ts=[0.5, 1.0])
    state = flow.init({"viscosity": 0.07}, KEY, velocity=tuple(u[0] for u in start))
    seen = ds.solve(flow, {"viscosity": 0.07}, state, schedule=schedule).observables["probes"]
    problem = ds.Problem(
        flow,
        {"viscosity": ds.Parameter(0.02, transform="positive")},
        [ds.Target("probes", seen[None], 0.01, statistic="each")],
        schedule,
        conditions={"velocity": start},
    )
    fitted = ds.least_squares(problem, adjoint=ds.ForwardMode())
    assert fitted.values["viscosity"] == pytest.approx(0.07, rel=1e-6)
    assert 0 < fitted.stderr("viscosity") < 0.01


# Numbers read off a run


def test_values_are_read_where_they_are_asked_for():
    from diffsim._experiment._values_studies import _save

    series = Series(np.arange(3), np.array([0.5, 1.0, 1.5]), np.zeros(3), "1", "1")
    assert _save(series, None, "x") == -1
    assert _save(series, 1.0, "x") == 1
    with pytest.raises(ds.ConfigError, match=r"did you mean 1\?"):
        _save(series, 1.1, "x")
    for values, told in (
        ({"x": {"observable": "y", "statistic": "median"}}, "mean"),
        ({"x": {"statistic": "max"}}, "observable"),
        ({"x": {"observable": "y", "when": 1.0}}, "unknown key"),
    ):
        with pytest.raises(ds.ConfigError, match=told):
            ds.ValuesStudy(values)


# Figures


def test_a_flow_is_shown_by_its_vorticity_and_spectrum(tmp_path):
    run = fake_runs.simulation_run(tmp_path / "run", frames=6)
    import h5py

    with h5py.File(run.trajectory, "r+") as file:
        rng = np.random.default_rng(0)
        for name, shape in (("vorticity", (6, 12, 10)), ("spectrum", (6, 20))):
            group = file["observables"].create_group(name)  # pyright: ignore
            for part in ("step", "time"):
                group[part] = file[f"observables/total_energy/{part}"]
            group["value"] = rng.random(shape)
            group["value"].attrs["unit"] = "1"
    write_report(run.path)
    shown = {p.stem for p in (run.path / "figures").glob("*.png")}
    assert {"vorticity", "spectrum"} <= shown

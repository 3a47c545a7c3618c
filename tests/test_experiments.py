"""Each experiment in its tiny size, from the configuration to the files it leaves."""

import json

import h5py
import numpy as np
import pytest

import diffsim as ds
from conftest import CHECKOUT
from diffsim import config, run
from diffsim._store import read_trajectory

NAMES = sorted(config.experiments(None))
SLOW = {  # to compile, mostly
    "argon_density",
    "argon_diffusion",
    "assimilate",
    "closure_fit",
    "cylinder",
    "influenza",
    "kepler_orbit",
    "kolmogorov",
    "kolmogorov_control",
    "lj_nve",
    "lj_rdf_inverse",
    "lj_trajectory_fit",
    "lorenz_assimilate",
    "lynx_hare",
    "robertson_fit",
    "sde_ou",
    "silicon_force_matching",
    "taylor_green",
    "ude_lotka",
    "water_spce",
}
TINY = [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in NAMES]
KEYS = {"parameters", "loss", "validation", "laws", "adjoint", "timing", "provenance", "measured"}


@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_has_its_folder(name: str):
    folder = CHECKOUT / "experiments" / name
    assert (folder / "README.md").is_file()
    json.loads((folder / "expected.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", TINY)
def test_tiny_runs_end_to_end(name: str, tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "run"
    assert run.main([f"experiment={name}", "size=tiny", f"hydra.run.dir={place}"]) == 0
    result = json.loads((place / "result.json").read_text(encoding="utf-8"))
    assert set(result) >= KEYS
    status = json.loads((place / "status.json").read_text(encoding="utf-8"))
    assert (status["state"], status["code"]) == ("done", 0)
    for file in ("config.yaml", "metrics.jsonl", "report.html"):
        assert (place / file).stat().st_size > 0
    assert all(law["ok"] for law in result["laws"])
    if name == "lj_fit":
        assert abs(result["parameters"]["epsilon"]["value"] - 117.2) < 8
        assert abs(result["parameters"]["sigma"]["value"] - 3.396) < 0.06
        assert len(result["measured"]["states"]) == 27
        assert result["validation"]["rows"] == [4, 10, 14, 18, 25]
    if name == "viscosity_fit":
        with h5py.File(place / "parameters.h5") as file:
            assert set(file) == {"viscosity", "amplitude", "drag"}
        found = float(ds.fitted(place / "parameters.h5", "viscosity"))
        assert found == pytest.approx(result["parameters"]["viscosity"]["value"], rel=1e-12)
    if name == "argon_density":
        assert abs(result["parameters"]["sigma"]["value"] - 3.4) < 0.1
        box = read_trajectory(place / "trajectory.h5").box
        assert box is not None and np.ptp(np.asarray(box.value)[:, 0]) > 0.1
    if name == "closure_fit":
        assert result["measured"]["gain"] >= 2
    if name == "lj_trajectory_fit":
        rows = result["measured"]["adjoints"]
        first = rows[0]["gradient"]
        for row in rows[1:]:
            for key, value in row["gradient"].items():
                assert value == pytest.approx(first[key], rel=1e-7)


@pytest.mark.slow  # to compile
def test_a_potential_is_found_by_relative_entropy_too(tmp_path, monkeypatch: pytest.MonkeyPatch):
    """The other choice of `inverse`: a few steps come nearer, and say how sure they are."""
    monkeypatch.chdir(tmp_path)
    place, name = tmp_path / "run", "experiment=lj_rdf_inverse"
    words = [name, "inverse=relative_entropy", "schedule.steps=4000", "schedule.save_every=20"]
    words += ["chunk=200", "equilibration=200", "fit.steps=30", "fit.explore=1.0", "expected=null"]
    assert run.main([*words, f"hydra.run.dir={place}"]) == 0
    result = json.loads((place / "result.json").read_text(encoding="utf-8"))
    measured = result["measured"]
    start = np.loadtxt(CHECKOUT / "experiments/lj_rdf_inverse/knots.csv", delimiter=",", skiprows=1)
    inside = start[:, 0] > 0.93
    before = np.sqrt(np.mean((start[inside, 1] - start[inside, 2]) ** 2))
    assert measured["curve_rms"] < 0.5 * before
    for row in measured["curve"]:
        assert 0 < row["stderr"] < 5
    pressure = measured["unfitted"]["p"]
    assert pressure["stderr"] > measured["states"][0]["p_stderr"]
    assert result["validation"] is None and "values" not in result["parameters"]


@pytest.mark.slow  # to compile
def test_a_finished_run_resumes_to_nothing(tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "run"
    words = ["experiment=lj_nve", "size=tiny", "studies=[]", f"hydra.run.dir={place}"]
    assert run.main(words) == 0
    before = {p: p.read_bytes() for p in place.rglob("*") if p.is_file()}
    assert run.main([f"resume={place}"]) == 0
    assert before == {p: p.read_bytes() for p in place.rglob("*") if p.is_file()}

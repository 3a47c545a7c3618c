"""verify=: a run that is repeated is the same; one whose numbers were changed is not."""

import json
import shutil
from pathlib import Path

import h5py
import jax
import pytest

from diffsim import run
from diffsim._store import RunDirectory
from diffsim._verify import compared

NVE = (
    *("experiment=lj_nve", "size=tiny", "laws.0.rtol=1", "schedule.steps=60", "chunk=20"),
    *("studies=[]", "thermostat=null", "equilibration=0", "simulation.extra=[]"),
)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verify") / "run"
    assert run.main([*NVE, "profile=true", f"hydra.run.dir={folder}"]) == 0
    return folder


def edit(folder: Path, key: str, change: object) -> None:
    path = folder / "result.json"
    result = json.loads(path.read_text())
    *way, last = key.split(".")
    node = result
    for name in way:
        node = node[int(name)] if isinstance(node, list) else node[name]
    node[last] = change(node[last]) if callable(change) else change
    path.write_text(json.dumps(result))


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def copy(done, tmp_path):
    return Path(shutil.copytree(done, tmp_path / "copy"))


def test_the_same_run_is_the_same_to_the_bit(done, capsys):
    before = files(done)
    assert run.main([f"verify={done}"]) == 0
    said = capsys.readouterr().out
    assert "the same to the bit" in said
    assert "trajectory.h5" in said
    assert files(done) == before


def test_another_number_is_found(copy, capsys):
    edit(copy, "laws.0.worst", lambda x: x * 1.01)
    assert run.main([f"verify={copy}"]) == 3
    said = capsys.readouterr().out
    assert "laws.0.worst" in said
    assert "not the same" in said


def test_other_versions_are_said_and_rounding_is_allowed_there(copy, capsys):
    edit(copy, "provenance.versions", lambda versions: versions | {"jax": "0.9"})
    edit(copy, "laws.0.worst", lambda x: x * (1 + 1e-9))
    assert run.main([f"verify={copy}"]) == 0
    said = capsys.readouterr().out
    assert "jax: 0.9" in said
    assert "the same within" in said


def test_other_data_are_not_run(copy, capsys):
    edit(copy, "provenance.data", {"argon.csv": "1234"})
    assert run.main([f"verify={copy}"]) == 3
    assert "argon.csv: 1234" in capsys.readouterr().out


def test_arrays_are_compared_by_their_entries(done, copy):
    with h5py.File(copy / "trajectory.h5", "r+") as file:
        values = file["observables/total_energy/value"]
        assert isinstance(values, h5py.Dataset)
        values[0] *= 1 + 1e-9
        values[1] *= 1 + 1e-3
    rows = {r.name: r for r in compared(RunDirectory(done), RunDirectory(copy), "float64")}
    row = rows["trajectory.h5"]
    assert (row.values - row.equal, row.within, row.different) == (2, 1, 1)
    assert "total_energy" in row.worst
    assert all(row.equal == row.values for name, row in rows.items() if name != "trajectory.h5")


@pytest.mark.parametrize("missing", ["config.yaml", "result.json"])
def test_what_is_no_finished_run_is_refused(missing, copy, capsys):
    (copy / missing).unlink()
    assert run.main([f"verify={copy}"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("diffsim: verify:")
    assert missing in said


def test_a_profile_is_a_table_and_a_trace(done):
    found = json.loads((done / "result.json").read_text())["profile"]
    rows = {row["what"]: row for row in found["rows"]}
    assert rows["trace"]["count"] > 0
    assert rows["step"]["seconds"] > 0
    assert rows["peak memory"]["bytes"] > 1e6
    assert rows["save restarts"]["count"] >= 1
    assert list((done / found["trace"]).rglob("*.xplane.pb"))
    assert "save restarts" in (done / "report.html").read_text()


def test_compiled_programs_are_kept_where_the_user_says(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFSIM_CACHE", str(tmp_path / "cache"))
    keys = ("jax_compilation_cache_dir", "jax_enable_compilation_cache")
    before = [getattr(jax.config, key) for key in keys]
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        with run._programs({}):
            folder = Path(getattr(jax.config, keys[0]))
            assert folder.is_relative_to(tmp_path / "cache" / "programs")
            assert folder.is_dir()
        with run._programs({"compilation_cache": False}):
            assert not getattr(jax.config, keys[1])
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("DIFFSIM_CACHE", str(tmp_path / "file"))
        with run._programs({}):  # which cannot be made
            assert getattr(jax.config, keys[0]) is None
    finally:
        for key, value in zip(keys, before, strict=True):
            jax.config.update(key, value)

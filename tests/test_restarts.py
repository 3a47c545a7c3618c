"""Going on: what is refused, what damage costs, how runs end and where a full disk leaves them."""

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import jax
import numpy as np
import pytest

from diffsim import run
from diffsim._errors import ConfigError
from diffsim._resume import compare
from diffsim._store import Restarts, TrajectoryWriter, changed, identity, read_trajectory
from diffsim._store.room import is_full, reserve
from kills import CHECKOUT, datasets, outcome
from problems import slow_but

NVE = (
    *("experiment=lj_nve", "size=tiny", "laws.0.rtol=1", "schedule.steps=200", "chunk=40"),
    *("studies=[]", "thermostat=null", "equilibration=0", "simulation.extra=[]"),
    *("restart_seconds=0", "schedule.save_every=10"),
)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that came to its end."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert run.main([*NVE, f"hydra.run.dir={folder}"]) == 0
    return folder


@pytest.fixture
def stopped(whole, tmp_path):
    """The same, as a kill before its last restart would have left it, two restarts back."""
    folder = tmp_path / "stopped"
    shutil.copytree(whole, folder)
    (folder / "result.json").unlink()
    (folder / "status.json").write_text('{"state": "running"}')
    return folder


def listing(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in (folder / "restart").iterdir())


# What is refused


def edited(folder: Path, old: str, new: str) -> None:
    text = (folder / "config.yaml").read_text()
    assert old in text
    (folder / "config.yaml").write_text(text.replace(old, new))


def test_another_configuration_is_refused_with_the_difference(stopped, capsys):
    edited(stopped, "seed: 0", "seed: 5")
    before = listing(stopped)
    assert run.main([f"resume={stopped}"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "seed: 0 -> 5" in said
    assert listing(stopped) == before


def test_another_wording_of_the_same_configuration_is_none(stopped, whole):
    text = (stopped / "config.yaml").read_text()
    (stopped / "config.yaml").write_text(f"# a remark\n{text}")
    assert run.main([f"resume={stopped}"]) == 0
    assert outcome(stopped) == outcome(whole)


SAVED = identity("seed: 0\n") | {"data": {"a.csv": "1"}}


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("data", {"a.csv": "2"}, "a.csv: 1 -> 2"),
        ("versions", SAVED["versions"] | {"jax": "0.9.0"}, "jax: .* -> 0.9"),
        ("versions", SAVED["versions"] | {"diffsim": "7.0.0"}, "diffsim: .* -> 7.0"),
    ],
)
def test_other_data_and_versions_are_refused(key, value, said):
    with pytest.raises(ConfigError, match=said):
        compare(SAVED, SAVED | {key: value}, {})


def test_what_may_change_the_last_bits_is_a_warning(capsys):
    patch = SAVED["versions"] | {"jax": SAVED["versions"]["jax"] + ".1", "optax": "99"}
    compare(SAVED, SAVED | {"versions": patch, "git_commit": "abc"}, {})
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "optax" in said
    assert "git_commit" in said
    compare(SAVED, SAVED, {})
    assert capsys.readouterr().err == ""


def test_a_trajectory_that_lost_frames_is_refused(stopped, capsys):
    with TrajectoryWriter(stopped / "trajectory.h5", atoms=128, resume_at=30) as writer:
        assert writer.frames == 3
    assert run.main([f"resume={stopped}"]) == 2
    assert "holds 3 frames up to the restart, which saw 20" in capsys.readouterr().err


# Damage


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "a flipped bit": flip,
    "a truncated file": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "a missing file": Path.unlink,
}


@pytest.mark.parametrize("how", slow_but(["a flipped bit", "a missing file"], DAMAGE))
def test_the_restart_before_a_damaged_one_leads_to_the_same_end(how, stopped, whole, capsys):
    before, last = steps(stopped)
    files = [p for p in (stopped / "restart" / str(last) / "arrays").rglob("*") if p.is_file()]
    DAMAGE[how](max(files, key=lambda path: path.stat().st_size))
    assert run.main([f"resume={stopped}"]) == 0
    assert f"step {last} is damaged" in capsys.readouterr().err
    assert outcome(stopped) == outcome(whole)
    assert (stopped / "restart_damaged" / str(last)).is_dir()
    assert steps(stopped) == [before, last]


def flip_frame(folder: Path, frame: int, name: str) -> None:
    """One bit of a number where it lies in trajectory.h5, which stays a file that HDF5 reads."""
    path = folder / "trajectory.h5"
    with h5py.File(path) as file:
        dataset = file[name]
        assert isinstance(dataset, h5py.Dataset)
        assert dataset.chunks is not None
        each = dataset.dtype.itemsize * int(np.prod(dataset.shape[1:]))
        chunk = dataset.id.get_chunk_info(frame // dataset.chunks[0])
        place = chunk.byte_offset + frame % dataset.chunks[0] * each
    data = bytearray(path.read_bytes())
    data[place + 6] ^= 0x10
    path.write_bytes(data)


POSITIONS = "particles/trajectory/position/value"


def test_the_restart_before_a_changed_frame_leads_to_the_same_end(stopped, whole, capsys):
    last = steps(stopped)[-1]
    flip_frame(stopped, 18, POSITIONS)  # the restart before saw 16
    assert run.main([f"resume={stopped}"]) == 0
    assert f"step {last} is damaged (trajectory.h5 has changed in {POSITIONS})" in (
        capsys.readouterr().err
    )
    assert outcome(stopped) == outcome(whole)


@pytest.mark.parametrize(
    "name", slow_but([POSITIONS], [POSITIONS, "observables/kinetic_energy/step"])
)
def test_a_frame_that_changed_before_every_restart_is_refused(name, stopped, capsys):
    flip_frame(stopped, 3, name)
    before = listing(stopped)
    assert run.main([f"resume={stopped}"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"trajectory.h5 has changed in {name}" in said
    assert "undamaged copy" in said
    assert listing(stopped) == before


def test_the_sums_of_frames_are_those_of_the_file(tmp_path):
    """However they came: in pieces, at two types, in two sessions; a restart that says nothing of
    them, as those of old, is taken at its word."""
    path, x = tmp_path / "t.h5", np.random.default_rng(0).normal(size=(7, 5, 3))
    with TrajectoryWriter(path, atoms=5, box=[2.0, 2.0, 2.0]) as writer:
        writer.extend([1, 2], [1.0, 2.0], x[:2], observables={"p": x[:2, 0, 0] > 0})
    with TrajectoryWriter(path, atoms=5, resume_at=2) as writer:
        for i in (2, 5):
            observables = {"p": x[i : i + 2, 0, 0] > 0}
            writer.extend([i + 1, i + 2], [0.0, 0.0], x[i : i + 2], observables=observables)
        meta = {"frames": writer.frames, "sums": writer.sums}
    assert len(meta["sums"]) == 7  # of positions, boxes and p; two steps and two times
    assert changed(path, meta) is None
    assert changed(path, {"frames": 9}) is None
    assert changed(tmp_path / "none.h5", meta) == "none.h5 is missing"


def test_no_intact_restart_is_said_and_nothing_lost(stopped, capsys):
    for step in steps(stopped):
        flip(next((stopped / "restart" / str(step) / "content").rglob("metadata")))
    before = listing(stopped)
    assert run.main([f"resume={stopped}"]) == 2
    said = capsys.readouterr().err
    assert "no intact restart" in said
    assert listing(stopped) == before


def test_a_restart_without_a_manifest_yet_serves(tmp_path):
    with Restarts(tmp_path / "r") as restarts:
        restarts.save(1, {"x": np.ones(3)})
        (tmp_path / "r" / "1" / "manifest.json").unlink()
        assert restarts.newest() == (1, {})


def test_a_fault_of_the_thread_that_writes_is_raised(tmp_path, monkeypatch):
    restarts = Restarts(tmp_path / "r", asynchronous=True)
    restarts.save(1, {"x": np.ones(3)})
    restarts.wait()
    full = OSError(28, "No space left on device")

    def fail(*_):
        raise full

    monkeypatch.setattr("diffsim._store.restart.write_manifest", fail)
    restarts.save(2, {"x": np.ones(3)})
    with pytest.raises(OSError, match="No space"):
        restarts.wait()
    assert is_full(full)
    restarts.close()


# Devices


def test_arrays_come_back_on_another_number_of_devices(tmp_path):
    code = (
        "import sys, jax, numpy as np, jax.numpy as jnp\n"
        "from jax.sharding import NamedSharding, PartitionSpec, AxisType\n"
        "from diffsim._store import Restarts\n"
        "n = len(jax.devices())\n"
        "mesh = jax.make_mesh((n,), ('x',), axis_types=(AxisType.Auto,))\n"
        "put = NamedSharding(mesh, PartitionSpec('x'))\n"
        "value = jax.device_put(jnp.arange(8.0), put)\n"
        "with Restarts(sys.argv[1]) as restarts:\n"
        "    if restarts.latest() is None: restarts.save(1, {'x': value})\n"
        "    _, tree, _ = restarts.load({'x': value * 0})\n"
        "assert tree['x'].sharding == put and (np.asarray(tree['x']) == np.arange(8)).all()\n"
    )
    for count in (4, 1, 2):
        environment = os.environ | {
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={count}",
            "PYTHONPATH": str(CHECKOUT / "src"),
        }
        command = [sys.executable, "-c", code, str(tmp_path / "r")]
        subprocess.run(command, check=True, env=environment, timeout=120)


# Full disks


def test_room_is_taken_before_a_trajectory_is_written_to(tmp_path):
    path = tmp_path / "t.h5"
    with TrajectoryWriter(path) as writer:
        writer.extend([1, 2], [0.1, 0.2], observables={"x": np.arange(2.0)})
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 1000, limit[1]))
        try:
            with pytest.raises(OSError, match="too large") as caught:
                writer.extend([3], [0.3], observables={"x": np.zeros(1)})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert is_full(caught.value)
    found = read_trajectory(path)
    np.testing.assert_array_equal(found.observables["x"].value, [0.0, 1.0])
    reserve(path, path.stat().st_size, {})


def test_a_full_disk_is_one_line_and_the_run_goes_on_later(whole, tmp_path, monkeypatch, capsys):
    folder, extend, count = tmp_path / "full", TrajectoryWriter.extend, [0]

    def full(self, *given, **named):
        count[0] += 1
        if count[0] == 4:
            raise OSError(28, "No space left on device")
        return extend(self, *given, **named)

    monkeypatch.setattr(TrajectoryWriter, "extend", full)
    assert run.main([*NVE, f"hydra.run.dir={folder}"]) == 5
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"resume={folder}" in said
    assert json.loads((folder / "status.json").read_text())["code"] == 5
    assert steps(folder)[-1] == 120
    assert run.main([f"resume={folder}"]) == 0
    assert outcome(folder) == outcome(whole)


# Chunks, failures


@pytest.mark.parametrize("chunk", slow_but([10], [10, 70, 200]))
def test_the_length_of_chunks_changes_no_bit(chunk, whole, tmp_path):
    folder = tmp_path / "other"
    assert run.main([*NVE, f"chunk={chunk}", f"hydra.run.dir={folder}"]) == 0
    assert datasets(folder / "trajectory.h5") == datasets(whole / "trajectory.h5")
    mine, theirs = outcome(folder)["result"], outcome(whole)["result"]
    assert mine == theirs


@pytest.fixture
def _traced_anew():
    """No program that was compiled before serves, nor one of these later."""
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.mark.usefixtures("_traced_anew")
def test_a_nan_is_reported_at_its_step_and_what_went_before_is_kept(whole, tmp_path, monkeypatch):
    from diffsim.md import NVE as Simulation

    bad, step = 57, Simulation.step

    def planted(self, params, state):
        after = step(self, params, state)
        spoilt = jax.numpy.where(after.step == bad, jax.numpy.nan, after.positions)
        return after.__class__(**{**vars(after), "positions": spoilt})

    monkeypatch.setattr(Simulation, "step", planted)
    folder = tmp_path / "bad"
    assert run.main([*NVE, f"hydra.run.dir={folder}"]) == 3
    status = json.loads((folder / "status.json").read_text())
    assert status["step"] == bad
    kept = read_trajectory(folder / "trajectory.h5").positions
    good = read_trajectory(whole / "trajectory.h5").positions
    assert kept is not None and good is not None
    before = kept.step < bad
    assert np.sum(before) == (bad - 1) // 10
    np.testing.assert_array_equal(kept.value[before], good.value[: np.sum(before)])
    assert steps(folder)[-1] == bad // 40 * 40

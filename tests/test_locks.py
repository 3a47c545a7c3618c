"""One process a run directory: a second one is refused in a line, a killed one leaves nothing."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from diffsim import run
from diffsim._errors import ConfigError
from diffsim._experiment import Experiment
from diffsim._store import alone, read_trajectory
from diffsim._store import lock as locks
from diffsim._sweep import Record

NVE = [
    *("experiment=lj_nve", "size=tiny", "laws=[]", "schedule.steps=40", "chunk=20"),
    *("studies=[]", "thermostat=null", "equilibration=0", "simulation.extra=[]"),
]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def acted(monkeypatch):
    """Runs end at once; `seen` has the seed of each."""
    seen: list[int] = []

    def act(self, directory, console, **_):
        assert (directory.path / locks.FILE).is_file()
        seen.append(self.seed)
        directory.result({"parameters": {}})
        return 0.5

    monkeypatch.setattr(Experiment, "run", act)
    monkeypatch.setattr(
        "diffsim._report.write_report", lambda f: (f / "report.html").write_text("")
    )
    return seen


def begun(name: str = "r") -> Path:
    """The directory of a run that was killed."""
    assert run.main([*NVE, f"hydra.run.dir={name}"]) == 0
    place = Path(name)
    assert not (place / locks.FILE).exists()
    (place / "result.json").unlink()
    (place / "status.json").write_text('{"state": "running"}')
    return place


def listing(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_second_one_is_refused_with_who_has_it(acted, capsys):
    place = begun()
    with alone(place, "x"):
        before = listing(place)
        assert run.main([f"resume={place}"]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and said.startswith(
            "diffsim: resume: 'r' is in use by process"
        )
        assert str(os.getpid()) in said and os.uname().nodename in said
        assert listing(place) == before
    assert acted == [0]
    assert run.main([f"resume={place}"]) == 0
    assert not (place / locks.FILE).exists()


def test_the_lock_is_let_go_however_a_run_ends(acted, monkeypatch):
    place = begun()
    monkeypatch.setattr(Experiment, "run", lambda *_, **__: 1 / 0)
    assert run.main([f"resume={place}"]) == 1
    with alone(place, "x"):
        pass


HOLD = (
    "import sys, time; from pathlib import Path; from diffsim._store import alone\n"
    "with alone(Path(sys.argv[1]), 'x'): print('has it', flush=True); time.sleep(600)"
)


def test_one_that_is_killed_leaves_nothing_that_holds(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "has it\n"
        with pytest.raises(ConfigError, match=f"process {other.pid} on"), alone(tmp_path, "x"):
            pass
        other.send_signal(signal.SIGKILL)
        other.wait()
    assert (tmp_path / locks.FILE).exists()
    with alone(tmp_path, "x"):
        assert json.loads((tmp_path / locks.FILE).read_text())["process"] == os.getpid()
    assert not list(tmp_path.iterdir())


def test_many_at_once_have_it_one_after_the_other(tmp_path):
    """The file goes when it is let go, which another may have open by then."""
    inside, most, had = [0], [0], [0]

    def strive():
        for _ in range(200):
            with contextlib.suppress(ConfigError), alone(tmp_path, "x"):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                had[0] += 1
                inside[0] -= 1

    threads = [threading.Thread(target=strive) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] and had[0] > 10


def test_where_there_are_no_locks_runs_go_on(tmp_path, monkeypatch):
    import fcntl

    def unsupported(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with alone(tmp_path, "x"), alone(tmp_path, "x"):
        pass


@pytest.mark.parametrize(
    "text",
    ["", "{", "[" * 2000, '{"process": 1}', '{"process": 1, "host": "\\u001b[2J", "since": "now"}'],
)
def test_what_is_in_the_file_is_not_trusted(text, tmp_path):
    with alone(tmp_path, "x"):
        (tmp_path / locks.FILE).write_text(text)
        with pytest.raises(ConfigError, match="in use by another process;"), alone(tmp_path, "x"):
            pass


def test_a_directory_that_cannot_be_written_is_refused_in_a_line(acted, capsys, monkeypatch):
    place = begun()

    def fail(path, *_):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patched:
        patched.setattr(locks.os, "open", fail)
        assert run.main([f"resume={place}"]) == 2
    said = capsys.readouterr().err
    assert "'r' cannot be written: Permission denied" in said and said.count("\n") == 1


def test_a_job_that_somebody_goes_on_with_is_left_to_them(acted, capsys):
    assert run.main(["-m", *NVE, "hydra.sweep.dir=s", "seed=0,1"]) == 0
    assert acted == [0, 1]
    for seed in "01":
        Path("s", seed, "status.json").write_text('{"state": "running"}')
    with alone(Path("s/1"), "x"):
        assert run.main(["resume=s"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "s/1' is in use by process" in said
    assert acted == [0, 1, 0]
    assert run.main(["resume=s/1"]) == 0  # by itself
    assert run.main(["resume=s"]) == 0
    assert acted == [0, 1, 0, 1]


def test_a_job_that_cannot_go_on_today_may_tomorrow(acted, capsys, monkeypatch):
    """What refuses a restart, another version say, is no answer of the job."""
    assert run.main(["-m", *NVE, "hydra.sweep.dir=s", "seed=0,1"]) == 0
    Path("s/1/status.json").write_text('{"state": "running"}')

    def refuse(_):
        raise ConfigError("the version has changed", key="resume")

    with monkeypatch.context() as patched:
        patched.setattr("diffsim._resume.settled", refuse)
        assert run.main(["resume=s"]) != 0
    assert "the version has changed" in capsys.readouterr().err
    assert run.main(["resume=s"]) == 0
    assert acted == [0, 1, 1]
    assert len(Record.load(Path("s")).jobs) == 2


def test_a_report_that_a_kill_came_before_is_written_by_a_resume(acted):
    assert run.main([*NVE, "hydra.run.dir=r"]) == 0
    Path("r/report.html").unlink()
    assert run.main(["resume=r"]) == 0
    assert Path("r/report.html").is_file()
    assert acted == [0]


@pytest.mark.slow
def test_two_processes_at_one_directory():
    """The second is refused while the first runs; of two that go on after a kill, one is."""
    pipe = subprocess.PIPE
    words = [*NVE, "schedule.steps=5000000", "schedule.save_every=100", "chunk=500"]

    def begun(*words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "diffsim.run", *words]
        return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True)

    with begun(*words, "hydra.run.dir=r") as first:
        assert first.stdout is not None
        while not first.stdout.readline().startswith("lj_nve "):
            assert first.poll() is None
        with begun("resume=r") as second:
            _, said = second.communicate(timeout=120)
        assert second.returncode == 2, said
        assert f"in use by process {first.pid} on" in said and said.count("\n") == 1
        first.kill()
        first.communicate(timeout=60)
    both = [begun("resume=r") for _ in range(2)]
    until = time.monotonic() + 300
    while all(each.poll() is None for each in both) and time.monotonic() < until:
        time.sleep(0.1)
    both.sort(key=lambda each: each.poll() is None)
    refused, goes_on = both
    assert refused.returncode == 2
    assert f"in use by process {goes_on.pid} on" in refused.communicate()[1]
    assert goes_on.stdout is not None
    while not goes_on.stdout.readline().startswith("lj_nve "):
        assert goes_on.poll() is None
    goes_on.send_signal(signal.SIGTERM)
    goes_on.communicate(timeout=300)
    assert goes_on.returncode == 143
    rows = [json.loads(line)["step"] for line in Path("r/metrics.jsonl").read_text().splitlines()]
    assert rows == sorted(set(rows))
    frames = read_trajectory(Path("r/trajectory.h5")).positions
    assert frames is not None and np.all(np.diff(frames.step) == 100)

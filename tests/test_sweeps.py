"""Sweeps: every job keeps to itself, none is lost, and the folder is enough to go on from."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from diffsim import run
from diffsim._errors import Interrupted, SimulationError
from diffsim._experiment import Experiment
from diffsim._report.style import new_figure
from diffsim._sweep import Record, figures
from diffsim._sweep.jobs import held

NVE = [
    *("experiment=lj_nve", "size=tiny", "laws.0.rtol=1", "schedule.steps=100", "chunk=20"),
    *("studies=[]", "thermostat=null", "equilibration=0", "simulation.extra=[]"),
]
IN = "hydra.sweep.dir=s"
PLACE = Path("s")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


def status(folder: Path) -> dict:
    return json.loads((folder / "status.json").read_text())


def summary(folder: Path = PLACE) -> dict:
    return json.loads((folder / "sweep.json").read_text())


def states(folder: Path = PLACE) -> list[str]:
    return [job["state"] for job in summary(folder)["jobs"]]


@pytest.fixture
def acted(monkeypatch):
    """Runs that are built like any other, but end at once: how, the test says by the seed; `seen`
    has the seed of each, and whether it was resumed."""
    seen: list[tuple[int, bool]] = []
    endings = {
        9001: RuntimeError("a fault"),
        9003: SimulationError("blew up", step=7, advice="reduce dt"),
        9005: Interrupted(signal.SIGTERM),
    }

    def act(self, directory, console, *, resume=False, poll=None):
        seen.append((self.seed, resume))
        if poll is not None:
            poll()
        if self.seed in endings:
            raise endings[self.seed]
        fitted = {"value": 1.0 + 0.1 * self.seed, "stderr": 0.05, "unit": "K"}
        directory.result({"parameters": {"epsilon": fitted}, "timing": {"total_s": 1.5}})
        return float("nan") if self.seed == 13 else 0.5 + self.seed

    monkeypatch.setattr(Experiment, "run", act)
    monkeypatch.setattr("diffsim._report.write_report", lambda folder: folder / "report.html")
    monkeypatch.setattr(figures, "new_figure", None)  # it takes a second: a note instead
    return seen


# What is left behind


def test_a_table_a_page_and_every_job(acted, capsys, monkeypatch):
    monkeypatch.setattr(figures, "new_figure", new_figure)
    assert run.main(["-m", *NVE, IN, "seed=0,1,2", "chunk=20,25"]) == 0
    assert [(job["folder"], job["overrides"]) for job in summary()["jobs"]][3] == (
        "3",
        {"seed": "1", "chunk": "25"},
    )
    rows = list(csv.DictReader((PLACE / "sweep.csv").read_text().splitlines()))
    assert [float(row["objective"]) for row in rows] == [0.5, 0.5, 1.5, 1.5, 2.5, 2.5]
    assert rows[-1] | {"seconds": "1.5", "epsilon": "1.2", "epsilon_stderr": "0.05"} == rows[-1]
    spread = summary()["spread"]["epsilon"]
    expected = np.repeat([1.0, 1.1, 1.2], 2)
    assert spread["mean"] == pytest.approx(expected.mean())
    assert spread["sd"] == pytest.approx(expected.std(ddof=1))
    assert spread["stderr"] == pytest.approx(0.05)
    page = (PLACE / "sweep.html").read_text()
    assert "3/report.html" in page and "1.200 ± 0.050 K" in page
    assert (PLACE / "figures" / "sweep.png").stat().st_size > 5000
    said = capsys.readouterr().out
    assert "6 done" in said and "seed" in said and str(PLACE / "sweep.html") in said


def test_the_record_is_there_before_the_first_job(acted, monkeypatch):
    def look(self, directory, console, **_):
        record = Record.load(PLACE)
        assert [job.overrides for job in record.jobs] == [("seed=4",), ("seed=5",)]
        assert directory.config_text() == record.jobs[self.seed - 4].config
        return 0.0

    monkeypatch.setattr(Experiment, "run", look)
    assert run.main(["-m", *NVE, IN, "seed=4,5"]) == 0


@pytest.mark.parametrize(
    ("subdir", "folders"),
    [("a_${seed}", ["a_0", "a_1"]), ("${seed}/x", ["0/x", "1/x"])],
)
def test_folders_may_be_named(acted, subdir, folders):
    assert run.main(["-m", *NVE, IN, f"hydra.sweep.subdir={subdir}", "seed=0,1"]) == 0
    assert [job["folder"] for job in summary()["jobs"]] == folders
    assert all(status(PLACE / folder)["state"] == "done" for folder in folders)


def test_groups_are_swept_by_their_choices(acted):
    assert run.main(["-m", *NVE, IN, "adjoint=glob(d*)", "name=lj_nve"]) == 0
    swept = [job["overrides"]["adjoint"] for job in summary()["jobs"]]
    assert swept == ["default", "direct"]


REFUSED = [
    (["seed=0,1", "hydra.sweep.subdir=x"], "two jobs have one folder"),
    (["seed=0,1", "hydra.sweep.subdir=.locks"], "hydra.sweep.subdir"),
    (["seed=range(100000)"], "at most"),
    (["simulation.dt=interval(0.1,1)"], "for a search"),
    (["hydra/sweeper=basic"], "search.trials"),
    (["hydra.sweeper.params={seed: '0,1'}"], "search.trials"),
    (["hydra/launcher=nowhere"], "hydra/launcher"),
    (["seed=0,1", "simulation.dt=1,-1"], "simulation.dt"),
]


@pytest.mark.parametrize(("words", "says"), REFUSED)
def test_bad_sweeps_are_refused_before_anything_is_written(words, says, capsys):
    assert run.main(["-m", *NVE, *words]) == 2
    shown = capsys.readouterr()
    assert says in shown.err and shown.err.count("\n") == 1
    assert not list(Path().iterdir())


# Jobs keep to themselves


def test_failures_do_not_cost_the_others(acted, capsys):
    assert run.main(["-m", *NVE, IN, "seed=0,9003,13,9001,7"]) == 3
    assert states() == ["done", "failed", "done", "failed", "done"]
    assert [job["code"] for job in summary()["jobs"]] == [0, 3, 0, 1, 0]
    assert [job["objective"] for job in summary()["jobs"]] == [0.5, None, None, None, 7.5]
    said = capsys.readouterr().out
    assert "failed (3)" in said and "3 done, 2 failed" in said
    page = (PLACE / "sweep.html").read_text()
    assert "blew up at step 7; reduce dt" in page


def test_precision_does_not_leak_from_job_to_job():
    """float32, float64, float32 in one process: each as alone, to the bit."""
    words = [*NVE, "laws=[]", "schedule.steps=20", "frames=null"]
    for precision in ("float32", "float64"):
        place = f"hydra.run.dir={precision}"
        assert run.main([*words, f"precision={precision}", place]) == 0
    before = jax.config.read("jax_enable_x64")
    assert run.main(["-m", *words, IN, "precision=float32,float64,float32"]) == 0
    assert jax.config.read("jax_enable_x64") == before

    def told(folder: Path) -> tuple[str, str]:
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        rows = [{k: v for k, v in json.loads(x).items() if k != "seconds"} for x in lines]
        result = json.loads((folder / "result.json").read_text())
        return json.dumps(rows), json.dumps(result["measured"]["observables"])

    alone = {name: told(Path(name)) for name in ("float32", "float64")}
    assert alone["float32"] != alone["float64"]
    for folder, name in enumerate(("float32", "float64", "float32")):
        assert told(PLACE / str(folder)) == alone[name]


# Going on


def test_what_stopped_a_sweep_stops_its_jobs_and_a_resume_runs_the_rest(acted, capsys):
    assert run.main(["-m", *NVE, IN, "seed=0,9005,2"]) == 143
    assert states() == ["done", "interrupted", "missing"]
    assert "resume=s" in capsys.readouterr().out
    assert [seed for seed, _ in acted] == [0, 9005]
    assert run.main(["resume=s"]) == 143  # the same seed, the same end
    assert [seed for seed, _ in acted] == [0, 9005, 9005]


def test_a_killed_sweep_goes_on(acted):
    """What kill -9 leaves: a job whose status says running, one with a torn start, one missing."""
    assert run.main(["-m", *NVE, IN, "seed=0,1,9003,3,4"]) == 3
    whole = summary()["jobs"]
    for name in ("sweep.json", "sweep.csv", "sweep.html"):
        (PLACE / name).unlink()
    (PLACE / "1" / "status.json").write_text('{"state": "running"}')
    shutil.rmtree(PLACE / "3")
    (PLACE / "3").mkdir()
    (PLACE / "3" / ".config.yaml.17.part").write_text("na")
    shutil.rmtree(PLACE / "4")
    acted.clear()
    before = {path: path.stat().st_mtime_ns for path in (PLACE / "0").rglob("*")}
    assert run.main(["resume=s"]) == 3
    assert [seed for seed, _ in acted] == [1, 3, 4]
    assert summary()["jobs"] == whole
    assert {path: path.stat().st_mtime_ns for path in (PLACE / "0").rglob("*")} == before
    acted.clear()
    assert run.main(["resume=s"]) == 3
    assert not acted


def test_a_fault_of_the_program_is_tried_again(acted):
    assert run.main(["-m", *NVE, IN, "seed=9001,1"]) == 1
    acted.clear()
    assert run.main(["resume=s"]) == 1
    assert [seed for seed, _ in acted] == [9001]


def test_a_launcher_that_fails_leaves_the_rest_for_a_resume(acted, monkeypatch, capsys):
    from hydra._internal.core_plugins.basic_launcher import BasicLauncher

    launch = BasicLauncher.launch

    def fail(self, job_overrides, initial_job_idx):
        launch(self, job_overrides[:1], initial_job_idx)
        raise OSError("no more nodes")

    with monkeypatch.context() as patched:
        patched.setattr(BasicLauncher, "launch", fail)
        assert run.main(["-m", *NVE, IN, "seed=0,1"]) == 1
    shown = capsys.readouterr()
    assert "no more nodes" in shown.err and "Traceback" not in shown.err
    assert states() == ["done", "missing"]
    assert run.main(["resume=s"]) == 0
    assert states() == ["done", "done"]


def _changed_config(place):
    (place / "0" / "config.yaml").write_text("seed: 7\n")


def _linked_job(place):
    (place / "0").rename(place / "elsewhere")
    (place / "0").symlink_to("elsewhere")


def _linked_figure(place):
    (place / "0" / "figures").mkdir()
    (place / "0" / "figures" / "energy.png").symlink_to(place / "jobs.json")


def _damaged(place):
    text = (place / "jobs.json").read_text()
    (place / "jobs.json").write_text(text.replace("chunk: 20", "chunk: 21", 1))


def _leads_out(place):
    text = (place / "jobs.json").read_text()
    (place / "jobs.json").write_text(text.replace('"folder": "0"', '"folder": "../../x"'))


def _other_launcher(place):
    content = json.loads((place / "jobs.json").read_text())
    content["launcher"] = {"_target_": "builtins.open", "file": "stolen"}
    (place / "jobs.json").write_text(json.dumps(content))


def _commands(place):
    content = json.loads((place / "jobs.json").read_text())
    content["launcher"]["setup"] = ["touch stolen"]
    (place / "jobs.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_changed_config, "move s/0 away"),
        (_linked_job, "symbolic link"),
        (_linked_figure, "symbolic link '0/figures/energy.png'"),
        (_damaged, "damaged"),
        (_leads_out, "damaged"),
        (_other_launcher, "no plugin"),
        (_commands, "said again"),
    ],
)
def test_a_folder_that_was_tampered_with_is_refused(change, says, acted, capsys):
    assert run.main(["-m", *NVE, IN, "seed=0,9001"]) == 1
    change(PLACE)
    acted.clear()
    capsys.readouterr()
    assert run.main(["resume=s"]) == 2
    shown = capsys.readouterr().err
    assert says in shown and shown.count("\n") == 1
    assert not acted
    assert not Path("stolen").exists() and not Path("../x").exists()


def test_two_at_once_are_refused(acted, capsys):
    assert run.main(["-m", *NVE, IN, "seed=0,9001"]) == 1
    record = Record.load(PLACE)
    for lock, says in (("sweep", "is running"), ("1", "still running")):
        with held(record, lock) as ours:
            assert ours
            assert run.main(["resume=s"]) == 2
            assert says in capsys.readouterr().err


def test_a_resume_takes_a_launcher_and_nothing_else(acted, capsys):
    assert run.main(["-m", *NVE, IN, "seed=0,9001"]) == 1
    assert run.main(["resume=s", "seed=3"]) == 2
    assert "hydra/launcher" in capsys.readouterr().err
    assert run.main(["resume=s", "hydra/launcher=basic"]) == 1


def test_an_output_folder_that_is_a_link_is_refused(acted, capsys):
    Path("real").mkdir()
    PLACE.symlink_to("real")
    assert run.main(["-m", *NVE, IN, "seed=0,1"]) == 2
    assert "symbolic link" in capsys.readouterr().err
    assert not list(Path("real").iterdir())


# The real launchers, in processes of their own


def begun(*words: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "diffsim.run", *words]
    return subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, text=True)


def ended(*words: str) -> tuple[int, str]:
    with begun(*words) as process:
        said, _ = process.communicate(timeout=900)
    return process.returncode, said


JOBLIB = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]


@pytest.mark.slow
def test_side_by_side():
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    code, said = ended("-m", *NVE, IN, "laws.0.rtol=1e-12,1", *JOBLIB)
    assert code == 4, said
    assert states() == ["law_broken", "done"]


@pytest.mark.slow
def test_on_a_cluster_of_one():
    """submitit's local executor: the way of Slurm, on this machine."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    words = ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=10"]
    code, said = ended("-m", *NVE, "laws=[]", IN, "precision=float32,float64", *words)
    assert code == 0, said
    assert states() == ["done", "done"]
    assert (PLACE / ".submitit").is_dir()


def _running(place: Path, count: int) -> bool:
    """Whether so many jobs are at work: their first iteration is written."""
    return len(list(place.glob("*/metrics.jsonl"))) >= count


@pytest.mark.slow
@pytest.mark.parametrize("how", ["kill", "interrupt"])
def test_lj_fit_over_four_seeds_is_killed_and_resumed(how):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    fit = ["experiment=lj_fit", "size=tiny", "fit.steps=4"]
    process = begun("-m", *fit, IN, "seed=0,1,2,3", *JOBLIB)
    until = time.monotonic() + 300
    while not _running(PLACE, 1) and time.monotonic() < until:
        time.sleep(0.1)
    if how == "kill":
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.send_signal(signal.SIGTERM)  # to the launching process alone
    process.communicate(timeout=300)
    assert process.returncode == (-signal.SIGKILL if how == "kill" else 143)
    ends = [path.parent.name for path in PLACE.glob("*/result.json")]
    assert len(ends) < 4
    time.sleep(1)
    before = {name: (PLACE / name / "result.json").stat().st_mtime_ns for name in ends}
    code, said = ended("resume=s")
    assert code == 0, said
    assert states() == ["done"] * 4
    assert {n: (PLACE / n / "result.json").stat().st_mtime_ns for n in ends} == before
    code, said = ended("-m", *fit, "hydra.sweep.dir=whole", "seed=0,1,2,3")
    assert code == 0, said
    for seed in "0123":
        whole, resumed = (
            json.loads((place / seed / "result.json").read_text())["parameters"]
            for place in (Path("whole"), PLACE)
        )
        assert resumed == whole


def test_workers_share_out_the_gpus(monkeypatch):
    """Each sees one, the third that of another, with no memory reserved."""
    from diffsim._sweep import shared_out

    Path("s/.locks").mkdir(parents=True)
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-a/1")
    script = """if True:
        import os, pathlib, types
        from diffsim._sweep import take_one
        take_one(types.SimpleNamespace(path=pathlib.Path("s")))
        take_one(types.SimpleNamespace(path=pathlib.Path("s")))
        kept = os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"]
        print(os.environ["CUDA_VISIBLE_DEVICES"], kept, flush=True)
        input()
    """

    pipes: dict[str, Any] = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with shared_out({"n_jobs": 4}):
        workers = [subprocess.Popen([sys.executable, "-c", script], **pipes) for _ in range(3)]
        seen = [each.stdout.readline().strip() for each in workers if each.stdout]
    for each in workers:
        each.communicate("\n")
    assert sorted(seen) == ["4 false", "4 false", "GPU-a/1 false"]
    assert "DIFFSIM_SHARED_GPUS" not in os.environ
    with shared_out({"n_jobs": 4, "_target_": "x"}):
        assert os.environ["DIFFSIM_SHARED_GPUS"] == f"{os.getpid()},4,GPU-a/1"
    with shared_out({"_target_": "hydra._internal.core_plugins.basic_launcher.BasicLauncher"}):
        assert "DIFFSIM_SHARED_GPUS" not in os.environ
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    with shared_out({"n_jobs": 4}):
        assert "DIFFSIM_SHARED_GPUS" not in os.environ

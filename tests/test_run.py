"""The command line: exit codes, what is written and what is not, resuming, sweeps, signals."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from conftest import CHECKOUT
from diffsim import config, run
from diffsim._errors import ConfigError, Interrupted, LawBroken, SimulationError
from diffsim._experiment import Experiment

NVE = [
    *("experiment=lj_nve", "size=tiny", "laws.0.rtol=1", "schedule.steps=100", "chunk=20"),
    *("studies=[]", "thermostat=null", "equilibration=0", "simulation.extra=[]"),
]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


def tree(folder: Path = Path("..")) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def runs() -> list[Path]:
    """The directories of runs so far."""
    return sorted(path.parent for path in Path("outputs").rglob("status.json"))


def status(folder: Path) -> dict:
    return json.loads((folder / "status.json").read_text())


@pytest.fixture
def acted(monkeypatch):
    """Runs that are built like any other, but end at once: how, the test says by the seed."""
    endings = {
        9001: RuntimeError("a fault"),
        9002: ConfigError("too late", key="x"),
        9003: SimulationError("blew up", step=7, advice="reduce dt"),
        9004: LawBroken("energy", worst=2.0, tolerance=1.0, step=9),
        9005: Interrupted(signal.SIGTERM),
    }

    def act(self, directory, console, *, resume=False, poll=None):
        directory.log({"iteration": 0, "loss": 1.0, "x64": jax.config.read("jax_enable_x64")})
        if self.seed in endings:
            raise endings[self.seed]
        directory.result({"experiment": self.name, "status": "done", "parameters": {}})
        return 0.5

    monkeypatch.setattr(Experiment, "run", act)
    monkeypatch.setattr("diffsim._report.write_report", lambda folder: folder / "report.html")


# Questions


def quick(*words: str) -> tuple[str, list[str]]:
    """What a command says, and which of the slow libraries it has loaded."""
    slow = "{'jax', 'equinox', 'h5py', 'matplotlib', 'pint', 'ase'}"
    code = (
        "import sys; from diffsim.run import main; code = main(sys.argv[1:]);"
        f"print(sorted({slow} & set(sys.modules))); sys.exit(code)"
    )
    command = [sys.executable, "-c", code, *words]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert answer.returncode == 0, answer.stderr
    said, _, loaded = answer.stdout.strip().rpartition("\n")
    return said, json.loads(loaded.replace("'", '"'))


def test_help_is_quick_and_names_everything():
    said, loaded = quick("--help")
    assert not loaded
    for word in (*config.experiments(), *config.groups(), "resume=", "--list", "--config-dir"):
        assert word in said
    assert not tree() - {"work"}


def test_the_list_is_quick_with_a_question_a_line(tmp_path):
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "own.yaml").write_text("question: Why?\n")
    said, loaded = quick("--list", "--config-dir", str(tmp_path / "mine"))
    assert not loaded
    rows = dict(line.split(maxsplit=1) for line in said.splitlines())
    assert rows == {**config.experiments(), "own": "Why?"}
    assert all(rows.values())


def test_bad_words_are_refused_before_jax_is_loaded():
    code = (
        "import sys; from diffsim.run import main\n"
        "assert main(['experiment=lj_nve', 'sede=1']) == 2\n"
        "assert main(['experiment=lj_nve', 'simulation._target_=builtins.open']) == 2\n"
        "assert not {'jax', 'equinox'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, capture_output=True)


def test_the_version(capsys, monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda name: "1.2.3")
    assert run.main(["--version"]) == 0
    assert capsys.readouterr().out == "diffsim 1.2.3\n"


# Runs


def test_a_run_leaves_its_files_and_can_be_resumed(capsys):
    assert run.main(NVE) == 0
    (folder,) = runs()
    assert folder.parent == Path("outputs/lj_nve")
    names = {path.name for path in folder.iterdir()}
    assert names >= {"config.yaml", "metrics.jsonl", "result.json", "trajectory.h5", "report.html"}
    assert status(folder)["state"] == "done"
    last = capsys.readouterr().out.splitlines()[-3:]
    assert last[-1] == str(folder / "report.html")
    assert "kept" in last[-2]

    # A finished run is left alone.
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert run.main([f"resume={folder}"]) == 0
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert "finished" in capsys.readouterr().out

    # One that was killed before its first restart starts over.
    whole = json.loads((folder / "result.json").read_text())["measured"]["observables"]
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "result.json").unlink()
    (folder / "status.json").write_text('{"state": "running"}')
    shutil.rmtree(folder / "restart")
    (folder / "metrics.jsonl").write_text(lines[0] + "\n" + lines[1][:9])
    assert run.main([f"resume={folder}"]) == 0
    again = json.loads((folder / "result.json").read_text())["measured"]["observables"]
    assert again == whole
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == len(lines)


ENDINGS = [
    (0, 0, "done"),
    (9001, 1, "failed"),
    (9002, 2, "failed"),
    (9003, 3, "failed"),
    (9004, 4, "law_broken"),
    (9005, 143, "interrupted"),
]


@pytest.mark.parametrize(("seed", "code", "state"), ENDINGS)
def test_exit_codes(seed, code, state, acted, capsys):
    assert run.main([*NVE, f"seed={seed}"]) == code
    (folder,) = runs()
    said = status(folder)
    assert (said["code"], said["state"]) == (code, state)
    shown = capsys.readouterr()
    assert str(folder / "report.html") in shown.out
    assert ("Traceback" in shown.err) == (code == 1)
    if code > 1:
        assert shown.err.count("\n") == 1
        assert said["message"] in shown.err


def test_the_step_and_the_advice_are_kept(acted):
    run.main([*NVE, "seed=9003"])
    assert status(runs()[0]) | {"updated": 0} == {
        "experiment": "lj_nve",
        "state": "failed",
        "code": 3,
        "updated": 0,
        "message": "blew up at step 7; reduce dt",
        "step": 7,
        "advice": "reduce dt",
    }


def test_a_fault_of_the_report_is_no_success(acted, monkeypatch, capsys):
    monkeypatch.setattr("diffsim._report.write_report", lambda folder: 1 / 0)
    assert run.main(NVE) == 1
    assert run.main([*NVE, "seed=9003"]) == 3
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_runs_of_one_second_keep_apart(acted, monkeypatch):
    monkeypatch.setattr(config, "_run_dir", lambda *_: (Path("outputs/lj_nve/now"), False))
    for _ in range(3):
        assert run.main(NVE) == 0
    assert [path.name for path in runs()] == ["now", "now_1", "now_2"]


def test_the_directory_may_be_chosen(acted, tmp_path):
    assert run.main([*NVE, f"hydra.run.dir='{tmp_path}/a b'"]) == 0
    assert status(tmp_path / "a b")["state"] == "done"


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_precision_ends_with_the_run(precision, acted):
    before = jax.config.read("jax_enable_x64")
    assert run.main([*NVE, f"precision={precision}"]) == 0
    (line,) = (runs()[0] / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["x64"] == (precision == "float64")
    assert jax.config.read("jax_enable_x64") == before


# Sweeps


def test_a_failing_job_does_not_cost_the_others(acted, capsys):
    assert run.main(["-m", *NVE, "seed=0,9003,9001,7"]) == 3
    assert [status(folder)["code"] for folder in runs()] == [0, 3, 1, 0]
    assert [folder.name for folder in runs()] == ["0", "1", "2", "3"]
    texts = [(folder / "config.yaml").read_text() for folder in runs()]
    assert ["seed: 7" in text for text in texts] == [False, False, False, True]
    assert run.main(["--multirun", *NVE, "seed=0,7", "hydra.sweep.dir=other"]) == 0
    assert status(Path("other/1"))["code"] == 0


def test_what_stops_a_job_stops_the_sweep(acted):
    assert run.main(["-m", *NVE, "seed=9005,0"]) == 143
    assert [status(folder)["code"] for folder in runs()] == [143]


@pytest.mark.slow
def test_jobs_run_side_by_side():
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    words = [*NVE, "laws.0.rtol=1e-12,1", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    command = [sys.executable, "-m", "diffsim.run", "-m", *words]
    assert subprocess.run(command, check=False, timeout=300).returncode == 4
    assert [status(folder)["code"] for folder in runs()] == [4, 0]


def test_the_objective_of_a_job_is_a_finite_number(acted, monkeypatch):
    seen = []
    job = run.task
    monkeypatch.setattr(run, "task", lambda settings: seen.append(job(settings)))
    run.main(["-m", *NVE, "seed=0,9003"])
    assert seen == [0.5, run.FAILED]


# The real thing


def test_an_interrupted_run_goes_on_to_the_same_end(tmp_path):
    """Ctrl-C to a process, and what it leaves resumed."""
    words = [*NVE, "schedule.steps=20000", "schedule.save_every=100", "chunk=500"]
    command = [sys.executable, "-m", "diffsim.run", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("lj_nve "):
                process.send_signal(signal.SIGINT)
                break
        process.communicate(timeout=120)
    assert process.returncode == 130
    (folder,) = runs()
    assert status(folder)["state"] == "interrupted"
    assert (folder / "report.html").is_file()
    done = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    assert 0 < done < 20000
    assert run.main([f"resume={folder}"]) == 0
    rows = [
        json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]
    assert rows == sorted(set(rows))
    assert rows[-1] == 20000


def test_the_module_is_a_command():
    command = [sys.executable, "-m", "diffsim.run", "experiment=lj_nev"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert str(CHECKOUT) not in ended.stderr

"""Files from elsewhere, and files that a disk has damaged: refused in one line, or read."""

import contextlib
import io
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import jax
import numpy as np
import pytest

from diffsim import _table, run
from diffsim._errors import ConfigError
from diffsim._experiment import Experiment
from diffsim._report.html import page
from diffsim._report.run_data import RunData
from diffsim._secrets import scrub
from diffsim._store import RunDirectory, TrajectoryWriter, fitted, read_trajectory, write_xdmf
from diffsim._store.draws import read_draws
from diffsim._sweep import Record, figures
from diffsim._sweep.page import write_page
from diffsim._sweep.record import Job
from diffsim._sweep.summary import summarise
from diffsim.md import load_structure

NVE = [
    *("experiment=lj_nve", "size=tiny", "laws=[]", "schedule.steps=40", "chunk=20"),
    *("studies=[]", "thermostat=null", "equilibration=0", "simulation.extra=[]"),
]
STRUCTURE = Path(__file__).parent / "data" / "nist_lj_config3.xyz"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


# HDF5 that points elsewhere, or claims what it does not hold


def _external(file, place):
    file.create_dataset(place, (2, 3), "f8", external=[("../secret.bin", 0, 48)])


def _virtual(file, place):
    layout = h5py.VirtualLayout((2, 3), "f8")
    layout[:] = h5py.VirtualSource("../secret.h5", "x", (2, 3))
    file.create_virtual_dataset(place, layout)


def _linked(file, place):
    file[place] = h5py.ExternalLink("../secret.h5", "x")


def _claiming(file, place):
    chunks = (1, 1000)
    file.create_dataset(place, (10**6, 10**6), "f8", chunks=chunks, compression="gzip")


def _flow(path):
    pytest.importorskip("h5netcdf")
    from diffsim.cfd import FlowData

    return FlowData(path).velocity([0], [0])


READERS = {
    "dataset": ("x", lambda path: _table.dataset(path, "x")),
    "parameters": ("x/value", lambda path: fitted(path, "x")),
    "draws": ("draws/x", read_draws),
    "flow": ("u", _flow),
    "trajectory": ("observables/x/value", read_trajectory),
    "fields": ("observables/x/value", write_xdmf),
}
MAKERS = {"external": _external, "virtual": _virtual, "link": _linked, "claim": _claiming}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", MAKERS)
def test_hdf5_that_leads_elsewhere_is_refused_by_every_reader(kind, reader):
    Path("../secret.bin").write_bytes(np.full(6, 42.0).tobytes())
    with h5py.File("../secret.h5", "w") as file:
        file["x"] = np.full((2, 3), 42.0)
    place, read = READERS[reader]
    with h5py.File("t.h5", "w") as file:
        file.create_group("h5md")
        if reader == "trajectory":
            file["observables/x/step"], file["observables/x/time"] = np.arange(2), np.arange(2.0)
        MAKERS[kind](file, place)
    if (kind, reader) == ("claim", "fields"):
        return  # the description of a file reads none of its arrays
    with pytest.raises(ConfigError) as caught:
        read(Path("t.h5"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["external", "virtual", "link"])
def test_a_resume_writes_into_no_other_file(kind):
    with TrajectoryWriter(Path("t.h5"), atoms=0, box=None) as out:
        out.extend([0], [0.0], observables={"p": np.ones(1)})
    with h5py.File("t.h5", "r+") as file:
        MAKERS[kind](file, "observables/q/value")
    with pytest.raises(ConfigError, match="elsewhere"):
        TrajectoryWriter(Path("t.h5"), atoms=0, box=None, resume_at=0)


@pytest.mark.parametrize(
    "name",
    [
        *("metrics.jsonl", "trajectory.h5", "restart", "figures", "figures/energy.png"),
        *("restart/20/manifest.json", "restart_damaged/20", "profile/a/b/c"),
    ],
)
def test_a_run_directory_with_a_link_in_it_is_refused(name, capsys):
    """A resume would write where the link leads."""
    RunDirectory.create("r", "seed: 0\n")
    Path("precious").write_text("mine")
    Path("r", name).parent.mkdir(parents=True, exist_ok=True)
    Path("r", name).symlink_to(Path("precious").absolute())
    assert run.main(["resume=r"]) == 2
    assert "symbolic link" in capsys.readouterr().err
    assert Path("precious").read_text() == "mine"


@pytest.mark.parametrize("name", ["status.json", "metrics.jsonl", "trajectory.h5", "jobs.json"])
def test_a_run_directory_with_a_pipe_in_it_is_refused(name, capsys):
    """Who reads it would wait for somebody to write."""
    RunDirectory.create("r", "seed: 0\n")
    os.mkfifo(Path("r", name))
    assert run.main(["resume=r"]) == 2
    assert ("regular" if name == "jobs.json" else "special file") in capsys.readouterr().err


# A byte of a file is another one


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The directory of a run, with everything in it."""
    place = tmp_path_factory.mktemp("finished")
    with contextlib.chdir(place), contextlib.redirect_stdout(io.StringIO()):
        assert run.main([*NVE, "hydra.run.dir=run"]) == 0
    return place / "run"


HEAD = 2048  # bytes


def flips(path: Path, count: int = 50) -> Iterator[None]:
    """The file with one byte changed, so many times; as it was in the end. Every other byte is one
    of the first, where a format says what is in the file."""
    whole, random = path.read_bytes(), np.random.default_rng(17)
    for n in range(count):
        torn = bytearray(whole)
        torn[random.integers(min(len(torn), HEAD) if n % 2 else len(torn))] ^= int(
            random.integers(1, 256)
        )
        path.write_bytes(torn)
        yield
    path.write_bytes(whole)


def _read_csv(path: Path) -> None:
    _table.table(path)


READ: dict[str, Callable[[Path], object]] = {
    "trajectory.h5": lambda path: (read_trajectory(path), write_xdmf(path)),
    "t.csv": _read_csv,
    "t.xyz": load_structure,
    "jobs.json": lambda path: Record.load(path.parent),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", READ)
def test_flipped_bytes_are_read_or_refused(name, finished):
    path = Path(name)
    if name == "trajectory.h5":
        shutil.copy(finished / name, path)
    elif name == "t.csv":
        path.write_text("T,p\n" + "".join(f"{100 + i}.5,{i * 0.1:.3f}\n" for i in range(30)))
    elif name == "t.xyz":
        path.write_bytes(STRUCTURE.read_bytes())
    else:
        job = Job("0", ("seed=1",), "seed: 1\nname: x\n")
        Record(Path(), "x", {"_target_": "x"}, (job,), words=("seed=1,2",)).save()
    refused = 0
    for _ in flips(path):
        try:
            READ[name](path)
        except ConfigError:
            refused += 1
    assert 0 < refused <= 50


@pytest.mark.parametrize("name", ["result.json", "metrics.jsonl", "status.json", "config.yaml"])
def test_the_page_of_a_run_is_made_of_what_is_left_of_it(name, finished):
    shutil.copytree(finished, "run")
    for _ in flips(Path("run", name)):
        assert page(RunData.load(Path("run")), [], []).startswith("<!DOCTYPE html>")


@pytest.mark.parametrize("name", ["config.yaml", "status.json"])
def test_a_run_with_a_flipped_byte_goes_on_or_is_refused(name, finished, monkeypatch):
    shutil.copytree(finished, "run")
    monkeypatch.setattr(Experiment, "run", lambda *_, **__: 0.5)
    monkeypatch.setattr("diffsim._report.write_report", lambda folder: folder / "report.html")
    for _ in flips(Path("run", name)):
        if name != "status.json":
            Path("run/status.json").write_text('{"state": "running"}')
        said = io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            code = run.main(["resume=run"])
        assert code in (0, 2)
        assert "Traceback" not in said.getvalue()


@pytest.mark.slow
def test_restarts_with_a_flipped_byte_are_passed_over_or_refused(finished):
    files = [path.relative_to(finished) for path in (finished / "restart").rglob("*")]
    files = [
        path for path in files if (finished / path).is_file() and (finished / path).stat().st_size
    ]
    random = np.random.default_rng(3)
    for _ in range(50):
        shutil.copytree(finished, "run")
        Path("run/status.json").write_text('{"state": "running"}')
        path = "run" / files[random.integers(len(files))]
        torn = bytearray(path.read_bytes())
        torn[random.integers(len(torn))] ^= int(random.integers(1, 256))
        path.write_bytes(torn)
        said = io.StringIO()
        with warnings.catch_warnings(), contextlib.redirect_stderr(said):
            warnings.simplefilter("ignore")
            code = run.main(["resume=run"])
        assert code in (0, 2, 3), said.getvalue()
        assert "Traceback" not in said.getvalue(), path
        shutil.rmtree("run")
        jax.clear_caches()


# Where nothing may be written, and what nothing may read


@pytest.mark.parametrize(
    "word",
    [
        *("simulation=../../x", "experiment=../../../etc/x", "experiment=/etc/passwd"),
        *("search=../../x", "hydra/launcher=../../x", "+search@fit.inner=../x", "size=../full"),
        *("adjoint=..", "fit=a/../../b", "placement='../x'"),
    ],
)
def test_no_group_leads_out_of_the_folder_of_configurations(word, capsys):
    Path("../x.yaml").write_text("_target_: diffsim.Direct\n")
    words = [word] if word.startswith("experiment") else [*NVE, word]
    for start in ([], ["-m"]):
        assert run.main([*start, *words]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert not list(Path().iterdir())


def test_a_run_does_not_go_through_a_link(capsys):
    Path("real").mkdir()
    Path("link").symlink_to("real")
    assert run.main([*NVE, "hydra.run.dir=link"]) == 2
    assert "symbolic link" in capsys.readouterr().err
    Path("outputs").mkdir()
    Path("outputs/lj_nve").symlink_to("../real")
    assert run.main(NVE) == 2
    assert not list(Path("real").iterdir())


SECRET = "hunter2-<b>"


def test_secrets_of_the_environment_stay_there(monkeypatch, capsys):
    """Named in a configuration, a secret is in no file that a run or a sweep leaves; a resume has
    it back from the environment."""
    monkeypatch.setenv("MY_API_TOKEN", SECRET)
    seen = []

    def act(self, directory, console, **_):
        seen.append(self.question)
        directory.result({"question": self.question, "parameters": {}, "note": f"by {SECRET}"})
        raise ConfigError(f"no {SECRET} here", key="x")

    monkeypatch.setattr(Experiment, "run", act)
    monkeypatch.setattr(figures, "new_figure", None)
    words = [*NVE, "question='with ${oc.env:MY_API_TOKEN}'", "hydra.run.dir=r"]
    assert run.main(words) == 2
    assert run.main(["resume=r"]) == 2
    assert run.main(["-m", *words, f"label=x,'{SECRET}'", "hydra.sweep.dir=s"]) == 2
    assert seen == [f"with {SECRET}"] * 4
    shown = capsys.readouterr()
    assert SECRET not in shown.err
    files = [path for path in Path().rglob("*") if path.is_file()]
    assert {"config.yaml", "result.json", "report.html", "jobs.json", "sweep.html"} <= {
        path.name for path in files
    }
    for path in files:
        assert b"hunter2" not in path.read_bytes(), path
    assert "${oc.env:MY_API_TOKEN}" in Path("r/config.yaml").read_text()


NAMED = [
    *("PGPWD", "DB_PWD", "REDISCLI_AUTH", "GITHUB_PAT", "PGPASS", "SMTP_PASS", "SENTRY_DSN"),
    *("MY_API_TOKEN", "DB_PASSWORD", "AWS_SECRET_ACCESS_KEY"),
]


@pytest.mark.parametrize("name", NAMED)
def test_the_names_of_secrets(name, monkeypatch):
    monkeypatch.setenv(name, SECRET)
    assert scrub(f"with {SECRET}.") == f"with ${{oc.env:{name}}}."


@pytest.mark.parametrize("name", ["PWD", "OLDPWD", "AUTHOR", "PATH", "TOKENIZERS", "MONKEY"])
def test_what_is_named_alike_is_no_secret(name, monkeypatch):
    monkeypatch.setenv(name, SECRET)
    assert scrub(f"with {SECRET}.") == f"with {SECRET}."


def test_the_password_in_a_url_is_a_secret(monkeypatch):
    url = f"postgres://me:{SECRET}@host:5432/data"
    monkeypatch.setenv("DATABASE_URL", url)
    monkeypatch.setenv("HTTP_PROXY", "http://host:8080/a@b")
    assert scrub(f"at {url}") == "at ${oc.env:DATABASE_URL}"
    assert scrub(f"with {SECRET}") == "with ***"
    assert scrub("at http://host:8080/a@b") == "at http://host:8080/a@b"


EVIL = "</style><script>alert(1)</script><img src=x onerror=alert(1)>\"'& $x"


def test_hostile_text_of_a_sweep_stays_text():
    job = Job("0", (f"label={EVIL}", "seed=1"), "seed: 1\n")
    failed = Job("<b>1", (f"{EVIL}=2", "seed=2"), "seed: 2\n")
    Path("s").mkdir()
    record = Record(Path("s"), EVIL, {}, (job, failed))
    record.save()
    for each, state, code in ((job, "done", 0), (failed, "failed", 3)):
        directory = RunDirectory.create(Path("s", each.folder), each.config)
        directory.status(state, code, objective=1.0, message=EVIL, experiment=EVIL)
        fitted = {"value": 1.0, "stderr": 0.1, "unit": EVIL}
        directory.result({"parameters": {EVIL: fitted}, "question": EVIL})
    text = write_page(record, summarise(record)).read_text()
    assert "<script" not in text and "<img" not in text and "<b>1" not in text
    assert text.count("</style>") == text.count("<style")
    assert "alert(1)" in text
    assert json.loads(Path("s/jobs.json").read_text())["name"] == EVIL

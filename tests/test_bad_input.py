"""Bad input on the command line: exit 2, one line that helps, nothing written."""

import contextlib
import io
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from diffsim import run
from diffsim._experiment import Experiment

NVE = ["experiment=lj_nve", "size=tiny", "thermostat=null", "studies=[]"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


def tree(folder: Path = Path("..")) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


BAD = [
    (["simulation.dt=0"], "simulation.dt"),
    (["simulation.dt=-0.001"], "simulation.dt"),
    (["simulation.dt=nan"], "simulation.dt"),
    (["simulation.dt=inf"], "simulation.dt"),
    (["simulation.potential.cutoff=4.0"], "cutoff"),
    (["simulation.potential.cutoff=-1"], "simulation.potential.cutoff"),
    (["parameters.epsilon.init=-1.0"], "epsilon"),
    (["parameters.epsilon.init=nan"], "parameters.epsilon.init"),
    (["parameters.epsilon.init=deep"], "parameters.epsilon.init"),
    (["simulation.dtt=0.1"], "did you mean dt?"),
    (["sede=1"], "did you mean seed?"),
    (["output_dir=elsewhere"], "did you mean hydra.run.dir?"),
    (["dt=0.1"], "did you mean simulation.dt?"),
    (["schedule.steps=7"], "schedule.steps"),
    (["schedule.steps=1.5"], "schedule.steps"),
    (["conditions.density=[-1]"], "conditions.density"),
    (["conditions.atoms=none"], "conditions.atoms"),
    (["laws.0.observable=energy"], "did you mean"),
    (["laws.0.action=explode"], "laws.0.action"),
    (["frames.condition=3"], "frames.condition"),
    (["fit=least_squares"], "targets"),
    (["+conditions.molar_mass=heavy"], "conditions.molar_mass"),
    (["simulation._target_=builtins.open", "+simulation.file=stolen"], "builtins.open"),
    (["simulation={_target_: diffsim.run.os.system, command: touch stolen}"], "diffsim.run"),
    (["hydra.run.dir=../taken"], "not empty"),
    (["--lst"], "did you mean --list?"),
    (["--config-dir"], "--config-dir"),
    (["--config-dir", "nowhere"], "nowhere"),
    (["resume=nowhere"], "resume"),
    (["-m", "seed=0,-1"], "seed"),
    (["-m", "seed=0,1", "hydra.sweep.subdir=../x"], "hydra.sweep.subdir"),
]


def refused(words, capsys) -> str:
    before = tree()
    assert run.main(words) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("diffsim: ")
    assert shown.err.count("\n") == 1
    assert tree() == before
    return shown.err


@pytest.mark.parametrize(
    ("words", "says"), BAD, ids=lambda x: x if isinstance(x, str) else " ".join(x)
)
def test_bad_input(words, says, capsys, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("")
    assert says in refused([*NVE, *words], capsys)


FIT = ["experiment=lj_fit", "size=tiny", "conditions.temperature.file=t.csv"]
ROWS = "temperature_K\n" + "110\n" * 27


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "'t.csv': does not exist"),
        ("", "is empty"),
        ("temperature_C\n1\n", "did you mean temperature_C?"),
        (ROWS.replace("110\n", "warm\n", 1), "line 2, column 'temperature_K'"),
        (ROWS.replace("110\n", "", 1), "26"),
    ],
)
def test_bad_data(text, says, capsys):
    if text is not None:
        Path("t.csv").write_text(text)
    line = refused(FIT, capsys)
    assert says in line
    assert "conditions" in line


CURVE = ["experiment=lj_rdf_inverse", "inverse=reweighting", "size=tiny", "studies=[]"]


@pytest.mark.parametrize("path", ["dense", "auto"])
def test_a_measured_curve_of_another_length(path, capsys):
    Path("g.csv").write_text("g,g_scale\n" + "1.0,0.1\n" * 7)
    names = [f"targets.0.{key}.0.file=g.csv" for key in ("data", "sigma")]
    line = refused([*CURVE, *names, f"simulation.potential.path={path}"], capsys)
    assert "target g.data: has the shape (1, 7) where the prediction has (1, 50)" in line


def test_no_experiment_lists_them(capsys):
    assert "lj_fit" in refused([], capsys)


def test_resume_takes_nothing_else(capsys):
    assert "nothing else" in refused(["resume=x", "seed=1"], capsys)


KEYS = st.sampled_from(
    "seed sede chunk precision adjoint fit placement size experiment name question laws held_out "
    "simulation simulation.dt simulation.potential simulation.potential.cutoff simulation.units "
    "simulation._target_ parameters.epsilon.init parameters.sigma.unit columns "
    "conditions.temperature conditions.density schedule schedule.steps schedule.save_every "
    "laws.0.rtol laws.0.action laws.7 frames.condition label expected thermostat studies hydra "
    "hydra.run hydra/launcher resume variant".split()
)
VALUES = st.one_of(
    st.sampled_from(
        "0 1 -1 1e-3 nan .inf true null none ??? '' direct checkpoint optax tiny ../../x "
        "/etc/passwd [] [1] [a,b] {} {a:1} {_target_:builtins.open,file:x} ${name} ${nope} "
        "${oc.env:HOME} diffsim.Direct diffsim.md.NVE os.system a,b 1,2 range(3) 'it\\'s'".split()
    ),
    st.integers(-(10**20), 10**20).map(str),
    st.floats().map(str),
    st.text(max_size=8),
)
WORDS = st.one_of(
    st.builds(
        lambda sign, key, value: f"{sign}{key}={value}",
        st.sampled_from(["", "", "", "+", "++", "~"]),
        KEYS,
        VALUES,
    ),
    st.text(max_size=12),
)


@pytest.fixture
def built_alone(monkeypatch):
    """Experiments are built like any other, and end at once."""
    monkeypatch.setattr(Experiment, "run", lambda *_, **__: 0.5)
    monkeypatch.setattr("diffsim._report.write_report", lambda folder: folder / "report.html")


@pytest.mark.usefixtures("built_alone")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(st.lists(WORDS, max_size=3))
@example(["-h=1"])
@example(["--", "seed=1"])
@example(["-m", "chunk=1,2"])
def test_any_words_run_or_are_refused_in_one_line(words):
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        code = run.main([*NVE, *words])
    assert code in (0, 2)
    assert said.getvalue().count("\n") == (code == 2)
    assert {name.split(os.sep)[0] for name in tree()} == {"work"}
    assert set(os.listdir()) <= {"outputs"}

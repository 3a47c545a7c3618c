"""Bad input on the command line: exit 2, one line that helps, nothing written."""

import contextlib
import io
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from diffsim import run
from diffsim._errors import ConfigError
from diffsim._experiment import Experiment
from diffsim._table import dataset
from diffsim.md import load_structure, load_structures

NVE = ["experiment=lj_nve", "size=tiny", "thermostat=null", "studies=[]"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


def tree(folder: Path = Path("..")) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


STUDY = "studies=[{_target_: diffsim.StepSizeStudy, dts: [0.1, 0.2], time: %s}]"
T = "+columns={x: [1.0]}"
TARGET = " targets.0.sigma: must be positive"
BAD = [
    (["simulation.dt=0"], "simulation.dt"),
    (["simulation.dt=-0.001"], "simulation.dt"),
    (["simulation.dt=nan"], "simulation.dt"),
    (["simulation.dt=inf"], "simulation.dt"),
    (["simulation.potential.cutoff=4.0"], "simulation.potential.cutoff: "),
    (["simulation.potential.cutoff=-1"], "simulation.potential.cutoff"),
    (["parameters.epsilon.init=-1.0"], " parameters.epsilon"),
    (["parameters.sigma.init=0"], " parameters.sigma"),
    (["parameters.epsilon.unit=furlong"], " parameters.epsilon.unit: "),
    (["schedule.t1=1.0"], " schedule.steps: give either"),
    (["targets=[{_target_: diffsim.Target, observable: pressure, data: 1.0, sigma: 0}]"], TARGET),
    (["fit=least_squares", "fit.steps=-1"], " fit.steps: must be"),
    (["parameters.epsilon.init=nan"], "parameters.epsilon.init"),
    (["parameters.epsilon.init=deep"], "parameters.epsilon.init"),
    (["simulation.dtt=0.1"], "did you mean dt?"),
    (["sede=1"], "did you mean seed?"),
    (["output_dir=elsewhere"], "did you mean hydra.run.dir?"),
    (["dt=0.1"], "did you mean simulation.dt?"),
    (["dt=nan"], "did you mean simulation.dt?"),
    (["inverse=foo"], "inverse: is nothing that this experiment chooses"),
    (["schedule.steps=7"], "schedule.steps"),
    (["schedule.steps=1.5"], "schedule.steps"),
    (["conditions.density=[-1]"], "conditions.density"),
    (["conditions.atoms=none"], "conditions.atoms"),
    (["laws.0.observable=energy"], "did you mean"),
    (["laws.0.action=explode"], "laws.0.action"),
    (["frames.condition=3"], "frames.condition"),
    (["fit=least_squares"], "targets"),
    (["+conditions.molar_mass=heavy"], "conditions.molar_mass"),
    (["simulation.extra=[5]"], "simulation.extra.0: must be AbstractObservable"),
    (["simulation.extra=null"], "simulation.extra: must be"),
    (["simulation.dt=[0.004]"], "simulation.dt: must be a number"),
    (["parameters.epsilon=null"], "parameters.epsilon: must be something to build"),
    (["laws=[null]"], "laws.0: must be something to build"),
    (["adjoint._target_=diffsim.SingleDevice"], "adjoint: must be something to build"),
    (["conditions=${simulation}"], "conditions: must be"),
    (["conditions=null"], "conditions.positions: is not given"),
    (["conditions.atoms=100000000000"], "conditions.atoms: is more than"),
    (["frames={condition: abc}"], "frames.condition: must be a whole number"),
    (["frames={foo: 1}"], "frames.foo: unknown key; allowed: condition; did you mean condition?"),
    (["frames=5"], "frames: must be a mapping"),
    (["label='{'"], "label: cannot be filled in"),
    (["label='{foo}'"], "label: no such column (got 'foo')"),
    ([T, "label='{0}'"], "label: no such column"),
    ([T, "label='{x.real}'"], "label: no such column (got 'x.real'); allowed: x"),
    ([T, "label='{x:q}'"], "label: cannot be filled in"),
    ([T, "label='{x:>10000}'"], "label: takes numbers of three digits"),
    ([STUDY % "inf"], "studies.0.time: must be a positive"),
    ([STUDY % "-1"], "studies.0.time: must be a positive"),
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


def test_a_mapping_that_builds_nothing_is_no_object(capsys):
    """A variant has null there, and the word makes a mapping without a _target_ of it."""
    words = ["experiment=silicon_force_matching", "size=tiny", "simulation.crystal.kind=diamnd"]
    assert "simulation.crystal: must be CubicCrystal" in refused(words, capsys)


@pytest.mark.parametrize("error", [AttributeError("no such thing"), MemoryError(), OSError("gone")])
@pytest.mark.parametrize("place", ["md.NVE.__check_init__", "_problem.Problem.check"])
def test_whatever_is_raised_before_the_run_is_one_line(place, error, monkeypatch, capsys):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(f"diffsim.{place}", fail, raising=False)
    line = refused(NVE, capsys)
    assert type(error).__name__ in line and str(error) in line
    assert line.startswith(("diffsim: simulation:", "diffsim: configuration:"))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["experiment=lj_nve", "size=tiny", "simulation.potential.species=[0,1]"], "2 entries"),
        (["experiment=water_spce", "size=tiny", "simulation.potential.molecules=100"], "300"),
    ],
)
def test_species_that_are_not_those_of_the_atoms(words, says, capsys):
    line = refused(words, capsys)
    assert line.startswith("diffsim: simulation.potential.species: has") and says in line


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


CSV = "+columns={x: {_target_: diffsim.column, file: %s, name: x}}"
READ = ["data_files=[%s]", "expected=%s", CSV]


@pytest.mark.parametrize("word", READ)
@pytest.mark.parametrize("what", ["/dev/zero", "pipe.xyz", "..", "nothing"])
def test_what_is_no_regular_file_is_not_read(what, word, capsys):
    """A device never ends, and a pipe waits for somebody to write."""
    os.mkfifo("pipe.xyz")
    line = refused([*NVE, word % what], capsys)
    assert word.lstrip("+").split("=")[0] in line
    assert ("no file" if what == ".." else "not exist" if what == "nothing" else "regular") in line


def test_pipes_are_no_structures_and_no_hdf5():
    os.mkfifo("pipe.xyz")
    for read in (load_structure, load_structures, lambda path: dataset(path, "x")):
        with pytest.raises(ConfigError, match="is no regular file"):
            read("pipe.xyz")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[]", "mapping"),
        ('{"parameters": {"epsilon": 1.0}}', "parameters.epsilon needs a value"),
        ('{"measured": {"a": {"value": "1", "tolerance": 1}}}', "measured.a needs a value"),
        ('{"systematic": {"epsilon": null}}', "systematic.epsilon"),
        ("[" * 100_000, "cannot be read"),
        ("\xff", "cannot be read"),
    ],
)
def test_what_is_expected_is_read_before_the_run(text, says, capsys):
    Path("e.json").write_bytes(text.encode("latin-1"))
    line = refused([*NVE, "expected=e.json"], capsys)
    assert "expected: " in line and says in line


CURVE = ["experiment=lj_rdf_inverse", "inverse=reweighting", "size=tiny", "studies=[]"]


@pytest.mark.parametrize("path", ["dense", "auto"])
def test_a_measured_curve_of_another_length(path, capsys):
    Path("g.csv").write_text("g,g_scale\n" + "1.0,0.1\n" * 7)
    names = [f"targets.0.{key}.0.file=g.csv" for key in ("data", "sigma")]
    line = refused([*CURVE, *names, f"simulation.potential.path={path}"], capsys)
    assert "targets.0.data: has the shape (1, 7) where the prediction has (1, 50)" in line


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

"""Configurations: composed, refused with one helpful line, and built from an allow-list alone."""

import math
import sys
from pathlib import Path

import pytest

from diffsim import _targets, config
from diffsim._build import build_value
from diffsim._errors import ConfigError

NVE = ["experiment=lj_nve", "size=tiny"]


def composed(*words: str, config_dir: Path | None = None) -> dict:
    return config.compose([*NVE, *words], config_dir)


def refusal(call, *arguments, **keywords) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        call(*arguments, **keywords)
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


# Composition


def test_what_is_composed_is_plain_resolved_and_writes_nothing(tmp_path):
    values = composed("schedule.steps=40", "question='of ${name}'")
    assert set(values) == set(config.KEYS)
    assert values["schedule"]["steps"] == 40
    assert values["question"] == "of lj_nve"
    assert not list(tmp_path.iterdir())


def test_the_size_changes_only_what_its_variant_names():
    tiny, full = composed(), config.compose(["experiment=lj_nve"])
    assert tiny["schedule"]["steps"] < full["schedule"]["steps"]
    assert tiny["simulation"]["_target_"] == full["simulation"]["_target_"]


@pytest.mark.parametrize("experiment", config.experiments())
def test_every_experiment_composes_at_every_size(experiment):
    for size in config.groups()["size"]:
        config.compose([f"experiment={experiment}", f"size={size}"])


def test_keys_that_the_files_leave_out_may_be_set():
    values = composed("simulation.potential.onset=2.2", "laws.1.action=stop")
    assert values["simulation"]["potential"]["onset"] == 2.2
    assert values["laws"][1]["action"] == "stop"


REFUSED = [
    # words, key, what the line says
    (["sede=1"], "sede", "did you mean seed?"),
    (["seed=-1"], "seed", "(got -1)"),
    (["seed=2.0"], "seed", "did you mean 2?"),
    (["seed=true"], "seed", "whole number"),
    (["seed='2'"], "seed", "(got '2')"),
    (["chunk=0"], "chunk", "at least 1"),
    (["precision=float46"], "precision", "did you mean float64?"),
    (["adjoint=chekpoint"], "adjoint", "did you mean checkpoint?"),
    (["adjont=direct"], "adjont", "did you mean adjoint?"),
    (["siz=tiny"], "siz", "did you mean size?"),
    (["+experimnt=lj_fit"], "experimnt", "did you mean experiment?"),
    (["simulaton.dt=1"], "simulaton.dt", "did you mean simulation.dt?"),
    (["resum=outputs/x"], "resum", "did you mean resume?"),
    (["hidra/launcher=joblib"], "hidra/launcher", "did you mean hydra/launcher?"),
    (["hydra.run.dri=x"], "hydra.run.dri", "did you mean hydra.run.dir?"),
    (["~adjointt"], "adjointt", "did you mean adjoint?"),
    (["lj_fot"], "command line", "did you mean experiment=lj_fit?"),
    (["adjoint=../../secret"], "adjoint", "plain name"),
    (["adjoint=/etc/passwd"], "adjoint", "plain name"),
    (["+fit@fit.inner=../x"], "fit", "plain name"),
    (["fit=null"], "fit", "allowed: least_squares, none, optax"),
    (["fit.steps=3"], "fit", "fit=NAME"),
    (["size=tyni"], "size", "did you mean tiny?"),
    (["~adjoint"], "adjoint", "plain name"),
    (["~seed"], "seed", "must be given"),
    (["simulation.dt=???"], "simulation.dt", "must be given"),
    (["name=../../x"], "name", "letters"),
    (["name=.."], "name", "letters"),
    (["held_out=[1.5]"], "held_out", "row numbers"),
    (["laws=3"], "laws", "must be list"),
    (["laws.9.rtol=1"], "laws[9]", "out of range"),
    (["question=${nam}"], "question", "'nam' not found"),
    (["question=${question}"], "question", "Recursive"),
    (["question=${experiment_folder:lj_fot}"], "experiment_folder", "did you mean lj_fit?"),
    (["+name=x"], "name", "without the +"),
    (["seed=1,2"], "seed", "give -m"),
    (["a b"], "command line", "does not read as KEY=VALUE"),
    (["seed"], "command line", "does not read as KEY=VALUE"),
    (["name=\udcff"], "command line", "UTF-8"),
    (["simulation._args_=[1]"], "simulation._args_", "allowed: _target_"),
    (["hydra.mode=MULTIRUN"], "hydra.mode", "-m"),
    (["hydra.searchpath=[pkg://os]"], "hydra.searchpath", "--config-dir"),
    (["hydra.nonsense=1"], "hydra.nonsense", "unknown key"),
]


@pytest.mark.parametrize(("words", "key", "says"), REFUSED, ids=lambda x: str(x))
def test_a_bad_configuration_is_one_line(words, key, says):
    error = refusal(composed, *words)
    assert error.key == key
    assert says in str(error)


def test_without_an_experiment_the_line_lists_them():
    assert "lj_nve" in str(refusal(config.compose, ["seed=1"]))
    assert "did you mean lj_nve?" in str(refusal(config.compose, ["experiment=lj_nev"]))
    assert "did you mean experiment?" in str(refusal(config.compose, ["experimnt=lj_fit"]))


# A folder of the user's own


@pytest.fixture
def mine(tmp_path):
    folder = tmp_path / "it's mine"
    (folder / "experiment").mkdir(parents=True)
    (folder / "experiments" / "mine").mkdir(parents=True)
    (folder / "variant").mkdir()
    (folder / "variant" / "mine_tiny.yaml").write_text("# @package _global_\nchunk: 7\n")
    write(folder, "question: Is it mine?\n")
    return folder


def write(folder: Path, text: str) -> None:
    head = "# @package _global_\ndefaults: [lj_nve]\nname: mine\n"
    (folder / "experiment" / "mine.yaml").write_text(head + text)


def my_own(folder: Path, *words: str) -> config.Composed:
    return config.prepare(["experiment=mine", "size=tiny", *words], folder)


def test_a_folder_of_the_users_own_adds_experiments(mine):
    assert config.experiments(mine)["mine"] == "Is it mine?"
    write(mine, "question: ${experiment_folder:mine}, ${experiment_folder:lj_fit}\n")
    values = my_own(mine).config
    assert values["chunk"] == 7
    theirs, ours = values["question"].split(", ")
    assert Path(theirs).samefile(mine / "experiments" / "mine")
    assert (Path(ours) / "argon_eos.csv").is_file()


def test_it_cannot_replace_what_diffsim_brings(mine):
    (mine / "config.yaml").write_text("{}")
    assert "rename" in str(refusal(my_own, mine))
    assert refusal(config.compose, NVE, "nowhere").key == "--config-dir"


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("hydra: {run: {dir: /tmp/x}}\n", "hydra.run.dir"),
        ("hydra: {run: {dir: '${name}'}}\n", "hydra.run.dir"),
        ("hydra: {run: {dir: outputs/../x}}\n", "hydra.run.dir"),
        ("hydra: {run: {dir: outputs}}\n", "hydra.run.dir"),
        ("surprise: 1\n", "surprise"),
        ("seed: [\n", None),
        ("\tseed: 1\n", None),
    ],
)
def test_a_file_may_not_lead_elsewhere(mine, text, key):
    write(mine, text)
    error = refusal(my_own, mine)
    assert key is None or error.key == key


@pytest.mark.parametrize("there", [False, True])
def test_a_file_may_not_choose_another_folders(mine, there):
    if there:
        (mine.parent / "x.yaml").write_text("_target_: diffsim.Direct\n")
    text = "# @package _global_\ndefaults: [lj_nve, {override /adjoint: ../../x}]\nname: mine\n"
    (mine / "experiment" / "mine.yaml").write_text(text)
    assert refusal(my_own, mine).key == "adjoint"


def test_the_command_line_may_choose_the_directory(mine, tmp_path):
    assert my_own(mine).run_dir.parts[:2] == ("outputs", "mine")
    chosen = my_own(mine, f"hydra.run.dir={tmp_path}/there")
    assert chosen.run_dir == tmp_path / "there"
    assert chosen.chosen


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("hydra: {sweep: {dir: /tmp/x}}\n", "hydra.sweep.dir"),
        ("hydra: {sweep: {subdir: ../../x}}\n", "hydra.sweep.subdir"),
        ("hydra: {sweep: {subdir: /tmp/x}}\n", "hydra.sweep.subdir"),
        ("hydra: {launcher: {_target_: builtins.open}}\n", "hydra.launcher"),
        ("hydra: {callbacks: {a: {_target_: builtins.open}}}\n", "hydra.callbacks"),
        ("hydra: {job_logging: {handlers: {a: {class: x}}}}\n", "hydra.job_logging"),
        ("hydra: {job: {env_set: {DIFFSIM_TRUSTED: os}}}\n", "hydra.job"),
    ],
)
def test_a_sweep_builds_nothing_else_and_stays_in_its_folder(mine, text, key):
    write(mine, text)
    assert refusal(config.prepare_sweep, ["experiment=mine", "size=tiny"], mine).key == key


def test_every_job_of_a_sweep_is_checked_beforehand():
    sweep = config.prepare_sweep([*NVE, "seed=0,1", "chunk=range(5,7)"])
    seen = [(job.config["seed"], job.config["chunk"]) for job in sweep.jobs]
    assert seen == [(0, 5), (0, 6), (1, 5), (1, 6)]
    assert refusal(config.prepare_sweep, [*NVE, "seed=0,-1"]).key == "seed"


# The text that a run keeps


def test_a_saved_configuration_comes_back_as_it_was(monkeypatch):
    values = composed("simulation.dt=1e-3", "question='a: b # c'")
    assert config.load_saved(config.to_yaml(values)) == values


def test_secrets_are_masked(mine):
    values = composed("question='see https://me:hunter2@example.org/x'")
    assert "hunter2" not in config.to_yaml(values)


def test_files_are_kept_absolute_and_named_in_the_provenance(tmp_path):
    (tmp_path / "t.csv").write_text("T\n1.0\n")
    node = "{_target_:diffsim.column,file:t.csv,name:T}"
    values = composed(f"columns.T={node}")
    assert values["columns"]["T"]["file"] == str(tmp_path / "t.csv")
    assert values["data_files"] == [str(tmp_path / "t.csv")]


# What may be built

EVIL = [
    *("builtins.open", "builtins.eval", "os.system", "subprocess.Popen", "pathlib.Path"),
    *("diffsim.run.os.system", "diffsim.run.main", "diffsim.config.build", "diffsim._store"),
    *("diffsim.md", "diffsim.md._nve.NVE", "diffsim.md.jax.numpy.save", "diffsim.__all__"),
    *("optax._src.alias.adam", "optax.jax.numpy.save", "optax.adam.__globals__", "optax"),
    *("equinox.tree_serialise_leaves", "equinox.nn", "equinox.np.save", "optax.jnp.save"),
    *("diffrax.diffeqsolve", "diffrax.jtu.tree_map", "numpyro.handlers.seed"),
    *("numpyro.distributions.jnp.save", "hydra.utils.instantiate", "", ".", "x", "a..b"),
    *("diffsim.ΝVE", "optax.adam ", "optax.adam\n", "importlib.import_module"),
]


@pytest.mark.parametrize("target", [*EVIL, None, 3, ["a"]])
def test_everything_else_is_refused(target, tmp_path):
    node = {"_target_": target, "file": "x", "path_or_file": "x", "pytree": 1}
    error = refusal(build_value, node, "simulation")
    assert error.key == "simulation._target_"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("target", ["untrusted.thing", "json.tool.main", "optax_evil.adam"])
def test_refused_before_it_is_imported(target, tmp_path, monkeypatch):
    (tmp_path / "untrusted.py").write_text("open('imported', 'w')\ndef thing(): return 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    refusal(build_value, {"_target_": target})
    assert not (tmp_path / "imported").exists()
    assert "json.tool" not in sys.modules


def test_a_users_package_is_built_once_it_is_trusted(tmp_path, monkeypatch):
    text = "from os import system\nclass Thing:\n    def __init__(self, x): self.x = x\n"
    (tmp_path / "mypackage.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    node = {"_target_": "mypackage.Thing", "x": 3}
    refusal(build_value, node)
    monkeypatch.setenv("DIFFSIM_TRUSTED", "other, mypackage")
    assert build_value(node).x == 3
    refusal(build_value, {"_target_": "mypackage.system", "command": "touch x"})
    monkeypatch.setenv("DIFFSIM_TRUSTED", "missing_one")
    assert "installed" in str(refusal(build_value, {"_target_": "missing_one.Thing"}))


@pytest.mark.parametrize("name", _targets.public_names())
def test_public_names_are_found_or_are_values(name):
    package, _, last = name.rpartition(".")
    value = getattr(sys.modules.get(package) or __import__(package, fromlist=[last]), last)
    if isinstance(value, type) or type(value).__name__ == "function":
        assert _targets.find_target(name) is value
    else:
        refusal(_targets.find_target, name)


def test_libraries_build_what_they_define():
    import optax

    node = {
        "_target_": "optax.adam",
        "learning_rate": {
            "_target_": "optax.exponential_decay",
            "init_value": 0.1,
            "transition_steps": 10,
            "decay_rate": 0.5,
        },
    }
    assert isinstance(build_value(node), optax.GradientTransformation)
    names = ["diffrax.Dopri5", "optimistix.LevenbergMarquardt", "lineax.QR", "equinox.nn.MLP"]
    for name in [*names, "numpyro.distributions.Normal"]:
        assert _targets.find_target(name).__name__ == name.rpartition(".")[2]


LJ = "diffsim.md.LennardJones"
BAD_ARGUMENTS = [
    ({"dtt": 1.0}, "simulation.dtt", "did you mean dt?"),
    ({"dt": -1.0}, "simulation.dt", "positive"),
    ({"dt": math.nan}, "simulation.dt", "finite"),
    ({"friction": "high"}, "simulation.friction", "must be a number"),
    ({"friction": True}, "simulation.friction", "must be a number"),
    ({"friction": None}, "simulation.friction", "must be a number (got 'null')"),
    ({"potential": "LennardJones"}, "simulation.potential", "AbstractPotential"),
    ({"units": "mteal"}, "simulation.units", "did you mean metal?"),
    (
        {"potential": {"_target_": "diffsim.md.LennardJones"}},
        "simulation.potential.cutoff",
        "given",
    ),
    (
        {
            "potential": {
                "_target_": "diffsim.md.LennardJones",
                "cutoff": 2.5,
                "truncation": "swich",
            }
        },
        "simulation.potential.truncation",
        "switch",
    ),
]


@pytest.mark.parametrize(("changes", "key", "says"), BAD_ARGUMENTS)
def test_wrong_arguments_name_their_place(changes, key, says):
    potential = {"_target_": LJ, "cutoff": 2.5}
    node = {"_target_": "diffsim.md.NVT", "dt": 0.01, "friction": 1.0, "potential": potential}
    error = refusal(build_value, {**node, **changes}, "simulation")
    assert error.key == key
    assert says in str(error)


def test_faults_of_libraries_are_bad_configuration_too():
    node = {"_target_": "equinox.nn.MLP", "in_size": "a", "out_size": 1, "width_size": 1}
    refusal(build_value, {**node, "depth": 1, "key": None}, "x")

"""A search by Optuna: its space is checked, its failures are told, and its folder is enough to go
on from."""

import json
import math
from pathlib import Path

import pytest

from diffsim import run
from diffsim._errors import ConfigError, Interrupted
from diffsim._experiment import Experiment
from diffsim._sweep import figures, search, space
from problems import slow_but

optuna = pytest.importorskip("optuna")

NVE = [
    *("experiment=lj_nve", "size=tiny", "laws.0.rtol=1", "schedule.steps=100", "chunk=20"),
    *("studies=[]", "thermostat=null", "equilibration=0", "simulation.extra=[]"),
]
SPACE = "search.space={simulation.dt: [1e-4, 1e-2, log], seed: [0, 9]}"
SEARCH = ["-m", *NVE, "hydra.sweep.dir=s", SPACE]
PLACE = Path("s")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


@pytest.fixture
def acted(monkeypatch):
    """The objective is (log10 dt + 3)^2 + seed/10; `broken` has the numbers of trials that end
    otherwise, and how."""
    broken: dict[int, object] = {}

    def act(self, directory, console, *, resume=False, poll=None):
        ending = broken.get(int(directory.path.name))
        if isinstance(ending, Exception):
            raise ending
        x = math.log10(float(self.simulation.dt))
        objective = (x + 3) ** 2 + self.seed / 10
        directory.result({"parameters": {}, "validation": {"chi2": -objective}})
        return ending if isinstance(ending, float) else objective

    monkeypatch.setattr(Experiment, "run", act)
    monkeypatch.setattr("diffsim._report.write_report", lambda folder: folder / "report.html")
    monkeypatch.setattr(figures, "new_figure", None)  # it takes a second: a note instead
    return broken


def summary() -> dict:
    return json.loads((PLACE / "sweep.json").read_text())


def tried() -> list[dict]:
    return [job["overrides"] for job in summary()["jobs"]]


@pytest.mark.slow  # to compile
def test_it_finds_what_is_best(acted, capsys):
    assert run.main([*SEARCH, "search.trials=20", "search.startup=5"]) == 0
    found = summary()
    jobs = {job["folder"]: job for job in found["jobs"]}
    assert len(jobs) == 20
    best = jobs[found["best"]]
    assert best["objective"] == min(job["objective"] for job in found["jobs"]) < 0.15
    assert all(1e-4 <= float(job["overrides"]["simulation.dt"]) <= 1e-2 for job in found["jobs"])
    early = sum(job["objective"] for job in found["jobs"][:5])
    assert sum(job["objective"] for job in found["jobs"][-5:]) < 0.7 * early
    said = capsys.readouterr().out
    assert f"best: {found['best']}" in said
    assert "objective of the best" in (PLACE / "sweep.html").read_text()


@pytest.mark.parametrize("sampler", slow_but(["tpe"], ["tpe", "random"]))
def test_failures_are_told_and_do_not_end_it(sampler, acted):
    acted |= {1: math.nan, 2: RuntimeError("a fault"), 4: ConfigError("too late", key="x")}
    words = ["search.trials=6", f"search={sampler}", "search.startup=2"]
    assert run.main([*SEARCH, *words]) == 0
    objectives = [job["objective"] for job in summary()["jobs"]]
    assert [value is None for value in objectives] == [False, True, True, False, True, False]


def test_without_any_success_it_is_a_failure(acted):
    acted |= {n: RuntimeError("a fault") for n in range(3)}
    assert run.main([*SEARCH, "search.trials=3"]) == 1


@pytest.mark.slow  # to compile
@pytest.mark.parametrize("parallel", slow_but([3], [1, 3]))
def test_stopped_and_resumed_it_goes_the_same_way(parallel, acted):
    words = [*SEARCH, "search.trials=9", "search.startup=3", f"search.parallel={parallel}"]
    assert run.main(words) == 0
    whole = tried()
    PLACE.rename("whole")
    acted[4] = Interrupted(15)
    assert run.main(words) == 143
    assert len(tried()) < 9
    acted.clear()
    assert run.main(["resume=s"]) == 0
    assert tried() == whole
    assert run.main(["resume=s"]) == 0
    assert tried() == whole


@pytest.mark.slow  # to compile
def test_another_number_of_the_result_may_be_the_objective(acted):
    words = ["search.trials=4", "search.objective=validation.chi2", "search.direction=maximize"]
    assert run.main([*SEARCH, *words]) == 0
    found = summary()
    objectives = [job["objective"] for job in found["jobs"]]
    assert max(objectives) < 0
    assert objectives[int(found["best"])] == max(objectives)


@pytest.mark.slow  # to compile
def test_a_resume_refuses_words_that_mean_something_else_by_now(acted, tmp_path, capsys):
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    own = tmp_path / "mine" / "experiment" / "own.yaml"
    own.write_text("# @package _global_\ndefaults: [lj_nve]\nname: own\n")
    acted[1] = Interrupted(15)
    words = [*SEARCH, "search.trials=3", "--config-dir", str(tmp_path / "mine")]
    words[1] = "experiment=own"
    words.remove("size=tiny")
    assert run.main(words) == 143
    acted.clear()
    own.write_text(own.read_text() + "seed: 5\n")
    assert run.main(["resume=s"]) == 2
    assert "another configuration today" in capsys.readouterr().err
    own.write_text(own.read_text().replace("seed: 5\n", ""))
    assert run.main(["resume=s"]) == 0


BAD = [
    (["search.trials=0"], "search.trials"),
    (["search.trials=two"], "search.trials"),
    (["search.sampler=tqe"], "did you mean tpe?"),
    (["search=bayes"], "search"),
    (["search.startups=3"], "did you mean startup?"),
    (["search.direction=down"], "search.direction"),
    (["search.space=3"], "search.space"),
    (["search.space={}"], "must name what is searched"),
    (["search.space={simulation.dt: [1, 2, log, big]}"], "search.space.simulation.dt"),
    (["search.space={simulation.dt: [2, 1]}"], "low must be below high"),
    (["search.space={simulation.dt: [0, 1, log]}"], "starts above 0"),
    (["search.space={simulation.dt: [a, b]}"], "finite numbers"),
    (["search.space={simulation.dt: [0.5, 1.5, int]}"], "whole numbers"),
    (["search.space={simulation.dt: 3}"], "does not read as a range"),
    (["search.space={simulation.dt: {choices: [1]}}"], "does not read as a choice"),
    (["search.space={simulation.dt: {choice: [1, 1]}}"], "twice"),
    (["search.space={simulation.dtt: [0.1, 0.2]}"], "did you mean dt?"),
    (["search.space={simulation.dt: [-1.0, 1.0]}"], "simulation.dt"),
    (["search.space={adjoint: {choice: [direct, ../../x]}}"], "adjoint"),
    (["search.space={hydra.run.dir: {choice: [/tmp/x, /tmp/y]}}"], "no setting of the runs"),
    (["search.space={seed: [0, 9]}", "seed=1,2"], "search.space"),
]


@pytest.mark.parametrize(("words", "says"), BAD)
def test_a_bad_space_is_refused_by_its_name(words, says, capsys):
    given = [] if any(word.startswith("search.space") for word in words) else [SPACE]
    start = [] if any(word.startswith("search.trials") for word in words) else ["search.trials=2"]
    assert run.main(["-m", *NVE, *start, *given, *words]) == 2
    shown = capsys.readouterr()
    assert says in shown.err and shown.err.count("\n") == 1
    assert not list(Path().iterdir())


def test_a_search_is_many_runs(capsys):
    assert run.main([*NVE, SPACE, "search.trials=2"]) == 2
    assert "-m" in capsys.readouterr().err


def test_values_become_words_and_come_back():
    from diffsim import config

    values = {"seed": 3, "simulation.dt": 1e-05, "question": "it's: a, b", "label": None}
    values |= {"audit": True, "expected": "true"}
    words = ["experiment=lj_nve", *search.overrides(values)]
    found = config.compose(words)
    assert {key: found[key] for key in ("seed", "question", "label", "audit", "expected")} == {
        key: value for key, value in values.items() if key != "simulation.dt"
    }
    assert found["simulation"]["dt"] == 1e-05


def test_what_is_proposed_follows_from_what_was_tried_alone():
    node = {"a": [0.0, 1.0], "b": {"choice": ["x", "y"]}, "c": [1, 64, "log"]}
    wanted = space.Settings("tpe", 9, space.space(node), 2, None, "minimize", None, 4)
    first = search.propose(wanted, [], 3)
    assert first == search.propose(wanted, [], 3)
    assert len({json.dumps(each) for each in first}) == 3
    assert all(each["b"] in "xy" and isinstance(each["c"], int) for each in first)
    with pytest.raises(ConfigError, match="not in the space"):
        search.propose(wanted, [({"a": 7.0, "b": "x", "c": 1}, None)], 1)

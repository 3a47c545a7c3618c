"""kill -9 at random moments: every resumed run ends to the bit like one that was left alone."""

import time
from pathlib import Path

import numpy as np
import pytest

from kills import Killable, datasets, moments, outcome

OFTEN = ("restart_seconds=0",)
RUNS = {
    "nve": (
        *("experiment=lj_nve", "size=tiny", "laws.0.rtol=1", "simulation.extra=[]", "studies=[]"),
        *("equilibration=40", "schedule.steps=2000", "schedule.save_every=10", "chunk=100"),
    ),
    "lj_fit": (
        *("experiment=lj_fit", "size=tiny", "conditions.atoms=32", "simulation.potential.cutoff=5"),
        *("schedule.steps=100", "schedule.save_every=5", "chunk=50", "equilibration=20"),
        *("fit.steps=6", "fit.explore=0.5"),
    ),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Killable(tmp_path_factory.mktemp("kills") / "log.txt")
    yield server
    server.close()


@pytest.fixture(scope="module")
def whole(server, tmp_path_factory):
    """The folder of each run that was left alone."""
    done: dict[str, Path] = {}

    def run(name: str) -> Path:
        if name not in done:
            done[name] = tmp_path_factory.mktemp(name) / "run"
            assert server.run(*RUNS[name], *OFTEN, f"hydra.run.dir={done[name]}") == 0
        return done[name]

    return run


def opens(folder: Path) -> None:
    """What a kill leaves can be read at once."""
    for path in folder.glob("*.h5"):
        assert datasets(path) is not None


def words_for(name: str, folder: Path) -> tuple[str, ...]:
    """Start the run, or go on where it was killed."""
    if (folder / "config.yaml").is_file():
        return (f"resume={folder}",)
    return (*RUNS[name], *OFTEN, f"hydra.run.dir={folder}")


@pytest.mark.parametrize("name", ["nve", pytest.param("lj_fit", marks=pytest.mark.slow)])
def test_a_run_that_is_killed_again_and_again(name, server, whole, tmp_path):
    alone, folder = whole(name), tmp_path / "run"
    lines = len((alone / "metrics.jsonl").read_text().splitlines())
    random = np.random.default_rng(0)
    for share in (0.3, 0.7):
        wait = float(random.uniform(0, 0.2))
        count = int(share * lines)
        assert server.killed_at(count, wait, folder, *words_for(name, folder))
        opens(folder)
    assert server.run(*words_for(name, folder)) == 0
    assert outcome(folder) == outcome(alone)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_twenty_random_moments(name, server, whole, tmp_path):
    expected = outcome(whole(name))
    began = time.perf_counter()
    assert server.run(*words_for(name, tmp_path / "timed")) == 0
    seconds = time.perf_counter() - began
    assert outcome(tmp_path / "timed") == expected
    for i, moment in enumerate(moments(1, 20, seconds)):
        folder = tmp_path / str(i)
        killed = server.killed(moment, *words_for(name, folder))
        opens(folder)
        assert server.run(*words_for(name, folder)) == 0
        assert outcome(folder) == expected, f"killed at {moment:.2f} s ({killed})"

"""Configurations at random: built, or refused by a `ConfigError`; nothing else, and nothing
written."""

import contextlib
import io
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from diffsim import config, run
from diffsim._build import walk
from diffsim._errors import ConfigError
from diffsim._experiment import Experiment

BASES = {
    name: [f"experiment={name}", "size=tiny"]
    for name in ("lj_nve", "lj_fit", "kepler_orbit", "taylor_green", "lynx_hare")
}
KEYS: dict[str, list[str]] = {}  # of each experiment, read when it is first drawn from


def keys_of(name: str) -> list[str]:
    if name not in KEYS:
        KEYS[name] = sorted({key for key, _ in walk(config.compose(BASES[name]))})
    return KEYS[name]


VALUES = st.one_of(
    st.sampled_from(
        "0 1 -1 7 1e-3 1e300 nan .inf -.inf true false null none ??? '' direct auto tiny ../../x "
        "/etc/passwd [] [1] [a,b] [[1,2],[3]] {} {a:1} {_target_:builtins.open,file:x} ${name} "
        "{_target_:diffsim.Parameter,init:1.0} {_target_:diffsim.Direct} ${oc.env:HOME} ${seed} "
        "{_target_:diffsim.column,file:x.csv,name:a} diffsim.Direct diffsim.md.NVE os.system "
        "'it\\'s' '<script>' '${' '$x' '../../../etc' 'a/b' ~ '\\t'".split()
    ),
    st.integers(-(10**20), 10**4).map(str),
    st.floats().map(str),
    st.text(max_size=8).map(config.quoted),
)


@st.composite
def words(draw) -> list[str]:
    name = draw(st.sampled_from(sorted(BASES)))
    keys = st.sampled_from(keys_of(name))
    signs = st.sampled_from(["", "", "", "+", "++", "~"])
    more = draw(st.lists(st.builds("{}{}={}".format, signs, keys, VALUES), min_size=1, max_size=3))
    return [*BASES[name], *more]


def tried(given_words: list[str]) -> None:
    before = sorted(Path().rglob("*"))
    with contextlib.suppress(ConfigError):
        config.build(config.prepare(given_words).config)
    assert sorted(Path().rglob("*")) == before
    assert not os.path.exists("../x")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


TABLE = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    max_examples=60,
)


@pytest.mark.filterwarnings("ignore")
@TABLE
@given(words())
@example([*BASES["lj_nve"], "parameters.epsilon=true"])
@example([*BASES["lj_nve"], "laws=[1]"])
@example([*BASES["lj_nve"], "simulation={_target_:diffsim.Direct}"])
def test_any_configuration_is_built_or_refused(given_words):
    tried(given_words)


def ran(given_words: list[str]) -> None:
    """The whole command line, but for the run itself and the processes that it may ask for."""
    said = io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patched,
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(said),
    ):
        patched.setattr(Experiment, "run", lambda *_, **__: 0.5)
        patched.setattr(run, "launch", lambda *_: 0)
        patched.setattr("diffsim._report.write_report", lambda folder: folder / "report.html")
        code = run.main(given_words)
    written = {path.parts[0] for path in Path().rglob("*")}
    assert code in (0, 2), said.getvalue()
    assert "Traceback" not in said.getvalue()
    assert said.getvalue().count("\n") == (1 if code else 0), said.getvalue()
    assert written <= ({"outputs"} if code == 0 else set())
    assert {path.name for path in Path("..").iterdir()} == {"work"}
    shutil.rmtree("outputs", ignore_errors=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@settings(TABLE, max_examples=500)
@given(words())
def test_five_hundred_command_lines_run_or_are_refused(given_words):
    ran(given_words)

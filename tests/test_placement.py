"""Over devices and on one: the same numbers, no word between devices while time goes on.

What needs several devices runs in a process of its own, which sees eight virtual ones.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import pytest

import diffsim as ds
from conftest import CHECKOUT
from diffsim import config
from diffsim._placement import Collective, collectives
from test_adjoint_matrix import EXACT, OTHERS, TABLE

EIGHT = "--xla_force_host_platform_device_count=8"

# system:adjoint:devices:conditions; seven conditions do not divide
FAST = """
chatty:-:4:4 Kepler:Reversible:4:8 Kepler:Auto:2:8 advection-diffusion:RecursiveCheckpoint:8:8
drive:-:4:7 fit:lbfgs:4:7 fit:reweighting:4:6
""".split()
LONG = """
Lotka-Volterra:Direct:8:8 Lotka-Volterra:RecursiveCheckpoint:4:7 Lotka-Volterra:ForwardMode:2:7
adaptive:RecursiveCheckpoint:4:7 adaptive:RecursiveCheckpoint:8:8 adaptive:Backsolve:8:8
LJ@NVE:Direct:8:8 fit:least_squares:4:8 fit:some:2:7 chains:-:2:3
""".split()

# every simulation by every adjoint that takes it
REFUSES = {name: refuses for name, (_, refuses) in TABLE.items()}
REFUSES["adaptive"] = ("Reversible", "Reweight", "Truncated")
EVERY = {
    name: [
        f"{name}:{adjoint}:{devices}:{rows}".replace(" ", "@")
        for adjoint in EXACT | OTHERS
        if adjoint not in refuses
        for devices, rows in ((1, 8), (2, 8), (4, 8), (8, 8), (4, 7))
    ]
    for name, refuses in REFUSES.items()
}


def measured(words: Sequence[str], limit: float) -> list[dict]:
    """The lines of `tests/sharded.py`."""
    ended = subprocess.run(
        [sys.executable, "sharded.py", *(word.replace("@", " ") for word in words)],
        cwd=CHECKOUT / "tests",
        env=os.environ | {"XLA_FLAGS": EIGHT},
        capture_output=True,
        text=True,
        timeout=limit,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return [json.loads(line) for line in ended.stdout.splitlines()]


@pytest.fixture(scope="module")
def fast() -> dict[str, dict]:
    return dict(zip(FAST, measured(FAST, 900), strict=True))


@pytest.fixture(scope="module")
def long() -> dict[str, dict]:
    return dict(zip(LONG, measured(LONG, 1800), strict=True))


BOTH = ["fast", pytest.param("long", marks=pytest.mark.slow)]


@pytest.fixture
def lines(request) -> dict[str, dict]:
    return request.getfixturevalue(request.param)


def refuse_differences(line: dict) -> None:
    assert "error" not in line, line
    assert line["off"] < 1e-10, line
    assert line["finite"], line


@pytest.mark.parametrize("lines", BOTH, indirect=True)
def test_over_devices_as_on_one(lines):
    for line in lines.values():
        refuse_differences(line)


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_every_simulation_by_every_adjoint_over_devices(name):
    for line in measured(EVERY[name], 3600):
        refuse_differences(line)
        assert not any(in_loop for *_, in_loop in line["said"]), line
        if line["devices"] > 1 and line["rows"] % line["devices"] == 0:
            assert [word for word, *_ in line["said"]] == ["all-reduce"], line


@pytest.mark.parametrize("lines", BOTH, indirect=True)
def test_no_words_between_devices_while_time_goes_on(lines):
    for word, line in lines.items():
        spoken = any(in_loop for *_, in_loop in line.get("said", ()))
        assert spoken is word.startswith("chatty"), line


@pytest.mark.parametrize("lines", BOTH, indirect=True)
def test_the_page_says_what_the_compiled_programs_say(lines):
    """docs/scaling.md: bytes a step and an iteration of each system in its table."""
    page = (CHECKOUT / "docs/scaling.md").read_text()
    table = re.findall(r"^\| `(.+?)` \| `(\w+)` \| (\d+) \| (\d+) \| (\d+) \|$", page, re.M)
    words = [f"{name}:{adjoint}:{n}:8".replace(" ", "@") for name, adjoint, n, *_ in table]
    assert set(words) <= {*FAST, *LONG}
    checked = 0
    for word, (*_, a_step, an_iteration) in zip(words, table, strict=True):
        if word not in lines:
            continue
        said = [Collective(*each) for each in lines[word]["said"]]
        assert sum(each.bytes for each in said if each.in_loop) == int(a_step)
        assert sum(each.bytes for each in said if not each.in_loop) == int(an_iteration)
        assert [each.word for each in said] == ["all-reduce"]
        checked += 1
    assert checked >= 2


def test_a_batch_that_fails_or_wants_room_over_devices(fast):
    """Lists are enlarged on all devices; the member that fails is named, what fills up is not."""
    line = fast["drive:-:4:7"]
    assert line["room"] == 16
    assert line["bad"] == [-1, -1, -1, -1, -1, -1, 6]


def test_fits_leave_their_conditions_on_their_devices(fast):
    assert {fast[word]["spread"] for word in FAST if word.startswith("fit")} == {3, 4}


def test_words_in_loops_are_found():
    """The reader of compiled programs, on one that does what it looks for."""
    text = """\
HloModule jit_f

%add (a: f64[], b: f64[]) -> f64[] {
  ROOT %add.1 = f64[] add(%a, %b)
}

%inner (p: (s32[], f64[3])) -> (s32[], f64[3]) {
  %all-reduce.7 = (f64[3]{0}, f32[2,2]{1,0}) all-reduce(%x, %y), to_apply=%add
}

%body.2 (p: (s32[], f64[3])) -> (s32[], f64[3]) {
  %call = (s32[], f64[3]) call(%p), to_apply=%inner
}

%cond.3 (p: (s32[], f64[3])) -> pred[] {
  %less = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (p: f64[3]) -> f64[12] {
  %w = (s32[], f64[3]{0}) while(%t), condition=%cond.3, body=%body.2
  ROOT %all-gather-start.1 = bf16[12]{0} all-gather-start(%w), dimensions={0}
}
"""
    assert collectives(text) == [
        Collective("all-reduce", 3 * 8 + 4 * 4, True),
        Collective("all-gather", 24, False),
    ]
    alone = jax.jit(lambda x: jax.lax.fori_loop(0, 9, lambda _, x: 2 * x, x))
    assert collectives(alone.lower(jnp.ones(3)).compile().as_text() or "") == []


@pytest.mark.parametrize("devices", [0, -1, True, 2.0, "two"])
def test_a_number_of_devices_is_a_whole_one(devices):
    with pytest.raises(Exception, match=r"devices.*(whole number|int)") as caught:
        ds.Batch(devices)
    assert isinstance(caught.value, ds.ConfigError | TypeError)


def test_more_devices_than_there_are():
    there = jax.device_count()
    with pytest.raises(ds.ConfigError, match=f"1 to {there}") as caught:
        ds.Batch(there + 1).check()
    assert caught.value.key == "placement.devices"
    if jax.default_backend() == "cpu":
        assert f"XLA_FLAGS=--xla_force_host_platform_device_count={there + 1}" in str(caught.value)


def test_one_device_more_or_less_is_no_other_result():
    """Devices that would only fill up are left out; what is said of it."""
    batch = ds.Batch(1)
    assert batch.devices_of(9) == 1
    simulation = ds.FunctionSimulation(lambda params, x: x)
    said = batch.describe(9, simulation, ds.Direct())
    assert (said["devices"], said["conditions_per_device"], said["padding"]) == (1, 9, 0)
    assert said["strategy"] == "vmap"


@pytest.mark.parametrize("name", ["batch", "pmap"])
def test_the_command_line_places_batches(name):
    settings = config.compose(["experiment=lj_fit", f"placement={name}", "placement.devices=3"])
    assert settings["placement"] == {"_target_": "diffsim.Batch", "devices": 3}


def test_devices_that_are_not_there_end_with_a_line_before_anything_is_written(tmp_path):
    words = ["experiment=kepler_orbit", "size=tiny", "placement=batch", "placement.devices=99"]
    ended = subprocess.run(
        [sys.executable, "-m", "diffsim.run", *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.startswith("diffsim: placement.devices: ")
    assert ended.stderr.count("\n") == 1 and not any(tmp_path.iterdir())

"""Several processes as one run: who they are, that they equal one, and the end of one of them."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import CHECKOUT
from diffsim import ConfigError
from diffsim._scale import Group, detected
from diffsim._scale._detect import first_host

HAND = {
    "DIFFSIM_COORDINATOR": "node1:1234",
    "DIFFSIM_PROCESSES": "4",
    "DIFFSIM_PROCESS": "2",
}
SLURM = {
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "1",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_NODELIST": "gpu[003-004],other",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "PMIX_NAMESPACE": "job-1",
}
MPICH = {"PMI_RANK": "0", "PMI_SIZE": "3", "MPI_LOCALNRANKS": "3"}


@pytest.mark.parametrize(
    ("environ", "count", "index", "host", "by"),
    [
        (HAND, 4, 2, "node1", "hand"),
        (SLURM, 2, 1, "gpu003", "Slurm"),
        (SLURM | {"PMI_RANK": "1", "PMI_SIZE": "2"}, 2, 1, "gpu003", "Slurm"),
        (SLURM | HAND, 4, 2, "node1", "hand"),
        (OPEN_MPI, 2, 1, "127.0.0.1", "MPI"),
        (MPICH, 3, 0, "127.0.0.1", "MPI"),
        (MPICH | {"MPI_LOCALNRANKS": "1", "DIFFSIM_COORDINATOR": "a:1"}, 3, 0, "a", "MPI"),
    ],
)
def test_the_group_is_read_from_the_environment(environ, count, index, host, by):
    found = detected(environ)
    assert found is not None
    assert (found.count, found.index, found.started_by) == (count, index, by)
    assert found.coordinator.rpartition(":")[0] == host


@pytest.mark.parametrize(
    "environ",
    [
        {},
        SLURM | {"SLURM_STEP_NUM_TASKS": "1"},
        {"SLURM_JOB_ID": "77", "SLURM_PROCID": "0", "SLURM_NTASKS": "8"},  # the shell of salloc
        OPEN_MPI | {"OMPI_COMM_WORLD_SIZE": "1"},
        HAND | {"DIFFSIM_PROCESSES": "1", "DIFFSIM_PROCESS": "0"},
    ],
)
def test_a_process_that_is_alone_is_no_group(environ):
    assert detected(environ) is None


@pytest.mark.parametrize(
    ("environ", "key"),
    [
        ({"DIFFSIM_PROCESSES": "2"}, "DIFFSIM_PROCESS"),
        (HAND | {"DIFFSIM_PROCESS": "4"}, "DIFFSIM_PROCESS"),
        (HAND | {"DIFFSIM_PROCESSES": "two"}, "DIFFSIM_PROCESSES"),
        (HAND | {"DIFFSIM_COORDINATOR": "node1"}, "DIFFSIM_COORDINATOR"),
        (MPICH | {"MPI_LOCALNRANKS": "1"}, "DIFFSIM_COORDINATOR"),
    ],
)
def test_what_makes_no_group_is_refused(environ, key):
    with pytest.raises(ConfigError) as caught:
        detected(environ)
    assert caught.value.key == key


def test_processes_of_one_job_agree_on_its_port_and_other_jobs_have_another():
    def port(**changes: str) -> str:
        found = detected(SLURM | changes)
        assert isinstance(found, Group)
        return found.coordinator

    assert port(SLURM_PROCID="0") == port(SLURM_PROCID="1") != port(SLURM_JOB_ID="78")
    names = {"a": "a", "a,b": "a", "n[01-03]": "n01", "n[7,9],m": "n7", "x-1[2]": "x-12"}
    assert {hosts: first_host(hosts) for hosts in names} == names


EXPERIMENT = """\
# @package _global_
defaults:
  - override /fit: optax
  - override /placement: batch
name: pair
question: Which rates made these populations?
simulation:
  _target_: diffsim.ode.DifferentialEquation
  vector_field: {_target_: diffsim.ode.LotkaVolterra}
  dt: 0.05
parameters:
  alpha: {_target_: diffsim.Parameter, init: 1.4, transform: positive}
  beta: {_target_: diffsim.Parameter, init: 1.0, fixed: true}
  gamma: {_target_: diffsim.Parameter, init: 2.9, transform: positive}
  delta: {_target_: diffsim.Parameter, init: 1.0, fixed: true}
conditions: {y0: [[1.0, 1.2], [0.8, 1.0], [1.1, 0.7]]}
targets:
  - _target_: diffsim.Target
    observable: y
    data: [[2.0, 1.1], [1.9, 1.0], [1.8, 1.2]]
    sigma: 0.1
schedule: {_target_: diffsim.Schedule, steps: 20, save_every: 5}
fit: {steps: 3}
"""


def run(folder: Path, *words: str, limit: float = 300, **environ: str) -> tuple[int, str, str]:
    (folder / "conf/experiment").mkdir(parents=True, exist_ok=True)
    (folder / "conf/experiment/pair.yaml").write_text(EXPERIMENT)
    start = [sys.executable, "-m", "diffsim.run", "--config-dir", "conf", "experiment=pair"]
    ended = subprocess.run(
        [*start, *words],
        cwd=folder,
        env=os.environ | environ,
        capture_output=True,
        text=True,
        timeout=limit,
        check=False,
    )
    return ended.returncode, ended.stdout, ended.stderr


def test_two_processes_equal_one(tmp_path):
    """Three conditions, so that one is there only to fill up; the line search, the report and the
    restart on the way."""
    results = {}
    for count in (1, 2):
        words = (f"scale.processes={count}", f"hydra.run.dir=run_{count}")
        code, out, error = run(tmp_path, *words)
        assert code == 0, out + error
        results[count] = json.loads((tmp_path / f"run_{count}/result.json").read_text())
        lines = (tmp_path / f"run_{count}/metrics.jsonl").read_text().splitlines()
        assert len(lines) == out.count("\nfit") == 3  # one process speaks
    one, two = results[1], results[2]
    assert two["measured"]["placement"]["processes"] == 2
    assert two["measured"]["placement"]["devices"] == 2 * one["measured"]["placement"]["devices"]
    assert two["measured"]["placement"]["padding"] == 1
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-10)
    for name in ("alpha", "gamma"):
        wanted = one["parameters"][name]["value"]
        assert two["parameters"][name]["value"] == pytest.approx(wanted, rel=1e-10)
        assert wanted != pytest.approx({"alpha": 1.4, "gamma": 2.9}[name])
    # Nothing else is left in the working directory.
    assert {path.name for path in tmp_path.iterdir()} == {"conf", "run_1", "run_2"}


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["scale.processes=0"], "scale.processes"),
        (["scale.processes=two"], "scale.processes"),
        (["scale.processes=100000"], "scale.processes"),
        (["scale.devices=2"], "scale.devices"),
        (["scale.processes=2", "placement=single"], "placement"),
        (["-m", "scale.processes=2", "seed=0,1"], "scale.processes"),
    ],
)
def test_bad_values_end_with_a_line_before_anything_starts(words, key, tmp_path):
    code, out, error = run(tmp_path, *words)
    assert code == 2, out + error
    assert error.startswith(f"diffsim: {key}: ") and error.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"conf"}


FOREVER = """\
from diffsim._scale import joined
import time
with joined() as member:
    print("up", flush=True)
    while True:
        member.agreed(1)
        time.sleep(0.1)
"""


def test_a_dead_peer_ends_the_others_with_a_line():
    """kill -9 of one of two, started by hand: exit code 6, one line, in seconds."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    each = []
    for index in range(2):
        given = dict(HAND, DIFFSIM_COORDINATOR=address, DIFFSIM_PROCESSES="2")
        given["DIFFSIM_PROCESS"] = str(index)
        each.append(
            subprocess.Popen(
                [sys.executable, "-c", FOREVER],
                cwd=CHECKOUT,
                env=os.environ | given,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    first, second = each
    try:
        assert first.stdout is not None
        while "up" not in (line := first.stdout.readline()):  # Gloo says that it is connected
            assert line or first.poll() is None
        time.sleep(1)
        second.kill()
        began = time.monotonic()
        _, said = first.communicate(timeout=60)
        assert time.monotonic() - began < 30
    finally:
        first.kill()
        second.kill()
        second.communicate()
    assert first.returncode == 6
    ours = [line for line in said.splitlines() if line.startswith("diffsim: ")]
    assert ours == [
        "diffsim: process 1 ended before its time; a run cannot go on without it; resume= goes on "
        "from the last restart"
    ]
    assert "Traceback" not in said


def test_a_peer_that_fails_alone_is_waited_for_only_so_long(monkeypatch):
    """What a watch does when the other end says that it failed: nothing where this process is at
    its end too, else it ends it after the time of grace."""
    import socket

    from diffsim._scale import _watch

    monkeypatch.setattr(_watch, "BEAT", 0.05)
    monkeypatch.setattr(_watch, "GRACE", 0.5)
    ended: list[float] = []
    monkeypatch.setattr(_watch.os, "_exit", lambda code: ended.append(code))
    for leaves, wanted in ((True, []), (False, [6])):
        here, there = socket.socketpair()
        said: list[str] = []
        watch = _watch.Watch(0, {1: here})
        watch.on_lost = said.append
        there.sendall(_watch.FAILED)
        if leaves:
            watch.leave()
        watch._thread.join(timeout=1.5 if wanted else 5)
        if wanted:
            watch.left = True  # ends the thread, which cannot end the process of the tests
            watch._thread.join(timeout=5)
        assert ended[:1] == wanted and bool(said) is bool(wanted)
        assert all("process 1 failed alone" in text for text in said)
        here.close()
        there.close()

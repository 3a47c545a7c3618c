"""Output that nobody reads any more costs a run nothing, and prints no traceback."""

import io
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from diffsim._report import Console
from diffsim._streams import GONE, Outlet, tell

NVE = [
    *("experiment=lj_nve", "size=tiny", "laws=[]", "schedule.steps=40", "chunk=20"),
    *("studies=[]", "thermostat=null", "equilibration=0", "simulation.extra=[]"),
]


@pytest.fixture
def pipe():
    """The end of a pipe to write to, whose other end is closed."""
    there, here = os.pipe()
    os.close(there)
    with open(here, "w", encoding="utf-8") as file:
        yield file
        tell("", file)  # or the end of the file would fail


def test_a_line_for_nobody_is_none(pipe):
    assert not tell("lost\n", pipe)
    assert tell("to nowhere\n", pipe)
    print("by others", file=pipe, flush=True)


def test_a_console_without_a_reader_goes_on(pipe):
    console = Console(file=pipe)
    with console.progress(3, "run") as progress:
        progress.update(3, loss=1.0)
    console.summary([("a", 1)])


def test_a_terminal_that_was_closed_goes_on(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    there, here = pty.openpty()
    with open(here, "w", encoding="utf-8") as file:
        console = Console(file=file)
        with console.progress(3, "run") as progress:
            progress.update(1)
            os.close(there)
            for completed in range(3):
                progress.update(completed)
                console.say("a line")


def test_a_disk_that_is_full_for_a_while_loses_only_lines():
    class Full(io.StringIO):
        full = True

        def flush(self):
            if self.full:
                raise OSError(28, "No space left on device")

    file = Full()
    assert not tell("one\n", file)
    file.full = False
    assert tell("two\n", file)
    assert "two" in file.getvalue()


def test_a_process_without_output():
    assert not tell("x", None)
    assert not Outlet(None).isatty()
    closed = io.StringIO()
    closed.close()
    assert not tell("x", closed)


def quit_after(words, lines, folder, **streams):
    """The command, whose reader goes after so many lines: exit code, and what it complains of."""
    command = [sys.executable, "-m", "diffsim.run", *words]
    process = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **streams
    )
    assert process.stdout is not None and process.stderr is not None
    for _ in range(lines):
        process.stdout.readline()
    process.stdout.close()
    said = process.stderr.read()
    process.stderr.close()
    return process.wait(timeout=300), said


def test_a_run_whose_reader_goes_comes_to_its_end(tmp_path):
    """`python -m diffsim.run ... | head -1`"""
    code, said = quit_after([*NVE, "hydra.run.dir=r"], 1, tmp_path)
    assert (code, said) == (0, "")
    folder = Path(tmp_path, "r")
    assert json.loads((folder / "status.json").read_text())["state"] == "done"
    assert (folder / "result.json").is_file() and (folder / "report.html").is_file()


def test_an_answer_that_nobody_reads_ends_like_any_tool(tmp_path):
    code, said = quit_after(["--list"], 0, tmp_path)
    assert (code, said) == (GONE, "")


def test_standard_streams_may_be_closed(tmp_path):
    command = f"{sys.executable} -m diffsim.run experiment=lj_nev >&- 2>&-"
    ended = subprocess.run(["bash", "-c", command], cwd=tmp_path, check=False, timeout=120)
    assert ended.returncode == 2

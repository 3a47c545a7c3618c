"""The report of a run: rounded rightly, safe to open, and there in every case."""

import io
import re
import shutil
from html.parser import HTMLParser
from typing import Any

import h5py
import numpy as np
import pytest

import fake_runs
from diffsim._report import (
    Console,
    human_bytes,
    human_time,
    pretty_unit,
    with_error,
    write_report,
)
from diffsim._report.html import page
from diffsim._report.numbers import pretty_label, pretty_name, significant
from diffsim._report.run_data import RunData
from diffsim._store import TrajectoryWriter


@pytest.mark.parametrize(
    ("value", "error", "unit", "shown"),
    [
        (117.2134, 0.1532, "K", "117.21 ± 0.15 K"),
        (3.39662, 0.00118, "angstrom", "3.3966 ± 0.0012 Å"),
        (117.2134, 0.0996, "", "117.21 ± 0.10"),
        (117.2134, 0.996, "", "117.2 ± 1.0"),
        (117.2134, 9.96, "", "117 ± 10"),
        (117.2134, 12.3, "", "117 ± 12"),
        (11721.34, 123.0, "", "11720 ± 120"),
        (117.2, 1234.0, "", "100 ± 1200"),
        (-5099.0006, 4.4, "J/mol", "−5099.0 ± 4.4 J mol⁻¹"),
        (0.0, 0.02, "", "0.000 ± 0.020"),
        (1.3806e-23, 1.2e-25, "J/K", "(1.381 ± 0.012) × 10⁻²³ J K⁻¹"),
        (6.02214e23, 4.4e20, "", "(6.0221 ± 0.0044) × 10²³"),
        (117.2134, None, "K", "117.213 K"),
        (117.2134, 0.0, "", "117.213"),
        (117.2134, float("nan"), "", "117.213"),
        (None, 0.1, "K", "–"),
        (float("inf"), 0.1, "", "–"),
        (True, None, "", "–"),
    ],
)
def test_value_with_its_error(value, error, unit, shown):
    assert with_error(value, error, unit) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (human_bytes(0), "0 B"),
        (human_bytes(999), "999 B"),
        (human_bytes(48_300_000), "46.1 MiB"),
        (human_bytes(1023 * 1024), "1.00 MiB"),
        (human_bytes(8 * 2**40), "8.00 TiB"),
        (human_bytes(None), "–"),
        (human_time(3.2e-5), "32.0 µs"),
        (human_time(0.0032), "3.20 ms"),
        (human_time(12.3), "12.3 s"),
        (human_time(107.2), "1 min 47 s"),
        (human_time(3600), "1 h 00 min"),
        (human_time(12_000), "3 h 20 min"),
        (pretty_unit("J/mol"), "J mol⁻¹"),
        (pretty_unit("kg/m**3"), "kg m⁻³"),
        (pretty_unit("thousand hares"), "thousand hares"),
        (pretty_unit(""), ""),
        (pretty_name("epsilon"), "ε"),
        (pretty_name("total_energy"), "total energy"),
        (pretty_label("110 K, 1260 kg/m3"), "110 K, 1260 kg/m³"),
        (significant(3.4e-7, 2), "3.4 × 10⁻⁷"),
        (significant(0.00104, 2, zeros=True), "0.0010"),
        (significant(0.4, 3, zeros=True), "0.400"),
        (significant(13.2, 2, zeros=True), "13"),
    ],
)
def test_numbers_for_people(text, shown):
    assert text == shown


class Page(HTMLParser):
    """Tags, what would be fetched, and the visible text."""

    VOID = ("meta", "br", "use", "path", "rect", "stop")

    def __init__(self, html):
        super().__init__()
        self.tags, self.fetched, self.words, self.open = [], [], [], []
        self.feed(html)
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.open += [] if tag == "meta" else [tag]
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "action", "data", "srcset"):
                self.fetched += [] if (value or "").startswith("#") else [value]
            assert not name.startswith("on"), f"{tag} {name}"

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "svg", "title"} & set(self.open):
            self.words.append(data)


def page_of(run) -> Page:
    report = write_report(run.path)
    assert report == run.report
    html = report.read_text()
    seen = Page(html)
    assert seen.open == [], "every tag is closed"
    assert seen.fetched == [], "one file, no network"
    assert "@import" not in html
    assert "url(" not in re.sub(r"url\(#[\w-]+\)", "", html)
    assert not {"script", "iframe", "object", "embed", "link", "form", "base"} & set(seen.tags)
    assert "could not be drawn" not in seen.text
    return seen


def figures_of(run):
    return {path.stem for path in run.figures.iterdir()}


def test_a_fit(tmp_path):
    run = fake_runs.fit_run(tmp_path / "run")
    seen = page_of(run)
    assert figures_of(run) == {"parity", "loss", "parameters", "rdf"}
    for words in (
        "Which Lennard-Jones atom is argon?",
        "117.21 ± 0.15 K",
        "3.3966 ± 0.0012 Å",
        "22 states; 5 more were held out",
        "pressure to 1.4 MPa and internal energy to 13 J mol⁻¹, with χ² per point 0.68",
        "Both laws held.",
        "1 min 47 s on 2 CPU cores",
        "110 K, 1260 kg/m³",
        "46.1 MiB",
        "chaos does not reach",
        "sha256",
        '<script>alert("configuration")</script>',
    ):
        assert words in seen.text, words
    assert seen.text.count("held out") == 5 + 1
    for path in run.figures.iterdir():
        data = path.read_bytes()
        assert data.startswith(b"\x89PNG")
        assert min(int.from_bytes(data[i : i + 4]) for i in (16, 20)) > 500  # pixels
    states = fake_runs.states()
    z = (states[0]["p"] - states[0]["p_target"]) / 2.0
    assert f"{z:+.2f}".replace("-", "−") in seen.text


def test_answers_of_a_study_come_first_and_its_rows_are_a_table(tmp_path):
    run = fake_runs.fit_run(tmp_path / "run")
    result: Any = run.read_result()
    result["parameters"]["sigma"]["fixed"] = True
    result["measured"] |= {
        "answers": [{"label": "correlation time", "value": 2.029, "stderr": 0.086}],
        "rivals": [
            {"name": "fitted", "cells": 32, "time": 2.029121, "at_least": False, "samples": [1, 2]},
            {"name": "<b>plain</b>", "cells": 64, "time": None, "at_least": True},
        ],
    }
    text = re.sub(r"<[^>]+>", " ", page(RunData("run", result=result), [], []))
    text = " ".join(text.split())
    assert "correlation time 2.029 ± 0.086 epsilon" in text.replace("ε · ", "")
    assert "sigma 3.3966" not in text.replace("σ · ", "")
    assert "Name Cells Time At least fitted 32 2.029 no" in text
    assert "&lt;b&gt;plain&lt;/b&gt; 64 – yes" in text


def test_a_simulation_with_a_broken_law(tmp_path):
    run = fake_runs.simulation_run(tmp_path / "run")
    seen = page_of(run)
    assert figures_of(run) == {"observables", "rdf", "energy", "drift", "convergence"}
    assert "The law of momentum is broken." in seen.text
    assert "✓ held" in seen.text
    assert "✗ broken" in seen.text
    assert "Fit" not in seen.text.split()


def test_adjoints_side_by_side(tmp_path):
    run = fake_runs.adjoints_run(tmp_path / "run")
    seen = page_of(run)
    assert figures_of(run) == {"adjoints", "loss", "parameters"}
    assert "differ by at most 4 × 10⁻¹⁰ (relative)" in seen.text
    assert "58.2 MiB" in seen.text


def test_a_failed_run_says_so_and_shows_how_far_it_came(tmp_path):
    run = fake_runs.failed_run(tmp_path / "run")
    seen = page_of(run)
    assert "This run failed (exit code 3) The energy is not finite, at step 1234." in seen.text
    assert "Reduce the time step" in seen.text
    assert "116.952" in seen.text
    assert figures_of(run) == {"loss", "parameters"}


@pytest.mark.parametrize("state", ["interrupted", "running", "law_broken", "something_else"])
def test_a_run_without_a_result(tmp_path, state):
    run = fake_runs.failed_run(tmp_path / "run")
    run.metrics_file.unlink()
    run.status(state)
    text = page_of(run).text
    if state in ("interrupted", "running"):
        assert "diffsim.run resume=" in text
    if state != "something_else":
        assert "It wrote no metrics" in text


def test_a_directory_that_holds_nothing(tmp_path):
    (tmp_path / "config.yaml").write_text("")
    write_report(tmp_path)
    assert "no result yet" in (tmp_path / "report.html").read_text()


def test_the_report_depends_on_the_files_alone(tmp_path):
    run = fake_runs.failed_run(tmp_path / "run")
    shutil.copytree(run.path, tmp_path / "copy")
    assert write_report(tmp_path / "copy").read_bytes() == write_report(run.path).read_bytes()


def test_hostile_text_stays_text(tmp_path):
    run = fake_runs.fit_run(tmp_path / "run")
    evil = "</style></svg><script>alert(1)</script><img src=x onerror=alert(1)> $\\frac{ --!> &amp;"
    result: Any = run.read_result()
    result["experiment"] = result["question"] = result["adjoint"]["why"] = evil
    result["parameters"] = {evil: result["parameters"]["sigma"] | {"unit": evil, "label": evil}}
    result["laws"][0]["name"] = result["provenance"]["command"] = evil
    result["provenance"]["versions"] = {evil: evil}
    result["measured"][evil] = evil
    result["measured"]["targets"][0] |= {"unit": evil, "observable": evil}
    for state in result["measured"]["states"]:
        state["label"] = evil
    for curve in result["measured"]["rdf"]["curves"]:
        curve["label"] = evil
    run.result(result)
    page_of(run)


def test_results_of_odd_shapes_do_not_stop_the_report(tmp_path):
    run = fake_runs.fit_run(tmp_path / "run")
    good: Any = run.read_result()
    odd: list[Any] = [3, "text", [1, None], {"a": None}]
    measured = good["measured"]
    changed = [good | {key: value} for key in good for value in odd]
    changed += [good | {"measured": measured | {k: v}} for k in measured for v in odd]
    for result in changed:
        assert page(RunData("run", result=result), [], []).endswith("</html>\n")


@pytest.mark.parametrize(
    ("file", "content", "note"),
    [
        ("result.json", b'{"experiment": "lj', "result.json is damaged"),
        ("trajectory.h5", b"\x89HDF\r\n\x1a\n", "trajectory.h5 cannot be read"),
        ("metrics.jsonl", b"\xff\xfe{]\n3\nnull\n", None),
        ("status.json", b"[1", None),
    ],
)
def test_damaged_files_are_noted(tmp_path, file, content, note):
    run = fake_runs.failed_run(tmp_path / "run")
    (run.path / file).write_bytes(content)
    data = RunData.load(run.path)
    assert [text[: len(note or "")] for text in data.notes] == ([note] if note else [])
    assert str(tmp_path) not in page(data, [], data.notes)


def test_figures_whose_data_is_gone_are_gone(tmp_path):
    run = fake_runs.simulation_run(tmp_path / "run", frames=50)
    result: Any = run.read_result()
    for name in ("rdf", "convergence", "total_energy_drift"):
        del result["measured"][name]
    run.result(result)
    page_of(run)
    assert figures_of(run) == {"observables", "energy"}
    with h5py.File(run.trajectory, "r+") as file:
        energy: Any = file["observables/total_energy/value"]
        energy[3] = np.nan
    page_of(run)
    assert figures_of(run) == {"observables"}


def test_batches_of_conditions_are_drawn(tmp_path):
    run = fake_runs.failed_run(tmp_path / "run")
    run.metrics_file.unlink()
    steps, batch = np.arange(40), np.random.default_rng(0).normal(50, 1, (40, 27))
    with TrajectoryWriter(run.trajectory, units={"time": "ps", "pressure": "MPa"}) as out:
        measured = {"pressure": batch, "total_energy": batch, "kinetic_energy": batch}
        out.extend(steps, steps * 0.1, observables=measured)
    page_of(run)
    assert figures_of(run) == {"observables", "energy"}


class Terminal(io.StringIO):
    def isatty(self):
        return True


class TestConsole:
    def test_plain_lines_where_there_is_no_terminal(self, monkeypatch):
        monkeypatch.setenv("FORCE_COLOR", "1")
        out = io.StringIO()
        console = Console(file=out)
        with console.compiling("the fit"):
            pass
        with console.progress(100, "lj_fit") as progress:
            for i in range(100):
                progress.update(i + 1, loss=1.0 / (i + 1), state="[bold]warm[/bold]")
        console.summary([("epsilon", "117.21 ± 0.15 K"), ("sigma", "3.3966")], title="Result")
        lines = out.getvalue().splitlines()
        assert not re.search(r"[\x00-\x09\x0b-\x1f]", out.getvalue())
        assert lines[0] == "compiling the fit …"
        assert lines[1].startswith("compiled the fit in ")
        assert lines[2].startswith("lj_fit  1/100  loss 1  state [bold]warm[/bold]")
        assert lines[3].startswith("lj_fit  100/100  loss 0.01")
        assert lines[4:] == ["Result", "  epsilon  117.21 ± 0.15 K", "  sigma    3.3966"]

    def test_a_plain_line_every_few_seconds_and_at_the_end(self, monkeypatch):
        import diffsim._report.console as module

        clock = iter(np.arange(0, 1000, 2.0))
        monkeypatch.setattr(module.time, "perf_counter", lambda: float(next(clock)))
        out = io.StringIO()
        with Console(file=out).progress(20, "run") as progress:
            for i in range(9):
                progress.update(i + 1)
        assert re.findall(r"(\d+)/20", out.getvalue()) == ["1", "4", "7", "9"]

    def test_a_bar_on_a_terminal(self, monkeypatch):
        monkeypatch.setenv("TERM", "xterm-256color")
        out = Terminal()
        console = Console(file=out)
        with console.compiling("[red]step[/red]"):
            pass
        with console.progress(3, "run [x]") as progress:
            console.say("[note]")
            progress.update(3, loss=0.5)
        text = out.getvalue()
        assert "\x1b[" in text
        assert "compiled [red]step[/red] in" in text
        assert "3/3" in text
        assert "[note]" in text
        assert "loss 0.5" in text

    def test_a_dumb_terminal_is_no_terminal(self, monkeypatch):
        monkeypatch.setenv("TERM", "dumb")
        out = Terminal()
        with Console(file=out).progress(1, "run") as progress:
            progress.update(1)
        assert "\x1b" not in out.getvalue()

    def test_quiet_and_ascii(self):
        out = io.StringIO()
        console = Console(quiet=True, file=out)
        console.say("x")
        console.summary([("a", 1)])
        with console.compiling("x"), console.progress(1, "y") as progress:
            progress.update(1)
        assert out.getvalue() == ""
        raw = io.BytesIO()
        old = io.TextIOWrapper(raw, encoding="ascii")
        Console(file=old).say("117.21 ± 0.15 … é")
        assert raw.getvalue() == b"117.21 +- 0.15 ... ?\n"

    def test_the_end_is_shown_when_the_loop_breaks(self):
        out = io.StringIO()

        def run():
            with Console(file=out).progress(9, "run") as progress:
                progress.update(1)
                progress.update(2)
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run()
        assert "2/9" in out.getvalue()

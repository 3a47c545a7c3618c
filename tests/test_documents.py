"""What the documents show is what happens: the README's example and the notebooks."""

import contextlib
import io
import os
import re
from pathlib import Path

import numpy as np
import pytest

from conftest import CHECKOUT
from problems import slow_but

NUMBER = re.compile(r"-?\d+\.\d+")


README = (CHECKOUT / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```\s+```text\n(.*?)```", README, re.S)


# three gradients of a liquid that nothing compiles as one; the fit is quick
@pytest.mark.parametrize(("code", "shown"), slow_but(EXAMPLES[1:], EXAMPLES), ids=(0, 1))
def test_the_readme_prints_what_it_shows(code, shown):
    assert len([line for line in code.splitlines() if line.strip()]) <= 16
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {})
    lines = printed.getvalue().splitlines(), shown.splitlines()
    assert [NUMBER.sub("#", line) for line in lines[0]] == [
        NUMBER.sub("#", line) for line in lines[1]
    ]
    numbers = [[float(x) for x in NUMBER.findall(line)] for line in lines[0]]
    expected = [[float(x) for x in NUMBER.findall(line)] for line in lines[1]]
    for found, wanted in zip(numbers, expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4)


def test_the_readme_has_examples():
    assert len(EXAMPLES) == 2


@pytest.mark.parametrize(
    "path", sorted((CHECKOUT / "notebooks").glob("*.ipynb")), ids=lambda p: p.stem
)
def test_notebook_runs_at_a_small_size(path: Path, monkeypatch: pytest.MonkeyPatch):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    monkeypatch.setenv("DIFFSIM_SMALL", "1")
    monkeypatch.setenv("JAX_PLATFORMS", os.environ.get("JAX_PLATFORMS", "cpu"))
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "clear the outputs"
    client = nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": path.parent}}
    )
    client.execute()
    printed = "".join(
        output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ())
    )
    epsilon, sigma = (float(x) for x in re.findall(r"= ([\d.]+) ±", printed))
    assert 105 < epsilon < 130
    assert 3.3 < sigma < 3.5

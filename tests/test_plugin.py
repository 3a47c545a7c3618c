"""A user's own equation: ten lines in a package of theirs, an experiment in a folder of theirs."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from problems import slow_but

PACKAGE = '''
import jax.numpy as jnp
from diffsim.ode import AbstractSystem


class Logistic(AbstractSystem):
    """dn/dt = r n (1 - n/K)."""

    components = ("n",)

    def __call__(self, t, y, args):
        return args["r"] * y * (1 - y / args["K"])

    def defaults(self):
        return {"r": 1.0, "K": 1.0}

    def start(self):
        return jnp.array([0.1])
'''

EXPERIMENT = """
# @package _global_
defaults:
  - override /fit: least_squares

name: yeast
question: How fast does yeast grow?
simulation:
  _target_: diffsim.ode.DifferentialEquation
  vector_field: {_target_: mylab.Logistic}
  rtol: 1.0e-8
parameters:
  r: {_target_: diffsim.Parameter, init: 0.3, transform: positive, unit: 1/hour}
  K: {_target_: diffsim.Parameter, init: 5.0, transform: positive}
conditions: {y0: [[0.5]]}
targets:
  - _target_: diffsim.Target
    observable: n
    data: [{_target_: diffsim.column, file: yeast.csv, name: n}]
    sigma: 0.05
    statistic: each
schedule: {_target_: diffsim.Schedule, ts: {_target_: diffsim.column, file: yeast.csv, name: hour}}
"""


@pytest.fixture
def lab(tmp_path):
    """A folder with the package, the experiment and its data: r = 0.55, K = 9, noise of 0.05."""
    (tmp_path / "mylab").mkdir()
    (tmp_path / "mylab" / "__init__.py").write_text(PACKAGE)
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "yeast.yaml").write_text(EXPERIMENT)
    hours = np.arange(1.0, 15.0)
    n = 9 / (1 + (9 / 0.5 - 1) * np.exp(-0.55 * hours))
    n = n + 0.05 * np.random.default_rng(1).normal(size=n.size)
    rows = [f"{h},{x}" for h, x in zip(hours, n, strict=True)]
    (tmp_path / "yeast.csv").write_text("\n".join(["hour,n", *rows]))
    return tmp_path


def run(lab, *words, **environment):
    command = [sys.executable, "-m", "diffsim.run", "--config-dir", "mine", *words]
    source = os.pathsep.join(filter(None, [str(lab), os.environ.get("PYTHONPATH")]))
    variables = os.environ | {"PYTHONPATH": source} | environment
    return subprocess.run(
        command, cwd=lab, env=variables, capture_output=True, text=True, timeout=300, check=False
    )


def test_it_is_fitted_from_the_command_line(lab):
    done = run(lab, "experiment=yeast", DIFFSIM_TRUSTED="mylab")
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = lab.glob("outputs/yeast/*/result.json")
    found = json.loads(path.read_text())["parameters"]
    for name, truth in (("r", 0.55), ("K", 9.0)):
        assert abs(found[name]["value"] - truth) < 4 * found[name]["stderr"] < 0.05 * truth
    assert (path.parent / "report.html").is_file()


MISTAKES = [
    ("", [], "mylab.Logistic"),
    ("mylab", ["simulation.vector_field._target_=mylab.Logistics"], "did you mean"),
    ("mylab", ["parameters.K.init=-1"], "parameters.K.init"),
    ("mylab", ["conditions.y0=[[0.5,0.5]]"], "components"),
    ("mylab", ["~parameters.K"], "component 'K'"),
    ("mylab", ["simulation.max_steps=0"], "max_steps"),
]


@pytest.mark.parametrize(("trusted", "words", "message"), slow_but(MISTAKES[:3], MISTAKES))
def test_mistakes_are_refused_before_anything_is_written(lab, trusted, words, message):
    done = run(lab, "experiment=yeast", *words, DIFFSIM_TRUSTED=trusted)
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert not (lab / "outputs").exists()


FAULTS = [
    ("3.0,nan", "no finite number"),
    ("99.0,2.0", "increasing"),
    ("3.0,none", "no finite number"),
]


@pytest.mark.parametrize(("row", "message"), slow_but(FAULTS[:1], FAULTS))
def test_faults_of_the_data_are_refused(lab, row, message):
    lines = (lab / "yeast.csv").read_text().splitlines()
    (lab / "yeast.csv").write_text("\n".join([*lines[:3], row, *lines[4:]]))
    done = run(lab, "experiment=yeast", DIFFSIM_TRUSTED="mylab")
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stderr and not (lab / "outputs").exists()


@pytest.mark.slow  # to compile
def test_too_many_steps_are_a_numerical_failure(lab):
    done = run(lab, "experiment=yeast", "simulation.max_steps=5", DIFFSIM_TRUSTED="mylab")
    assert done.returncode == 3, done.stdout + done.stderr
    assert "max_steps" in done.stderr and "Traceback" not in done.stderr

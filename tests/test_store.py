"""Run directories, restarts and provenance: what is written comes back, the rest is refused."""

import json
import math
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from diffsim._errors import ConfigError
from diffsim._store import (
    Restarts,
    RunDirectory,
    file_sha256,
    mask_secrets,
    peak_bytes,
    provenance,
    to_json,
)


class TestRunDirectory:
    def test_holds_the_configuration_and_names_its_files(self, tmp_path):
        run = RunDirectory.create(tmp_path / "a" / "b", "seed: 1\n")
        assert run.config_text() == "seed: 1\n"
        names = [run.trajectory, run.restart, run.figures, run.report, run.result_file]
        assert [p.name for p in names] == [
            "trajectory.h5",
            "restart",
            "figures",
            "report.html",
            "result.json",
        ]
        assert RunDirectory.open(run.path) == run

    @pytest.mark.parametrize("kind", ["filled", "link", "dangling", "file"])
    def test_refuses_to_take_over_a_path(self, tmp_path, kind):
        path = tmp_path / "run"
        if kind == "filled":
            path.mkdir()
            (path / "precious.txt").write_text("mine")
        elif kind == "file":
            path.write_text("mine")
        else:
            (tmp_path / "there").mkdir() if kind == "link" else None
            path.symlink_to(tmp_path / "there")
        before = sorted(map(str, tmp_path.rglob("*")))
        with pytest.raises(ConfigError, match="run"):
            RunDirectory.create(path, "")
        assert sorted(map(str, tmp_path.rglob("*"))) == before

    def test_open_needs_a_run(self, tmp_path):
        for path in (tmp_path, tmp_path / "absent"):
            with pytest.raises(ConfigError, match="resume"):
                RunDirectory.open(path)

    def test_metrics_survive_a_torn_line_and_are_cut_back(self, tmp_path):
        run = RunDirectory.create(tmp_path / "run", "")
        assert run.metrics() == []
        for i in range(4):
            run.log({"iteration": i, "loss": np.float32(1.5), "ess": None, "p": np.nan})
        with open(run.metrics_file, "ab") as file:
            file.write(b'{"iteration": 4, "lo')
        run.log({"iteration": 5})
        assert [row["iteration"] for row in run.metrics()] == [0, 1, 2, 3, 5]
        run.truncate_metrics(2)
        run.log({"iteration": 3})
        text = run.metrics_file.read_text()
        assert [json.loads(line)["iteration"] for line in text.splitlines()] == [0, 1, 2, 3]

    def test_result_is_strict_json(self, tmp_path):
        run = RunDirectory.create(tmp_path / "run", "")
        assert run.read_result() is None
        run.result({"a": np.float64("nan"), "b": np.arange(3), "c": (math.inf, 1), "d": Path("x")})
        assert run.read_result() == {"a": None, "b": [0, 1, 2], "c": [None, 1], "d": "x"}
        assert "NaN" not in run.result_file.read_text()
        with pytest.raises(TypeError, match=r"\$\.a\.b"):
            run.result({"a": {"b": object()}})
        assert run.read_result() is not None
        assert [p.name for p in run.path.iterdir() if "part" in p.name] == []

    def test_status(self, tmp_path):
        run = RunDirectory.create(tmp_path / "run", "")
        run.status("running", iteration=3)
        run.status("failed", 3, message="not finite", step=np.int64(7))
        status = run.read_status()
        assert (status["state"], status["code"], status["step"]) == ("failed", 3, 7)


def test_json_of_jax_values():
    import jax.numpy as jnp

    value = {"x": jnp.asarray(0.5), "h": jnp.ones(2, jnp.bfloat16), "n": jnp.asarray([1, 2])}
    assert json.loads(to_json(value)) == {"x": 0.5, "h": [1.0, 1.0], "n": [1, 2]}


class TestRestarts:
    @pytest.fixture
    def tree(self):
        import equinox as eqx
        import jax
        import jax.numpy as jnp

        class Walk(eqx.Module):
            positions: jax.Array
            key: jax.Array

        rng = np.random.default_rng(0)
        return {
            "state": Walk(jnp.asarray(rng.normal(size=(4, 3))), jax.random.key(7)),
            "keys": jax.random.split(jax.random.key(1, impl="rbg"), 3),
            "moments": (jnp.asarray(rng.normal(size=5), jnp.float32), jnp.asarray([np.nan, -0.0])),
            "count": jnp.asarray(3, jnp.int32),
            "lattice": jnp.asarray([2**62 + 1], jnp.int64),
            "host": np.arange(3, dtype=np.int16),
            "none": jnp.zeros((0, 3)),
            "half": jnp.ones(2, jnp.bfloat16),
            "flag": jnp.asarray(True),
        }

    @staticmethod
    def bits(tree):
        import jax

        leaves = []
        for leaf in jax.tree.leaves(tree):
            key = jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            array = np.asarray(jax.random.key_data(leaf) if key else leaf)
            leaves.append((type(leaf), str(leaf.dtype), array.shape, array.tobytes()))
        return leaves

    def test_comes_back_to_the_bit(self, tmp_path, tree):
        import jax

        with Restarts(tmp_path / "restart") as restarts:
            assert restarts.latest() is None
            assert not (tmp_path / "restart").exists()
            restarts.save(5, tree, {"iteration": 2, "note": "ä", "worst": 1e-300})
        with Restarts(tmp_path / "restart") as restarts:
            assert restarts.latest() == 5
            step, back, meta = restarts.load(
                jax.tree.map(lambda x: x * 0 if x.dtype == float else x, tree)
            )
        assert step == 5
        assert meta == {"iteration": 2, "note": "ä", "worst": 1e-300}
        assert self.bits(back) == self.bits(tree)
        assert jax.tree.structure(back) == jax.tree.structure(tree)
        split = jax.random.split(tree["state"].key)
        assert (jax.random.split(back["state"].key) == split).all()

    def test_shapes_are_template_enough(self, tmp_path):
        import jax
        import jax.numpy as jnp

        tree = {"x": jnp.arange(3.0), "key": jax.random.key(3)}
        with Restarts(tmp_path / "restart") as restarts:
            restarts.save(1, tree)
            shapes = jax.eval_shape(lambda t: t, tree)
            assert self.bits(restarts.load(shapes)[1]) == self.bits(tree)

    def test_keeps_the_last_two_and_replaces_a_step(self, tmp_path):
        with Restarts(tmp_path / "restart") as restarts:
            for step in (1, 2, 3, 3):
                restarts.save(step, {"x": np.full(2, float(step))}, {"time": time.time()})
            assert restarts.load({"x": np.zeros(2)})[1]["x"][0] == 3
        assert sorted(p.name for p in (tmp_path / "restart").iterdir()) == ["2", "3"]

    @pytest.mark.parametrize(
        ("template", "message"),
        [
            ({"x": np.zeros(2, np.float32)}, r"\['x'\]: float64\[2\].*\['x'\]: float32\[2\]"),
            ({"x": np.zeros(3)}, r"float64\[3\]"),
            ({"y": np.zeros(2)}, r"no \['x'\]"),
            ({"x": np.zeros(2), "y": np.zeros(2)}, r"no \['y'\]"),
        ],
    )
    def test_refuses_another_tree(self, tmp_path, template, message):
        with Restarts(tmp_path / "restart") as restarts:
            restarts.save(1, {"x": np.ones(2)})
            with pytest.raises(ConfigError, match=message):
                restarts.load(template)

    def test_refuses_what_is_no_array_and_an_empty_folder(self, tmp_path):
        with Restarts(tmp_path / "restart") as restarts:
            with pytest.raises(TypeError, match=r"\['f'\] is float"):
                restarts.save(1, {"f": 1.0})
            with pytest.raises(ConfigError, match="no restart"):
                restarts.load({"f": np.ones(1)})

    def test_passes_over_a_damaged_restart(self, tmp_path):
        with Restarts(tmp_path / "restart") as restarts:
            restarts.save(1, {"x": np.ones(500)})
            restarts.save(2, {"x": np.random.default_rng(0).normal(size=500)})
        for file in (tmp_path / "restart" / "2" / "arrays").rglob("d/*"):
            file.write_bytes(b"\0" * 10)
        restarts = Restarts(tmp_path / "restart")
        with restarts, pytest.warns(UserWarning, match="step 2 is damaged"):
            step, tree, _ = restarts.load({"x": np.zeros(500)})
        assert step == 1
        np.testing.assert_array_equal(tree["x"], np.ones(500))

    def test_asynchronous_and_silent(self, tmp_path, capfd):
        with Restarts(tmp_path / "restart", asynchronous=True) as restarts:
            for step in (1, 2, 3):
                restarts.save(step, {"x": np.full(3, float(step))})
            restarts.wait()
            assert restarts.latest() == 3
            assert restarts.load({"x": np.zeros(3)})[1]["x"][0] == 3
        assert capfd.readouterr() == ("", "")


class TestProvenance:
    def test_can_be_written_and_names_nobody(self, tmp_path):
        data = tmp_path / "argon.csv"
        data.write_bytes(b"1,2\n")
        command = ["python", "-m", "diffsim.run", f"out={Path.home()}/x", "api_token=hunter2"]
        found = provenance(command, 3, [data, tmp_path / "absent.csv"])
        text = to_json(found)
        assert found["data"] == {"argon.csv": file_sha256(data), "absent.csv": None}
        assert found["seed"] == 3
        assert found["versions"]["jax"]
        assert found["device"].startswith("cpu")
        assert "hunter2" not in text
        assert str(Path.home()) not in found["command"]
        assert (peak_bytes() or 0) > 10**6

    def test_is_found_without_git(self, monkeypatch):
        monkeypatch.setenv("PATH", "")
        assert provenance("x", None)["git_commit"] is None

    def test_masks_secrets_only(self):
        config = {
            "wandb": {"api_key": "a", "apiKey": "b", "project": "p", "password": ""},
            "launcher": [{"access_token": 1}],
            "store": "https://me:pw@example.org/x",
            "max_steps": 3,
            "author": "A",
            "key": 7,
            "monkey_bars": 2,
        }
        assert mask_secrets(config) == {
            "wandb": {"api_key": "***", "apiKey": "***", "project": "p", "password": ""},
            "launcher": [{"access_token": "***"}],
            "store": "https://***@example.org/x",
            "max_steps": 3,
            "author": "A",
            "key": 7,
            "monkey_bars": 2,
        }


def test_store_loads_no_jax():
    code = (
        "import sys, diffsim._store, diffsim._report\n"
        "assert not {'jax', 'matplotlib', 'orbax', 'rich'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)

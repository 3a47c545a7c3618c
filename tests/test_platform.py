"""What diffsim relies on in its platform: a jax that computes correctly, and a quick import."""

import os
import sys
from importlib import metadata

import jax
import jax.numpy as jnp
import pytest
from packaging.requirements import Requirement

from conftest import CHECKOUT, command
from diffsim import _programs
from diffsim._programs import mappings, release_programs


def _requirements() -> dict[str, Requirement]:
    core = (Requirement(text) for text in metadata.requires("diffsim") or [])
    return {each.name: each for each in core if each.marker is None}


@pytest.mark.parametrize(("dtype", "rows"), [("float64", 16_385), ("float32", 32_769)])
def test_jit_of_a_vmapped_matrix_vector_product_is_right(dtype: str, rows: int) -> None:
    """jax 0.10.2 lost the last row's digits under jit (jax#39103): 267911424 for 268435456."""

    def squared_length(row: jax.Array) -> jax.Array:
        return jnp.sum((jnp.eye(3, dtype=dtype) @ row) ** 2)

    x = jnp.zeros((rows, 3), dtype).at[:, 0].set(jnp.arange(rows, dtype=dtype))
    eager = jax.vmap(squared_length)(x)
    compiled = jax.jit(jax.vmap(squared_length))(x)

    assert float(eager[-1]) == (rows - 1) ** 2
    assert jnp.array_equal(eager, compiled)


@pytest.mark.parametrize("version", ["0.10.2", "0.11.1"])
def test_jax_versions_that_miscompile_are_refused(version: str) -> None:
    assert version not in _requirements()["jax"].specifier
    assert metadata.version("jax") != version


def test_hydra_is_held_and_omegaconf_left_to_it() -> None:
    requirements = _requirements()
    assert requirements["hydra-core"].specifier.contains("1.3.8")
    assert not requirements["hydra-core"].specifier.contains("1.4.0.dev3", prereleases=True)
    assert "omegaconf" not in requirements


def test_installed_versions_are_those_recorded() -> None:
    """The constraints file of this Python is what the environment was made from."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    constraints = CHECKOUT / f"constraints-{python}.txt"
    if not constraints.exists():
        pytest.skip(f"no versions are recorded for Python {python}")
    recorded = dict(line.split("==") for line in constraints.read_text().splitlines())
    for name in ("jax", "jaxlib", "jax-md", "jax-cfd", "diffrax", "equinox", "optax", "hydra-core"):
        assert metadata.version(name) == recorded[name], name


@pytest.mark.parametrize("statement", ["import diffsim", "import diffsim; diffsim.__version__"])
def test_import_loads_no_jax(statement: str) -> None:
    heavy = ("jax", "numpy", "equinox", "matplotlib", "hydra")
    code = f"{statement}; import sys; print(*sorted(set({heavy!r}) & set(sys.modules)))"
    assert command(sys.executable, "-c", code).split() == []


def test_float64_and_the_cpu_are_what_the_tests_run_on() -> None:
    assert jnp.zeros(()).dtype == jnp.float64


@pytest.mark.skipif(not mappings(), reason="the system does not tell what a process holds")
def test_programs_are_dropped_before_a_process_is_full():
    """Each compiled program holds memory mappings; a process may hold 65,530 of them."""
    programs = [jax.jit(lambda x, k=k: jnp.sin(k * x) @ x) for k in range(20)]
    for program in programs:
        program(jnp.ones(3))
    held = mappings()
    assert not release_programs(many=held + 1000)
    assert release_programs(many=held // 2)
    assert mappings() < held - 20
    assert jnp.allclose(programs[2](jnp.ones(3)), 3 * jnp.sin(2.0))


@pytest.mark.parametrize(
    ("processor", "given", "known", "wanted"),
    [
        ("avx2 avx512f", "", True, "--xla_cpu_prefer_vector_width=512"),
        ("avx2 avx512f", "--a=1", True, "--a=1 --xla_cpu_prefer_vector_width=512"),
        ("avx2", "--a=1", True, "--a=1"),
        ("avx512f", "--xla_cpu_prefer_vector_width=128", True, "--xla_cpu_prefer_vector_width=128"),
        ("avx512f", "", False, ""),
        (None, "", True, ""),
    ],
)
def test_vectors_are_as_wide_as_the_processor_s(
    processor, given, known, wanted, tmp_path, monkeypatch
):
    """Where XLA knows the word for it, and nobody said otherwise."""
    about = tmp_path / "cpuinfo"
    if processor is not None:
        about.write_text(f"flags: fpu {processor} aes")
    monkeypatch.setattr(_programs, "_PROCESSOR", about)
    monkeypatch.setattr(_programs, "UNTRIED", (99,) if known else (0, 0))
    monkeypatch.setenv("XLA_FLAGS", given)
    _programs.wide_vectors()
    assert os.environ["XLA_FLAGS"] == wanted


def test_xla_still_knows_the_width_of_vectors():
    """An unknown flag ends the process: `UNTRIED` is the first jaxlib this was not run with."""
    version = tuple(map(int, metadata.version("jaxlib").split(".")[:2]))
    if version >= _programs.UNTRIED:
        pytest.skip(f"not asked for in jaxlib {version}")
    flags = f"--{_programs.WIDTH}=512"
    code = f"import os; os.environ['XLA_FLAGS'] = {flags!r}; import jax; print(len(jax.devices()))"
    assert int(command(sys.executable, "-c", code)) >= 1

"""The wheel holds what a run needs, and runs from any directory of a fresh environment."""

import json
import site
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from conftest import CHECKOUT, command, project_files

DATA = ("conf", "experiments")


@pytest.fixture(autouse=True)
def _no_detour(monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller's PYTHONPATH would be searched before the wheel."""
    monkeypatch.delenv("PYTHONPATH", raising=False)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index")
    command(*pip, "--no-build-isolation", "--wheel-dir", folder, CHECKOUT, cwd=folder)
    (built,) = folder.iterdir()
    assert built.name.startswith("diffsim-") and zipfile.is_zipfile(built)
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a fresh environment with the wheel in it.

    The dependencies, more than a gigabyte, are those of this environment: a .pth file puts its
    folder at the end of the path. A .pth file found that way is not read in turn, so the editable
    diffsim of this environment stays out of sight, and what is imported is the wheel's.
    """
    folder = tmp_path_factory.mktemp("fresh")
    venv.create(folder, with_pip=False)
    interpreter = folder / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", interpreter, "install", "--quiet")
    command(*pip, "--no-deps", "--no-index", wheel, cwd=folder)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()))
    return interpreter


def test_contents(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    package = {name for name in names if name.startswith("diffsim/")}
    information = {name for name in names - package if ".dist-info/" in name}

    assert {"diffsim/__init__.py", "diffsim/__init__.pyi", "diffsim/py.typed"} <= package
    data = {path.relative_to(CHECKOUT) for path in project_files(*DATA)}
    assert {f"diffsim/{path.as_posix()}" for path in data} <= package
    assert names == package | information, "nothing but the package and its metadata"
    assert not [name for name in names if "__pycache__" in name or "outputs/" in name]
    assert [name for name in information if name.endswith("LICENSE")]
    assert wheel.stat().st_size < 5_000_000


def test_the_wheel_is_what_is_imported(python: Path, tmp_path: Path) -> None:
    code = "import diffsim; print(diffsim.__file__, diffsim.__version__)"
    path, version = command(python, "-c", code, cwd=tmp_path).split()
    assert Path(path).is_relative_to(python.parent.parent)
    assert version in Path(path).parent.parent.joinpath(f"diffsim-{version}.dist-info").name


def test_experiments_are_listed_from_another_directory(python: Path, tmp_path: Path) -> None:
    listing = command(python, "-m", "diffsim.run", "--list", cwd=tmp_path)
    listed = {line.split()[0] for line in listing.splitlines() if line.strip()}
    kept = {path.parent.name for path in (CHECKOUT / "experiments").glob("*/README.md")}
    assert kept <= listed
    assert not list(tmp_path.iterdir()), "listing writes nothing"


def test_an_experiment_runs_from_another_directory(python: Path, tmp_path: Path) -> None:
    command(python, "-m", "diffsim.run", "experiment=lj_nve", "size=tiny", cwd=tmp_path)
    (result,) = tmp_path.glob("outputs/lj_nve/*/result.json")
    assert json.loads(result.read_text())["status"] == "done"

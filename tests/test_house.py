"""The plan of the house, enforced: who may import whom, and what stays out.

Read from the syntax trees of the source, so that an import inside a function counts like one at the
top, and nothing has to be loaded for it.
"""

import ast
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import diffsim
from conftest import CHECKOUT, command, project_files

SOURCE = CHECKOUT / "src" / "diffsim"

# A module imports only from what stands before it. Names on one line do not know of each other.
ORDER = (
    ("_errors", "_secrets", "_streams", "_files"),
    ("_signals", "_programs"),
    ("_scale",),
    ("_units", "_hdf5"),
    ("_simulation",),
    ("_schedule",),
    ("_laws",),
    ("_adjoint",),
    ("_placement",),
    ("_solve",),
    ("_growth",),
    ("_statistics",),
    ("_drive",),
    ("_parameter", "_table"),
    ("_problem",),
    ("_fit",),
    ("_audit",),
    ("_store",),
    ("_report",),
    ("md", "cfd", "ode"),
    ("_experiment",),
    ("_outcome",),
    ("_targets",),
    ("_build",),
    ("_hydra_errors", "_hydra_checks"),
    ("config",),
    ("_resume",),
    ("_verify",),
    ("_sweep",),
    ("run",),
)
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}

# What a backend wraps is imported in its folder alone.
HOME = {"jax_md": "md", "jax_cfd": "cfd", "diffrax": "ode"}

# Each can run code that a file brings along.
UNSAFE = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}

# Modules that must start without jax: bad configurations are refused before it loads.
QUICK = ("diffsim.run", "diffsim.config", "diffsim._errors", "diffsim._units")


def _files() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def _room(path: Path) -> str:
    """The first part below the package: `_adjoint` for `_adjoint/direct.py`."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def _package(path: Path) -> list[str]:
    return ["diffsim", *path.relative_to(SOURCE).parent.parts]


def _absolute(node: ast.ImportFrom, path: Path) -> str:
    base = _package(path)[: 1 - node.level or None] if node.level else []
    return ".".join([*base, *filter(None, [node.module])])


def _imports(path: Path) -> Iterator[tuple[str, int]]:
    """Dotted names of what a file imports, at any depth, with the line."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = _absolute(node, path)
            # `from . import x` names a module; `from .y import x` is charged to y.
            names = [alias.name for alias in node.names] if module == "diffsim" else []
            yield from ((f"{module}.{name}", node.lineno) for name in names)
            if not names:
                yield module, node.lineno


def test_every_module_has_its_place_in_the_order() -> None:
    rooms = {_room(path) for path in _files()} - {"__init__"}
    assert rooms <= set(RANK), f"give {sorted(rooms - set(RANK))} a place in ORDER"


def test_modules_import_only_from_what_stands_before_them() -> None:
    wrong = []
    for path in _files():
        here = _room(path)
        if here not in RANK:
            continue
        for name, line in _imports(path):
            head, _, rest = name.partition(".")
            there = rest.partition(".")[0]
            if head != "diffsim" or there == here:
                continue
            # Anything else under `diffsim` is the flat public interface, which stands last.
            if there not in RANK or RANK[there] >= RANK[here]:
                wrong.append(f"{path.relative_to(CHECKOUT)}:{line} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_backends_do_not_know_of_storage_or_reports() -> None:
    wrong = [
        f"{path.relative_to(CHECKOUT)}:{line} imports {name}"
        for path in _files()
        if _room(path) in HOME.values()
        for name, line in _imports(path)
        if name.split(".")[:2] in (["diffsim", "_store"], ["diffsim", "_report"])
    ]
    assert not wrong, "\n".join(wrong)


def test_backend_libraries_are_imported_in_their_folder_alone() -> None:
    wrong = [
        f"{path.relative_to(CHECKOUT)}:{line} imports {name}"
        for path in _files()
        for name, line in _imports(path)
        if (home := HOME.get(name.partition(".")[0])) and _room(path) != home
    ]
    assert not wrong, "\n".join(wrong)


def test_nothing_can_unpickle() -> None:
    wrong = [
        f"{path.relative_to(CHECKOUT)}:{line} imports {name}"
        for path in _files()
        for name, line in _imports(path)
        if name.partition(".")[0] in UNSAFE
    ]
    wrong += [
        f"{path.relative_to(CHECKOUT)}: allow_pickle"
        for path in _files()
        if re.search(r"allow_pickle\s*=\s*True", path.read_text())
    ]
    assert not wrong, "\n".join(wrong)


def test_the_library_leaves_the_global_settings_of_jax_alone() -> None:
    """Only the command line may choose precision and platform for a whole process; `_fit._curve`
    puts back what importing nlsq changed."""
    wrong = [
        f"{path.relative_to(CHECKOUT)}:{node.lineno}"
        for path in _files()
        if _room(path) != "run" and path.name != "_curve.py"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("config.update")
    ]
    assert not wrong, f"jax.config.update outside run.py: {wrong}"


def test_no_drawers_for_anything() -> None:
    drawers = {"utils", "util", "helpers", "misc", "common"}
    assert not [path for path in _files() if path.stem.strip("_") in drawers]


def test_files_stay_readable() -> None:
    sources = _files()
    long = {
        str(path.relative_to(CHECKOUT)): lines
        for path in [*sources, *(CHECKOUT / "tests").rglob("*.py")]
        if (lines := len(path.read_text().splitlines())) > (400 if path in sources else 480)
    }
    assert not long, f"so long that it is more than one room: {long}"


def test_the_core_starts_without_jax() -> None:
    code = (
        "import importlib, sys, json\n"
        f"[importlib.import_module(name) for name in {QUICK!r}]\n"
        "print(json.dumps(sorted({'jax', 'jax_md', 'equinox', 'pint'} & set(sys.modules))))"
    )
    assert json.loads(command(sys.executable, "-c", code)) == []


@pytest.mark.parametrize(
    "name", ["uv.lock", "poetry.lock", "pdm.lock", "Pipfile.lock", "pylock.toml"]
)
def test_no_lock_files(name: str) -> None:
    assert not [path for path in project_files() if path.name == name]


def test_constraints_are_names_and_versions_alone() -> None:
    files = sorted(CHECKOUT.glob("constraints-*.txt"))
    assert files
    for path in files:
        lines = path.read_text().splitlines()
        odd = [text for text in lines if not re.fullmatch(r"[\w.-]+==[\w.+!]+", text)]
        assert not odd, f"{path.name}: {odd}"
        assert lines == sorted(lines, key=str.lower), path.name


def test_no_large_files() -> None:
    large = {
        path.name: size for path in project_files() if (size := path.stat().st_size) > 1_000_000
    }
    assert not large


@pytest.mark.parametrize("name", dir(diffsim))
def test_public_names_exist(name: str) -> None:
    assert getattr(diffsim, name) is not None

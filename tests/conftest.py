"""How the tests meet JAX: on the CPU, in float64, with types checked and compilations kept.

Environment variables are set before jax is imported, where the caller left them open:
`JAX_PLATFORMS=cuda make test` runs the same tests on a GPU. Commands that a test starts inherit
them, except for float64, which the command line has to switch on by itself.
"""

import os
import subprocess
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CHECKOUT / ".pytest_cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
os.environ.setdefault("MPLBACKEND", "agg")
os.environ["DIFFSIM_CACHE"] = str(CHECKOUT / ".pytest_cache" / "diffsim")

import hypothesis  # noqa: E402
import jax  # noqa: E402
import jaxtyping  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_enable_x64", True)

# Before the first import of a diffsim module: shapes and types are checked at each call.
jaxtyping.install_import_hook("diffsim", "beartype.beartype")

# Compilation makes the first example slow, hence no deadline. The same examples in every run: what
# fails one time in a hundred needs a statistical test, not a lucky draw.
hypothesis.settings.register_profile(
    "diffsim", deadline=None, derandomize=True, max_examples=25, print_blob=True
)
hypothesis.settings.register_profile("explore", deadline=None, max_examples=500)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "diffsim"))


@pytest.fixture(autouse=True, scope="session")
def _traced_quickly():
    from diffsim._programs import rare_collections

    with rare_collections():
        yield


@pytest.fixture(autouse=True, scope="module")
def _programs_dropped():
    """Two thousand tests in one process compile more than it may hold."""
    yield
    from diffsim._programs import release_programs

    release_programs()


def command(*arguments: object, cwd: Path = CHECKOUT) -> str:
    """What a command prints; a failure shows everything that it said."""
    result = subprocess.run(
        [str(each) for each in arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, f"{result.args}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def project_files(*under: str) -> list[Path]:
    """The project's own files, below the named folders: what git holds or would add."""
    listing = command("git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", *under)
    paths = (CHECKOUT / name for name in listing.split("\0") if name)
    return [path for path in paths if path.exists()]

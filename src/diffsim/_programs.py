"""Compiled programs: how to get them sooner and quicker, and rid of those that nobody needs any
more.

JAX keeps what it compiled. On a CPU a program holds some three of the memory mappings that Linux
allows a process, 65,530 unless told otherwise; the compilation that finds none left kills the
process. A sweep in one process comes there after some hundreds of jobs.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

_MAPPINGS = Path("/proc/self/maps")
MANY = 12_000  # some three gigabytes
RARE = (100_000, 50, 100)  # new objects, and younger collections, between two searches for cycles
_PROCESSOR = Path("/proc/cpuinfo")
WIDTH = "xla_cpu_prefer_vector_width"
UNTRIED = (0, 13)  # the first jaxlib that may not know it: an unknown flag ends the process


def wide_vectors() -> None:
    """Before JAX starts: let XLA use vectors of 512 bits where the processor has them. It stays at
    256 unless told, and a step of 4,000 atoms takes a third longer. What `XLA_FLAGS` says stands.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    version = metadata.version("jaxlib").split(".")[:2]
    if WIDTH in flags or tuple(map(int, version)) >= UNTRIED:
        return
    with contextlib.suppress(OSError), _PROCESSOR.open(encoding="utf-8") as lines:
        # of the first core: a server lists hundreds, and writes each anew for whoever reads on
        if "avx512f" in next((line for line in lines if line.startswith("flags")), ""):
            os.environ["XLA_FLAGS"] = f"{flags} --{WIDTH}=512".strip()


def mappings() -> int:
    """How many memory mappings this process holds; 0 where the system does not tell."""
    try:
        with _MAPPINGS.open("rb") as lines:
            return sum(1 for _ in lines)
    except OSError:
        return 0


def release_programs(many: int = MANY) -> bool:
    """Drop every compiled program where this process holds more than `many` mappings: what is
    called again is traced again, and its program read from the compilation cache."""
    if mappings() <= many:
        return False
    import jax

    jax.clear_caches()
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # where there is no glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what is free goes back to the system
    return True


@contextlib.contextmanager
def rare_collections() -> Iterator[None]:
    """Inside, Python looks for garbage in cycles less often: tracing makes objects by the million,
    and a search after each 700 of them, as is usual, takes a fifth of its time."""
    before = gc.get_threshold()
    gc.set_threshold(*RARE)
    try:
        yield
    finally:
        gc.set_threshold(*before)

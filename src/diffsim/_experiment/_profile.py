"""Where the time of a run goes: a table, and a trace of JAX's profiler."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

EVENTS = {
    "/jax/core/compile/jaxpr_trace_duration": "trace",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "trace",
    "/jax/core/compile/backend_compile_duration": "compile",
    "/jax/compilation_cache/cache_retrieval_time_sec": "read compiled programs",
}


class Profile:
    """Counts what JAX says of its compilations and what is put into `timed`. Between the first and
    the second `tick` (of a chunk or an iteration: compiled, and one is enough) the profiler's trace
    goes to `folder`; `begin` starts it at once, for a run that has no second."""

    def __init__(self, folder: Path):
        self.folder, self.tracing, self.ticks = folder, False, 0
        self.seconds: dict[str, float] = {}
        self.counts: dict[str, int] = {}
        jax.monitoring.register_event_duration_secs_listener(self._heard)

    def tick(self) -> None:
        """A chunk or an iteration is over."""
        self.ticks += 1
        if self.ticks == 1 and not self.tracing:
            self.begin()
        elif self.ticks == 2:
            self.end()

    def begin(self) -> None:
        """Trace from here."""
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # what the host does in Python would bury the rest
        jax.profiler.start_trace(self.folder, profiler_options=options)
        self.tracing = True

    def end(self) -> None:
        """Trace up to here."""
        if self.tracing:
            jax.profiler.stop_trace()
        self.tracing = False

    def close(self) -> None:
        self.end()
        with contextlib.suppress(ValueError, AssertionError):
            jax.monitoring.unregister_event_duration_listener(self._heard)

    @contextlib.contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Count the time that this takes."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._add(what, time.perf_counter() - began)

    def table(self, pieces: dict[str, Any], peak: int | None) -> dict[str, Any]:
        """What result.json says: rows `what, seconds, count, bytes`, and where the trace is."""
        rows = [
            {"what": what, "seconds": seconds, "count": self.counts[what], "bytes": None}
            for what, seconds in self.seconds.items()
        ]
        rows.append(_row("step", pieces.get("iteration_s"), None))
        rows.append(_row("temporary memory", None, pieces.get("adjoint", {}).get("temp_bytes")))
        rows.append(_row("peak memory", None, peak))
        return {"rows": rows, "trace": self.folder.name if self.folder.is_dir() else None}

    def _heard(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event in EVENTS:
            self._add(EVENTS[event], duration_secs)

    def _add(self, what: str, seconds: float) -> None:
        self.seconds[what] = self.seconds.get(what, 0.0) + seconds
        self.counts[what] = self.counts.get(what, 0) + 1


def _row(what: str, seconds: float | None, size: int | None) -> dict[str, Any]:
    return {"what": what, "seconds": seconds, "count": None, "bytes": size}

"""What a fit says on its way, as metrics, lines and progress."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ._session import Session


class Reporting:
    """Turns what a fit says into metrics, lines and progress; polls for signals."""

    def __init__(self, session: Session):
        self.session, self.stage, self.count = session, "fit", session.logged + 1
        self.progress: Any = None
        self.compile_s = 0.0
        self.manager: Any = None

    def __call__(self, event: str, facts: Mapping[str, Any]) -> None:
        if event != "iteration":  # what that found is to be saved first
            self.session.poll()
        if event in ("equilibration", "warmup", "sampling"):
            self._progress(event, facts)
            return
        self.close()
        if event == "compiling":
            self.session.console.say(f"compiling {facts['what']} …")
        elif event == "compiled":
            self.session.console.say(f"compiled in {facts['seconds']:.1f} s")
        elif event == "warning":
            self.session.console.say(f"warning: {facts['text']}")
        elif event == "iteration":
            self._iteration(facts)

    def _progress(self, what: str, facts: Mapping[str, Any]) -> None:
        if self.progress is None:
            self.manager = self.session.console.progress(int(facts["of"]), what)
            self.progress = self.manager.__enter__()
        if facts["steps"]:
            self.progress.update(facts["steps"])
        if facts["steps"] >= facts["of"]:
            self.close()

    def close(self) -> None:
        """End an open progress bar."""
        if self.manager is not None:
            self.manager.__exit__(None, None, None)
        self.manager = self.progress = None

    def _iteration(self, facts: Mapping[str, Any]) -> None:
        record = {**facts, "iteration": self.count, "stage": self.stage}
        self.count += 1
        self.session.directory.log(record)
        values = "  ".join(f"{k} {v:.6g}" for k, v in facts["parameters"].items())
        ess = "" if facts["ess"] is None else f"  ess {facts['ess']:.2f}"
        self.session.console.say(
            f"{self.stage} {record['iteration']:3d}  loss {facts['loss']:.5g}  {values}{ess}"
        )
        self.session.logged = record["iteration"]
        self.session.tick()

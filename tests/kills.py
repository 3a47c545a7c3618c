"""Runs in processes that can be killed at any moment: their server, and what a run left.

Starting Python and importing JAX take longer than a small run. A server that has imported
all but JAX-MD, which starts JAX, forks a process for each run.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

CHECKOUT = Path(__file__).resolve().parent.parent
VARIES = ("seconds", "iteration_s", "compile_s", "total_s")  # and is no result


class Killable:
    """The server: `start` a command line of diffsim's, `kill` it, or wait for its `code`."""

    def __init__(self, log: Path):
        self.log = log
        source = str(CHECKOUT / "src")
        environment = os.environ | {
            "PYTHONPATH": source,
            "OPENBLAS_NUM_THREADS": "1",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",  # keep all that was compiled
        }
        self.server = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(Path(__file__).resolve())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )

    def start(self, *words: object) -> int:
        """The number of the process that runs `words`."""
        self._tell({"words": [str(word) for word in words], "log": str(self.log)})
        return int(self._answer())

    def code(self) -> int:
        """How the process that was started last ended, once it has."""
        return int(self._answer())

    def run(self, *words: object) -> int:
        self.start(*words)
        return self.code()

    def killed(self, after: float, *words: object) -> bool:
        """Start `words` and kill -9 the process after so many seconds; False: it was over."""
        number = self.start(*words)
        time.sleep(after)
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
        return self.code() == -signal.SIGKILL

    def killed_at(self, lines: int, wait: float, folder: Path, *words: object) -> bool:
        """The same, so many seconds after metrics.jsonl in `folder` has so many lines."""
        number, metrics = self.start(*words), folder / "metrics.jsonl"
        end = time.monotonic() + 300
        while time.monotonic() < end and Path(f"/proc/{number}/exe").exists():
            if metrics.exists() and len(metrics.read_bytes().splitlines()) >= lines:
                break
            time.sleep(0.01)
        time.sleep(wait)
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
        return self.code() == -signal.SIGKILL

    def close(self) -> None:
        for pipe in (self.server.stdin, self.server.stdout):
            assert pipe is not None
            pipe.close()
        self.server.wait(60)

    def _tell(self, request: dict[str, Any]) -> None:
        assert self.server.stdin is not None
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()

    def _answer(self) -> str:
        assert self.server.stdout is not None
        return self.server.stdout.readline()


def serve() -> None:
    """Fork a process for each request; answer with its number, and once it is over with how."""
    import matplotlib.pyplot  # noqa: F401
    import optax  # noqa: F401
    import orbax.checkpoint  # noqa: F401

    import diffsim._experiment
    import diffsim._store
    import diffsim.md
    import diffsim.run  # noqa: F401

    for line in sys.stdin:
        request = json.loads(line)
        number = os.fork()
        if number == 0:
            _serve_one(request)
        _say(number)
        _, status = os.waitpid(number, 0)
        _say(os.waitstatus_to_exitcode(status))


def _say(number: int) -> None:
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


def _serve_one(request: dict[str, Any]) -> None:
    from diffsim.run import main

    code = 1
    with open(request["log"], "a", encoding="utf-8") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        try:
            code = main(request["words"])
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


# What a run left, without what differs from time to time


def outcome(folder: Path) -> dict[str, Any]:
    """All numbers of a finished run: result, metrics and every dataset of its HDF5 files."""
    result = json.loads((folder / "result.json").read_text())
    for key in ("provenance", "timing", "peak_bytes"):
        del result[key]
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    found = {"result": _steady(result), "metrics": [_steady(json.loads(line)) for line in lines]}
    for path in sorted(folder.glob("*.h5")):
        found[path.name] = datasets(path)
    return found


def _steady(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _steady(v) for k, v in value.items() if k not in VARIES}
    return [_steady(v) for v in value] if isinstance(value, list) else value


def datasets(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Every dataset of a file to the bit."""
    found: dict[str, tuple[str, tuple[int, ...], bytes]] = {}

    def look(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            array = np.asarray(item[()])
            found[name] = str(array.dtype), array.shape, array.tobytes()

    with h5py.File(path, "r") as file:
        file.visititems(look)
    return found


def moments(seed: int, count: int, end: float) -> Iterator[float]:
    """Random moments, spread over a run of `end` seconds."""
    random = np.random.default_rng(seed)
    for i in random.permutation(count):
        yield end * (i + random.uniform()) / count


if __name__ == "__main__":
    serve()

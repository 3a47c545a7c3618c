"""The command line: compose, build, run, report. `python -m diffsim.run --help` says how.

Exit codes: 0 done; 1 a fault of the program, with its traceback; 2 a bad configuration, in one
line, nothing written; 3 a numerical failure; 4 a law broken under `action: stop`; 130 and 143
interrupted, with a restart saved.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from . import config
from ._errors import ConfigError, nearest
from ._outcome import FAILED, complain, conduct

if TYPE_CHECKING:
    from ._store import RunDirectory

USAGE = """\
usage: python -m diffsim.run experiment=NAME [KEY=VALUE ...]

  python -m diffsim.run experiment=lj_fit                            run an experiment
  python -m diffsim.run experiment=lj_fit adjoint=direct seed=1      with other settings
  python -m diffsim.run -m experiment=lj_fit seed=0,1,2              sweep: a run for each value;
                        hydra/launcher=joblib runs them side by side
  python -m diffsim.run resume=outputs/lj_fit/2026-11-22_10-00-00    continue in that directory

options:
  -m, --multirun     sweep over the values that are separated by commas
  --config-dir DIR   a folder of your own, in which experiment/NAME.yaml is one more experiment
  --list             the experiments, one line each
  --version          the version
  -h, --help         this page
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: that of the process) and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(words)
    except ConfigError as error:
        complain(error)
        return 2
    except KeyboardInterrupt:
        return 130


def task(job: Any) -> float:
    """One job of a sweep: its objective, a finite number even if it failed. Its exit code is in its
    `status.json`, because an exit here would end the jobs after it."""
    from ._store import RunDirectory

    composed = config.received(job)
    try:
        with _precision(composed.config["precision"]):
            experiment = config.build(composed.config)
            objective, code = conduct(experiment, _create(composed.run_dir, composed.config))
    except ConfigError as error:
        complain(error)
        RunDirectory(composed.run_dir).status("failed", 2, message=str(error))
        return FAILED
    if code > 128:
        raise KeyboardInterrupt  # what stops a run stops the sweep
    return objective


def _dispatch(words: list[str]) -> int:
    options = _options(words)
    if options.help:
        _say(_help(options.config_dir))
    elif options.version:
        _say(f"diffsim {metadata.version('diffsim')}")
    elif options.list:
        listed = config.experiments(options.config_dir)
        width = max(map(len, listed), default=0)
        _say("\n".join(f"{name:<{width}}  {question}" for name, question in listed.items()))
    elif any(word.startswith("resume=") for word in options.words):
        return _resume(options)
    elif options.multirun:
        return _sweep(options)
    else:
        return _single(options)
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(message, key="command line")


def _options(words: list[str]) -> argparse.Namespace:
    parser = _Parser(add_help=False, allow_abbrev=False)
    for names in (["--help", "-h"], ["--version"], ["--list"], ["--multirun", "-m"]):
        parser.add_argument(*names, action="store_true")
    parser.add_argument("--config-dir")
    options, rest = parser.parse_known_args(words)
    known = ("--help", "--version", "--list", "--multirun", "--config-dir")
    for word in rest:
        if word.startswith("-"):
            close = nearest(word, known)
            raise ConfigError("unknown option", key=word, allowed=known, suggestion=close)
    options.words = rest
    return options


def _help(config_dir: str | None) -> str:
    lines = [USAGE, "groups, chosen with GROUP=CHOICE:"]
    lines += [f"  {name:<12} {', '.join(c)}" for name, c in config.groups(config_dir).items()]
    lines += ["", "experiments:"]
    lines += [f"  {name:<20} {q}" for name, q in config.experiments(config_dir).items()]
    return "\n".join(lines)


def _single(options: argparse.Namespace) -> int:
    composed = config.prepare(options.words, options.config_dir)
    with _precision(composed.config["precision"]):
        experiment = config.build(composed.config)
        place = composed.run_dir if composed.chosen else _unused(composed.run_dir)
        return conduct(experiment, _create(place, composed.config))[1]


def _resume(options: argparse.Namespace) -> int:
    from ._store import RunDirectory

    if len(options.words) > 1 or options.multirun or options.config_dir:
        cause = "goes on with the configuration of the run, and takes nothing else"
        raise ConfigError(cause, key="resume")
    directory = RunDirectory.open(options.words[0].partition("=")[2])
    settings = config.load_saved(directory.config_text())
    if directory.read_status().get("state") == "done":
        _say(f"{directory.path} is finished")
        return 0
    with _precision(settings["precision"]):
        experiment = config.build(settings)
        return conduct(experiment, directory, resume=_rewound(directory))[1]


def _rewound(directory: RunDirectory) -> bool:
    """Whether there is a restart to go on from. What was written after it, or without one, goes."""
    from ._store import Restarts

    with Restarts(directory.restart) as restarts:
        latest = restarts.latest()
    directory.truncate_metrics(-1 if latest is None else latest)
    if latest is None:
        directory.trajectory.unlink(missing_ok=True)
    return latest is not None


def _sweep(options: argparse.Namespace) -> int:
    import hydra

    sweep = config.prepare_sweep(options.words, options.config_dir)
    for job in sweep.jobs:
        with _precision(job.config["precision"]):
            config.build(job.config)
    place = sweep.directory if sweep.chosen else _unused(sweep.directory)
    if place.exists() and (not place.is_dir() or (sweep.chosen and any(place.iterdir()))):
        raise ConfigError(f"{str(place)!r} is not empty", key="hydra.sweep.dir")
    words = ["diffsim.run", "--multirun", *sweep.overrides]
    words.append(f"++hydra.sweep.dir={config.quoted(str(place))}")
    if options.config_dir:
        words += ["--config-dir", options.config_dir]
    run = hydra.main(str(config.conf_dir()), "config", version_base=config.VERSION_BASE)(task)
    before, sys.argv = sys.argv, words
    code = 0
    try:
        run()
    except KeyboardInterrupt:
        code = 130
    except SystemExit as stopped:
        code = 0 if stopped.code in (None, 0) else 1
    finally:
        sys.argv = before
        (place / "multirun.yaml").unlink(missing_ok=True)  # Hydra's: nothing in it is masked
    codes = _codes(place)
    return max(code, *codes, 0 if len(codes) >= len(sweep.jobs) else 1)


def _codes(place: Path) -> list[int]:
    """The exit codes of the jobs of a sweep, each said with its folder."""
    from ._store import RunDirectory

    codes = []
    for folder in sorted(path.parent for path in place.rglob("status.json")):
        status = RunDirectory(folder).read_status()
        _say(f"{folder}: {status.get('state')}")
        codes.append(status["code"] if isinstance(status.get("code"), int) else 1)
    return codes


def _create(place: Path, settings: dict[str, Any]) -> RunDirectory:
    from ._store import RunDirectory

    return RunDirectory.create(place, config.to_yaml(settings))


def _unused(path: Path) -> Path:
    """A new directory at `path`, or at path_1 and so on, where two runs start in one second."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for place in (path, *(path.with_name(f"{path.name}_{n}") for n in range(1, 1000))):
            with contextlib.suppress(FileExistsError):
                place.mkdir()
                return place
    except OSError as error:
        cause = f"{str(path)!r} cannot be made: {error.strerror}"
        raise ConfigError(cause, key="hydra.run.dir") from error
    raise ConfigError(f"{str(path)!r} and its neighbours are taken", key="hydra.run.dir")


@contextlib.contextmanager
def _precision(precision: str) -> Iterator[None]:
    """float64 or float32 for what is built and run here; jobs of a sweep share the process."""
    import jax

    before = jax.config.read("jax_enable_x64")
    jax.config.update("jax_enable_x64", precision == "float64")
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", before)


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    # Launchers that start other processes look the task up by its module's name.
    from diffsim.run import main as imported

    sys.exit(imported())

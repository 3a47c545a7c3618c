"""The command line: compose, build, run, report. `python -m diffsim.run --help` says how.

Exit codes: 0 done; 1 a fault of the program, with its traceback; 2 a bad configuration, in one
line, nothing written; 3 a numerical failure; 4 a law broken under `action: stop`; 5 the disk is
full, the last restart intact; 6 another process of the run was lost; 129, 130 and 143 interrupted,
with a restart saved; 141 an answer (`--help`, `--list`) that nobody read to its end.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from . import config
from ._errors import ConfigError, nearest
from ._outcome import FAILED, complain, conduct, full, report
from ._programs import rare_collections, release_programs, wide_vectors
from ._scale import Member, detected, joined, launch
from ._streams import GONE, settle, tell

if TYPE_CHECKING:
    from ._store import RunDirectory

CACHE = (
    *("jax_enable_compilation_cache", "jax_compilation_cache_dir"),
    "jax_persistent_cache_min_compile_time_secs",
)
CHECKED = 100  # jobs of a sweep that are built before the first starts

USAGE = """\
usage: python -m diffsim.run experiment=NAME [KEY=VALUE ...]

  python -m diffsim.run experiment=lj_fit                            run an experiment
  python -m diffsim.run experiment=lj_fit adjoint=direct seed=1      with other settings
  python -m diffsim.run -m experiment=lj_fit seed=0,1,2              sweep: a run for each value;
                        hydra/launcher=joblib runs them side by side, submitit_slurm on a cluster
  python -m diffsim.run -m experiment=lj_fit search.trials=20 'search.space={fit.explore: [0.1, 2]}'
                        search: 20 runs with the settings that Optuna proposes
  python -m diffsim.run resume=outputs/lj_fit/2026-11-22_10-00-00    continue in that directory,
                        that of a run or of a sweep
  python -m diffsim.run verify=outputs/lj_fit/2026-11-22_10-00-00    run it again, compare:
                        exit code 0 if the numbers are the same, 3 if not
  python -m diffsim.run experiment=lj_fit placement=batch            conditions over all devices

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
    # A kept program that is read back prints kilobytes of a false alarm on some processors: what
    # XLA calls features (`+prefer-no-gather`) no processor reports. Faults are raised, not printed.
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":  # of jax, inherited
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    wide_vectors()
    try:
        with rare_collections():
            return _dispatch(words)
    except ConfigError as error:
        complain(error)
        return 2
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        return _no_room(error, words)
    finally:
        settle()


def _no_room(error: OSError, words: Sequence[str]) -> int:
    """The exit code where a disk is full before a run can say so itself."""
    from ._store import is_full

    if not is_full(error):
        raise error
    place = next((w.partition("=")[2] for w in words if w.startswith("resume=")), ".")
    complain(full(Path(place)))
    return 5


def task(_: Any) -> float:
    """One job of a sweep: its objective, a finite number even if it failed. Its exit code is in its
    `status.json`, because an exit here would end the jobs after it."""
    from . import _sweep

    job = _sweep.assigned()
    _sweep.take_one(job.record)
    with rare_collections(), _sweep.claimed(job) as found:
        if found is None:
            return FAILED
        objective, code = _job(*found, poll=_sweep.poll(job.record))
    if code > 128:
        _sweep.stop(job.record, code - 128)  # what stops a run stops the sweep
    release_programs()
    return objective


def _dispatch(words: list[str]) -> int:
    options = _options(words)
    if options.help:
        return _say(_help(options.config_dir))
    if options.version:
        return _say(f"diffsim {metadata.version('diffsim')}")
    if options.list:
        listed = config.experiments(options.config_dir)
        width = max(map(len, listed), default=0)
        return _say("\n".join(f"{name:<{width}}  {question}" for name, question in listed.items()))
    if any(word.startswith("resume=") for word in options.words):
        return _resume(options)
    if any(word.startswith("verify=") for word in options.words):
        return _verify(options)
    return _sweep(options) if options.multirun else _single(options)


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
    if composed.search:
        from ._sweep.space import settings

        settings(composed.search)  # its keys are wrong or right without -m too
    count = composed.config["scale"]["processes"]
    if count > 1:
        _check_placement(composed.config, count)
    if count > 1 and detected() is None:
        folder = ["--config-dir", options.config_dir] if options.config_dir else []
        return launch([*options.words, *folder], count)
    with (
        joined() as member,
        contextlib.ExitStack() as stack,
        _precision(composed.config["precision"]),
        _programs(composed.config),
    ):
        experiment = config.build(composed.config)

        def begun() -> RunDirectory:
            if not member.leads:
                place = member.folder()
            else:
                place = composed.run_dir if composed.chosen else _unused(composed.run_dir)
            return _entered(stack, _create(place, composed.config), "hydra.run.dir")

        return conduct(experiment, member.together(begun))[1]


def _check_placement(settings: dict[str, Any], count: int) -> None:
    """Refuse, before any process starts, what would have each compute the same."""
    if settings["placement"]["_target_"] == "diffsim.SingleDevice":
        cause = f"is one device, which {count} processes cannot share"
        raise ConfigError(cause, key="placement", value="single", allowed="batch, pmap")


def _entered(stack: contextlib.ExitStack, directory: RunDirectory, key: str) -> RunDirectory:
    """A run directory that is this process's alone until `stack` is left."""
    from ._store import alone

    stack.enter_context(alone(directory.path, key))
    return directory


def _resume(options: argparse.Namespace) -> int:
    from . import _sweep as sweeps
    from ._store import RunDirectory

    place = Path(next(w for w in options.words if w.startswith("resume=")).partition("=")[2])
    if sweeps.is_sweep(place):
        return _resume_sweep(place, [w for w in options.words if not w.startswith("resume=")])
    if len(options.words) > 1 or options.multirun or options.config_dir:
        cause = "goes on with the configuration of the run, and takes nothing else"
        raise ConfigError(cause, key="resume")
    with joined() as member, contextlib.ExitStack() as stack:
        directory = member.together(lambda: RunDirectory.open(place))
        return _gone_on(directory, member, stack)


def _gone_on(directory: RunDirectory, member: Member, stack: contextlib.ExitStack) -> int:
    """A run to its end; where several processes go on with it, each but the first in a copy."""
    from ._resume import complete, finished, rewound, settled

    place = directory.path

    def entered() -> None:
        if member.leads and not complete(directory):
            _entered(stack, directory, "resume")

    member.together(entered)
    if member.agreed(finished(directory)):
        late = member.leads and not directory.report.is_file()  # a kill came before it
        code = report(directory, 0) if late else 0
        _say(f"{place} is finished")
        return code
    own = member.together(
        lambda: directory if member.leads else replace(directory, path=member.folder(place))
    )
    settings = member.together(lambda: settled(own))
    with _precision(settings["precision"]), _programs(settings):
        experiment = config.build(settings)
        return conduct(experiment, own, resume=rewound(own))[1]


def _verify(options: argparse.Namespace) -> int:
    from ._verify import opened, verify

    if len(options.words) > 1 or options.multirun or options.config_dir:
        raise ConfigError("takes the directory of a run, and nothing else", key="verify")
    directory, settings = opened(options.words[0].partition("=")[2])
    with _precision(settings["precision"]), _programs(settings):
        return verify(directory, settings, config.build(settings))


def _sweep(options: argparse.Namespace) -> int:
    from . import _sweep as sweeps

    sweep = config.prepare_sweep(options.words, options.config_dir)
    search = sweeps.settings(sweep.search)
    _alone(sweep.jobs)
    jobs = sweep.jobs[:CHECKED]
    if search is not None:
        sweeps.require()
        if len(sweep.jobs) > 1:
            cause = "a search varies what is in search.space; everything else has one value"
            raise ConfigError(cause, key="command line", value=sweep.jobs[0].overrides[0])
        jobs += [sweep.job(words, 0) for words in sweeps.ends(search.space)]
    with sweeps.shared_out(sweep.launcher):
        for job in jobs:
            with _precision(job.config["precision"]):
                config.build(job.config)
        place = sweep.directory if sweep.chosen else _unused(sweep.directory)
        return sweeps.carry_out(sweeps.begin(sweep, place), task, sweep)


def _resume_sweep(place: Path, words: Sequence[str]) -> int:
    from . import _sweep as sweeps

    record = sweeps.Record.load(place)
    launcher = sweeps.resumed_launcher(record, words)
    with sweeps.shared_out(launcher):
        return sweeps.carry_out(replace(record, launcher=launcher), task)


def _job(directory: RunDirectory, old: bool, poll: Callable[[], None]) -> tuple[float, int]:
    """A job in its directory, from its restart where it is an old one: the objective and the exit
    code."""
    from ._resume import finished, rewound, settled

    try:
        if old and finished(directory):  # meanwhile, by itself
            return directory.read_status().get("objective", FAILED), 0
        settings = settled(directory) if old else config.load_saved(directory.config_text())
        with _precision(settings["precision"]), _programs(settings):
            experiment = config.build(settings)
            return conduct(experiment, directory, resume=old and rewound(directory), poll=poll)
    except ConfigError as error:
        complain(error)
        if not old:  # what cannot go on today may tomorrow
            directory.status("failed", 2, message=str(error))
        return FAILED, 2
    except Exception as error:
        tell(traceback.format_exc(), sys.stderr)
        directory.status("failed", 1, message=f"{type(error).__name__}: {error}")
        return FAILED, 1


def _alone(jobs: Sequence[config.Job]) -> None:
    """Refuse several processes to the jobs of a sweep, which its launcher starts."""
    most = max(job.config["scale"]["processes"] for job in jobs)
    if most > 1 or detected() is not None:
        cause = "a sweep runs its jobs in one process each; several are for single runs"
        raise ConfigError(cause, key="scale.processes", value=most)


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


@contextlib.contextmanager
def _programs(settings: dict[str, Any]) -> Iterator[None]:
    """Compiled programs are kept from run to run, unless the configuration says no or JAX's own
    variables say where. A folder that cannot be written only costs that."""
    import jax

    from ._store import programs_folder

    before = {key: getattr(jax.config, key) for key in CACHE}
    after = before | {CACHE[0]: before[CACHE[0]] and settings.get("compilation_cache", True)}
    if after[CACHE[0]] and before[CACHE[1]] is None and (folder := programs_folder()) is not None:
        after |= {CACHE[1]: str(folder), CACHE[2]: 0.2}  # seconds of compilation that are worth it
    try:
        _configure(after)
        yield
    finally:
        _configure(before)


def _configure(values: dict[str, Any]) -> None:
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    for key, value in values.items():
        jax.config.update(key, value)
    compilation_cache.reset_cache()  # or what was compiled before would decide


def _say(text: str) -> int:
    """An answer to a question: the exit code."""
    return 0 if tell(text + "\n", sys.stdout) else GONE


if __name__ == "__main__":
    # Launchers that start other processes look the task up by its module's name.
    from diffsim.run import main as imported

    sys.exit(imported())

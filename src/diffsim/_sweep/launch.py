"""Runs jobs by one of Hydra's launchers: in this process, side by side, or on a cluster."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .. import config
from .._errors import ConfigError
from .._hydra_errors import hydra_errors
from .._outcome import complain
from .._signals import Signals
from . import jobs as of
from .record import Job, Record

# Settings that run what they say, or write where they say: of a folder that came from elsewhere
# only the command line may say them.
SAID_AGAIN = ("setup", "python", "srun_args", "additional_parameters", "temp_folder")
_OWN = "submitit_folder"
SUBMITTED = ".submitit"  # what a cluster's launcher keeps for itself, links too


class Assigned(NamedTuple):
    """A job of a sweep in the process that runs it."""

    record: Record
    job: Job

    @property
    def path(self) -> Path:
        return self.record.path / self.job.folder


def launch(record: Record, jobs: Sequence[Job], task: Callable[[Any], float]) -> bool:
    """Run `jobs`, each by a call of `task`. False where the launcher itself failed: what it did not
    run is for a resume."""
    if not jobs:
        return True
    with Signals(lambda signum: of.stop(record, signum)):
        try:
            _launched(record, jobs, task)
        except ConfigError:
            raise
        except Exception as error:  # whatever a launcher or a cluster may raise
            line = next(iter(str(error).strip().splitlines()), "")
            complain(f"the launcher failed: {type(error).__name__}: {line[:300]}")
            return False
    return True


def assigned() -> Assigned:
    """The job that this process was started for."""
    from hydra.core.hydra_config import HydraConfig

    sweep = HydraConfig.get().sweep
    record = Record.load(Path(str(sweep.dir)))
    folder = str(sweep.subdir)
    return Assigned(record, next(job for job in record.jobs if job.folder == folder))


def resumed_launcher(record: Record, words: Sequence[str]) -> Mapping[str, Any]:
    """The launcher that a resumed sweep goes on with: that of the words, else the one it had."""
    for word in words:
        key = word.lstrip("+").partition("=")[0]
        if key != "hydra/launcher" and not key.startswith("hydra.launcher."):
            cause = "a sweep goes on with its own configuration, and takes hydra/launcher alone"
            raise ConfigError(cause, key=key)
    if words:
        return config.launcher(words)
    config.check_launcher(record.launcher)
    for key in SAID_AGAIN:
        if record.launcher.get(key) not in (None, [], {}, "", False):
            cause = "has to be said again, with hydra/launcher=NAME"
            raise ConfigError(cause, key=f"hydra.launcher.{key}", value=record.launcher[key])
    return record.launcher


def parallel(launcher: Mapping[str, Any]) -> int:
    """How many jobs a launcher runs side by side, where it says so; else 1."""
    for key in ("n_jobs", "array_parallelism"):
        count = launcher.get(key)
        if isinstance(count, int) and count > 0:
            return min(count, 256)
    return 1


def _launched(record: Record, jobs: Sequence[Job], task: Callable[[Any], float]) -> None:
    import hydra
    from hydra._internal.callbacks import Callbacks
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.plugins import Plugins
    from hydra.types import HydraContext, RunMode
    from omegaconf import OmegaConf, open_dict

    place = str(record.path.absolute())
    node = {
        **record.launcher,
        **({_OWN: f"{place}/{SUBMITTED}/%j"} if _OWN in record.launcher else {}),
    }
    words = [f"hydra.sweep.dir={config.quoted(place)}", *config.QUIET]
    version = config.VERSION_BASE
    with hydra.initialize_config_dir(str(config.conf_dir()), version_base=version):
        with hydra_errors():
            started = GlobalHydra.instance().hydra
            assert started is not None
            master = started.compose_config(None, words, RunMode.MULTIRUN)
            with open_dict(master):
                master.hydra.launcher = OmegaConf.create(node)
            context = HydraContext(started.config_loader, Callbacks(master))
            launcher = Plugins.instance().instantiate_launcher(context, task, master)
        folders = [[f"hydra.sweep.subdir={config.quoted(job.folder)}"] for job in jobs]
        for returned in launcher.launch(folders, initial_job_idx=0):
            _ = returned.return_value  # raises what the task raised

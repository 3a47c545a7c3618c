"""Who runs together, read from the environment; loads no jax.

In this order:

- by hand: `DIFFSIM_COORDINATOR` (host:port of process 0), `DIFFSIM_PROCESSES` (their number),
  `DIFFSIM_PROCESS` (this one's, from 0);
- Slurm, under `srun` with more than one task: SLURM_STEP_NUM_TASKS, SLURM_PROCID and the first
  host of SLURM_STEP_NODELIST. The shell of `sbatch` or `salloc` is one process;
- MPI (Open MPI's OMPI_COMM_WORLD_*, or PMI_* of MPICH and Intel): the ranks of one host find each
  other; over several hosts `DIFFSIM_COORDINATOR` names that of rank 0.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from .._errors import ConfigError

COORDINATOR, PROCESSES, PROCESS = "DIFFSIM_COORDINATOR", "DIFFSIM_PROCESSES", "DIFFSIM_PROCESS"
PORTS = range(61440, 65536)  # where a job's number, not a person, chooses
MPI = (  # rank, size, ranks of this host, what tells jobs apart
    (
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
        "PMIX_NAMESPACE",
    ),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALNRANKS", "PMI_ID_OF_JOB"),
)


@dataclass(frozen=True)
class Group:
    """This process among `count` that run together; `coordinator`: host:port of process 0."""

    count: int
    index: int
    coordinator: str
    started_by: str


def detected(environ: Mapping[str, str] | None = None) -> Group | None:
    """The group that this process was started in, None where it is alone."""
    environ = os.environ if environ is None else environ
    found = _by_hand(environ) or _slurm(environ) or _mpi(environ)
    return found if found is not None and found.count > 1 else None


def _by_hand(environ: Mapping[str, str]) -> Group | None:
    if PROCESSES not in environ and PROCESS not in environ:
        return None
    for name in (PROCESSES, PROCESS, COORDINATOR):
        if name not in environ:
            raise ConfigError(
                f"goes with {PROCESSES}, {PROCESS} and {COORDINATOR}, of which it is missing",
                key=name,
            )
    count, index = _number(environ, PROCESSES, 1), _number(environ, PROCESS, 0)
    if index >= count:
        raise ConfigError("no such process", key=PROCESS, value=index, allowed=f"0 to {count - 1}")
    return Group(count, index, _address(environ[COORDINATOR]), "hand")


def _slurm(environ: Mapping[str, str]) -> Group | None:
    if "SLURM_STEP_NUM_TASKS" not in environ or "SLURM_PROCID" not in environ:
        return None
    count = _number(environ, "SLURM_STEP_NUM_TASKS", 1)
    if count == 1:
        return None
    hosts = environ.get("SLURM_STEP_NODELIST", "localhost")
    job = f"{environ.get('SLURM_JOB_ID', '')}.{environ.get('SLURM_STEP_ID', '')}"
    address = environ.get(COORDINATOR) or f"{first_host(hosts)}:{_port(job)}"
    return Group(count, _number(environ, "SLURM_PROCID", 0), _address(address), "Slurm")


def _mpi(environ: Mapping[str, str]) -> Group | None:
    for rank, size, local, job in MPI:
        if rank not in environ or size not in environ:
            continue
        count, index = _number(environ, size, 1), _number(environ, rank, 0)
        if count == 1:
            return None
        address = environ.get(COORDINATOR)
        if address is None:
            if environ.get(local) != str(count):
                raise ConfigError(
                    "must name the host and a free port of rank 0, as MPI's ranks are on several "
                    "hosts",
                    key=COORDINATOR,
                    allowed="host:port",
                )
            address = f"127.0.0.1:{_port(environ.get(job) or str(os.getppid()))}"
        return Group(count, index, _address(address), "MPI")
    return None


def first_host(hosts: str) -> str:
    """The first of Slurm's list: `node[003-005,9],other` begins with node003."""
    found = re.match(r"([^,\[]+)(?:\[(\w+))?", hosts)
    return "".join(part or "" for part in found.groups()) if found else hosts


def _port(job: str) -> int:
    """The same port for all processes of a job, another for another job."""
    return PORTS[zlib.crc32(job.encode()) % len(PORTS)]


def _address(text: str) -> str:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError("is no address", key=COORDINATOR, value=text, allowed="host:port")
    return text


def _number(environ: Mapping[str, str], name: str, least: int) -> int:
    text = environ[name]
    if not text.isdecimal() or int(text) < least:
        cause = f"must be a whole number of at least {least}"
        raise ConfigError(cause, key=name, value=text)
    return int(text)

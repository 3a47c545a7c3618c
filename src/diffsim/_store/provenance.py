"""Where a result comes from: versions, machine, commit, data, times; no secrets, no people."""

from __future__ import annotations

import errno
import hashlib
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

from .._files import unreadable
from .._secrets import scrub

_PACKAGES = (
    *("diffsim", "jax", "jaxlib", "jax-md", "jax-cfd", "diffrax", "equinox", "optimistix", "optax"),
    *("lineax", "numpyro", "numpy", "scipy", "h5py", "orbax-checkpoint", "hydra-core", "pint"),
)
_MASK = "***"
_SECRET_WORDS = {
    "token",
    "password",
    "passwd",
    "passphrase",
    "secret",
    "secrets",
    "credential",
    "credentials",
    "apikey",
}
_SECRET_PAIRS = {
    ("api", "key"),
    ("access", "key"),
    ("private", "key"),
    ("auth", "key"),
    ("secret", "key"),
}
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_URL_LOGIN = re.compile(r"(?<=://)[^/@\s]+(?=@)")


def provenance(
    command: Sequence[str] | str | None,
    seed: int | None,
    data_files: Iterable[str | os.PathLike[str]] = (),
    started: datetime | None = None,
) -> dict[str, Any]:
    """What is needed to repeat a run. It never fails: what cannot be found out is None."""
    return {
        "command": None if command is None else _clean_command(command),
        "seed": seed,
        "versions": _versions(),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": _processor(),
        "cores": _cores(),
        **_devices(),
        **_git(),
        "started": None if started is None else started.isoformat(timespec="seconds"),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "data": _data(data_files),
    }


def identity(config_text: str, data_files: Iterable[str | os.PathLike[str]] = ()) -> dict[str, Any]:
    """What a run has to have in common with its restarts."""
    git = _git()
    return {
        "config": config_text,
        "config_sha256": hashlib.sha256(config_text.encode()).hexdigest(),
        "data": _data(data_files),
        "versions": _versions(),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        **{key: _devices()[key] for key in ("device", "devices")},
        **git,
    }


def file_sha256(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    if (cause := unreadable(path)) is not None:
        raise OSError(errno.EINVAL, cause, os.fspath(path))
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def mask_secrets(config: Any) -> Any:
    """A copy of a configuration (dicts, lists, values) with secret values as `***`.

    Keys: token, password, secret, credentials, api_key and their like, as words of the key
    (`max_steps` and `author` are none); logins in URLs are masked too. The value of a secret
    variable of the environment becomes `${oc.env:NAME}` wherever it stands.
    """
    if isinstance(config, Mapping):
        return {key: _mask(str(key), value) for key, value in config.items()}
    if isinstance(config, (list, tuple)):
        return [mask_secrets(item) for item in config]
    if isinstance(config, str):
        clean = scrub(config)
        return clean if clean != config else _URL_LOGIN.sub(_MASK, config)
    return config


def _mask(key: str, value: Any) -> Any:
    clean = mask_secrets(value)
    named = isinstance(value, str) and clean != value
    return _MASK if _is_secret(key) and value not in (None, "") and not named else clean


def peak_bytes() -> int | None:
    """The most memory in use so far [bytes]: of the first device, or of the process on CPU."""
    import jax

    try:
        stats = jax.local_devices()[0].memory_stats()
    except (RuntimeError, NotImplementedError):  # JAX's plugins of some devices do not tell
        stats = None
    if stats and "peak_bytes_in_use" in stats:
        return int(stats["peak_bytes_in_use"])
    try:
        import resource
    except ImportError:
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _is_secret(key: str) -> bool:
    words = [word.lower() for word in _WORD.findall(key)]
    return bool(_SECRET_WORDS & set(words)) or any(
        pair in _SECRET_PAIRS for pair in pairwise(words)
    )


def _clean_command(command: Sequence[str] | str) -> str:
    words = command.split(" ") if isinstance(command, str) else list(command)
    home = os.path.expanduser("~")
    clean = []
    for word in words:
        key, equals, _ = word.partition("=")
        word = f"{key}={_MASK}" if equals and _is_secret(key) else _URL_LOGIN.sub(_MASK, word)
        clean.append(word.replace(home, "~") if len(home) > 1 else word)
    return scrub(" ".join(clean))


def _versions() -> dict[str, str]:
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _processor() -> str | None:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or None


def _cores() -> int | None:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count()


def _devices() -> dict[str, Any]:
    try:
        import jax

        devices = jax.devices()
        x64 = bool(jax.config.read("jax_enable_x64"))
    except (ImportError, RuntimeError):
        return {"device": None, "devices": None, "float64": None}
    platform_name, kind = devices[0].platform, devices[0].device_kind
    return {
        "device": platform_name if kind == platform_name else f"{kind} ({platform_name})",
        "devices": len(devices),
        "float64": x64,
    }


def _git() -> dict[str, Any]:
    """Commit of the checkout that this code is a tracked part of; an installed copy has none."""
    here = Path(__file__).resolve()
    commit = dirty = None
    if _ask_git(here.parent, "ls-files", "--error-unmatch", here.name) is not None:
        commit = _ask_git(here.parent, "rev-parse", "HEAD")
        changed = _ask_git(here.parent, "status", "--porcelain", "--untracked-files=no")
        dirty = None if commit is None or changed is None else bool(changed)
    return {"git_commit": commit, "git_dirty": dirty}


def _ask_git(folder: Path, *question: str) -> str | None:
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    try:
        answer = subprocess.run(
            ["git", "-C", str(folder), *question],
            capture_output=True,
            text=True,
            timeout=10,
            env=environment,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def _data(files: Iterable[str | os.PathLike[str]]) -> dict[str, str | None]:
    hashes: dict[str, str | None] = {}
    for file in map(Path, files):
        name = file.name if file.name not in hashes else f"{file.parent.name}/{file.name}"
        try:
            hashes[name] = file_sha256(file)
        except OSError:
            hashes[name] = None
    return hashes

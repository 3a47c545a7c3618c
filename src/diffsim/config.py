"""Compose, validate, build: from the words of a command line to the objects of an experiment.

The only module that sees Hydra's configurations; what it hands on are plain dictionaries. Composing
and validating load no jax, and what is wrong is a `ConfigError` before anything is written.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ._build import KEYS as KEYS
from ._build import build as build
from ._build import validate as validate
from ._build import walk
from ._errors import ConfigError
from ._hydra_errors import hydra_errors

_PACKAGE = Path(__file__).resolve().parent
_ROOTS = (_PACKAGE, _PACKAGE.parent.parent)  # the installed package, else the checkout
OUTPUTS = "outputs"
VERSION_BASE = "1.3"
HIDDEN = ("experiment", "variant")  # groups that are not chosen like the others
FILES = ("file", "expected", "data_files")  # keys whose values are files
CHECKED = 100  # jobs of a sweep that are looked at before the first starts
_NOT_HERE = {
    "variant": "size=NAME",
    "hydra.searchpath": "--config-dir",
    "hydra.mode": "-m",
    "hydra.output_subdir": None,
}


class Composed(NamedTuple):
    """A resolved configuration, and the directory that a run of it gets. `chosen`: the command line
    named the directory."""

    config: dict[str, Any]
    run_dir: Path
    chosen: bool


class Sweep(NamedTuple):
    """The jobs of a sweep, as far as they are known beforehand, the directory that holds theirs,
    and the words that make Hydra run them."""

    jobs: list[Composed]
    directory: Path
    chosen: bool
    overrides: list[str]


def conf_dir() -> Path:
    """The folder of the configurations that come with diffsim."""
    return _own_folder("conf")


def experiments(config_dir: str | Path | None = None) -> dict[str, str]:
    """The experiments by name, with the question that each answers."""
    from omegaconf import OmegaConf

    found = {}
    for folder in _sources(config_dir):
        for path in sorted(folder.glob("experiment/*.yaml")):
            with hydra_errors():
                described = OmegaConf.to_container(OmegaConf.load(path))
            question = described.get("question") if isinstance(described, dict) else None
            found[path.stem] = " ".join(str(question or "").split())
    return found


def groups(config_dir: str | Path | None = None) -> dict[str, list[str]]:
    """The groups of a configuration with the choices in each."""
    found: dict[str, list[str]] = {}
    for folder in _sources(config_dir):
        for path in sorted(folder.glob("*/*.yaml")):
            if path.parent.name not in HIDDEN:
                found.setdefault(path.parent.name, []).append(path.stem)
    return found


def compose(overrides: Sequence[str], config_dir: str | Path | None = None) -> dict[str, Any]:
    """The configuration of `experiment=NAME key=value ...`: resolved, and valid as far as can be
    told without building it. Files named relative to the working directory come out absolute.

    `config_dir`: a folder of the user's own, laid out as diffsim's `conf/`, that adds experiments
    and choices in other groups. Raises `ConfigError`.
    """
    return prepare(overrides, config_dir).config


def prepare(overrides: Sequence[str], config_dir: str | Path | None = None) -> Composed:
    """`compose`, with the directory of the run."""
    texts = _read(overrides, config_dir)
    for word in _parsed(texts):
        if word.is_sweep_override():
            raise ConfigError(
                "has several values: for a run with each give -m, for a list write [...]",
                key=word.key_or_group,
                value=word.input_line.partition("=")[2],
            )
    return _composed(texts, config_dir)


def prepare_sweep(overrides: Sequence[str], config_dir: str | Path | None = None) -> Sweep:
    """The jobs of a sweep, each composed and valid, and checked to stay in the sweep's folder."""
    texts = _read(overrides, config_dir)
    jobs = [_composed(job, config_dir, number) for number, job in enumerate(_product(texts))]
    first = jobs[0]
    return Sweep(jobs, first.run_dir, first.chosen, texts)


def received(job: Any) -> Composed:
    """The configuration and directory of a job that Hydra has started."""
    from hydra.core.hydra_config import HydraConfig

    hydra = HydraConfig.get()
    added = [Path(s.path) for s in hydra.runtime.config_sources if s.provider == "command-line"]
    _register(added[0] if added else None)
    return Composed(_plain(job), Path(hydra.runtime.output_dir), True)


def to_yaml(config: Mapping[str, Any]) -> str:
    """The text of `config.yaml`: as resolved, secrets masked."""
    from omegaconf import OmegaConf

    from ._store import mask_secrets

    return OmegaConf.to_yaml(OmegaConf.create(mask_secrets(config)))


def load_saved(text: str) -> dict[str, Any]:
    """The configuration in the `config.yaml` of a run."""
    from omegaconf import OmegaConf

    with hydra_errors():
        saved = OmegaConf.create(text)
    return _plain(saved)


def _own_folder(name: str) -> Path:
    return next((root / name for root in _ROOTS if (root / name).is_dir()), _ROOTS[0] / name)


def _sources(config_dir: str | Path | None) -> list[Path]:
    """Our folder of configurations, and the user's."""
    if config_dir is None:
        return [conf_dir()]
    folder = Path(config_dir)
    if not folder.is_dir():
        raise ConfigError("is no folder", key="--config-dir", value=str(config_dir))
    for path in sorted((*folder.glob("*.yaml"), *folder.glob("*/*.yaml"))):
        if (conf_dir() / path.relative_to(folder)).exists():
            cause = f"{str(path)!r} has the name of one of diffsim's own; rename it"
            raise ConfigError(cause, key="--config-dir")
    return [conf_dir(), folder]


def _read(overrides: Sequence[str], config_dir: str | Path | None) -> list[str]:
    """The words of the command line, checked one by one, as they go to Hydra."""
    known = groups(config_dir) | {"experiment": list(experiments(config_dir))}
    words = _parsed(overrides)
    texts = [_checked(word, known) for word in words]
    if not any(word.key_or_group == "experiment" for word in words):
        names = known["experiment"]
        raise ConfigError("choose one with experiment=NAME", key="experiment", allowed=names)
    return texts


def _parsed(overrides: Sequence[str]) -> list[Any]:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    for text in overrides:
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise ConfigError(f"{text!r} is not UTF-8", key="command line")
    with hydra_errors(tuple(KEYS)):
        return OverridesParser.create().parse_overrides(list(overrides))


def _checked(word: Any, known: Mapping[str, list[str]]) -> str:
    key, text = word.key_or_group, str(word.input_line)
    if key in _NOT_HERE:
        raise ConfigError("is not for the command line", key=key, suggestion=_NOT_HERE[key])
    if key in known or "/" in key:
        # Hydra reads group/choice.yaml wherever that leads.
        choice = text.partition("=")[2]
        if not re.fullmatch(r"[\w\s,-]*", choice) or choice in ("", "null"):
            names = known.get(key) or None
            raise ConfigError("a choice is a plain name", key=key, value=choice, allowed=names)
        return text
    # What the files leave out may be set: whether it exists is for what is built to say.
    return text if text.startswith(("+", "~")) or key.startswith("hydra.") else f"++{text}"


def _composed(
    texts: Sequence[str], config_dir: str | Path | None, number: int | None = None
) -> Composed:
    """One run; `number`: as this job of a sweep, whose folder is then in `run_dir`."""
    import hydra
    from hydra.core.hydra_config import HydraConfig

    sources = _sources(config_dir)
    added = [f"hydra.searchpath=[{quoted(f'file://{s.resolve()}')}]" for s in sources[1:]]
    _register(*sources[1:])
    visible = HydraConfig.instance()
    before = visible.cfg
    with hydra_errors(tuple(KEYS)):
        with hydra.initialize_config_dir(str(sources[0]), version_base=VERSION_BASE):
            composed = hydra.compose("config", [*texts, *added], return_hydra_config=True)
        if number is not None:
            composed.hydra.job.num, composed.hydra.job.id = number, str(number)
        visible.set_config(composed)  # for ${hydra:...}
        try:
            _check_choices(composed.hydra.runtime.choices, sources)
            config = _plain(composed)
            if number is None:
                return Composed(config, *_run_dir(composed.hydra.run.dir, texts, "hydra.run.dir"))
            _check_sweep(composed.hydra)
            return Composed(config, *_run_dir(composed.hydra.sweep.dir, texts, "hydra.sweep.dir"))
        finally:
            visible.cfg = before


def _plain(composed: Any) -> dict[str, Any]:
    """A composed configuration as plain values: resolved, files absolute, valid."""
    from omegaconf import OmegaConf

    with hydra_errors():
        copy = composed.copy()
        OmegaConf.set_struct(copy, False)
        copy.pop("hydra", None)
        config = OmegaConf.to_container(copy, resolve=True)
    if not isinstance(config, dict):
        raise ConfigError("is no mapping of keys to values", key="configuration")
    found: dict[str, Any] = _with_absolute_files(config)
    validate(found)
    named = [value for key, value in walk(found) if key.endswith(".file") and value is not None]
    found["data_files"] = list(dict.fromkeys((*found["data_files"], *map(str, named))))
    return found


def _with_absolute_files(node: Any, key: object = None) -> Any:
    """Files that are named relative to the working directory, absolute, so that the run can be
    resumed from another one."""
    if isinstance(node, dict):
        return {name: _with_absolute_files(value, name) for name, value in node.items()}
    if isinstance(node, list):
        return [_with_absolute_files(item, key) for item in node]
    named = key in FILES and isinstance(node, str) and "\0" not in node
    return str(Path(node).absolute()) if named and Path(node).is_file() else node


def _register(config_dir: Path | None = None) -> None:
    """`${experiment_folder:lj_fit}` is experiments/lj_fit: the user's, else the one of diffsim."""
    from omegaconf import OmegaConf

    def folder(name: str) -> str:
        roots = [_own_folder("experiments")]
        if config_dir is not None:
            roots = [config_dir / "experiments", config_dir.parent / "experiments", *roots]
        found = {path.name: path for root in reversed(roots) for path in root.glob("[!.]*/")}
        if name not in found:
            raise ConfigError(
                "there is no such experiment's folder",
                key="experiment_folder",
                value=name,
                allowed=sorted(found),
            )
        return str(found[name].resolve())

    OmegaConf.register_new_resolver("experiment_folder", folder, replace=True)


def _check_choices(choices: Mapping[str, Any], sources: Sequence[Path]) -> None:
    for group, choice in choices.items():
        if isinstance(choice, str) and not re.fullmatch(r"[\w-]+(/[\w-]+)*", choice):
            raise ConfigError("a choice is a plain name", key=str(group), value=choice)
    size, variant = choices.get("size"), choices.get("variant")
    if size != "full" and not any((s / f"variant/{variant}.yaml").is_file() for s in sources):
        raise ConfigError(f"{choices['experiment']} has no such size", key="size", value=size)


def _run_dir(text: Any, texts: Sequence[str], key: str) -> tuple[Path, bool]:
    """Where a run goes, and whether the command line said so; a file may not lead elsewhere."""
    path = Path(str(text))
    chosen = any(each.lstrip("+").startswith(f"{key}=") for each in texts)
    if not chosen and not _is_inside(path, Path(OUTPUTS)):
        cause = f"{str(path)!r} is not in {OUTPUTS}/; only the command line may say so"
        raise ConfigError(cause, key=key)
    return path, chosen


def _check_sweep(hydra: Any) -> None:
    """Hydra itself builds its launcher and loggers and makes the folders of the jobs: here, without
    an allow-list, only what is installed as its plugin, and only below the folder of the sweep."""
    from hydra.core.plugins import Plugins
    from hydra.plugins.launcher import Launcher
    from hydra.plugins.sweeper import Sweeper
    from omegaconf import OmegaConf

    folder, below = Path(str(hydra.sweep.dir)), str(hydra.sweep.subdir)
    if not _is_inside(folder / below, folder):
        cause = "must be below the folder of the sweep"
        raise ConfigError(cause, key="hydra.sweep.subdir", value=below)
    plugins = [p for kind in (Launcher, Sweeper) for p in Plugins.instance().discover(kind)]
    allowed = {f"{plugin.__module__}.{plugin.__qualname__}" for plugin in plugins}
    for key in ("launcher", "sweeper"):
        for name, value in walk(OmegaConf.to_container(hydra[key], resolve=True)):
            if name.rpartition(".")[2] == "_target_" and value not in allowed:
                raise ConfigError("is no plugin of Hydra's", key=f"hydra.{key}", value=value)
    for key in ("callbacks", "job_logging", "hydra_logging"):
        if set(hydra[key] or ()) - {"version", "root", "disable_existing_loggers"}:
            raise ConfigError("is not for a configuration to set", key=f"hydra.{key}")
    if hydra.job.env_set or hydra.job.chdir:
        raise ConfigError("is not for a configuration to set", key="hydra.job")


def _is_inside(path: Path, folder: Path) -> bool:
    inner, outer = path.resolve(), folder.resolve()
    return inner != outer and inner.is_relative_to(outer)


def _product(texts: Sequence[str]) -> Iterator[list[str]]:
    """The first `CHECKED` jobs of a sweep; Hydra composes the others before any of them runs."""
    with hydra_errors():
        choices = [_values(word) for word in _parsed(texts)]
        for job in itertools.islice(itertools.product(*choices), CHECKED):
            yield list(job)


def _values(word: Any) -> list[str]:
    if not word.is_sweep_override():
        return [word.input_line]
    key = word.get_key_element()
    if word.is_discrete_sweep():
        return [f"{key}={v}" for v in itertools.islice(word.sweep_string_iterator(), CHECKED)]
    # The start of an interval stands for the values that a sweeper will pick from it.
    return [f"{key}={word.value().start}"]


def quoted(text: str) -> str:
    """`text` as a quoted string of Hydra's grammar."""
    return "'" + text.replace("'", "\\'") + "'"

"""Compose, validate, build: from the words of a command line to the objects of an experiment.

The only module that sees Hydra's configurations; what it hands on are plain dictionaries. Composing
and validating load no jax, and what is wrong is a `ConfigError` before anything is written.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ._build import KEYS as KEYS
from ._build import build as build
from ._build import validate as validate
from ._build import walk
from ._errors import ConfigError
from ._files import NO_FILE, unreadable
from ._hydra_checks import SWEEPER_HINT, check_hydra, check_name, check_words, container, is_inside
from ._hydra_checks import check_launcher as check_launcher
from ._hydra_errors import hydra_errors

_PACKAGE = Path(__file__).resolve().parent
_ROOTS = (_PACKAGE, _PACKAGE.parent.parent)  # the installed package, else the checkout
OUTPUTS = "outputs"
VERSION_BASE = "1.3"
HIDDEN = ("experiment", "variant")  # groups that are not chosen like the others
FILES = ("file", "expected", "data_files")  # keys whose values are files
QUIET = ("hydra/job_logging=none", "hydra/hydra_logging=none", "hydra.output_subdir=null")
MOST_JOBS = 10_000  # of a sweep
_NOT_HERE = {
    "variant": "size=NAME",
    "hydra.searchpath": "--config-dir",
    "hydra.mode": "-m",
    "hydra.output_subdir": None,
    "hydra/sweeper": SWEEPER_HINT,
    "hydra.sweeper": SWEEPER_HINT,
}


class Composed(NamedTuple):
    """A resolved configuration, and the directory that a run of it gets. `chosen`: the command line
    named the directory. Of a job of a sweep, whose directory holds those of the jobs: the name of
    its `folder` there, and the settings of what launches and what searches."""

    config: dict[str, Any]
    run_dir: Path
    chosen: bool
    folder: str = ""
    launcher: Mapping[str, Any] = {}
    search: Mapping[str, Any] = {}


class Job(NamedTuple):
    """A job of a sweep: what distinguishes it, its configuration, its folder in the sweep's."""

    overrides: list[str]
    config: dict[str, Any]
    folder: str


class Sweep(NamedTuple):
    """The jobs of a sweep, the directory that holds theirs, and how they are run. Of a search,
    which adds jobs as it goes, the one job is where it starts from."""

    jobs: list[Job]
    directory: Path
    chosen: bool
    launcher: Mapping[str, Any]
    search: Mapping[str, Any]
    words: list[str]
    config_dir: str | None

    def job(self, overrides: Sequence[str], number: int) -> Job:
        """One more job, with `overrides` behind the words of the sweep."""
        known = _known(self.config_dir)
        texts = [*self.words, *(_checked(word, known) for word in _parsed(overrides))]
        composed = _composed(texts, self.config_dir, number)
        return Job(list(overrides), composed.config, composed.folder)


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
    composed = _composed(texts, config_dir)
    if composed.search.get("trials") is not None:
        raise ConfigError("a search has many runs: give -m", key="search.trials")
    return composed


def prepare_sweep(overrides: Sequence[str], config_dir: str | Path | None = None) -> Sweep:
    """The jobs of a sweep, each composed and valid, and checked to stay in the sweep's folder."""
    texts = _read(overrides, config_dir)
    jobs, first = [], None
    for number, (words, own) in enumerate(_product(texts, _known(config_dir))):
        composed = _composed(words, config_dir, number)
        first = first or composed
        jobs.append(Job([word.lstrip("+") for word in own], composed.config, composed.folder))
    assert first is not None
    _check_folders(jobs)
    place = None if config_dir is None else str(Path(config_dir).absolute())
    about = (first.run_dir, first.chosen, first.launcher, first.search)
    return Sweep(jobs, *about, texts, place)


def launcher(words: Sequence[str]) -> dict[str, Any]:
    """The settings of a launcher that the words choose: `hydra/launcher=joblib`."""
    import hydra

    texts = [_checked(word, {}) for word in _parsed(words)]
    with hydra_errors():
        with hydra.initialize_config_dir(str(conf_dir()), version_base=VERSION_BASE):
            composed = hydra.compose(None, [*texts, *QUIET], return_hydra_config=True)
        node = container(composed.hydra.launcher)
    check_launcher(node)
    return node


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
        if unreadable(path) == NO_FILE:
            raise ConfigError(f"{str(path)!r} {NO_FILE}", key="--config-dir")
        if (conf_dir() / path.relative_to(folder)).exists():
            cause = f"{str(path)!r} has the name of one of diffsim's own; rename it"
            raise ConfigError(cause, key="--config-dir")
    return [conf_dir(), folder]


def _read(overrides: Sequence[str], config_dir: str | Path | None) -> list[str]:
    """The words of the command line, checked one by one, as they go to Hydra."""
    known = _known(config_dir)
    check_words(overrides, known["experiment"])
    words = _parsed(overrides)
    texts = [_checked(word, known) for word in words]
    if not any(word.key_or_group == "experiment" for word in words):
        names = known["experiment"]
        cause = "choose one with experiment=NAME"
        raise ConfigError(cause, key="experiment", allowed=names, suggestion="")
    return texts


def _known(config_dir: str | Path | None) -> dict[str, list[str]]:
    """The choices of each group, experiments too, by the names of their files."""
    files = [path for each in _sources(config_dir) for path in each.glob("experiment/*.yaml")]
    return groups(config_dir) | {"experiment": sorted(path.stem for path in files)}


def _parsed(overrides: Sequence[str]) -> list[Any]:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    for text in overrides:
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise ConfigError(f"{text!r} is not UTF-8", key="command line")
    with hydra_errors(tuple(KEYS)):
        return OverridesParser.create().parse_overrides(list(overrides))


def _checked(word: Any, known: Mapping[str, list[str]]) -> str:
    key, text = word.key_or_group, str(word.input_line)
    for name in (key, ".".join(key.split(".")[:2])):
        if name in _NOT_HERE:
            raise ConfigError("is not for the command line", key=key, suggestion=_NOT_HERE[name])
    check_name(key, known)
    if key in known or "/" in key:
        # Hydra reads group/choice.yaml wherever that leads.
        choice = text.partition("=")[2]
        if not re.fullmatch(r"[\w\s,-]*|glob\([\w*?-]*\)", choice) or choice in ("", "null"):
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
    with hydra_errors(tuple(dict.fromkeys((*KEYS, *groups(config_dir))))):
        with hydra.initialize_config_dir(str(sources[0]), version_base=VERSION_BASE):
            composed = hydra.compose("config", [*texts, *added], return_hydra_config=True)
        if number is not None:
            composed.hydra.job.num, composed.hydra.job.id = number, str(number)
        visible.set_config(composed)  # for ${hydra:...}
        try:
            _check_choices(composed.hydra.runtime.choices, sources)
            config = _plain(composed)
            search = container(composed.search)
            if number is None:
                place = _run_dir(composed.hydra.run.dir, texts, "hydra.run.dir")
                return Composed(config, *place, search=search)
            check_hydra(composed.hydra)
            place = _run_dir(composed.hydra.sweep.dir, texts, "hydra.sweep.dir")
            folder, launcher = str(composed.hydra.sweep.subdir), container(composed.hydra.launcher)
            return Composed(config, *place, folder, launcher, search)
        finally:
            visible.cfg = before


def _plain(composed: Any) -> dict[str, Any]:
    """A composed configuration as plain values: resolved, files absolute, valid."""
    from omegaconf import OmegaConf

    with hydra_errors():
        copy = composed.copy()
        OmegaConf.set_struct(copy, False)
        for other in ("hydra", "search"):
            copy.pop(other, None)
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
    if not chosen and not is_inside(path, Path(OUTPUTS)):
        cause = f"{str(path)!r} is not in {OUTPUTS}/; only the command line may say so"
        raise ConfigError(cause, key=key)
    return path, chosen


def _check_folders(jobs: Sequence[Job]) -> None:
    """Each job has a folder of its own, and none inside another's."""
    taken = {job.folder: number for number, job in enumerate(jobs)}
    for number, job in enumerate(jobs):
        others = [job.folder, *map(str, Path(job.folder).parents)]
        if any(taken.get(other, number) != number for other in others):
            raise ConfigError(
                "two jobs have one folder", key="hydra.sweep.subdir", value=job.folder
            )


def _product(
    texts: Sequence[str], known: Mapping[str, list[str]]
) -> Iterator[tuple[list[str], list[str]]]:
    """The words of each job of a sweep, and those of them that differ between jobs."""
    with hydra_errors():
        words = _parsed(texts)
        choices = [_values(word, known) for word in words]
        jobs = math.prod(map(len, choices))
        if not 0 < jobs <= MOST_JOBS:
            cause = f"a sweep of {jobs} jobs; at least 1, at most {MOST_JOBS}"
            raise ConfigError(cause, key="command line")
        swept = [word.is_sweep_override() for word in words]
        for job in itertools.product(*choices):
            yield list(job), list(itertools.compress(job, swept))


def _values(word: Any, known: Mapping[str, list[str]]) -> list[str]:
    if not word.is_sweep_override():
        return [word.input_line]
    key, value = word.get_key_element(), word.value()
    if hasattr(value, "filter"):  # glob(*): the choices of a group
        return [f"{key}={name}" for name in value.filter(known.get(word.key_or_group, []))]
    if word.is_discrete_sweep():
        values = itertools.islice(word.sweep_string_iterator(), MOST_JOBS + 1)
        return [f"{key}={value}" for value in values]
    cause = "an interval is for a search: search.trials=20 'search.space={KEY: [LOW, HIGH]}'"
    raise ConfigError(cause, key=word.key_or_group)


def quoted(text: str) -> str:
    """`text` as a quoted string of Hydra's grammar."""
    return "'" + text.replace("'", "\\'") + "'"

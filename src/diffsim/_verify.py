"""Whether a run can be repeated: its configuration once more, its numbers beside the old ones."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from . import config
from ._errors import ConfigError, SimulationError
from ._outcome import complain
from ._resume import changes

if TYPE_CHECKING:
    from ._store import RunDirectory

RTOL = {"float64": 1e-6, "float32": 1e-3}  # on another platform or with other versions
SHARE = 0.1  # of its standard error, by which a parameter may differ there
NOT_HERE = ("provenance", "timing", "peak_bytes", "temp_bytes", "seconds", "profile")
SAME = ("versions", "python", "platform", "processor", "device", "devices", "git_commit")
DIFFERS = 3  # the exit code


class Row(NamedTuple):
    """How the values of one kind compare; `worst`: where the largest difference is."""

    name: str
    values: int
    equal: int
    within: int
    worst: str

    @property
    def different(self) -> int:
        return self.values - self.equal - self.within


def opened(place: str) -> tuple[RunDirectory, dict[str, Any]]:
    """The directory of a finished run, and its configuration."""
    from ._store import RunDirectory

    try:
        directory = RunDirectory.open(place)
    except ConfigError as error:
        raise ConfigError(error.cause, key="verify", allowed=error.allowed) from None
    if directory.read_result() is None:
        cause = f"{place!r} has no result.json to compare with"
        raise ConfigError(cause, key="verify", allowed=f"a finished run; resume={place} ends it")
    return directory, config.load_saved(directory.config_text())


def verify(directory: RunDirectory, settings: Mapping[str, Any], experiment: Any) -> int:
    """Run the experiment again in a temporary folder, print the table and return the exit code: 0
    where all is equal to the bit, or within `RTOL` where platform, versions or code differ; 3 where
    it is not, or where the data are others."""
    from ._report import Console
    from ._store import RunDirectory, identity

    console, old = Console(), directory.read_result() or {}
    before = old.get("provenance", {})
    now = identity(directory.config_text(), settings["data_files"])
    data = changes(before.get("data", {}), now["data"])
    if data:
        console.say(f"the data are others: {', '.join(data)}")
        return DIFFERS
    others = changes(_flat(before), _flat(now))
    bitwise = not others
    console.say("data: the same")
    console.say("platform, versions and code: " + (", ".join(others[:8]) or "the same"))
    with tempfile.TemporaryDirectory(prefix="diffsim-verify-") as folder:
        again = RunDirectory.create(Path(folder) / "run", directory.config_text())
        try:
            experiment.run(again, Console(quiet=True))
        except SimulationError as error:
            complain(f"the run does not come to its end again: {error}")
            return DIFFERS
        rows = list(compared(directory, again, settings["precision"]))
    table = [("", "values", "to the bit", "within", "different", "")]
    table += [tuple(map(str, (*row[:4], row.different, row.worst))) for row in rows]
    console.summary(table)
    return _verdict(console, rows, bitwise, RTOL[settings["precision"]])


def _verdict(console: Any, rows: list[Row], bitwise: bool, rtol: float) -> int:
    wrong = sum(row.different for row in rows)
    if wrong or (bitwise and any(row.within for row in rows)):
        console.say("not the same")
        return DIFFERS
    equal = all(row.equal == row.values for row in rows)
    console.say("the same to the bit" if equal else f"the same within {rtol:g}")
    return 0


def compared(first: RunDirectory, second: RunDirectory, precision: str) -> Iterator[Row]:
    """A row for each part of result.json and each HDF5 file of two runs."""
    rtol = RTOL[precision]
    old, new = first.read_result() or {}, second.read_result() or {}
    for key in dict.fromkeys((*old, *new)):
        if key not in NOT_HERE:
            pair = dict(_leaves(old.get(key), key)), dict(_leaves(new.get(key), key))
            yield _texts(key, *pair, rtol)
    names = {path.name for run in (first, second) for path in run.path.glob("*.h5")}
    for name in sorted(names):
        yield _arrays(name, first.path / name, second.path / name, rtol)


def _texts(name: str, old: Mapping[str, Any], new: Mapping[str, Any], rtol: float) -> Row:
    equal = within = 0
    worst, where = 0.0, ""
    for key in (keys := dict.fromkeys((*old, *new))):
        a, b = old.get(key, "absent"), new.get(key, "absent")
        if a == b:
            equal += 1
            continue
        off = _relative(a, b)
        error: Any = old.get(f"{key.removesuffix('.value')}.stderr")
        slack = SHARE * error if key.endswith(".value") and _is_number(error) else 0.0
        within += off <= rtol or (_is_number(a) and _is_number(b) and abs(a - b) <= slack)
        if off >= worst:
            worst, where = off, f"{key}: {off:.1e}"
    return Row(name, len(keys), equal, within, where)


def _arrays(name: str, first: Path, second: Path, rtol: float) -> Row:
    import numpy as np

    from ._store import datasets

    if not (first.is_file() and second.is_file()):
        return Row(name, 1, 0, 0, f"only in one: {name}")
    old, new = datasets(first), datasets(second)
    total = equal = within = 0
    worst, where = 0.0, ""
    for key in dict.fromkeys((*old, *new)):
        a, b = old.get(key), new.get(key)
        size = max(x.size for x in (a, b) if x is not None)
        total += size
        if a is None or b is None or a.shape != b.shape or a.dtype != b.dtype:
            worst, where = math.inf, f"{key}: other arrays"
            continue
        same = (a == b) | ((a != a) & (b != b))  # NaN is equal to NaN
        with np.errstate(all="ignore"):
            off = np.where(same, 0.0, np.abs(a - b) / max(np.nanmax(np.abs(a)), 1e-300))
        equal += int(np.sum(same))
        within += int(np.sum(~same & (off <= rtol)))
        if not np.all(same) and np.nanmax(off) >= worst:
            worst, where = float(np.nanmax(off)), f"{key}: {np.nanmax(off):.1e}"
    return Row(name, total, equal, within, where)


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    """What can be compared in a part of result.json: no times, no bytes of memory."""
    items: Any = None
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    if items is None:
        yield key, value
        return
    for name, item in items:
        if name not in NOT_HERE and not str(name).endswith("_s"):
            yield from _leaves(item, f"{key}.{name}")


def _flat(provenance: Mapping[str, Any]) -> dict[str, Any]:
    found = {key: provenance.get(key) for key in SAME if key not in ("versions", "platform")}
    return found | dict(provenance.get("versions", {}))


def _is_number(x: Any) -> bool:
    return isinstance(x, (int, float)) and not isinstance(x, bool)


def _relative(a: Any, b: Any) -> float:
    if not (_is_number(a) and _is_number(b)):
        return math.inf
    return abs(a - b) / max(abs(a), abs(b), 1e-12)

"""Numbers, units and names as a person reads them: `117.21 ± 0.15 K`, `1.5 MiB`, `2 min 05 s`."""

from __future__ import annotations

import math
import re
from typing import Any

from .._store import h5md_unit

_SUPERSCRIPT = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")
_GREEK_NAMES = (
    "alpha beta gamma delta epsilon zeta eta theta kappa lambda mu nu xi rho sigma tau phi chi psi "
    "omega"
)
_GREEK: dict[str, str] = dict(zip(_GREEK_NAMES.split(), "αβγδεζηθκλμνξρστφχψω", strict=True))


def number(value: Any) -> float | None:
    """`value` as a finite float, None where it is not one."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None


def superscript(power: int) -> str:
    """`-23` as `⁻²³`."""
    return str(power).translate(_SUPERSCRIPT)


def with_error(value: Any, error: Any = None, unit: str = "") -> str:
    """`value` rounded to two significant digits of its standard error: `117.21 ± 0.15 K`.

    Without a usable error the value has six significant digits. Very large and very small numbers
    get a common power of ten: `(1.380 ± 0.012) × 10⁻²³ J`.
    """
    value, error = number(value), number(error)
    if value is None:
        return "–"
    if error is None or error <= 0:
        return _unit_behind(significant(value, 6), unit)
    power = math.floor(math.log10(max(abs(value), error)))
    if -4 <= power < 6:
        return _unit_behind(_pair(value, error), unit)
    text = _pair(value / 10.0**power, error / 10.0**power)
    return _unit_behind(f"({text}) × 10{superscript(power)}", unit)


def significant(value: Any, digits: int = 3, *, zeros: bool = False) -> str:
    """`value` with `digits` significant digits: `3.4e-07` is `3.4 × 10⁻⁷`.

    `zeros=True` keeps zeros at the end, for columns of numbers of one precision.
    """
    value = number(value)
    if value is None:
        return "–"
    written = f"{value:#.{digits}g}" if zeros else f"{value:.{digits}g}"
    mantissa, e, power = written.partition("e")
    mantissa = mantissa.removesuffix(".")
    if e:
        return f"{_minus(mantissa)} × 10{superscript(int(power))}"
    return _minus(mantissa)


def human_bytes(count: Any) -> str:
    """Bytes in binary units with three digits: `1.50 MiB`."""
    size = number(count)
    if size is None:
        return "–"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(size) < 999.5 or unit == "TiB":
            break
        size /= 1024
    return f"{size:.0f} B" if unit == "B" else f"{_three(size)} {unit}"


def human_time(seconds: Any) -> str:
    """A duration: `3.2 ms`, `12.3 s`, `2 min 05 s`, `3 h 20 min`."""
    time = number(seconds)
    if time is None:
        return "–"
    if time < 1e-3:
        return f"{_three(time * 1e6)} µs"
    if time < 1:
        return f"{_three(time * 1e3)} ms"
    if time < 99.95:
        return f"{_three(time)} s"
    if time < 3570:
        minutes, rest = divmod(round(time), 60)
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(round(time / 60), 60)
    return f"{hours} h {minutes:02d} min"


def pretty_unit(unit: str | None) -> str:
    """A unit as it is printed: `J/mol` is `J mol⁻¹`, `angstrom` is `Å`; none for dimensionless."""
    text = h5md_unit(unit)
    words = [re.fullmatch(r"([^\W\d]+|%)(-?\d+)?", word) for word in text.split()]
    if not all(words):
        return text
    parts = []
    for word in filter(None, words):
        name = {"Angstrom": "Å", "degree": "°", "um": "µm"}.get(word.group(1), word.group(1))
        parts.append(name + (word.group(2) or "").translate(_SUPERSCRIPT))
    return " ".join(parts)


def pretty_name(name: str) -> str:
    """A name as it is printed: `epsilon` is `ε`, `total_energy` is `total energy`."""
    return " ".join(_GREEK.get(word, word) for word in name.replace("_", " ").split(" "))


def pretty_label(label: str) -> str:
    """A label with its powers raised: `kg/m3` is `kg/m³`."""
    power = re.compile(r"(?<=[a-z])(?:\^|\*\*)?([23])(?!\w)")
    return power.sub(lambda match: match[1].translate(_SUPERSCRIPT), label)


def _pair(value: float, error: float) -> str:
    decimals = 1 - math.floor(math.log10(error))
    if round(error, decimals) >= 10.0 ** (2 - decimals):  # 0.0996 rounds to 0.10
        decimals -= 1
    rounded, about = round(value, decimals), round(error, decimals)
    shown = max(decimals, 0)
    return f"{_minus(f'{rounded:.{shown}f}')} ± {about:.{shown}f}"


def _three(value: float) -> str:
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}"


def _minus(text: str) -> str:
    return text.replace("-", "−")


def _unit_behind(text: str, unit: str) -> str:
    printed = pretty_unit(unit)
    return f"{text} {printed}" if printed else text

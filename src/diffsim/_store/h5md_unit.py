"""Unit strings in the notation of H5MD: factors with their powers behind them (`kJ mol-1`)."""

from __future__ import annotations

import re

_SHORT = {
    "angstrom": "Angstrom",
    "Å": "Angstrom",
    "nanometer": "nm",
    "meter": "m",
    "femtosecond": "fs",
    "picosecond": "ps",
    "nanosecond": "ns",
    "second": "s",
    "kelvin": "K",
    "mole": "mol",
    "joule": "J",
    "kilojoule": "kJ",
    "kilocalorie": "kcal",
    "electron_volt": "eV",
    "dalton": "Da",
    "unified_atomic_mass_unit": "Da",
    "kilogram": "kg",
    "gram": "g",
    "pascal": "Pa",
    "megapascal": "MPa",
    "gigapascal": "GPa",
    "atmosphere": "atm",
    "dimensionless": "",
}
_FACTOR = re.compile(r"([^\W\d]+|%)(-?\d+)?", re.UNICODE)
_TOKEN = re.compile(r"\s*([^\W\d]+(?:-?\d+)?|%|\d+|\*|/|\(|\)|·|[-−])", re.UNICODE)


def h5md_unit(unit: str | None) -> str:
    """`unit` in H5MD notation: `J/mol` and `joule / mole` become `J mol-1`.

    No unit, `1` and `dimensionless` become the empty text. Lengths in ångström become `Angstrom`,
    the one spelling that MDAnalysis knows in every place. A text that is not a product of powers
    (`reduced units`, `sqrt(s)`) is returned as it is.
    """
    text = (unit or "").strip()
    text = re.sub(r"\s*(\*\*|\^)\s*\(?\s*(-?\d+)\s*\)?", r"\2", text)
    powers: dict[str, int] = {}
    sign, group, end = 1, [1], 0
    for match in _TOKEN.finditer(text):
        if text[end : match.start()].strip():
            return text
        token, end = match.group(1), match.end()
        if token == "/":
            sign = -1
        elif token == "(":
            group.append(group[-1] * sign)
            sign = 1
        elif token == ")" and len(group) > 1:
            group.pop()
        elif token in ("*", "·", "1"):
            sign = 1
        elif factor := _FACTOR.fullmatch(token):
            name = _SHORT.get(factor.group(1), factor.group(1))
            power = int(factor.group(2) or 1) * sign * group[-1]
            if name:
                powers[name] = powers.get(name, 0) + power
            sign = 1
        else:
            return text
    if end != len(text):
        return text
    return " ".join(
        name if power == 1 else f"{name}{power}" for name, power in powers.items() if power
    )

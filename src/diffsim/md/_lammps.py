"""Fitted potentials as LAMMPS reads them."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .._errors import ConfigError
from ._exported import check_kinds, check_parameters, of_kinds
from ._lennard_jones import LennardJones
from ._pair import Pair
from ._pair_laws import Buckingham, Mie, Morse
from ._pair_potential import AbstractPairPotential
from ._potential import AbstractPotential
from ._stillinger_weber import StillingerWeber
from ._tersoff import Tersoff
from ._units import UnitSystem, unit_system

ROWS = 4000  # of a table
NEAREST = 0.25  # of the cutoff, where a table starts

# What LAMMPS has by itself: the style, and the parameters in its order; of which with a tail.
_STYLES: dict[type, tuple[str, tuple[str, ...]]] = {
    LennardJones: ("lj/cut", ("epsilon", "sigma")),
    Mie: ("mie/cut", ("epsilon", "sigma", "n", "m")),
    Morse: ("morse", ("epsilon", "alpha", "r0")),
    Buckingham: ("buck", ("A", "rho", "C")),
}
_TAILED = (LennardJones, Mie, Buckingham)


def to_lammps(
    potential: AbstractPotential,
    params: PyTree,
    *,
    units: str | UnitSystem,
    kinds: Sequence[str] = ("1",),
) -> dict[str, str]:
    """Files for LAMMPS, by their names: `pair.lammps`, to `include` in an input script, and the
    table or potential file that it names.

    `Pair` and `LennardJones` that are cut or shifted take LAMMPS' own styles (`lj/cut`, `mie/cut`,
    `morse`, `buck`); every other law and truncation is a table of forces and energies between a
    quarter of the cutoff and the cutoff, interpolated by splines. `StillingerWeber` and `Tersoff`
    have files of their own. `units`: the system of the parameters, lj, metal or real; `kinds`: the
    chemical symbols of the kinds of atoms, type 1 first, one for each kind.

    LAMMPS adds a tail to `lj/cut`, `mie/cut` and `buck` that are plainly cut, and to nothing else:
    `tail=True` elsewhere is refused, as it would be lost.
    """
    system = unit_system(units)
    if system.name not in ("lj", "metal", "real"):
        raise ConfigError(
            "LAMMPS has no such units", key="units", value=system.name, allowed="lj, metal, real"
        )
    if not isinstance(potential, (LennardJones, Pair, StillingerWeber, Tersoff)):
        raise ConfigError(
            f"{type(potential).__name__} has no LAMMPS file",
            key="potential",
            allowed="LennardJones, Pair, StillingerWeber, Tersoff",
        )
    check_parameters(potential, params)
    check_kinds(potential, params, kinds)
    if isinstance(potential, (StillingerWeber, Tersoff)):
        return _many_body(potential, params, system, kinds)
    return _pairs(potential, params, system, len(kinds))


def _pairs(
    potential: LennardJones | Pair, params: PyTree, system: UnitSystem, kinds: int
) -> dict[str, str]:
    own = potential.law if isinstance(potential, Pair) else potential
    head = f"# from diffsim; needs: units {system.name}\n"
    if potential.tail and not (isinstance(own, _TAILED) and potential.truncation == "cut"):
        raise ConfigError(
            f"LAMMPS has none for {type(own).__name__} of truncation {potential.truncation!r}",
            key="tail",
            allowed='tail=False, or truncation "cut" of LennardJones, Mie, Buckingham, which have '
            'the forces of "shift"',
        )
    known = type(own) in _STYLES and potential.truncation in ("cut", "shift")
    if not known:
        return _tables(potential, params, head, kinds)
    style, names = _STYLES[type(own)]
    values = of_kinds(potential, params, kinds)
    lines = [f"pair_style {style} {potential.cutoff:.17g}"]
    for a, b in _each_pair(kinds):
        numbers = " ".join(f"{values[name][a, b]:.17g}" for name in names)
        lines.append(f"pair_coeff {a + 1} {b + 1} {numbers}")
    shift, tail = (("no", "yes")[on] for on in (potential.truncation == "shift", potential.tail))
    lines.append(f"pair_modify shift {shift} tail {tail}")
    return {"pair.lammps": head + "\n".join(lines) + "\n"}


def _each_pair(kinds: int) -> list[tuple[int, int]]:
    return [(a, b) for a in range(kinds) for b in range(a, kinds)]


def _tables(
    potential: AbstractPairPotential, params: PyTree, head: str, kinds: int
) -> dict[str, str]:
    tables = potential.tables({k: jnp.asarray(v) for k, v in params.items()})
    r = np.linspace(NEAREST * potential.cutoff, potential.cutoff, ROWS)
    s = jnp.asarray(r**2)
    lines, body = [f"pair_style table spline {ROWS}"], ["# from diffsim\n"]
    for a, b in _each_pair(kinds):
        one = _pick(tables, a, b) if potential.elementwise else tables
        energy = np.asarray(potential.pair_thermo(one, s).energy)
        force = np.asarray(potential.force_factor(one, s)) * r
        name = f"PAIR_{a + 1}_{b + 1}"
        lines.append(f"pair_coeff {a + 1} {b + 1} pair.table {name} {potential.cutoff:.17g}")
        body.append(f"{name}\nN {ROWS} R {r[0]:.17g} {r[-1]:.17g}\n\n")
        rows = zip(r, energy, force, strict=True)
        body += [f"{k} {x:.17g} {u:.17g} {f:.17g}\n" for k, (x, u, f) in enumerate(rows, start=1)]
        body.append("\n")
    return {"pair.lammps": head + "\n".join(lines) + "\n", "pair.table": "".join(body)}


def _pick(tables: PyTree, a: int, b: int) -> PyTree:
    return jax.tree.map(lambda v: v[a, b] if jnp.ndim(v) == 2 else v, tables)


# The order of LAMMPS' potential files; None: a number that is not ours, with its value.
_SW = ("epsilon", "sigma", "a", "lam", "gamma", "cos_theta0", "A", "B", "p", "q")
_TERSOFF = ("lambda3", "c", "d", "h", "n", "beta", "lambda2", "B", "R", "D", "lambda1", "A")


def _many_body(
    potential: StillingerWeber | Tersoff, params: PyTree, system: UnitSystem, kinds: Sequence[str]
) -> dict[str, str]:
    silicon = isinstance(potential, StillingerWeber)
    style, names = ("sw", _SW) if silicon else ("tersoff", _TERSOFF)
    numbers = [f"{float(params[name]):.17g}" for name in names]
    # LAMMPS: tolerance at the end of one, m = 3 and gamma = 1 at the start of the other
    numbers = [*numbers, "0.0"] if silicon else ["3.0", "1.0", *numbers]
    file = f"{kinds[0]}.{style}"
    lines = (f"pair_style {style}", f"pair_coeff * * {file} {kinds[0]}")
    head = f"# from diffsim; needs: units {system.name}\n"
    entry = " ".join([*(kinds[0],) * 3, *numbers])
    return {
        "pair.lammps": head + "\n".join(lines) + "\n",
        file: f"# from diffsim, units {system.name}\n{entry}\n",
    }

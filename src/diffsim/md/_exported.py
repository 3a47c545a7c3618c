"""What a potential has to be before another program may have it, and its numbers by pairs of
kinds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .._errors import ConfigError
from ._lennard_jones import LennardJones
from ._pair import Pair
from ._potential import AbstractPotential


def check_parameters(potential: AbstractPotential, params: PyTree) -> None:
    """Refuse parameters that are not those of the potential, or cannot be right."""
    names = potential.parameter_units()
    for name in params:
        if name not in names:
            raise ConfigError("no such parameter", key="params", value=name, allowed=names)
    for name in names:
        if name not in params:
            raise ConfigError(
                f"is missing among the parameters of {type(potential).__name__}",
                key=name,
                allowed=f"a value for each of {', '.join(names)}",
            )
    assert potential.reach is not None
    potential.check(params, np.full(3, 2 * potential.reach))  # in the smallest box there is


def check_kinds(potential: Any, params: PyTree, kinds: Sequence[str]) -> None:
    """Refuse names that are not one for each kind of atom that the potential or its parameters
    tell apart: what has no name would be left out."""
    species = potential.species
    wanted = 1
    if species is not None:
        tables = {name: len(v) for name, v in params.items() if np.ndim(v)}
        wanted = max(int(np.max(np.asarray(species), initial=0)) + 1, *tables.values(), 1)
        for name, rows in tables.items():
            if rows != wanted:
                raise ConfigError(f"is of {rows} kinds of atoms, and others of {wanted}", key=name)
    if len(kinds) != wanted or len(set(kinds)) != wanted:
        cause = f"must be {wanted}, a different name for each kind of atom"
        if species is None:
            cause = "must be one, without species in the potential"
        raise ConfigError(cause, key="kinds", value=list(kinds))


def of_kinds(potential: LennardJones | Pair, params: PyTree, kinds: int) -> dict[str, Any]:
    """The law's own parameters of each pair of kinds, (kinds, kinds)."""
    given = {k: jnp.asarray(v) for k, v in params.items()}
    mixed = (
        potential.tables(given) if isinstance(potential, LennardJones) else potential._mixed(given)
    )
    return {
        k: np.broadcast_to(np.asarray(v, float), (kinds, kinds))
        for k, v in mixed.items()
        if np.ndim(v) in (0, 2)
    }


def tails(potential: LennardJones | Pair, params: PyTree, kinds: int) -> np.ndarray:
    """t of U_tail = Σ_ab n_a n_b t_ab/V, (kinds, kinds) [energy length³]."""
    numbers, alone = of_kinds(potential, params, kinds), potential._law()
    found = np.zeros((kinds, kinds))
    for pair in np.ndindex(kinds, kinds):
        one = {name: jnp.asarray(table[pair]) for name, table in numbers.items()}
        found[pair] = alone.tail_correction(one, 1, jnp.ones(3))[0]
    return found

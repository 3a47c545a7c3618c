"""A pair law of one's own, and atoms that do not see themselves."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffsim import md
from problems import liquid, parameters, slow_but


@pytest.mark.parametrize(
    ("atoms", "path", "precision"),
    [
        (36, "dense", "state"),
        pytest.param(48, "dense", "state", marks=pytest.mark.slow),
        (36, "dense", "float32"),
        (64, "tiles", "state"),
        pytest.param(36, "list", "state", marks=pytest.mark.slow),
    ],
)
def test_atoms_do_not_see_themselves_where_positions_are_products(atoms, path, precision):
    # x·c - x·c, contracted to one rounding, is not zero
    x, box = md.lattice(atoms, density=0.8)
    potential: Any = md.LennardJones(1.6, "shift", path=path, precision=precision)
    params = parameters()
    near = potential.allocate(params, x, box)

    def at(c: Any) -> Any:
        moved = jnp.asarray(x) * c
        thermo = potential.thermo(params, moved, jnp.asarray(box) * c, near)
        return thermo, potential.energy(params, moved, jnp.asarray(box) * c, near)

    c = jnp.asarray(1.0173)
    close = 1e-5 if precision == "float32" else 1e-9
    for one, other in zip(*map(jax.tree.leaves, (jax.jit(at)(c), at(c))), strict=True):
        np.testing.assert_allclose(one, other, rtol=close, atol=close)


class Gauss(md.AbstractPairLaw):
    units: ClassVar = {"A": "energy", "width": "length"}

    def energy(self, params: Any, r: Any) -> Any:
        return params["A"] * jnp.exp(-((r / params["width"]) ** 2))


@pytest.mark.parametrize("path", slow_but(["tiles"], ["dense", "tiles", "list"]))
def test_a_law_of_ones_own_needs_an_energy_and_units(path):
    x, box = liquid(64)
    potential, params = md.Pair(Gauss(), 2.0, path=path), {"A": 3e4, "width": 0.8}
    d = x[:, None] - x[None]
    d = d - box * np.round(d / box)
    s = np.sum(d * d, axis=2) + 99 * np.eye(64)
    phi = np.where(s < 4, 3e4 * np.exp(-s / 0.64), 0)
    near = potential.allocate(params, x, box)
    assert float(potential.energy(params, x, box, near)) == pytest.approx(np.sum(phi) / 2)
    forces = np.sum((2 / 0.64 * phi)[..., None] * d, axis=1)
    np.testing.assert_allclose(potential.forces(params, x, box, near), forces, rtol=1e-9, atol=1e-6)

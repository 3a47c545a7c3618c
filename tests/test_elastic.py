"""Elastic constants of crystals, and what they do when the potential changes."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffsim import ConfigError, md
from problems import parameters

GPA = md.unit_system("metal").pressure_factor / 1e4
SILICON = {k: jnp.asarray(v) for k, v in md.stillinger_weber_silicon().items()}
STILLINGER_WEBER = md.StillingerWeber(3.78, path="dense")


class Pairs(md.AbstractPotential):
    """Σ_{i<j} ε ((1 - e^{-a (r - r0)})² - 1) c(r), smooth at its reach: quick to compile."""

    cutoff: float = eqx.field(static=True)

    def energy(self, params: Any, positions: Any, box: Any, neighbours: Any = None) -> Any:
        d = positions[:, None] - positions[None]
        d = d - box * jnp.round(d / box)
        s = jnp.sum(d * d, axis=-1)
        near = ~jnp.eye(len(d), dtype=bool) & (s < self.cutoff**2)
        r = jnp.sqrt(jnp.where(near, s, 1.0))
        well = (1 - jnp.exp(-params["a"] * (r - params["r0"]))) ** 2 - 1
        end = (1 - (r / self.cutoff) ** 2) ** 3
        return 0.5 * jnp.sum(jnp.where(near, params["epsilon"] * well * end, 0))

    @property
    def reach(self) -> float:
        return self.cutoff


PAIRS = Pairs(1.9)
MORSE = {k: jnp.asarray(v) for k, v in {"epsilon": 1.3, "a": 3.0, "r0": 1.0}.items()}


@eqx.filter_jit
def cubic(crystal: md.CubicCrystal, potential: Any, params: Any) -> md.Cubic:
    return crystal.measure(potential, params)


@pytest.mark.parametrize(("kind", "sites"), [("sc", 1), ("bcc", 2), ("fcc", 4), ("diamond", 8)])
def test_a_turned_crystal_is_the_same_crystal(kind: str, sites: int):
    x, box, lattices = md.CubicCrystal(kind, 1.3).structure(1.2)
    straight, cube = md.lattice(sites * 64, box=np.full(3, 4 * 1.3), kind=kind)
    assert len(x) / np.prod(box) == pytest.approx(sites / 1.3**3)
    assert min(box) >= 2.4 and max(lattices) == (kind == "diamond")

    def shells(x: Any, box: Any) -> Any:
        d = x - x[0]
        r = np.linalg.norm(d - box * np.round(d / box), axis=1)
        return np.sort(r[r < 1.2])

    np.testing.assert_allclose(shells(x, box), shells(straight, cube), atol=1e-8)


@pytest.mark.parametrize(
    ("crystal", "potential", "params"),
    [
        (md.CubicCrystal("diamond", 2.1), PAIRS, MORSE),
        pytest.param(
            md.CubicCrystal("diamond", 5.4), STILLINGER_WEBER, SILICON, marks=pytest.mark.slow
        ),
    ],
    ids=["pairs", "silicon"],
)
def test_elastic_constants_change_with_the_potential_as_differences_say(crystal, potential, params):
    """Edge, C₁₁, C₁₂ and C₄₄ at rest, in every parameter."""

    def measured(params):
        return jnp.stack(crystal.measure(potential, params))

    both = jax.jit(jax.jacrev(lambda p: (measured(p),) * 2, has_aux=True))
    slopes, _ = both(params)
    for key in ("epsilon", "a", "r0", "lam", "sigma"):
        if key not in params:
            continue
        h = 1e-5 * float(params[key])
        up, down = (both({**params, key: params[key] + s * h})[1] for s in (1, -1))
        np.testing.assert_allclose(slopes[key], (up - down) / (2 * h), rtol=1e-6, atol=1e-8)


@pytest.mark.slow
def test_silicon_has_its_published_elastic_constants():
    """Cowley 1988, doi:10.1103/PhysRevLett.60.2379, atoms following; by any edge to start from."""
    found = cubic(md.CubicCrystal("diamond", 5.45), STILLINGER_WEBER, SILICON)
    assert float(found.lattice_constant) == pytest.approx(5.431, abs=1e-3)
    assert float(found.energy_per_atom) == pytest.approx(-4.3365, abs=1e-4)
    for name, value in (("C11", 151.4), ("C12", 76.4), ("C44", 56.4)):
        assert GPA * float(getattr(found, name)) == pytest.approx(value, abs=0.1), name


@pytest.mark.slow  # to compile
@pytest.mark.parametrize("cell", ["isotropic", pytest.param("edges", marks=pytest.mark.slow)])
def test_a_box_comes_to_rest_and_moves_with_the_potential(cell: Any):
    """Where a crystal without pressure is, and there as differences say."""
    crystal = md.CubicCrystal("fcc", 1.25)
    x, box, _ = crystal.structure(PAIRS.reach)

    def edges(params):
        rest = md.minimise(PAIRS, params, x, box, cell=cell, tolerance=1e-11)
        return jnp.append(rest.box, rest.energy)

    both = jax.jit(jax.jacrev(lambda p: (edges(p),) * 2, has_aux=True))
    slopes, found = both(MORSE)
    wanted = cubic(crystal, PAIRS, MORSE)
    ratio = float(wanted.lattice_constant) / crystal.edge
    np.testing.assert_allclose(found[:3], ratio * box, rtol=1e-9)
    assert float(found[3]) / len(x) == pytest.approx(float(wanted.energy_per_atom), rel=1e-12)
    h = 1e-5
    up, down = (both({**MORSE, "a": 3 + s * h})[1] for s in (1, -1))
    np.testing.assert_allclose(slopes["a"], (up - down) / (2 * h), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("truncation", ["cut", "shift"])
def test_a_crystal_with_a_tail_is_without_pressure_and_has_the_energy_of_its_potential(truncation):
    potential, crystal = md.LennardJones(2.2, truncation, tail=True), md.CubicCrystal("fcc", 1.55)
    params, (x, box, _) = parameters(), crystal.structure(2.2)
    found = cubic(crystal, potential, params)
    size = float(found.lattice_constant) / crystal.edge
    energy = potential.energy(params, size * x, size * box)
    assert float(found.energy_per_atom) * len(x) == pytest.approx(float(energy), rel=1e-12)
    virial = float(potential.virial(params, size * x, size * box))
    assert virial == pytest.approx(0.0, abs=1e-8 * abs(float(energy)))
    rest = md.minimise(potential, params, x, box, cell="isotropic", tolerance=1e-9)
    np.testing.assert_allclose(rest.box, size * box, rtol=1e-8)


@pytest.mark.slow
def test_elastic_constants_of_a_given_crystal_have_gradients():
    """The general way: any crystal, atoms followed by a linear solver."""
    x, box, _ = md.CubicCrystal("diamond", 5.431).structure(3.78)

    def shear(params):
        c = md.elastic_constants(STILLINGER_WEBER, params, x, box, cell="isotropic", tolerance=1e-8)
        return GPA * (c[0, 0] + c[1, 1] - 2 * c[0, 1]) / 4

    value, slope = jax.jit(jax.value_and_grad(shear))(SILICON)
    crystal = md.CubicCrystal("diamond", 5.431)
    wanted, slopes = jax.jit(
        jax.value_and_grad(lambda p: GPA * crystal.measure(STILLINGER_WEBER, p).C44)
    )(SILICON)
    assert float(value) == pytest.approx(float(wanted), rel=1e-7)
    for key in ("sigma", "lam", "cos_theta0"):
        assert float(slope[key]) == pytest.approx(float(slopes[key]), rel=1e-6)


def test_what_is_no_crystal_is_refused():
    with pytest.raises(ConfigError, match="no such lattice"):
        md.CubicCrystal("hexagonal", 1.0)
    with pytest.raises(ConfigError, match="positive"):
        md.CubicCrystal("fcc", -1.0)
    with pytest.raises(ConfigError, match="no strain"):
        md.Minimisation(PAIRS, strained=True, cell="edges")
    with pytest.raises(ConfigError, match="degree"):
        md.MessagePassing(2.0, 0, degree=3)


def test_too_small_a_crystal_for_its_cutoff_has_no_constants():
    crystal = md.CubicCrystal("fcc", 1.3)  # which comes to rest at 1.24
    assert crystal.structure(PAIRS.reach)[1].min() < 2 * PAIRS.reach * 1.3 / 1.24
    assert np.isnan(float(cubic(crystal, PAIRS, MORSE).C44))

"""Networks of growth, and what studies make of a fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffsim as ds
from diffsim import ode


@pytest.mark.parametrize("seed", [0, 1])
def test_growth_keeps_the_extinct_extinct_and_scales_its_input(seed: int):
    net = ode.GrowthNetwork(2, width=8, scale=2.0, seed=seed)
    twice = ode.GrowthNetwork(2, width=8, scale=4.0, seed=seed)
    y = jnp.array([0.7, 3.0])
    assert net(jnp.array([0.0, 3.0]))[0] == 0
    assert float(jnp.max(jnp.abs(net(y)))) > 0
    np.testing.assert_allclose(twice(2 * y), 2 * net(y), rtol=1e-14)


@pytest.mark.parametrize(("key", "value"), [("size", 0), ("width", 0), ("scale", -1.0)])
def test_growth_refuses(key: str, value: float):
    with pytest.raises(ds.ConfigError, match=key):
        ode.GrowthNetwork(**({"size": 2} | {key: value}))  # pyright: ignore[reportArgumentType]


def test_a_network_of_arrays_alone_can_be_fitted():
    leaves = jax.tree.leaves(ode.GrowthNetwork(2))
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)


def test_a_ratio_counts_what_numerator_and_denominator_share():
    study = ds.RatioStudy(name="R0", numerator="beta", denominator="gamma")
    z = np.random.default_rng(0).normal(size=(2, 50_000))
    common = np.exp(0.5 * z)  # cancels in the ratio
    width = 0.1 * np.random.default_rng(1).normal(size=z.shape)
    found = study._of_draws({"beta": 3 * common * (1 + width), "gamma": common})
    assert found["value"] == pytest.approx(3, abs=0.005)
    assert found["stderr"] == pytest.approx(0.3, rel=0.02)
    assert found["q95"] - found["q05"] == pytest.approx(2 * 1.645 * 0.3, rel=0.02)

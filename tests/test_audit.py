"""The audit passes right gradients and catches wrong ones; growth is that of known systems."""

import math
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffsim as ds
from diffsim import ConfigError, Schedule, ode
from diffsim._adjoint import AbstractAdjoint, Trajectory
from problems import argon_box, slow_but, springs

SEEN = lambda p, x: {"state": jnp.asarray(x)}  # noqa: E731
MAP = ds.FunctionSimulation(lambda p, x: x + 0.1 * (p["b"] - p["a"] * x**2), SEEN)


def decay(simulation=MAP, **further):
    """Two parameters of a map, and what it was seen to do."""
    free = {"a": ds.Parameter(1.3, transform="positive"), "b": ds.Parameter(0.7)}
    data = np.array([[[0.9], [0.8], [0.75]]])
    seen = ds.Target("state", data, 0.1, statistic="each")
    start = {"state": np.array([[1.5]])}
    return ds.Problem(simulation, free, [seen], Schedule(steps=30, save_every=10), start, **further)


class Halved(AbstractAdjoint):
    """A gradient that is wrong: half of what it should be, in reverse."""

    modes: ClassVar[tuple[str, ...]] = ("reverse",)
    why: ClassVar[str] = "planted"
    needs: ClassVar = ds.AbstractSimulation
    exact: ClassVar[bool] = False

    def loop(self, sim, params, state, plan, observe):
        run = ds.Direct().loop(sim, params, state, plan, observe)

        @jax.custom_vjp
        def half(x):
            return x

        half.defvjp(lambda x: (x, None), lambda _, ct: (0.5 * ct,))
        return Trajectory(run.state, jax.tree.map(half, run.observables), run.health)


class WrongPullback(ds.FunctionSimulation):
    """A step whose own pullback forgets the parameters."""

    def pullback(self, params, state, cotangent):
        by_params, by_state = super().pullback(params, state, cotangent)
        return jax.tree.map(jnp.zeros_like, by_params), by_state


ADJOINTS = [None, ds.RecursiveCheckpoint(2), ds.ForwardMode(), ds.Auto()]


@pytest.mark.parametrize("adjoint", slow_but([None, ADJOINTS[2]], ADJOINTS), ids=str)
def test_right_gradients_pass(adjoint):
    found = ds.audit(decay(), adjoint=adjoint)
    assert found.verdict == "pass", str(found)
    kinds = {row.check.split(",")[0].split(" with")[0] for row in found.rows}
    assert {"Taylor", "finite differences", "agreement"} <= kinds
    assert set(found.as_dict()["rows"][0]) == {"check", "value", "expected", "ok"}
    assert "pass" in str(found)


def test_the_point_is_in_the_units_of_the_parameters():
    there = ds.audit(decay(), {"a": 2.0})
    assert there.verdict == "pass"
    assert not np.allclose(there.gradient["a"], ds.audit(decay()).gradient["a"])


def test_a_wrong_adjoint_is_caught():
    found = ds.audit(decay(), adjoint=Halved())
    assert found.verdict == "fail"
    wrong = [row.check for row in found.rows if not row.ok]
    assert any("finite" in w for w in wrong) and any("Taylor, second" in w for w in wrong)
    assert any("dot product" in w for w in wrong) and any("agreement" in w for w in wrong)


def test_a_wrong_pullback_is_caught():
    simulation = WrongPullback(MAP.step_fn, SEEN)
    assert ds.audit(decay(simulation), adjoint=ds.RecursiveCheckpoint()).verdict == "fail"
    assert ds.audit(decay(simulation), adjoint=ds.Direct()).verdict == "fail"  # the two disagree


def test_near_a_minimum_little_gradient_is_no_fault():
    fitted = ds.least_squares(decay())
    values = {name: fitted.values[name] for name in ("a", "b")}
    assert ds.audit(decay(), values).verdict == "pass"


def test_what_cannot_be_audited_is_refused():
    with pytest.raises(ConfigError, match="Truncated leaves a part"):
        ds.audit(decay(), adjoint=ds.Truncated(3))
    fixed = {"a": ds.Parameter(1.0, fixed=True), "b": ds.Parameter(1.0, fixed=True)}
    still = ds.Problem(MAP, fixed, [], Schedule(steps=2), {"state": np.ones((1, 1))})
    with pytest.raises(ConfigError, match="no free parameter"):
        ds.audit(still)


def lorenz(adaptive=False):
    system = ode.Lorenz63()
    equation = ode.DifferentialEquation(system, dt=None if adaptive else 0.01)
    params = {name: jnp.asarray(v) for name, v in system.defaults().items()}
    return equation, params, equation.init(params, y0=jnp.array([1.0, 1.0, 20.0]))


@pytest.mark.parametrize("adaptive", [False, True])
def test_the_exponent_of_lorenz(adaptive):
    """λ = 0.9056 (Viswanath 1998), within three of its own standard errors and 15 %."""
    equation, params, state = lorenz(adaptive)
    schedule = Schedule(t1=150.0) if adaptive else Schedule(steps=30_000)
    found = ds.growth(equation, params, state, schedule=schedule)
    assert abs(found.exponent - 0.9056) < min(3 * found.stderr, 0.14)
    assert found.unit == "time" and found.chaotic
    assert 2 < found.horizon < 15
    assert "multiple_shooting" in (found.warning or "")


def test_what_does_not_grow_is_no_chaos():
    simulation = springs(0.1)
    x = np.random.default_rng(0).standard_normal((2, 2, 3))
    state = simulation.init(
        {"stiffness": jnp.asarray(1.7)},
        jax.random.key(0),
        positions=x[0],
        velocities=x[1],
        box=np.full(3, 9.0),
    )
    found = ds.growth(simulation, {"stiffness": 1.7}, state, schedule=Schedule(steps=2000))
    assert not found.chaotic and found.warning is None and found.horizon == math.inf
    assert abs(found.exponent) < 0.05


def test_a_linear_map_grows_as_its_factor():
    simulation = ds.FunctionSimulation(lambda p, x: p["f"] * x)
    found = ds.growth(simulation, {"f": 1.1}, jnp.ones(3), schedule=Schedule(steps=100))
    assert found.exponent == pytest.approx(math.log(1.1), rel=1e-9)
    assert found.factor == pytest.approx(1.1**100, rel=1e-9)
    assert found.unit == "steps" and found.chaotic
    assert found.horizon == pytest.approx(math.log(100) / math.log(1.1), abs=3)


@pytest.mark.slow  # to compile
def test_a_liquid_is_chaotic():
    simulation, params, state = argon_box(atoms=32, density=0.8, dt=0.004)
    found = ds.growth(simulation, params, state, schedule=Schedule(steps=1500))
    assert found.chaotic and 0.3 < found.exponent < 6


def test_a_run_that_blows_up_is_said():
    simulation = ds.FunctionSimulation(lambda p, x: x**3)
    with pytest.raises(ConfigError, match="does not stay finite"):
        ds.growth(simulation, {}, jnp.full(1, 10.0), schedule=Schedule(steps=200))


def test_growth_reaches_the_result_of_a_fit(tmp_path):
    """A perturbation is of what evolves: parameters and clocks are left alone."""
    equation, _, state = lorenz()
    leaves = jax.tree.leaves(equation.variables(state))
    assert len(leaves) == 1 and leaves[0].shape == (3,)
    other = equation.with_variables(state, jnp.zeros(3))
    assert eqx.tree_equal(other.start, state.start) and np.all(np.asarray(other.y) == 0)

"""Equations without an energy, run backwards to the last bit."""

import functools

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import diffsim as ds
from diffsim import ConfigError, Schedule, ode
from diffsim._adjoint._plan import temp_bytes
from diffsim._fit._derivative import hessian
from diffsim._simulation import RESULTS
from diffsim.ode._reversible import _contracted, _expanded

K = {"k": jnp.asarray(1.0)}


def bent(t, y, args):
    """y' = -y² cos t - y/2, twice: depends on t, is not linear, has no energy."""
    return jax.tree.map(lambda y: -args["k"] * y**2 * jnp.cos(t) - 0.5 * y, y)


def both_ways(dt, solver=None, coupling=0.875, field=bent):
    solver = diffrax.Tsit5() if solver is None else solver
    return ode.AlgebraicallyReversible(ode.DifferentialEquation(field, solver, dt=dt), coupling)


def end(sim, steps, adjoint, params=K, y0=1.0):
    state = sim.init(params, y0=jnp.asarray([y0]))
    return ds.solve(sim, params, state, schedule=Schedule(steps=steps), adjoint=adjoint)


@functools.cache
def exact_end():
    tight = ode.DifferentialEquation(bent, diffrax.Dopri8(), rtol=1e-14, atol=1e-14)
    state = tight.init(K, y0=jnp.asarray([1.0]))
    return float(ds.solve(tight, K, state, schedule=Schedule(t1=2.0)).state.y[0])


ORDERS = [(diffrax.Heun(), 2, 64), (diffrax.Bosh3(), 3, 64), (diffrax.Tsit5(), 5, 24)]


@pytest.mark.parametrize("coupling", [0.5, 0.9375])
@pytest.mark.parametrize(("solver", "order", "steps"), ORDERS, ids=lambda x: type(x).__name__)
def test_the_order_of_the_method_is_kept(solver, order, steps, coupling):
    errors = []
    for count in (steps, 2 * steps, 4 * steps):
        sol = end(both_ways(2.0 / count, solver, coupling), count, ds.Direct())
        errors.append(abs(float(sol.state.y.y[0]) - exact_end()))
    assert order - 0.4 < np.log2(errors[0] / errors[2]) / 2 < order + 1.2, errors


@given(d=st.integers(-(2**58), 2**58), b=st.integers(0, 2**40 - 1), k=st.integers(1, 10))
def test_the_coupling_is_a_bijection_of_integers(d, b, k):
    with jax.enable_x64(True):
        less, bits = _contracted(jnp.asarray(d), jnp.asarray(b), k)
        again = _expanded(less, bits, k)
    assert (int(again[0]), int(again[1])) == (d, b)
    assert abs(int(less) - (1 - 2.0**-k) * d) <= 2**k + 2.0**-50 * abs(d)
    assert 0 <= int(bits) <= (b + 1) * (1 + 1 / (2**k - 1)) + 1


@pytest.mark.parametrize("coupling", [0.5, 0.875, 1 - 2.0**-8])
def test_every_state_is_met_again_to_the_last_bit(coupling):
    """Over several words of remainders, of a tree, from a time that is not zero."""
    sim = both_ways(0.003, diffrax.Bosh3(), coupling)
    y0 = {"a": jnp.asarray([1.0, 0.3]), "b": jnp.asarray(-0.2)}
    state = sim.init(K, y0=y0, t0=0.7)
    steps = 700

    @jax.jit
    def there_and_back(state):
        start = sim.to_exact(K, state, steps)
        on = lambda e, _: (sim.exact_step(K, e), sim.from_exact(e).z["a"])  # noqa: E731
        off = lambda e, _: (e := sim.exact_unstep(K, e), sim.from_exact(e).z["a"])  # noqa: E731
        there, ahead = jax.lax.scan(on, start, length=steps)
        back, behind = jax.lax.scan(off, there, length=steps)
        return start, there, back, ahead, behind

    start, there, back, ahead, behind = there_and_back(state)
    assert sim.same(back, start)
    assert not sim.same(there, start)
    np.testing.assert_array_equal(ahead, behind[::-1])
    assert all(np.all(b == 0) for b in jax.tree.leaves(back.bits))
    assert float(sim.time(sim.from_exact(there))) == pytest.approx(0.7 + 2.1)
    assert np.any(jax.tree.leaves(there.bits)[0][-1] > 0)


def test_plain_steps_and_exact_ones_are_one_method():
    sim = both_ways(0.01)
    plain, exact = (end(sim, 300, a).state for a in (ds.Direct(), ds.Reversible()))
    np.testing.assert_allclose(exact.y.y, plain.y.y, rtol=1e-11)
    np.testing.assert_allclose(exact.z, plain.z, rtol=1e-11)
    back = sim.unstep(K, sim.step(K, plain))
    np.testing.assert_allclose(back.y.y, plain.y.y, rtol=1e-13)
    assert back.y.step == plain.y.step


@functools.cache
def slope(steps, adjoint):
    sim = both_ways(2.0 / steps)

    def last(params):
        state = sim.init(params, y0=jnp.asarray([params["y0"]]))
        schedule = Schedule(steps=steps, save_every=steps // 4)
        sol = ds.solve(sim, params, state, schedule=schedule, adjoint=adjoint)
        return jnp.sum(sol.observables["y"] ** 2)

    return jax.jit(jax.grad(last)).lower(K | {"y0": jnp.asarray(0.8)}).compile()


def test_gradients_are_those_of_autodiff_over_several_words():
    params = K | {"y0": jnp.asarray(0.8)}
    found, wanted = (slope(1200, a)(params) for a in (ds.Reversible(), ds.Direct()))
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-9, err_msg=name)


def test_memory_is_some_bits_a_step():
    """A further number for each and 280 steps, where autodiff keeps dozens a step."""
    runs = [(1200, ds.Reversible()), (12_000, ds.Reversible()), (1200, ds.Direct())]
    short, long, direct = (temp_bytes(slope(*run)) or 0 for run in runs)
    assert long - short <= 2 * 8 * (12_000 - 1200) / 280 + 64  # of the start, and on the way
    assert direct > 20 * short


def test_what_decays_too_fast_is_said_to_be_unstable():
    sim = both_ways(0.1, field=lambda t, y, args: -args["k"] * y)
    calm = end(sim, 200, ds.Direct())
    assert calm.result == RESULTS.successful
    assert float(calm.observables["gap"][-1]) < 1e-6
    wild = end(sim, 200, ds.Direct(), params={"k": jnp.asarray(5.0)})
    assert wild.result == RESULTS.unstable
    assert int(wild.first_bad_step) < 60


def test_what_it_cannot_do_is_refused():
    implicit = ode.DifferentialEquation(bent, diffrax.Kvaerno3(), dt=0.1)
    adaptive = ode.DifferentialEquation(bent)
    for equation in (implicit, adaptive):
        with pytest.raises(ConfigError, match="explicit solver and a fixed step"):
            ode.AlgebraicallyReversible(equation)
    for coupling, near in ((0.9, "0.875"), (0.999, "0.999023"), (1.5, "0.5"), (0.0, "0.5")):
        with pytest.raises(ConfigError, match=f"coupling: .*{near}"):
            both_ways(0.1, coupling=coupling)
    with pytest.raises(ConfigError, match=r"AlgebraicallyReversible"):
        end(adaptive.__class__(bent, dt=0.1), 3, ds.Reversible())


@pytest.mark.slow  # to compile
def test_second_derivatives_are_right_or_refused():
    sim = both_ways(0.05)

    def last(params, adjoint):
        state = sim.init(params, y0=jnp.asarray([1.0]))
        sol = ds.solve(sim, params, state, schedule=Schedule(steps=30), adjoint=adjoint)
        return jnp.sum(sol.state.y.y**2)

    def curvature(adjoint):
        fn = lambda z: last({"k": z[0]}, adjoint)  # noqa: E731
        return float(jax.jit(lambda z: hessian(fn, z, adjoint, sim))(K["k"][None])[0, 0])

    wanted = curvature(ds.Direct())
    assert abs(wanted) > 1e-3
    assert curvature(ds.RecursiveCheckpoint(3)) == pytest.approx(wanted, rel=1e-12)
    assert curvature(ds.Reversible()) == pytest.approx(wanted, rel=1e-6)  # by differences
    for refusing in (ds.Reversible(), ds.RecursiveCheckpoint(3, offload="host")):
        assert not refusing.twice
        with pytest.raises(
            ConfigError, match=r"no second derivatives.*RecursiveCheckpoint, Direct"
        ):
            jax.hessian(last)(K, refusing)

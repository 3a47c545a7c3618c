"""Every simulation by every adjoint: values and gradients, alone and side by side, or a refusal."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffsim as ds
from diffsim import cfd, md, ode
from problems import argon_box, slow_but

STEPS = 12
SCHEDULE = ds.Schedule(steps=STEPS, save_every=4)
EXACT = {
    "Direct": ds.Direct(),
    "RecursiveCheckpoint": ds.RecursiveCheckpoint(3),
    "Reversible": ds.Reversible(),
    "ForwardMode": ds.ForwardMode(),
    "Truncated": ds.Truncated(STEPS),  # a window that is the whole run
    "Auto": ds.Auto(memory="1GB"),
}
OTHERS = {"Backsolve": ds.Backsolve(), "Reweight": ds.Reweight()}


class System(NamedTuple):
    """A simulation, where its gradient is taken, what of a state is free and what is seen."""

    simulation: Any
    params: Any
    state: Any
    free: Callable[[Any], Any]
    seen: tuple[str, ...]


def atoms(kind, **options) -> System:
    """Lennard-Jones."""
    made = argon_box(atoms=6, density=0.25, dt=0.004, kind=kind, **options)
    free = lambda s: (s.positions, s.velocities)  # noqa: E731
    return System(*made, free, ("potential_energy", "pressure", "positions"))


LOTKA = ode.DifferentialEquation(ode.LotkaVolterra(), diffrax.Tsit5(), dt=0.05)
RATES = {"alpha": 1.5, "beta": 1.0, "gamma": 3.0, "delta": 1.0}


def lotka() -> System:
    params = jax.tree.map(jnp.asarray, RATES)
    state = LOTKA.init(params, y0=jnp.asarray([1.0, 1.2]))
    return System(LOTKA, params, state, lambda s: s.y, ("y",))


def lotka_both_ways() -> System:
    simulation, params = ode.AlgebraicallyReversible(LOTKA), jax.tree.map(jnp.asarray, RATES)
    state = simulation.init(params, y0=jnp.asarray([1.0, 1.2]))
    free = lambda s: (s.y.y, s.z)  # noqa: E731
    return System(simulation, params, state, free, ("y",))


def kepler() -> System:
    simulation = ode.HamiltonianDynamics(ode.Kepler(), 0.05, ode.Yoshida4())
    params = {"mu": jnp.asarray(1.1)}
    state = simulation.init(params, y0=jnp.asarray([0.6, 0.0, 0.0, 1.4]))
    free = lambda s: (s.q, s.p)  # noqa: E731
    return System(simulation, params, state, free, ("y", "energy"))


def diffusion() -> System:
    simulation = cfd.AdvectionDiffusion(cfd.Grid((4, 5), 2.0), 0.05)
    params = {"diffusivity": jnp.asarray(0.1), "velocity": jnp.asarray([0.3, -0.2])}
    field = np.random.default_rng(0).standard_normal((4, 5))
    state = simulation.init(params, jax.random.key(0), u=field)
    return System(simulation, params, state, lambda s: s.spectrum, ("u",))


# Each with what it refuses.
TABLE = {
    "LJ NVE": (functools.partial(atoms, md.NVE), ("Backsolve", "Reweight")),
    "LJ Langevin": (functools.partial(atoms, md.NVT, friction=2.0), ("Reversible", "Backsolve")),
    "Lotka-Volterra": (lotka, ("Reversible", "Reweight")),
    "Lotka-Volterra both ways": (lotka_both_ways, ("Backsolve", "Reweight")),
    "Kepler": (kepler, ("Backsolve", "Reweight")),
    "advection-diffusion": (diffusion, ("Reversible", "Backsolve", "Reweight")),
}
SYSTEMS = {name: functools.cache(make) for name, (make, _) in TABLE.items()}
# Every adjoint, and every kind of simulation; the way both ways: tests/test_reversible_equations.py
QUICK = [("Kepler", adjoint) for adjoint in EXACT]
QUICK += [("LJ NVE", "Reversible"), ("Lotka-Volterra", "RecursiveCheckpoint")]
QUICK += [("advection-diffusion", "ForwardMode")]
PAIRS = [
    (name, adjoint)
    for name, (_, refuses) in TABLE.items()
    for adjoint in EXACT
    if adjoint != "Direct" and adjoint not in refuses
]
REFUSED = [(name, adjoint) for name, (_, refuses) in TABLE.items() for adjoint in refuses]


def score(variables, system: System, adjoint) -> Any:
    """A loss that sees every entry of what is saved and of the end, not linearly."""
    params, free = variables
    state = eqx.tree_at(system.free, system.state, free)
    sol = ds.solve(
        system.simulation,
        params,
        state,
        schedule=SCHEDULE,
        adjoint=adjoint,
        observables=system.seen,
    )
    leaves = jax.tree.leaves((sol.observables, system.free(sol.state)))
    weights = (1 + 0.5 * np.sin(np.arange(x.size)).reshape(x.shape) for x in leaves)
    return sum(jnp.sum(w * x + 0.3 * x**2) for w, x in zip(weights, leaves, strict=True))


def members(system: System) -> Any:
    """Two sets of parameters and starts."""
    variables = system.params, system.free(system.state)
    return jax.tree.map(lambda x: jnp.stack([x, 1.02 * x]), variables)


def value_and_gradients(system: System, adjoint) -> Callable[[Any], Any]:
    loss = lambda variables: score(variables, system, adjoint)  # noqa: E731
    if "reverse" in adjoint.modes:
        return jax.value_and_grad(loss)
    return lambda variables: (loss(variables), jax.jacfwd(loss)(variables))


@functools.cache
def results(name: str, adjoint: str) -> tuple[Any, Any]:
    """Value and gradients of the first member, and of both side by side."""
    system = SYSTEMS[name]()
    both = members(system)
    first = jax.tree.map(lambda x: x[0], both)
    run = value_and_gradients(system, EXACT[adjoint])
    return jax.jit(run)(first), jax.jit(jax.vmap(run))(both)


def agree(found, wanted, within):
    for a, b in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
        np.testing.assert_allclose(a, b, rtol=within, atol=within * float(jnp.max(jnp.abs(b))))


@pytest.mark.parametrize(("name", "adjoint"), slow_but(QUICK, PAIRS))
def test_values_and_gradients_agree(name, adjoint):
    (alone, batched), (wanted, wanted_batched) = results(name, adjoint), results(name, "Direct")
    agree(alone, wanted, 1e-8)
    agree(batched, wanted_batched, 1e-8)
    agree(jax.tree.map(lambda x: x[0], batched), alone, 1e-8)


# those of molecular dynamics: tests/test_adjoints.py
@pytest.mark.parametrize(
    "name", slow_but(dict(QUICK), [name for name in TABLE if "LJ" not in name])
)
def test_direct_agrees_with_differences(name):
    """Along one direction in all parameters and the start, so that the others cannot all be wrong
    alike."""
    system = SYSTEMS[name]()
    first = jax.tree.map(lambda x: x[0], members(system))
    rng = np.random.default_rng(1)
    along = jax.tree.map(lambda x: rng.standard_normal(x.shape) * jnp.abs(x).mean(), first)
    value = jax.jit(
        lambda h: score(jax.tree.map(lambda x, d: x + h * d, first, along), system, ds.Direct())
    )
    gradient = results(name, "Direct")[0][1]
    slope = sum(
        jnp.sum(g * d) for g, d in zip(*map(jax.tree.leaves, (gradient, along)), strict=True)
    )
    h = 1e-4
    near, far = ((value(k * h) - value(-k * h)) / (2 * k * h) for k in (1, 2))
    assert float((4 * near - far) / 3) == pytest.approx(float(slope), rel=1e-7)


@pytest.mark.parametrize(("name", "adjoint"), REFUSED)
def test_what_cannot_work_is_refused_before_tracing(name, adjoint):
    system = SYSTEMS[name]()
    with pytest.raises(ds.ConfigError, match=r"allowed: .*Direct") as caught:
        score((system.params, system.free(system.state)), system, (EXACT | OTHERS)[adjoint])
    assert caught.value.key == "adjoint"
    assert adjoint not in (caught.value.allowed or ())


@pytest.mark.slow  # to compile; against published numbers: tests/test_ode.py
def test_the_continuous_adjoint_agrees_as_far_as_its_steps_are_small():
    system = lotka()
    fine = ode.DifferentialEquation(ode.LotkaVolterra(), diffrax.Tsit5(), dt=0.005)
    state = fine.init(system.params, y0=system.state.y)
    system = system._replace(simulation=fine, state=state)
    variables = system.params, state.y
    found, wanted = (
        jax.jit(jax.grad(lambda v, a=a: score(v, system, a)))(variables)
        for a in (ds.Backsolve(), ds.Direct())
    )
    agree(found, wanted, 1e-7)
    assert any(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (found, wanted)), strict=True))

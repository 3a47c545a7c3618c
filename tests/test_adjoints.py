"""Every adjoint on every problem: Taylor remainders, finite differences, agreement, jit and
vmap."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffsim as ds
from diffsim import (
    AbstractReversible,
    ConfigError,
    Direct,
    FunctionSimulation,
    Implicit,
    RecursiveCheckpoint,
    Reversible,
    Reweight,
    Schedule,
    md,
)
from diffsim._adjoint import known_adjoints
from problems import argon_box, slow_but, springs, wells

ADJOINTS = {
    "direct": Direct(),
    "checkpoint": RecursiveCheckpoint(),
    "checkpoint 1": RecursiveCheckpoint(1),
    "checkpoint 3": RecursiveCheckpoint(3),
    "checkpoint all": RecursiveCheckpoint(10_000),
    "reversible": Reversible(),
}
EVERY = ("direct", "checkpoint", "checkpoint 1", "checkpoint 3", "checkpoint all")


class Problem(NamedTuple):
    """A simulation with what its gradient is taken in: the parameters and `free` leaves of a
    state."""

    simulation: Any
    params: Any
    state: Any
    schedule: Schedule
    free: Callable[[Any], Any] = lambda state: state
    observables: tuple[str, ...] | None = None
    gradient: Callable[[Any, Any], Any] | None = None  # the answer, where it is known


class Scaling(AbstractReversible):
    """x' = θ x with θ a power of two: exact in floating point, hence reversible as it stands."""

    def init(self, params, key, **conditions):
        return conditions["x"]

    def step(self, params, state):
        return params["theta"] * state

    def unstep(self, params, state):
        return state / params["theta"]

    def observe(self, params, state):
        return {"x": state}


def oscillator() -> Problem:
    """Velocity Verlet of ω² q as a user's function, saved at times."""

    def step(params, state):
        q, v = state
        v = v - 0.05 * params["omega"] ** 2 * q
        q = q + 0.1 * v
        return q, v - 0.05 * params["omega"] ** 2 * q

    def observe(params, state):
        q, v = state
        return {"q": q, "energy": 0.5 * (v**2 + params["omega"] ** 2 * q**2)}

    simulation = FunctionSimulation(step, observe, dt=0.1)
    state = (jnp.asarray([1.0, 0.3]), jnp.asarray([0.0, -0.5]))
    schedule = Schedule(t1=4.0, ts=[0.0, 0.6, 1.2, 2.4])
    return Problem(simulation, {"omega": jnp.asarray(1.3)}, state, schedule)


def logistic() -> Problem:
    simulation = FunctionSimulation(lambda params, x: params["r"] * x * (1 - x))
    params, state = {"r": jnp.asarray(3.2)}, jnp.asarray(0.3)
    return Problem(simulation, params, state, Schedule(steps=12, save_every=3))


def one_step() -> Problem:
    return logistic()._replace(schedule=Schedule(steps=1))


def walk() -> Problem:
    """A random walk in a well: a typed key and a counter in the state, a network as parameters."""

    def step(params, state):
        noise = jax.random.normal(jax.random.fold_in(state["key"], state["count"]), (2,))
        x = state["x"] + 0.1 * (params["net"](state["x"]) - state["x"])
        x = x + params["kick"] * noise
        return {"x": x, "count": state["count"] + 1, "key": state["key"]}

    def observe(params, state):
        return {"x": state["x"], "count": state["count"], "r2": jnp.sum(state["x"] ** 2)}

    net = eqx.nn.MLP(2, 2, 4, 1, activation=jnp.tanh, key=jax.random.key(0))
    params = {"net": net, "kick": jnp.asarray(0.3)}
    state = {"x": jnp.asarray([0.5, -1.0]), "count": jnp.asarray(0), "key": jax.random.key(1)}
    simulation = FunctionSimulation(step, observe)
    schedule = Schedule(steps=20, save_every=5)
    return Problem(simulation, params, state, schedule, lambda state: state["x"])


def scaling() -> Problem:
    """d(x0 θ^n)/dθ = n x0 θ^(n-1), and θ^n in x0: `loss` sums such terms."""
    params, state = {"theta": jnp.asarray(0.5)}, jnp.asarray([3.0, -2.0])
    schedule = Schedule(steps=8, save_every=2)

    def gradient(params, state):
        n, theta = np.array([2.0, 4.0, 6.0, 8.0, 8.0])[:, None], 0.5
        x0, x = np.asarray(state), np.asarray(state) * theta**n
        slope = np.concatenate([weights((4, 2)), weights((1, 2), 1)]) + x
        by_theta = np.sum(slope * n * x0 * theta ** (n - 1))
        return {"theta": by_theta}, np.sum(slope * theta**n, axis=0)

    return Problem(Scaling(), params, state, schedule, gradient=gradient)


def moving(state: md.State) -> tuple[Any, Any]:
    return state.positions, state.velocities


def liquid() -> Problem:
    simulation, params, state = argon_box(atoms=6, density=0.25, dt=0.004)
    seen = ("potential_energy", "residual_energy", "pressure", "temperature", "positions")
    schedule = Schedule(steps=30, save_every=10)
    return Problem(simulation, params, state, schedule, moving, seen)


def thermostat() -> Problem:
    simulation, params, state = argon_box(
        atoms=6, density=0.25, dt=0.004, kind=md.NVT, friction=2.0
    )
    seen = ("potential_energy", "pressure", "kinetic_energy", "velocities")
    schedule = Schedule(steps=20, save_every=10)
    return Problem(simulation, params, state, schedule, moving, seen)


def bound() -> Problem:
    """Any function as a potential: the fallbacks of `Potential` for forces and pullback."""
    simulation, params = springs(0.1), {"stiffness": jnp.asarray(1.7)}
    x = np.random.default_rng(0).standard_normal((2, 2, 3))
    state = simulation.init(
        params, jax.random.key(0), positions=x[0], velocities=x[1], box=np.full(3, 9.0)
    )
    seen = ("total_energy", "positions", "momentum")
    schedule = Schedule(steps=50, save_every=25)
    return Problem(simulation, params, state, schedule, moving, seen)


# The problems, and the adjoints that apply to each.
TABLE: dict[str, tuple[Callable[[], Problem], tuple[str, ...]]] = {
    "oscillator": (oscillator, EVERY),
    "logistic map": (logistic, EVERY),
    "one step": (one_step, ("direct", "checkpoint")),
    "walk": (walk, ("direct", "checkpoint 3")),
    "scaling": (scaling, (*EVERY, "reversible")),
    "liquid": (liquid, ("direct", "checkpoint 3", "reversible")),
    "thermostat": (thermostat, ("checkpoint 3",)),
    "springs": (bound, ("direct", "checkpoint", "reversible")),
}
PROBLEMS = {name: functools.cache(make) for name, (make, _) in TABLE.items()}
PAIRS = [(name, adjoint) for name, (_, adjoints) in TABLE.items() for adjoint in adjoints]
LONG = (("liquid", "checkpoint 3"), ("thermostat", "checkpoint 3"))
QUICK = [pair for pair in PAIRS if pair not in LONG]


def weights(shape, seed=0):
    """Fixed factors around one that make every entry count on its own."""
    return 1 + 0.5 * np.sin(1 + 3 * seed + np.arange(np.prod(shape, dtype=int))).reshape(shape)


def score(tree):
    """A loss that sees every entry of a tree, not linearly."""
    leaves = jax.tree.leaves(eqx.filter(tree, eqx.is_inexact_array))
    return sum(
        jnp.sum(weights(leaf.shape, k) * leaf + 0.5 * leaf**2) for k, leaf in enumerate(leaves)
    )


def loss(variables, problem: Problem, adjoint) -> Any:
    """Of saved observables and the final state, in parameters and the free part of the start."""
    params, free = variables
    state = eqx.tree_at(problem.free, problem.state, free)
    sol = ds.solve(
        problem.simulation,
        params,
        state,
        schedule=problem.schedule,
        adjoint=adjoint,
        observables=problem.observables,
    )
    return score((sol.observables, problem.free(sol.state)))


@functools.cache
def value_of(name: str) -> Callable:
    return eqx.filter_jit(lambda variables: loss(variables, PROBLEMS[name](), Direct()))


@functools.cache
def gradient_of(name: str, adjoint: str) -> Callable:
    one = functools.partial(loss, problem=PROBLEMS[name](), adjoint=ADJOINTS[adjoint])
    return eqx.filter_jit(eqx.filter_value_and_grad(one))


def start_of(name: str) -> Any:
    problem = PROBLEMS[name]()
    return problem.params, problem.free(problem.state)


@functools.cache
def gradient_at_start(name: str, adjoint: str) -> Any:
    return gradient_of(name, adjoint)(start_of(name))


def along(tree, direction, h):
    return jax.tree.map(lambda x, d: x + h * d if eqx.is_inexact_array(x) else x, tree, direction)


def random_like(tree, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: rng.standard_normal(x.shape) if eqx.is_inexact_array(x) else x, tree
    )


def numbers(tree):
    leaves = jax.tree.leaves(eqx.filter(tree, eqx.is_array))
    return np.concatenate([np.ravel(leaf) for leaf in leaves])


@pytest.mark.parametrize(("name", "adjoint"), slow_but(QUICK, PAIRS))
def test_taylor_remainders_fall_as_the_square(name, adjoint):
    """|ℓ(x + h d) - ℓ(x) - h ∇ℓ·d| ~ h², at rates of 1.99 to 2.01 as h halves."""
    start, value = start_of(name), value_of(name)
    base, gradient = gradient_at_start(name, adjoint)
    direction = random_like(start)
    slope = numbers(gradient) @ numbers(eqx.filter(direction, eqx.is_inexact_array))
    steps = 2e-4 / 2.0 ** np.arange(4)
    base = value(start)
    remainders = [abs(value(along(start, direction, h)) - base - h * slope) for h in steps]
    rates = np.log2(np.array(remainders[:-1]) / remainders[1:])
    assert np.all((rates > 1.99) & (rates < 2.01)), rates


@pytest.mark.parametrize(("name", "adjoint"), slow_but(QUICK, PAIRS))
def test_agrees_with_finite_differences(name, adjoint):
    """Central differences, parameter by parameter, and in the state along a random direction."""
    start, value = start_of(name), value_of(name)
    _, gradient = gradient_at_start(name, adjoint)
    params, state = eqx.filter(gradient, eqx.is_array)
    zero = jax.tree.map(lambda x: jnp.zeros_like(x) if eqx.is_inexact_array(x) else x, start)
    cases = [(along(zero[1], random_like(start[1], 1), 1.0), state, 1)]
    cases += [(one, params, 0) for one in unit_directions(zero[0])][:6]
    for direction, part, where in cases:
        full = (zero[0], direction) if where else (direction, zero[1])
        h = 1e-4
        rise = [value(along(start, full, c * h)) for c in (1, -1, 2, -2)]
        central = (8 * (rise[0] - rise[1]) - (rise[2] - rise[3])) / (12 * h)
        found = numbers(part) @ numbers(eqx.filter(direction, eqx.is_inexact_array))
        assert found == pytest.approx(float(central), rel=1e-7, abs=1e-8)


def unit_directions(zero):
    """One direction for each number of a tree of zeros."""
    leaves, treedef = jax.tree.flatten(zero)
    for i, leaf in enumerate(leaves):
        for k in range(leaf.size if eqx.is_inexact_array(leaf) else 0):
            one = jnp.zeros(leaf.size).at[k].set(1.0).reshape(leaf.shape)
            yield jax.tree.unflatten(treedef, [*leaves[:i], one, *leaves[i + 1 :]])


OTHERS = [pair for pair in PAIRS if pair[1] != "direct" and "direct" in TABLE[pair[0]][1]]


@pytest.mark.parametrize(("name", "adjoint"), slow_but(QUICK, OTHERS))
def test_agrees_with_direct(name, adjoint):
    value, gradient = gradient_at_start(name, adjoint)
    expected_value, expected = gradient_at_start(name, "direct")
    # Reversible's trajectory is that of coordinates rounded to 2⁻⁴⁰.
    rtol = 1e-8 if adjoint == "reversible" else 1e-11
    assert value == pytest.approx(float(expected_value), rel=rtol)
    found, wanted = numbers(gradient), numbers(expected)
    np.testing.assert_allclose(found, wanted, rtol=rtol, atol=rtol * np.abs(wanted).max())


def test_answers_that_are_known():
    for name, make in PROBLEMS.items():
        problem = make()
        if problem.gradient is not None:
            expected = numbers(jax.tree.map(jnp.asarray, problem.gradient(*start_of(name))))
            for adjoint in TABLE[name][1]:
                _, found = gradient_at_start(name, adjoint)
                np.testing.assert_allclose(numbers(found), expected, rtol=1e-14)


VMAPPED = [
    ("logistic map", "direct"),
    ("oscillator", "checkpoint 3"),
    ("walk", "checkpoint 3"),
    ("scaling", "reversible"),
    ("springs", "checkpoint"),
    ("springs", "reversible"),
]


@pytest.mark.parametrize(("name", "adjoint"), slow_but(VMAPPED[2:4], VMAPPED))
def test_a_batch_is_its_members(name, adjoint):
    alone = gradient_of(name, adjoint)
    starts = [along(start_of(name), random_like(start_of(name), 7), h) for h in (0.0, 0.01)]
    arrays = [eqx.filter(start, eqx.is_array) for start in starts]
    batch = eqx.combine(jax.tree.map(lambda *x: jnp.stack(x), *arrays), starts[0])
    if name == "scaling":  # whose θ has no neighbour that is a power of two
        batch = eqx.tree_at(lambda b: b[0]["theta"], batch, jnp.asarray([0.5, 0.25]))
        starts[1] = eqx.tree_at(lambda s: s[0]["theta"], starts[1], jnp.asarray(0.25))
    values, gradients = eqx.filter_vmap(alone)(batch)
    for k, start in enumerate(starts):
        value, gradient = alone(start)
        assert values[k] == pytest.approx(float(value), rel=1e-10)
        found, wanted = numbers(jax.tree.map(lambda x: x[k], gradients)), numbers(gradient)  # noqa: B023
        np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-9 * np.abs(wanted).max())


@pytest.mark.parametrize("adjoint", ["direct", "checkpoint 3", "reversible"])
def test_jit_changes_nothing(adjoint):
    one = functools.partial(loss, problem=PROBLEMS["scaling"](), adjoint=ADJOINTS[adjoint])
    _, eager = eqx.filter_value_and_grad(one)(start_of("scaling"))
    _, compiled = gradient_at_start("scaling", adjoint)
    np.testing.assert_allclose(numbers(eager), numbers(compiled), rtol=1e-14)


PARTS = {
    "the final state": lambda sol: jnp.sum(moving(sol.state)[0] ** 2),
    "one observable": lambda sol: jnp.sum(sol.observables["kinetic_energy"]),
    "one save": lambda sol: sol.observables["potential_energy"][1],
}


@functools.cache
def gradient_of_part(part, adjoint):
    problem, schedule = PROBLEMS["springs"](), Schedule(steps=6, save_every=2)

    def one(params):
        run = functools.partial(ds.solve, problem.simulation, params, problem.state)
        return PARTS[part](run(schedule=schedule, adjoint=ADJOINTS[adjoint]))

    return numbers(eqx.filter_jit(jax.grad(one))(problem.params))


@pytest.mark.parametrize("part", slow_but(["one save"], PARTS))
@pytest.mark.parametrize("adjoint", ["checkpoint 3", "reversible"])
def test_losses_that_leave_something_out(part, adjoint):
    """All observables are saved, and few of them used."""
    expected = gradient_of_part(part, "direct")
    np.testing.assert_allclose(gradient_of_part(part, adjoint), expected, rtol=1e-9)


@functools.cache
def gradient_of_held(held, adjoint):
    nve, params = md.NVE(md.Potential(wells), 0.1), {"depth": jnp.asarray(1.2)}
    x = np.random.default_rng(0).uniform(0, 5, (2, 2, 3))
    start = dict(positions=x[0], velocities=0.1 * x[1], box=np.array([4.0, 5.0, 6.0]))
    state = nve.init(params, jax.random.key(0), masses=np.array([1.0, 2.0]), **start)

    def one(x):
        changed = eqx.tree_at(lambda s: getattr(s, held), state, x)
        schedule, names = Schedule(steps=10, save_every=5), ["potential_energy", "kinetic_energy"]
        sol = ds.solve(
            nve, params, changed, schedule=schedule, adjoint=ADJOINTS[adjoint], observables=names
        )
        return score(sol.observables)

    return np.asarray(eqx.filter_jit(jax.grad(one))(getattr(state, held)))


@pytest.mark.parametrize("adjoint", ["checkpoint 3", "reversible"])
@pytest.mark.parametrize("held", ["masses", "box"])
def test_gradients_in_masses_and_box(held, adjoint):
    """Right, or NaN: never wrong in silence."""
    found, expected = gradient_of_held(held, adjoint), gradient_of_held(held, "direct")
    assert np.all(np.isfinite(expected))
    if not np.all(np.isnan(found)):
        np.testing.assert_allclose(found, expected, rtol=1e-7)


@pytest.mark.parametrize("adjoint", ["direct", "checkpoint 3", "reversible"])
def test_a_single_atom_has_finite_gradients(adjoint):
    """Its momentum is all that it has: no degree of freedom is left for a temperature."""
    nve, params = springs(0.1), {"stiffness": jnp.asarray(1.7)}
    one = jnp.ones((1, 3))
    state = nve.init(params, jax.random.key(0), positions=one, velocities=one, box=9 * one[0])

    def final(params):
        sol = ds.solve(nve, params, state, schedule=Schedule(steps=3), adjoint=ADJOINTS[adjoint])
        return jnp.sum(sol.observables["positions"])

    assert np.isfinite(jax.jit(jax.grad(final))(params)["stiffness"])


def test_forward_mode():
    name = "oscillator"
    start, direction = start_of(name), random_like(start_of(name))
    one = functools.partial(loss, problem=PROBLEMS[name](), adjoint=Direct())
    _, slope = jax.jvp(one, (start,), (direction,))
    _, gradient = gradient_at_start(name, "direct")
    assert slope == pytest.approx(float(numbers(gradient) @ numbers(direction)), rel=1e-12)
    assert "forward" in Direct.modes and "forward" not in RecursiveCheckpoint.modes
    reverse_only = functools.partial(loss, problem=PROBLEMS[name](), adjoint=RecursiveCheckpoint())
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(reverse_only, (start,), (direction,))


@pytest.mark.parametrize("adjoint", ["checkpoint", "reversible"])
def test_arrays_that_the_simulation_holds_are_no_parameters(adjoint):
    """Their gradient would be lost: an error, not a zero."""
    positions = jnp.asarray([[0.0, 0.0, 0.0], [1.0, 2.0, 3.0]])

    def final(net):
        nve = md.NVE(md.Potential(net), 0.1)
        start = dict(positions=positions, velocities=positions, box=jnp.full(3, 9.0))
        state = nve.init({}, jax.random.key(0), **start)
        sol = ds.solve(nve, {}, state, schedule=Schedule(steps=2), adjoint=ADJOINTS[adjoint])
        return jnp.sum(sol.state.positions)

    with pytest.raises(Exception, match=r"perturbed|differentiat|nondiff"):
        eqx.filter_grad(final)(Flat(eqx.nn.MLP(6, "scalar", 4, 1, key=jax.random.key(0))))


class Flat(eqx.Module):
    net: Any

    def __call__(self, positions):
        return self.net(jnp.tanh(positions).ravel())


REFUSED = {
    "reversible function": (Reversible(), "oscillator", "AbstractReversible", "Direct, For"),
    "reversible thermostat": (Reversible(), "thermostat", "AbstractReversible", "Reweight"),
    "reweighted function": (Reweight(), "logistic map", "AbstractEquilibrium", "Direct"),
    "reweighted mechanics": (Reweight(), "liquid", "AbstractEquilibrium", "Reversible"),
    "a sampler at rest": (Implicit(), "thermostat", "comes to rest", "Reweight"),
    "mechanics at rest": (Implicit(), "liquid", "comes to rest", "Reversible"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused(name):
    adjoint, problem, missing, works = REFUSED[name]
    with pytest.raises(ConfigError, match=f"{missing}.*allowed: .*{works}") as caught:
        loss(start_of(problem), PROBLEMS[problem](), adjoint)
    assert caught.value.key == "adjoint"
    known = {adjoint.__name__: adjoint for adjoint in known_adjoints()}
    for fitting in caught.value.allowed or ():
        options = {"window": 1} if fitting == "Truncated" else {}
        known[fitting](**options).check(PROBLEMS[problem]().simulation)
    assert caught.value.suggestion == "Direct"


def test_parameters_must_be_given_for_checkpoints():
    for bad in (0, -3):
        with pytest.raises(ConfigError, match="checkpoints: must be at least 1"):
            RecursiveCheckpoint(bad)

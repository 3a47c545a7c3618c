"""A table for a process that sees eight devices.

`python sharded.py SYSTEM:ADJOINT:DEVICES:ROWS ...` prints a line of JSON a row: by how much,
relative to the largest entry, value and gradients over devices differ from those on one, and what
the devices said to each other.
"""

import functools
import json
import sys
import time
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

jax.config.update("jax_enable_x64", True)

import diffsim as ds  # noqa: E402
from diffsim import ode  # noqa: E402
from diffsim._drive import View, drive  # noqa: E402
from diffsim._placement import collectives  # noqa: E402
from problems import springs  # noqa: E402
from test_adjoint_matrix import EXACT, OTHERS, RATES, SYSTEMS, System  # noqa: E402

ADJOINTS = EXACT | OTHERS | {"RecursiveCheckpoint": ds.RecursiveCheckpoint(3)}
STEPS, TIMES = ds.Schedule(steps=12, save_every=4), ds.Schedule(ts=(0.4, 0.8))


def adaptive() -> System:
    """A solver that chooses its steps, whose loops and checkpoints are Diffrax's own."""
    simulation = ode.DifferentialEquation(ode.LotkaVolterra(), diffrax.Tsit5(), rtol=1e-6)
    params = jax.tree.map(jnp.asarray, RATES)
    state = simulation.init(params, y0=jnp.asarray([1.0, 1.2]))
    return System(simulation, params, state, lambda s: s.y, ("y",))


EVERY = SYSTEMS | {"adaptive": functools.cache(adaptive)}


def losses(system, adjoint, placement):
    """A loss of shared parameters and of every member's start."""
    schedule = TIMES if getattr(system.simulation, "adaptive", False) else STEPS

    def one(shared, free):
        simulation, params = shared
        state = eqx.tree_at(system.free, system.state, free)
        sol = ds.solve(
            simulation, params, state, schedule=schedule, adjoint=adjoint, observables=system.seen
        )
        leaves = [jnp.mean(x, axis=0) for x in jax.tree.leaves(sol.observables)]
        weights = (1 + 0.5 * np.sin(np.arange(x.size)).reshape(x.shape) for x in leaves)
        value = sum(jnp.sum(w * x + 0.3 * x**2) for w, x in zip(weights, leaves, strict=True))
        return value, sol.first_bad_step

    def loss(variables):
        params, members = variables
        strategy = placement.strategy(system.simulation, adjoint)
        values, bad = placement.map(one, (system.simulation, params), members, strategy=strategy)
        weights = 1 + 0.1 * jnp.arange(values.shape[0])
        return jnp.sum(weights * values), (values, bad)

    return loss


def evaluated(system, adjoint, placement, rows):
    """Value and gradients of `rows` members, and the compiled program's text."""
    members = jax.tree.map(
        lambda x: jnp.stack([x * (1 + 0.003 * i) for i in range(rows)]), system.free(system.state)
    )
    loss = losses(system, adjoint, placement)
    if "reverse" in adjoint.modes:
        run = jax.value_and_grad(loss, has_aux=True)
    else:
        run = lambda v: (loss(v), jax.jacfwd(lambda p: loss((p, v[1]))[0])(v[0]))  # noqa: E731
    program = jax.jit(run).lower((system.params, members)).compile()
    return program((system.params, members)), program.as_text() or ""


@functools.cache
def reference(name, adjoint, rows):
    return evaluated(EVERY[name](), ADJOINTS[adjoint], ds.SingleDevice(), rows)[0]


def row(name, adjoint, devices, rows):
    found, text = evaluated(EVERY[name](), ADJOINTS[adjoint], ds.Batch(devices), rows)
    pairs = zip(*map(jax.tree.leaves, (found, reference(name, adjoint, rows))), strict=True)
    off = max(
        float(np.max(np.abs(np.asarray(a) - np.asarray(b))) / max(1e-300, np.max(np.abs(b))))
        for a, b in pairs
    )
    said = [tuple(each) for each in collectives(text)]
    finite = bool(np.all([np.all(np.isfinite(x)) for x in jax.tree.leaves(found)]))
    moving = bool(np.any([np.any(np.asarray(x) != 0) for x in jax.tree.leaves(found[1])]))
    return dict(off=off, said=said, finite=finite and moving)


def decaying(placement, rows):
    """Populations that decay at a rate, from starts of their own; a prior, which counts once."""
    step = lambda params, x: x - 0.05 * params["k"] * x  # noqa: E731
    simulation = ds.FunctionSimulation(step, lambda _, x: {"x": x}, dt=0.05)
    starts = 1 + 0.1 * np.arange(rows)[:, None] * np.ones(2)
    measured = 0.6 * starts * (1 + 0.02 * np.sin(np.arange(rows)))[:, None]
    rate = ds.Parameter(0.8, transform="positive", prior=ds.Normal(1.0, 0.5))
    target = ds.Target("x", measured, 0.05)
    conditions = {"state": jnp.asarray(starts)}
    schedule = ds.Schedule(steps=20, save_every=5)
    return ds.Problem(simulation, {"k": rate}, [target], schedule, conditions, placement=placement)


def sampling(placement, rows):
    """Springs in a heat bath, whose energies tell their stiffness by reweighting."""
    simulation = springs(0.3, ds.md.NVT, friction=1.0)
    start = np.random.default_rng(0).standard_normal((rows, 4, 3))
    given = dict(positions=start, box=np.full((rows, 3), 50.0), temperature=np.full(rows, 1.5))
    stiffness = ds.Parameter(1.2, transform="positive")
    energy = ds.Target("potential_energy", np.full(rows, 9.0), 1.0)
    schedule = ds.Schedule(steps=200, save_every=20)
    return ds.Problem(
        simulation, {"stiffness": stiffness}, [energy], schedule, given, 20, placement=placement
    )


FITS = {
    "least_squares": lambda p: ds.least_squares(decaying(*p)),
    "lbfgs": lambda p: ds.fit(decaying(*p), steps=4, uncertainty="laplace"),
    "some": lambda p: ds.fit(decaying(*p), optax.adam(0.05), steps=4, batch=3),
    "reweighting": lambda p: ds.least_squares(sampling(*p), steps=2, adjoint=ds.Reweight()),
}


def answers(found):
    """What a person reads of a fit."""
    error = found.uncertainty
    bars = [] if error is None else [error.total[name] for name in sorted(error.total)]
    losses = [record["loss"] for record in found.history]
    return found.values, found.loss, found.residuals, found.prediction.values, bars, losses


def fits(name, devices, rows):
    one, many = (FITS[name]((p, rows)) for p in (ds.SingleDevice(), ds.Batch(devices)))
    found, wanted = (jax.tree.leaves(answers(each)) for each in (many, one))
    off = [
        float(np.max(np.abs(np.asarray(a) - np.asarray(b))) / max(1e-300, np.max(np.abs(b))))
        for a, b in zip(found, wanted, strict=True)
    ]
    where = jax.tree.leaves(many.prediction.solution.state)[0].sharding.device_set
    return dict(off=max(off), finite=bool(np.isfinite(many.loss)), spread=len(where))


def chains(devices):
    """Chains over devices: the draws are those of one."""
    how: dict[str, Any] = dict(key=jax.random.key(1), starts=1)
    method = ds.NUTS(warmup=20, draws=10, chains=devices)
    one, many = (
        ds.posterior(decaying(p, 3), method, **how) for p in (ds.SingleDevice(), ds.Batch(devices))
    )
    off = np.max(np.abs(one.draws["k"] - many.draws["k"]))
    return dict(off=float(off), finite=many.draws["k"].shape == (devices, 10))


class Growing(ds.AbstractSimulation):
    """x + 1, as long as there is room for it; the member that starts at `bad` ends in no number."""

    bad: float = 1e9

    def init(self, params, key, **conditions):
        return (conditions["x"], jnp.zeros(4))

    def step(self, params, state):
        x = state[0] + params["by"]
        return (jnp.where(x > self.bad, jnp.nan, x), state[1])

    def observe(self, params, state):
        return {"x": state[0]}

    def status(self, state):
        x, room = state
        full = ds.RESULTS.where(
            x > room.shape[0], ds.RESULTS.neighbour_overflow, ds.RESULTS.successful
        )
        return ds.RESULTS.where(jnp.isnan(x), ds.RESULTS.nonfinite, full)

    def enlarge(self, params, state):
        return (state[0], jnp.zeros(2 * state[1].shape[0]))


def drives(devices, rows):
    """A run in chunks with laws, retries for want of room, and at the end a member that fails."""

    def run(placement):
        laws = (ds.Bounded("x", lower=0.0, upper=9.0),)
        states = (jnp.arange(float(rows)), jnp.zeros((rows, 4)))
        given: dict[str, Any] = dict(steps=6, save_every=2, chunk=2, view=View(("x",)))
        simulation, params = Growing(4.5 + rows), {"by": jnp.asarray(1.0)}
        places = placement.place(states)
        run = drive(simulation, params, places, **given, laws=laws, placement=placement)
        return [(c.state, c.seen, c.health.first_bad_step, c.ledger.worst) for c in run]

    found, wanted = run(ds.Batch(devices)), run(ds.SingleDevice())
    same = all(
        np.array_equal(a, b, equal_nan=True)
        for a, b in zip(*map(jax.tree.leaves, (found, wanted)), strict=True)
    )
    bad = np.asarray(found[-1][2]).tolist()
    return dict(off=0.0 if same else 1.0, finite=True, room=found[-1][0][1].shape[1], bad=bad)


def chatty(devices):
    """What must not be: a sum over devices in every step."""
    mesh = ds.Batch(devices).mesh(devices)
    spec = jax.sharding.PartitionSpec("conditions")

    def local(x):
        return jax.lax.fori_loop(0, 5, lambda _, x: x + jax.lax.psum(x, "conditions"), x)

    run = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=spec, out_specs=spec))
    text = run.lower(jnp.ones((devices, 3))).compile().as_text() or ""
    return dict(said=[tuple(each) for each in collectives(text)], off=0.0, finite=True)


OTHERWISE = {
    "chatty": lambda adjoint, devices, rows: chatty(devices),
    "drive": lambda adjoint, devices, rows: drives(devices, rows),
    "fit": fits,
    "chains": lambda adjoint, devices, rows: chains(devices),
}

if __name__ == "__main__":
    before = time.process_time()
    for word in sys.argv[1:]:
        name, adjoint, devices, rows = word.split(":")
        line: dict[str, Any] = dict(
            name=name, adjoint=adjoint, devices=int(devices), rows=int(rows)
        )
        try:
            made = OTHERWISE.get(name, functools.partial(row, name))
            line |= made(adjoint, int(devices), int(rows))
        except Exception as error:
            line |= dict(error=f"{type(error).__name__}: {str(error)[:600]}")
        line["cpu_s"], before = time.process_time() - before, time.process_time()
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()

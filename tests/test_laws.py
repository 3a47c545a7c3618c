"""Laws and their ledger: series with known answers, and how runs and chunks keep the books."""

import functools
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import diffsim as ds
from diffsim import (
    RESULTS,
    AbstractSimulation,
    Bounded,
    ConfigError,
    Conserved,
    FunctionSimulation,
    Ledger,
    Monotone,
    Schedule,
    SimulationError,
    md,
)
from diffsim._drive import View, drive
from diffsim._errors import LawBroken
from diffsim._laws import assess
from problems import argon_box, slow_but, springs

NAN = math.nan

# Law, value at the start, values saved at steps 10, 20, ...; the worst violation, and the step at
# which the law is first broken.
TABLE = {
    "kept": (Conserved("a", rtol=0.1), 2.0, [2.1, 1.9, 2.0], 0.05, None),
    "just kept": (Conserved("a", atol=0.25), 2.0, [2.25, 2.0], 0.25, None),
    "drift": (Conserved("a", rtol=0.1), 2.0, [2.1, 2.3, 2.0], 0.15, 20),
    "downwards": (Conserved("a", rtol=0.1), -2.0, [-2.1, -1.0], 0.5, 20),
    "absolute": (Conserved("a", atol=0.1), 0.0, [0.05, -0.3], 0.3, 20),
    "vector": (Conserved("a", atol=0.1), [0.0, 1.0], [[0.0, 1.0], [0.02, 1.2]], 0.2, 20),
    "by the largest": (Conserved("a", rtol=0.1), [0.0, -4.0], [[0.3, -4.0]], 0.075, None),
    "relative to": (Conserved("a", rtol=0.1, relative_to="s"), 0.0, [0.5, 2.0], 0.2, 20),
    "nan": (Conserved("a", rtol=0.1), 2.0, [2.0, NAN, 2.0], NAN, 20),
    "nan at the start": (Conserved("a", rtol=0.1), NAN, [2.0], NAN, 10),
    "nothing to compare": (Conserved("a", rtol=0.1), 0.0, [0.0], NAN, 10),
    "inside": (Bounded("a", lower=0.0, upper=1.0), 5.0, [0.0, 1.0, 0.5], 0.0, None),
    "above": (Bounded("a", upper=1.0), 0.0, [1.0, 1.5, 1.25], 0.5, 20),
    "below": (Bounded("a", lower=0.0), 0.0, [-2.0, 1.0], 2.0, 10),
    "one of many": (Bounded("a", lower=0.0), [1.0, 1.0], [[1.0, 1.0], [1.0, -0.5]], 0.5, 20),
    "unbounded nan": (Bounded("a", upper=1.0), 0.0, [0.5, NAN], NAN, 20),
    "infinite": (Bounded("a", upper=1.0), 0.0, [math.inf], math.inf, 10),
    "falls": (Monotone("a"), 3.0, [3.0, 2.0, 1.0], 0.0, None),
    "rises": (Monotone("a"), 3.0, [2.0, 2.5, 1.0], 0.5, 20),
    "rises at once": (Monotone("a"), 3.0, [3.5, 2.0], 0.5, 10),
    "rises a little": (Monotone("a", atol=0.5), 3.0, [3.25, 3.5], 0.25, None),
    "grows": (Monotone("a", decreasing=False), 3.0, [3.0, 4.0], 0.0, None),
    "shrinks": (Monotone("a", decreasing=False), 3.0, [4.0, 3.0], 1.0, 20),
    "monotone nan": (Monotone("a"), 3.0, [2.0, NAN, 1.0], NAN, 20),
}


@pytest.mark.parametrize("name", TABLE)
def test_violations(name):
    law, start, series, worst, step = TABLE[name]
    starts = {"a": jnp.asarray(start), "s": jnp.asarray(10.0)}
    series = {"a": jnp.asarray(series), "s": jnp.zeros(len(series))}
    steps = 10 * (1 + jnp.arange(len(series["a"])))
    ledger = assess((law,), starts, series, steps)
    (row,) = ledger.rows()
    assert row["worst"] == pytest.approx(worst, nan_ok=True)
    assert row["step"] == step
    assert row["ok"] == (step is None) == bool(ledger.ok[0])
    assert row["tolerance"] == law.tolerance
    assert row["name"] == f"{type(law).__name__.lower()} a"


def test_an_energy_is_measured_against_the_kinetic_energy():
    start = {"total_energy": jnp.asarray(0.0), "kinetic_energy": jnp.asarray(50.0)}
    series = {"total_energy": jnp.asarray([0.5]), "kinetic_energy": jnp.asarray([40.0])}
    law = Conserved("total_energy", rtol=0.02)
    assert law.needs(("total_energy", "kinetic_energy")) == ("total_energy", "kinetic_energy")
    assert assess((law,), start, series, jnp.asarray([1])).rows()[0]["worst"] == 0.01


@eqx.filter_jit
def in_one_and_in_two(values, cut):
    laws = (
        Conserved("a", atol=1.0),
        Bounded("a", lower=-2.0, upper=2.5),
        Monotone("a", atol=0.5),
        Monotone("a", decreasing=False),
    )
    start, series, steps = {"a": values[0]}, values[1:], jnp.arange(1, len(values))
    whole = assess(laws, start, {"a": series}, steps)
    first = assess(laws, start, {"a": series[:cut]}, steps[:cut])
    before = {"a": series[cut - 1]}
    return whole, first.merge(assess(laws, start, {"a": series[cut:]}, steps[cut:], before=before))


@given(
    values=st.lists(st.one_of(st.floats(-3, 3), st.just(NAN)), min_size=7, max_size=7),
    cut=st.sampled_from([1, 3, 5]),
)
def test_merged_ledgers_are_that_of_one_run(values, cut):
    whole, parts = in_one_and_in_two(jnp.asarray(values), cut)
    np.testing.assert_array_equal(parts.worst, whole.worst)
    np.testing.assert_array_equal(parts.first_broken_step, whole.first_broken_step)


REFUSED = {
    "no tolerance": (lambda: Conserved("a"), "exactly one of rtol and atol"),
    "two": (lambda: Conserved("a", rtol=1.0, atol=1.0), "exactly one of rtol and atol"),
    "negative": (lambda: Conserved("a", rtol=-1.0), "positive and finite"),
    "nan": (lambda: Conserved("a", rtol=NAN), "positive and finite"),
    "action": (lambda: Conserved("a", rtol=1.0, action="stp"), "did you mean stop"),
    "bounds": (lambda: Bounded("a", lower=1.0, upper=0.0), "lower must be below upper"),
    "nan bounds": (lambda: Bounded("a", lower=NAN), "lower must be below upper"),
    "slack": (lambda: Monotone("a", atol=-1.0), "finite and not negative"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name):
    make, message = REFUSED[name]
    with pytest.raises(ConfigError, match=message):
        make()


def growth(factor=2.0):
    return FunctionSimulation(
        lambda params, x: factor * x, lambda params, x: {"size": x, "one": 1.0 + 0 * x}
    )


def test_unknown_observables_are_refused_before_the_run():
    schedule = Schedule(steps=2)
    for law in (Conserved("sze", rtol=0.1), Conserved("one", rtol=0.1, relative_to="sze")):
        with pytest.raises(ConfigError, match=r"sze.*allowed: .*size; did you mean size"):
            ds.solve(growth(), {}, jnp.ones(()), schedule=schedule, laws=[law])


def test_a_run_keeps_its_ledger():
    """The state is 2, 4, 8, ...: bounded by 10 up to step 3."""
    laws = (
        Bounded("size", upper=10.0),
        Monotone("size", decreasing=False),
        Conserved("one", rtol=0.1),
    )

    @eqx.filter_jit
    def run(x):
        schedule = Schedule(steps=6, save_every=2)
        return ds.solve(growth(), {}, x, schedule=schedule, laws=laws, observables=["one"])

    sol = run(jnp.asarray(1.0))
    assert list(sol.observables) == ["one"]  # what a law reads is not saved for that
    assert sol.ledger.worst.tolist() == [54.0, 0.0, 0.0]
    assert sol.ledger.first_broken_step.tolist() == [4, -1, -1]
    assert sol.ledger.ok.tolist() == [False, True, True]
    assert sol.check() is sol  # recorded only
    batch = eqx.filter_vmap(run)(jnp.asarray([1.0, -1.0, 8.0]))
    rows = batch.ledger.rows()
    assert [row["step"] for row in rows] == [2, 2, None]
    assert rows[0]["worst"] == 512 - 10


def test_a_law_may_stop():
    stop = Bounded("size", upper=10.0, action="stop")
    sol = ds.solve(
        growth(), {}, jnp.ones(()), schedule=Schedule(steps=6, save_every=1), laws=[stop]
    )
    with pytest.raises(LawBroken, match=r"bounded size broken: 54 exceeds 0 at step 4; ") as caught:
        sol.check()
    assert (caught.value.step, caught.value.worst) == (4, 54.0)


def test_laws_stand_outside_of_the_gradient():
    def loss(x, laws):
        sol = ds.solve(growth(), {}, x, schedule=Schedule(steps=3), laws=laws)
        return sol.observables["size"].sum() + jnp.sum(sol.ledger.worst)

    plain = jax.grad(loss)(jnp.asarray(1.5), ())
    assert jax.grad(loss)(jnp.asarray(1.5), (Bounded("size", upper=0.0),)) == plain == 8.0


# The host's loop: what it sees does not depend on how long its chunks are.
VIEW = View(("potential_energy", "positions", "kinetic_energy"))
LAWS = (
    Conserved("total_energy", rtol=1e-2),
    Conserved("momentum", atol=0.5),
    Monotone("kinetic_energy"),
    Bounded("temperature", upper=0.9),
)


def bound():
    nve, params = springs(0.1), {"stiffness": jnp.asarray(1.0)}
    x = np.random.default_rng(0).standard_normal((2, 3, 3))
    start = dict(positions=x[0], velocities=x[1], box=np.full(3, 9.0))
    return nve, params, nve.init(params, jax.random.key(0), **start)


def warm():
    return argon_box(atoms=8, density=0.4, kind=md.NVT, friction=1.0, temperature=1.2)


CHUNKS = {"springs": (bound, (1, 2, 4, 6, 8, 10, 15, 18, 20, 100)), "liquid": (warm, (14,))}


@pytest.mark.parametrize("name", slow_but(["springs"], CHUNKS))
def test_the_length_of_chunks_changes_nothing(name):
    """Bits of states and saves, the ledger, and the numbers of the steps."""
    make, lengths = CHUNKS[name]
    simulation, params, state = make()
    states = jax.tree.map(lambda x: jnp.stack([x, x]), state)
    states = eqx.tree_at(lambda s: s.velocities, states, states.velocities.at[1].multiply(0.7))
    options: Any = dict(steps=20, save_every=2, view=VIEW, laws=LAWS)

    def run(chunk):
        chunks = list(drive(simulation, params, states, chunk=chunk, **options))
        seen = [chunk.seen["observables"] for chunk in chunks]
        joined = jax.tree.map(lambda *parts: np.concatenate(parts, axis=1), *seen)
        ledger = functools.reduce(Ledger.merge, [chunk.ledger for chunk in chunks])
        return joined, chunks, ledger

    whole, (last,), ledger = run(None)
    assert (last.first_saved_step, last.steps) == (2, 20)
    assert set(whole) == set(VIEW.observables)
    assert whole["positions"].shape == (2, 10, state.atoms, 3)
    assert not ledger.ok.all()
    for length in lengths:
        parts, chunks, merged = run(length)
        ends = [chunk.steps for chunk in chunks]
        assert ends[-1] == 20 and all(end % 2 == 0 for end in ends)
        assert max(np.diff([0, *ends])) <= max(length, 2)
        assert [chunk.first_saved_step for chunk in chunks] == [2, *(end + 2 for end in ends[:-1])]
        assert eqx.tree_equal(parts, whole), f"chunks of {length} steps differ"
        assert eqx.tree_equal(chunks[-1].state, last.state)
        assert eqx.tree_equal(merged, ledger)


def test_a_continued_run_is_the_same_run():
    simulation, params, state = bound()
    states = jax.tree.map(lambda x: x[None], state)
    options: Any = dict(steps=16, save_every=2, chunk=4, view=VIEW, laws=LAWS)
    chunks = list(drive(simulation, params, states, **options))
    start, middle = chunks[1].start_observed, chunks[1].state
    rest = list(drive(simulation, params, middle, done=8, start_observed=start, **options))
    assert [chunk.steps for chunk in rest] == [12, 16]
    for before, after in zip(chunks[2:], rest, strict=True):
        assert eqx.tree_equal(before.state, after.state)
        assert eqx.tree_equal(before.seen, after.seen)
        assert eqx.tree_equal(before.health, after.health)
        assert eqx.tree_equal(before.ledger, after.ledger)


class Hoarder(AbstractSimulation):
    """Collects its steps in a list with room for so many, which stands in for a neighbour list."""

    def init(self, params, key, **conditions):
        return {"room": jnp.zeros(conditions["room"]), "count": jnp.asarray(conditions["count"])}

    def step(self, params, state):
        return {**state, "count": state["count"] + 1}

    def observe(self, params, state):
        return {"count": state["count"], "room": jnp.asarray(state["room"].shape[-1])}

    def status(self, state):
        full = state["count"] > state["room"].shape[-1]
        return RESULTS.where(full, RESULTS.neighbour_overflow, RESULTS.successful)

    def enlarge(self, params, state):
        return {**state, "room": jnp.zeros(2 * state["room"].shape[-1])}


@pytest.mark.parametrize("counts", [[0.0], [0.0, -1.0]], ids=["alone", "batch"])
def test_a_chunk_that_overflows_is_run_again_with_more_room(counts):
    hoarder = Hoarder()
    each = [hoarder.init({}, None, room=3, count=count) for count in counts]  # pyright: ignore
    states = jax.tree.map(lambda *x: jnp.stack(x), *each)
    view = View(("count", "room"))
    chunks = list(drive(hoarder, {}, states, steps=12, save_every=2, chunk=4, view=view))
    counted = np.concatenate([c.seen["observables"]["count"] for c in chunks], axis=1)
    np.testing.assert_array_equal(counted, np.add.outer(counts, np.arange(2.0, 13.0, 2.0)))
    room = np.concatenate([c.seen["observables"]["room"] for c in chunks], axis=1)
    np.testing.assert_array_equal(room, [[6, 6, 12, 12, 12, 12]] * len(counts))
    assert all(chunk.check() is chunk for chunk in chunks)


def test_a_list_that_never_fits_ends_the_run():
    hoarder = Hoarder()
    states = jax.tree.map(lambda x: x[None], hoarder.init({}, None, room=1, count=1000.0))  # pyright: ignore
    (chunk,) = drive(hoarder, {}, states, steps=4, save_every=4)
    with pytest.raises(SimulationError, match="neighbour list overflowed at step 1; enlarge"):
        chunk.check()

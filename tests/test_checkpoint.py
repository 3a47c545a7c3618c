"""The binomial schedule of RecursiveCheckpoint, and what its gradients cost."""

import functools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import diffsim as ds
from diffsim import Direct, FunctionSimulation, RecursiveCheckpoint, Schedule
from diffsim._adjoint._checkpoint import binomial_schedule, enough_checkpoints


def replayed(steps: int, slots: int) -> int:
    return int(np.sum(binomial_schedule(steps, slots)[1][:, 2] == 0))


def closed_form(steps: int, slots: int) -> int:
    """r (T + 1) - β(s + 1, r - 1) - T with β(s, r - 1) < T + 1 ≤ β(s, r), β(s, r) = C(s + r, s).

    Griewank and Walther count r T - β(s + 1, r - 1) advances for T steps, those of the first sweep
    included, and reverse the last step where that sweep stands. Here it goes on to the final state,
    which is observed too: the count is that of T + 1 steps, less the T of the first sweep.
    """
    r = 0
    while math.comb(slots + r, slots) < steps + 1:
        r += 1
    return r * (steps + 1) - (math.comb(slots + r, slots + 1) if r else 0) - steps


@functools.cache
def fewest(steps: int, slots: int, fresh: bool = True) -> int:
    """The fewest replayed steps, by trying every place of the next stored state."""
    if steps == 1 or slots == 1:
        return steps * (steps - 1) // 2
    return min(
        (0 if fresh else m) + fewest(steps - m, slots - 1, fresh) + fewest(m, slots, False)
        for m in range(1, steps)
    )


def check_schedule(steps: int, slots: int) -> None:
    """Follow the schedule with states that are their own numbers."""
    first, back = binomial_schedule(steps, slots)
    stored: dict[int, int] = {int(slot): t for t, slot in enumerate(first) if slot < slots}
    working, reversed_steps = steps, []
    for load, store, reverse, step in back:
        working = stored[int(load)] if load >= 0 else working
        if store < slots:
            stored[int(store)] = working
        assert working == step, "an operation works on the state of another step"
        if reverse:
            reversed_steps.append(int(step))
        else:
            working += 1
    assert reversed_steps == list(range(steps))[::-1]
    assert set(stored) <= set(range(slots))


@pytest.mark.parametrize("slots", range(1, 9))
def test_every_short_schedule(slots):
    for steps in range(1, 41):
        check_schedule(steps, slots)
        assert replayed(steps, slots) == closed_form(steps, slots) == fewest(steps, slots)


@given(steps=st.integers(1, 2000), slots=st.integers(1, 60))
def test_schedules(steps, slots):
    if steps > 200:
        slots += 3  # one state and 2,000 steps are two million operations
    check_schedule(steps, min(slots, steps))
    assert replayed(steps, min(slots, steps)) == closed_form(steps, min(slots, steps))


@pytest.mark.parametrize("steps", [1, 2, 10, 100, 1000, 5000, 20000])
def test_the_default_replays_each_step_thrice_at_most(steps):
    slots = enough_checkpoints(steps)
    assert replayed(steps, slots) <= 3 * steps
    assert slots == 1 or math.comb(slots + 2, 3) < steps <= math.comb(slots + 3, 3)


def loss(params, steps, adjoint):
    """A step of many numbers, so that stored states show in the memory."""

    def step(params, x):
        return jnp.sin(params["a"] * x) + 0.1 * jnp.roll(x, 1)

    simulation = FunctionSimulation(step, lambda params, x: {"mean": jnp.mean(x)})
    schedule = Schedule(steps=steps, save_every=steps // 2)
    sol = ds.solve(simulation, params, jnp.ones(4000), schedule=schedule, adjoint=adjoint)
    return jnp.sum(sol.observables["mean"] ** 2)


@functools.cache
def lowered(steps, adjoint):
    gradient = jax.jit(jax.grad(functools.partial(loss, steps=steps, adjoint=adjoint)))
    return gradient.lower({"a": jnp.asarray(1.2)})


def temp_bytes(steps, adjoint):
    memory = lowered(steps, adjoint).compile().memory_analysis()
    assert memory is not None
    return memory.temp_size_in_bytes


@pytest.mark.parametrize("adjoint", [Direct(), RecursiveCheckpoint(5)], ids=str)
def test_programs_do_not_grow_with_the_steps(adjoint):
    """The schedule is data: as many instructions for 20,000 steps as for 100."""
    short, long = (lowered(steps, adjoint).as_text().count("\n") for steps in (100, 20_000))
    assert short == long


def test_memory_is_that_of_the_stored_states():
    state = 4000 * 8
    by_slots = [temp_bytes(1000, RecursiveCheckpoint(s)) for s in (5, 10, 20)]
    # The program is the same but for its slots.
    np.testing.assert_allclose(np.diff(by_slots), [5 * state, 10 * state], rtol=0.25)
    schedule = 16 * 3 * 4000
    longer = temp_bytes(4000, RecursiveCheckpoint(10))
    assert longer - by_slots[1] <= schedule
    assert temp_bytes(1000, Direct()) > 1000 * state > 20 * by_slots[1]


def test_states_on_the_host_give_the_same_gradient():
    """Alone and side by side; where they are kept is in the program."""
    params = {"a": jnp.asarray(1.2)}
    there, here = RecursiveCheckpoint(4, offload="host"), RecursiveCheckpoint(4)
    np.testing.assert_array_equal(
        lowered(100, there).compile()(params)["a"], lowered(100, here).compile()(params)["a"]
    )
    both = {"a": jnp.asarray([1.2, 0.9])}
    run = lambda a: jax.jit(jax.vmap(jax.grad(functools.partial(loss, steps=100, adjoint=a))))(both)  # noqa: E731
    np.testing.assert_array_equal(run(there)["a"], run(here)["a"])
    for adjoint, away in ((there, True), (here, False)):
        one = jax.jit(jax.grad(functools.partial(loss, steps=100, adjoint=adjoint)))
        program = one.trace(params).lower(lowering_platforms=("cuda",)).as_text()
        assert ("pinned_host" in program) == away
    with pytest.raises(ds.ConfigError, match=r"offload: unknown place.*host"):
        RecursiveCheckpoint(offload="disk")


def test_the_reverse_pass_runs_as_many_steps_as_the_schedule_says():
    """Counted by the step itself: there, the replays, and once in each pullback."""
    count = []

    def step(params, x):
        jax.debug.callback(lambda _: count.append(1), x)
        return params["a"] * x

    steps, slots = 50, 4
    simulation = FunctionSimulation(step)

    @eqx.filter_jit
    @jax.grad
    def slope(params):
        schedule, adjoint = Schedule(steps=steps), RecursiveCheckpoint(slots)
        return ds.solve(
            simulation, params, jnp.asarray(1.0), schedule=schedule, adjoint=adjoint
        ).state

    found = slope({"a": jnp.asarray(0.9)})["a"]
    jax.effects_barrier()
    assert found == pytest.approx(steps * 0.9 ** (steps - 1), rel=1e-12)
    assert len(count) == steps + closed_form(steps, slots) + steps

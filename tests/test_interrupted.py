"""Ctrl-C and SIGTERM between any two looks of the host: saved at once, and the same end after all.

The signal stands where the host looks for it: `Signals.check`, called between chunks, iterations
and pieces of sampling. `test_signals.py` and `test_run.py` show that real ones come there.
"""

import json
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffsim import run
from diffsim._errors import Interrupted
from diffsim._fit import Kept, Memory, Saved
from diffsim._fit._nuts import _march
from diffsim._signals import Signals
from kills import outcome

SHORT = ("restart_seconds=1000", "studies=[]")  # nothing is saved but what the signal asks for
NUTS = "{_target_: diffsim.NUTS, warmup: 40, draws: 40, chains: 2}"
SVI = "{_target_: diffsim.SVI, steps: 400, draws: 50}"
RUNS = {
    "simulation": (
        *("experiment=lj_nve", "size=tiny", "laws.0.rtol=1", "simulation.extra=[]"),
        *("equilibration=40", "schedule.steps=200", "schedule.save_every=10", "chunk=40"),
    ),
    "least squares": (
        *("experiment=lj_fit", "size=tiny", "conditions.atoms=32", "simulation.potential.cutoff=5"),
        *("schedule.steps=100", "schedule.save_every=5", "chunk=50", "equilibration=20"),
        *("fit.steps=4", "fit.explore=0.5"),
    ),
    "posterior": ("experiment=lynx_hare", "size=tiny", f"fit.method={NUTS}", "fit.starts=2"),
    "variational": (
        *("experiment=lynx_hare", "size=tiny", "~fit.method", f"+fit.method={SVI}"),
        "fit.starts=2",
    ),
    "fit": ("experiment=lynx_hare", "size=tiny", "fit=optax", "~fit.method", "fit.steps=12"),
}
SHARES = {"simulation": (0.3, 0.8), "least squares": (0.6,), "posterior": (0.2, 0.75)}


@pytest.fixture
def looks(monkeypatch):
    """Counts the looks for a signal; one comes at the look with the number `at`."""

    class Looks:
        count, at = 0, -1

    def check(self):
        Looks.count += 1
        if Looks.count == Looks.at:
            raise Interrupted(signal.SIGTERM)

    monkeypatch.setattr(Signals, "check", check)
    return Looks


# The quick ones of their kind: tests/test_kills.py, and Ctrl-C to a process in tests/test_run.py.
@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_what_is_interrupted_goes_on_to_the_same_end(name, looks, tmp_path, monkeypatch):
    monkeypatch.setattr("diffsim._report.write_report", lambda folder: Path(folder))
    alone, folder = tmp_path / "alone", tmp_path / "run"
    assert run.main([*RUNS[name], *SHORT, f"hydra.run.dir={alone}"]) == 0
    total, words = looks.count, [*RUNS[name], *SHORT, f"hydra.run.dir={folder}"]
    assert total > 5
    for share in SHARES.get(name, (0.5,)):
        looks.count, looks.at = 0, max(2, int(share * total))
        assert run.main(words) == 143
        words = [f"resume={folder}"]
        assert json.loads((folder / "status.json").read_text())["state"] == "interrupted"
        total -= looks.count
    looks.at = -1
    assert run.main(words) == 0
    assert outcome(folder) == outcome(alone)


def test_chains_go_on_from_where_they_were_ended():
    """The march of a sampler's chains in pieces, ended after the third, beside one left alone."""
    records: list[tuple[str, Kept]] = []

    def end(stage, make):
        kept = make()
        records.append((stage, kept))
        if len(records) == 3:
            raise Interrupted(signal.SIGINT)

    def advance(state):
        return {"x": state["x"] * 1.1 + 1}, (state["x"][None],)

    def march(memory, steps):
        begin = [{"x": jnp.arange(2.0)}, {"x": jnp.arange(2.0, 4.0)}]
        return _march(jax.jit(advance), begin, steps, 1, lambda *_: None, "sampling", memory)

    alone = march(Memory(), 8)
    with pytest.raises(Interrupted):
        march(Memory(end).within("posterior"), 8)
    stage, kept = records[-1]
    assert stage == "posterior/sampling"
    places = jax.tree_util.tree_flatten_with_path(kept.trees)[0]
    arrays = {jax.tree_util.keystr(place): np.asarray(leaf) for place, leaf in places}
    saved = Saved(arrays, {**kept.facts, "stage": stage})
    again = march(Memory(None, saved).within("posterior"), 8)
    for one, other in zip(jax.tree.leaves(alone[0]), jax.tree.leaves(again[0]), strict=True):
        np.testing.assert_array_equal(one, other)
    seen = [np.concatenate([piece[0] for piece in kept]) for _, kept in (alone, again)]
    np.testing.assert_array_equal(seen[0], seen[1])

"""What a fit puts by on its way, so that one that was ended goes on as if it had not been."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PyTree

from .._errors import ConfigError

Facts = dict[str, Any]


class Kept(NamedTuple):
    """Trees of arrays by name, and JSON beside them."""

    trees: dict[str, PyTree]
    facts: Facts


class Saved:
    """What an earlier session kept: `arrays` by their places in a tree, `facts` as JSON, `own`
    those of the loop itself."""

    def __init__(self, arrays: Mapping[str, Any], facts: Facts):
        self.arrays, self.facts = arrays, facts
        self.own: Facts = json.loads(facts.get("own", "{}"))

    def part(self, name: str, facts: Facts) -> Saved:
        """What was kept below `name`."""
        root = _root(name)
        inner = {p.removeprefix(root): x for p, x in self.arrays.items() if p.startswith(root)}
        return Saved(inner, facts)

    def has(self, name: str) -> bool:
        """Whether a tree of that name was kept."""
        return any(path.startswith(_root(name)) for path in self.arrays)

    def tree(self, name: str, template: PyTree) -> PyTree:
        """The tree `name` with the structure of `template`, whose leaves may be of other shapes;
        what is no array is the template's."""
        wanted, rest = eqx.partition(template, _is_array)
        places, structure = jax.tree_util.tree_flatten_with_path(wanted)
        found = [self._leaf(_root(name) + jax.tree_util.keystr(p), leaf) for p, leaf in places]
        return eqx.combine(jax.tree.unflatten(structure, found), rest)

    def _leaf(self, place: str, leaf: Any) -> Any:
        value = self.arrays.get(place)
        if value is None or str(value.dtype) != str(leaf.dtype):
            there = f"no {place}" if value is None else f"{place}: {value.dtype}"
            raise ConfigError(
                f"the restart holds {there}, this fit has {leaf.dtype}",
                key="resume",
                allowed="the configuration and the version that saved it",
            )
        if isinstance(leaf, np.ndarray) or jax.numpy.issubdtype(value.dtype, jax.dtypes.prng_key):
            return value
        if isinstance(leaf, jax.Array) and leaf.shape == value.shape:
            return jax.device_put(value, leaf.sharding)
        return jax.numpy.asarray(value)


class _Shared(NamedTuple):
    """What the memories of one fit have in common: values that stages start from, the last records
    of stages that have ended, and notes."""

    values: dict[str, PyTree]
    ended: dict[str, Callable[[], Kept]]
    notes: Facts


class Memory:
    """Where the loops of a fit put by how far they are, each as a stage with a name.

    `offer` is called whenever a stage could be gone on with from there: `write(stage, make)` gets
    its full name and what makes the `Kept`; it may raise to end the fit. `recall` gives a stage
    what was kept of it, also once it has ended. `once` computes what later stages start from, and
    keeps it beside them. Without arguments nothing is kept: a fit from Python.
    """

    def __init__(
        self,
        write: Callable[[str, Callable[[], Kept]], None] | None = None,
        saved: Saved | None = None,
        place: str = "",
        shared: _Shared | None = None,
    ):
        self._write, self._saved, self._place = write, saved, place
        notes = {} if saved is None else json.loads(saved.facts["notes"])
        self._shared = _Shared({}, {}, notes) if shared is None else shared

    def within(self, name: str) -> Memory:
        """The memory of a stage's own stages."""
        return Memory(self._write, self._saved, f"{self._place}{name}/", self._shared)

    def reached(self, name: str) -> bool:
        """Whether the earlier session had come to this stage."""
        return self.recall(name) is not None

    def recall(self, name: str) -> Saved | None:
        """What was kept of the stage, None where the earlier session did not come to it."""
        saved, place = self._saved, f"{self._place}{name}"
        if saved is None or saved.facts["stage"] == place:
            return saved
        ended = saved.facts["ended"]
        return saved.part(f"ended {place}", ended[place]) if place in ended else None

    def offer(self, name: str, make: Callable[[], Kept], ended: bool = False) -> None:
        """The stage could be gone on with from what `make` makes, or has `ended` with it."""
        if self._write is None:
            return
        place = f"{self._place}{name}"
        before, values = dict(self._shared.ended), dict(self._shared.values)
        notes = json.dumps(self._shared.notes)
        if ended:
            self._shared.ended[place] = make

        def whole() -> Kept:
            trees, facts = make()
            records = {each: made() for each, made in before.items() if each != place}
            trees = trees | {f"ended {each}": kept.trees for each, kept in records.items()}
            trees = trees | {f"once {each}": tree for each, tree in values.items()}
            facts = facts | {"ended": {each: kept.facts for each, kept in records.items()}}
            return Kept(trees, facts | {"notes": notes})

        self._write(place, whole)

    def once(self, name: str, template: PyTree, make: Callable[[], PyTree]) -> PyTree:
        """What `make` returns, or returned in the earlier session; `template` has its structure."""
        place = f"{self._place}{name}"
        if self._saved is not None and self._saved.has(f"once {place}"):
            found = self._saved.tree(f"once {place}", template)
        else:
            found = make()
        self._shared.values[place] = found
        return found

    def note(self, name: str, value: Any) -> None:
        """Keep plain JSON."""
        self._shared.notes[name] = value

    def noted(self, name: str) -> Any:
        """What was noted, in this session or the earlier one; None otherwise."""
        return self._shared.notes.get(name)

    def forget_ended(self) -> None:
        """Stages that have ended need not be kept any longer."""
        self._shared.ended.clear()


FORGETFUL = Memory()


def kept_with(
    snapshot: Callable[[], Kept], trees: dict[str, PyTree], facts: Facts
) -> Callable[[], Kept]:
    """What makes the record of a loop: that of its evaluator, with trees and facts of its own."""

    def make() -> Kept:
        kept = snapshot()
        own = {name: eqx.filter(tree, _is_array) for name, tree in trees.items()}
        # as text: strict JSON would lose NaN and infinities
        return Kept(kept.trees | own, kept.facts | {"own": json.dumps(facts)})

    return make


def lean(prediction: PyTree) -> PyTree:
    """A prediction without the samples behind it, which the evaluator keeps."""
    none = lambda x: x is None  # noqa: E731
    return eqx.tree_at(lambda p: p.solution.samples, prediction, None, is_leaf=none)


def _is_array(x: Any) -> bool:
    return isinstance(x, (jax.Array, np.ndarray, jax.ShapeDtypeStruct))


def _root(name: str) -> str:
    return f"[{name!r}]"

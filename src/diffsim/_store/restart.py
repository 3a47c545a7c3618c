"""Restarts: the arrays a run needs to go on; a kill at any moment leaves a loadable one (Orbax)."""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .._errors import ConfigError
from .json_text import to_json
from .leaves import Label, blueprint, data_of, labelled, revive


class Restarts:
    """The restarts of one run in the folder `path`; the last `keep` are kept.

    A restart is a pytree of arrays (NumPy or JAX, typed random keys too) and a little JSON. What
    comes back has the bits and types of what was saved: a template with another structure, shape or
    type is refused, never converted. With `asynchronous=True`, `save` returns while the disk is
    still at work, and `wait` or the next `save` ends it. No pickle is read or written.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, keep: int = 2, asynchronous: bool = False
    ) -> None:
        self._path = Path(path).absolute()
        self._keep, self._asynchronous = keep, asynchronous
        self._opened: Any = None

    def save(self, step: int, tree: Any, meta: Mapping[str, Any] | None = None) -> None:
        """Save the arrays of `tree` and the JSON `meta` as the restart of `step`."""
        import orbax.checkpoint as ocp

        labels, leaves = labelled(tree)
        content = {"leaves": [label.as_json() for label in labels], "meta": dict(meta or {})}
        arrays = {
            _name(i): data_of(leaf) for i, leaf in enumerate(leaves) if leaf.size
        }  # Orbax takes no empty ones
        parts: dict[str, Any] = {"content": ocp.args.JsonSave(json.loads(to_json(content)))}
        if arrays:
            parts["arrays"] = ocp.args.StandardSave(arrays)
        with _quiet():
            manager = self._manager()
            manager.wait_until_finished()
            if step in manager.all_steps():
                manager.delete(step)
            manager.save(step, args=ocp.args.Composite(**parts), force=True)

    def latest(self) -> int | None:
        """The step of the newest restart, None where there is none."""
        return max(self._steps(), default=None)

    def load(self, template: Any) -> tuple[int, Any, dict[str, Any]]:
        """The newest restart as `(step, tree, meta)`, on the devices of `template`.

        Leaves of the template are arrays or `jax.ShapeDtypeStruct`. A restart that the disk has
        damaged is passed over with a warning for the one before it.
        """
        steps = sorted(self._steps(), reverse=True)
        if not steps:
            raise self._refuse("holds no restart", "a run that was saved at least once")
        for step in steps:
            try:
                tree, meta = self._read(step, template)
            except ConfigError:
                raise
            except Exception as error:  # Orbax and TensorStore name damage in many ways
                cause = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
                warnings.warn(f"the restart of step {step} is damaged ({cause})", stacklevel=2)
                continue
            return step, tree, meta
        raise self._refuse("holds no restart that can be read", "an intact restart")

    def wait(self) -> None:
        """Return when everything saved is on the disk."""
        if self._opened is not None:
            with _quiet():
                self._opened.wait_until_finished()

    def close(self) -> None:
        if self._opened is not None:
            with _quiet():
                self._opened.close()
            self._opened = None

    def __enter__(self) -> Restarts:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _manager(self) -> Any:
        import orbax.checkpoint as ocp

        if self._opened is None:
            options = ocp.CheckpointManagerOptions(
                max_to_keep=self._keep, create=True, enable_async_checkpointing=self._asynchronous
            )
            self._opened = ocp.CheckpointManager(self._path, options=options)
        return self._opened

    def _steps(self) -> list[int]:
        if not self._path.is_dir():
            return []
        with _quiet():
            manager = self._manager()
            manager.wait_until_finished()
            return list(manager.all_steps())

    def _read(self, step: int, template: Any) -> tuple[Any, dict[str, Any]]:
        import jax
        import orbax.checkpoint as ocp

        wanted, leaves = labelled(template)
        with _quiet():
            read = self._manager().restore
            content = read(step, args=ocp.args.Composite(content=ocp.args.JsonRestore())).content
            saved = [Label(**leaf) for leaf in content["leaves"]]
            self._compare(saved, wanted)
            shapes = {_name(i): blueprint(leaf) for i, leaf in enumerate(leaves) if leaf.size}
            arrays: Any = {}
            if shapes:
                arrays = read(
                    step, args=ocp.args.Composite(arrays=ocp.args.StandardRestore(shapes))
                ).arrays
        revived = [revive(leaf, arrays.get(_name(i)), saved[i]) for i, leaf in enumerate(leaves)]
        return jax.tree.unflatten(jax.tree.structure(template), revived), content["meta"]

    def _compare(self, saved: list[Label], wanted: list[Label]) -> None:
        """Orbax casts types in silence, so they are compared before anything is read."""
        here, there = (
            {label.path: label for label in saved},
            {label.path: label for label in wanted},
        )
        for path in [*here, *there]:
            old, new = here.get(path), there.get(path)
            if old is None or new is None or not old.same_as(new):
                old_text, new_text = old or f"no {path}", new or f"no {path}"
                cause = f"was saved with {old_text}, this run has {new_text}"
                raise self._refuse(
                    cause, "the configuration and precision of the run that saved it"
                )
        if [label.path for label in saved] != [label.path for label in wanted]:
            raise self._refuse(
                "was saved with its arrays in another order", "the version of diffsim that saved it"
            )

    def _refuse(self, cause: str, allowed: str) -> ConfigError:
        place = str(self._path)
        return ConfigError(f"{place!r} {cause}", key="resume", value=place, allowed=allowed)


def _name(index: int) -> str:
    return f"{index:05d}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Orbax's remarks on every save, which go through absl's logger."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)

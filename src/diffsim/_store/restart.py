"""Restarts: the arrays a run needs to go on; a kill at any moment leaves a loadable one (Orbax)."""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from .._errors import ConfigError
from .json_text import to_json
from .leaves import Label, blueprint, data_of, labelled, revive, revived
from .manifest import damage, write_manifest


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=3)


class Restarts:
    """The restarts of one run in the folder `path`; the last `keep` are kept.

    A restart is a pytree of arrays (NumPy or JAX, typed random keys too) and a little JSON, with a
    manifest of the SHA-256 sums of its files. What comes back has the bits and types of what was
    saved: a template with another structure, shape or type is refused, never converted. With
    `asynchronous=True`, `save` returns while a thread is still writing; the next `save`, `wait` or
    `close` ends that, and raises what went wrong there. No pickle is read or written.

    A restart whose files do not have their sums any more, or that cannot be read, is passed over
    for the one before it, which `tell` is told of (default: a Python warning).
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        keep: int = 2,
        asynchronous: bool = False,
        tell: Callable[[str], None] = _warn,
    ) -> None:
        self._path = Path(path).absolute()
        self._keep, self._tell = keep, tell
        self._writer = ThreadPoolExecutor(1, "restart") if asynchronous else None
        self._writing: Future[None] | None = None
        self._opened: Any = None
        self._faults: dict[int, str] = {}
        self._sound: set[int] = set()

    def save(self, step: int, tree: Any, meta: Mapping[str, Any] | None = None) -> None:
        """Save the arrays of `tree` and the JSON `meta` as the restart of `step`."""
        self.wait()
        labels, leaves = labelled(tree)
        content = {"leaves": [label.as_json() for label in labels], "meta": dict(meta or {})}
        text = json.loads(to_json(content))
        # Orbax takes no empty arrays
        arrays = {_name(i): _fixed(data_of(x)) for i, x in enumerate(leaves) if x.size}
        if self._writer is None:
            self._write(step, text, arrays)
        else:
            self._writing = self._writer.submit(self._write, step, text, arrays)

    def latest(self) -> int | None:
        """The step of the newest restart that is intact, None where there is none."""
        self.wait()
        return next(self._intact(), None)

    def newest(
        self, damaged: Callable[[dict[str, Any]], str | None] = lambda meta: None
    ) -> tuple[int, dict[str, Any]] | None:
        """The step of the newest restart that is intact and its `meta`, None where nothing was
        saved. Where all that was saved is damaged, a `ConfigError` that says what is. `damaged`:
        what is wrong, by its `meta`, with what a restart needs beside itself."""
        self.wait()
        for step in self._intact():
            try:
                with _quiet():
                    meta = self._content(step)["meta"]
                cause = damaged(meta)
            except Exception as error:  # Orbax and TensorStore name damage in many ways
                cause = _line(error)
            else:
                if cause is None:
                    return step, meta
            self._fault(step, cause)
        if self._faults:
            raise self._none_intact()
        return None

    def load(self, template: Any, *, resize: bool = False) -> tuple[int, Any, dict[str, Any]]:
        """The newest intact restart as `(step, tree, meta)`, on the devices of `template`, however
        many they were when it was saved.

        Leaves of the template are arrays or `jax.ShapeDtypeStruct`. `resize`: shapes may be others
        than the template's; structure and types may not.
        """
        return self._first(lambda step: self._read(step, template, resize))

    def read(self) -> tuple[int, dict[str, Any], dict[str, Any]]:
        """The newest intact restart as `(step, arrays, meta)`: the arrays on the host, by their
        places in the tree that was saved."""

        def one(step: int) -> tuple[dict[str, Any], dict[str, Any]]:
            with _quiet():
                content = self._content(step)
                saved = [Label(**leaf) for leaf in content["leaves"]]
                found = self._arrays(step, [label.blueprint() for label in saved])
            return {x.path: revived(a, x) for x, a in zip(saved, found, strict=True)}, content[
                "meta"
            ]

        return self._first(one)

    def set_aside(self, after: int) -> None:
        """Move restarts of later steps than `after`, which were passed over, out of the way."""
        self.close()
        for step in [s for s in self._steps() if s > after]:
            place = self._path.with_name(f"{self._path.name}_damaged") / str(step)
            place.parent.mkdir(exist_ok=True)
            number = 0
            while place.exists():
                number += 1
                place = place.with_name(f"{step}_{number}")
            os.replace(self._path / str(step), place)

    def wait(self) -> None:
        """Return when everything saved is on the disk."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def close(self) -> None:
        try:
            self.wait()
        finally:
            if self._opened is not None:
                with _quiet():
                    self._opened.close()
                self._opened = None

    def __enter__(self) -> Restarts:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, step: int, content: Any, arrays: dict[str, Any]) -> None:
        import orbax.checkpoint as ocp

        parts: dict[str, Any] = {"content": ocp.args.JsonSave(content)}
        if arrays:
            parts["arrays"] = ocp.args.StandardSave(arrays)
        with _quiet():
            manager = self._manager()
            if step in manager.all_steps():
                manager.delete(step)
            manager.save(step, args=ocp.args.Composite(**parts), force=True)
            manager.wait_until_finished()
        write_manifest(self._path / str(step))

    def _first(self, read: Callable[[int], tuple[Any, dict[str, Any]]]) -> Any:
        """What `read` makes of the newest restart of which it can make something."""
        self.wait()
        for step in self._intact():
            try:
                return step, *read(step)
            except ConfigError:
                raise
            except Exception as error:
                self._fault(step, _line(error))
        if self._faults:
            raise self._none_intact()
        raise self._refuse("holds no restart", "a run that was saved at least once")

    def _intact(self) -> Iterator[int]:
        """Steps, the newest first, whose files have the sums of their manifest."""
        for step in sorted(self._steps(), reverse=True):
            if step not in self._sound and step not in self._faults:
                found = damage(self._path / str(step))
                if found is None:
                    self._sound.add(step)
                else:
                    self._fault(step, found)
            if step not in self._faults:
                yield step

    def _fault(self, step: int, cause: str) -> None:
        self._faults[step] = cause
        self._tell(f"the restart of step {step} is damaged ({cause})")

    def _none_intact(self) -> ConfigError:
        listed = "; ".join(f"step {step}: {cause}" for step, cause in self._faults.items())
        allowed = "an undamaged copy of what is damaged, or a new run"
        return self._refuse(f"holds no intact restart ({listed})", allowed)

    def _manager(self) -> Any:
        import orbax.checkpoint as ocp

        if self._opened is None:
            options = ocp.CheckpointManagerOptions(
                max_to_keep=self._keep,
                enable_async_checkpointing=False,
                **_alone(self._path),
            )
            self._opened = ocp.CheckpointManager(self._path, options=options)
        return self._opened

    def _steps(self) -> list[int]:
        """Orbax gives a restart the number of its step as its name once it is complete."""
        if not self._path.is_dir():
            return []
        return [int(p.name) for p in self._path.iterdir() if p.is_dir() and p.name.isdecimal()]

    def _content(self, step: int) -> dict[str, Any]:
        import orbax.checkpoint as ocp

        wanted = ocp.args.Composite(content=ocp.args.JsonRestore())
        return self._manager().restore(step, args=wanted).content

    def _arrays(self, step: int, shapes: list[Any]) -> list[Any]:
        """Arrays by their number, None for the empty ones."""
        import orbax.checkpoint as ocp

        named = {_name(i): x for i, x in enumerate(shapes) if np.prod(x.shape, dtype=int)}
        if not named:
            return [None] * len(shapes)
        wanted = ocp.args.Composite(arrays=ocp.args.StandardRestore(named))
        found: Any = self._manager().restore(step, args=wanted).arrays
        return [found.get(_name(i)) for i in range(len(shapes))]

    def _read(self, step: int, template: Any, resize: bool) -> tuple[Any, dict[str, Any]]:
        import jax

        wanted, leaves = labelled(template)
        with _quiet():
            content = self._content(step)
            saved = [Label(**leaf) for leaf in content["leaves"]]
            self._compare(saved, wanted, resize)
            shapes = [blueprint(leaf, label) for leaf, label in zip(leaves, saved, strict=True)]
            arrays = self._arrays(step, shapes)
        back = [revive(*each) for each in zip(leaves, arrays, saved, strict=True)]
        return jax.tree.unflatten(jax.tree.structure(template), back), content["meta"]

    def _compare(self, saved: list[Label], wanted: list[Label], resize: bool) -> None:
        """Orbax casts types in silence, so they are compared before anything is read."""
        here, there = (
            {label.path: label for label in saved},
            {label.path: label for label in wanted},
        )
        for path in [*here, *there]:
            old, new = here.get(path), there.get(path)
            if old is None or new is None or not old.same_as(new, resize):
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


def _fixed(array: Any) -> Any:
    """The array as it is now, whatever the run does next: on the host where all of it is here."""
    import jax

    if isinstance(array, jax.Array):
        return np.asarray(array) if array.is_fully_addressable else array
    return array.copy()


def _line(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__


def _alone(path: Path) -> dict[str, Any]:
    """A restart is one process's business, also where several run."""
    import jax
    import orbax.checkpoint as ocp

    if jax.process_count() == 1:
        return {"create": True}
    path.mkdir(parents=True, exist_ok=True)
    own = jax.process_index()
    just = ocp.options.MultiprocessingOptions(
        primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"process{own}"
    )
    return {"create": False, "multiprocessing_options": just}


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

"""NUTS by NumPyro or BlackJAX, all chains side by side, in pieces between which the host looks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from ._density import Whitened
from ._evaluate import Watch
from ._memory import Kept, Memory

if TYPE_CHECKING:
    from ._methods import NUTS, Draws

PIECE = 50  # transitions between two looks of the host


def numpyro_nuts(
    options: NUTS, target: Whitened, key: PRNGKeyArray, watch: Watch, memory: Memory
) -> Draws:
    """NumPyro's kernel: its warm-up is part of the same program."""
    from numpyro.infer import NUTS as Kernel

    start, chain = jax.random.split(key)
    kernel = Kernel(
        potential_fn=target.potential,
        target_accept_prob=options.target_accept,
        dense_mass=options.dense_mass,
        max_tree_depth=options.max_tree_depth,
    )
    keys = jax.random.split(chain, options.chains)
    # compiled as a whole: operation by operation it compiles hundreds of small programs
    begin = jax.jit(lambda keys, u: kernel.init(keys, options.warmup, u))
    states = [
        begin(*group) for group in options.spread((keys, target.starts(start, options.chains)))
    ]

    def step(state: Any, _: None) -> tuple[Any, tuple[Array, Array, Array]]:
        state = kernel.sample(state, (), {})
        return state, (state.z, state.diverging, state.num_steps)  # pyright: ignore

    piece = _piece(options.warmup, options.draws)
    advance = jax.jit(lambda state: jax.lax.scan(step, state, None, length=piece))
    if not memory.reached("sampling"):
        states, _ = _march(advance, states, options.warmup, piece, watch, "warmup", memory)
    _, kept = _march(advance, states, options.draws, piece, watch, "sampling", memory)
    return _collected(kept)


def blackjax_nuts(
    options: NUTS, target: Whitened, key: PRNGKeyArray, watch: Watch, memory: Memory
) -> Draws:
    """BlackJAX's kernel, after its window adaptation."""
    import blackjax as package  # pyright: ignore[reportMissingImports]

    blackjax: Any = package  # its types name other results than it returns
    log_density = lambda u: -target.potential(u)  # noqa: E731
    warm = blackjax.window_adaptation(
        blackjax.nuts,
        log_density,
        is_mass_matrix_diagonal=not options.dense_mass,
        target_acceptance_rate=options.target_accept,
        adaptation_info_fn=lambda *_: None,
        max_num_doublings=options.max_tree_depth,
    )
    start, adapt, chain = jax.random.split(key, 3)

    @jax.jit
    @jax.vmap
    def adapted(key: PRNGKeyArray, u: Array) -> Any:
        found, _ = warm.run(key, u, num_steps=options.warmup)
        return found.state, {k: found.parameters[k] for k in ("step_size", "inverse_mass_matrix")}

    keys = jax.random.split(adapt, options.chains)
    watch("warmup", {"steps": 0, "of": options.warmup})
    groups = [
        adapted(*group) for group in options.spread((keys, target.starts(start, options.chains)))
    ]
    watch("warmup", {"steps": options.warmup, "of": options.warmup})

    def one(key: PRNGKeyArray, state: Any, tuned: dict[str, Array]) -> Any:
        algorithm = blackjax.nuts(log_density, **tuned, max_num_doublings=options.max_tree_depth)
        state, info = algorithm.step(key, state)
        return state, (state.position, info.is_divergent, info.num_integration_steps)

    def step(carry: Any, _: None) -> Any:
        states, tuned, keys = carry
        both = jax.vmap(jax.random.split)(keys)
        states, seen = jax.vmap(one)(both[:, 0], states, tuned)
        return (states, tuned, both[:, 1]), seen

    piece = _piece(0, options.draws)
    advance = jax.jit(lambda carry: jax.lax.scan(step, carry, None, length=piece))
    keys = options.spread(jax.random.split(chain, options.chains))
    carries = [(*group, own) for group, own in zip(groups, keys, strict=True)]
    _, kept = _march(advance, carries, options.draws, piece, watch, "sampling", memory)
    return _collected(kept)


def _piece(warmup: int, draws: int) -> int:
    """The longest piece of which both are multiples: one program serves both."""
    both = math.gcd(warmup, draws)
    return max(n for n in range(1, min(PIECE, both) + 1) if both % n == 0)


def _march(
    advance: Callable[[Any], Any],
    states: list[Any],
    steps: int,
    piece: int,
    watch: Watch,
    what: str,
    memory: Memory,
) -> tuple[list[Any], list[Any]]:
    """`steps` transitions of every group of chains, what was seen joined over the groups."""
    begun, kept = 0, []
    saved = memory.recall(what)
    if saved is not None:
        begun = saved.facts["done"]
        kept = [saved.tree("kept", jax.eval_shape(advance, states[0])[1])] if begun else []
        states = [saved.tree(f"chains {i}", each) for i, each in enumerate(states)]
    watch(what, {"steps": begun, "of": steps})
    for done in range(begun + piece, steps + 1, piece):
        # all are under way before the first is waited for
        states, seen = map(list, zip(*map(advance, states), strict=True))
        kept.append(jax.tree.map(lambda *x: np.concatenate(x, axis=1), *seen))
        memory.offer(what, _record(states, tuple(kept), done))
        watch(what, {"steps": done, "of": steps})
    return states, kept


def _record(states: list[Any], kept: tuple[Any, ...], done: int) -> Callable[[], Kept]:
    """What makes the record of chains that have come so far."""

    def make() -> Kept:
        trees = {f"chains {i}": each for i, each in enumerate(states)}
        trees["kept"] = jax.tree.map(lambda *x: np.concatenate(x), *kept)
        return Kept(trees, {"done": done})

    return make


def _collected(kept: list[Any]) -> Draws:
    """Pieces (transitions, chains, ...) as draws (chains, transitions, ...)."""
    from ._methods import Draws

    u, diverging, gradients = (
        np.swapaxes(np.concatenate([piece[i] for piece in kept]), 0, 1) for i in range(3)
    )
    return Draws(jnp.asarray(u), diverging, {"gradients_per_draw": float(np.mean(gradients))})

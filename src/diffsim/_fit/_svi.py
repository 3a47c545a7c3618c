"""Variational inference by NumPyro's normal autoguides."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PRNGKeyArray

from ._density import Whitened
from ._evaluate import Watch
from ._memory import Kept, Memory

if TYPE_CHECKING:
    from ._methods import SVI, Draws


def svi(options: SVI, target: Whitened, key: PRNGKeyArray, watch: Watch, memory: Memory) -> Draws:
    """min_φ KL(q_φ ‖ p) over normal q_φ, and draws from the last q_φ."""
    import numpyro
    from numpyro import distributions
    from numpyro.infer import SVI as Inference
    from numpyro.infer import Trace_ELBO, autoguide, init_to_value

    from ._methods import approximated

    def model() -> None:
        real = distributions.constraints.real_vector
        u = numpyro.sample("u", distributions.ImproperUniform(real, (), (target.size,)))
        numpyro.factor("density", -target.potential(jnp.asarray(u)))

    kinds: dict[str, Any] = {
        "full": autoguide.AutoMultivariateNormal,
        "diagonal": autoguide.AutoNormal,
        "lowrank": autoguide.AutoLowRankMultivariateNormal,
    }
    origin = init_to_value(values={"u": jnp.zeros(target.size, target.centre.dtype)})
    guide = kinds[options.guide](model, init_loc_fn=origin, init_scale=1.0)
    rate = optax.cosine_decay_schedule(options.learning_rate, options.steps, 0.01)
    inference = Inference(
        model,
        guide,
        optax.adam(rate),  # pyright: ignore[reportArgumentType]
        Trace_ELBO(num_particles=options.particles),
    )
    first, last = jax.random.split(key)
    state = inference.init(first)
    losses: list[Any] = []
    saved = memory.recall("variational")
    if saved is not None:
        state = saved.tree("state", state)
        losses = list(saved.tree("losses", np.zeros(0, target.centre.dtype)))
    watch("warmup", {"steps": len(losses), "of": options.steps})
    advance = jax.jit(inference.update)
    for step in range(len(losses), options.steps):
        state, loss = advance(state)
        losses.append(loss)
        if (step + 1) % 100 == 0 or step + 1 == options.steps:
            record = {"state": state, "losses": losses[:]}
            memory.offer("variational", lambda record=record: _record(record))
            watch("warmup", {"steps": step + 1, "of": options.steps})
    found = inference.get_params(state)
    drawn = guide.sample_posterior(last, found, sample_shape=(options.draws,))["u"]
    log_q = _log_density(guide, found, drawn)
    bound = -float(np.mean(np.asarray(losses[-max(1, options.steps // 20) :])))
    return approximated(target, drawn[None], log_q, elbo=bound)


def _record(trees: dict[str, Any]) -> Kept:
    return Kept(trees | {"losses": np.asarray(trees["losses"])}, {})


def _log_density(guide: Any, found: Any, u: Any) -> np.ndarray:
    """log q of draws (draws, n)."""
    from numpyro import distributions

    if hasattr(guide, "get_posterior"):
        return np.asarray(guide.get_posterior(found).log_prob(u))
    loc, scale = found["u_auto_loc"], found["u_auto_scale"]
    return np.asarray(distributions.Normal(loc, scale).log_prob(u).sum(axis=-1))

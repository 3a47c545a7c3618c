"""What is seen of a spectral flow: energies and budgets from the modes, fields at the points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
from jaxtyping import Array

from ._exponential import times
from ._measure import relative_divergence, spectrum
from ._spectral_equations import total
from ._spectral_forcing import accelerations
from ._spectral_modes import PeriodicModes, rotated

if TYPE_CHECKING:
    from ._spectral import SpectralFlow, SpectralState


def measured(
    flow: SpectralFlow, params: Mapping[str, Any], state: SpectralState
) -> dict[str, Array]:
    """Every observable of a state, by name."""
    modes, equation = flow.modes, flow.equation
    velocity, curl = equation.velocity(state.fields), equation.vorticity(state.fields)
    at_points = [modes.points(u) for u in velocity]
    vorticity = [modes.points(w) for w in curl]
    seen = {
        "velocity": jnp.stack(at_points),
        "vorticity": vorticity[0] if len(vorticity) == 1 else jnp.stack(vorticity),
        "kinetic_energy": 0.5 * inner(modes, velocity, velocity),
        "enstrophy": 0.5 * inner(modes, curl, curl),
        "momentum": jnp.stack([modes.mean(u) for u in velocity]),
        "divergence": relative_divergence(
            modes.grid.spacing, divergence(modes, velocity), at_points
        ),
        "cfl": flow.cfl(at_points),
        "time": state.time,
    }
    seen |= _budget(flow, params, state, velocity, at_points, seen["enstrophy"])
    if len(set(modes.grid.size)) == 1:
        seen["spectrum"] = spectrum(at_points)
    return seen


def inner(modes: PeriodicModes, a: Sequence[Array], b: Sequence[Array]) -> Array:
    """<a·b> over the volume, from spectra."""
    parts = [modes.mean_product(x, y) for x, y in zip(a, b, strict=True)]
    return sum(parts[1:], parts[0])


def divergence(modes: PeriodicModes, velocity: Sequence[Array]) -> Array:
    """∇·u at the points, from spectra."""
    parts = [rotated(k, u) for k, u in zip(modes.wavenumbers(), velocity, strict=True)]
    return modes.points(sum(parts[1:], parts[0]))


def _budget(
    flow: SpectralFlow,
    params: Mapping[str, Any],
    state: SpectralState,
    velocity: Sequence[Array],
    at_points: Sequence[Array],
    enstrophy: Array,
) -> dict[str, Array]:
    """dE/dt = injection - dissipation, but for `energy_residual`; and the pressure."""
    dtype = state.time.dtype
    change = total(
        flow.nonlinear(params, dtype)(at_points, state.time),
        tuple(times(c, u) for c, u in zip(flow.linear(params, dtype), state.fields, strict=True)),
    )
    rate = inner(flow.modes, velocity, flow.equation.velocity(change))
    force = accelerations(flow.forcing, flow.modes, params, at_points, state.time)
    given = [(u, f) for u, f in zip(at_points, force, strict=True) if f is not None]
    work = [jnp.mean(u * f) for u, f in given]
    injection = sum(work, jnp.zeros((), dtype))
    dissipation = 2 * jnp.asarray(params["viscosity"], dtype) * enstrophy
    return {
        "pressure": pressure(flow.modes, at_points, force),
        "dissipation": dissipation,
        "injection": injection,
        "energy_residual": rate - injection + dissipation,
    }


def pressure(
    modes: PeriodicModes, velocity: Sequence[Array], force: Sequence[Array | None]
) -> Array:
    """p of zero mean with ∇²p = -∂ᵢ∂ⱼ(uᵢ uⱼ) + ∇·f."""
    waves = modes.wavenumbers()
    source = jnp.zeros((2, *modes.shape), velocity[0].dtype)
    for i, (k, u) in enumerate(zip(waves, velocity, strict=True)):
        for j in range(i, len(waves)):
            weight = (1 if i == j else 2) * k * waves[j]
            source = source + jnp.asarray(weight, u.dtype) * modes.modes(u * velocity[j])
        f = force[i]
        if f is not None:
            source = source + rotated(k, modes.modes(f))
    return modes.points(-source * jnp.asarray(modes.inverse_squared(), source.dtype))

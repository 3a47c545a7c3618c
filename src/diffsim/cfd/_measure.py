"""What is seen of a flow: energies, budgets, fields, forces."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ._boundary import Box
from ._convection import laplacian
from ._stencil import cut, difference, extended, second_difference

if TYPE_CHECKING:
    from ._incompressible import FlowState, IncompressibleFlow


def measured(
    flow: IncompressibleFlow, params: Mapping[str, Any], state: FlowState
) -> dict[str, Array]:
    """Every observable of a state, by name."""
    box, velocity = flow.box, state.velocity
    seen = {
        "velocity": box.centred(velocity, params),
        "kinetic_energy": 0.5 * mean_product(box, velocity, velocity),
        "momentum": jnp.stack(
            [jnp.sum(u) * box.grid.cell_volume / box.grid.volume for u in velocity]
        ),
        "divergence": relative_divergence(
            box.grid.spacing, box.divergence(velocity, params), velocity
        ),
        "cfl": flow.cfl(params, state),
        "enstrophy": enstrophy(box, velocity, params),
    }
    seen |= _budget(flow, params, state)
    if box.grid.ndim == 2:
        seen["vorticity"] = vorticity(box, velocity, params)[0, 1]
        seen |= centre_lines(box, velocity, params)
    if box.periodic and len(set(box.grid.size)) == 1:
        seen["spectrum"] = spectrum(velocity)
    if flow.body is not None:
        seen |= _forces(flow, params, state)
    seen |= {piece.name: piece(box, velocity, params) for piece in flow.extra}
    for name, s in state.scalars.items():
        seen |= {name: s, f"{name}_mean": jnp.mean(s)}
    return seen


def mean_product(box: Box, a: Sequence[Array], b: Sequence[Array]) -> Array:
    """<a·b> over the volume, a face standing for one cell."""
    share = box.grid.cell_volume / box.grid.volume
    products = [jnp.sum(x * y) for x, y in zip(a, b, strict=True)]
    return share * sum(products[1:], products[0])


def relative_divergence(
    spacing: Sequence[float], divergence: Array, velocity: Sequence[Array]
) -> Array:
    """h max|∇·u| / max|u|."""
    fastest = jnp.max(jnp.stack([jnp.max(jnp.abs(u)) for u in velocity]))
    tiny = jnp.finfo(fastest.dtype).tiny
    return max(spacing) * jnp.max(jnp.abs(divergence)) / jnp.maximum(fastest, tiny)


def cfl_number(spacing: Sequence[float], dt: float, velocity: Sequence[Array]) -> Array:
    """Σᵢ max|uᵢ| dt/hᵢ."""
    parts = [jnp.max(jnp.abs(u)) * (dt / h) for u, h in zip(velocity, spacing, strict=True)]
    return sum(parts[1:], parts[0])


def vorticity(
    box: Box, velocity: Sequence[Array], params: Mapping[str, Any]
) -> dict[tuple[int, int], Array]:
    """∂u_b/∂x_a - ∂u_a/∂x_b for a < b at the edges: n along a periodic axis, else n + 1."""
    found = {}
    for (a, b), (along_a, along_b) in box.cross_gradients(velocity, params).items():
        curl = along_a - along_b
        for axis in (a, b):
            if box.sides[axis] is None:  # face 0 is face n
                curl = cut(curl, axis, 1, None)
        found[a, b] = curl
    return found


def enstrophy(box: Box, velocity: Sequence[Array], params: Mapping[str, Any]) -> Array:
    """½ <ω²>, edges at the sides counting half."""
    total = jnp.zeros((), velocity[0].dtype)
    for (a, b), curl in vorticity(box, velocity, params).items():
        square = curl**2
        for axis in (a, b):
            if box.sides[axis] is not None:
                weights = np.ones(square.shape[axis])
                weights[[0, -1]] = 0.5
                shape = [1] * square.ndim
                shape[axis] = -1
                square = square * jnp.asarray(weights.reshape(shape), square.dtype)
        total = total + jnp.sum(square)
    return 0.5 * total * box.grid.cell_volume / box.grid.volume


def centre_lines(
    box: Box, velocity: Sequence[Array], params: Mapping[str, Any]
) -> dict[str, Array]:
    """u along the line in the middle of x, v along that in the middle of y."""
    lines = {}
    for axis, (name, u) in enumerate(zip(("u", "v"), velocity, strict=True)):
        faces, n = box.faces(u, axis, params), box.grid.shape[axis]
        middle = cut(faces, axis, n // 2, n // 2 + 1 + n % 2)
        lines[f"centreline_{name}"] = jnp.mean(middle, axis)
    return lines


def _budget(
    flow: IncompressibleFlow, params: Mapping[str, Any], state: FlowState
) -> dict[str, Array]:
    """dE/dt = injection - dissipation, but for `energy_residual`; and the pressure."""
    box, velocity = flow.box, state.velocity
    fields = (velocity, state.scalars)
    total, _ = flow.tendency(params, fields, state.time)
    smoothing = laplacian(box, velocity, params)
    lost = -params["viscosity"] * mean_product(box, velocity, smoothing)
    injection = params["viscosity"] * _work_of_sides(box, velocity, params)
    dissipation = lost + injection
    for piece in flow.forcing:
        force = piece(box, params, velocity, state.scalars, state.time)
        force = [
            jnp.broadcast_to(jnp.asarray(f, u.dtype), u.shape)
            for f, u in zip(force, velocity, strict=True)
        ]
        injection = injection + mean_product(box, velocity, force)
    if flow.closure is not None:
        work = flow.closure.tendency(box, params, velocity)
        injection = injection + mean_product(box, velocity, work)
    pressure = flow._poisson(_inner(box, total))
    push = box.gradient(pressure)
    rate = mean_product(box, velocity, [f - g for f, g in zip(total, push, strict=True)])
    return {
        "pressure": pressure,
        "dissipation": dissipation,
        "injection": injection,
        "energy_residual": rate - injection + dissipation,
    }


def _work_of_sides(box: Box, velocity: Sequence[Array], params: Mapping[str, Any]) -> Array:
    """What moving sides do to the fluid, over ν: <|∇u|²> + <u·∇²u>. Zero where all are at rest."""
    total = jnp.zeros((), velocity[0].dtype)
    for component, u in enumerate(velocity):
        for axis, h in enumerate(box.grid.spacing):
            if box.sides[axis] is None:
                continue
            zero = jnp.zeros_like(u)
            own = axis == component
            wide = (
                box.around(zero, axis, params) if own else box.beside(zero, component, axis, params)
            )
            # U/h² next to a side where u is given at a face, 2U/h² where it is half a cell away
            edge = second_difference(wide, axis) / h**2
            total = total + jnp.sum(edge * (edge * (h**2 if own else h**2 / 2) - u))
    return total * box.grid.cell_volume / box.grid.volume


def _inner(box: Box, tendency: Sequence[Array]) -> Array:
    """∇·F of a tendency, which is zero at sides whose velocity is given."""
    total = jnp.zeros(box.grid.shape, tendency[0].dtype)
    for axis, (f, h) in enumerate(zip(tendency, box.grid.spacing, strict=True)):
        first, n = box.first_face(axis), box.grid.shape[axis]
        if box.sides[axis] is None:
            full = extended(f, axis, "wrap", None)
        else:
            widths = [(0, 0)] * f.ndim
            widths[axis] = (first, n + 1 - first - f.shape[axis])
            full = jnp.pad(f, widths)
        total = total + difference(full, axis) / h
    return total


def spectrum(velocity: Sequence[Array]) -> Array:
    """E(k): kinetic energy in shells |k| in [k - ½, k + ½) of the periodic cube, k = 0, 1, …
    in units of 2π/L; its sum is the kinetic energy of the wave numbers below the corner."""
    shape = velocity[0].shape
    wave = np.meshgrid(*(np.fft.fftfreq(n, 1 / n) for n in shape), indexing="ij")
    shell = np.rint(np.sqrt(sum(k**2 for k in wave))).astype(int)
    count = math.prod(shape)
    parts = [0.5 * jnp.abs(jnp.fft.fftn(u) / count) ** 2 for u in velocity]
    energy = sum(parts[1:], parts[0])
    return jnp.zeros(shell.max() + 1, velocity[0].dtype).at[shell.ravel()].add(energy.ravel())


def _forces(
    flow: IncompressibleFlow, params: Mapping[str, Any], state: FlowState
) -> dict[str, Array]:
    """What the fluid exerts on the body: the momentum that penalisation takes in a step, per unit
    of time (and in 2D of length)."""
    body, box, dt = flow.body, flow.box, flow.dt
    assert body is not None
    slopes, _ = flow.tendency(params, (state.velocity, state.scalars), state.time)
    forces = []
    for component in (0, 1):
        moved = state.velocity[component] + dt * slopes[component]
        share = body.share(box, component, dt, moved.dtype)
        taken = jnp.sum(share * (moved - body.target(component)))
        forces.append(taken * (box.grid.cell_volume / dt))
    return {"drag": forces[0], "lift": forces[1]}


def vorticity_correlation(a: Array, b: Array) -> Array:
    """Σ a b / √(Σ a² Σ b²) over the last two axes: 1 for the same field. Kochkov et al. 2021 call a
    simulation good for as long as its mean over samples is over 0.95."""
    axes = (-2, -1)
    a, b = a - jnp.mean(a, axes, keepdims=True), b - jnp.mean(b, axes, keepdims=True)
    return jnp.sum(a * b, axes) / jnp.sqrt(jnp.sum(a**2, axes) * jnp.sum(b**2, axes))

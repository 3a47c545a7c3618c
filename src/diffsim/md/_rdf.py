"""The radial distribution function, as a histogram or differentiable."""

import functools
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.scipy.special import erf
from jaxtyping import Array, Float, Int, PyTree

from .._errors import ConfigError
from ._box import Box, check, nearest_planes, sides, triclinic, volume
from ._observable import AbstractObservable

# Elements of the largest array of one pass over a block of atoms: 8 MiB in float64.
BLOCK = 2**20


def radial_distribution(
    positions: Float[Array | np.ndarray, "atoms 3"],
    box: Box,
    *,
    bins: int = 100,
    r_max: float | None = None,
    width: float = 0.0,
    species: Int[np.ndarray, " _"] | None = None,
    between: tuple[int, int] | None = None,
) -> tuple[Float[Array, "bins"], Float[Array, "bins"]]:
    """g(r_k) = V/(N(N-1)) · Σ_i≠j P_k(r_ij)/v_k, with v_k the volume of shell k.

    P_k is 1 where r_ij lies in bin k. With `width` = w > 0 each distance is smeared,
    P_k = ½[erf((e_k+1 - r)/√2w) - erf((e_k - r)/√2w)] between the edges e_k, and v_k becomes
    ∫ P_k(r) A(r) dr, with A the area of the sphere of radius r inside the box: 4πr², less the caps
    beyond half an edge (of a triclinic box, half of a_x, b_y and c_z: separations lie in that
    brick). An ideal gas of any number of atoms gives 1 in every bin either way.

    positions: (N, 3) [length], anywhere: distances take the nearest periodic image
    box: (3,) edge lengths, or (3, 3) lattice vectors in rows, lower triangular [length]
    bins: how many, of equal thickness up to `r_max`
    r_max: at most, and by default, half the shortest edge, of a_x, b_y, c_z [length]
    width: standard deviation of the smearing [length]; 0 counts, and its gradient is zero. One to
        two bins give a smooth gradient and cost little resolution
    species, between: the kind of each atom, and the two kinds (a, b) whose distances are taken, as
        g_ab = V/(N_a N_b) Σ_i∈a Σ_j∈b P_k(r_ij)/v_k

    Pure: jit (bins, r_max and width static), vmap, grad. Memory is that of a block of atoms,
    whatever N; time grows as N², with `width` as N² · bins.

    Returns the bins' centres (bins,) [length] and g (bins,) [1].
    Raises ConfigError for an r_max over half the shortest edge; where the box is traced, g is NaN.
    """
    _check(bins, r_max, width)
    parts = _parts(len(positions), species, between)
    if triclinic(box) and not isinstance(box, Tracer):
        check(box)
    x, box = jnp.asarray(positions), jnp.asarray(box)
    edges = sides(box)
    reach = jnp.min(edges) / 2 if r_max is None else jnp.asarray(r_max, edges.dtype)
    fits = _fits(reach, width, edges)
    if not isinstance(fits, Tracer) and not fits:
        raise _too_far(float(reach), width, np.asarray(edges))
    limits = reach * jnp.arange(bins + 1) / bins
    return (limits[1:] + limits[:-1]) / 2, _distribution(x, box, limits, bins, width, parts)


def _kinds(species: Any) -> tuple[int, ...] | None:
    return None if species is None else tuple(int(kind) for kind in species)


def _pair(between: Any) -> tuple[int, int] | None:
    if between is None:
        return None
    a, b = between
    return int(a), int(b)


class RadialDistribution(AbstractObservable):
    """g(r) of each saved state, as one more observable of a simulation.

    bins: how many, of equal thickness
    r_max: where they end [length], at most half the shortest edge of the box
    width: standard deviation of the smearing [length]; over 0 the result is differentiable
    species, between: the kind of each atom, and the two whose distances are taken; default: all

    `sim = NVT(..., extra=(RadialDistribution(bins=80, r_max=8.0),))` then has the observable
    "rdf" of shape (bins,), and `.centres()` are the radii it stands for.
    """

    bins: int = eqx.field(static=True, default=100)
    r_max: float = eqx.field(static=True, kw_only=True)
    width: float = eqx.field(static=True, default=0.0)
    species: tuple[int, ...] | None = eqx.field(static=True, default=None, converter=_kinds)
    between: tuple[int, int] | None = eqx.field(static=True, default=None, converter=_pair)
    name: str = eqx.field(static=True, default="rdf")
    unit: str = eqx.field(static=True, default="1")

    def __check_init__(self) -> None:
        _check(self.bins, self.r_max, self.width)
        if self.species is not None or self.between is not None:
            _parts(None, self.species, self.between)

    def __call__(self, params: PyTree, state: PyTree) -> Float[Array, "bins"]:
        """g (bins,) [1] of `state.positions` in `state.box`."""
        del params
        return radial_distribution(
            state.positions,
            state.box,
            bins=self.bins,
            r_max=self.r_max,
            width=self.width,
            species=None if self.species is None else np.asarray(self.species),
            between=self.between,
        )[1]

    def centres(self) -> Float[np.ndarray, "bins"]:
        """The radii in the middle of the bins (bins,) [length]."""
        return (np.arange(self.bins) + 0.5) * (self.r_max / self.bins)


def _check(bins: int, r_max: float | None, width: float) -> None:
    if bins < 1:
        raise ConfigError("must be a positive whole number", key="bins", value=bins)
    if r_max is not None and not (math.isfinite(r_max) and r_max > 0):
        raise ConfigError("must be a positive length", key="r_max", value=r_max)
    if not (math.isfinite(width) and width >= 0):
        raise ConfigError("must be a length, or 0 to count", key="width", value=width)


def _parts(
    atoms: int | None, species: Any, between: tuple[int, int] | None
) -> tuple[tuple[int, ...], ...]:
    """The atoms of one kind, or of each of two; none where all atoms count."""
    if between is None:
        return ()
    if species is None:
        raise ConfigError("needs the species of the atoms", key="between", value=between)
    kinds = np.asarray(species)
    if atoms is not None and len(kinds) != atoms:
        raise ConfigError(f"has {len(kinds)} entries for {atoms} atoms", key="species")
    for kind in between:
        if kind not in kinds:
            allowed = [str(k) for k in np.unique(kinds)]
            raise ConfigError("no such kind", key="between", value=kind, allowed=allowed)
    return tuple(tuple(np.flatnonzero(kinds == kind).tolist()) for kind in dict.fromkeys(between))


def _fits(reach, width, box):
    """Whether spheres stay inside the box, and the caps of two axes apart where smearing ends."""
    half = jnp.sort(box) / 2
    return (reach <= half[0] * (1 + 1e-6)) & (reach + 6 * width <= jnp.hypot(half[0], half[1]))


def _too_far(reach: float, width: float, box: np.ndarray) -> ConfigError:
    shortest, middle = np.sort(box)[:2] / 2
    if reach > shortest * (1 + 1e-6):
        return ConfigError(
            "is over half the shortest edge of the box",
            key="r_max",
            value=reach,
            allowed=f"at most {shortest:g}",
        )
    return ConfigError(
        f"smears distances too far beyond the r_max of {reach:g}",
        key="width",
        value=width,
        allowed=f"at most {(np.hypot(shortest, middle) - reach) / 6:.3g}",
    )


@functools.partial(jax.jit, static_argnames=("bins", "width", "parts"))
def _distribution(x, box, limits, bins, width, parts):
    if width > 0:
        histogram, size = functools.partial(_smeared, limits, width), bins
        shells = jnp.diff(_smeared_volume(limits, sides(box) / 2, width))
    else:
        histogram, size = functools.partial(_counted, limits[-1] / bins, bins), 1
        shells = 4 / 3 * math.pi * jnp.diff(limits**3)
    among = lambda atoms: _pairs(x[np.asarray(atoms)], box, histogram, size)  # noqa: E731
    if len(parts) == 2:  # pairs of the union, less those of either alone
        counts = among(parts[0] + parts[1]) - among(parts[0]) - among(parts[1])
        ordered = 2 * len(parts[0]) * len(parts[1])
    else:
        counts = among(parts[0]) if parts else _pairs(x, box, histogram, size)
        many = len(parts[0]) if parts else len(x)
        ordered = many * (many - 1)
    g = 2 * counts / shells * (volume(box) / max(ordered, 1))
    return jnp.where(_fits(limits[-1], width, sides(box)), g, jnp.nan).astype(limits.dtype)


def _pairs(x, box, histogram, width):
    """Σ over pairs of `histogram(distances, present)`, a block of pairs at a time.

    Row k of a block pairs atom i with atom i + k, counted around: k up to N/2 makes all pairs, and
    a tiled array read with a stride of N + 1 is that, without a gather.
    """
    n = len(x)
    offsets = n // 2
    rows = max(1, min(offsets, BLOCK // (n * width)))
    blocks = -(-offsets // rows)

    def plane(first, k):  # three of them rather than one array of vectors: nothing is transposed
        partners = jnp.tile(jnp.roll(x[:, k], -first), rows + 1)[: rows * (n + 1)]
        return partners.reshape(rows, n + 1)[:, :n] - x[:, k]

    @jax.checkpoint
    def block(first):
        offset = first + jnp.arange(rows)[:, None]
        square = jnp.zeros((rows, n), x.dtype)
        for d in _folded(functools.partial(plane, first), box):
            square += d**2
        apart = square > 0  # coincident atoms have no gradient, but count
        distance = jnp.where(apart, jnp.sqrt(jnp.where(apart, square, 1)), 0)
        # With N even, half a turn meets every pair twice.
        present = (2 * offset < n) | ((2 * offset == n) & (jnp.arange(n) < offset))
        return histogram(distance, present)

    if blocks == 1:
        return block(1)
    total = jnp.zeros_like(jax.eval_shape(block, 1))
    return jax.lax.scan(lambda t, b: (t + block(1 + rows * b), None), total, jnp.arange(blocks))[0]


def _folded(plane, box):
    """x, y and z of the nearest images, from `plane` of each axis."""
    if triclinic(box):
        return nearest_planes(map(plane, range(3)), box, 1 / sides(box))
    each = ((plane(k), box[k]) for k in range(3))
    return (d - edge * jnp.round(d / edge) for d, edge in each)


def _counted(thickness, bins, distance, present):
    k = jnp.where(present, jnp.floor(distance / thickness), bins)
    k = jnp.minimum(k, bins).astype(jnp.int32)
    return jnp.zeros(bins + 1, jnp.int32).at[k.ravel()].add(1)[:bins]


def _smeared(limits, width, distance, present):
    # Below each edge, row by row: the sums stay small, and so does their rounding.
    below = (1 + erf((limits - distance[..., None]) / (math.sqrt(2) * width))) / 2
    return jnp.diff(jnp.sum(jnp.where(present[..., None], below, 0), axis=1)).sum(axis=0)


def _smeared_volume(limits, half, width):
    """∫₀^∞ A(r) Φ((e - r)/w) dr for each edge e, by parts: E[∫₀^X A], X ~ N(e, w)."""
    beyond = limits[:, None] - half  # caps: A loses 4π r (r - h) beyond h on each axis
    caps = _moment(beyond, width, 3) / 3 + half * _moment(beyond, width, 2) / 2
    return 4 * math.pi * (_moment(limits, width, 3) / 3 - caps.sum(axis=1))


def _moment(mean, width, order):
    """E[X^order; X > 0] for X ~ N(mean, width)."""
    z = mean / width
    mass = (1 + erf(z / math.sqrt(2))) / 2
    density = width * jnp.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    if order == 2:
        return (mean**2 + width**2) * mass + mean * density
    return mean * (mean**2 + 3 * width**2) * mass + (mean**2 + 2 * width**2) * density

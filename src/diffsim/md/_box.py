"""The periodic box: three edges, or three lattice vectors. All that depends on which is here.

`box` is (3,) edges, or (3, 3) with the lattice vectors a, b, c as rows, lower triangular with a
positive diagonal: a along x, b in the plane of x and y, as of ASE, GROMACS and OpenMM. The atoms at
x + n h, n any whole numbers, are images of one atom. The shape of the array says which, so that it
is known when a program is traced; every function of edges is what it was before there were others.

Images are taken off from c to a: first the c that brings z within half of c_z, then b, then a. What
is left lies in a brick of edges (a_x, b_y, c_z), which fills space with its images. A sphere that
fits into the brick therefore holds one image of each atom at most, and this finds it: the limit of
a cutoff is half the smallest of a_x, b_y, c_z, however far the box leans. (Rounding fractions would
ask for half the smallest perpendicular width, which is never more.)
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, PyTree

from .._errors import ConfigError

Box = Float[Array | np.ndarray, "3"] | Float[Array | np.ndarray, "3 3"]
Edges = Float[Array, "3"] | Float[Array, "3 3"]

TILTED = 1e-10  # of the longest vector: less above the diagonal is rounding
SAME_PLACE = 8  # roundings of an edge
TERMS = 16  # of an exponential's series, to rounding for strains of up to a half


def triclinic(box: Any) -> bool:
    """Whether this is a matrix of lattice vectors."""
    return np.ndim(box) == 2


def as_matrix(box: Any) -> Any:
    """The lattice vectors, (3, 3), of either form."""
    if triclinic(box):
        return box
    # what is known stays known, whatever is being traced
    return jnp.diag(box) if isinstance(box, Tracer) else np.diag(np.asarray(box))


def sides(box: Any) -> Any:
    """Edges of the brick that separations are folded into, (3,): a_x, b_y, c_z [length]."""
    return jnp.diagonal(jnp.asarray(box)) if triclinic(box) else box


def sound(tree: PyTree, box: Any) -> PyTree:
    """As it is; NaN in a box of vectors that is not lower triangular, or not positive on the
    diagonal: inside of a program nothing else could say so."""
    if not triclinic(box):
        return tree
    h = jax.lax.stop_gradient(jnp.asarray(box))
    diagonal, upper = jnp.diagonal(h), jnp.max(jnp.abs(jnp.triu(h, 1)))
    good = (upper <= TILTED * jnp.max(diagonal)) & (jnp.min(diagonal) > 0)
    factor = jnp.where(good, 1.0, jnp.nan)
    return jax.tree.map(lambda x: x * factor.astype(x.dtype), tree)


def volume(box: Any) -> Array:
    """V = det h, () [length³]: of a triangular matrix the product of its diagonal."""
    return sound(jnp.prod(sides(box)), box)


def known_volume(box: Any) -> float:
    """The same of a box that is known, on the host, whatever is being traced."""
    return float(np.prod(np.diagonal(box) if triclinic(box) else box))


def nearest(d: Any, box: Any) -> Any:
    """The image of a separation that is in the brick: the shortest, where that is under half of
    its edges. (..., 3) [length]."""
    if not triclinic(box):
        return d - box * jnp.round(d / box)
    return nearest_rows(d, box, 1 / sides(box))


def nearest_rows(d: Any, box: Any, inverse: Any) -> Any:
    """The same with a product for the division; `inverse`: 1/`sides`."""
    if not triclinic(box):
        return d - box * jnp.round(d * inverse)
    for k in (2, 1, 0):
        d = d - jnp.round(d[..., k : k + 1] * inverse[k]) * box[k]
    return d


def nearest_planes(d: Iterable[Array], box: Any, inverse: Any) -> list[Array]:
    """The same of x, y and z by themselves, in a box of vectors."""
    d = list(d)
    for k in (2, 1, 0):
        turns = jnp.round(d[k] * inverse[k])
        for axis in range(k + 1):
            d[axis] = d[axis] - turns * box[k, axis]
    return d


def distinct(s: Array, box: Any) -> Array:
    """Whether s = r² is more than rounding leaves between atoms at the same place. Not s > 0: a
    compiler that contracts x·c - x·c to one rounding finds an atom that far from itself."""
    least = SAME_PLACE * float(jnp.finfo(s.dtype).eps) * jnp.min(sides(box))
    return s > jnp.square(least).astype(s.dtype)


def fractions(x: Any, box: Any) -> Any:
    """f of x = f h, (..., 3)."""
    if not triclinic(box):
        return x / box
    c = x[..., 2] / box[2, 2]
    b = (x[..., 1] - c * box[2, 1]) / box[1, 1]
    a = (x[..., 0] - c * box[2, 0] - b * box[1, 0]) / box[0, 0]
    return jnp.stack([a, b, c], axis=-1)


def places(f: Any, box: Any) -> Any:
    """x = f h, (..., 3) [length]."""
    return f * box if not triclinic(box) else times(f, box)


def times(x: Any, matrix: Any) -> Any:
    """x M of rows, (..., 3): written out, as a product of matrices is rounded on some devices."""
    return sum(x[..., k : k + 1] * matrix[k] for k in range(3))  # pyright: ignore


def wrapped(x: Any, box: Any) -> Any:
    """The images of atoms that are inside of the box, (..., 3) [length]."""
    if not triclinic(box):
        return x - box * jnp.floor(x / box)
    f = fractions(x, box)
    return times(f - jnp.floor(f), box)


def inverse(lower: Any) -> Array:
    """L⁻¹ of a lower triangular L, (3, 3)."""
    return fractions(jnp.eye(3, dtype=jnp.asarray(lower).dtype), lower)


def widths(box: Any) -> Any:
    """How far apart opposite faces are, (3,) [length]: V/|b × c|, V/|c × a|, V/|a × b|."""
    if not triclinic(box):
        return box
    return 1 / jnp.sqrt(jnp.sum(inverse(box) ** 2, axis=0))


def wave_vectors(n: Any, box: Any) -> Any:
    """k of h k = 2πn, (..., 3) [1/length], of whole numbers n (..., 3)."""
    if not triclinic(box):
        return 2 * math.pi * n / box
    return 2 * math.pi * times(n, inverse(box).T)


def strained(x: Any, box: Any, strain: Any) -> tuple[Array, Array]:
    """x (1 + ε) and h (1 + ε), of a lower triangular ε (3, 3), which keeps h what it has to be."""
    grown = jnp.eye(3, dtype=strain.dtype) + jnp.tril(strain)
    return times(x, grown), times(as_matrix(box), grown)


def grown(strain: Any) -> tuple[Array, Array]:
    """C, lower triangular, and R, a rotation, of e^ε R = C for a symmetric ε, both (3, 3).

    A box that grew by e^ε and was turned by R is h C; atoms at the same fractions are at x C, and
    what did not grow, velocities or molecules, is turned to v R. C Cᵀ = e^2ε."""
    one = jnp.eye(3, dtype=strain.dtype)
    exponential = one
    for k in range(TERMS, 0, -1):
        exponential = one + times(strain, exponential) / k
    s = times(exponential, exponential)
    a = jnp.sqrt(s[0, 0])
    b, c = s[1, 0] / a, s[2, 0] / a
    d = jnp.sqrt(s[1, 1] - b * b)
    e = (s[2, 1] - b * c) / d
    f, zero = jnp.sqrt(s[2, 2] - c * c - e * e), jnp.zeros_like(a)
    lower = jnp.stack([a, zero, zero, b, d, zero, c, e, f]).reshape(3, 3)
    return lower, times(exponential, inverse(lower).T)


def symmetric(lower: Any) -> Array:
    """The symmetric matrix whose lower half this is, (3, 3)."""
    lower = jnp.tril(lower)
    return lower + jnp.tril(lower, -1).T


# On the host: what a user gives.


def check(box: Any, key: str = "box") -> np.ndarray:
    """The box as an array of one of its two forms; ConfigError for anything else."""
    try:
        given = np.asarray(box, dtype=float)
    except (TypeError, ValueError):
        given = np.zeros(0)
    if given.shape not in ((3,), (3, 3)):
        raise ConfigError(
            f"must be (3,) edge lengths or (3, 3) lattice vectors in rows, not {given.shape}",
            key=key,
        )
    if given.ndim == 1:
        if not np.all(np.isfinite(given) & (given > 0)):
            raise ConfigError("must be positive edge lengths", key=key, value=given.tolist())
        return given
    longest = float(np.max(np.abs(given)))
    upper = np.abs(given[np.triu_indices(3, 1)])
    if not math.isfinite(longest) or not np.linalg.det(given) > 0:
        raise ConfigError(
            "must be finite lattice vectors that span a volume, right-handed",
            key=key,
            value=given.tolist(),
            allowed="rows a, b, c with a · (b × c) > 0: exchange two of them where it is under 0",
        )
    if np.any(upper > TILTED * longest) or np.any(np.diagonal(given) <= 0):
        lower = upright(given)[0]
        raise ConfigError(
            "must be lower triangular with a positive diagonal: a along x, b in the xy plane",
            key=key,
            value=given.tolist(),
            suggestion=f"the same lattice turned, {np.round(lower, 10).tolist()}, with positions "
            "turned along",
        )
    return np.tril(given)


def upright(vectors: Any) -> tuple[np.ndarray, np.ndarray]:
    """A lattice turned so that its matrix is lower triangular: h R and the rotation R, both
    (3, 3); positions turn by x R."""
    given = np.asarray(vectors, dtype=float)
    lower = np.linalg.cholesky(given @ given.T)
    return lower, np.linalg.solve(given, lower)


def of_vectors(vectors: Any) -> tuple[np.ndarray, np.ndarray]:
    """The box of any lattice vectors, (3,) or (3, 3), and the rotation R that takes them there:
    positions to x R, forces to F R."""
    given = np.asarray(vectors, dtype=float)
    small = TILTED * float(np.max(np.abs(given)))
    if not (math.isfinite(small) and np.linalg.det(given) > 0):
        raise ConfigError("spans no volume, or is left-handed", key="box", value=given.tolist())
    lower, turn = given, np.eye(3)
    if np.any(np.abs(given[np.triu_indices(3, 1)]) > small) or np.any(np.diagonal(given) <= 0):
        lower, turn = upright(given)
    tilts = np.abs(lower[np.tril_indices(3, -1)])
    return (np.tril(lower) if np.any(tilts > small) else np.diagonal(lower).copy()), turn


def check_reach(cutoff: float, box: Any, remedy: str = "") -> None:
    """Refuse a cutoff over half the box, (..., 3) edges or (3, 3)."""
    given = np.asarray(box)
    # edges of a batch come together, and the smallest of them counts
    if given.ndim == 1 or given.shape == (3, 3):
        given = check(given)
    smallest = float(np.min(np.diagonal(given) if given.shape == (3, 3) else given))
    half = smallest / 2
    if not math.isfinite(half) or half <= 0:
        raise ConfigError("must be positive edge lengths", key="box", value=given.tolist())
    if cutoff > half * (1 + 1e-12):
        which = "the box" if given.shape != (3, 3) else "the smallest of a_x, b_y, c_z of the box"
        raise ConfigError(
            f"is over half {which} ({half:.6g}){remedy}",
            key="cutoff",
            value=cutoff,
            suggestion=f"{math.floor(half * 1e3) / 1e3:g}",
        )


def members(box: Any, positions: Any) -> np.ndarray:
    """The box of each configuration, (members, 3) or (members, 3, 3), checked: positions (atoms, 3)
    are one, (batch, atoms, 3) as many as there are. That tells three boxes from three vectors."""
    x, given = np.asarray(positions), np.asarray(box, dtype=float)
    batch = x.shape[:-2]
    own = given.shape[-1:] if given.ndim <= len(batch) + 1 else given.shape[-2:]
    if own not in ((3,), (3, 3)):
        raise ConfigError(
            f"must be (3,) edge lengths or (3, 3) lattice vectors in rows, not {given.shape}",
            key="box",
        )
    every = np.broadcast_to(given, (*batch, *own)).reshape(-1, *own)
    return np.stack([check(each) for each in every]) if len(every) else every

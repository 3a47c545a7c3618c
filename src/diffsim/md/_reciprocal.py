"""The smooth part of Coulomb's energy, summed over waves: directly, or on a mesh."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._errors import ConfigError
from ._box import Edges, fractions, inverse, triclinic, volume, wave_vectors

Charges = Float[Array, " atoms"]
Places = Float[Array, "atoms 3"]


class AbstractReciprocal(eqx.Module):
    """U = (1/2V) Σ_{k≠0} (4π/k²) e^(-k²/4α²) |S(k)|²,  S(k) = Σ_i q_i e^(ik·x_i), k = 2πh⁻¹n, which
    is 2πn/L for edges L."""

    @abstractmethod
    def energy(self, charges: Charges, positions: Places, box: Edges, alpha: float) -> Array:
        """U in charge²/length, of charges smeared as Gaussians. Shape ()."""

    @abstractmethod
    def error(self, box: np.ndarray, alpha: float) -> float:
        """About what the waves left out would add, of the largest kept."""


class Ewald(AbstractReciprocal):
    """The sum over waves with |n_a| ≤ `waves` and n² < `n_squared` (default: `waves`² + 1).

    Exact but for the waves left out, and smooth in everything. Time and memory grow as atoms times
    waves³: up to a thousand atoms; beyond, `PME`. Source: Allen & Tildesley 2017, section 6.2.
    """

    waves: int = eqx.field(static=True, default=6)
    n_squared: int | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        if self.waves < 1:
            raise ConfigError("must be a positive whole number", key="waves", value=self.waves)

    def _times(self) -> np.ndarray:
        """How many waves of one half-space (-n gives the same) have the lengths |n_a| along the
        edges, n = 0, 1, ...: (1 + waves,) * 3; 0 where none is kept."""
        most = self.n_squared if self.n_squared is not None else self.waves**2 + 1
        n = np.stack(np.meshgrid(*[np.arange(self.waves + 1)] * 3, indexing="ij"))
        squared = np.sum(n * n, axis=0)
        return np.where((squared > 0) & (squared < most), 2.0 ** (np.sum(n > 0, axis=0) - 1), 0)

    def energy(self, charges: Charges, positions: Places, box: Edges, alpha: float) -> Array:
        """Waves that differ in signs alone count together: the sum of their |S|² is that of the
        eight T², T = Σ_i q_i f(k_x x) g(k_y y) h(k_z z) with a cosine or a sine for f, g and h, as
        often as there are waves. T is a matrix product over the atoms, as are its derivatives."""
        if triclinic(box):
            return self._of_vectors(charges, positions, box, alpha)
        times, size = self._times(), self.waves + 1
        k = [2 * math.pi / edge * np.arange(size) for edge in box]
        squared = (k[0] ** 2)[:, None, None] + (k[1] ** 2)[:, None] + k[2] ** 2
        squared = jnp.where(times > 0, squared, 1)
        strength = times * jnp.exp(-squared / (4 * alpha**2)) / squared
        sums = self._sums(charges, 2 * math.pi * positions / box)
        total = jnp.sum(strength * jnp.sum(sums * sums, axis=(0, 2, 4)))
        return 4 * math.pi / jnp.prod(box) * total

    def _sums(self, charges: Charges, angles: Array) -> Array:
        """T of all f, g, h and all lengths of n: (2, size, 2, size, 2, size)."""
        size = self.waves + 1
        x, y, z = (self._along(angle) for angle in angles.T)
        xy = (charges[:, None] * x)[:, :, None] * y[:, None, :]
        return (xy.reshape(len(charges), -1).T @ z).reshape(2, size, 2, size, 2, size)

    def _of_vectors(self, charges: Charges, positions: Places, box: Edges, alpha: float) -> Array:
        """Where the signs of n tell: S of n₃ ≥ 0 and each sign of n₁ and n₂ from the same T. Waves
        without some n_a come up several times, with as much less weight."""
        times = self._times()
        t = self._sums(charges, 2 * math.pi * fractions(positions, box)).transpose(0, 2, 4, 1, 3, 5)
        n = np.stack(np.meshgrid(*[np.arange(self.waves + 1.0)] * 3, indexing="ij"), axis=-1)
        total = jnp.zeros((), positions.dtype)
        for s, u in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
            k = wave_vectors(jnp.asarray(n * (s, u, 1), positions.dtype), box)
            squared = jnp.where(times > 0, jnp.sum(k * k, axis=-1), 1)
            real = t[0, 0, 0] - s * u * t[1, 1, 0] - s * t[1, 0, 1] - u * t[0, 1, 1]
            imaginary = s * t[1, 0, 0] + u * t[0, 1, 0] + t[0, 0, 1] - s * u * t[1, 1, 1]
            strength = times / 4 * jnp.exp(-squared / (4 * alpha**2)) / squared
            total = total + jnp.sum(strength * (real**2 + imaginary**2))
        return 4 * math.pi / volume(box) * total

    def _along(self, angle: Array) -> Array:
        """cos nφ and sin nφ, n = 0 to `waves`, of angles (atoms,): (atoms, 2 (1 + waves))."""
        one = jnp.cos(angle), jnp.sin(angle)
        turned = [(jnp.ones_like(angle), jnp.zeros_like(angle))]
        for _ in range(self.waves):
            c, s = turned[-1]
            turned.append((c * one[0] - s * one[1], s * one[0] + c * one[1]))
        cosines, sines = zip(*turned, strict=True)
        return jnp.stack(cosines + sines, axis=1)

    def error(self, box: np.ndarray, alpha: float) -> float:
        most = self.n_squared if self.n_squared is not None else self.waves**2 + 1
        longest = np.linalg.norm(box, 2) if triclinic(box) else np.max(box)  # |n| < |k| of these
        k = 2 * math.pi * math.sqrt(most) / float(longest)
        return math.exp(-((k / (2 * alpha)) ** 2))


class PME(AbstractReciprocal):
    """The same sum by fast Fourier transforms of charges on a mesh: smooth particle mesh Ewald.

    Charges are spread by cardinal B-splines of an even `order` (4, 6 or 8), over `mesh` points
    along each edge. The energy has order - 2 continuous derivatives in positions, charges and box.
    At order 6 a mesh as fine as 1/(2.5 α) gives forces to 1e-4, at 1/(4 α) to 1e-6. Time grows as
    atoms plus mesh log mesh. Source: Essmann et al. 1995, doi:10.1063/1.470117.
    """

    mesh: tuple[int, int, int] = eqx.field(static=True)
    order: int = eqx.field(static=True)

    def __init__(self, mesh: int | Sequence[int], order: int = 6):
        # a wrong number of them is refused below
        self.mesh = (mesh,) * 3 if isinstance(mesh, int) else tuple(mesh)  # pyright: ignore
        self.order = order

    def __check_init__(self):
        if self.order not in (4, 6, 8):
            raise ConfigError("no such order", key="order", value=self.order, allowed="4, 6 or 8")
        if len(self.mesh) != 3 or min(self.mesh) < 2 * self.order:
            raise ConfigError(
                f"must be three numbers of at least {2 * self.order}", key="mesh", value=self.mesh
            )

    def energy(self, charges: Charges, positions: Places, box: Edges, alpha: float) -> Array:
        waves = jnp.fft.rfftn(self._spread(charges, positions, box))
        strength = self._strength(box, alpha)
        # the transform of real charges holds one half: the other counts by a factor of two
        last = np.full(self.mesh[2] // 2 + 1, 2.0)
        last[0] = 1
        if self.mesh[2] % 2 == 0:
            last[-1] = 1
        power = waves.real**2 + waves.imag**2
        return 2 * math.pi / volume(box) * jnp.sum(strength * last * power)

    def _spread(self, charges: Charges, positions: Places, box: Edges) -> Array:
        """Charges on the mesh, (mesh)."""
        u = fractions(positions, box)
        scaled = (u - jnp.floor(jax.lax.stop_gradient(u))) * jnp.asarray(self.mesh, u.dtype)
        cell = jax.lax.stop_gradient(jnp.floor(scaled))
        weights = _spline(scaled - cell, self.order)
        first = cell.astype(jnp.int32)
        index = [(first[:, a, None] - np.arange(self.order)) % self.mesh[a] for a in range(3)]
        x, y, z = (weights[:, a] for a in range(3))
        share = charges[:, None, None, None] * x[:, :, None, None] * y[:, None, :, None]
        share = share * z[:, None, None, :]
        at = index[0][:, :, None, None], index[1][:, None, :, None], index[2][:, None, None, :]
        return jnp.zeros(self.mesh, u.dtype).at[at].add(share)

    def _strength(self, box: Edges, alpha: float) -> Array:
        """e^(-k²/4α²)/k² over the splines' own transform, 0 at k = 0."""
        counts = [np.fft.fftfreq(m, 1 / m) for m in self.mesh]
        counts[2] = np.arange(self.mesh[2] // 2 + 1.0)
        if triclinic(box):
            i, (x, y, z) = 2 * math.pi * inverse(box), np.meshgrid(*counts, indexing="ij")
            along = i[0, 0] * x, i[1, 0] * x + i[1, 1] * y, i[2, 0] * x + i[2, 1] * y + i[2, 2] * z
            squared = along[0] ** 2 + along[1] ** 2 + along[2] ** 2
        else:
            k = [2 * math.pi * c / box[a] for a, c in enumerate(counts)]
            squared = k[0][:, None, None] ** 2 + k[1][:, None] ** 2 + k[2] ** 2
        nonzero = np.ones(squared.shape, bool)
        nonzero[0, 0, 0] = False
        safe = jnp.where(nonzero, squared, 1)
        splines = [_moduli(m, self.order) for m in self.mesh]
        splines[2] = splines[2][: self.mesh[2] // 2 + 1]
        whole = splines[0][:, None, None] * splines[1][:, None] * splines[2]
        return jnp.where(nonzero, jnp.exp(-safe / (4 * alpha**2)) / safe, 0) / whole

    def error(self, box: np.ndarray, alpha: float) -> float:
        edges = np.linalg.norm(box, axis=1) if triclinic(box) else np.asarray(box)
        spacing = float(np.max(edges / self.mesh))
        return (alpha * spacing / 1.8) ** self.order


def _spline(w: Array, order: int) -> Array:
    """M_p(w + j) for j = 0..p-1, w in [0, 1): shape (..., p)."""
    zero = jnp.zeros_like(w)
    values = [w, 1 - w]  # M₂
    for p in range(3, order + 1):
        below = [*values, zero]
        above = [zero, *values]
        values = [((w + j) * below[j] + (p - w - j) * above[j]) / (p - 1) for j in range(p)]
    return jnp.stack(values, axis=-1)


def _moduli(mesh: int, order: int) -> np.ndarray:
    """|Σ_j M_p(j + 1) e^(2πi m j/mesh)|², (mesh,)."""
    values = np.array([1.0])
    for p in range(3, order + 1):
        j = np.arange(1, p)
        below, above = np.append(values, 0), np.insert(values, 0, 0)
        values = (j * below + (p - j) * above) / (p - 1)
    return np.abs(np.fft.fft(values, mesh)) ** 2

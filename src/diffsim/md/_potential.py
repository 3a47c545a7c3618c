"""What an ensemble asks of a potential, and any JAX function as one."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, PyTree

from .._errors import ConfigError
from ._box import Box, strained, symmetric, triclinic
from ._clusters import Clusters
from ._neighbours import Neighbours, make, make_for_all_pairs

Positions = Float[Array | np.ndarray, "atoms 3"]
Vectors = Float[Array, "atoms 3"]


class Thermo(eqx.Module):
    """Energies of one configuration, in energy units: `energy`, what is reported (tail correction
    included); `driving`, the one whose gradient the forces are; `virial`, Σ r·f over pairs, NaN
    where the potential has none."""

    energy: Array
    driving: Array
    virial: Array


class AbstractPotential(eqx.Module):
    """U(θ, x, L): energies, forces and virial of N atoms in a periodic box.

    `box`: edges (3,), or lattice vectors in rows (3, 3), lower triangular (see `AbstractDynamics`).
    All are differentiable in both modes. `neighbours` is what `allocate` made (None: none needed).
    """

    @abstractmethod
    def energy(
        self, params: PyTree, positions: Positions, box: Box, neighbours: Any = None
    ) -> Array:
        """U, the reported energy. Shape ()."""

    def driving_energy(
        self, params: PyTree, positions: Positions, box: Box, neighbours: Any = None
    ) -> Array:
        """The energy whose gradient the forces are; differs from U for a plainly cut potential."""
        return self.energy(params, positions, box, neighbours)

    def forces(
        self, params: PyTree, positions: Positions, box: Box, neighbours: Any = None
    ) -> Vectors:
        """F = -∂U/∂x of the driving energy, (atoms, 3)."""
        return -jax.grad(self.driving_energy, argnums=1)(params, positions, box, neighbours)

    def virial(
        self, params: PyTree, positions: Positions, box: Box, neighbours: Any = None
    ) -> Array:
        """W = -dU(λx, λL)/dλ at λ = 1, for pair potentials Σ r·f. Shape ()."""
        one = jnp.ones((), positions.dtype)
        scaled = lambda c: self.driving_energy(params, c * positions, c * box, neighbours)  # noqa: E731
        return -jax.grad(scaled)(one)

    def virial_tensor(
        self, params: PyTree, positions: Positions, box: Box, neighbours: Any = None
    ) -> Float[Array, "3 3"]:
        """W_ab = -∂U(x(1 + ε), h(1 + ε))/∂ε_ab at ε = 0 of the driving energy, (3, 3) [energy]: for
        pairs Σ d_a F_b. Symmetric, its trace the virial. A box of edges is taken for its matrix.

        Energies do not change as all turns together, so that W_ab = W_ba: the lower half tells all,
        and every box that is looked at stays lower triangular."""

        def energy(strain: Array) -> Array:
            return self.driving_energy(params, *strained(x, box, strain), found)

        # tiles are of rectangular boxes: all pairs instead
        cut = lambda leaf: None if isinstance(leaf, Clusters) else leaf  # noqa: E731
        found = jax.tree.map(cut, neighbours, is_leaf=lambda x: isinstance(x, Clusters))
        x = jnp.asarray(positions)
        box = jnp.asarray(box, x.dtype)
        return -symmetric(jax.grad(energy)(jnp.zeros((3, 3), x.dtype)))

    def volume_energy(self, params: PyTree, atoms: int, box: Box) -> Array:
        """A(V), the energy behind that part of the virial which the driving energy does not have,
        W_A = -3V dA/dV: what a tail correction adds to the potential of an ensemble whose volume
        changes. Shape ()."""
        return jnp.zeros((), jnp.asarray(box).dtype)

    def features(self, positions: Positions, box: Box, neighbours: Any = None) -> PyTree:
        """What of a configuration determines `thermo` at any parameters, where that is little: a
        sample that carries it is reweighted without another look at its pairs. None: all of it."""
        return None

    def thermo(
        self,
        params: PyTree,
        positions: Positions,
        box: Box,
        neighbours: Any = None,
        features: PyTree = None,
    ) -> Thermo:
        """Energy, driving energy and virial of one configuration."""
        arguments = (params, positions, box, neighbours)
        energy = self.energy(*arguments)
        return Thermo(energy, self.driving_energy(*arguments), self.virial(*arguments))

    def pullback(
        self,
        params: PyTree,
        positions: Positions,
        box: Box,
        cotangent: Vectors,
        neighbours: Any = None,
    ) -> tuple[PyTree, Vectors]:
        """(∂F/∂θ)ᵀ w and (∂F/∂x)ᵀ w by one forward-over-reverse pass: the Hessian is symmetric."""
        dynamic, static = eqx.partition(params, eqx.is_inexact_array)

        def driving(dynamic, positions):
            return self.driving_energy(eqx.combine(dynamic, static), positions, box, neighbours)

        slope = jax.grad(driving, argnums=(0, 1))
        zero = jax.tree.map(jnp.zeros_like, dynamic)
        _, (ct_params, ct_positions) = jax.jvp(slope, (dynamic, positions), (zero, cotangent))
        return jax.tree.map(jnp.negative, ct_params), -ct_positions

    def check(self, params: PyTree, box: Any) -> None:
        """Host side: refuse parameters or boxes that cannot be right, before anything is traced."""

    def parameter_units(self) -> dict[str, str]:
        """The dimension of each named parameter: "energy", "length", ..."""
        return {}

    @property
    def allocates(self) -> bool:
        """Whether `allocate` may make a structure, for which it wants concrete positions."""
        return False

    def allocate(self, params: PyTree, positions: Positions, box: Box, previous: Any = None) -> Any:
        """Host side: a neighbour structure for these positions, with more room than `previous`;
        None where none is needed."""
        return None

    def update(self, neighbours: Any, positions: Positions, box: Box) -> Any:
        """The neighbour structure after a move; rebuilt when displacements call for it."""
        return neighbours

    def overflowed(self, neighbours: Any) -> Array:
        """Whether the neighbour structure ran out of room, so that energies are NaN."""
        return jnp.asarray(False)

    def path_taken(self, neighbours: Any) -> str | None:
        """How pairs are found for a state with this structure, where there is a choice."""
        return None

    @property
    def repeatable(self) -> bool:
        """Whether forces are the same to the last bit for any valid neighbour structure, so that a
        trajectory can be run backwards."""
        return True

    @property
    def reach(self) -> float | None:
        """The cutoff, for the guard against runaway atoms; None where there is none."""
        return None

    @property
    def noise_dtype(self) -> Any:
        """The precision of thermal noise; None: the state's."""
        return None


def volume_virial(potential: AbstractPotential, params: PyTree, atoms: int, box: Box) -> Array:
    """-V dA/dV of `volume_energy`, a third of its virial: what it adds to each W_aa of
    `virial_tensor`. Shape ()."""
    box = jnp.asarray(box)
    scale = jax.grad(lambda c: potential.volume_energy(params, atoms, c * box))
    return -scale(jnp.ones((), box.dtype)) / 3


class Potential(AbstractPotential):
    """U(θ, x) for any JAX-MD energy function or Equinox module, as it is.

    **Arguments:** `energy_fn`, called as `energy_fn(positions)`, plus

    - `neighbor_fn`: JAX-MD's companion of an energy with a neighbour list, as in
      `neighbor_fn, energy_fn = energy.stillinger_weber_neighbor_list(...)`: then also with
      `neighbor=`. The list is kept up to date, and enlarged when it overflows.
    - parameters: by keyword, one for each name in `params`; with `pass_params=True` all together as
      the first argument, `energy_fn(params, positions)`, as Flax's and Haiku's networks want;
      with `module="net"` the parameter `net` is itself the function, `params["net"](positions)`,
      and `energy_fn` (an Equinox module, say) only stands for it.
    - `box=`, the edges (3,), where its signature has that name or `pass_box` is True. With
      `triclinic=True` it says that it knows lattice vectors (3, 3) in rows too: JAX-MD's
      `periodic_general` wants them as columns, `box.T`.

    It returns one number. Periodicity and cutoff are its own: JAX-MD closes over its displacement
    function, whose box must be that of the state. Positions are unwrapped.

    The virial, hence the pressure, is there only if `energy_fn` takes `box`; it is NaN otherwise.
    `Reversible` wants forces that are the same to the last bit for any valid list, which JAX-MD's
    energies with neighbour lists are not, and refuses them: take those without, or
    `RecursiveCheckpoint`. Parameters
    that go through `energy.lennard_jones*` have NaN gradients (jax-md#258): see `LennardJones`.
    """

    energy_fn: Callable[..., Array]
    neighbor_fn: Any = eqx.field(static=True, default=None, kw_only=True)
    pass_params: bool = eqx.field(static=True, default=False, kw_only=True)
    pass_box: bool | None = eqx.field(static=True, default=None, kw_only=True)
    module: str | None = eqx.field(static=True, default=None, kw_only=True)
    triclinic: bool = eqx.field(static=True, default=False, kw_only=True)

    def __check_init__(self):
        if not callable(self.energy_fn):
            raise ConfigError("must be callable", key="energy_fn", value=self.energy_fn)
        if self.neighbor_fn is not None and not hasattr(self.neighbor_fn, "allocate"):
            raise ConfigError(
                "must be what JAX-MD returns beside an energy with neighbour list",
                key="neighbor_fn",
                value=self.neighbor_fn,
            )
        if self.pass_params and self.module is not None:
            raise ConfigError("excludes pass_params=True", key="module", value=self.module)

    def check(self, params: PyTree, box: Any) -> None:
        self._check_shape(box)
        if self.module is not None and not (
            isinstance(params, Mapping) and callable(params.get(self.module))
        ):
            raise ConfigError("must be among the parameters, and callable", key=self.module)

    def _check_shape(self, box: Any) -> None:
        if not triclinic(box):
            return
        if self.neighbor_fn is not None:
            raise ConfigError(
                "JAX-MD's lists of Cartesian positions know no triclinic boxes",
                key="neighbor_fn",
                allowed="the energy function without neighbour list",
            )
        if not self.triclinic:
            raise ConfigError(
                "is triclinic, and this energy function may know edges alone",
                key="box",
                allowed="Potential(..., triclinic=True) of a function that is made for (3, 3)",
            )

    def _takes_box(self) -> bool:
        if self.pass_box is not None:
            return self.pass_box
        return "box" in inspect.signature(self.energy_fn).parameters

    def energy(
        self, params: PyTree, positions: Positions, box: Box, neighbours: Any = None
    ) -> Array:
        self._check_shape(box)
        energy_fn, arguments, named = self.energy_fn, (positions,), {}
        if self.pass_params:
            arguments = (params, positions)
        else:
            # Python numbers would pass through float32 in JAX-MD.
            named = {k: _as_array(v, positions.dtype) for k, v in (params or {}).items()}
        if self.module is not None:
            energy_fn = named.pop(self.module)
        if self._takes_box():
            named["box"] = box
        if self.neighbor_fn is not None:
            if neighbours is None:
                neighbours = self.allocate(params, positions, box)
            named["neighbor"] = neighbours.list
        energy = energy_fn(*arguments, **named)
        if jnp.shape(energy) != ():
            raise ConfigError(
                f"must return one number, not an array of shape {jnp.shape(energy)}",
                key="energy_fn",
            )
        return energy if neighbours is None else neighbours.spoil(energy)

    def virial(
        self, params: PyTree, positions: Positions, box: Box, neighbours: Any = None
    ) -> Array:
        if not self._takes_box():
            return jnp.full((), jnp.nan, positions.dtype)
        return super().virial(params, positions, box, neighbours)

    def virial_tensor(
        self, params: PyTree, positions: Positions, box: Box, neighbours: Any = None
    ) -> Float[Array, "3 3"]:
        if not self._takes_box():
            return jnp.full((3, 3), jnp.nan, positions.dtype)
        return super().virial_tensor(params, positions, box, neighbours)

    @property
    def allocates(self) -> bool:
        return self.neighbor_fn is not None

    @property
    def repeatable(self) -> bool:
        return self.neighbor_fn is None

    def allocate(
        self, params: PyTree, positions: Positions, box: Box, previous: Any = None
    ) -> Neighbours | None:
        if self.neighbor_fn is None:
            return None
        if not any(isinstance(x, Tracer) for x in (positions, box)):
            return make(self.neighbor_fn, positions, box, previous)
        whole = make_for_all_pairs(self.neighbor_fn, positions.shape[0], positions.dtype)
        return whole.updated(positions, box)

    def update(self, neighbours: Any, positions: Positions, box: Box) -> Any:
        return None if neighbours is None else neighbours.updated(positions, box)

    def overflowed(self, neighbours: Any) -> Array:
        return jnp.asarray(False) if neighbours is None else neighbours.overflowed


def _as_array(value: Any, dtype: Any) -> Any:
    return jnp.asarray(value, dtype) if isinstance(value, float) else value

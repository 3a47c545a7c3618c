"""Epidemics in a population of constant size."""

from __future__ import annotations

import math
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..._errors import ConfigError
from ..._laws import AbstractLaw, Conserved
from ._abstract import AbstractSystem, Vector


def _check_population(population: float) -> None:
    if not (math.isfinite(population) and population > 1):
        raise ConfigError("must be finite and above 1", key="population", value=population)


def _books(y: Vector, population: float, args: Any) -> dict[str, Array]:
    """The sum, and what relates the ill to those who never were: d(ill)/dS = -1 + γN/(βS)."""
    y = jnp.asarray(y)
    escape = args["gamma"] * population / args["beta"] * jnp.log(y[0])
    return {"total": jnp.sum(y), "final_size_relation": jnp.sum(y[:-1]) - escape}


def _balanced(rtol: float) -> tuple[AbstractLaw, ...]:
    relation = Conserved("final_size_relation", rtol, relative_to="total")
    return (Conserved("total", rtol), relation)


class SIR(AbstractSystem):
    """S' = -β S I/N,  I' = β S I/N - γ I,  R' = γ I: susceptible, infected, recovered.

    y: (3,) `S`, `I`, `R` [persons]; `population` = N [persons], which S + I + R should start with.
    Parameters: `beta` = β, contacts that infect, a person and time [1/time]; `gamma` = γ, the rate
    of recovery [1/time], so that 1/γ is how long one is infectious.

    An epidemic grows while β S > γ N; β/γ is the basic reproduction number. Typical: influenza
    0.5 to 2 a day and 1/γ of 2 to 3 days. Conserved: `total` = S + I + R, and
    `final_size_relation` = S + I - (γN/β) ln S, which gives how many escape.

    Source: Kermack and McKendrick, Proc. R. Soc. A 115, 700 (1927), doi:10.1098/rspa.1927.0118.
    """

    population: float = eqx.field(static=True, converter=float, default=1000.0)

    def __check_init__(self):
        _check_population(self.population)

    @property
    def components(self) -> tuple[str, ...]:
        return ("S", "I", "R")

    def __call__(self, t: Any, y: Vector, args: Any) -> Float[Array, "n"]:
        del t
        infections = args["beta"] * y[0] * y[1] / self.population
        recoveries = args["gamma"] * y[1]
        return jnp.stack([-infections, infections - recoveries, recoveries])

    def observe(self, t: Any, y: Vector, args: Any) -> dict[str, Array]:
        del t
        return _books(y, self.population, args)

    def laws(self, rtol: float = 1e-4) -> tuple[AbstractLaw, ...]:
        return _balanced(rtol)

    def defaults(self) -> dict[str, Any]:
        return {"beta": 1.5, "gamma": 0.5}

    def start(self) -> Float[Array, "n"]:
        return jnp.array([self.population - 1, 1.0, 0.0])


class SEIR(AbstractSystem):
    """S' = -β S I/N,  E' = β S I/N - κ E,  I' = κ E - γ I,  R' = γ I: SIR with a latent time.

    y: (4,) `S`, `E`, `I`, `R` [persons]; E are infected and not yet infectious. `population` = N
    [persons]. Parameters [1/time]: `beta`, `gamma` as in `SIR`; `kappa` = κ, so that 1/κ is the
    latent time (measles: 8 days, β/γ of 12 to 18).

    Conserved: `total`, and `final_size_relation` = S + E + I - (γN/β) ln S: a latent time delays an
    epidemic and does not change how many escape it.

    Source: Hethcote, SIAM Review 42, 599 (2000), doi:10.1137/S0036144500371907.
    """

    population: float = eqx.field(static=True, converter=float, default=1000.0)

    def __check_init__(self):
        _check_population(self.population)

    @property
    def components(self) -> tuple[str, ...]:
        return ("S", "E", "I", "R")

    def __call__(self, t: Any, y: Vector, args: Any) -> Float[Array, "n"]:
        del t
        infections = args["beta"] * y[0] * y[2] / self.population
        onsets, recoveries = args["kappa"] * y[1], args["gamma"] * y[2]
        return jnp.stack([-infections, infections - onsets, onsets - recoveries, recoveries])

    def observe(self, t: Any, y: Vector, args: Any) -> dict[str, Array]:
        del t
        return _books(y, self.population, args)

    def laws(self, rtol: float = 1e-4) -> tuple[AbstractLaw, ...]:
        return _balanced(rtol)

    def defaults(self) -> dict[str, Any]:
        return {"beta": 1.5, "gamma": 0.5, "kappa": 1.0}

    def start(self) -> Float[Array, "n"]:
        return jnp.array([self.population - 1, 0.0, 1.0, 0.0])

"""Explicit Runge-Kutta methods by their coefficients."""

from __future__ import annotations

from typing import NamedTuple

from .._errors import ConfigError


class Tableau(NamedTuple):
    """uᵢ = u + dt Σⱼ aᵢⱼ f(uⱼ): the rows of `stages` after the first, the last of them the step.

    `times`: cᵢ of every evaluation; `order`; `real`, `imaginary`: how far the stability region
    reaches along the negative real and the imaginary axis, for diffusion and convection.
    """

    stages: tuple[tuple[float, ...], ...]
    times: tuple[float, ...]
    order: int
    real: float
    imaginary: float


METHODS = {
    "euler": Tableau(((1.0,),), (0.0,), 1, 2.0, 0.0),
    "rk2": Tableau(((1.0,), (0.5, 0.5)), (0.0, 1.0), 2, 2.0, 0.0),
    # Shu and Osher 1988, doi:10.1016/0021-9991(88)90177-5
    "rk3": Tableau(((1.0,), (0.25, 0.25), (1 / 6, 1 / 6, 2 / 3)), (0.0, 1.0, 0.5), 3, 2.51, 1.73),
    "rk4": Tableau(
        ((0.5,), (0.0, 0.5), (0.0, 0.0, 1.0), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
        (0.0, 0.5, 0.5, 1.0),
        4,
        2.78,
        2.82,
    ),
}


def method_of(name: str) -> Tableau:
    if name not in METHODS:
        raise ConfigError("unknown method", key="method", value=name, allowed=METHODS)
    return METHODS[name]

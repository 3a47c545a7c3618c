"""Symmetric compositions of the leapfrog step: symplectic methods of order 2 to 8."""

from __future__ import annotations

from typing import ClassVar

import equinox as eqx


class AbstractComposition(eqx.Module):
    """Φ_h = S(γ₁h) ∘ S(γ₂h) ∘ ... ∘ S(γₛh), S a symmetric leapfrog step, Σ γ = 1, γ palindromic.

    `weights` are the γ; `kick_first` says whether S is kick, drift, kick (a force evaluation a
    stage, the last one shared with the next step) or drift, kick, drift.
    """

    weights: ClassVar[tuple[float, ...]]
    order: ClassVar[int]
    kick_first: ClassVar[bool]


class VelocityVerlet(AbstractComposition):
    """p½ = p - (h/2) ∇V(q),  q' = q + h ∇T(p½),  p' = p½ - (h/2) ∇V(q').

    Second order, one force evaluation a step (Verlet 1967, doi:10.1103/PhysRev.159.98). Stable for
    ωh < 2. The choice where forces cost and accuracy need not be high.
    """

    weights: ClassVar[tuple[float, ...]] = (1.0,)
    order: ClassVar[int] = 2
    kick_first: ClassVar[bool] = True


_THIRD = 2.0 ** (1.0 / 3.0)
_TRIPLE_JUMP = (1 / (2 - _THIRD), -_THIRD / (2 - _THIRD), 1 / (2 - _THIRD))


class ForestRuth(AbstractComposition):
    """Fourth order, three forces a step: the triple jump γ = (1, -2^⅓, 1)/(2 - 2^⅓) of drift, kick,
    drift (Forest & Ruth 1990, doi:10.1016/0167-2789(90)90019-L)."""

    weights: ClassVar[tuple[float, ...]] = _TRIPLE_JUMP
    order: ClassVar[int] = 4
    kick_first: ClassVar[bool] = False


class Yoshida4(AbstractComposition):
    """Fourth order, three forces a step: the triple jump of kick, drift, kick (Yoshida 1990,
    doi:10.1016/0375-9601(90)90092-3)."""

    weights: ClassVar[tuple[float, ...]] = _TRIPLE_JUMP
    order: ClassVar[int] = 4
    kick_first: ClassVar[bool] = True


def _palindrome(*half: float) -> tuple[float, ...]:
    """The outer weights mirrored about the middle one, which makes their sum one."""
    return (*half, 1 - 2 * sum(half), *reversed(half))


class Yoshida6(AbstractComposition):
    """Sixth order, seven forces a step: solution A of Yoshida (1990,
    doi:10.1016/0375-9601(90)90092-3)."""

    weights: ClassVar[tuple[float, ...]] = _palindrome(
        0.784513610477557263819497633866349876,
        0.235573213359358133684793182978534602,
        -1.17767998417887100694641568096431573,
    )
    order: ClassVar[int] = 6
    kick_first: ClassVar[bool] = True


class Yoshida8(AbstractComposition):
    """Eighth order, fifteen forces a step, of Yoshida's form with the weights of Suzuki & Umeno
    (1993; Hairer, Lubich & Wanner, Geometric Numerical Integration, V.3.11), whose error constant
    is far below that of Yoshida's own."""

    weights: ClassVar[tuple[float, ...]] = _palindrome(
        0.74167036435061295344822780,
        -0.40910082580003159399730010,
        0.19075471029623837995387626,
        -0.57386247111608226665638773,
        0.29906418130365592384446354,
        0.33462491824529818378495798,
        0.31529309239676659663205666,
    )
    order: ClassVar[int] = 8
    kick_first: ClassVar[bool] = True

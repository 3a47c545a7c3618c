"""Makes concentrations.csv: Robertson's reaction by SciPy's Radau, independent of diffsim.

    python make_reference.py [seed]

k1 = 0.04, k2 = 1e4, k3 = 3e7 from (1, 0, 0), at 24 times from 1e-2 to 1e5 evenly spaced in their
logarithm; relative tolerance 1e-12. Each concentration is multiplied by exp(0.02 N(0, 1)).
"""

import sys
from pathlib import Path

import numpy as np
from scipy.integrate import solve_ivp

K1, K2, K3 = 0.04, 1e4, 3e7
NOISE, SEED = 0.02, 1


def rates(t: float, y: np.ndarray) -> list[float]:
    one, two, three = K1 * y[0], K2 * y[1] * y[2], K3 * y[1] ** 2
    return [two - one, one - two - three, three]


def jacobian(t: float, y: np.ndarray) -> list[list[float]]:
    by2, by3 = K2 * y[2], K2 * y[1]
    on = 2 * K3 * y[1]
    return [[-K1, by2, by3], [K1, -by2 - on, -by3], [0.0, on, 0.0]]


def main() -> None:
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else SEED
    times = np.geomspace(1e-2, 1e5, 24)
    solved = solve_ivp(
        rates, (0, 1e5), [1, 0, 0], "Radau", times, jac=jacobian, rtol=1e-12, atol=1e-18
    )
    noise = np.exp(NOISE * np.random.default_rng(seed).normal(size=solved.y.shape))
    table = np.column_stack([times, (solved.y * noise).T])
    path = Path(__file__).with_name("concentrations.csv")
    np.savetxt(path, table, fmt="%.8g", delimiter=",", header="time,y1,y2,y3", comments="")


if __name__ == "__main__":
    main()

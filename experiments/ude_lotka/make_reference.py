"""Makes populations.csv: prey and predators by SciPy's DOP853, independent of diffsim.

    python make_reference.py [seed]

Lotka and Volterra's equations with alpha = 1.3, beta = 0.9, gamma = 1.8, delta = 0.8 from three
starts, every 0.2 until 4, about a period; relative tolerance 1e-10. Each number is multiplied by
exp(0.01 N(0, 1)).
"""

import sys
from pathlib import Path

import numpy as np
from scipy.integrate import solve_ivp

ALPHA, BETA, GAMMA, DELTA = 1.3, 0.9, 1.8, 0.8
STARTS = ((1.6, 1.2), (1.0, 1.0), (0.6, 0.8))
NOISE, SEED = 0.01, 1


def field(t: float, y: np.ndarray) -> list[float]:
    return [(ALPHA - BETA * y[1]) * y[0], (-GAMMA + DELTA * y[0]) * y[1]]


def main() -> None:
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else SEED
    rng = np.random.default_rng(seed)
    times = 0.2 * np.arange(1, 21)
    columns = [times]
    for start in STARTS:
        solved = solve_ivp(field, (0, 4), start, "DOP853", times, rtol=1e-10, atol=1e-12)
        columns.extend(solved.y * np.exp(NOISE * rng.normal(size=solved.y.shape)))
    names = [f"{kind}_{i}" for i in (1, 2, 3) for kind in ("prey", "predator")]
    header = ",".join(["time", *names])
    path = Path(__file__).with_name("populations.csv")
    np.savetxt(path, np.column_stack(columns), "%.6g", ",", header=header, comments="")


if __name__ == "__main__":
    main()

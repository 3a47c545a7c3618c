"""Makes observations.h5: noisy observations of a Lorenz trajectory, by SciPy alone.

    python make_reference.py [seed]

x' = 10 (y - x), y' = x (28 - z) - y, z' = x y - 8/3 z from TRUE_START, near the attractor, by
DOP853 (rtol 1e-12, atol 1e-12), seen every 0.1 up to t = 10 (9 Lyapunov times) with normal noise of
standard deviation 1 in each component.

`seen` (1, 1, 101, 3): conditions, saves, times, components, as the experiment's observable `points`
has them; `nodes` (99, 3): the same without the first and the last, where segments start at first;
`meet` (1, 1, 99, 3): zeros, what the gaps between segments should be; `times` (101,).
"""

import sys
from pathlib import Path

import h5py
import numpy as np
from scipy.integrate import solve_ivp

SIGMA, RHO, BETA = 10.0, 28.0, 8.0 / 3.0
TRUE_START = (-5.0, -7.0, 18.0)
COUNT, APART, NOISE = 100, 0.1, 1.0


def lorenz(t: float, y: np.ndarray) -> list[float]:
    del t
    return [SIGMA * (y[1] - y[0]), y[0] * (RHO - y[2]) - y[1], y[0] * y[1] - BETA * y[2]]


def main(seed: int = 2026, folder: Path | None = None) -> None:
    times = APART * np.arange(COUNT + 1)
    found = solve_ivp(
        lorenz, (0, times[-1]), TRUE_START, "DOP853", t_eval=times, rtol=1e-12, atol=1e-12
    )
    rng = np.random.default_rng(seed)
    seen = found.y.T + NOISE * rng.normal(size=found.y.T.shape)
    with h5py.File((folder or Path(__file__).parent) / "observations.h5", "w") as file:
        for name, values in {
            "times": times,
            "seen": seen[None, None],
            "nodes": seen[1:-1],
            "meet": np.zeros((1, 1, COUNT - 1, 3)),
        }.items():
            file.create_dataset(name, data=values)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2026)

"""Makes reference.h5: 20 short Lennard-Jones trajectories, in plain NumPy, independent of diffsim.

    python make_reference.py

64 atoms at rho* = 0.8, T* about 1, epsilon = sigma = 1, minimum image, velocity Verlet with
dt* = 0.005, forces of 4 [r^-12 - r^-6] S(r^2) with S = 1 - x^3 (10 - 15 x + 6 x^2),
x = (r^2 - 1.68^2)/(2.1^2 - 1.68^2) between 1.68 and the cutoff 2.1. Each replica starts from its
own equilibrated configuration.
"""

from pathlib import Path

import h5py
import numpy as np

ATOMS, REPLICAS, DT = 64, 20, 0.005
CUTOFF, ONSET = 2.1, 1.68
TIMES = (0.1, 0.2, 0.35, 0.5)
BOX = (ATOMS / 0.8) ** (1 / 3)


def forces(x: np.ndarray) -> np.ndarray:
    d = x[:, None] - x[None]
    d -= BOX * np.round(d / BOX)
    s = np.sum(d**2, axis=-1)
    np.fill_diagonal(s, CUTOFF**2)
    c, o = CUTOFF**2, ONSET**2
    y = np.clip((s - o) / (c - o), 0, 1)
    switch, slope = 1 - y**3 * (10 - 15 * y + 6 * y**2), -30 * (y * (1 - y)) ** 2 / (c - o)
    s6 = s**-3.0
    energy = 4 * (s6**2 - s6)
    dedv = -12 * (2 * s6**2 - s6) / s  # d(energy)/ds
    factor = np.where(s < c, -2 * (dedv * switch + energy * slope), 0)
    return np.sum(factor[..., None] * d, axis=1)


def verlet(x: np.ndarray, v: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
    f = forces(x)
    for _ in range(steps):
        v = v + DT / 2 * f
        x = x + DT * v
        f = forces(x)
        v = v + DT / 2 * f
    return x, v


def main() -> None:
    rng = np.random.default_rng(2026)
    grid = np.stack(np.meshgrid(*[np.arange(4)] * 3, indexing="ij"), -1).reshape(-1, 3)
    starts, speeds, seen = [], [], []
    for _ in range(REPLICAS):
        x, v = (grid + 0.5) * BOX / 4, rng.normal(size=(ATOMS, 3)) * 1.2
        for _ in range(30):  # heat bath: velocities drawn anew, the last 1,000 steps undisturbed
            v = rng.normal(size=(ATOMS, 3))
            v -= v.mean(axis=0)
            x, v = verlet(x, v, 50)
        x, v = verlet(x, v, 1000)
        x -= BOX * np.floor(x / BOX)
        starts.append(x)
        speeds.append(v)
        frames, now = [], 0
        for time in TIMES:
            steps = round(time / DT)
            x, v = verlet(x, v, steps - now)
            now = steps
            frames.append(x)
        seen.append(frames)
    with h5py.File(Path(__file__).with_name("reference.h5"), "w") as file:
        for name, values in {
            "positions": starts,
            "velocities": speeds,
            "box": np.full((REPLICAS, 3), BOX),
            "seen": seen,
            "times": TIMES,
        }.items():
            file.create_dataset(name, data=np.asarray(values))


if __name__ == "__main__":
    main()

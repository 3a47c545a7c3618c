"""Makes paths.csv: 20 Ornstein-Uhlenbeck paths by exact transitions, and exact.json.

    python make_reference.py [seed]

dx = theta (mu - x) dt + sigma dW with theta = 1, mu = 2, sigma = 0.5, all from x = 0, seen every
0.5 up to t = 20: x' = mu + (x - mu) a + s z, a = exp(-theta/2), s^2 = sigma^2 (1 - a^2)/(2 theta),
z normal.

paths.csv, a row a transition: `path`, `time` and `x` at its start, `next_x` at its end, and
`squared`, the squared deviation of `next_x` from the straight line in x through all transitions
(least squares), times N/(N - 2) for the two numbers of the line.

exact.json: `scatter` about the line and that of its square, `scatter_of_squares`, which weigh the
residuals in conf/experiment/sde_ou.yaml; and the exact maximum of the likelihood, [value, standard
error] from its second derivatives. x' is normal and linear in x, so that the line's slope, its
height where x' = x, and its scatter are the maximum in a, mu and s.
"""

import json
import sys
from pathlib import Path

import numpy as np

THETA, MU, SIGMA = 1.0, 2.0, 0.5
NAMES = ("theta", "mu", "sigma")
PATHS, STEPS, APART = 20, 40, 0.5


def paths(seed: int) -> np.ndarray:
    """(paths, times)."""
    rng = np.random.default_rng(seed)
    a = np.exp(-THETA * APART)
    s = SIGMA * np.sqrt((1 - a**2) / (2 * THETA))
    x = np.zeros((PATHS, STEPS + 1))
    for k in range(STEPS):
        x[:, k + 1] = MU + (x[:, k] - MU) * a + s * rng.normal(size=PATHS)
    return x


def log_likelihood(p: np.ndarray, x: np.ndarray, y: np.ndarray) -> float:
    theta, mu, sigma = p
    a = np.exp(-theta * APART)
    v = sigma**2 * (1 - a**2) / (2 * theta)
    return float(np.sum(-((y - mu - (x - mu) * a) ** 2) / (2 * v) - np.log(2 * np.pi * v) / 2))


def maximum(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(theta, mu, sigma) of the largest likelihood, and their standard errors."""
    slope, height = np.polyfit(x, y, 1)
    variance = np.mean((y - slope * x - height) ** 2)
    theta = -np.log(slope) / APART
    best = np.array([theta, height / (1 - slope), np.sqrt(2 * theta * variance / (1 - slope**2))])
    h, hessian = 1e-3 * best, np.empty((3, 3))
    for i in range(3):
        for j in range(3):
            di, dj = h * (np.arange(3) == i), h * (np.arange(3) == j)
            f = [log_likelihood(best + u * di + v * dj, x, y) for u in (1, -1) for v in (1, -1)]
            hessian[i, j] = (f[0] - f[1] - f[2] + f[3]) / (4 * h[i] * h[j])
    return best, np.sqrt(np.diag(np.linalg.inv(-hessian)))


def main(seed: int = 2026, folder: Path | None = None) -> None:
    folder = folder or Path(__file__).parent
    x = paths(seed)
    before, after = x[:, :-1].ravel(), x[:, 1:].ravel()
    slope, height = np.polyfit(before, after, 1)
    off = after - slope * before - height
    squared = off**2 * off.size / (off.size - 2)
    path, time = np.divmod(np.arange(off.size), STEPS)
    lines = ["path,time,x,next_x,squared"]
    lines += [
        f"{p},{t * APART:g},{a:.12g},{b:.12g},{c:.12g}"
        for p, t, a, b, c in zip(path, time, before, after, squared, strict=True)
    ]
    (folder / "paths.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    spread = np.sqrt(np.mean(squared))
    exact = {"scatter": spread, "scatter_of_squares": np.sqrt(2) * spread**2}
    found = {k: list(v) for k, *v in zip(NAMES, *maximum(before, after), strict=True)}
    text = json.dumps(exact | found, indent=2)
    (folder / "exact.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2026)

"""Makes reference.json: the posterior on a grid, in plain NumPy, independent of diffsim.

    python make_reference.py

The posterior of beta, gamma and sigma on a grid, with the priors of the experiment: beta ~ N(2, 1)
and gamma ~ N(0.4, 0.5), both positive, log sigma ~ N(3, 1); SIR by Runge-Kutta steps of 0.05 days
for the whole grid at once. The same for errors of counts that scatter by a factor, with log sigma ~
N(-1, 1), and for other numbers of boys who were ill the day before the first count.
"""

import json
from pathlib import Path

import numpy as np

BOYS, DT = 763, 0.05


def in_bed(beta: np.ndarray, gamma: np.ndarray, first: float, days: int) -> np.ndarray:
    """I at the end of each day, (days, ...)."""

    def rates(s, i):
        new = beta * s * i / BOYS
        return -new, new - gamma * i

    s, i = np.full(beta.shape, BOYS - first), np.full(beta.shape, first)
    seen = []
    for _ in range(days):
        for _ in range(round(1 / DT)):
            a = rates(s, i)
            b = rates(s + DT / 2 * a[0], i + DT / 2 * a[1])
            c = rates(s + DT / 2 * b[0], i + DT / 2 * b[1])
            d = rates(s + DT * c[0], i + DT * c[1])
            s, i = (
                x + DT / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
                for x, k1, k2, k3, k4 in zip((s, i), a, b, c, d, strict=True)
            )
        seen.append(i)
    return np.stack(seen)


def posterior(data: np.ndarray, noise: str = "normal", first: float = 1.0) -> dict[str, str]:
    beta, gamma = np.meshgrid(np.linspace(1.4, 2.4, 401), np.linspace(0.3, 1.0, 351), indexing="ij")
    model = in_bed(beta, gamma, first, len(data))
    if noise == "normal":
        squares = np.sum((model - data[:, None, None]) ** 2, axis=0)
        centre = 3.0
    else:
        squares = np.sum(np.log(model / data[:, None, None]) ** 2, axis=0)
        centre = -1.0
    log_sigma = np.linspace(centre - 2.5, centre + 2.5, 201)
    prior = -0.5 * (beta - 2) ** 2 - 0.5 * ((gamma - 0.4) / 0.5) ** 2
    log_p = prior[..., None] - 0.5 * squares[..., None] * np.exp(-2 * log_sigma)
    log_p = log_p - len(data) * log_sigma - 0.5 * (log_sigma - centre) ** 2
    p = np.exp(log_p - log_p.max())
    p /= p.sum()
    found = {"beta": beta, "gamma": gamma, "R0": beta / gamma}
    said = {}
    for name, x in (*found.items(), ("sigma", np.exp(log_sigma))):
        w = p.sum(axis=(0, 1)) if name == "sigma" else p.sum(axis=2)
        mean = np.sum(w * x)
        said[name] = f"{mean:.4f} ({np.sqrt(np.sum(w * (x - mean) ** 2)):.4f})"
    return said


def main() -> None:
    folder = Path(__file__).parent
    data = np.genfromtxt(folder / "in_bed.csv", delimiter=",", names=True)["in_bed"]
    found = {
        f"{noise}, {first:g} ill on day 0": posterior(data, noise, first)
        for noise in ("normal", "lognormal")
        for first in (1.0, 0.5, 2.0)
    }
    (folder / "reference.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

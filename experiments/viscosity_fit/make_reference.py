"""The data of viscosity_fit: velocities at 16² points, by a pseudo-spectral solver of its own.

    python experiments/viscosity_fit/make_reference.py

NumPy, 128² with the 2/3 rule, classical Runge-Kutta with dt = 0.0025; nothing of diffsim's solver.
Vorticity ω and stream function ψ of the periodic box of 2π:
∂ω/∂t + u·∇ω = ν ∇²ω - A k cos(k y) - α ω,  u = ∂ψ/∂y, v = -∂ψ/∂x, ∇²ψ = -ω.
"""

from pathlib import Path

import h5py
import numpy as np

from diffsim import cfd

N, DT = 128, 0.0025
VISCOSITY, AMPLITUDE, DRAG, FORCED = 0.05, 0.8, 0.1, 2
TIMES, POINTS, SIGMA, SEED = (1.0, 2.0, 3.0, 4.0), 16, 0.1, 1

K = np.fft.fftfreq(N, 1 / N)
KX, KY = np.meshgrid(K, K, indexing="ij")
SQUARE = KX**2 + KY**2
INVERSE = np.where(SQUARE > 0, 1 / np.where(SQUARE > 0, SQUARE, 1), 0)
KEPT = (np.abs(KX) < N / 3) & (np.abs(KY) < N / 3)
Y = 2 * np.pi * np.arange(N) / N
PUSH = np.fft.fft2(np.broadcast_to(-AMPLITUDE * FORCED * np.cos(FORCED * Y), (N, N)))


def real(hat: np.ndarray) -> np.ndarray:
    return np.fft.ifft2(hat).real


def velocity(hat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    psi = INVERSE * hat
    return real(1j * KY * psi), real(-1j * KX * psi)


def slope(hat: np.ndarray) -> np.ndarray:
    u, v = velocity(hat)
    turned = np.fft.fft2(u * real(1j * KX * hat) + v * real(1j * KY * hat))
    return -1.0 * KEPT * turned + PUSH - (VISCOSITY * SQUARE + DRAG) * hat


def at_points(hat: np.ndarray) -> np.ndarray:
    """Velocities at the centres of 16² squares, by the Fourier series: (points, 2)."""
    x = 2 * np.pi * (np.arange(POINTS) + 0.5) / POINTS
    waves = np.exp(1j * np.outer(x, K))
    psi = INVERSE * hat / N**2
    parts = [waves @ (factor * psi) @ waves.T for factor in (1j * KY, -1j * KX)]
    return np.stack([p.real for p in parts], axis=-1).reshape(-1, 2)


def main() -> None:
    grid = cfd.Grid((N, N))
    start = cfd.RandomPotential(grid, 2.0, 1.5, seed=3)
    u, v = (np.fft.fft2(start.velocity(a, grid.shape)) for a in range(2))
    hat = 1j * KX * v - 1j * KY * u
    seen, t = [], 0
    for end in TIMES:
        for _ in range(round(end / DT) - t):
            a = slope(hat)
            b = slope(hat + DT / 2 * a)
            c = slope(hat + DT / 2 * b)
            d = slope(hat + DT * c)
            hat = hat + DT / 6 * (a + 2 * b + 2 * c + d)
        t = round(end / DT)
        seen.append(at_points(hat))
    exact = np.stack(seen)[None]  # (conditions, saves, points, 2)
    noise = SIGMA * np.random.default_rng(SEED).standard_normal(exact.shape)
    place = Path(__file__).with_name("snapshots.h5")
    with h5py.File(place, "w") as file:
        data = (exact + noise).astype("float32")
        file.create_dataset("velocity", data=data, compression="gzip", shuffle=True)
        file.attrs["truth"] = [VISCOSITY, AMPLITUDE, DRAG]


if __name__ == "__main__":
    main()

"""The data of assimilate: velocities at 6² instruments, by a pseudo-spectral solver of its own.

    python experiments/assimilate/make_reference.py

NumPy, 128² with the 2/3 rule, classical Runge-Kutta with dt = 0.005; nothing of diffsim's solver.
Vorticity ω and stream function ψ of the periodic box of 2π: ∂ω/∂t + u·∇ω = ν ∇²ω,
u = ∂ψ/∂y, v = -∂ψ/∂x, ∇²ψ = -ω; ψ from random waves |k| <= 5 of the spectrum that is assumed.
"""

from pathlib import Path

import h5py
import numpy as np

N, DT, VISCOSITY = 128, 0.005, 0.01
PEAK, SPEED, SEED = 2.0, 1.0, 4
SEEN, LATER = tuple(0.2 * n for n in range(1, 11)), (3.0,)
INSTRUMENTS, FIELD, SIGMA = 6, 16, 0.1

K = np.fft.fftfreq(N, 1 / N)
KX, KY = np.meshgrid(K, K, indexing="ij")
SQUARE = KX**2 + KY**2
INVERSE = np.where(SQUARE > 0, 1 / np.where(SQUARE > 0, SQUARE, 1), 0)
KEPT = (np.abs(KX) < N / 3) & (np.abs(KY) < N / 3)


def real(hat: np.ndarray) -> np.ndarray:
    return np.fft.ifft2(hat).real


def slope(hat: np.ndarray) -> np.ndarray:
    psi = INVERSE * hat
    u, v = real(1j * KY * psi), real(-1j * KX * psi)
    turned = np.fft.fft2(u * real(1j * KX * hat) + v * real(1j * KY * hat))
    return -1.0 * KEPT * turned - VISCOSITY * SQUARE * hat


def at_points(hat: np.ndarray, count: int) -> np.ndarray:
    """Velocities at the centres of count² squares, by the Fourier series: (points, 2)."""
    x = 2 * np.pi * (np.arange(count) + 0.5) / count
    waves = np.exp(1j * np.outer(x, K))
    psi = INVERSE * hat / N**2
    parts = [waves @ (factor * psi) @ waves.T for factor in (1j * KY, -1j * KX)]
    return np.stack([p.real for p in parts], axis=-1).reshape(-1, 2)


def main() -> None:
    rng = np.random.default_rng(SEED)
    size = np.sqrt(SQUARE)
    weight = np.where(size > 0, np.exp(-((size / PEAK) ** 2)) / np.sqrt(np.maximum(size, 1)), 0)
    noise = np.fft.fft2(rng.standard_normal((N, N)))
    psi = np.where(size <= 5, weight * noise, 0)
    speed = np.sqrt(np.mean(real(1j * KX * psi) ** 2 + real(1j * KY * psi) ** 2))
    hat = SQUARE * psi * SPEED / speed
    fields, seen, t = [at_points(hat, FIELD)], [], 0.0
    for end in (*SEEN, *LATER):
        for _ in range(round((end - t) / DT)):
            a = slope(hat)
            b = slope(hat + DT / 2 * a)
            c = slope(hat + DT / 2 * b)
            d = slope(hat + DT * c)
            hat = hat + DT / 6 * (a + 2 * b + 2 * c + d)
        t = end
        fields.append(at_points(hat, FIELD))
        if end in SEEN:
            seen.append(at_points(hat, INSTRUMENTS))
    exact = np.stack(seen)[None]  # (conditions, saves, points, 2)
    place = Path(__file__).with_name("observations.h5")
    with h5py.File(place, "w") as file:
        noisy = exact + SIGMA * rng.standard_normal(exact.shape)
        file.create_dataset("seen", data=noisy.astype("float32"))
        file.create_dataset("truth", data=np.stack(fields).astype("float32"), compression="gzip")
        file.create_dataset("times", data=np.array([0.0, *SEEN, *LATER]))


if __name__ == "__main__":
    main()

"""Run directories as runs leave them, with numbers that look real."""

import math

import numpy as np

from diffsim._store import RunDirectory, TrajectoryWriter

# Argon: temperature [K], density [kg/m3], pressure [MPa], residual internal energy [J/mol].
ARGON = np.array(
    [
        (110, 1260, 3.869, -5099.0),
        (110, 1300, 12.922, -5249.9),
        (110, 1340, 24.498, -5396.8),
        (120, 1180, 3.374, -4732.8),
        (120, 1230, 11.478, -4921.7),
        (120, 1290, 25.394, -5144.1),
        (130, 1100, 4.556, -4377.1),
        (130, 1200, 18.060, -4750.0),
        (130, 1280, 36.966, -5041.8),
        (150, 950, 9.230, -3732.7),
        (150, 1100, 22.455, -4275.6),
        (150, 1250, 54.622, -4812.8),
        (180, 300, 7.352, -1296.0),
        (180, 700, 13.784, -2732.1),
        (180, 1000, 32.661, -3783.0),
        (180, 1200, 74.030, -4478.1),
        (220, 200, 7.727, -811.2),
        (220, 500, 17.258, -1908.0),
        (220, 800, 33.394, -2945.5),
        (220, 1100, 82.222, -3965.5),
        (300, 200, 11.884, -727.5),
        (300, 500, 31.340, -1752.7),
        (300, 800, 65.116, -2739.1),
        (300, 1100, 145.230, -3647.9),
        (400, 300, 26.228, -986.0),
        (400, 600, 62.904, -1921.8),
        (400, 900, 132.031, -2792.1),
    ]
)
HELD_OUT = (3, 8, 13, 18, 23)
CONFIG = """experiment: lj_fit
seed: 0
adjoint:
  _target_: diffsim.Reweight
fit:
  steps: 12
  tolerance: 0.0001
simulation:
  atoms: 250
  cutoff: 11.5
  note: <script>alert("configuration")</script>
"""
PROVENANCE = {
    "command": "python -m diffsim.run experiment=lj_fit",
    "seed": 0,
    "versions": {"diffsim": "0.1.0", "jax": "0.10.1", "jax-md": "0.2.29", "numpy": "2.4.6"},
    "python": "3.11.9",
    "platform": "Linux 6.1 x86_64",
    "processor": "a processor",
    "cores": 2,
    "device": "cpu",
    "devices": 1,
    "float64": True,
    "git_commit": "0123456789abcdef0123456789abcdef01234567",
    "git_dirty": True,
    "started": "2026-11-22T10:00:00+00:00",
    "finished": "2026-11-22T10:01:47+00:00",
    "data": {"argon_eos.csv": "9b" * 32},
}
TIMING = {"compile_s": 21.4, "iteration_s": 6.93, "total_s": 107.2}


def states():
    """Predictions with the scatter of a real fit; ten times the noise where it is dense."""
    rng = np.random.default_rng(1)
    found = []
    for i, (temperature, density, p, u) in enumerate(ARGON):
        p_stderr, u_stderr = 0.1 + 0.6 * density / 1300, 1.5 + 3 * density / 1300
        found.append(
            {
                "label": f"{temperature:g} K, {density:g} kg/m3",
                "used": i not in HELD_OUT,
                "temperature": temperature,
                "density": density,
                "p": p + rng.normal() * p_stderr + 1.6 * math.sin(temperature / 30),
                "p_stderr": p_stderr,
                "p_target": p,
                "u": u + rng.normal() * u_stderr + 18 * math.cos(density / 200),
                "u_stderr": u_stderr,
                "u_target": u,
                "correlation_time": 0.1 + rng.uniform() * 0.4,
                "effective_samples": float(rng.integers(150, 900)),
            }
        )
    return found


def fit_metrics(run, iterations=11):
    """Gauss-Newton from far away: a large first step, samples renewed while they are poor."""
    for i in range(iterations):
        far = 0.35**i
        run.log(
            {
                "iteration": i,
                "loss": 5200 * far**2 + 0.61 + 0.01 * math.sin(i),
                "parameters": {"epsilon": 117.21 - 17.2 * far, "sigma": 3.3966 - 0.197 * far},
                "gradient_norm": 1e4 * far,
                "ess": min(1.0, 0.004 + 1 - far**0.4 if i != 3 else 0.44),
                "resampled": i in (0, 1, 2, 4),
                "seconds": 22.0 + 6.9 * i,
            }
        )


def fit_run(path):
    """A finished `lj_fit`."""
    run = RunDirectory.create(path, CONFIG)
    fit_metrics(run)
    r = np.linspace(0.05, 11.5, 160)
    curves = [
        {"label": "110 K, 1340 kg/m3", "g": radial(r, 3.4, 1.9)},
        {"label": "150 K, 1100 kg/m3", "g": radial(r, 3.4, 1.3)},
        {"label": "300 K, 500 kg/m3", "g": radial(r, 3.4, 0.5)},
    ]
    run.result(
        {
            "experiment": "lj_fit",
            "question": "Which Lennard-Jones atom is argon?",
            "status": "done",
            "parameters": {
                "epsilon": {
                    "value": 117.2134,
                    "stderr": 0.1532,
                    "unit": "K",
                    "statistical": 0.048,
                    "model": 0.131,
                    "systematic": 0.062,
                },
                "sigma": {
                    "value": 3.39662,
                    "stderr": 0.00118,
                    "unit": "angstrom",
                    "statistical": 0.00031,
                    "model": 0.00105,
                    "systematic": 0.00042,
                },
            },
            "loss": 0.6123,
            "validation": {
                "rows": list(HELD_OUT),
                "loss": 0.71,
                "rms": {"p": 1.43, "u": 13.2},
                "chi2_per_point": 0.68,
            },
            "laws": [
                {"name": "momentum", "worst": 3.1e-14, "tolerance": 1e-9, "ok": True, "step": 2000},
                {"name": "temperature", "worst": 0.031, "tolerance": 0.1, "ok": True, "step": 700},
            ],
            "adjoint": {
                "name": "Reweight",
                "why": "averages at equilibrium: chaos does not reach a reweighted gradient",
                "temp_bytes": 48_300_000,
            },
            "timing": TIMING,
            "peak_bytes": 812_000_000,
            "provenance": PROVENANCE,
            "measured": {
                "targets": [
                    {"name": "p", "observable": "pressure", "unit": "MPa", "sigma": 2.0},
                    {"name": "u", "observable": "internal_energy", "unit": "J/mol", "sigma": 30.0},
                ],
                "states": states(),
                "rdf": {"r": r, "r_unit": "angstrom", "curves": curves},
                "atoms": 250,
            },
        }
    )
    run.status("done", 0)
    return run


def radial(r, sigma, order):
    """Something like the g(r) of a liquid."""
    x = np.maximum(r / sigma, 1e-3)
    wave = 1 + order * np.exp(-(x - 1.1) * 1.4) * np.cos(2 * np.pi * (x - 1.08) / 0.98)
    return np.where(x < 1.08, (1 + order) * np.exp(-(((1.08 - x) / 0.06) ** 2)), wave)


def simulation_run(path, frames=600):
    """A finished `lj_nve` with its trajectory."""
    run = RunDirectory.create(path, "experiment: lj_nve\nseed: 3\n")
    steps = np.arange(frames) * 100
    rng = np.random.default_rng(2)
    kinetic = 375 + 9 * smooth(rng, frames)
    total = -1210.0 + 4e-3 * smooth(rng, frames)
    observables = {
        "temperature": kinetic / 375 * 0.85,
        "pressure": 0.6 + 0.12 * smooth(rng, frames),
        "kinetic_energy": kinetic,
        "potential_energy": total - kinetic,
        "total_energy": total,
    }
    with TrajectoryWriter(run.trajectory, units={"time": "1"}) as out:
        out.extend(steps, steps * 0.002, observables=observables)
    for i in range(5):
        run.log({"step": i * 10_000, "steps": 60_000, "seconds": 2.0 * i, "temperature": 0.85})
    r = np.linspace(0.02, 3.4, 160)
    dt = [0.0005, 0.001, 0.002, 0.004]
    run.result(
        {
            "experiment": "lj_nve",
            "question": None,
            "status": "done",
            "parameters": {},
            "loss": None,
            "validation": None,
            "laws": [
                {
                    "name": "total_energy",
                    "worst": 2.6e-5,
                    "tolerance": 1e-4,
                    "ok": True,
                    "step": 41200,
                },
                {
                    "name": "momentum",
                    "worst": 2.2e-9,
                    "tolerance": 1e-9,
                    "ok": False,
                    "step": 55000,
                },
            ],
            "adjoint": {"name": "Direct", "why": "no gradient was asked for", "temp_bytes": None},
            "timing": TIMING,
            "peak_bytes": None,
            "provenance": PROVENANCE,
            "measured": {
                "observables": {
                    name: {
                        "mean": float(np.mean(observables[name])),
                        "stderr": float(np.std(observables[name])) / 8,
                        "unit": "",
                        "correlation_time": 0.31,
                        "effective_samples": 387.0,
                    }
                    for name in ("temperature", "pressure", "potential_energy")
                },
                "rdf": {"r": r, "r_unit": "", "curves": [{"label": "", "g": radial(r, 1.0, 1.7)}]},
                "total_energy_drift": [
                    {"name": n, "times": [1.0, 10.0, 100.0], "envelope": [1e-9, 1e-9, e]}
                    for n, e in (("Verlet", 1e-9), ("Euler", 1e-3))
                ],
                "convergence": {
                    "dt": dt,
                    "dt_unit": "",
                    "std_total_energy": [3.1e-7, 1.25e-6, 5.02e-6, 2.07e-5],
                    "ratio": [4.03, 4.02, 4.12],
                },
            },
        }
    )
    run.status("done", 0)
    return run


def smooth(rng, count):
    noise = rng.normal(size=count + 20)
    return np.convolve(noise, np.ones(5) / math.sqrt(5), "valid")[:count]


def adjoints_run(path):
    """A finished fit through time, with its adjoints side by side."""
    run = fit_run(path)
    result = run.read_result() or {}
    result["experiment"], result["question"] = (
        "lj_trajectory_fit",
        "Is the gradient the same by any road?",
    )
    result["adjoint"] = {
        "name": "Reversible",
        "why": "asked for; memory does not grow with the number of steps",
        "temp_bytes": 310_000,
    }
    del result["measured"]["states"], result["measured"]["targets"], result["measured"]["rdf"]
    result["validation"] = None
    rows = [
        ("Direct", 0.42, 61_000_000),
        ("RecursiveCheckpoint", 0.61, 3_100_000),
        ("Reversible", 0.53, 310_000),
    ]
    result["measured"]["adjoints"] = [
        {
            "name": name,
            "why": "",
            "loss": 1e-9,
            "parameters": {"epsilon": 0.99999998 + 1e-9 * i, "sigma": 1.00000001},
            "gradient": {"epsilon": 0.0123456789 * (1 + 2e-10 * i), "sigma": -4.2},
            "iteration_s": seconds,
            "compile_s": 3.0 + i,
            "temp_bytes": size,
        }
        for i, (name, seconds, size) in enumerate(rows)
    ]
    run.result(result)
    return run


def failed_run(path):
    """A fit that blew up after five iterations: no result."""
    run = RunDirectory.create(path, CONFIG)
    fit_metrics(run, 5)
    run.status(
        "failed",
        3,
        message="the energy is not finite",
        step=1234,
        advice="Reduce the time step or start from a relaxed configuration.",
    )
    return run

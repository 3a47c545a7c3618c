"""diffsim.ode against Diffrax, SciPy and torchdiffeq: the same solves at the same tolerances.

`solve` beside a bare diffeqsolve is one Lotka-Volterra trajectory to t = 100. Ensembles are Lorenz
systems to t = 1 with ρ from 20 to 30, saved at two times, in float64, adaptive (Tsit5, 1e-6) and in
steps of 0.01; gradients are of the sum of all saves, in all starts and parameters. Diffrax runs
vmapped and jitted, without max_steps forward, with the tightest that suffices in reverse. SciPy
solves a few of the lanes, and its time is theirs times the number of lanes. Errors are the largest
over all lanes, against Dopri8 at 1e-12.
"""

import importlib.util
import time
from collections.abc import Callable, Iterator
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

import diffsim as ds
from diffsim.ode import ensemble

from ._measure import Row, less_is_better, seconds

TOL, DT, SAVES = 1e-6, 0.01, (0.5, 1.0)
BY_STEPS = {"adaptive": None, "fixed": DT}


def lorenz(t: Any, y: Any, args: Any) -> Any:
    s, r, b = args
    return jnp.stack([s * (y[1] - y[0]), y[0] * (r - y[2]) - y[1], y[0] * y[1] - b * y[2]])


def lanes(size: int) -> tuple[Any, Any]:
    y0 = 1 + 0.3 * jax.random.normal(jax.random.key(0), (size, 3))
    shared = jnp.broadcast_to(jnp.array([10.0, 8 / 3]), (size, 2))
    return y0, (shared[:, 0], jnp.linspace(20.0, 30.0, size), shared[:, 1])


def ours(y0: Any, args: Any, dt: float | None, room: int) -> Any:
    return ensemble(
        lorenz, y0, args, args_axes=0, ts=SAVES, dt=dt, rtol=TOL, atol=TOL, max_steps=room
    ).ys


def theirs(
    y0: Any, args: Any, dt: float | None, room: int | None, solver: Any = None, tol: float = TOL
) -> Any:
    def one(y0: Any, args: Any) -> Any:
        return diffrax.diffeqsolve(
            diffrax.ODETerm(lorenz),
            solver or diffrax.Tsit5(),
            0.0,
            SAVES[-1],
            dt,
            y0,
            args,
            saveat=diffrax.SaveAt(ts=jnp.asarray(SAVES)),
            stepsize_controller=diffrax.ConstantStepSize()
            if dt
            else diffrax.PIDController(rtol=tol, atol=tol),
            max_steps=room,
            throw=False,
        )

    return jax.vmap(one)(y0, args)


def ensembles(size: int, repeats: int) -> Iterator[Row]:
    y0, args = lanes(size)
    exact = jax.jit(lambda y, a: theirs(y, a, None, None, diffrax.Dopri8(), 1e-12).ys)(y0, args)
    for kind, dt in BY_STEPS.items():
        taken = jax.jit(lambda y, a, dt=dt: theirs(y, a, dt, None))(y0, args).stats["num_steps"]
        room = int(jnp.max(taken)) + 1
        forward = {
            "diffsim": jax.jit(lambda y, a, dt=dt, n=2 * room: ours(y, a, dt, n)),
            "diffrax": jax.jit(lambda y, a, dt=dt: theirs(y, a, dt, None).ys),
        }
        reverse = {
            "diffsim": _gradient(lambda y, a, dt=dt, n=2 * room: ours(y, a, dt, n)),
            "diffrax": _gradient(lambda y, a, dt=dt, n=room: theirs(y, a, dt, n).ys),
        }
        for metric, programs in (("forward", forward), ("gradient", reverse)):
            tasks = {name: lambda p=p: p(y0, args) for name, p in programs.items()}
            times = seconds(tasks, repeats)
            yield _row(kind, size, f"{metric}_time", times["diffsim"], "s", times["diffrax"])
        errors = {k: float(jnp.max(jnp.abs(p(y0, args) - exact))) for k, p in forward.items()}
        yield _row(kind, size, "max_error", errors["diffsim"], "1", errors["diffrax"])
        if dt is None:
            mine = seconds({"diffsim": lambda p=forward["diffsim"]: p(y0, args)}, repeats)
            for peer, value in _others(np.asarray(y0), [np.asarray(x) for x in args]):
                name = f"lorenz {kind}"
                yield less_is_better(
                    name, str(size), "forward_time", mine["diffsim"], "s", peer, value
                )


def _row(kind: str, size: int, metric: str, value: float, unit: str, peer: float) -> Row:
    return less_is_better(f"lorenz {kind}", str(size), metric, value, unit, "diffrax", peer)


def _gradient(program: Callable[..., Any]) -> Callable[..., Any]:
    return jax.jit(jax.grad(lambda *x: jnp.sum(program(*x)), argnums=(0, 1)))


def _others(y0: np.ndarray, args: list[np.ndarray]) -> Iterator[tuple[str, float]]:
    yield "scipy (extrapolated)", _scipy(y0, args)
    if importlib.util.find_spec("torchdiffeq"):
        yield "torchdiffeq", _torch(y0, args)


def _scipy(y0: np.ndarray, args: list[np.ndarray], sample: int = 20) -> float:
    from scipy.integrate import solve_ivp

    def field(t: float, y: np.ndarray, s: float, r: float, b: float) -> list[float]:
        return [s * (y[1] - y[0]), y[0] * (r - y[2]) - y[1], y[0] * y[1] - b * y[2]]

    chosen = np.linspace(0, len(y0) - 1, sample).astype(int)
    start = time.perf_counter()
    for i in chosen:
        own = tuple(float(x[i]) for x in args)
        solve_ivp(field, (0, 1), y0[i], args=own, t_eval=SAVES, rtol=TOL, atol=TOL)
    return (time.perf_counter() - start) * len(y0) / sample


def _torch(y0: np.ndarray, args: list[np.ndarray]) -> float:
    import torch  # pyright: ignore[reportMissingImports]
    from torchdiffeq import odeint  # pyright: ignore[reportMissingImports]

    start, times = torch.as_tensor(y0), torch.tensor([0.0, *SAVES], dtype=torch.float64)
    s, r, b = (torch.as_tensor(x) for x in args)

    def field(t: Any, y: Any) -> Any:
        u, v, w = y.unbind(1)
        return torch.stack([s * (v - u), u * (r - w) - v, u * v - b * w], dim=1)

    def solve() -> float:
        return float(odeint(field, start, times, rtol=TOL, atol=TOL, method="dopri5").sum())

    return seconds({"torchdiffeq": solve}, 3)["torchdiffeq"]


def lotka_volterra(t: Any, y: Any, args: Any) -> Any:
    a, b, c, d = (args[k] for k in "abcd")
    return jnp.stack([a * y[0] - b * y[0] * y[1], -c * y[1] + d * y[0] * y[1]])


def overhead(repeats: int) -> Iterator[Row]:
    """`solve` beside diffeqsolve, of one trajectory."""
    t1, y0 = 100.0, jnp.ones(2)
    args = {"a": 1.5, "b": 1.0, "c": 3.0, "d": 1.0}
    args = {k: jnp.asarray(v) for k, v in args.items()}
    times, keep = jnp.linspace(10.0, t1, 10), ds.RecursiveCheckpoint()
    for kind, dt in BY_STEPS.items():
        room = 10_001 if dt else 4096
        sim = ds.ode.DifferentialEquation(lotka_volterra, dt=dt, rtol=TOL, atol=TOL, max_steps=room)
        state = sim.init(args, y0=y0)
        schedule = ds.Schedule(t0=0.0, ts=[float(t) for t in times])

        def mine(args: Any, sim=sim, state=state, schedule=schedule, keep=keep) -> Any:
            run = ds.solve(sim, args, state, schedule=schedule, adjoint=keep, observables=["y"])
            return run.observables["y"]

        def bare(args: Any, dt=dt, room=room) -> Any:
            return diffrax.diffeqsolve(
                diffrax.ODETerm(lotka_volterra),
                diffrax.Tsit5(),
                0.0,
                t1,
                dt,
                y0,
                args,
                saveat=diffrax.SaveAt(ts=times),
                stepsize_controller=diffrax.ConstantStepSize()
                if dt
                else diffrax.PIDController(rtol=TOL, atol=TOL),
                max_steps=room,
                throw=False,
            ).ys

        both = {"diffsim": mine, "diffrax": bare}
        programs = {
            "forward_time": {name: jax.jit(f) for name, f in both.items()},
            "gradient_time": {
                name: jax.jit(jax.grad(lambda a, f=f: jnp.sum(f(a)))) for name, f in both.items()
            },
        }
        for metric, each in programs.items():
            taken = seconds({name: lambda p=p: p(args) for name, p in each.items()}, repeats)
            yield less_is_better(
                f"solve {kind}", "1", metric, taken["diffsim"], "s", "diffrax", taken["diffrax"]
            )


def stochastic(paths: int, repeats: int) -> Iterator[Row]:
    """Ornstein-Uhlenbeck paths of 1,000 Euler steps: the scan beside diffeqsolve on an unsafe
    Brownian path (its fastest) and on the virtual tree that its adjoints ask for."""
    steps, y0, key = 1000, jnp.ones(1), jax.random.key(0)
    args = {"theta": jnp.asarray(1.0), "mu": jnp.asarray(0.5), "sigma": jnp.asarray(0.7)}
    process = ds.ode.OrnsteinUhlenbeck()
    sim = ds.ode.StochasticDifferentialEquation(process, dt=1 / steps, solver=diffrax.Euler())

    def mine(args: Any, key: Any) -> Any:
        state = sim.init(args, key, y0=y0)
        return ds.solve(sim, args, state, schedule=ds.Schedule(steps=steps), observables=[]).state.y

    def bare(args: Any, key: Any, unsafe: bool = False) -> Any:
        if unsafe:
            path = diffrax.UnsafeBrownianPath((1,), key)
        else:
            path = diffrax.VirtualBrownianTree(0.0, 1.0, tol=0.5 / steps, shape=(1,), key=key)
        noise = lambda t, y, args: process.diffusion(t, y, args)[:, None]  # noqa: E731
        terms = diffrax.MultiTerm(diffrax.ODETerm(process), diffrax.ControlTerm(noise, path))
        return diffrax.diffeqsolve(
            terms,
            diffrax.Euler(),
            0.0,
            1.0,
            1 / steps,
            y0,
            args,
            max_steps=steps + 1,
            adjoint=diffrax.ForwardMode() if unsafe else diffrax.RecursiveCheckpointAdjoint(),
            throw=False,
        ).ys[-1]

    keys = jax.random.split(key, paths)
    every = lambda f: jax.jit(lambda a: jax.vmap(lambda k: f(a, k))(keys))  # noqa: E731
    slope = lambda f: jax.jit(  # noqa: E731
        jax.grad(lambda a: jnp.sum(jax.vmap(lambda k: f(a, k))(keys)))
    )
    pairs = {
        ("forward_time", "diffrax, unsafe path"): (
            every(mine),
            every(lambda a, k: bare(a, k, True)),
        ),
        ("forward_time", "diffrax, virtual tree"): (every(mine), every(bare)),
        ("gradient_time", "diffrax, virtual tree"): (slope(mine), slope(bare)),
    }
    for (metric, peer), (ours_run, theirs_run) in pairs.items():
        taken = seconds(
            {"diffsim": lambda p=ours_run: p(args), "diffrax": lambda p=theirs_run: p(args)},
            repeats,
        )
        mine_s, peer_s = taken["diffsim"], taken["diffrax"]
        yield less_is_better("ou paths", str(paths), metric, mine_s, "s", peer, peer_s)


def rows(quick: bool) -> Iterator[Row]:
    yield from overhead(5 if quick else 15)
    for paths in (1,) if quick else (1, 1000):
        yield from stochastic(paths, 5 if quick else 9)
    for size in (1000,) if quick else (10_000, 100_000):
        yield from ensembles(size, 3 if quick else 5)

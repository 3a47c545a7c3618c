"""Boxes, starts and runs that the tests of the flow solver share."""

import jax
import numpy as np

import diffsim as ds
from diffsim import cfd

KEY = jax.random.key(0)
STILL = (cfd.Wall(), cfd.Wall())
CHANNEL = ("periodic", STILL)
BOXES = {
    "periodic": "periodic",
    "channel": CHANNEL,
    "cavity": (STILL, (cfd.Wall(), cfd.Wall(velocity=("lid", 0.0)))),
    "slip": ((cfd.Slip(), cfd.Slip()), "periodic"),
    "through": ((cfd.Inflow((1.0, 0.0)), cfd.Outflow()), STILL),
    "backwards": ((cfd.Outflow(), cfd.Inflow((-1.0, 0.0))), (cfd.Slip(), cfd.Slip())),
}


def run(flow, params, steps, save_every=None, state=None, **start):
    state = flow.init(params, KEY, **start) if state is None else state
    schedule = ds.Schedule(steps=steps, save_every=save_every)
    return jax.jit(lambda p, s: ds.solve(flow, p, s, schedule=schedule))(params, state).check()


def taylor_green(box: cfd.Box, k: int = 1):
    x, y = box.coordinates(0)
    u = np.cos(k * x) * np.sin(k * y)
    x, y = box.coordinates(1)
    return u, -np.sin(k * x) * np.cos(k * y)


def random_start(flow, params, seed=0, size=1.0):
    rng = np.random.default_rng(seed)
    fields = tuple(size * rng.standard_normal(shape) for shape in flow.velocity_shapes())
    return flow.init(params, KEY, velocity=flow.project(fields, params)[0])

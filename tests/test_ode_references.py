"""Known solutions in one table: the system, the solver with its tolerance, and what must come out.

Values and derivatives of Hairer, Nørsett and Wanner, Solving Ordinary Differential Equations I and
II, of closed forms, or computed with more than 30 digits. The error allowed is some three times the
one measured. Where the solution amplifies errors (Lorenz by 10⁴, Arenstorf by 10⁶, Van der Pol at
its jumps), double precision ends the digits before the reference does.
"""

from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import lambertw

import diffsim as ds
from diffsim import ode
from problems import slow_but

TSIT5, DOPRI8, KVAERNO5 = diffrax.Tsit5(), diffrax.Dopri8(), diffrax.Kvaerno5()


class Value(NamedTuple):
    """What y[components] is at `time`, and by how much it may be off."""

    time: float
    components: Any
    numbers: Any
    error: float


class Slope(NamedTuple):
    """What d y[component]/d parameter is at `time`, and by which fraction it may be off."""

    time: float
    component: int
    parameter: str
    number: float
    error: float


class Case(NamedTuple):
    field: Any
    solver: Any
    rtol: float
    atol: float
    expected: list
    y0: Any = None
    relative: bool = False  # whether errors of values are fractions too


def lotka_volterra(error, fraction):
    slopes = {
        "alpha": (2.160557523562618, -6.256770517220816),
        "beta": (0.188568777078059, -0.697977588989358),
        "gamma": (0.563182794168198, -1.709017680597935),
        "delta": (0.939651287153080, -2.743979155920181),
    }
    value = Value(10.0, (0, 1), (1.026344767575089, 0.909691078136042), error)
    each = [Slope(10.0, i, name, d[i], fraction) for name, d in slopes.items() for i in (0, 1)]
    return [value, *each]


def lorenz(error, fraction):
    end = (-4.902687541134646, -3.743872921802920, 24.690858102790555)
    slopes = (-0.9926600149841393, -2.575974589315444, -0.5442177103682735)
    each = [Slope(5.0, i, "rho", slopes[i], fraction) for i in (0, 1, 2)]
    return [Value(10.0, (0, 1, 2), end, error), *each]


def kepler(half_way, back, e=0.6):
    """At the far end of the orbit, and at its start again."""
    far = (-(1 + e), 0.0, 0.0, -np.sqrt((1 - e) / (1 + e)))
    start = (1 - e, 0.0, 0.0, np.sqrt((1 + e) / (1 - e)))
    every = (0, 1, 2, 3)
    return [Value(np.pi, every, far, half_way), Value(2 * np.pi, every, start, back)]


def robertson_with_integral(t, y, args):
    """Robertson's reaction, with ∫ y3 dt as a fourth component."""
    return jnp.concatenate([ode.Robertson()(t, y[:3], args), y[2:3]])


ROBERTSON = Value(40.0, (0, 1, 2), (0.71582706871941, 9.18553476456e-6, 0.28416374574583), 1e-10)
INTEGRAL = [
    Value(50.0, (3,), (10.948648481,), 1e-10),
    Slope(50.0, 3, "k1", 173.4140891, 1e-9),
    Slope(50.0, 3, "k2", -5.059191406e-4, 1e-9),
    Slope(50.0, 3, "k3", 8.432346465e-8, 1e-9),
]
ROBERTSON_LATE = (2.083340149701255e-8, 8.333360770334713e-14, 0.9999999791665050)
VAN_DER_POL = (1.706167732170483, -0.8928097010247975)

# Simó's figure of eight, to eight digits (Chenciner and Montgomery, Ann. Math. 152, 881 (2000),
# doi:10.2307/2661357).
EIGHT = np.array(
    "0.97000436 -0.24308753 -0.97000436 0.24308753 0 0 "
    "0.466203685 0.43236573 0.466203685 0.43236573 -0.93240737 -0.86473146".split(),
    dtype=float,
)
# Five bodies on a circle turn as they stand: half a turn later each is across.
RING = ode.NBody(5, 3, softening=0.1)
HALF_TURN = np.pi / float(RING.start()[16])


def escaped(population=1000.0, ratio=3.0):
    """How many an epidemic from one case on never reaches: the smaller root of
    ln(S/(N-1)) = R (S/N - 1)."""
    inner = -ratio * (1 - 1 / population) * np.exp(-ratio)
    return -population / ratio * lambertw(inner).real


ARENSTORF, PLEIADES = ode.Arenstorf(), ode.Pleiades()
RETURN = Value(ARENSTORF.PERIOD, (0, 1, 2, 3), ARENSTORF.start(), 1e-9)
ENCOUNTERS = Value(3.0, (0, 7), (0.3706139143970502, -3.943437585517392), 1e-11)
FINAL_SIZE = Value(200.0, (0,), (escaped(),), 1e-9)

TABLE = {
    "lotka-volterra tsit5": Case(
        ode.LotkaVolterra(), TSIT5, 1e-12, 1e-12, lotka_volterra(1e-12, 5e-11)
    ),
    "lotka-volterra dopri8": Case(
        ode.LotkaVolterra(), DOPRI8, 1e-13, 1e-13, lotka_volterra(1e-12, 1e-11)
    ),
    "lotka-volterra kvaerno5": Case(
        ode.LotkaVolterra(), KVAERNO5, 1e-10, 1e-10, lotka_volterra(5e-8, 1e-7)
    ),
    "lorenz": Case(ode.Lorenz63(), DOPRI8, 1e-13, 1e-13, lorenz(1e-11, 1e-11)),
    "kepler tsit5": Case(ode.Kepler(), TSIT5, 1e-12, 1e-12, kepler(2e-11, 6e-10)),
    "kepler dopri8": Case(ode.Kepler(), DOPRI8, 1e-13, 1e-13, kepler(2e-11, 2e-11)),
    "arenstorf": Case(ARENSTORF, DOPRI8, 1e-13, 1e-13, [RETURN]),
    "pleiades": Case(PLEIADES, DOPRI8, 1e-13, 1e-13, [ENCOUNTERS]),
    "van der pol": Case(
        ode.VanDerPol(), KVAERNO5, 1e-10, 1e-10, [Value(2.0, (0, 1), VAN_DER_POL, 2e-9)]
    ),
    "robertson": Case(ode.Robertson(), KVAERNO5, 1e-10, 1e-16, [ROBERTSON], relative=True),
    "robertson's integral": Case(
        robertson_with_integral, KVAERNO5, 1e-10, 1e-16, INTEGRAL, (1.0, 0.0, 0.0, 0.0), True
    ),
    "robertson late": Case(
        ode.Robertson(),
        KVAERNO5,
        1e-10,
        1e-24,
        [Value(1e11, (0, 1, 2), ROBERTSON_LATE, 2e-9)],
        relative=True,
    ),
    "figure of eight": Case(
        ode.NBody(), DOPRI8, 1e-11, 1e-11, [Value(6.32591398, range(12), EIGHT, 1e-7)], EIGHT
    ),
    "turning ring": Case(
        RING, DOPRI8, 1e-11, 1e-11, [Value(HALF_TURN, range(30), -RING.start(), 3e-11)]
    ),
    "sir": Case(ode.SIR(), DOPRI8, 1e-10, 1e-10, [FINAL_SIZE]),
    "seir": Case(ode.SEIR(), DOPRI8, 1e-10, 1e-10, [FINAL_SIZE]),
}


@eqx.filter_jit
def solved(case, times, names, params):
    """y at `times`, (times, n), its derivatives by the parameters `names`, and how it ended."""
    equation = ode.DifferentialEquation(
        case.field, case.solver, rtol=case.rtol, atol=case.atol, max_steps=100_000
    )
    y0 = None if case.y0 is None else jnp.asarray(case.y0)

    def run(some):
        every = {**params, **some}
        schedule = ds.Schedule(ts=times)
        state = equation.init(every, y0=y0)
        sol = ds.solve(equation, every, state, schedule=schedule, adjoint=ds.ForwardMode())
        return sol.observables["y"], sol

    some = {name: params[name] for name in names}
    if not names:
        return *run(some), {}
    slopes, (ys, sol) = jax.jacfwd(lambda some: (run(some)[0], run(some)), has_aux=True)(some)
    return ys, sol, slopes


# Every system and every solver; the others are more of them, or later.
MORE = ("lotka-volterra kvaerno5", "lotka-volterra dopri8", "kepler dopri8", "figure of eight")
MORE += ("robertson", "robertson late", "seir")


@pytest.mark.parametrize("name", slow_but(TABLE.keys() - MORE, TABLE))
def test_reference_solutions(name):
    case = TABLE[name]
    system = case.field if isinstance(case.field, ode.AbstractSystem) else ode.Robertson()
    params = jax.tree.map(jnp.asarray, system.defaults())
    times = sorted({row.time for row in case.expected})
    names = tuple(sorted({row.parameter for row in case.expected if isinstance(row, Slope)}))
    ys, sol, slopes = solved(case, times, names, params)
    sol.check()
    for row in case.expected:
        at = times.index(row.time)
        if isinstance(row, Slope):
            got, wanted = slopes[row.parameter][at, row.component], row.number
            np.testing.assert_allclose(got, wanted, rtol=row.error, err_msg=row.parameter)
        else:
            fraction, absolute = (row.error, 0.0) if case.relative else (0.0, row.error)
            got = ys[at, np.asarray(row.components)]
            np.testing.assert_allclose(got, row.numbers, rtol=fraction, atol=absolute)

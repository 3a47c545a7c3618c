"""Fitted potentials in other programs: OpenMM, LAMMPS, ASE, jax.export."""

import io
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffsim import ConfigError, convert, md
from problems import liquid

RC = 8.5  # angstrom
LAWS: dict[str, tuple[Any, dict[str, Any]]] = {
    "lennard-jones": (None, {"epsilon": convert(119.8, "K", "eV"), "sigma": 3.405}),
    "mie": (md.Mie(), {"epsilon": 0.0103, "sigma": 3.4, "n": 13.5, "m": 6.2}),
    "morse": (md.Morse(), {"epsilon": 0.012, "alpha": 1.5, "r0": 3.8}),
    "buckingham": (md.Buckingham(), {"A": 7000.0, "rho": 0.28, "C": 60.0}),
    "tabulated": (md.Tabulated(60, 2.0, RC), {"values": np.cos(np.linspace(2, 8.5, 60)) / 50}),
}


def made(name: str, truncation: str, **options: Any) -> Any:
    law = LAWS[name][0]
    if law is None:
        return md.LennardJones(RC, truncation, **options)  # pyright: ignore
    return md.Pair(law, RC, truncation, **options)  # pyright: ignore


def argon(atoms: int = 108) -> tuple[Any, Any]:
    x, box = liquid(atoms, 0.75, seed=3)
    return jnp.asarray(x * 3.405), jnp.asarray(box * 3.405)


KINDS = np.arange(108) % 3 // 2  # two of three are argon
NUMBERS = {"epsilon": np.asarray([0.0103, 0.014]), "sigma": np.asarray([3.4, 3.65])}
FREE = {
    "epsilon": np.asarray([[0.0103, 0.011], [0.011, 0.014]]),
    "sigma": np.asarray([[3.4, 3.5], [3.5, 3.65]]),
}


class Exported(NamedTuple):
    """A potential with its parameters, and the symbols of its kinds."""

    potential: Any
    params: Any
    kinds: tuple[str, ...] = ("Ar",)


def plain(name: str, truncation: str, **options: Any) -> Exported:
    return Exported(made(name, truncation, **options), LAWS[name][1])


def mixture(params: Any, truncation: str = "cut", **options: Any) -> Exported:
    return Exported(made("lennard-jones", truncation, species=KINDS, **options), params, TWO)


TWO = ("Ar", "Kr")
EXPORTED = {
    "lennard-jones cut": plain("lennard-jones", "cut"),
    "lennard-jones switch": plain("lennard-jones", "switch"),
    "mie shift": plain("mie", "shift"),
    "morse force_shift": plain("morse", "force_shift"),
    "buckingham switch": plain("buckingham", "switch"),
    "tabulated cut": plain("tabulated", "cut"),
    "mixture": mixture(NUMBERS),
    "tail, cut": plain("lennard-jones", "cut", tail=True),
    "tail, switch": plain("lennard-jones", "switch", tail=True),
    "tail, mie shift": plain("mie", "shift", tail=True),
    "tail, mixture": mixture(NUMBERS, tail=True),
    "tail, mixture as OpenMM's": mixture(NUMBERS, tail=True, itself=True),
    "tail, free pairs": mixture(FREE, tail=True, itself=True),
    "tail, mixture switch": mixture(NUMBERS, "switch", tail=True),
}


def in_openmm(
    field: str,
    residues: list[tuple[str, list[str]]],
    x: Any,
    box: Any,
    cutoff: float,
    **options: Any,
) -> tuple[float, np.ndarray, Any]:
    """Energy and forces [kJ/mol, angstrom] of residues with these elements, and their system."""
    openmm: Any = pytest.importorskip("openmm")
    app: Any = pytest.importorskip("openmm.app")
    unit: Any = pytest.importorskip("openmm.unit")
    topology = app.Topology()
    chain = topology.addChain()
    for name, symbols in residues:
        residue = topology.addResidue(name, chain)
        first, *others = [
            topology.addAtom(each, app.Element.getBySymbol(each[0:2].rstrip("12")), residue)
            for each in symbols
        ]
        for other in others:
            topology.addBond(first, other)
    topology.setUnitCellDimensions(np.asarray(box) / 10)
    system = app.ForceField(io.StringIO(field)).createSystem(
        topology,
        nonbondedCutoff=cutoff / 10 * unit.nanometer,
        **{"nonbondedMethod": app.CutoffPeriodic} | options,
    )
    platform = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), platform)
    context.setPositions(np.asarray(x) / 10)
    state = context.getState(getEnergy=True, getForces=True)
    energy = state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)
    forces = state.getForces(asNumpy=True).value_in_unit(unit.kilojoule_per_mole / unit.angstrom)
    return energy, forces, system


@pytest.mark.parametrize("name", EXPORTED)
def test_the_exported_force_field_has_the_same_energies_in_openmm(name):
    pytest.importorskip("openmm")
    x, box = argon()
    potential, params, kinds = EXPORTED[name]
    field = md.to_openmm(potential, params, units="metal", kinds=kinds)
    symbols = [kinds[k] for k in (KINDS if len(kinds) > 1 else np.zeros(108, int))]
    energy, forces, _ = in_openmm(field, [(s, [s]) for s in symbols], x, box, RC)
    wanted = convert(float(potential.energy(_arrays(params), x, box)), "eV", "kJ/mol")
    assert energy == pytest.approx(wanted, rel=2e-9 if "tabulated" not in name else 1e-6)
    ours = np.asarray(potential.forces(_arrays(params), x, box)) * convert(1.0, "eV", "kJ/mol")
    np.testing.assert_allclose(forces, ours, atol=2e-6 * np.abs(ours).max())


WATERS: dict[str, dict[str, Any]] = {
    "rigid": dict(),
    "flexible, without tail": dict(flexible=True, tail=False),
    "switched": dict(truncation="switch"),
}


@pytest.mark.parametrize("name", WATERS)
def test_water_has_the_same_energies_in_openmm(name):
    pytest.importorskip("openmm")
    app: Any = pytest.importorskip("openmm.app")
    given, flexible = md.water_box(27, seed=1), "flexible" in name
    potential = md.Water(27, 4.6, md.Ewald(15), alpha=1.0, **WATERS[name])
    params = md.water_parameters("TIP3P", flexible=flexible)
    rng = np.random.default_rng(0)
    x = jnp.asarray(given["positions"] + 0.02 * rng.normal(size=(81, 3)))
    box = jnp.asarray(given["box"])
    field = md.to_openmm(potential, params, units="real", model="TIP3P")
    energy, forces, system = in_openmm(
        field,
        [("HOH", ["O", "H1", "H2"])] * 27,
        x,
        box,
        4.6,
        nonbondedMethod=app.Ewald,
        ewaldErrorTolerance=1e-9,
        rigidWater=not flexible,
    )
    per = convert(1.0, "kcal/mol", "kJ/mol")
    wanted, ours = jax.jit(lambda *x: (potential.energy(*x), potential.forces(*x)))(params, x, box)
    assert energy == pytest.approx(float(wanted) * per, rel=1e-7)
    ours = np.asarray(ours) * per
    np.testing.assert_allclose(forces, ours, atol=1e-6 * np.abs(ours).max())
    held = [system.getConstraintParameters(i)[2]._value for i in range(system.getNumConstraints())]
    edges = np.asarray(md.rigid_water(27, model="TIP3P").lengths) / 10
    np.testing.assert_allclose(sorted(held), [] if flexible else sorted(edges), rtol=1e-12)


def _arrays(params: dict[str, Any]) -> dict[str, Any]:
    return {k: jnp.asarray(v, float) for k, v in params.items()}


def numbers(text: str) -> dict[str, str]:
    """Lines of an input script by their first words."""
    lines = [line.split() for line in text.splitlines() if not line.startswith("#")]
    return {" ".join(words[:1]): " ".join(words[1:]) for words in lines}


def test_lammps_files_hold_the_parameters():
    files = md.to_lammps(made("lennard-jones", "cut"), LAWS["lennard-jones"][1], units="metal")
    said = numbers(files["pair.lammps"])
    assert said["pair_style"] == "lj/cut 8.5"
    first, second, *values = said["pair_coeff"].split()
    assert (first, second) == ("1", "1")
    assert list(map(float, values)) == list(LAWS["lennard-jones"][1].values())
    assert said["pair_modify"] == "shift no tail no"
    tailed = md.LennardJones(RC, tail=True, species=[0, 1, 1])
    numbers_of = {"epsilon": np.asarray([0.01, 0.02]), "sigma": np.asarray([3.4, 3.0])}
    text = md.to_lammps(tailed, numbers_of, units="metal", kinds=("Ar", "Ne"))["pair.lammps"]
    lines = [line.split() for line in text.splitlines() if line.startswith("pair_coeff")]
    assert [line[1:3] for line in lines] == [["1", "1"], ["1", "2"], ["2", "2"]]
    mixed = [float(v) for v in lines[1][3:]]
    np.testing.assert_allclose(mixed, [np.sqrt(2e-4), 3.2])
    assert "pair_modify shift no tail yes" in text


def test_lammps_tables_hold_energies_and_forces():
    potential, params = made("morse", "switch"), LAWS["morse"][1]
    files = md.to_lammps(potential, params, units="metal")
    rows = [line.split() for line in files["pair.table"].splitlines()]
    table = np.asarray([list(map(float, row)) for row in rows if len(row) == 4 and row[0] != "N"])
    r, energy, force = table[:, 1:].T
    assert len(r) == 4000 and r[-1] == RC
    slope = np.gradient(energy, r)
    near = (r > 3.0) & (r < 8.4)
    np.testing.assert_allclose(force[near], -slope[near], atol=1e-4 * np.abs(slope[near]).max())
    pair = jnp.asarray([[1.0, 1, 1], [1.0 + r[2000], 1, 1]])
    wanted = potential.energy(_arrays(params), pair, jnp.full(3, 50.0))
    assert energy[2000] == pytest.approx(float(wanted), rel=1e-9)
    silicon = md.to_lammps(
        md.StillingerWeber(3.78), md.stillinger_weber_silicon(), units="metal", kinds=("Si",)
    )
    words = silicon["Si.sw"].splitlines()[1].split()
    assert words[:3] == ["Si"] * 3 and len(words) == 14
    assert float(words[3]) == 2.16826 and float(words[5]) == 1.8


def test_an_ase_calculator_has_our_energies_and_forces():
    import ase

    x, box = argon()
    potential, params = made("lennard-jones", "switch"), _arrays(LAWS["lennard-jones"][1])
    real = {**params, "epsilon": params["epsilon"] * convert(1.0, "eV", "kcal/mol")}
    for given, units in ((params, "metal"), (real, "real")):
        atoms = ase.Atoms(f"Ar{len(x)}", np.asarray(x), cell=np.asarray(box), pbc=True)
        atoms.calc = md.ase_calculator(potential, given, units=units)
        wanted = float(potential.energy(params, x, box))
        assert atoms.get_potential_energy() == pytest.approx(wanted, rel=1e-10)
        atoms.positions[3] += 0.1
        forces = potential.forces(params, jnp.asarray(atoms.positions), box)
        np.testing.assert_allclose(atoms.get_forces(), forces, atol=1e-10)


CELLS = {
    "cubic": np.diag([9.0, 9.0, 9.0]),
    "orthorhombic": np.diag([9.0, 9.6, 10.4]),
    "triclinic": np.asarray([[9.0, 0.3, 0.8], [-1.1, 9.4, 0.2], [0.4, 1.6, 9.9]]),  # and turned
}
NETWORK = {"net": md.MessagePassing(4.0, 0, features=4, rounds=1, radial=3)}
STRESSED: dict[str, tuple[Any, Any]] = {
    "tail": (md.LennardJones(4.2, "switch", tail=True), LAWS["lennard-jones"][1]),
    "cut": (md.LennardJones(4.2, tail=True), LAWS["lennard-jones"][1]),
    "charges": (
        md.Sum(
            {
                "lj": md.LennardJones(4.2, "switch"),
                "coulomb": md.Coulomb(
                    4.2, np.arange(16) % 2, md.Ewald(8), alpha=0.8, units="metal"
                ),
            }
        ),
        {"lj_epsilon": 0.01, "lj_sigma": 3.0, "coulomb_charge": jnp.asarray([0.3, -0.3])},
    ),
    "silicon": (md.StillingerWeber(3.78), md.stillinger_weber_silicon()),
    "network": (md.Neural(4.0), NETWORK),
}


def calculated(potential: Any, params: Any, cell: np.ndarray, units: str = "metal") -> Any:
    """16 atoms of ASE with our calculator."""
    import ase

    rng = np.random.default_rng(0)
    places = (np.stack(np.meshgrid(*[[0, 0.5]] * 3, [0, 1]), -1).reshape(-1, 4))[:, :3]
    places[1::2] += 0.25
    x = (places + rng.normal(0, 0.02, places.shape)) @ cell
    atoms = ase.Atoms(f"Ar{len(x)}", x, cell=cell, pbc=True)
    atoms.calc = md.ase_calculator(potential, params, units=units)
    return atoms


@pytest.mark.parametrize(
    ("name", "cell"),
    [
        ("tail", "cubic"),
        ("tail", "triclinic"),
        ("cut", "orthorhombic"),
        pytest.param("network", "orthorhombic", marks=pytest.mark.slow),
        pytest.param("network", "triclinic", marks=pytest.mark.slow),
        pytest.param("charges", "orthorhombic", marks=pytest.mark.slow),
        pytest.param("charges", "triclinic", marks=pytest.mark.slow),
        pytest.param("silicon", "triclinic", marks=pytest.mark.slow),
    ],
)
def test_stress_in_ase_is_the_slope_of_the_energy_with_strain(name, cell):
    from ase.calculators.fd import calculate_numerical_stress

    atoms = calculated(*STRESSED[name], CELLS[cell])
    stress = atoms.get_stress()
    # of the energy whose slopes they are: of "cut", the shifted one
    wanted = calculate_numerical_stress(atoms, eps=1e-5, force_consistent=True)
    np.testing.assert_allclose(stress, wanted, atol=2e-6 * np.abs(stress).max())


def test_stress_has_the_sign_and_the_units_of_ase():
    from ase.calculators.lj import LennardJones

    params = LAWS["lennard-jones"][1]
    real = params | {"epsilon": convert(params["epsilon"], "eV", "kcal/mol")}
    for given, units in ((params, "metal"), (real, "real")):
        atoms = calculated(md.LennardJones(4.2, "shift"), given, CELLS["triclinic"], units)
        ours = [atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()]
        atoms.calc = LennardJones(**params, rc=4.2)
        theirs = [atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()]
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-9 * np.abs(other).max())


def test_a_network_is_an_ase_calculator():
    potential, params = STRESSED["network"]
    atoms = calculated(potential, params, CELLS["orthorhombic"])
    box = jnp.diagonal(jnp.asarray(CELLS["orthorhombic"]))
    wanted = potential.energy(params, jnp.asarray(atoms.positions), box)
    assert atoms.get_potential_energy() == pytest.approx(float(wanted), rel=1e-12)


def test_what_ase_cannot_have_is_refused():
    from ase.calculators.calculator import PropertyNotImplementedError

    params = LAWS["lennard-jones"][1]
    with pytest.raises(ConfigError, match=r"units: reduced units have no eV.*metal, real"):
        md.ase_calculator(md.LennardJones(4.2), params, units="lj")
    free = lambda positions, k: k * jnp.sum(positions**2)  # noqa: E731
    edges = lambda positions, box, k: k * jnp.sum((positions / box) ** 2)  # noqa: E731
    atoms = calculated(md.Potential(free), {"k": 0.1}, CELLS["cubic"])
    with pytest.raises(PropertyNotImplementedError, match="has no virial"):
        atoms.get_stress()
    atoms = calculated(md.Potential(edges), {"k": 0.1}, CELLS["cubic"])
    with pytest.raises(ConfigError, match=r"stress: .*sheared.*triclinic=True"):
        atoms.get_stress()


@pytest.mark.slow
def test_a_network_is_called_without_its_code():
    net = md.MessagePassing(3.0, jax.random.key(0), features=4, radial=3)
    potential, params = md.Neural(3.0), {"net": net}
    x, box = map(jnp.asarray, liquid(12, 0.3, seed=1))
    x, box = 1.6 * x, 1.6 * box
    exported = md.export_potential(potential, params, 12)
    energy, forces = exported.call(x, box)
    np.testing.assert_allclose(energy, potential.energy(params, x, box), rtol=1e-12)
    np.testing.assert_allclose(forces, potential.forces(params, x, box), atol=1e-12)


def test_a_potential_is_kept_as_bytes():
    from jax import export

    params = _arrays(LAWS["lennard-jones"][1])
    x, box = argon(32)
    exported = md.export_potential(md.LennardJones(5.0, "switch"), params, 32)
    again = export.deserialize(exported.serialize()).call(x, box)
    for one, other in zip(again, exported.call(x, box), strict=True):
        np.testing.assert_array_equal(one, other)


LJ, ARGON = made("lennard-jones", "cut"), LAWS["lennard-jones"][1]
TO_OPENMM = lambda *a, units="metal", **k: md.to_openmm(*a, units=units, **k)  # noqa: E731
TO_LAMMPS = lambda *a, units="metal", **k: md.to_lammps(*a, units=units, **k)  # noqa: E731
REFUSED: list[tuple[Any, Any, Any, dict[str, Any], str]] = [
    (TO_LAMMPS, LJ, ARGON, dict(units="gromacs"), r"units: .* lj, metal, real"),
    (TO_OPENMM, LJ, ARGON, dict(units="lj"), "reduced units have no kJ/mol and nm"),
    (TO_OPENMM, LJ, ARGON, dict(kinds=TWO), "kinds: must be one, without species"),
    (TO_OPENMM, *mixture(NUMBERS)[:2], {}, r"kinds: must be 2, a different .*got \['Ar'\]"),
    (TO_OPENMM, *mixture(FREE)[:2], dict(kinds=("Ar", "Ar")), "kinds: must be 2, a different"),
    (TO_OPENMM, *mixture(ARGON)[:2], {}, "kinds: must be 2"),
    (TO_LAMMPS, *mixture(NUMBERS)[:2], {}, "kinds: must be 2"),
    (TO_OPENMM, *mixture(NUMBERS | {"sigma": np.ones(3)})[:2], {}, "epsilon: is of 2 kinds"),
    (TO_OPENMM, LJ, ARGON, dict(kinds=("Xy",)), "kinds: is no chemical symbol .*'Xy'.*did you"),
    (TO_OPENMM, LJ, ARGON, dict(kinds=("X",)), "kinds: is no chemical symbol"),
    (TO_OPENMM, LJ, {"epsilon": 1.0}, {}, "sigma: is missing .* LennardJones.*epsilon, sigma"),
    (TO_LAMMPS, LJ, {"epsilon": 1.0}, {}, "sigma: is missing"),
    (TO_LAMMPS, md.StillingerWeber(4.0), {"epsilon": 1.0}, {}, "sigma: is missing"),
    (TO_OPENMM, LJ, {"epsilon": 1.0, "sigme": 1.0}, {}, r"params: no such .*did you mean sigma\?"),
    (TO_OPENMM, LJ, ARGON | {"sigma": -1.0}, {}, "sigma: must be positive"),
    (TO_OPENMM, md.Bonds([[0, 1]]), {}, {}, "Bonds has no force field.*LennardJones, Pair, Water"),
    (TO_OPENMM, md.Water(2, 4.0), {}, {}, "epsilon: is missing among the parameters of Water"),
    (TO_LAMMPS, md.Water(2, 4.0), {}, {}, "Water has no LAMMPS file"),
    (TO_LAMMPS, *plain("lennard-jones", "shift", tail=True)[:2], {}, "tail: LAMMPS has none for"),
    (
        TO_LAMMPS,
        *plain("morse", "cut", tail=True)[:2],
        {},
        r'tail: .*tail=False, or truncation "cut"',
    ),
]


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_exported_is_refused(case):
    export, potential, params, options, message = case
    with pytest.raises(ConfigError, match=message):
        export(potential, params, **options)

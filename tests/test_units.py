import subprocess
import sys

import numpy as np
import pytest
from scipy import constants

from diffsim._errors import ConfigError
from diffsim._units import convert
from diffsim.md._units import GROMACS, LJ, METAL, REAL, unit_system

EV, KB, NA = constants.e, constants.k, constants.N_A

CONVERSIONS = [
    (1.0, "K", "eV", KB / EV),
    (1.0, "eV", "K", EV / KB),
    (120.0, "K", "kcal/mol", 120.0 * KB * NA / 4184.0),
    (120.0, "K", "kJ/mol", 120.0 * KB * NA / 1000.0),
    (1.0, "kJ/mol", "K", 1000.0 / (KB * NA)),
    (-5099.0006, "J/mol", "eV", -5099.0006 / (NA * EV)),
    (1.0, "eV", "kcal/mol", EV * NA / 4184.0),
    (1.0, "kcal/mol", "kJ/mol", 4.184),
    (1.0, "MPa", "bar", 10.0),
    (1.0, "atm", "bar", 1.01325),
    (1.0, "eV/angstrom^3", "MPa", EV * 1e24),
    (1.0, "kJ/mol/nm^3", "bar", 1e30 / NA / 1e5),
    (1.0, "kcal/mol/angstrom", "eV/angstrom", 4184.0 / (NA * EV)),
    (1.0, "g/mol", "kg", 1e-3 / NA),
    (1.0, "mol/L", "1/angstrom^3", NA * 1e-27),
    (1.0, "kg/m3", "g/cm**3", 1e-3),
    (1.0, "m s-1", "angstrom/ps", 0.01),
    (25.0, "degC", "K", 298.15),
    (40.0, "percent", "1", 0.4),
    (3.0, "1", "", 3.0),
    (3.0, "", "dimensionless", 3.0),
    (3.0, "thousand hares", "thousand hares", 3.0),
]


@pytest.mark.parametrize(("value", "source", "target", "expected"), CONVERSIONS)
def test_conversion(value, source, target, expected):
    result = convert(value, source, target)
    assert type(result) is float
    assert result == pytest.approx(expected, rel=1e-12)
    # Pint's atomic mass is the measured one of CODATA: everything above is exact.
    back = convert(result, target, source)
    assert back == pytest.approx(value, rel=1e-12)


def test_arrays_keep_their_shape():
    table = np.arange(6.0).reshape(2, 3)
    np.testing.assert_allclose(convert(table, "MPa", "bar"), 10 * table, rtol=1e-14)
    assert convert(np.array(2), "MPa", "bar").shape == ()
    assert convert(np.array([1, 2]), "m", "m").dtype == np.float64


def test_dalton_is_a_gram_per_mole_to_the_measured_digits():
    assert convert(1.0, "dalton", "g/mol") == pytest.approx(1.0, rel=2e-9)


@pytest.mark.parametrize(
    ("source", "target", "names"),
    [
        ("kcal/mol", "bar", ["kcal/mol", "bar"]),
        ("1", "MPa", ["'1'", "MPa"]),
        ("kg/m^3", "mol/L", ["kg/m^3", "mol/L"]),
        ("degC", "eV", ["degC", "eV"]),
        ("angstorm", "nm", ["angstorm", "angstrom"]),
        ("Mpa", "bar", ["Mpa", "MPa"]),
        ("furlongg", "m", ["furlongg", "furlong"]),
        ("5 m", "m", ["5 m"]),
        ("eV(", "K", ["eV("]),
        ("m**", "nm", ["m**"]),
        ("m + s", "m", ["m + s"]),
        ("__import__('os')", "m", ["__import__"]),
        ("m", "nmm", ["nmm"]),
    ],
)
def test_refusals_name_the_units(source, target, names):
    with pytest.raises(ConfigError) as error:
        convert(1.0, source, target, key="targets.pressure.unit")
    message = str(error.value)
    assert "\n" not in message
    assert "targets.pressure.unit" in message
    for name in names:
        assert name in message


def test_pint_is_loaded_by_a_conversion_only():
    code = (
        "import sys; from diffsim._units import convert; convert(1.0, 'K', 'K');"
        "assert 'pint' not in sys.modules; assert 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# update.cpp of LAMMPS: boltz, mvv2e, nktv2p. Its constants are those of CODATA 2006.
LAMMPS = [
    (LJ, 1.0, 1.0, 1.0),
    (METAL, 8.617343e-5, 1.0364269e-4, 1.6021765e6),
    (REAL, 0.0019872067, 48.88821291**2, 68568.415),
]


@pytest.mark.parametrize(("units", "boltzmann", "mass", "pressure"), LAMMPS)
def test_factors_are_those_of_lammps(units, boltzmann, mass, pressure):
    assert units.boltzmann == pytest.approx(boltzmann, rel=2e-6)
    assert units.mass_factor == pytest.approx(mass, rel=3e-7)
    assert units.pressure_factor == pytest.approx(pressure, rel=3e-7)


def test_factors_follow_from_the_si():
    assert METAL.boltzmann == pytest.approx(KB / EV, rel=1e-14)
    assert METAL.pressure_factor == pytest.approx(EV * 1e30 / 1e5, rel=1e-14)
    assert METAL.mass_factor == pytest.approx(constants.atomic_mass * 1e4 / EV, rel=2e-9)
    assert REAL.boltzmann == pytest.approx(KB * NA / 4184, rel=1e-14)
    assert GROMACS.boltzmann == pytest.approx(KB * NA / 1e3, rel=1e-14)
    assert GROMACS.mass_factor == pytest.approx(1.0, rel=2e-9)
    assert (LJ.boltzmann, LJ.mass_factor, LJ.pressure_factor) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("units", [METAL, REAL, GROMACS], ids=lambda units: units.name)
def test_argon_is_the_same_in_every_system(units):
    kT = units.boltzmann * units.convert(100.0, "K", "temperature")
    mass = units.convert(39.948, "dalton", "mass") * units.mass_factor
    speed = convert(np.sqrt(kT / mass), units.unit_of("velocity"), "m/s")
    assert speed == pytest.approx(np.sqrt(KB * 100 / (39.948 * constants.atomic_mass)), rel=2e-9)
    density = units.convert(20.0, "mol/L", "number_density")
    pressure = units.convert(density * kT * units.pressure_factor, units.pressure, "pressure")
    expected = convert(20.0e3 * NA * KB * 100, "Pa", units.pressure)
    assert pressure == pytest.approx(expected, rel=1e-12)


def test_quantities_have_units():
    assert METAL.unit_of("pressure") == "bar"
    assert REAL.unit_of("force") == "kcal/mol/angstrom"
    assert GROMACS.unit_of("velocity") == "nm/ps"
    assert LJ.unit_of("pressure") == LJ.unit_of("number_density") == "1"
    momentum = convert(METAL.mass_factor, METAL.unit_of("momentum"), "dalton*angstrom/ps")
    assert momentum == pytest.approx(1.0, rel=1e-12)
    with pytest.raises(ConfigError, match="pressure"):
        METAL.unit_of("presure")


def test_systems_go_by_name():
    assert unit_system("metal") is unit_system("METAL") is unit_system(METAL) is METAL
    assert unit_system("openmm") is GROMACS
    with pytest.raises(ConfigError, match="metal") as error:
        unit_system("metall")
    assert "\n" not in str(error.value)
    assert hash(METAL) != hash(REAL)

"""Trajectories: what is written comes back, also to MDAnalysis; what is foreign is refused."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from diffsim._errors import ConfigError
from diffsim._store import TrajectoryWriter, h5md_unit, read_trajectory

ATOMS = 5
METAL = {
    "length": "angstrom",
    "time": "ps",
    "mass": "g/mol",
    "pressure": "MPa",
    "total_energy": "J/mol",
}


def load(path) -> Any:
    """The trajectory, with every part taken to be there."""
    return read_trajectory(path)


def opened(path, mode="r") -> Any:
    return h5py.File(path, mode)


def frames(first, last, atoms=ATOMS, dtype=np.float64):
    """Frames `first` to `last - 1` of one reproducible trajectory, every 10 steps."""
    steps = np.arange(first, last) * 10
    rng = [np.random.default_rng(int(step)) for step in steps]
    positions = np.stack([r.uniform(0, 12, (atoms, 3)) for r in rng]).astype(dtype)
    velocities = np.stack([r.normal(size=(atoms, 3)) for r in rng]).astype(dtype)
    observables = {"pressure": np.sin(steps / 30.0), "total_energy": np.outer(steps, [1.0, 2.0])}
    return steps, steps * 0.002, positions, velocities, observables


def write(path, first, last, **options):
    steps, times, positions, velocities, observables = frames(first, last)
    box = np.array([12.0, 13.0, 14.0])
    species = ["Ar"] * (ATOMS - 1) + ["Kr"]
    with TrajectoryWriter(
        path,
        atoms=ATOMS,
        box=box,
        species=species,
        masses=np.full(ATOMS, 39.948),
        units=METAL,
        **options,
    ) as out:
        out.extend(steps, times, positions, velocities, observables=observables)


@pytest.mark.parametrize(
    ("unit", "written"),
    [
        ("angstrom", "Angstrom"),
        ("Å/ps", "Angstrom ps-1"),
        ("angstrom / picosecond", "Angstrom ps-1"),
        ("J/mol", "J mol-1"),
        ("kJ/(mol*nm)", "kJ mol-1 nm-1"),
        ("kg/m**3", "kg m-3"),
        ("kg/m^3", "kg m-3"),
        ("nm ps-1", "nm ps-1"),
        ("1/ps", "ps-1"),
        ("kg/m3", "kg m-3"),
        ("eV/angstrom^3", "eV Angstrom-3"),
        ("", ""),
        ("1", ""),
        (None, ""),
        ("dimensionless", ""),
        ("thousand hares", "thousand hares"),
    ],
)
def test_units_in_h5md_notation(unit, written):
    assert h5md_unit(unit) == written
    assert h5md_unit(written) == written


class TestTrajectory:
    def test_round_trip(self, tmp_path):
        write(tmp_path / "t.h5", 0, 7)
        read = load(tmp_path / "t.h5")
        steps, times, positions, velocities, observables = frames(0, 7)
        np.testing.assert_array_equal(read.positions.value, positions)
        np.testing.assert_array_equal(read.positions.step, steps)
        np.testing.assert_array_equal(read.positions.time, times)
        np.testing.assert_array_equal(read.velocities.value, velocities)
        np.testing.assert_array_equal(read.box.value, np.tile([12.0, 13.0, 14.0], (7, 1)))
        assert read.boundary == ("periodic",) * 3
        assert list(read.species) == ["Ar"] * 4 + ["Kr"]
        np.testing.assert_array_equal(read.masses, np.full(ATOMS, 39.948))
        for name, value in observables.items():
            np.testing.assert_array_equal(read.observables[name].value, value)
        assert read.positions.unit == "Angstrom"
        assert read.velocities.unit == "Angstrom ps-1"
        assert read.observables["total_energy"].unit == "J mol-1"
        assert read.observables["pressure"].time_unit == "ps"

    def test_says_h5md_and_shares_steps(self, tmp_path):
        write(tmp_path / "t.h5", 0, 2)
        with opened(tmp_path / "t.h5") as file:
            assert list(file["h5md"].attrs["version"]) == [1, 1]
            assert file["h5md/creator"].attrs["name"] == "diffsim"
            group = file["particles/trajectory"]
            assert group["box"].attrs["dimension"] == 3
            assert group["box/edges/step"] == group["position/step"] == group["velocity/step"]
            value = group["position/value"]  # a compressed chunk would move when it grows
            assert (value.compression, value.shuffle, value.fletcher32) == (None, False, False)

    def test_mdanalysis_opens_what_two_sessions_wrote(self, tmp_path):
        path = tmp_path / "t.h5"
        write(path, 0, 4)
        write(path, 3, 9, resume_at=20)
        code = f"""
import warnings, numpy as np
warnings.simplefilter("ignore")
from MDAnalysis.coordinates.H5MD import H5MDReader
r = H5MDReader({str(path)!r})
assert (r.n_frames, r.n_atoms) == (9, {ATOMS}), (r.n_frames, r.n_atoms)
assert r.units["length"] == "Angstrom" and r.units["time"] == "ps", r.units
assert r.units["velocity"] == "Angstrom/ps", r.units
np.savez({str(tmp_path / "mda.npz")!r}, time=[t.time for t in r], step=[t.data["step"] for t in r],
    x=[t.positions.copy() for t in r], v=[t.velocities.copy() for t in r],
    box=[t.dimensions for t in r], p=[t.data["pressure"] for t in r])
assert H5MDReader.parse_n_atoms({str(path)!r}) == {ATOMS}
r.close()
"""
        subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
        steps, times, positions, velocities, observables = frames(0, 9)
        with np.load(tmp_path / "mda.npz") as seen:
            np.testing.assert_array_equal(seen["step"], steps)
            np.testing.assert_allclose(seen["time"], times)
            np.testing.assert_allclose(seen["x"], positions, rtol=1e-6)
            np.testing.assert_allclose(seen["v"], velocities, rtol=1e-6)
            np.testing.assert_allclose(seen["p"], observables["pressure"])
            np.testing.assert_allclose(seen["box"], [[12, 13, 14, 90, 90, 90]] * 9)

    def test_frames_one_by_one_are_the_frames_of_a_chunk(self, tmp_path):
        write(tmp_path / "chunk.h5", 0, 5)
        steps, times, positions, velocities, observables = frames(0, 5)
        with TrajectoryWriter(tmp_path / "one.h5", atoms=ATOMS, box=[12, 13, 14]) as out:
            for i in range(5):
                measured = {name: value[i] for name, value in observables.items()}
                out.append(steps[i], times[i], positions[i], velocities[i], observables=measured)
            assert out.last_step == 40
        one, chunk = (load(tmp_path / name) for name in ("one.h5", "chunk.h5"))
        for a, b in ((one.positions, chunk.positions), (one.velocities, chunk.velocities)):
            np.testing.assert_array_equal(a.value, b.value)

    def test_observables_alone_and_at_their_own_steps(self, tmp_path):
        with TrajectoryWriter(tmp_path / "t.h5", units={"time": "1"}) as out:
            out.extend([0, 5], [0.0, 0.5], observables={"u": np.ones((2, 4, 3), np.float32)})
            with pytest.raises(ValueError, match="0 atoms"):
                out.extend([6], [0.6], np.zeros((1, 2, 3)))
        read = load(tmp_path / "t.h5")
        assert read.positions is None
        assert read.observables["u"].value.shape == (2, 4, 3)
        assert read.observables["u"].value.dtype == np.float32
        with TrajectoryWriter(tmp_path / "two.h5", atoms=1) as out:
            out.extend([0, 1, 2], [0.0, 0.1, 0.2], observables={"e": np.arange(3.0)})
            out.extend([2], [0.2], np.zeros((1, 1, 3)))
        with TrajectoryWriter(tmp_path / "two.h5", atoms=1, resume_at=1) as out:
            assert out.last_step == 1
        read = load(tmp_path / "two.h5")
        np.testing.assert_array_equal(read.observables["e"].step, [0, 1])

    def test_a_box_that_changes(self, tmp_path):
        box = np.array([[3.0, 3, 3], [4, 4, 4]])
        with TrajectoryWriter(tmp_path / "t.h5", atoms=1, box=box[0]) as out:
            out.extend([0, 1], [0.0, 1.0], np.zeros((2, 1, 3)), box=box)
        read = load(tmp_path / "t.h5")
        np.testing.assert_array_equal(read.box.value, box)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"steps": [0, 10]}, "after 10"),
            ({"steps": [30, 20]}, "increase"),
            ({"steps": [20]}, "one length"),
            ({"positions": np.zeros((2, 4, 3))}, "5 atoms"),
            ({"positions": None}, "together with positions"),
            ({"velocities": None}, "velocity"),
            ({"observables": {"pressure": np.zeros(2)}}, "total_energy"),
            (
                {"observables": {"pressure": np.zeros(3), "total_energy": np.zeros((2, 2))}},
                "frames",
            ),
        ],
    )
    def test_refuses_what_does_not_fit_and_writes_none_of_it(self, tmp_path, change, message):
        write(tmp_path / "t.h5", 0, 2)
        names = ("steps", "times", "positions", "velocities", "observables")
        chunk = dict(zip(names, frames(2, 4), strict=True)) | change
        with TrajectoryWriter(tmp_path / "t.h5", atoms=ATOMS, resume_at=10) as out:
            with pytest.raises(ValueError, match=message):
                out.extend(**chunk)
            assert out.last_step == 10
        kept = load(tmp_path / "t.h5").observables
        assert {len(series.step) for series in kept.values()} == {2}

    def test_resume_refuses_another_system(self, tmp_path):
        write(tmp_path / "t.h5", 0, 2)
        with pytest.raises(ConfigError, match="5 particles"):
            TrajectoryWriter(tmp_path / "t.h5", atoms=7, resume_at=0)
        (tmp_path / "broken.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + b"\0" * 50)
        with pytest.raises(ConfigError, match="cannot be read"):
            TrajectoryWriter(tmp_path / "broken.h5", atoms=7, resume_at=0)
        with pytest.raises(FileExistsError):
            TrajectoryWriter(tmp_path / "t.h5", atoms=ATOMS)

    def test_a_killed_run_goes_on_as_if_nothing_had_happened(self, tmp_path):
        path = tmp_path / "t.h5"
        code = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_trajectory import METAL, ATOMS, frames
from diffsim._store import TrajectoryWriter
out = TrajectoryWriter({str(path)!r}, atoms=ATOMS, box=[12, 13, 14], units=METAL)
for first in range(0, 4000, 40):
    s, t, x, v, o = frames(first, first + 40)
    out.extend(s, t, x, v, observables=o)
    print(first + 40, flush=True)
"""
        child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        done = 0
        for line in child.stdout:
            done = int(line)
            if done >= 120:
                time.sleep(0.01)
                os.kill(child.pid, signal.SIGKILL)
                break
        child.stdout.close()
        child.wait()
        restart = (done - 15) * 10
        with TrajectoryWriter(path, atoms=ATOMS, box=[12, 13, 14], resume_at=restart) as out:
            assert out.last_step == restart
            s, t, x, v, o = frames(done - 14, done + 20)
            out.extend(s, t, x, v, observables=o)
        read = load(path)
        steps, _, positions, velocities, observables = frames(0, done + 20)
        np.testing.assert_array_equal(read.positions.step, steps)
        np.testing.assert_array_equal(read.positions.value, positions)
        np.testing.assert_array_equal(read.velocities.value, velocities)
        np.testing.assert_array_equal(read.observables["pressure"].value, observables["pressure"])


def series(file, place, **value):
    group = file.create_group(place)
    frames = value.get("shape", (2,))[0]
    group["step"], group["time"] = np.arange(frames), np.arange(frames) * 1.0
    return group.create_dataset("value", **({"shape": (2,), "dtype": "f8"} | value))


def hostile(kind, path):
    """A file that tries what the reader must not follow."""
    with opened(path, "w") as file:
        file.create_group("h5md")
        if kind == "external storage":
            series(file, "observables/p", external=[(str(path.parent / "secret.bin"), 0, 16)])
        elif kind == "virtual":
            layout = h5py.VirtualLayout((2,), "f8")
            layout[:] = h5py.VirtualSource(str(path.parent / "secret.h5"), "x", (2,))
            series(file, "observables/p")
            del file["observables/p/value"]
            file["observables/p"].create_virtual_dataset("value", layout)
        elif kind == "external link":
            file["observables/p"] = h5py.ExternalLink("secret.h5", "/p")
        elif kind == "soft link":
            file["observables/p"] = h5py.SoftLink("/h5md")
        elif kind == "huge claim":
            group = file.create_group("observables/p")
            group["step"], group["time"] = np.arange(2), np.arange(2.0)
            group.create_dataset(
                "value", (2, 10**6, 10**6), "f4", chunks=(1, 100, 100), compression="gzip"
            )
        elif kind == "huge chunk":
            series(
                file,
                "observables/p",
                shape=(2, 2**26),
                maxshape=(None, 2**26),
                chunks=(1, 2**26),
                compression=1,
            )
        elif kind == "text":
            series(file, "observables/p", dtype=h5py.string_dtype())
        elif kind == "compound":
            series(file, "observables/p", dtype=[("a", "f8")])
        elif kind == "ragged":
            series(file, "observables/p", shape=(3,), data=np.ones(3))
            del file["observables/p/step"]
            file["observables/p/step"] = np.arange(2)
        elif kind == "two groups":
            file.create_group("particles/a")
            file.create_group("particles/b")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("external storage", "another file"),
        ("virtual", "another file"),
        ("external link", "is a link"),
        ("soft link", "is a link"),
        ("huge claim", "more than the file can hold"),
        ("huge chunk", "claims"),
        ("text", "not numbers"),
        ("compound", "not numbers"),
        ("ragged", r"\(2,\) steps, \(3,\) times"),
        ("two groups", "2 groups"),
    ],
)
def test_reader_refuses(tmp_path, kind, message):
    hostile(kind, tmp_path / "t.h5")
    with pytest.raises(ConfigError, match=message) as caught:
        read_trajectory(tmp_path / "t.h5", key="data")
    assert str(caught.value).startswith("data: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89HDF\r\n\x1a\n\0\0"])
def test_reader_refuses_what_is_not_hdf5(tmp_path, content):
    (tmp_path / "t.h5").write_bytes(content)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_trajectory(tmp_path / "t.h5")
    with pytest.raises(ConfigError, match="does not exist"):
        read_trajectory(tmp_path / "absent.h5")


def test_reader_refuses_a_file_that_was_cut_short(tmp_path):
    path = tmp_path / "t.h5"
    write(path, 0, 50)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ConfigError, match="cannot be read"):
        read_trajectory(path)


def test_reader_stays_under_its_limit(tmp_path):
    write(tmp_path / "t.h5", 0, 50)
    with pytest.raises(ConfigError, match="over the limit"):
        read_trajectory(tmp_path / "t.h5", limit_bytes=4000)

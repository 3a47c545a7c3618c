"""Measured data from files: what is no table of finite numbers is refused in one line."""

import h5py
import numpy as np
import pytest

from diffsim._errors import ConfigError
from diffsim._table import column, dataset, table


def refusal(call, *arguments) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return caught.value


def test_columns_and_tables(tmp_path):
    path = tmp_path / "t.csv"
    text = "# measured\n name, p_MPa ,T\n\n1,2.5e0, 3\n4,-5,6\n"
    path.write_text(text, encoding="utf-8-sig")
    np.testing.assert_array_equal(column(path, "p_MPa", unit="MPa"), [2.5, -5])
    assert list(table(str(path))) == ["name", "p_MPa", "T"]
    np.testing.assert_array_equal(table(path)["T"], [3, 6])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty"),
        ("\n\n", "is empty"),
        ("T,p\n", "no row"),
        ("T,p\n1\n", "line 2 has 1 cells under 2 names"),
        ("T,p\n1,2\n3,4,5\n", "line 3 has 3 cells"),
        ("T,T\n1,2\n", "'T' twice"),
        ("T,p\n1,2\n3,high\n", "line 3, column 'p' is no finite number: 'high'"),
        ("T,p\n1,\n", "line 2, column 'p' is no finite number: ''"),
        ("T,p\n1,nan\n", "'nan'"),
        ("T,p\n1,inf\n", "'inf'"),
        ('T,p\n1,"2\n', "cannot be read"),
        ("T,pp\n1,2\n", "did you mean pp?"),
        (b"T,p\n\xff\xfe,1\n", "cannot be read"),
        (b"T,p\n1,\x00\n", "no finite number"),
    ],
)
def test_a_bad_table_is_one_line(tmp_path, text, says):
    path = tmp_path / "t.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert says in str(refusal(column, path, "p"))
    refusal(table, path) if "pp" not in says else table(path)


def test_a_missing_table_names_its_neighbour(tmp_path):
    (tmp_path / "argon.csv").write_text("T\n1\n")
    assert "did you mean argon.csv?" in str(refusal(column, tmp_path / "argon.cvs", "T"))
    assert "does not exist" in str(refusal(column, "no/such.csv", "T"))
    refusal(column, tmp_path, "T")


def test_arrays_come_from_the_file_itself(tmp_path):
    (tmp_path / "no.h5").write_text("no")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = np.arange(6).reshape(2, 3)
        file["text"], file["hole"] = "abc", [1.0, np.nan]
        file.create_group("group")
        file.create_dataset("huge", shape=(10**12,), chunks=(1000,), dtype="f8")
        file["other"] = h5py.ExternalLink("b.h5", "x")
        file["soft"] = h5py.SoftLink("/x")
    np.testing.assert_array_equal(dataset(tmp_path / "a.h5", "x"), [[0, 1, 2], [3, 4, 5]])
    for name in ("text", "hole", "group", "huge", "other", "soft", "y", "/x"):
        refusal(dataset, str(tmp_path / "a.h5"), name)
    for file in ("no.h5", "c.h5", "."):
        refusal(dataset, str(tmp_path / file), "x")

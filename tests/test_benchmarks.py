"""The benchmarks' command line, on the one that takes seconds."""

import json
import sys

from conftest import command

ROW = {"system", "size", "metric", "value", "unit", "peer", "peer_value", "ratio"}


def test_a_benchmark_prints_a_table_and_writes_its_rows(tmp_path):
    file = tmp_path / "rows.json"
    printed = command(sys.executable, "-m", "benchmarks", "overhead", "--quick", "--json", file)
    report = json.loads(file.read_text())
    assert {row["system"] for row in report["rows"]} == {"import diffsim", "--help", "--list"}
    for row in report["rows"]:
        assert set(row) >= ROW and row["value"] > 0
        assert row["ratio"] == row["peer_value"] / row["value"]
        assert row["system"] in printed
    assert report["machine"]["cores"] >= 1

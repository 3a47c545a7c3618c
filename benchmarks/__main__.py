"""`python -m benchmarks NAME [--quick] [--json FILE]`."""

import argparse
import importlib
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

from diffsim._programs import wide_vectors

from ._measure import machine, table

NAMES = sorted(
    path.stem for path in Path(__file__).parent.glob("*.py") if not path.stem.startswith("_")
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", choices=NAMES, help="what to measure")
    parser.add_argument("--quick", action="store_true", help="small sizes: does it run?")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there too")
    options = parser.parse_args()
    # each simulation's precision is that of its state; without this there is no choice
    os.environ.setdefault("JAX_ENABLE_X64", "1")
    wide_vectors()  # as `python -m diffsim.run` does
    benchmark = importlib.import_module(f"benchmarks.{options.name}")
    before = machine()
    rows = list(benchmark.rows(options.quick))
    table(options.name, benchmark.__doc__ or "", before, rows)
    if options.json:
        report = {"benchmark": options.name, "quick": options.quick, "machine": before}
        report["rows"] = [asdict(row) for row in rows]
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

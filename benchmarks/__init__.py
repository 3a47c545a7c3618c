"""diffsim beside its peers, in one run: `python -m benchmarks NAME [--quick] [--json FILE]`.

A benchmark is a file here: a docstring that says what is compared and how, and `rows(quick)`, which
yields `Row`s. A row's ratio is over 1 where diffsim is the better of the two.
"""

"""How long one waits before anything happens: the import, `--help`, `--list`.

Medians of fresh processes. The peer of the import is Python itself, which starts for each as well.
"""

import subprocess
import sys
from collections.abc import Iterator

from ._measure import Row, less_is_better, seconds

COMMANDS = {
    "import diffsim": ("-c", "import diffsim"),
    "--help": ("-m", "diffsim.run", "--help"),
    "--list": ("-m", "diffsim.run", "--list"),
    "python": ("-c", "pass"),
}


def rows(quick: bool) -> Iterator[Row]:
    def start(*arguments: str) -> None:
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)

    tasks = {name: lambda a=arguments: start(*a) for name, arguments in COMMANDS.items()}
    taken = seconds(tasks, 1 if quick else 7)
    bare = taken.pop("python")
    for name, value in taken.items():
        yield less_is_better(name, "1 process", "wall_time", value, "s", "python", bare)

"""Memory against time of each way to a gradient, from what `adjoint --json FILE` wrote.

`python -m benchmarks._adjoint_figure FILE docs/adjoints.png`
"""

import json
import sys
from pathlib import Path
from typing import Any

from diffsim._report.style import (
    BLUE,
    GREEN,
    MUTED,
    ORANGE,
    house_style,
    new_figure,
    power_ticks,
    save_png,
)

COLOURS = {"Direct": ORANGE, "RecursiveCheckpoint": BLUE, "Reversible": GREEN}

Points = dict[str, dict[str, list[float]]]  # system -> way -> [memory in MB, time in forward runs]


def points(rows: list[dict[str, Any]]) -> Points:
    found: Points = {}
    for row in rows:
        if row["metric"] in ("gradient_memory", "gradient_over_forward"):
            system, way = row["system"].rsplit(", ", 1)
            found.setdefault(system, {}).setdefault(way, [0.0, 0.0])[
                row["metric"] == "gradient_over_forward"
            ] = row["value"]
    return found


def draw(report: dict[str, Any], path: Path) -> None:
    systems = points(report["rows"])
    with house_style("adjoints"):
        figure = new_figure(7.6, 2.6)
        panels = figure.subplots(1, len(systems))
        for axes, (system, ways) in zip(panels, systems.items(), strict=True):
            chain = sorted(v for k, v in ways.items() if k.startswith("RecursiveCheckpoint"))
            axes.plot(*zip(*chain, strict=True), color=BLUE, lw=1.2)
            for way, (memory, time) in ways.items():
                name, _, slots = way.partition("(")
                axes.plot(memory, time, "o", color=COLOURS[name], ms=4.5)
                label = slots.rstrip(")") if slots else {"RecursiveCheckpoint": ""}.get(name, name)
                colour = MUTED if slots else COLOURS[name]
                axes.annotate(
                    label,
                    (memory, time),
                    (0, -13 if name == "Reversible" else 6),  # clear of the chain above it
                    textcoords="offset points",
                    color=colour,
                    ha="center",
                )
            axes.set(xscale="log", title=system, xlabel="temporary memory [MB]")
            axes.margins(x=0.18)
            axes.set_ylim(0, 1.15 * max(time for _, time in ways.values()))
            power_ticks(axes.xaxis)
        panels[0].set_ylabel("gradient / forward run")
        save_png(figure, path)


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2]))

"""Draws docs/scaling/processor_time.png from what benchmarks.driver and benchmarks.workers have printed.

    python -m benchmarks.driver --workers 16 64 256 1000 > docs/scaling/driver.jsonl
    python -m benchmarks.workers --workers 16 64 > docs/scaling/workers.jsonl
    python -m benchmarks.workers --workers 16 --tasks 256 --segment-seconds 1 >> docs/scaling/workers.jsonl
    python -m benchmarks.workers --workers 16 --tasks 1000 --segment-seconds 0.4 >> docs/scaling/workers.jsonl
    python -m benchmarks.scaling

Lines are of simulated workers, points of a real Ray cluster.
"""

import json
from pathlib import Path

from leap_rl.runs.figures import Figure, new_figure, render_png, styled

FOLDER = Path("docs/scaling")


@styled
def draw() -> Figure:
    """Draws the processor time an increment against the number of tasks: lines simulated, points on a real cluster."""
    simulated = [json.loads(line) for line in (FOLDER / "driver.jsonl").read_text().splitlines()]
    real = [json.loads(line) for line in (FOLDER / "workers.jsonl").read_text().splitlines()]
    figure = new_figure(5.5, 3.2)
    axes = figure.add_subplot()
    for role, colour in (("driver", "tab:blue"), ("learner", "tab:orange")):
        times = [row[f"{role}_ms_an_increment"] for row in simulated]
        axes.plot([row["workers"] for row in simulated], times, color=colour, label=f"{role}, simulated workers")
        times = [row["ms_an_increment"][role] for row in real]
        axes.plot([row["tasks"] for row in real], times, "o", color=colour, label=f"{role}, real Ray cluster")
    axes.set(xscale="log", yscale="log", xlabel="tasks under way", ylabel="processor time (ms an increment)")
    axes.set_xticks([16, 64, 256, 1000], ["16", "64", "256", "1,000"])
    axes.set_yticks([0.3, 1, 3, 10], ["0.3", "1", "3", "10"])
    axes.minorticks_off()
    axes.legend(frameon=False)
    return figure


if __name__ == "__main__":
    (FOLDER / "processor_time.png").write_bytes(render_png(draw()))

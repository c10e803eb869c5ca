"""Shows how a run stands as an HTML page, while it trains or afterwards (``leap-rl status --html``)."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from leap_rl.config import Config
from leap_rl.files.html_page import html_page
from leap_rl.files.storage import open_storage
from leap_rl.files.text import as_text, printable
from leap_rl.files.yaml_files import dump_yaml
from leap_rl.measures import Measures
from leap_rl.processes import process_of
from leap_rl.runs.figures import Figure, label, new_figure, render_png, styled
from leap_rl.runs.run_files import INITIALIZATION, parse_initialization, read_metrics, versions_of
from leap_rl.runs.status import Status, describe_status

REFRESH_SECONDS = 10


def status_page(status: Status, config: Config, watched: bool) -> str:
    """Returns the page: how the run stands, its curves, configuration and versions. ``watched``: it will be written
    again, so a browser is to look at it again."""
    measures = process_of(config).measures
    rows = read_metrics(status.run)
    steps, tasks = ([row for row in rows if row["kind"] == kind] for kind in ("meta_step", "task"))
    first, *lines = describe_status(status, config).splitlines()
    text = [f"# {as_text(first)}", "", *(f"    {line}" for line in lines), ""]
    if steps:
        text += ["![path length and scores by meta-step](curves.png)", ""]
    pictures = {"curves.png": render_png(meta_training_curves(steps, tasks, measures))} if steps else {}
    storage = open_storage(status.run)
    versions = {}
    if INITIALIZATION in storage.names():
        versions = versions_of(parse_initialization(storage.read(INITIALIZATION), status.run)[1])
    appendix = {
        "Configuration": dump_yaml(config.model_dump()),
        "Versions": "\n".join(printable(f"{name} {number}") for name, number in sorted(versions.items())),
    }
    return html_page(status.run, "\n".join(text), pictures, appendix, REFRESH_SECONDS if watched else None)


@styled
def meta_training_curves(
    steps: Sequence[Mapping[str, Any]], tasks: Sequence[Mapping[str, Any]], measures: Measures
) -> Figure:
    """Draws the path length, which Leap makes shorter, and each task's score, against the meta-step."""
    figure = new_figure(9, 3.2)
    left, right = figure.subplots(1, 2)
    lengths = [row.get("path_length", math.nan) for row in steps]
    left.plot([row["meta_step"] for row in steps], lengths, "o-", color="C0", markersize=3)
    left.set_title("path length, mean over the tasks")
    names = sorted({row.get("game") or "–" for row in tasks})
    for name in names:
        points = [(row["meta_step"], row.get(measures.score)) for row in tasks if (row.get("game") or "–") == name]
        right.plot(*zip(*points, strict=True), "o-", markersize=3, label=label(name))
    right.set_title(f"{measures.score_text} of each {measures.task}, mean over a task")
    for axis in (left, right):
        axis.set_xlabel("meta-step")
        axis.xaxis.get_major_locator().set_params(integer=True)
    if 0 < len(names) <= 12:
        right.legend(fontsize=7)
    return figure

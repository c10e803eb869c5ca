"""Writes the report of an evaluation, Markdown and figures, from evaluation.json, curves.csv and probes.json only."""

import sys
from pathlib import Path

from leap_rl.evaluation.analysis import Analysis, analyse, measures_of
from leap_rl.evaluation.evaluate import read_description
from leap_rl.evaluation.results import read_curves, read_probes
from leap_rl.evaluation.sections import CLIP, lines
from leap_rl.extras import require_extra
from leap_rl.files.html_page import html_page
from leap_rl.files.storage import LocalStorage, open_storage
from leap_rl.runs.run_files import CONFIG, VERSIONS

REPORT, PAGE = "report.md", "report.html"


def write_report(url: str) -> Analysis:
    """Writes report.md, its figures, report.html with all of it, and TensorBoard runs into an evaluation's directory.
    Raises BadInputError.

    A figure that cannot be drawn is left out, with a line on stderr.
    """
    require_extra("report", "a report")
    storage = open_storage(url)
    description = read_description(storage)
    analysis, probes = analyse(description, read_curves(storage, measures_of(description))), read_probes(storage)
    matrices = {arm: entry for arm, entry in probes.get("cosines", {}).items() if entry["games"]}
    names = [
        *(("learning_curves", "paths") if analysis.games else ()),
        *(("over_games",) if analysis.counted else ()),
        *(("heat_maps",) if matrices else ()),
    ]
    drawn: dict[str, bytes] = {}
    for name in names:
        try:
            from leap_rl.evaluation import figures

            figure = getattr(figures, name)(matrices if name == "heat_maps" else analysis)
            rendered = figures.render(figure)
        except Exception as error:
            _leave_out(f"{url}/{name}.png", error)
            continue
        drawn[f"{name}.png"] = rendered["png"]
        for suffix, data in rendered.items():
            storage.write(f"{name}.{suffix}", data)
    try:
        from leap_rl.evaluation.clip import report_clip

        clip = report_clip(storage, description)
        if clip is not None:
            drawn[CLIP] = clip
            storage.write(CLIP, clip)
    except Exception as error:
        _leave_out(f"{url}/{CLIP}", error)
    text = "\n".join(lines(description, analysis, probes, {name.removesuffix(".png") for name in drawn}))
    storage.write(REPORT, (text.rstrip() + "\n").encode(errors="replace"))
    texts = {"Configuration of every task": CONFIG, "Versions": VERSIONS}
    known = storage.names()
    appendix = {title: storage.read(name).decode(errors="replace") for title, name in texts.items() if name in known}
    storage.write(PAGE, html_page(url, text, drawn, appendix).encode(errors="replace"))
    if isinstance(storage, LocalStorage):
        try:
            from leap_rl.evaluation.tensorboard import write_tensorboard

            write_tensorboard(analysis, probes, Path(url))
        except Exception as error:
            _leave_out(f"{url}/tensorboard", error)
    return analysis


def _leave_out(what: str, error: Exception) -> None:
    reason = " ".join(str(error).split()) or type(error).__name__
    print(f"{what}: {reason}; left out of the report", file=sys.stderr)

"""The report of an evaluation: Markdown and figures, from evaluation.json, curves.csv and probes.json alone."""

import importlib.util
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from leap_rl.evaluation.analysis import Analysis, analyse, measures_of
from leap_rl.evaluation.evaluate import read_description
from leap_rl.evaluation.results import read_curves, read_probes
from leap_rl.evaluation.scores import scale
from leap_rl.evaluation.statistics import Estimate
from leap_rl.measures import Measures
from leap_rl.storage import LocalStorage, open_storage
from leap_rl.streaming import RANDOM_ARM
from leap_rl.types import BadInputError

REPORT = "report.md"


def check_figures() -> None:
    """Raises BadInputError where matplotlib, an extra, is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise BadInputError("the figures of a report need matplotlib: pip install 'leap-rl[report]'")


def write_report(url: str) -> Analysis:
    """Writes report.md, its figures and TensorBoard runs into an evaluation's directory. Raises BadInputError."""
    check_figures()
    from leap_rl.evaluation import figures
    from leap_rl.evaluation.tensorboard import write_tensorboard

    storage = open_storage(url)
    description = read_description(storage)
    analysis, probes = analyse(description, read_curves(storage, measures_of(description))), read_probes(storage)
    shown = {arm: entry for arm, entry in probes.get("cosines", {}).items() if entry["games"]}
    drawn: dict[str, Any] = {}
    if analysis.games:
        drawn |= {name: getattr(figures, name)(analysis) for name in ("learning_curves", "over_games", "paths")}
    if shown:
        drawn["heat_maps"] = figures.heat_maps(shown)
    for name, figure in drawn.items():
        for suffix, data in figures.render(figure).items():
            storage.write(f"{name}.{suffix}", data)
    text = "\n".join(_lines(description, analysis, probes, set(drawn)))
    storage.write(REPORT, (text.rstrip() + "\n").encode())
    if isinstance(storage, LocalStorage):
        write_tensorboard(analysis, probes, Path(url))
    return analysis


def _lines(description: dict[str, Any], analysis: Analysis, probes: dict[str, Any], figures: set[str]) -> Iterator[str]:
    measures = analysis.measures
    yield "# Training from an initialization, and from a random one"
    yield ""
    lasts = [curve for curves in analysis.curves.values() for curve in curves][:1]
    steps = "".join(
        f", {last.agent_steps[-1]:,.0f} {measures.step} ({last.frames[-1]:,.0f} {measures.frame}) a task"
        for last in lasts
    )
    yield (
        f"{len(description['games'])} {measures.task}(s), {description['num_seeds']} seed(s){steps}. The arms differ "
        f"in the initial weights that are meta-learned and in nothing else: a seed has the same {measures.paired} "
        "in each."
    )
    yield ""
    yield from _table(
        ["arm", "initialization", "fingerprint", "meta-steps"],
        [
            [arm["name"], arm["source"], arm["fingerprint"][:16] or "–", _text(arm["meta_steps"])]
            for arm in description["arms"]
        ],
        left=3,
    )
    yield from _notes(description, analysis)
    if not analysis.games:
        ended = "every arm finished" if measures.natural_scale else "an episode ended in every arm"
        yield f"Nothing can be compared yet: in no {measures.task} has {ended}."
        return
    yield from _over_games(analysis, figures)
    yield from _harmed(analysis)
    yield from _by_game(analysis, figures)
    yield from _paths(analysis, figures)
    yield from _probes(probes, figures, measures)
    yield from _method(measures)


def _notes(description: dict[str, Any], analysis: Analysis) -> Iterator[str]:
    tasks = analysis.measures.tasks
    notes = [f"Not there: {line}." for line in analysis.missing]
    if analysis.num_seeds == 1:
        notes.append("**One seed only: no intervals.** Nothing below tells an effect from chance.")
    elif analysis.num_seeds == 2:
        notes.append(
            f"Two seeds only: intervals over {tasks} are too narrow (in simulations without an effect they cover 76 to "
            "83 %, not 95 %). Three seeds are enough for the intervals to mean what they say."
        )
    for arm in description["arms"]:
        seen = [game for game in description["games"] if game in arm["trained_on"]]
        if seen:
            notes.append(f"Not held out: {arm['name']} was meta-trained on {', '.join(seen)}.")
        if arm["trained_with"]:
            notes.append(
                f"Evaluated otherwise than {arm['name']} was meta-trained, which had {', '.join(arm['trained_with'])}."
            )
    raw = [game for game in analysis.games if scale(analysis.measures, game) is None]
    if raw:
        notes.append(
            f"Reported raw, since the table of random and human scores has no entry: {', '.join(raw)}. "
            "They are left out of interquartile means, not of probabilities."
        )
    left = [game for game in analysis.games if game not in analysis.counted]
    if left:
        notes.append(f"Left out of everything over {tasks}, since seeds are missing: {', '.join(left)}.")
    if notes:
        yield from (f"* {note}" for note in notes)
        yield ""


def _over_games(analysis: Analysis, figures: set[str]) -> Iterator[str]:
    measures = analysis.measures
    unit = "accuracies" if measures.natural_scale else "human-normalized (0 random play, 1 human)"
    yield f"## Over all {measures.tasks}"
    yield ""
    rows = []
    for arm in analysis.arms:
        entry = analysis.aggregates[arm]
        itself = arm == RANDOM_ARM
        rows.append([
            arm, _shown(entry.final, 3), _shown(entry.area, 3),
            *("–" if itself else _shown(estimate, 3) for estimate in (entry.final_difference, entry.area_difference)),
            *("–" if itself else _shown(estimate, 2) for estimate in (entry.final_better, entry.area_better)),
            f"{entry.path_ratio:.2f}", f"{entry.energy_ratio:.2f}",
        ])  # fmt: skip
    yield from _table(
        ["arm", "final score (IQM)", "area (IQM)", "final − random's", "area − random's", "P(final better)",
         "P(area better)", "path length", "energy"],
        rows,
    )  # fmt: skip
    yield (
        f"Scores are {unit}: interquartile means over seeds and {measures.tasks}, with 95 % intervals. P: how often "
        "a run beats one of the random arm; 0.5 is no difference. Path length and energy: multiples of the random "
        f"arm's, geometric mean over {measures.tasks}; what Leap descends. A shorter path is not yet faster learning: "
        "read both."
    )
    yield ""
    if "over_games" in figures:
        yield f"![over all {measures.tasks}](over_games.png)"
        yield ""


def _harmed(analysis: Analysis) -> Iterator[str]:
    yield f"## {analysis.measures.tasks.capitalize()} that were harmed"
    yield ""
    for arm in analysis.arms:
        if arm == RANDOM_ARM:
            continue
        below = analysis.harmed(arm)
        sure = [result.game for result, certain in below if certain]
        unsure = [result.game for result, certain in below if not certain]
        yield (
            f"* **{arm}**: " + (", ".join(sure) if sure else "none whose interval lies below the random arm")
            + (f"; lower on the mean, the interval including no difference: {', '.join(unsure)}" if unsure else "")
        )  # fmt: skip
    yield ""
    yield (
        "By final score or by area, each at 95 %: with two looks at each, about one in twenty would be listed by "
        "chance alone."
    )
    yield ""


def _by_game(analysis: Analysis, figures: set[str]) -> Iterator[str]:
    measures = analysis.measures
    yield f"## {measures.task.capitalize()} by {measures.task}"
    yield ""
    if "learning_curves" in figures:
        yield "![learning curves](learning_curves.png)"
        yield ""
        yield (
            f"Mean over seeds of the {measures.score_text}, each point over {measures.counts[1]} of the tenth of "
            "training that ends there; shaded: its 95 % interval."
        )
        yield ""
    rows = []
    for game in analysis.games:
        for arm in analysis.arms:
            result = analysis.results[arm, game]
            itself = arm == RANDOM_ARM
            reached = f"{result.steps_to_target:,.0f}" if result.steps_to_target else "never"
            speedup = f"{result.speedup:.2f}" if result.speedup else "–"
            human = "raw" if result.human_normalized is None else f"{result.human_normalized:.3f}"
            learned = analysis.results[RANDOM_ARM, game].steps_to_target is not None
            digits = 3 if measures.natural_scale else None
            rows.append([
                game if itself else "", arm, _shown(result.final, digits),
                *(() if measures.natural_scale else (human,)), _shown(result.area, digits),
                *("–" if itself else _shown(difference, digits)
                  for difference in (result.final_difference, result.area_difference)),
                f"{reached} ({result.seeds_at_target}/{result.num_seeds})" if learned else "–", speedup,
            ])  # fmt: skip
    yield from _table(
        [measures.task, "arm", "final score", *(() if measures.natural_scale else ("human-norm.",)), "area",
         "final − random's", "area − random's", "steps to random's last", "speed-up"],
        rows, left=2,
    )  # fmt: skip
    yield (
        f"Means over seeds of {'accuracies' if measures.natural_scale else 'raw scores'}, with Student's t intervals; "
        "differences are paired by seed. Steps: until the mean curve is where the random arm's is over the last tenth "
        "of training (in brackets: how many seeds get there on their own); speed-up: the random arm's steps to it, "
        "over this arm's, without an interval. – : the random arm ended no higher than it began, so there is nothing "
        "to be faster at."
    )
    yield ""


def _paths(analysis: Analysis, figures: set[str]) -> Iterator[str]:
    yield "## The path: what Leap descends"
    yield ""
    if "paths" in figures:
        yield "![path length and energy](paths.png)"
        yield ""
    rows = []
    for game in analysis.games:
        for arm in analysis.arms:
            result = analysis.results[arm, game]
            rows.append([
                game if arm == RANDOM_ARM else "", arm, _shown(result.path_length), _shown(result.energy),
                f"{result.path_ratio:.2f}", f"{result.loss_rise_share:.1%}", f"{result.gain_per_path:.3g}",
            ])  # fmt: skip
    yield from _table(
        [analysis.measures.task, "arm", "path length", "energy", "× random's length", "loss rose", "gain per path"],
        rows,
        left=2,
    )
    yield (
        "Through parameters and loss, as the paper measures it, for every arm alike. Loss rose: share of moves, where "
        f"the stabilizer acts. Gain per path: mean {analysis.measures.score_text} of the last tenth of training above "
        "the random arm's in its first tenth, per unit of path length."
    )
    yield ""


def _probes(probes: dict[str, Any], figures: set[str], measures: Measures) -> Iterator[str]:
    if "heat_maps" in figures:
        yield f"## Do the {measures.tasks} pull the same way?"
        yield ""
        yield "![cosines between increments](heat_maps.png)"
        yield ""
        yield (
            f"Cosine between the meta-gradients (energy, with the loss term) of the tasks of two {measures.tasks}, "
            "from each arm's initialization: +1 they help each other, −1 they undo each other. On the diagonal: two "
            f"seeds of one {measures.task}, the most that two {measures.tasks} can agree; – with one seed."
        )
        yield ""
    drift: dict[str, dict[str, float]] = probes.get("drift", {})
    if drift:
        layers = list(next(iter(drift.values())))
        yield "## How far meta-training moved the initialization"
        yield ""
        rows = [[layer, *(f"{drift[arm].get(layer, math.nan):.4f}" for arm in drift)] for layer in layers]
        yield from _table(["layer", *drift], rows)
        yield "‖now − first‖ / ‖first‖ of each tensor; of biases, which start at 0, the distance itself."
        yield ""


def _method(measures: Measures) -> Iterator[str]:
    table = "" if measures.natural_scale else " Random and human scores: Wang et al. 2016."
    yield "## Method"
    yield ""
    yield (
        f"Final score: {measures.final_text}. Area: mean {measures.score_text} over {measures.step}, i.e. the area "
        f"under the learning curve divided by its length. Over {measures.tasks}: Agarwal et al. 2021 (interquartile "
        f"mean, probability of improvement, bootstrap stratified by {measures.task}, 10,000 replicates, seeded), with "
        f"percentiles moved outwards for few seeds (Hesterberg 2015).{table}"
    )
    yield ""


def _text(value: object) -> str:
    return "–" if value is None else str(value)


def _shown(estimate: Estimate | None, digits: int | None = None) -> str:
    """value [low, high]"""
    if estimate is None:
        return "–"
    numbers = [number for number in estimate if number is not None]
    texts = [_number(number, numbers) if digits is None else f"{number:.{digits}f}" for number in numbers]
    return texts[0] + (f" [{texts[1]}, {texts[2]}]" if len(texts) == 3 else "")


def _number(number: float, scale: Sequence[float]) -> str:
    """With as many decimals as the largest of ``scale`` leaves room for."""
    largest = max(abs(other) for other in scale)
    return f"{number:,.{0 if largest >= 1000 else 1 if largest >= 10 else 2}f}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> Iterator[str]:
    yield "| " + " | ".join(header) + " |"
    yield "|" + "|".join("---" if index < left else "--:" for index in range(len(header))) + "|"
    yield from ("| " + " | ".join(row) + " |" for row in rows)
    yield ""

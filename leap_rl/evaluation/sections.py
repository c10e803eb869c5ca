"""Writes the text of a report, in Markdown: the first page, and the sections after it."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from leap_rl.evaluation.analysis import Analysis
from leap_rl.evaluation.arms import RANDOM_ARM
from leap_rl.evaluation.first_page import first_page, has_zero_shot, verdicts
from leap_rl.evaluation.markdown import shown, table
from leap_rl.evaluation.scores import scale
from leap_rl.evaluation.statistics import Estimate
from leap_rl.files.text import as_text
from leap_rl.measures import Measures

CLIP = "clip.gif"


def lines(description: dict[str, Any], analysis: Analysis, probes: dict[str, Any], figures: set[str]) -> Iterator[str]:
    """Yields the lines of a report, which shows those of its ``figures`` that could be drawn, given by name."""
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
        f"only in the initial values of the meta-learned weights: a seed has the same {measures.paired} in each."
        + (" A frozen arm trains only its heads." if any(arm["frozen"] for arm in description["arms"]) else "")
    )
    yield ""
    if not analysis.games:
        yield from _notes(description, analysis)
        ended = "every arm finished" if measures.natural_scale else "an episode ended in every arm"
        yield f"Nothing can be compared yet: on no {measures.task} has {ended}."
        yield ""
        yield from _clip(description, measures, figures)
        return
    yield from verdicts(analysis)
    yield from first_page(analysis, figures)
    yield from _clip(description, measures, figures)
    yield from _notes(description, analysis)
    yield from _arms(description)
    yield from _by_game(analysis)
    yield from _over_games(analysis, figures)
    yield from _harmed(analysis)
    yield from _paths(analysis, figures)
    yield from _probes(probes, figures, measures)
    yield from _method(analysis)


def _clip(description: dict[str, Any], measures: Measures, figures: set[str]) -> Iterator[str]:
    if CLIP in figures:
        game, arm = description["games"][0], description["arms"][1]["name"]
        yield f"![{as_text(arm)} beside a random start at play]({CLIP})"
        yield ""
        yield (
            f"Play of {as_text(game)} after all of training, from a random start and from {as_text(arm)}: of the first "
            f"{measures.task} and the first seed, whatever they show."
        )
        yield ""


def _arms(description: dict[str, Any]) -> Iterator[str]:
    yield "## Arms"
    yield ""
    yield from table(
        ["arm", "initialization", "fingerprint", "meta-steps"],
        [
            [arm["name"], arm["source"], arm["fingerprint"][:16] or "–", _text(arm["meta_steps"])]
            for arm in description["arms"]
        ],
        left=3,
    )


def _notes(description: dict[str, Any], analysis: Analysis) -> Iterator[str]:
    tasks = analysis.measures.tasks
    notes = [f"Missing: {as_text(line)}." for line in analysis.missing]
    if analysis.num_seeds == 1:
        notes.append("**One seed only: no intervals.** Nothing below tells an effect from chance.")
    elif analysis.num_seeds == 2:
        notes.append(
            f"Two seeds only: intervals over {tasks} are a little too narrow, and fewer than six {tasks} have none. "
            "Three seeds on three of them are enough."
        )
    for arm in description["arms"]:
        seen, name = [game for game in description["games"] if game in arm["trained_on"]], as_text(arm["name"])
        if seen:
            notes.append(f"Not held out: {name} was meta-trained on {_listed(seen)}.")
        if arm.get("fresh_heads"):
            notes.append(f"{name} has no heads for {_listed(arm['fresh_heads'])}; these start with fresh heads.")
        if arm["trained_with"]:
            notes.append(
                f"The evaluation trains differently from the meta-training of {name}, which had "
                f"{_listed(arm['trained_with'])}."
            )
    raw = [game for game in analysis.games if scale(analysis.measures, game) is None]
    if _is_scaled(analysis) and raw:
        notes.append(
            f"Reported raw, since the table of random and human scores has no entry: {_listed(raw)}. "
            "They are left out of interquartile means, but not of probabilities."
        )
    left = [game for game in analysis.games if game not in analysis.counted]
    if left:
        notes.append(f"Left out of all numbers over {tasks}, since seeds are missing: {_listed(left)}.")
    if notes:
        yield from (f"* {note}" for note in notes)
        yield ""


def _is_scaled(analysis: Analysis) -> bool:
    """Returns whether there is a scale that tasks have in common, so that scores of several can be one number."""
    return any(scale(analysis.measures, game) for game in analysis.games)


def _over_games(analysis: Analysis, figures: set[str]) -> Iterator[str]:
    measures = analysis.measures
    is_scaled = _is_scaled(analysis)
    natural = f"{measures.score_text}, from 0 to 1"
    unit = natural if measures.natural_scale else "human-normalized (0 random play, 1 human)"
    yield f"## Over all {measures.tasks}"
    yield ""
    rows = []
    for arm in analysis.arms:
        entry = analysis.aggregates[arm]
        itself = arm == RANDOM_ARM
        differences = (entry.final_difference, entry.area_difference)
        means = [shown(entry.final, 3), shown(entry.area, 3),
                 *("–" if itself else shown(estimate, 3) for estimate in differences)]  # fmt: skip
        rows.append([
            arm, *(means if is_scaled else ()),
            *("–" if itself else shown(estimate, 2) for estimate in (entry.final_better, entry.area_better)),
            f"{entry.path_ratio:.2f}", f"{entry.energy_ratio:.2f}",
        ])  # fmt: skip
    means = ["final score (IQM)", "area (IQM)", "final − random's", "area − random's"] if is_scaled else []
    header = ["arm", *means, "P(final better)", "P(area better)", "path length", "energy"]
    yield from table(header, rows)
    scores = f"Scores are {unit}: interquartile means (IQM) over seeds and {measures.tasks}, with 95 % intervals. "
    yield (
        f"{scores if is_scaled else ''}P: the "
        "probability that a run beats one of the random arm; 0.5 is no difference. Path length and energy, which Leap "
        f"minimizes, are multiples of the random arm's: geometric means over {measures.tasks}. A shorter path is not "
        "yet faster learning, so look at both."
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
            f"* **{as_text(arm)}**: " + (_listed(sure) if sure else "none whose interval lies below the random arm")
            + (f"; lower in the mean, but the interval includes no difference: {_listed(unsure)}" if unsure else "")
        )  # fmt: skip
    yield ""
    yield (
        "By final score or by area, each at 95 %. With these two comparisons about one in twenty would be listed by "
        "chance alone."
    )
    yield ""


def _by_game(analysis: Analysis) -> Iterator[str]:
    measures = analysis.measures
    digits = 3 if measures.natural_scale else None
    has_human = _is_scaled(analysis) and not measures.natural_scale
    before = has_zero_shot(analysis)
    soon, high = [], []
    for game in analysis.games:
        for arm in analysis.arms:
            result = analysis.results[arm, game]
            itself = arm == RANDOM_ARM
            reached = f"{result.steps_to_target:,.0f}" if result.steps_to_target else "never"
            human = "raw" if result.human_normalized is None else f"{result.human_normalized:.3f}"

            def difference(estimate: Estimate, itself: bool = itself) -> str:
                return "–" if itself else shown(estimate, digits)

            name = [game if itself else "", arm]
            soon.append([
                *name, *((shown(result.zero_shot, digits),) if before else ()), shown(result.head_start, digits),
                difference(result.head_start_difference), f"{reached} ({result.seeds_at_target}/{result.num_seeds})",
                "–" if itself else shown(result.speedup, 2),
            ])  # fmt: skip
            high.append([
                *name, shown(result.final, digits), *((human,) if has_human else ()),
                difference(result.final_difference), shown(result.area, digits), difference(result.area_difference),
            ])  # fmt: skip
    yield f"## How soon, {measures.task} by {measures.task}"
    yield ""
    test = "one-sided t test, 5 %" if analysis.num_seeds > 2 else "not above 0; too few seeds for a test"
    yield from table(
        [measures.task, "arm", *(("before any update",) if before else ()), "first tenth", "− random's",
         "steps to random's last", "speed-up"],
        soon, left=2,
    )  # fmt: skip
    yield (
        f"Steps: until the mean curve first reaches the random arm's {measures.target_text} (in brackets: how many "
        "single seeds reach it). If an arm never does, its speed-up is at most 1, taken at its own highest "
        f"{measures.score_text}. – : the random arm's gain is not certain ({test}), so there is nothing to be faster "
        "at."
    )
    yield ""
    yield f"## How high, {measures.task} by {measures.task}"
    yield ""
    yield from table(
        [measures.task, "arm", "final score", *(("human-norm.",) if has_human else ()), "− random's",
         "area", "− random's"],
        high, left=2,
    )  # fmt: skip
    scored = measures.score_text if measures.natural_scale else "raw scores"
    yield f"Mean {scored} over seeds, with Student's t intervals; differences are paired by seed."
    yield ""


def _paths(analysis: Analysis, figures: set[str]) -> Iterator[str]:
    yield "## The path, which Leap shortens"
    yield ""
    if "paths" in figures:
        yield "![path length and energy](paths.png)"
        yield ""
    rows = []
    for game in analysis.games:
        for arm in analysis.arms:
            result = analysis.results[arm, game]
            rows.append([
                game if arm == RANDOM_ARM else "", arm, shown(result.path_length), shown(result.energy),
                f"{result.path_ratio:.2f}", f"{result.loss_rise_share:.1%}", f"{result.gain_per_path:.3g}",
            ])  # fmt: skip
    yield from table(
        [analysis.measures.task, "arm", "path length", "energy", "× random's length", "loss rose", "gain per path"],
        rows,
        left=2,
    )
    yield (
        "The path runs through parameters and loss, as in the paper, and is measured in the same way for every arm. "
        "Loss rose: share of moves on which the loss rose, where the stabilizer acts. Gain per path: mean "
        f"{analysis.measures.score_text} of the last tenth of training, less that of the random arm's first tenth, per "
        "unit of path length."
    )
    yield ""


def _probes(probes: dict[str, Any], figures: set[str], measures: Measures) -> Iterator[str]:
    if "heat_maps" in figures:
        yield f"## Do the {measures.tasks} pull in the same direction?"
        yield ""
        yield "![cosines between increments](heat_maps.png)"
        yield ""
        yield (
            f"Cosine between the meta-gradients (energy, with the loss term) of tasks on two {measures.tasks}, from "
            "each arm's initialization: at +1 they help each other, at −1 they undo each other. The diagonal compares "
            f"two seeds of one {measures.task}, which is the most that two {measures.tasks} can agree; – with one seed."
        )
        yield ""
    drift: dict[str, dict[str, float]] = probes.get("drift", {})
    if drift:
        layers = list(next(iter(drift.values())))
        yield "## How far meta-training moved the initialization"
        yield ""
        rows = [[layer, *(f"{drift[arm].get(layer, math.nan):.4f}" for arm in drift)] for layer in layers]
        yield from table(["layer", *drift], rows)
        yield "‖now − first‖ / ‖first‖ of each tensor; for biases, which start at 0, the distance itself."
        yield ""


def _method(analysis: Analysis) -> Iterator[str]:
    measures, is_scaled = analysis.measures, _is_scaled(analysis)
    table = " Random and human scores: Wang et al. 2016." if is_scaled and not measures.natural_scale else ""
    means = "interquartile mean, " if is_scaled else ""
    yield "## Method"
    yield ""
    yield (
        f"Final score: {measures.final_text}. Area: mean {measures.score_text} over {measures.step}, i.e. the area "
        f"under the learning curve divided by its length. Numbers over {measures.tasks} follow Agarwal et al. 2021 "
        f"({means}probability of improvement, bootstrap stratified by {measures.task}, 10,000 replicates, "
        "seeded), with percentiles moved outwards for few seeds (Hesterberg 2015). Speed-ups are those of mean curves, "
        f"with the geometric mean over {measures.tasks}; their bootstrap draws the seeds of both arms together.{table}"
    )
    yield ""


def _listed(names: Sequence[str]) -> str:
    """Returns names that may come from elsewhere, with commas between them."""
    return ", ".join(map(as_text, names))


def _text(value: object) -> str:
    return "–" if value is None else str(value)

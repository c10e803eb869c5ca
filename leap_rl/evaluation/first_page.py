"""Writes the first page of a report, which says whether each arm helps: a sentence for each, one picture, one table."""

from collections.abc import Iterator

from leap_rl.evaluation.analysis import Analysis
from leap_rl.evaluation.arms import RANDOM_ARM
from leap_rl.evaluation.markdown import shown, table
from leap_rl.evaluation.statistics import Estimate
from leap_rl.files.text import as_text


def verdicts(analysis: Analysis) -> Iterator[str]:
    """Yields a sentence or two for each arm that say whether it helps: by speed, or by mean scores where the random arm
    learns on less than half of the tasks, so that there is hardly anything to be faster at, or where seeds are too few
    for an interval of the speed."""
    measures = analysis.measures
    by_speed = 2 * len(analysis.learned) >= len(analysis.counted)
    if not analysis.learned:
        yield (
            f"**Nothing can be said about speed:** on no {measures.task} did the random arm's {measures.score_text} "
            f"certainly rise, so there is nothing to be faster at. More {measures.step} or more seeds are needed."
        )
        yield ""
    for arm in analysis.arms:
        if arm == RANDOM_ARM:
            continue
        speed, better = analysis.aggregates[arm].speedup, analysis.aggregates[arm].area_better
        if by_speed and speed and speed.low is not None:
            verdict, told = _verdict(speed, 1, "it helps", "it hurts", analysis), _by_speed(analysis, arm)
        elif better:
            estimate, neutral, told = better, 0.5, _by_area(analysis, better)
            if len(analysis.counted) == 1:
                estimate, neutral = analysis.results[arm, analysis.counted[0]].area_difference, 0
                told = _by_difference(analysis, estimate)
            verdict = _verdict(estimate, neutral, "scores are higher", "scores are lower", analysis)
            told += f" {_by_speed(analysis, arm)}" if speed else ""
        else:
            continue
        worse = [as_text(result.game) for result, certain in analysis.harmed(arm) if certain]
        lower = f" It is worse than random on {', '.join(worse)}." if worse else ""
        yield f"* **{as_text(arm)}: {verdict}.** {told}{lower}"
    yield ""


def _verdict(estimate: Estimate, neutral: float, good: str, bad: str, analysis: Analysis) -> str:
    if analysis.num_seeds < 3:
        return f"{('one seed', 'two seeds')[analysis.num_seeds - 1]} cannot tell whether it helps"
    if estimate.low is None or estimate.high is None:
        tasks = f"{len(analysis.counted)} {analysis.measures.tasks}"
        return f"{analysis.num_seeds} seeds of {tasks} cannot tell whether it helps"
    return good if estimate.low > neutral else bad if estimate.high < neutral else "no difference shown"


def _interval(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return ""
    return f" (95 % interval {estimate.low:.2g} to {estimate.high:.2g})"


def _by_speed(analysis: Analysis, arm: str) -> str:
    aggregate, number = analysis.aggregates[arm], len(analysis.learned)
    assert aggregate.speedup is not None, "the random arm learned something"
    factor = f"{aggregate.speedup.value:.2g} times as fast{_interval(aggregate.speedup)}"
    if aggregate.num_reached:
        return (
            f"The random arm's {analysis.measures.target_text} is reached {factor}, on {aggregate.num_reached} of "
            f"{number} {analysis.measures.tasks}."
        )
    return f"The random arm's {analysis.measures.target_text} is never reached; its own highest is reached {factor}."


def _by_difference(analysis: Analysis, difference: Estimate) -> str:
    mean, interval = f"The task's mean {analysis.measures.score_text}", _interval(difference)
    return f"{mean} less that of the random arm is {difference.value:.2g}{interval}."


def _by_area(analysis: Analysis, better: Estimate) -> str:
    measures = analysis.measures
    return (
        f"A task's mean {measures.score_text} is higher than the random arm's with probability "
        f"{better.value:.2g}{_interval(better)}, over {len(analysis.counted)} {measures.tasks}."
    )


def first_page(analysis: Analysis, figures: set[str]) -> Iterator[str]:
    """Yields the picture of all curves, and the table of all arms over the tasks that the random arm learned."""
    measures = analysis.measures
    if "learning_curves" in figures:
        yield "![learning curves](learning_curves.png)"
        yield ""
        yield (
            f"Learning curves: mean {measures.score_text} over seeds. Each point is over the {measures.counts[1]} "
            "of the tenth of training that ends there; shaded: its 95 % interval, as far as it fits. The thin line is "
            f"the random arm's {measures.target_text}, and a dot marks where an arm first reaches it."
            + (" A diamond at 0 is play before any update." if has_zero_shot(analysis) else "")
        )
        yield ""
    if not analysis.learned:
        return
    before = has_zero_shot(analysis)
    rows = []
    for arm in analysis.arms:
        entry = analysis.aggregates[arm]
        untrained = (shown(entry.gain_zero_shot, 2),) if before else ()
        if arm == RANDOM_ARM:  # by definition
            rows.append([arm, *untrained, "0", "1", shown(entry.gain_area, 2), "1"])
        else:
            numbers = (entry.gain_head_start, entry.speedup, entry.gain_area, entry.gain_final)
            rows.append([arm, *untrained, *(shown(number, 2) for number in numbers)])
    head_start = (*(("before any update",) if before else ()), "first tenth")
    yield from table(["arm", *head_start, "speed-up", "area", "last tenth"], rows)
    number, tasks = len(analysis.learned), measures.task if len(analysis.games) == 1 else measures.tasks
    over = f"over {number} of {len(analysis.games)} {tasks}"
    if number < len(analysis.games):
        learns = "certainly learns" if analysis.num_seeds > 2 else "learns in the mean"
        over += f", those on which the random arm {learns}: {', '.join(map(as_text, analysis.learned))}"
    yield (
        f"Speed-up: the random arm's {measures.step} to its {measures.target_text}, divided by this arm's to the same. "
        "The other columns are on the scale of the random arm's gain: 0 is its first tenth of training, and 1 where it "
        f"ends. All are taken {over}; in brackets are 95 % intervals, where the seeds are enough for one."
    )
    yield ""


def has_zero_shot(analysis: Analysis) -> bool:
    """Returns whether play before any update was measured."""
    return any(result.zero_shot is not None for result in analysis.results.values())

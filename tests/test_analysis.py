"""The numbers of an evaluation that is small enough to be worked out by hand."""

from dataclasses import replace

import pytest

from leap_rl.evaluation.analysis import analyse
from leap_rl.evaluation.first_page import first_page, verdicts
from tests.test_evaluation import curve, describe

# On breakout and alien returns are written as human-normalized scores: 0 is random play and 1 is human play.
PLAY = {"breakout": (1.7, 30.5), "alien": (227.8, 7127.7), "air_raid": (0.0, 1.0)}
ZERO_SHOT = {"random": 0.0, "leap": 0.2}
RETURNS = {
    "breakout": {"random": [i / 9 for i in range(10)], "leap": [0.8] * 5 + [0.4] * 5},  # area 0.5 and 0.6
    "alien": {"random": [0.5] * 10, "leap": [0.0] * 9 + [1.0]},  # area 0.5 and 0.1
    "air_raid": {"random": [5] * 10, "leap": [4, *[5] * 8, 6]},  # area 5 and 5
}


@pytest.fixture(name="analysis", scope="module")
def analysis_by_hand():
    """An arm that is better in area and worse in the final score, or the other way round; five equal seeds. A tenth of
    training is one point, and the random arm learns on breakout alone. Energies are squares of path lengths."""
    description, curves = describe(num_seeds=5), []
    for game, (random, human) in PLAY.items():
        for arm, length in (("random", 10), ("leap", 5)):
            raw = [random + (human - random) * value for value in (ZERO_SHOT[arm], *RETURNS[game][arm])]
            for seed in range(description["num_seeds"]):
                learned = curve(raw[1:], arm=arm, game=game, seed=seed, length=length)
                curves.append(replace(learned, zero_shot=raw[0]))
    return analyse(description, curves)


def test_a_game_is_harmed_if_its_final_score_or_its_area_is_lower(analysis):
    harmed = [(result.game, certain) for result, certain in analysis.harmed("leap")]
    assert harmed == [("breakout", True), ("alien", True)], "lower in the final score; in area"
    assert analysis.results["leap", "breakout"].area_difference.sign == 1
    assert analysis.results["leap", "alien"].final_difference.sign == 1


def test_lengths_and_energies_are_compared_each_with_its_own(analysis):
    for entry in (analysis.results["leap", "breakout"], analysis.aggregates["leap"]):
        assert (entry.path_ratio, entry.energy_ratio) == pytest.approx((0.5, 0.25))


def test_scores_over_games_are_human_normalized_and_each_is_of_its_own_measure(analysis):
    """Ten scores, five a game, less the two lowest and the two highest: the mean of both games."""
    random, leap = analysis.aggregates["random"], analysis.aggregates["leap"]
    assert (random.final.value, random.area.value) == pytest.approx((0.75, 0.5))
    assert (leap.final.value, leap.area.value) == pytest.approx((0.7, 0.35))
    assert (leap.final_difference.value, leap.area_difference.value) == pytest.approx((-0.05, -0.15))
    assert leap.final_better.value == pytest.approx(2 / 3), "on alien and air_raid"
    assert leap.area_better.value == pytest.approx(1 / 2), "on breakout; equal on air_raid"


def test_scores_on_the_scale_of_the_random_arms_gain_are_each_of_its_own_part_of_training(analysis):
    leap = analysis.aggregates["leap"]
    assert analysis.learned == ["breakout"]
    gains = (leap.gain_zero_shot, leap.gain_head_start, leap.gain_area, leap.gain_final)
    assert [gain.value for gain in gains] == pytest.approx([0.2, 0.8, 0.6, 0.4])
    assert leap.speedup.value == pytest.approx(0.82), "at 0.8 the random arm is after 820 of 1000 agent steps"


def test_the_first_page_has_each_number_in_its_column(analysis):
    header, _, random, leap, *_ = first_page(analysis, set())
    assert header == "| arm | before any update | first tenth | speed-up | area | last tenth |"
    assert random == "| random | 0.00 [0.00, 0.00] | 0 | 1 | 0.50 [0.50, 0.50] | 1 |"
    numbers = ("0.20", "0.80", "0.82", "0.60", "0.40")
    assert leap == "| leap | " + " | ".join(f"{number} [{number}, {number}]" for number in numbers) + " |"


def test_the_verdict_is_by_area_where_the_random_arm_learned_on_less_than_half_of_the_games(analysis):
    """By speed it would be that it hurts."""
    verdict = next(verdicts(analysis))
    assert verdict.startswith(
        "* **leap: no difference shown.** A task's mean return is higher than the random arm's with probability 0.5 "
        "(95 % interval 0.5 to 0.5), over 3 games."
    )
    assert "reached 0.82 times as fast (95 % interval 0.82 to 0.82)." in verdict
    assert verdict.endswith("It is worse than random on breakout, alien.")

"""Variants of games as tasks: patterns, which variants they leave out, and pools divided in parts."""

import json
from itertools import product

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leap_rl.atari import variants
from leap_rl.atari.games import catalogue, parse_game
from leap_rl.atari.variants import all_variants, expand, left_out
from leap_rl.config_files import load_config, parse_config, parse_training
from leap_rl.evaluation.plan import make_plan
from leap_rl.pools import divide, expand_all
from leap_rl.types import BadInputError
from tests.cli_helpers import assert_one_line
from tests.helpers import tiny_config, tiny_tree
from tests.test_evaluation import make_run
from tools import variants as tool

untimed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine is no failure


# Patterns


@pytest.fixture
def left_out_here(monkeypatch):
    """left_out_here(…) has patterns leave out other variants than those of the data file."""
    return lambda **reasons: monkeypatch.setattr(variants, "left_out", lambda: reasons)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("pong:mode=*", ["pong", "pong:mode=1"]),
        ("Pong: mode = * ", ["pong", "pong:mode=1"]),
        ("pong:difficulty=*", ["pong", "pong:difficulty=1", "pong:difficulty=2", "pong:difficulty=3"]),
        (
            "pong:*",
            ["pong", "pong:difficulty=1", "pong:difficulty=2", "pong:difficulty=3", "pong:mode=1",
             "pong:mode=1,difficulty=1", "pong:mode=1,difficulty=2", "pong:mode=1,difficulty=3"],
        ),
        ("breakout:difficulty=*,mode=4", ["breakout:mode=4", "breakout:mode=4,difficulty=1"]),
        ("qbert:mode=*,difficulty=1", ["qbert:difficulty=1"]),
        ("air_raid:mode=*", ["air_raid", *(f"air_raid:mode={mode}" for mode in range(2, 9))]),  # its default is 1
        ("qbert:*", ["qbert", "qbert:difficulty=1"]),
        ("assault:*", ["assault"]),
        ("breakout", ["breakout"]),
        ("breakout:mode=0", ["breakout"]),
    ],
)  # fmt: skip
def test_a_pattern_is_every_variant_that_matches(left_out_here, text, names):
    left_out_here()
    assert expand(text) == names


@untimed
@given(rom=st.sampled_from(sorted(catalogue())))
def test_patterns_of_every_game(rom):
    info = catalogue()[rom]
    every = [str(parse_game(f"{rom}:mode={m},difficulty={d}")) for m, d in product(info.modes, info.difficulties)]
    assert all_variants(rom) == every
    assert expand(f"{rom}:*") == expand(f"{rom}:difficulty=*,mode=*") == [n for n in every if n not in left_out()]
    mode = info.default_mode
    assert (
        expand(f"{rom}:mode={mode},difficulty=*")
        == expand(f"{rom}:difficulty=*")
        == [name for name in every if parse_game(name).mode is None and name not in left_out()]
    )
    assert set(expand(f"{rom}:mode=*")) <= {*expand(f"{rom}:*"), rom}


def test_patterns_may_overlap_and_names_may_not():
    assert expand_all(["pong:difficulty=*", "pong", "qbert", "pong:mode=*"], expand) == [
        "pong", "pong:difficulty=1", "pong:difficulty=2", "pong:difficulty=3", "qbert", "pong:mode=1",
    ]  # fmt: skip
    with pytest.raises(BadInputError, match=r"^pong is listed 2 times"):
        expand_all(["pong:*", "pong", "Pong:mode=0"], expand)


def test_a_pattern_leaves_out_what_is_unplayable_and_a_name_does_not(left_out_here):
    left_out_here(**{"pong:mode=1": "two players take turns", "qbert:difficulty=1": "it is dull"})
    assert expand("pong:mode=*") == ["pong"]
    assert "pong:mode=1" not in expand("pong:*")
    assert "pong:mode=1,difficulty=1" in expand("pong:*")
    assert expand("pong:mode=1") == ["pong:mode=1"]
    assert expand_all(["pong:mode=*", "pong:mode=1"], expand) == ["pong", "pong:mode=1"]


def test_a_pattern_that_matches_nothing_but_what_is_left_out_is_refused(left_out_here):
    left_out_here(**{"pong:mode=1": "two players take turns", "pong:mode=1,difficulty=1": "x",
                     "pong:mode=1,difficulty=2": "x", "pong:mode=1,difficulty=3": "x"})  # fmt: skip
    with pytest.raises(BadInputError) as refused:
        expand("pong:mode=1,difficulty=*")
    for part in ("'pong:mode=1,difficulty=*'", "leave out", "pong:mode=1, since two players take turns", "without *"):
        assert part in str(refused.value)


def test_what_is_left_out_is_a_variant_with_a_reason_and_never_the_game_itself():
    assert all(str(parse_game(name)) == name and reason for name, reason in left_out().items())
    assert not set(left_out()) & set(catalogue())
    assert all(expand(f"{rom}:*") for rom in catalogue())


# A pool in parts

POOL = ["breakout:*", "pong:*", "freeway:mode=*", "asterix"]
pools = st.lists(
    st.sampled_from([*all_variants("breakout"), *all_variants("pong"), *all_variants("freeway"), "asterix", "alien"]),
    min_size=1, unique=True,
)  # fmt: skip
counts = st.integers(0, 3)
seeds = st.integers(0, 2**63 - 1)


def by_game(names):
    return {rom: [name for name in names if name.partition(":")[0] == rom] for rom in catalogue()}


def parts_of(pool, validation, held_out, seed):
    """name → part; where parts would stay empty, all are for training."""
    try:
        parts = divide(pool, validation, held_out, seed)
    except BadInputError:
        parts = (pool, [], [])
    return {name: number for number, part in enumerate(parts) for name in part}


@untimed
@given(pool=pools, validation=counts, held_out=counts, seed=seeds)
def test_parts_are_disjoint_complete_and_as_large_as_asked_in_each_game(pool, validation, held_out, seed):
    games = {rom: names for rom, names in by_game(pool).items() if names}
    large = {rom for rom, names in games.items() if len(names) > validation + held_out}
    if not large and validation + held_out:
        with pytest.raises(BadInputError, match=f"validation = {validation}, held_out = {held_out}"):
            divide(pool, validation, held_out, seed)
        return
    parts = divide(pool, validation, held_out, seed)
    assert sorted(name for part in parts for name in part) == sorted(pool)
    for part in parts:
        assert part == [name for name in pool if name in set(part)], "in the pool's order"
    for rom, names in games.items():
        sizes = [len(by_game(part)[rom]) for part in parts]
        expected = [validation, held_out] if rom in large else [0, 0]
        assert sizes == [len(names) - sum(expected), *expected]


@untimed
@given(pool=pools, validation=counts, held_out=counts, seed=seeds, data=st.data())
def test_parts_do_not_depend_on_the_order_of_the_pool_or_on_other_games(pool, validation, held_out, seed, data):
    before = parts_of(pool, validation, held_out, seed)
    assert parts_of(data.draw(st.permutations(pool)), validation, held_out, seed) == before
    more = [*pool, *all_variants("space_invaders"), "gopher"]
    after = parts_of(more, validation, held_out, seed)
    assert {name: after[name] for name in pool} == before


@untimed
@given(pool=pools, validation=counts, held_out=counts, seed=seeds, data=st.data())
def test_another_variant_moves_at_most_one_other_into_a_part_or_out_of_it(pool, validation, held_out, seed, data):
    new = data.draw(st.sampled_from(pool))
    rest = [name for name in pool if name != new]
    if len(by_game(pool)[new.partition(":")[0]]) <= validation + held_out + 1:
        return  # the game has too few without it
    before, after = (parts_of(names, validation, held_out, seed) for names in (rest, pool))
    moved = [(before[name], after[name]) for name in rest if before[name] != after[name]]
    assert len(moved) == (1 if after[new] else 0)
    assert set(moved) <= {(1, 0), (2, 0)}, "never from validation to what is held out, or back"


def test_seeds_divide_differently_and_every_variant_gets_into_every_part():
    pool = all_variants("pong")
    drawn = [divide(pool, 2, 2, seed) for seed in range(50)]
    assert len({tuple(parts.held_out) for parts in drawn}) > 10
    for part in zip(*drawn, strict=True):
        assert {name for names in part for name in names} == set(pool)


def test_a_split_stays_what_it_is():
    """Another order would put variants that a run was trained on among those that it is evaluated on."""
    parts = divide(all_variants("pong"), 1, 2, 0)
    assert parts.validation == ["pong:mode=1,difficulty=1"]
    assert parts.held_out == ["pong:mode=1", "pong:mode=1,difficulty=2"]


# In a configuration


def test_patterns_and_parts_are_listed_in_the_resolved_configuration_which_reads_back_the_same(tmp_path):
    config = tiny_config(**{"tasks.games": POOL, "tasks.split": {"validation": 1, "held_out": 2, "seed": 3}})
    pool = expand_all(POOL, expand)
    assert (config.tasks.games, config.tasks.validation, config.tasks.held_out) == divide(pool, 1, 2, 3)
    assert config.tasks.split.model_dump() == {"validation": 0, "held_out": 0, "seed": 3}
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config.model_dump()))
    assert "*" not in file.read_text()
    assert load_config(file) == parse_config(config.model_dump()) == config


def test_one_part_may_be_listed_while_the_other_is_drawn():
    tasks = tiny_config(
        **{"tasks.games": ["breakout:*"], "tasks.held_out": ["alien"], "tasks.split.validation": 4}
    ).tasks
    assert (len(tasks.games), len(tasks.validation), tasks.held_out) == (20, 4, ["alien"])


def test_a_meta_batch_is_drawn_from_what_is_left_for_training():
    with pytest.raises(BadInputError, match=r"^meta.batch_size = 6: must be at most 5, the length of tasks.games"):
        parse_training(tiny_tree(**{"tasks.games": ["pong:*"], "tasks.split.held_out": 3, "meta.batch_size": 6}))


@pytest.mark.slow
def test_a_run_with_patterns_is_resumed_by_the_same_file(tmp_path, run_main):
    tree = tiny_tree(**{"run.dir": str(tmp_path / "run"), "tasks.games": ["pong:*"], "tasks.split.held_out": 2,
                        "task.agent_steps": 40, "meta.steps": 1})  # fmt: skip
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(tree))
    assert run_main("train", file)[0] == 0
    code, _, stderr = run_main("train", file)
    assert (code, "finished" in stderr) == (0, True)
    assert run_main("train", tmp_path / "run" / "config.yaml")[0] == 0
    assert_one_line(
        *run_main("train", file, "tasks.split.seed=1"), "another configuration", "tasks.split.seed (0 there"
    )


# In an evaluation


def games_of(run, *games):
    return list(make_plan([str(run)], (), list(games) or None, 1, None, None).games)


def test_an_evaluation_takes_patterns_and_the_parts_of_the_run(tmp_path):
    run = make_run(
        tmp_path, **{"tasks.games": ["pong:mode=*", "asterix"], "tasks.validation": ["freeway:difficulty=*"]}
    )
    assert games_of(run) == games_of(run, "held_out") == ["breakout", "space_invaders"]
    assert games_of(run, "validation") == ["freeway", "freeway:difficulty=1"]
    assert games_of(run, "training", "alien") == ["pong", "pong:mode=1", "asterix", "alien"]
    assert games_of(run, "held_out", "breakout:difficulty=*") == ["breakout", "space_invaders", "breakout:difficulty=1"]


@pytest.mark.parametrize(
    ("games", "parts"),
    [
        (["validation"], ("--games", "validation", "no such tasks")),
        (["breakoot:*"], ("--games", "unknown game 'breakoot'", "did you mean breakout?")),
        (["pong", "Pong"], ("--games", "pong is listed 2 times")),
    ],
)
def test_what_is_no_game_of_an_evaluation_is_one_line(tmp_path, run_main, games, parts):
    assert_one_line(*run_main("evaluate", make_run(tmp_path), "--games", *games), *parts)


# On the command line


def test_variants_are_listed_and_what_is_left_out_with_its_reason(run_main, left_out_here):
    left_out_here(**{"pong:mode=1": "two players take turns"})
    code, stdout, stderr = run_main("games", "--variants", "Pong", "freeway")
    assert (code, stderr) == (0, "")
    lines = stdout.splitlines()
    assert "pong" in lines
    assert "freeway:mode=7,difficulty=1" in lines
    assert "pong:mode=1" not in lines
    [reason] = [line for line in lines if line.startswith("pong:mode=1 ")]
    assert reason.endswith("left out: two players take turns")
    assert "23 variants, 1 left out" in stdout


def test_variants_as_json(run_main):
    code, stdout, _ = run_main("games", "--variants", "--json")
    rows = json.loads(stdout)
    assert code == 0
    assert [row["name"] for row in rows] == [name for rom in catalogue() for name in all_variants(rom)]
    assert {row["name"]: row["left_out"] for row in rows if row["left_out"]} == left_out()


def test_variants_of_an_unknown_game_are_one_line(run_main):
    assert_one_line(*run_main("games", "--variants", "pnog"), "unknown game 'pnog'", "did you mean pong?")


# Which variants an agent cannot play


def seen(variant, frames=tool.LONG, **changes):
    usual = {"scores": 60, "games": 5, "screens": 900, "control": 1.0, "fingerprint": f"{variant}"}
    return tool.Played(*variant, frames, **usual | changes)


class Seen:
    """What was seen of each variant, for the tool."""

    def __init__(self, **by_mode):
        self.by_mode = {int(mode.removeprefix("mode")): changes for mode, changes in by_mode.items()}
        self.long = []

    def played(self, variant, frames):
        if frames == tool.LONG:
            self.long.append(variant.mode)
        short, long = (changes := self.by_mode.get(variant.mode, ({}, {})))
        assert len(changes) == 2
        return seen(variant, frames, **(short if frames == tool.SHORT else long))


def judged(**by_mode):
    record = Seen(**by_mode)
    return {variant.mode: reason for variant, reason in tool.judge(catalogue()["atlantis"], record)}, record.long


def test_a_variant_that_is_played_like_the_default_one_is_kept_after_a_short_look():
    assert judged() == ({}, [])


def test_variants_in_which_nothing_happens_are_left_out():
    nothing = {"scores": 0, "games": 0}
    reasons, _ = judged(mode1=(nothing, nothing), mode2=(nothing, {"scores": 1, "games": 0}))
    assert reasons == {1: "no game ended and no score changed in 20,000 frames of random play"}


def test_variants_that_are_over_at_once_are_left_out_after_a_short_look():
    over = {"scores": 0, "games": tool.SHORT // 4}
    assert judged(mode1=(over, over)) == ({1: "the game is over as soon as it has begun"}, [])


def test_variants_in_which_as_little_happens_as_in_the_default_one_are_kept():
    nothing = {"scores": 0, "games": 0}
    few = {"scores": tool.FEW_EVENTS - 1, "games": 0}
    assert judged(mode0=(few, few), mode1=(nothing, nothing))[0] == {}


def test_variants_without_control_are_left_out():
    def control(value):
        return {"control": value}, {"control": value}

    reasons, _ = judged(mode1=control(0.0), mode2=control(0.4), mode3=control(0.55))
    assert reasons[1] == "nothing that an agent does changes the screen"
    assert reasons[2].startswith("an agent is in control for 40% of the time, in the default variant for 100%")
    assert set(reasons) == {1, 2}
    assert judged(mode0=control(0.5), mode1=control(0.3))[0] == {}, "as little as in the default variant"


def test_variants_that_are_another_one_are_left_out_once_a_long_look_agrees():
    short, same = {"fingerprint": "a"}, {"fingerprint": "b"}
    reasons, long = judged(mode1=(short, same), mode2=(short, {"fingerprint": "c"}), mode3=(short, same))
    assert reasons == {3: "the same screens and scores as mode 1, difficulty 0, in 20,000 frames of random play"}
    assert set(long) == {1, 2, 3}
    hardly = {"fingerprint": "a", "scores": tool.ENOUGH_SCORES - 1}
    assert judged(mode1=(hardly, hardly), mode2=(hardly, hardly))[0] == {}, "too little was seen to tell"


def test_difficulties_that_differ_in_another_mode_are_two_variants():
    """Alien's are the same in two of its modes as far as random play comes, and not in the others."""

    class SameInMode2(Seen):
        def played(self, variant, frames):
            return seen(variant, frames, fingerprint="same" if variant.mode == 2 else f"{variant}")

    class SameInEvery(Seen):
        def played(self, variant, frames):
            return seen(variant, frames, fingerprint=f"mode {variant.mode}")

    gopher = catalogue()["gopher"]
    assert list(tool.judge(gopher, SameInMode2())) == []
    found = {(variant.mode, variant.difficulty) for variant, _ in tool.judge(gopher, SameInEvery())}
    assert found == {(0, 1), (2, 1)}


@pytest.mark.slow
def test_a_real_variant_is_played_the_same_twice_and_another_otherwise(tmp_path):
    variant = tool.Variant("breakout", 4, 0)
    file = tmp_path / "played"
    played = tool.Record(file).played(variant, tool.SHORT)
    assert played == tool.play(variant, tool.SHORT) == tool.Record(file).played(variant, tool.SHORT)
    assert played.control > 0.9
    assert len(file.read_text().splitlines()) == 1
    assert played.scores
    assert played.games
    other = tool.play(tool.Variant("breakout", 8, 0), tool.SHORT)
    assert other.fingerprint != played.fingerprint

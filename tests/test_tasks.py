"""Tasks: the names of games, what ALE offers, which pools the paper draws from, and what a meta-step trains on."""

import gymnasium
import pytest
from ale_py import roms
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leap_rl.atari.games import (
    HELD_OUT,
    META_TRAINING,
    NOT_RESTORED,
    OUT_OF_DISTRIBUTION,
    TWO_PLAYER_ROMS,
    Game,
    catalogue,
    parse_game,
    ranges,
)
from leap_rl.meta.sampling import longest_first
from leap_rl.processes.a2c import A2C
from leap_rl.seeding import Purpose, derive_seed
from leap_rl.types import BadInputError, Task
from tests.helpers import meta_batch, tiny_config
from tools.games import describe

untimed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine is no failure
# Appendix F: the games with at most 10 actions, by their names in gymnasium
PAPER = [
    "AirRaid", "Amidar", "Assault", "Asterix", "Atlantis", "BeamRider", "Bowling", "Breakout", "Carnival",
    "CrazyClimber", "DemonAttack", "Enduro", "Freeway", "Gopher", "MsPacman", "NameThisGame", "Phoenix", "Pong",
    "Pooyan", "Qbert", "Skiing", "SpaceInvaders", "TimePilot", "Tutankham", "UpNDown", "VideoPinball", "WizardOfWor",
]  # fmt: skip


# Names


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("pong", "pong"),
        ("Pong", "pong"),
        (" pong ", "pong"),
        ("SpaceInvaders", "space_invaders"),
        ("space_invaders", "space_invaders"),
        ("space-invaders", "space_invaders"),
        ("breakout:mode=4,difficulty=1", "breakout:mode=4,difficulty=1"),
        ("Breakout:difficulty=1, mode=4", "breakout:mode=4,difficulty=1"),
        ("breakout:mode=0,difficulty=0", "breakout"),
        ("breakout:mode=0,difficulty=1", "breakout:difficulty=1"),
        ("air_raid:mode=1", "air_raid"),  # its default mode is not 0
        ("air_raid:mode=2", "air_raid:mode=2"),
    ],
)
def test_a_game_has_one_name(text, name):
    assert str(parse_game(text)) == name


def test_a_game_keeps_its_mode_and_difficulty():
    assert parse_game("breakout:mode=4,difficulty=1") == Game("breakout", mode=4, difficulty=1)
    assert parse_game("breakout") == Game("breakout", mode=None, difficulty=None)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("poong", ("unknown game 'poong'", "did you mean pong?", "103")),
        ("zzzz", ("unknown game 'zzzz'", "leap-rl games")),
        ("", ("unknown game ''",)),
        ("Combat", ("combat", "two players")),
        ("warlords:mode=1", ("warlords", "two players")),
        ("breakout:mode=1", ("breakout has mode 0, 4, 8", "not '1'")),
        ("breakout:mode=-4", ("breakout has mode", "not '-4'")),
        ("breakout:mode=four", ("breakout has mode", "not 'four'")),
        ("breakout:mode", ("breakout has mode", "not ''")),
        ("breakout:difficulty=2", ("breakout has difficulty 0-1", "not '2'")),
        ("breakout:lives=3", ("'lives'", "mode and difficulty")),
        ("breakout:mode=4,mode=8", ("breakout:mode=4,mode=8", "mode")),
        ("breakout:mode=4,mode=0", ("breakout:mode=4,mode=0", "mode")),
    ],
)
def test_what_is_no_game_is_refused_in_one_line(text, parts):
    with pytest.raises(BadInputError) as refused:
        parse_game(text)
    assert "\n" not in str(refused.value)
    for part in parts:
        assert part in str(refused.value)


def test_the_paper_s_pool_is_read_by_gymnasium_s_names():
    assert {parse_game(name).rom for name in PAPER} == {*META_TRAINING, *HELD_OUT}


def test_gymnasium_s_names_are_read():
    names = {spec.kwargs["game"]: spec.name for spec in gymnasium.registry.values() if spec.namespace == "ALE"}
    assert len(names) >= 100
    wrong = {}
    for rom in names.keys() & catalogue().keys():
        try:
            found = parse_game(names[rom]).rom
        except BadInputError as error:
            found = str(error)
        if found != rom:
            wrong[names[rom]] = found
    assert wrong == {}


def test_every_mode_and_difficulty_of_every_game_has_a_name_that_is_read_back():
    for info in catalogue().values():
        names = set()
        for mode in info.modes:
            for difficulty in info.difficulties:
                game = parse_game(f"{info.name}:mode={mode},difficulty={difficulty}")
                assert parse_game(str(game)) == game
                assert game.mode == (None if mode == info.default_mode else mode)
                assert game.difficulty == (None if difficulty == info.default_difficulty else difficulty)
                names.add(str(game))
        assert len(names) == len(info.modes) * len(info.difficulties)


@pytest.mark.parametrize(
    ("values", "text"), [((), ""), ((3,), "3"), ((1, 2, 3, 7), "1-3, 7"), ((7, 5, 0), "0, 5, 7"), ((0, 1), "0-1")]
)
def test_runs_of_numbers_are_shown_as_ranges(values, text):
    assert ranges(values) == text


# What there is


def test_the_paper_s_pool_is_every_classic_game_with_at_most_10_actions():
    pool = [*META_TRAINING, *HELD_OUT]
    assert len(set(pool)) == len(pool) == len(PAPER) == 27
    assert max(catalogue()[name].num_actions for name in pool) == 10
    assert {catalogue()[name].num_actions for name in OUT_OF_DISTRIBUTION} == {18}


def test_pools_are_told_apart():
    pools = {name: info.pool for name, info in catalogue().items()}
    for pool, names in (("meta-training", META_TRAINING), ("held-out", HELD_OUT),
                        ("out-of-distribution", OUT_OF_DISTRIBUTION)):  # fmt: skip
        assert {name for name in pools if pools[name] == pool} == set(names)
    assert pools["adventure"] == "-"


def test_the_catalogue_is_every_rom_but_those_for_two_players_or_that_ale_cannot_restore():
    assert set(roms.get_all_rom_ids()) - set(catalogue()) == TWO_PLAYER_ROMS | NOT_RESTORED
    assert len(catalogue()) == 103


@pytest.mark.slow
def test_the_catalogue_is_what_ale_reports():
    for name, info in catalogue().items():
        reported = describe(name, seconds=0)
        ours = {
            "name": info.name,
            "num_actions": info.num_actions,
            "modes": list(info.modes),
            "difficulties": list(info.difficulties),
            "default_mode": info.default_mode,
            "default_difficulty": info.default_difficulty,
            "background": list(info.background),
        }
        assert ours == {key: value for key, value in reported.items() if key != "seconds_per_step"}


def test_every_game_has_a_cost():
    assert all(0 < info.seconds_per_step < 1 for info in catalogue().values())


# What a meta-step trains on


def config(seed=0, batch_size=4, **changes):
    return tiny_config(
        **{"run.seed": seed, "meta.batch_size": batch_size, "tasks.games": list(META_TRAINING)} | changes
    )


@untimed
@given(seed=st.integers(0, 2**63 - 1), meta_step=st.integers(0, 10**6), batch_size=st.integers(1, 25))
def test_a_meta_batch_is_different_games_of_the_pool_in_slot_order(seed, meta_step, batch_size):
    tasks = meta_batch(config(seed, batch_size), meta_step)
    assert [(task.round, task.slot) for task in tasks] == [(meta_step, slot) for slot in range(batch_size)]
    assert len({task.name for task in tasks}) == batch_size
    assert {task.name for task in tasks} <= set(META_TRAINING)
    assert len({task.seed for task in tasks}) == batch_size


def test_a_meta_batch_depends_on_nothing_but_the_run_s_seed_and_the_meta_step():
    expected = [meta_batch(config(3), meta_step) for meta_step in range(5)]
    elsewhere = config(3, **{"run.dir": "elsewhere", "backend": "ray", "workers.count": 5, "agent.lr": 1e-3})
    assert [meta_batch(elsewhere, meta_step) for meta_step in reversed(range(5))] == expected[::-1]
    assert all(meta_batch(config(4), meta_step) != expected[meta_step] for meta_step in range(5))


def test_meta_batches_differ_and_draw_every_game():
    batches = [meta_batch(config(), meta_step) for meta_step in range(100)]
    assert len({tuple(task.name for task in batch) for batch in batches}) > 90
    assert len({task.seed for batch in batches for task in batch}) == 400
    drawn = [task.name for batch in batches for task in batch]
    assert set(drawn) == set(META_TRAINING)
    assert max(drawn.count(name) for name in META_TRAINING) < 40  # 16 expected


def test_the_mode_of_a_task_is_kept():
    games = ["breakout:mode=4,difficulty=1", "pong"]
    tasks = meta_batch(config(batch_size=2, **{"tasks.games": games}), 0)
    assert sorted(task.name for task in tasks) == games


@untimed
@given(st.lists(st.sampled_from([*catalogue(), "breakout:mode=4", "air_raid:mode=2"]), min_size=1, max_size=12))
def test_longest_first_is_a_permutation_by_falling_cost(names):
    tasks = [Task(0, slot, name, seed=slot) for slot, name in enumerate(names)]
    ordered = longest_first(tasks, A2C().seconds_per_step)
    assert sorted(ordered, key=lambda task: task.slot) == tasks
    costs = [catalogue()[task.name.partition(":")[0]].seconds_per_step for task in ordered]
    assert costs == sorted(costs, reverse=True)
    assert longest_first(tasks[::-1], A2C().seconds_per_step) == ordered  # equal costs: in slot order


# Seeds


def test_seeds_differ_by_run_purpose_and_key():
    keys = [(), (0,), (1,), (0, 0), (0, 1), (1, 0), (2, 1), (1, 2), (0, 0, 0)]
    seeds = [derive_seed(run, purpose, *key) for run in (0, 1, 2**62) for purpose in Purpose for key in keys]
    assert len(set(seeds)) == len(seeds) == 3 * len(Purpose) * len(keys)


@untimed
@given(run=st.integers(0, 2**63 - 1), purpose=st.sampled_from(Purpose), key=st.lists(st.integers(0, 2**31), max_size=3))
def test_a_seed_is_63_bits_and_the_same_every_time(run, purpose, key):
    seed = derive_seed(run, purpose, *key)
    assert 0 <= seed < 2**63
    assert type(seed) is int
    assert derive_seed(run, purpose, *key) == seed


def test_seeds_stay_what_they_are():
    """Another derivation, or another number for a purpose, would change the result of every run."""
    assert derive_seed(0, Purpose.INITIALIZATION) == 4334430513956379144
    assert derive_seed(7, Purpose.META_BATCH, 3) == 4901673970096119456
    assert derive_seed(7, Purpose.TASK, 3, 1) == 6919797921778749983

"""Games and meta-batches."""

import dataclasses

import pytest
from ale_py import roms

from benchmarks.games import describe
from leap_rl.seeding import Purpose, derive_seed
from leap_rl.tasks import (
    HELD_OUT,
    META_TRAINING,
    OUT_OF_DISTRIBUTION,
    TWO_PLAYER_ROMS,
    catalogue,
    longest_first,
    parse_game,
    ranges,
    sample_meta_batch,
)  # fmt: skip
from leap_rl.types import BadInputError
from tests.helpers import tiny_config


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("Pong", "pong"),
        ("SpaceInvaders", "space_invaders"),
        ("space-invaders", "space_invaders"),
        ("UpNDown", "up_n_down"),
        ("breakout:mode=4,difficulty=1", "breakout:mode=4,difficulty=1"),
        ("breakout:difficulty=1, mode=4", "breakout:mode=4,difficulty=1"),
        ("breakout:mode=0", "breakout"),  # the default
        ("air_raid:mode=1", "air_raid"),  # whose default is not 0
    ],
)
def test_equal_tasks_have_equal_names(text, canonical):
    assert str(parse_game(text)) == canonical
    assert parse_game(canonical) == parse_game(text)


def test_a_mode_that_is_not_there_is_refused_with_those_that_are():
    with pytest.raises(BadInputError, match=r"air_raid has mode 1-8, not '0'"):
        parse_game("air_raid:mode=0")
    assert ranges([0, 4, 5, 6, 9]) == "0, 4-6, 9"


def test_the_papers_pools():
    games = catalogue()
    assert len({*META_TRAINING, *HELD_OUT}) == 27
    assert all(games[name].num_actions <= 10 for name in (*META_TRAINING, *HELD_OUT))
    assert all(games[name].num_actions == 18 for name in OUT_OF_DISTRIBUTION)
    assert games["breakout"].pool == "held-out"


def test_a_meta_batch_is_different_games_in_slot_order_and_depends_on_seed_and_meta_step_alone():
    config = tiny_config(**{"tasks.games": list(META_TRAINING), "meta.batch_size": 16})
    batch = sample_meta_batch(config, 3)
    assert [task.slot for task in batch] == list(range(16))
    assert len({task.name for task in batch}) == len({task.seed for task in batch}) == 16
    assert batch == sample_meta_batch(config, 3)
    assert batch != sample_meta_batch(config, 4)
    assert batch != sample_meta_batch(tiny_config(**config_keys(config), **{"run.seed": 1}), 3)


def config_keys(config):
    return {"tasks.games": config.tasks.games, "meta.batch_size": config.meta.batch_size}


def test_every_game_of_the_pool_comes_up():
    config = tiny_config(**{"tasks.games": list(META_TRAINING), "meta.batch_size": 16})
    assert {task.name for step in range(20) for task in sample_meta_batch(config, step)} == set(META_TRAINING)


def test_slow_games_start_first():
    batch = sample_meta_batch(
        tiny_config(**{"tasks.games": ["pong", "breakout:mode=4", "up_n_down"], "meta.batch_size": 3}), 0
    )
    ordered = longest_first(batch)
    assert sorted(ordered, key=lambda task: task.slot) == batch
    costs = [catalogue()[task.name.partition(":")[0]].seconds_per_step for task in ordered]
    assert costs == sorted(costs, reverse=True)


def test_seeds_differ_by_run_purpose_and_key():
    seeds = {
        derive_seed(run, purpose, *key) for run in (0, 1) for purpose in Purpose for key in ((), (0,), (0, 0), (0, 1))
    }
    assert len(seeds) == 2 * len(Purpose) * 4
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(0, Purpose.TASK, 3, 5) == 7027363541529501356  # part of every result: must never change


@pytest.mark.slow
def test_the_catalogue_is_what_ale_reports():
    assert set(catalogue()) == set(roms.get_all_rom_ids()) - TWO_PLAYER_ROMS
    for name, info in catalogue().items():
        row = dataclasses.asdict(info)
        found = describe(name, seconds=0) | {"seconds_per_step": row["seconds_per_step"]}
        assert {key: list(value) if isinstance(value, tuple) else value for key, value in row.items()} == found

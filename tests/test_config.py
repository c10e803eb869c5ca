"""Configurations: typed, frozen, and every problem one line. (Bad files and values: tests/test_cli.py.)"""

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from leap_rl.config import all_keys, config_hash, describe_keys, load_config
from leap_rl.types import BadInputError
from tests.helpers import tiny_config, tiny_tree

PRESETS = sorted(Path(__file__).parent.parent.glob("configs/*.yaml"))


def load(tmp_path, *overrides, text=None, **keys):
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(tiny_tree(**keys)) if text is None else text)
    return load_config(file, overrides)


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_presets_load(path):
    config = load_config(path)
    assert config.tasks.held_out
    assert config.num_updates > 1


def test_the_papers_preset_is_appendix_f():
    config = load_config(next(path for path in PRESETS if path.stem == "atari_paper"))
    env, agent, meta = config.env, config.agent, config.meta
    assert (env.color, env.screen_size, env.frame_stack) == ("rgb", 84, 1)
    assert (meta.steps, meta.batch_size, meta.metric, meta.parameters) == (100, 16, "energy", "encoder")
    assert (meta.use_loss, meta.stabilizer) == (True, True)
    assert (len(config.tasks.games), config.tasks.held_out) == (25, ["breakout", "space_invaders"])
    assert config.task.agent_steps == 5_000_000
    assert (agent.num_envs, agent.unroll, agent.discount, agent.entropy_cost, agent.reward_clip) == (
        32,
        5,
        0.99,
        0.01,
        5,
    )
    assert (agent.optimizer, agent.lr, agent.rmsprop_decay, agent.epsilon) == ("rmsprop", 1e-4, 0.99, 1e-4)
    assert config.num_updates == 31_250


def test_overrides_are_yaml(tmp_path):
    config = load(
        tmp_path, "agent.lr=1e-4", "meta.use_loss=false", "agent.max_grad_norm=null", "tasks.games=[Pong, qbert]"
    )
    assert config.agent.lr == 1e-4
    assert config.meta.use_loss is False
    assert config.agent.max_grad_norm is None
    assert config.tasks.games == ["pong", "qbert"]


def test_floats_of_yaml_1_2_are_numbers_and_quoted_ones_are_not(tmp_path):
    text = yaml.safe_dump(tiny_tree())
    assert load(tmp_path, text=text.replace("lr: 0.1", "lr: 1e-1")).meta.lr == 0.1
    with pytest.raises(BadInputError, match=r"meta.lr = 0.1: must be a valid number|meta.lr = 0.1: must be a number"):
        load(tmp_path, text=text.replace("lr: 0.1", "lr: '0.1'"))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("meta.lrr=1", ["meta.lrr", "1", "unknown key", "meta.lr?"]),
        ("mata.lr=1", ["mata", "unknown key", "did you mean"]),
        ("meta.steps=0", ["meta.steps = 0", "greater than 0"]),
        ("meta.steps=2.5", ["meta.steps = 2.5", "integer"]),
        ("meta.metric=distance", ["meta.metric = distance", "'energy' or 'length'"]),
        ("meta.batch_size=4", ["meta.batch_size = 4", "at most 3"]),
        ("tasks.held_out=[pong]", ["pong", "tasks.games"]),
        ("tasks.games=[pong, Pong, qbert]", ["pong", "listed 2 times"]),
        ("tasks.games=[pongg, qbert]", ["pongg", "did you mean pong"]),
        ("tasks.games=[joust, qbert]", ["joust", "two players"]),
        ("tasks.games=['pong:mode=7', qbert]", ["pong has mode 0-1", "'7'"]),
        ("tasks.games=['pong:level=7', qbert]", ["'level'", "mode and difficulty"]),
        ("agent.lr=.nan", ["agent.lr", "finite"]),
        ("agent.discount=1.5", ["agent.discount = 1.5", "less than or equal to 1"]),
        ("task.agent_steps=20", ["task.agent_steps = 20", "more than 20"]),
        ("meta.parameters=all", ["meta.parameters = all", "env.full_action_space"]),
        ("workers.gpus=1", ["workers.gpus = 1", "device = cuda"]),
        ("meta.steps", ["meta.steps", "key=value"]),
        ("run.dir.x=1", ["run.dir.x=1", "not a section"]),
    ],
)
def test_every_problem_is_one_line_with_key_value_and_what_is_allowed(tmp_path, override, words):
    with pytest.raises(BadInputError) as caught:
        load(tmp_path, override)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_a_missing_key_and_a_key_that_stands_twice_are_named(tmp_path):
    tree = tiny_tree()
    del tree["meta"]["lr"]
    with pytest.raises(BadInputError, match=r"meta.lr: is missing"):
        load(tmp_path, text=yaml.safe_dump(tree))
    with pytest.raises(BadInputError, match=r"line 2: .*'run' stands twice"):
        load(tmp_path, text="run: {dir: a}\nrun: {dir: b}\n")


def test_a_configuration_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        tiny_config().meta.lr = 3.0


@pytest.mark.parametrize(
    ("key", "value", "same"),
    [
        ("workers.count", 7, True), ("workers.cpus", 2, True), ("run.dir", "elsewhere", True), ("backend", "ray", True),
        ("ray.address", "auto", True), ("log.segments", False, True), ("run.keep_checkpoints", 9, True),
        ("run.seed", 1, False), ("meta.lr", 0.2, False), ("meta.steps", 3, False), ("precision", "bf16", False),
        ("agent.num_envs", 5, False), ("env.sticky_actions", 0.0, False), ("stream.segment_updates", 11, False),
    ],
)  # fmt: skip
def test_the_hash_is_of_what_decides_the_result(key, value, same):
    assert (config_hash(tiny_config()) == config_hash(tiny_config(**{key: value}))) is same


def test_every_key_is_described():
    described = dict(describe_keys())
    assert list(described) == all_keys()
    assert described["meta.metric"].startswith("energy | length")
    assert "default 30" in described["env.noop_max"]

"""Which keys decide what a run comes to, and what the presets are."""

from pathlib import Path

import pytest

from leap_rl.config import config_hash, flatten, identity, is_free
from leap_rl.config_files import all_keys, load_config, parse_config
from leap_rl.processes.agents import AgentConfig
from leap_rl.processes.rllib.config import RLlibConfig
from leap_rl.types import BadInputError
from tests.helpers import MINIMAL, classification_config, nest

# What a resumed run may change

# Another allowed value for every key.
OTHER = {
    "process": "rllib", "rllib.algorithm": "DQN", "rllib.options": {"lambda_": 0.9},
    "run.dir": "elsewhere", "run.seed": 1, "run.keep_checkpoints": 5, "backend": "serial", "ray.address": "auto",
    "workers.count": 7, "workers.cpus": 2, "workers.gpus": 0.5, "device": "cuda", "precision": "bf16",
    "meta.steps": 3, "meta.batch_size": 1, "meta.lr": 0.2, "meta.lr_decay": "linear", "meta.optimizer": "adam",
    "meta.max_task_norm": 1.0,
    "meta.rule": "fomaml", "meta.loss_difference": "paired",
    "meta.momentum": 0.5, "meta.metric": "length", "meta.use_loss": False, "meta.stabilizer": False,
    "meta.parameters": "all", "tasks.games": ["pong", "asterix", "qbert"], "tasks.held_out": [],
    "tasks.validation": ["freeway"], "tasks.split.seed": 1,
    "task.agent_steps": 2000, "agent.num_envs": 8, "agent.unroll": 4, "agent.discount": 0.9,
    "agent.entropy_cost": 0.0, "agent.value_cost": 0.25, "agent.reward_clip": 5, "agent.optimizer": "adam",
    "agent.lr": 1e-3, "agent.rmsprop_decay": 0.9, "agent.epsilon": 1e-4, "agent.max_grad_norm": 0.5,
    "agent.value_scale": "popart", "agent.value_gain": 0.0, "agent.rmsprop_start": "ones",
    "agent.layer_norm": True, "meta.normalize_tasks": True,
    "env.frame_skip": 3, "env.sticky_actions": 0.0, "env.noop_max": 0, "env.max_episode_frames": 1000,
    "env.life_loss": "terminal", "env.full_action_space": False, "env.color": "rgb", "env.screen_size": 64,
    "env.frame_stack": 1, "env.center": "background",
    "stream.segment_updates": 100, "stream.compression": "int8", "log.segments": False,
    "log.wandb": "project", "log.mlflow": "sqlite:///mlflow.db",
    "workers.per_node": 2, "meta.schedule": "asynchronous", "meta.max_staleness": 2, "faults.min_tasks": 2,
    "faults.quorum": 1, "faults.grace_seconds": 5.0,
    "faults.segment_timeout": 60.0,
}  # fmt: skip
# The same for the keys that only classification has.
CLASSIFICATION = {
    "alphabets.source": "elsewhere", "alphabets.train": 5, "alphabets.held_out": 3, "alphabets.split": 1,
    "alphabets.checksum": "0" * 64, "classifier.filters": 8, "classifier.batch_size": 10, "classifier.lr": 0.01,
    "alphabets.order": "training_first", "alphabets.held_out_drawings": "first", "alphabets.sampling": "permutation",
    "alphabets.drawings": "nearest",
    "classifier.pooling": "before_norm", "classifier.norm": "running",
    "alphabets.per_task": 2, "meta.rule": "maml", "task.agent_steps": 7,
}  # fmt: skip
# The same for the keys that only gymnasium has.
GYMNASIUM = {
    "tasks.environments": ["Acrobot-v1", "CartPole-v0"], "tasks.held_out": ["CartPole-v0:sutton_barto_reward=true"],
    "env.max_episode_steps": 20, "env.modules": ["ale_py"], "env.wrappers": ["gymnasium.wrappers:FlattenObservation"],
}  # fmt: skip
# Keys that are gone once they are read: the lists that they make are written down instead (tests/test_variants.py).
RESOLVED = {"tasks.split.validation", "tasks.split.held_out"}
FREE = {"run.dir", "run.keep_checkpoints", "backend", "ray.address", "workers.count", "workers.cpus", "workers.gpus",
        "workers.per_node", "faults.segment_timeout", "log.segments", "log.wandb", "log.mlflow"}  # fmt: skip
# Keys that need each other: device = cuda allows a share of a GPU, the full action space meta.parameters = all.
BASE = {"device": "cuda", "workers.gpus": 1.0, "env.full_action_space": True}


def changed(load, changes):
    return parse_config(nest(BASE | changes, load().model_dump()))


def test_every_key_is_tried():
    assert {"process", *OTHER, *CLASSIFICATION, *GYMNASIUM, *RESOLVED} == set(all_keys())
    assert {key for key in all_keys() if is_free(key)} == FREE


@pytest.mark.parametrize("key", OTHER)
def test_the_hash_changes_with_every_key_but_those_that_are_free_on_a_resume(load, key):
    on_cpu = {"device": "cpu", "workers.gpus": 0.0}
    base = on_cpu if key in ("device", "process") or key.startswith("rllib.") else {}
    base |= {"process": "rllib"} if key.startswith("rllib.") else {}
    other = {"device": "cuda", "backend": "serial"} if key == "device" else {key: OTHER[key]}
    before, after = changed(load, base), changed(load, base | other)
    assert dict(flatten(before.model_dump()))[key] != dict(flatten(after.model_dump())).get(key)
    assert (config_hash(before) == config_hash(after)) == (key in FREE)


@pytest.mark.parametrize("key", CLASSIFICATION)
def test_the_hash_of_classification_changes_with_each_of_its_keys(key):
    base = {"meta.rule": "joint"} if key == "alphabets.per_task" else {}
    after = classification_config(**base, **{key: CLASSIFICATION[key]})
    assert config_hash(classification_config(**base)) != config_hash(after)


@pytest.mark.parametrize("key", GYMNASIUM)
def test_the_hash_of_gymnasium_changes_with_each_of_its_keys(key):
    base = {
        "process": "gymnasium", "run.dir": "runs/test", "meta.steps": 2, "meta.batch_size": 1, "meta.lr": 0.1,
        "tasks.environments": ["CartPole-v1"], "task.agent_steps": 1000, "agent.lr": 1e-3,
    }  # fmt: skip
    before, after = parse_config(nest(base)), parse_config(nest(base | {key: GYMNASIUM[key]}))
    assert config_hash(before) != config_hash(after)


def test_sections_of_another_process_are_neither_allowed_nor_written_down(load):
    assert {"alphabets", "classifier"}.isdisjoint(load().model_dump())
    assert {"tasks", "agent", "env"}.isdisjoint(classification_config().model_dump())
    for config in (load(), classification_config()):
        assert parse_config(config.model_dump()) == config


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"alphabets.train": 0}, ("alphabets.train = 0", "greater than 0")),
        ({"alphabets.checksum": "abc"}, ("alphabets.checksum = abc", "pattern")),
        ({"classifier.batch_size": 1}, ("classifier.batch_size = 1", "greater than or equal to 2")),
        ({"task.agent_steps": 1}, ("task.agent_steps = 1: must be more than 1: a path needs 2 gradient steps",)),
        ({"agent.lr": 0.1}, ("agent: only process = a2c, gymnasium or rllib has it, not classification",)),
        ({"meta.rule": "maml", "meta.metric": "length"}, ("meta.metric = length: only meta.rule = leap",)),
        ({"meta.rule": "joint", "meta.parameters": "all"}, ("meta.parameters = all: meta.rule = joint",)),
    ],
)
def test_what_classification_refuses(changes, parts):
    with pytest.raises(BadInputError) as error:
        classification_config(**changes)
    for part in parts:
        assert part in str(error.value)


def test_classification_computes_in_fp32():
    tree = classification_config().model_dump() | {"precision": "bf16"}
    with pytest.raises(BadInputError, match=r"^precision = bf16: process = classification computes in fp32$"):
        parse_config(tree)


def test_the_hash_is_that_of_the_meaning_not_of_the_text(load):
    text = MINIMAL.replace("lr: 1e-4", "lr: 0.0001").replace("1_000", "1000").replace("pong,", "Pong,")
    reordered = text.replace("  steps: 2\n", "").replace("  lr: 0.1\n", "  lr: 0.1\n  steps: 2\n")
    assert config_hash(load(text=reordered)) == config_hash(load())
    assert config_hash(load("meta.lr=1")) == config_hash(load("meta.lr=1.0"))


# Presets

PRESETS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("file", PRESETS, ids=lambda file: file.stem)
def test_every_preset_is_allowed(file):
    assert load_config(file).meta.steps > 0


def test_the_presets_are_there():
    assert {file.stem for file in PRESETS} >= {
        "quickstart",
        "atari",
        "atari_paper",
        "omniglot_paper",
        "glyphs_quickstart",
    }


def test_atari_paper_is_appendix_f():
    config = dict(flatten(load_config(PRESETS[0].parent / "atari_paper.yaml").model_dump()))
    paper = {
        "env.color": "rgb", "env.screen_size": 84, "env.frame_stack": 1, "meta.metric": "energy",
        "meta.parameters": "encoder", "meta.batch_size": 16, "meta.steps": 100, "task.agent_steps": 5_000_000,
        "agent.num_envs": 32, "agent.unroll": 5, "agent.optimizer": "rmsprop", "agent.lr": 1e-4,
        "agent.rmsprop_decay": 0.99, "agent.epsilon": 1e-4, "agent.entropy_cost": 0.01, "agent.discount": 0.99,
        "agent.reward_clip": 5, "tasks.held_out": ["breakout", "space_invaders"],
    }  # fmt: skip
    assert {key: config[key] for key in paper} == paper
    assert len(config["tasks.games"]) == 25


# process: rllib


def test_options_of_rllib_are_kept_as_they_are(load):
    config = load("process=rllib", "rllib.algorithm=DQN", "rllib.options.target_network_update_freq=500")
    assert config.rllib.options == {"target_network_update_freq": 500}
    assert identity(config)["rllib.options.target_network_update_freq"] == 500


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["process=a3c"], "process = a3c: must be 'a2c', 'classification', 'gymnasium' or 'rllib'"),
        (["rllib.algorithm=PPG"], "rllib.algorithm = PPG: must be 'A2C', 'APPO', 'DQN', 'IMPALA' or 'PPO'"),
        (["rllib.options=[1]"], "rllib.options = [1]: must be a dictionary"),
        (["meta.parameters=all", "env.full_action_space=true"], "meta.parameters = all: process = rllib"),
        (["meta.loss_difference=paired"], "meta.loss_difference = paired: process = rllib does not have it"),
        (["agent.value_scale=popart"], "agent.value_scale = popart: process = rllib does not have it"),
        (["agent.layer_norm=true"], "agent.layer_norm = True: process = rllib does not have it"),
        (["env.center=background"], "env.center = background: process = rllib does not have it"),
        (["device=cuda", "workers.gpus=1"], "device = cuda: process = rllib"),
        (["agent.unroll=20"], "agent.unroll = 20: PPO has options of its own for it; give rllib.options"),
        (["process=a2c", "rllib.algorithm=DQN"], "rllib: only process = rllib has it, not a2c"),
        (
            ["process=a2c", "tasks.games=[pong, CarRacing-v3]"],
            "tasks.games = CarRacing-v3: is an id of Gymnasium's: "
            "process = gymnasium has these, in tasks.environments, and process = rllib",
        ),
    ],
)
def test_what_process_rllib_does_not_have(load, overrides, message):
    with pytest.raises(BadInputError) as error:
        load("process=rllib", *overrides)
    assert str(error.value).startswith(message)


def test_a_key_of_the_agent_that_rllib_does_not_know_is_refused(load):
    class Agent(AgentConfig):
        patience: int = 3

    class Configuration(RLlibConfig):
        agent: Agent

    tree = load("process=rllib").model_dump()
    assert Configuration.model_validate(tree).agent.patience == 3
    with pytest.raises(ValueError, match=r"agent.patience = 4: process = rllib does not have it"):
        Configuration.model_validate(tree | {"agent": tree["agent"] | {"patience": 4}})


def test_a2c_on_rllib_takes_the_keys_of_our_own(load):
    assert load("process=rllib", "rllib.algorithm=A2C", "agent.unroll=20").agent.unroll == 20


def test_omniglot_paper_is_section_4_1_and_the_published_settings():
    config = dict(flatten(load_config(PRESETS[0].parent / "omniglot_paper.yaml").model_dump()))
    paper = {
        "meta.metric": "length", "meta.parameters": "all", "meta.batch_size": 20, "meta.steps": 1000, "meta.lr": 0.1,
        "meta.optimizer": "sgd", "task.agent_steps": 100, "classifier.filters": 64, "classifier.batch_size": 20,
        "classifier.lr": 0.1, "alphabets.train": 25, "alphabets.held_out": 10,
    }  # fmt: skip
    assert {key: config[key] for key in paper} == paper

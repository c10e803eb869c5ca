"""Turns a run's configuration into RLlib's: one algorithm, in one process, on one environment."""

import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.appo import APPOConfig
from ray.rllib.algorithms.dqn import DQNConfig
from ray.rllib.algorithms.dqn.dqn_catalog import DQNCatalog
from ray.rllib.algorithms.impala import IMPALAConfig
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.algorithms.ppo.ppo_catalog import PPOCatalog
from ray.rllib.core.rl_module.rl_module import RLModule, RLModuleSpec

from leap_rl.atari.games import is_gymnasium_id
from leap_rl.files.text import closest, one_line
from leap_rl.leap import PathAccumulator
from leap_rl.processes.rllib.config import A2C_OPTIONS, RLlibConfig
from leap_rl.processes.rllib.envs import RLlibEnv, make_env
from leap_rl.processes.rllib.network import PRECISION, shared_encoder, with_leap_encoder
from leap_rl.rllib.a2c import A2CConfig
from leap_rl.rllib.learner import Chosen, encoder_parameters, leap_learner
from leap_rl.rllib.quiet import quiet
from leap_rl.types import BadInputError

ALGORITHMS: dict[str, type[AlgorithmConfig]] = {
    "A2C": A2CConfig, "APPO": APPOConfig, "DQN": DQNConfig, "IMPALA": IMPALAConfig, "PPO": PPOConfig,
}  # fmt: skip
OURS = (  # decided by the other keys of the configuration, or by what a task is
    "env", "env_config", "seed", "num_env_runners", "num_learners", "num_gpus_per_learner", "num_envs_per_env_runner",
    "gamma", "lr", "gym_env_vectorize_mode", "framework_str", "_learner_class", "learner_class", "_rl_module_spec",
    "num_aggregator_actors_per_learner", "_model_config", "algo_class", "evaluation_interval", "policies",
)  # fmt: skip
# What names code to import, data to read or write, or where to: not for a file to decide.
NOT_DATA = re.compile(
    r"^(callbacks|input_|output|offline|off_policy|policies|policy_|extra_python|stats_cls|custom_evaluation|env_config|"
    r"env_runner_cls|env_task|evaluation_|observation_(fn|space)|action_space|before_learn|sample_collector|tf_|"
    r"local_tf|torch_compile|torch_ddp|learner_config|map_batches|iter_batches|prelearner|exploration_config|model$|"
    r"optimizer$|algorithm_config_over)|_(cls|class|function)$"
)
WORD = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


def own_network(config: RLlibConfig) -> bool:
    """Returns whether the network is RLlib's own (``rllib.options.model_config``), not the encoder of processes/a2c."""
    return "model_config" in config.rllib.options


def meta_learned(config: RLlibConfig) -> Chosen:
    """Returns what picks, of an RLModule, the parameters that Leap sees."""
    return encoder_parameters if own_network(config) else shared_encoder


def algorithm_config(
    config: RLlibConfig, game: str, seed: int, make_path: Callable[[], PathAccumulator] = PathAccumulator
) -> AlgorithmConfig:
    """Returns the RLlib configuration of one task. Raises BadInputError, one line, for an option that RLlib refuses."""
    agent = config.agent
    options = ALGORITHMS[config.rllib.algorithm]()
    with quiet():
        context = {"config": config, "name": game, "seed": seed, "own_network": own_network(config)}
        options.environment(RLlibEnv, env_config=context)
        options.env_runners(num_env_runners=0, num_envs_per_env_runner=agent.num_envs)
        options.debugging(seed=seed, log_level="ERROR")
        options.reporting(min_time_s_per_iteration=0, min_sample_timesteps_per_iteration=0)
        options.training(gamma=agent.discount, lr=agent.lr)
        if config.rllib.algorithm == "A2C":
            for key, name in A2C_OPTIONS.items():
                setattr(options, name, getattr(agent, key))
            options.grad_clip_by = "global_norm"
            options.train_batch_size_per_learner = agent.num_envs * agent.unroll
        for name, value in config.rllib.options.items():
            _set_option(options, name, value)
        _choose_network(config, options)
        options.learners(num_learners=0)
        options.learners(learner_class=leap_learner(options.learner_class, make_path, meta_learned(config)))
        try:
            options.validate()
        except (ValueError, TypeError, AssertionError, AttributeError) as error:
            raise BadInputError(f"rllib.options: {one_line(error, 500)}") from None
    return options


def _set_option(options: AlgorithmConfig, name: str, value: Any) -> None:
    """Sets what ``AlgorithmConfig``'s own setters would. Raises BadInputError with the key of our configuration."""
    key = f"rllib.options.{name} = {json.dumps(value, default=str)[:80]}"
    if name.startswith("enable_") or name == "api_stack":
        raise BadInputError(f"{key}: RLlib's new API stack is used; Leap cannot see the gradient steps of the old one")
    if NOT_DATA.search(name):
        raise BadInputError(f"{key}: may name code, files or addresses: it is not taken from a configuration")
    if not _is_data(value):
        raise BadInputError(f"{key}: must be numbers and words; a path or a dotted name could be imported or opened")
    if name == "model_config":
        return
    if name in OURS:
        raise BadInputError(f"{key}: is not free: a task decides it (docs/rllib.md)")
    if name.startswith("_") or not hasattr(options, name) or callable(getattr(options, name)):
        known = [known for known in vars(options) if not known.startswith("_") and known not in OURS]
        near = closest(name, known, cutoff=0.6)
        hint = f"; did you mean {near}?" if near else ""
        raise BadInputError(f"{key}: {type(options).__name__} has no such option{hint}")
    try:
        options.update_from_dict({name: value})
    except Exception as error:
        raise BadInputError(f"{key}: {one_line(error, 500)}") from None


def _is_data(value: Any) -> bool:
    """Returns whether a value is made of numbers and words: RLlib imports what a dotted name names."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and WORD.fullmatch(key) and _is_data(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(_is_data, value))
    return value is None or isinstance(value, bool | int | float) or bool(WORD.fullmatch(value))


def _choose_network(config: RLlibConfig, options: AlgorithmConfig) -> None:
    if own_network(config):
        options.rl_module(model_config=config.rllib.options["model_config"])
        return
    catalog = DQNCatalog if config.rllib.algorithm == "DQN" else PPOCatalog
    options.rl_module(
        rl_module_spec=RLModuleSpec(catalog_class=with_leap_encoder(catalog)),
        model_config={"vf_share_layers": True, "head_fcnet_hiddens": [], PRECISION: config.precision},
    )


def build_module(config: RLlibConfig, game: str) -> RLModule:
    """Builds a fresh RLModule of a game, as the Learner builds it. Raises BadInputError where it cannot be built."""
    options = algorithm_config(config, game, seed=0)
    env = make_env(config, game, 0, own_network(config))
    space: Any = env.observation_space
    height, width, _ = space.shape
    if not own_network(config) and (space.dtype != np.uint8 or height != width or height < 36):
        raise BadInputError(
            f"tasks.games = {game}: shows {space.dtype} {'×'.join(map(str, space.shape))}; process a2c's network "
            "sees square uint8 images of 36 pixels or more: give RLlib's network with rllib.options.model_config"
        )
    try:
        with quiet():
            return options.get_rl_module_spec(spaces={"default_policy": (space, env.action_space)}).build()
    except Exception as error:
        raise BadInputError(f"rllib.options.model_config: {game}: {one_line(error, 500)}") from None


def check(config: RLlibConfig) -> None:
    """Raises BadInputError, one line, for what no task could start with."""
    modules = {game: meta_learned(config)(build_module(config, game)) for game in _to_check(config)}
    first, *others = modules
    for game in others:
        shapes = [{name: tuple(value.shape) for name, value in modules[each].items()} for each in (first, game)]
        for name in sorted(shapes[0].keys() | shapes[1].keys()):
            here, there = shapes[0].get(name), shapes[1].get(name)
            if here != there:
                raise BadInputError(
                    f"tasks.games: the encoders of {first} and {game} differ: {name} is {here} there, {there} here; "
                    "tasks share an initialization"
                )


def _to_check(config: RLlibConfig) -> list[str]:
    """Returns a game, for all that are played in the same way, and every environment of Gymnasium."""
    games = [*config.tasks.games, *config.tasks.validation, *config.tasks.held_out]
    atari = [game for game in games if not is_gymnasium_id(game)]
    return [*atari[:1], *(game for game in games if is_gymnasium_id(game))]

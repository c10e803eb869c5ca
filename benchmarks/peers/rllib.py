"""Runs RLlib's PPO set up as A2C (one epoch, one minibatch, practically no clipping), or its IMPALA.

It is started by ``benchmarks.peers``, takes settings as JSON, and prints a JSON row of agent_steps and seconds about
every second, until it is stopped.
"""

import json
import sys
import time
from typing import Any

import ale_py
import gymnasium
import numpy as np
import ray
from ray.rllib.algorithms.impala import IMPALAConfig
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.tune.registry import register_env


def make_env(context: dict[str, Any]) -> gymnasium.Env[Any, Any]:
    """Returns a game with gymnasium's own preprocessing, and four frames in the last dimension."""
    gymnasium.register_envs(ale_py)
    game = gymnasium.make(context["env_id"], frameskip=1, repeat_action_probability=0.0)
    game = gymnasium.wrappers.AtariPreprocessing(game, noop_max=30, grayscale_newaxis=False, scale_obs=True)
    game = gymnasium.wrappers.FrameStackObservation(game, 4)
    game = gymnasium.wrappers.TransformReward(game, lambda reward: max(-1.0, min(1.0, float(reward))))
    space = gymnasium.spaces.Box(0.0, 1.0, (84, 84, 4), np.float32)
    return gymnasium.wrappers.TransformObservation(game, lambda frames: frames.transpose(1, 2, 0), space)


def main(settings: dict[str, Any]) -> None:
    name = "".join(part.capitalize() for part in settings["game"].split("_"))
    cores, agent = settings["cores"], settings["agent"]
    num_envs, unroll = agent["num_envs"], agent["unroll"]
    ray.init(
        num_cpus=cores + 1, include_dashboard=False, log_to_driver=False, _temp_dir=settings["folder"],
        _node_ip_address="127.0.0.1",
    )  # fmt: skip
    register_env("game", make_env)
    base: Any = IMPALAConfig() if settings["algorithm"] == "IMPALA" else PPOConfig()
    config = base.environment("game", env_config={"env_id": f"ALE/{name}-v5"})
    config = config.env_runners(
        num_env_runners=cores, num_envs_per_env_runner=num_envs // cores, rollout_fragment_length=unroll
    ).rl_module(model_config=DefaultModelConfig(conv_filters=[[16, 8, 4], [32, 4, 2]], head_fcnet_hiddens=[256]))
    batch = num_envs * unroll
    config = config.training(lr=agent["lr"], gamma=0.99, train_batch_size_per_learner=batch, grad_clip=0.5)
    if settings["algorithm"] == "PPO":
        config = config.training(num_epochs=1, minibatch_size=batch, lambda_=1.0, use_kl_loss=False)
    algorithm = config.reporting(min_time_s_per_iteration=1).build_algo()
    started = time.perf_counter()
    while True:
        result = algorithm.train()
        row = {"agent_steps": result["num_env_steps_sampled_lifetime"], "seconds": time.perf_counter() - started}
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))

"""Trains RLlib's PPO from a meta-learned encoder, and from a random one.

leap-rl train configs/quickstart.yaml
leap-rl export runs/quickstart --to rllib --out encoder
python docs/examples/finetune_with_rllib.py encoder breakout --iterations 20
"""

import argparse
import json
from pathlib import Path

import ray
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.ppo import PPOConfig
from ray.tune.registry import register_env

from leap_rl.atari.config import EnvConfig
from leap_rl.processes.rllib.envs import AtariGame, FloatImage
from leap_rl.rllib import load_encoder


def build_ppo(folder: str, game: str, batch_size: int, seed: int) -> Algorithm:
    """Returns PPO with RLlib's default network in the shape of the export, on the frames that the encoder knows."""
    description = json.loads((Path(folder) / "config.json").read_text())
    env_config = EnvConfig(**description["env"])
    register_env("game", lambda _: FloatImage(AtariGame(game, env_config, seed)))
    config = PPOConfig().environment("game").env_runners(num_env_runners=0, num_envs_per_env_runner=4)
    config.training(train_batch_size_per_learner=batch_size, minibatch_size=64, num_epochs=2, lr=2.5e-4)
    config.rl_module(model_config=description["model_config"]).debugging(seed=seed)
    return config.build_algo()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("game")
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=1024)
    options = parser.parse_args()
    ray.init("local", num_cpus=1, include_dashboard=False)
    for start in ("random", "meta-learned"):
        algorithm = build_ppo(options.folder, options.game, options.batch_size, seed=1)
        if start == "meta-learned":
            report = load_encoder(algorithm, options.folder)
            print(f"loaded {len(report.loaded)} tensors; as they were drawn: {', '.join(report.missing)}")
        for iteration in range(options.iterations):
            results = algorithm.train()
            score = results["env_runners"].get("episode_return_mean", float("nan"))
            steps = results["env_runners"]["num_env_steps_sampled_lifetime"]
            loss = results["learners"]["default_policy"]["total_loss"]
            print(f"{start}: iteration {iteration + 1}, {steps:.0f} steps, mean return {score:.2f}, loss {loss:.4f}")
        algorithm.stop()
    ray.shutdown()


if __name__ == "__main__":
    main()

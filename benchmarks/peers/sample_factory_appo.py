"""Runs Sample Factory's APPO with its own Atari wrappers and network.

``benchmarks.peers`` runs it in a virtual environment of its own. It takes settings as JSON, and prints a JSON row of
agent_steps and seconds about every second, until it is stopped.
"""

import json
import sys
import time
from typing import Any

import gymnasium
from sample_factory.algo.runners.runner import AlgoObserver
from sample_factory.envs import env_wrappers
from sample_factory.envs.env_utils import register_env
from sample_factory.train import make_runner
from sf_examples.atari.train_atari import parse_atari_args

FRAME_SKIP = 4


def make_env(name: str, cfg: Any, env_config: Any, render_mode: str | None = None) -> Any:
    """Returns a game with the wrappers of its Atari example, except for life handling, which no other system has."""
    import ale_py  # noqa: F401  (registers the games, in each process)

    env = gymnasium.make(f"ALE/{name}-v5", frameskip=1, repeat_action_probability=0.0)
    env = gymnasium.wrappers.RecordEpisodeStatistics(env)
    env = env_wrappers.NoopResetEnv(env, noop_max=30)
    env = env_wrappers.MaxAndSkipEnv(env, skip=FRAME_SKIP)
    env = env_wrappers.ClipRewardEnv(env)
    env = gymnasium.wrappers.ResizeObservation(env, (84, 84))
    env = gymnasium.wrappers.GrayScaleObservation(env)
    env = gymnasium.wrappers.FrameStack(env, 4)
    return env_wrappers.NumpyObsWrapper(env)


class Rows(AlgoObserver):  # type: ignore[misc]
    """Prints a row about every second."""

    def __init__(self) -> None:
        self.started, self.printed = time.perf_counter(), 0.0

    def on_training_step(self, runner: Any, training_iteration_since_resume: int) -> None:
        seconds = time.perf_counter() - self.started
        if seconds > self.printed + 1:
            # The runner counts emulator frames.
            row = {"agent_steps": sum(runner.env_steps.values()) / FRAME_SKIP, "seconds": seconds}
            print(json.dumps(row), flush=True)
            self.printed = seconds


def main(settings: dict[str, Any]) -> None:
    name = "".join(part.capitalize() for part in settings["game"].split("_"))
    register_env(name, make_env)
    cores, agent = settings["cores"], settings["agent"]
    num_envs, unroll = agent["num_envs"], agent["unroll"]
    arguments = {
        "algo": "APPO", "env": name, "experiment": "speed", "train_dir": settings["folder"], "device": "cpu",
        "restart_behavior": "overwrite", "num_workers": cores, "num_envs_per_worker": num_envs // cores,
        "worker_num_splits": 2, "rollout": unroll, "batch_size": num_envs * unroll, "num_batches_per_epoch": 1,
        "num_epochs": 1, "async_rl": True, "train_for_env_steps": 10**12, "gamma": 0.99,
        "encoder_conv_mlp_layers": 256, "normalize_input": False, "normalize_returns": False,
    }  # fmt: skip
    _, runner = make_runner(parse_atari_args([f"--{key}={value}" for key, value in arguments.items()]))
    runner.register_observer(Rows())
    runner.init()
    runner.run()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))

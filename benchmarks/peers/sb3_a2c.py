"""Runs Stable-Baselines3's A2C at given settings.

``studies.learning_curve`` and ``benchmarks.peers`` run it in a virtual environment of its own. It takes the settings as
JSON, and prints one JSON row every ``row_steps`` agent steps. The environment is built from gymnasium's own wrappers,
so that preprocessing, sticky actions, no-ops and frame limit are the same.
"""

import json
import sys
import time
from typing import Any

import ale_py
import gymnasium
import torch
from stable_baselines3 import A2C
from stable_baselines3.common.atari_wrappers import ClipRewardEnv
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack


class Mnih2013(BaseFeaturesExtractor):  # type: ignore[misc]
    """Is the network conv 16 8×8/4 → conv 32 4×4/2 → linear 256, with ReLU after each. Subtracts ``center`` from the
    pixels."""

    def __init__(self, observation_space: Any, center: float) -> None:
        super().__init__(observation_space, features_dim=256)
        self.center = center / 255  # SB3 has divided the pixels by 255
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(observation_space.shape[0], 16, 8, stride=4),
            torch.nn.ReLU(),
            torch.nn.Conv2d(16, 32, 4, stride=2),
            torch.nn.ReLU(),
            torch.nn.Flatten(),
            torch.nn.Linear(32 * 9 * 9, 256),
            torch.nn.ReLU(),
        )

    def forward(self, observations: torch.Tensor) -> Any:
        return self.layers(observations - self.center)


class Rows(BaseCallback):  # type: ignore[misc]
    """Prints a row every ``row_steps`` agent steps."""

    def __init__(self, row_steps: int) -> None:
        super().__init__()
        self.row_steps, self.scores, self.started = row_steps, [], time.perf_counter()  # type: ignore[var-annotated]

    def _on_step(self) -> bool:
        self.scores += [info["episode"]["r"] for info in self.locals["infos"] if "episode" in info]
        if self.num_timesteps % self.row_steps == 0:
            row = {
                "agent_steps": self.num_timesteps,
                "score": sum(self.scores) / max(len(self.scores), 1),
                "episodes": len(self.scores),
                "seconds": time.perf_counter() - self.started,
            }
            print(json.dumps(row), flush=True)
            self.scores = []
        return True


def main(settings: dict[str, Any]) -> None:
    torch.set_num_threads(settings["cores"])
    gymnasium.register_envs(ale_py)
    env, agent, seed = settings["env"], settings["agent"], settings["run"]["seed"]
    assert env["color"] == "grey", "RGB is not compared"
    assert env["life_loss"] == "ignore", "SB3's episodic life resets the stack, ours goes on: not compared"
    assert agent["reward_clip"] == 1, "SB3 clips rewards to their sign"
    assert agent["optimizer"] == "rmsprop", "SB3's A2C uses RMSprop"

    def make_env() -> Any:
        name = "".join(part.capitalize() for part in settings["game"].split("_"))
        game = gymnasium.make(
            f"ALE/{name}-v5",
            frameskip=1,
            repeat_action_probability=env["sticky_actions"],
            full_action_space=env["full_action_space"],
            max_num_frames_per_episode=env["max_episode_frames"],
        )
        game = gymnasium.wrappers.AtariPreprocessing(
            game, noop_max=env["noop_max"], frame_skip=env["frame_skip"], screen_size=env["screen_size"],
            grayscale_newaxis=True,
        )  # fmt: skip
        return ClipRewardEnv(Monitor(game))

    envs = VecFrameStack(DummyVecEnv([make_env] * agent["num_envs"]), env["frame_stack"])
    model = A2C(
        "CnnPolicy",
        envs,
        learning_rate=agent["lr"],
        n_steps=agent["unroll"],
        gamma=agent["discount"],
        gae_lambda=1.0,
        ent_coef=agent["entropy_cost"],
        vf_coef=agent["value_cost"],
        max_grad_norm=agent["max_grad_norm"] or float("inf"),
        rms_prop_eps=agent["epsilon"],
        seed=seed,
        device="cpu",
        policy_kwargs={
            "features_extractor_class": Mnih2013,
            "features_extractor_kwargs": {"center": settings["center"]},
            "net_arch": [],
        },
    )
    model.learn(settings["task"]["agent_steps"], callback=Rows(settings["row_steps"]))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))

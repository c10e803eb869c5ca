"""Takes a meta-step of Leap in an RLlib script: trains two PPO agents from one start, and steps the start.

python docs/examples/leap_over_rllib.py
"""

import ray
import torch
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner

from leap_rl.rllib import leap_learner, take_increment

META_LR = 0.1


def train(env: str, initialization: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns the meta-gradient of PPO's path on ``env`` from an encoder. An empty ``initialization`` is filled with
    the encoder that PPO starts from."""
    config = PPOConfig().environment(env).env_runners(num_env_runners=0)
    config.training(train_batch_size_per_learner=200, minibatch_size=50, num_epochs=2).debugging(seed=1)
    config.learners(learner_class=leap_learner(PPOTorchLearner))
    algorithm = config.build_algo()
    encoder = algorithm.learner_group._learner.meta_learned()
    if not initialization:
        initialization.update({name: value.detach().clone() for name, value in encoder.items()})
    with torch.no_grad():
        for name, value in initialization.items():
            encoder[name].copy_(value)
    algorithm.env_runner_group.sync_weights(from_worker_or_learner_group=algorithm.learner_group)
    for _ in range(2):
        algorithm.train()
    increment = take_increment(algorithm, finish=True)
    algorithm.stop()
    return increment


def main() -> None:
    ray.init("local", num_cpus=1, include_dashboard=False)
    initialization: dict[str, torch.Tensor] = {}
    increments = [train(env, initialization) for env in ("CartPole-v1", "CartPole-v0")]
    for name, value in initialization.items():  # the Leap learner's step, by hand: SGD on the mean
        value -= META_LR * sum(increment[name] for increment in increments) / len(increments)
    norm = torch.stack([value.norm() for value in increments[0].values()]).norm()
    print(f"one meta-step over {len(increments)} tasks; the first one's meta-gradient has norm {norm:.3f}")
    ray.shutdown()


if __name__ == "__main__":
    main()

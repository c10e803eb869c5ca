"""Runs Leap over RLlib's algorithms (new API stack), and adds A2C to them. Beside the Ray backend and
processes/rllib/, this is the only code that imports Ray.

    from leap_rl.rllib import leap_learner, take_increment

    config.learners(learner_class=leap_learner(PPOTorchLearner))
    algorithm = config.build_algo()
    ...                                     # algorithm.train(), as often as you like
    increment = take_increment(algorithm)   # the meta-gradient of the path so far
"""

from leap_rl.rllib.a2c import A2C, A2CConfig
from leap_rl.rllib.learner import leap_learner, take_increment
from leap_rl.rllib.load import load_encoder

__all__ = ["A2C", "A2CConfig", "leap_learner", "load_encoder", "take_increment"]

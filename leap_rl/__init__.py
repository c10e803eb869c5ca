"""Leap meta-learning for reinforcement learning, distributed over Ray."""

__version__ = "0.2.0"

"""Leap meta-learning for reinforcement learning, distributed over Ray."""

__version__ = "0.1.0"

"""Defines CartPole and Acrobot with other physics: the classic family of tasks of meta-reinforcement learning.

They are Gymnasium's own (same equations, same observations), made with other constants: ``cartpole:length=1.3`` and
``acrobot:mass_2=2``. An agent does not observe the constants. With the defaults they are CartPole-v1 and Acrobot-v1.
"""

from math import pi
from typing import Any

import gymnasium
from gymnasium.envs.classic_control.acrobot import AcrobotEnv
from gymnasium.envs.classic_control.cartpole import CartPoleEnv


class CartPole(CartPoleEnv):
    """Simulates a cart with a pole of half-length ``length`` (m); masses in kg, ``gravity`` in m/s², ``force`` in N."""

    def __init__(
        self, gravity: float = 9.8, masscart: float = 1.0, masspole: float = 0.1, length: float = 0.5,
        force: float = 10.0,
    ) -> None:  # fmt: skip
        super().__init__()
        _check(gravity=gravity, masscart=masscart, masspole=masspole, length=length, force=force)
        self.gravity, self.masscart, self.masspole, self.length = gravity, masscart, masspole, length
        self.force_mag = force
        self.total_mass, self.polemass_length = masspole + masscart, masspole * length


class Acrobot(AcrobotEnv):
    """Simulates two links of ``length_1`` (m), masses in kg, ``gravity`` in m/s²; ``torque`` (N m) is what the motor
    between them has."""

    def __init__(
        self, gravity: float = 9.8, length_1: float = 1.0, mass_1: float = 1.0, mass_2: float = 1.0,
        torque: float = 1.0,
    ) -> None:  # the length of the second link is in no equation  # fmt: skip
        super().__init__()
        _check(gravity=gravity, length_1=length_1, mass_1=mass_1, mass_2=mass_2, torque=torque)
        self.gravity = gravity
        self.LINK_LENGTH_1, self.LINK_COM_POS_1 = length_1, length_1 / 2
        self.LINK_MASS_1, self.LINK_MASS_2 = mass_1, mass_2
        self.AVAIL_TORQUE = [-torque, 0.0, torque]

    def _dsdt(self, state: Any) -> Any:
        """Returns how the state changes. Gymnasium's equations have 9.8 for gravity, whose share they add, and which
        alone changes its sign where the acrobot is upside down: so it can be taken out, and scaled."""
        found = super()._dsdt(state)  # type: ignore[no-untyped-call]
        if self.gravity == 9.8:
            return found
        turned = super()._dsdt([state[0] + pi, *state[1:]])  # type: ignore[no-untyped-call]
        share = self.gravity / 9.8
        return [((1 + share) * one + (1 - share) * other) / 2 for one, other in zip(found, turned, strict=True)]


def _check(**constants: float) -> None:
    for name, value in constants.items():
        if isinstance(value, (bool, str)) or not 0 < value < 1e6:
            raise ValueError(f"{name} = {value}: must be a number greater than 0")


def register() -> None:
    """Makes ``cartpole`` and ``acrobot`` ids of Gymnasium's, once."""
    for kind in (CartPole, Acrobot):
        if kind.__name__.lower() not in gymnasium.registry:
            path = f"{__name__}:{kind.__name__}"
            gymnasium.register(kind.__name__.lower(), entry_point=path, max_episode_steps=500)

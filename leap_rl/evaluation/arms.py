"""Defines the arms of an evaluation, which differ in where their tasks start, and those that ``--arms`` adds.

random              starts from an initialization that is drawn for each game and seed; always there
ceiling             starts where the random arm's task of the same game and seed ended: it was trained on the very same
                    task, with as many agent steps, and shows the most that could transfer
frozen              starts from each given initialization, and trains the heads only
shrink-perturb=λ    starts from λ times each given initialization + (1 − λ) times the random arm's draw
                    (Ash and Adams 2020, "On Warm-Starting Neural Network Training")
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from leap_rl.files.text import closest
from leap_rl.processes import process_type
from leap_rl.types import BadInputError, Tensors

RANDOM_ARM, CEILING, FROZEN, SHRINK = "random", "ceiling", "frozen", "shrink-perturb"


@dataclass(frozen=True)
class Arm:
    """Says where the tasks of one arm start."""

    name: str
    source: str  # what the user named
    fingerprint: str  # the initialization's; empty for the random arm
    meta_steps: int | None = None  # number of meta-steps of its meta-training, as the file says
    trained_on: tuple[str, ...] = ()  # games of its meta-training, if they are known
    trained_with: tuple[str, ...] = ()  # "key = value" of its meta-training that differs from the evaluation
    fresh_heads: tuple[str, ...] = ()  # games without heads in the initialization: each task draws its own
    share: float = 1.0  # of the initialization in the weights; the rest is a fresh draw
    frozen: bool = False  # whether the encoder is left untrained
    initialization: Tensors = field(default_factory=dict, compare=False)  # empty for the random arm and the ceiling
    first: Tensors = field(default_factory=dict, compare=False)  # weights before its meta-training, if they are known

    def describe(self) -> dict[str, Any]:
        """Returns the arm's entry in evaluation.json."""
        return {"name": self.name, "source": self.source, "fingerprint": self.fingerprint,
                "meta_steps": self.meta_steps, "trained_on": list(self.trained_on),
                "trained_with": list(self.trained_with), "fresh_heads": list(self.fresh_heads),
                "frozen": self.frozen}  # fmt: skip

    @property
    def has_one_start(self) -> bool:
        """Returns whether all tasks start from the same point and train everything, so that increments are
        comparable."""
        return bool(self.initialization) and self.share == 1 and not self.frozen


@dataclass(frozen=True)
class ExtraArm:
    """Holds one entry of ``--arms``."""

    kind: str
    share: float = 1.0


def parse_arms(text: str | None, process: str) -> list[ExtraArm]:
    """Returns the arms in a text such as ``random,ceiling,frozen,shrink-perturb=0.5``. Raises BadInputError."""
    extra: list[ExtraArm] = []
    for entry in (text or RANDOM_ARM).split(","):
        kind, equals, number = entry.strip().partition("=")
        allowed = (RANDOM_ARM, CEILING, FROZEN, SHRINK)
        if kind not in allowed:
            near = closest(kind, allowed)
            hint = f"did you mean {near}? " if near else ""
            raise BadInputError(f"--arms {entry!r}: unknown; {hint}allowed are random, ceiling, frozen and "
                                f"{SHRINK}=λ")  # fmt: skip
        if equals and kind != SHRINK:
            raise BadInputError(f"--arms {entry!r}: {kind} takes no value")
        if kind == FROZEN and not process_type(process).freezes:
            raise BadInputError(
                f"--arms {FROZEN}: process = {process} always trains its encoder; a2c and gymnasium need not"
            )
        if kind != RANDOM_ARM:
            extra.append(ExtraArm(kind, _share(entry, number) if kind == SHRINK else 1.0))
            if extra.count(extra[-1]) > 1:
                raise BadInputError(f"--arms {entry!r}: is named twice")
    return extra


def _share(entry: str, number: str) -> float:
    try:
        share = float(number)
    except ValueError:
        share = 0.0
    if not 0 < share < 1:
        raise BadInputError(f"--arms {entry!r}: must be {SHRINK}=λ, with λ above 0 and below 1, e.g. {SHRINK}=0.5")
    return share


def add_arms(given: Sequence[Arm], extra: Sequence[ExtraArm]) -> list[Arm]:
    """Returns the arms to add to ``given``, which has the random arm and one for each initialization."""
    added: list[Arm] = []
    for entry in extra:
        if entry.kind == CEILING:
            source = "the random arm's weights at the end of the same game and seed"
            added.append(Arm(CEILING, source, ""))
            continue
        for arm in given:
            if arm.name == RANDOM_ARM:
                continue
            if entry.kind == FROZEN:
                suffix, source = FROZEN, f"{arm.name}, its encoder not trained"
            else:
                suffix = f"{SHRINK}-{entry.share:g}"
                source = f"{entry.share:g} × {arm.name} + {1 - entry.share:g} × a fresh draw"
            added.append(
                replace(arm, name=f"{arm.name}-{suffix}", source=source, share=entry.share, first={},
                        frozen=entry.kind == FROZEN, trained_on=(), trained_with=(), fresh_heads=())
            )  # fmt: skip
    return added

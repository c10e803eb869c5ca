"""Defines the configuration of a run with ``process: classification``."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from leap_rl.config import Config, PathOrURL, PositiveFloat, PositiveInt, Section, require
from leap_rl.limits import COPIES

GLYPHS = "glyphs"  # the source that needs no file
SOURCE = "alphabets.source"


class AlphabetsConfig(Section):
    source: Annotated[PathOrURL, Field(description="glyphs, or the path of Omniglot: a folder or a zip")] = "glyphs"
    train: Annotated[PositiveInt, Field(description="alphabets to meta-train on")] = 25
    held_out: Annotated[PositiveInt, Field(description="alphabets to evaluate on; what is left is for validation")] = 10
    split: Annotated[int, Field(ge=0, lt=2**63, description="seed of which alphabets these are, and of labels")] = 0
    order: Annotated[
        Literal["held_out_first", "training_first"],
        Field(description="of the shuffled alphabets; training_first: other ones are held out for each train"),
    ] = "held_out_first"
    held_out_drawings: Annotated[
        Literal["first", "last"], Field(description="the five of each character that are held out, by their names")
    ] = "last"
    sampling: Annotated[
        Literal["with_replacement", "permutation"],
        Field(description="of a batch's drawings; permutation: each drawing once before any comes again"),
    ] = "with_replacement"
    drawings: Annotated[
        Literal["smooth", "nearest"],
        Field(
            description="smooth: shrunk and turned by averaging; ink 1, paper and around it 0; nearest: by the nearest "
            "pixel; paper 1, ink and around the paper 0"
        ),
    ] = "smooth"
    per_task: Annotated[
        PositiveInt,
        Field(
            le=1000, description="alphabets a task trains on, their batches shuffled; above 1 needs meta.rule = joint"
        ),
    ] = 1
    checksum: Annotated[
        str | None, Field(pattern="^[0-9a-f]{64}$", description="SHA-256 of all drawings; null: of what is found")
    ] = None


class ClassifierConfig(Section):
    filters: Annotated[PositiveInt, Field(description="of each of the four convolutions")] = 64
    batch_size: Annotated[int, Field(ge=2, description="drawings a gradient step")] = 20
    lr: PositiveFloat = 0.1
    pooling: Annotated[Literal["before_norm", "after_norm"], Field(description="in each block")] = "after_norm"
    norm: Annotated[
        Literal["batch", "running"],
        Field(description="statistics for held-out drawings: their own, or running averages of the task's batches"),
    ] = "batch"


class ClassificationConfig(Config):
    """Holds the configuration of a run with ``process: classification``."""

    carries_out: ClassVar[frozenset[str]] = frozenset({"maml", "paired"})

    process: Literal["classification"]
    alphabets: AlphabetsConfig = AlphabetsConfig()
    classifier: ClassifierConfig = ClassifierConfig()

    @property
    def num_updates(self) -> int:
        """Returns the gradient steps a task: ``task.agent_steps`` on each of its alphabets."""
        return self.task.agent_steps * self.alphabets.per_task

    @property
    def task_steps(self) -> int:
        """Returns the gradient steps of a task."""
        return self.num_updates

    def check(self) -> None:
        """Raises ValueError, one line, where keys do not go together."""
        require(
            self.meta.rule != "joint" or self.meta.parameters == "encoder",
            "meta.parameters = all: meta.rule = joint has heads of each alphabet's own, and shares the encoder",
        )
        require(
            self.alphabets.per_task == 1 or self.meta.rule == "joint",
            f"alphabets.per_task = {self.alphabets.per_task}: only meta.rule = joint has it, not {self.meta.rule}",
        )
        require(self.precision != "bf16", "precision = bf16: process = classification computes in fp32")

    def memory(self) -> tuple[int, str]:
        """Returns the bytes of activations and parameters of a worker, and what decides them."""
        filters, images = self.classifier.filters, self.classifier.batch_size
        parameters = 9 * filters + 3 * 9 * filters**2 + 20 * filters
        activations = 4 * images * (28**2 + filters * (28**2 + 14**2 + 7**2 + 3**2) * 4)
        tasks = self.meta.batch_size  # one of each alphabet's parameters is kept
        keys = f"classifier.filters = {filters}, classifier.batch_size = {images}, meta.batch_size = {tasks}"
        return activations + 4 * parameters * (COPIES + tasks), keys

    def paths(self) -> tuple[str, ...]:
        """Returns the keys that name files of the machine on which the configuration was written."""
        return () if self.alphabets.source == GLYPHS else (SOURCE,)

    def decided_otherwise(self) -> tuple[str, ...]:
        """Returns the source of the drawings, where ``alphabets.checksum`` says which drawings these are."""
        return () if self.alphabets.checksum is None else (SOURCE,)

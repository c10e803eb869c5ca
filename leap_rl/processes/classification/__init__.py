"""Registers the classification of an alphabet's characters: the paper's first experiment (Omniglot, section 4.1)."""

import os
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from leap_rl.extras import require_extra
from leap_rl.measures import Measures
from leap_rl.processes import ProcessType
from leap_rl.processes.classification.config import GLYPHS, SOURCE, ClassificationConfig
from leap_rl.types import LearningProcess, Parts, Task, Tensors


class Classification(ProcessType[ClassificationConfig]):
    """Describes the classification of an alphabet's characters to the registry."""

    config = ClassificationConfig
    measures = Measures(
        task="alphabet",
        tasks="alphabets",
        step="gradient steps",
        frame="drawings",
        score="accuracy",
        score_text="accuracy",
        counts=("correct", "images"),
        digits=3,
        final_text="accuracy on the drawings that the task held out, after its last gradient step",
        paired="batches of drawings, turned and moved alike,",
        means={"loss": ("loss_sum", "agent_steps"), "gradient_norm": ("gradient_norm_sum", "agent_steps")},
        held_out_counts=("held_out_correct", "held_out_images"),
        natural_scale=True,
    )
    field: ClassVar[str] = "image-classification"
    shape_keys: ClassVar[tuple[str, ...]] = ("classifier.filters",)
    path_keys: ClassVar[tuple[str, ...]] = (SOURCE,)
    training_keys: ClassVar[tuple[str, ...]] = ("classifier", "precision")

    def resolve(self, config: ClassificationConfig) -> ClassificationConfig:
        """Replaces the source by an absolute path, and pins the checksum of the drawings. Raises BadInputError where
        there are no such drawings, or too few alphabets."""
        require_extra("vision", f"process = {config.process}")
        from leap_rl.processes.classification.data import checked_family, split

        source = config.alphabets.source
        if source != GLYPHS:  # where workers, and an evaluation from another folder, find it too
            source = os.path.abspath(source)
        alphabets = config.alphabets.model_copy(update={"source": source})
        split(alphabets)
        alphabets = alphabets.model_copy(update={"checksum": checked_family(alphabets).checksum})
        return config.model_copy(update={"precision": "fp32", "alphabets": alphabets})

    def parts(self, config: ClassificationConfig) -> Parts:
        """Returns the alphabets, as ``alphabets.split`` divides them."""
        require_extra("vision", f"process = {config.process}")
        from leap_rl.processes.classification.data import split

        return split(config.alphabets)

    def parse(self, config: ClassificationConfig, text: str) -> list[str]:
        """Returns the alphabet of that name. Raises BadInputError where there is none."""
        require_extra("vision", f"process = {config.process}")
        from leap_rl.processes.classification.data import parse_alphabet

        return [parse_alphabet(config.alphabets, text)]

    def evaluate_on(self, tree: dict[str, Any], names: Sequence[str]) -> None:
        """Has each alphabet of an evaluation be a task."""
        tree["alphabets"]["per_task"] = 1

    def num_training_tasks(self, config: ClassificationConfig) -> int:
        """Returns the number of alphabets to meta-train on, without reading their drawings."""
        return config.alphabets.train

    def facts(self, config: ClassificationConfig) -> Iterator[tuple[str, str]]:
        """Yields what a model card says of the alphabets. Drawings at another machine's path are not read."""
        alphabets = config.alphabets
        if alphabets.source == GLYPHS:
            yield from super().facts(config)
        else:
            yield "meta-trained on", f"{alphabets.train} alphabets of drawings with SHA-256 {alphabets.checksum}"
            yield "held out", f"{alphabets.held_out} alphabets"

    def initial_parameters(self, config: ClassificationConfig, seed: int) -> Tensors:
        """Draws a fresh shared initialization: name → float32 tensor."""
        from leap_rl.processes.classification.network import initial_parameters

        return initial_parameters(config, seed)

    def build(self, config: ClassificationConfig, task: Task) -> LearningProcess:
        """Returns the process on a task, before it is started or given a state."""
        from leap_rl.processes.classification.process import ClassificationProcess

        return ClassificationProcess(config, task)


PROCESS = Classification()

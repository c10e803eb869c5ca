"""Writes the model card of an initialization: what it is, how it was made, and which scores it has reached."""

import re
from collections.abc import Iterator
from typing import Any

import yaml

from leap_rl.config import Config
from leap_rl.files.storage import open_storage
from leap_rl.files.text import as_text
from leap_rl.processes import process_of
from leap_rl.runs.run_files import EVALUATION, fingerprint
from leap_rl.types import Tensors


def model_card(run: str, config: Config, meta_step: int, progress: dict[str, Any], tensors: Tensors) -> str:
    """Returns Markdown with the hub's YAML header. The scores are those of ``RUN-evaluation``, if there is one."""
    process = process_of(config)
    what = "a network" if config.meta.parameters == "all" else "an encoder"
    num_tasks = process.num_training_tasks(config)
    header = {"library_name": "leap-rl", "tags": [process.field, "meta-learning", "leap"]}
    lines = [
        "---", yaml.safe_dump(header).strip(), "---", "",
        f"# Shared initialization of {num_tasks} tasks, meta-learned with {config.meta.rule}", "",
        f"A starting point for training, not a trained agent: the weights of {what} from which new tasks are to be "
        "learned faster. leap_rl made it (Leap: Flennerhag et al., ICLR 2019, arXiv 1812.01054).", "",
        "| | |", "|---|---|",
        *(f"| {name} | {as_text(value)} |" for name, value in _facts(config, meta_step, progress)),
        f"| SHA-256 over names, shapes and bytes | `{fingerprint(tensors)}` |", "",
        "## Tensors", "", "| name | shape |", "|---|---|",
        *(f"| {_code(name)} | {'×'.join(map(str, value.shape))} |" for name, value in sorted(tensors.items())), "",
        "## Scores", "", *_scores(run), "",
        "## Use", "",
        "`model.safetensors` is read by `safetensors.torch.load_file`; `config.json` holds the whole configuration. "
        "`leap-rl export RUN --to torch | sb3 | rllib` writes it for other libraries.",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _facts(config: Config, meta_step: int, progress: dict[str, Any]) -> Iterator[tuple[str, str]]:
    process = process_of(config)
    measures = process.measures
    yield from process.facts(config)
    yield "meta-steps", f"{meta_step} of {config.meta.batch_size} tasks"
    yield "a task", f"{config.task_steps:,} {measures.step} of {config.process}"
    yield "in all", f"{progress['agent_steps']:,} {measures.step}, {progress['frames']:,} {measures.frame}"
    yield "rule", f"{config.meta.rule}, metric {config.meta.metric}, {config.meta.optimizer}, lr {config.meta.lr:g}"


def _code(name: str) -> str:
    """Returns a parameter's name as code, unless it contains characters that would end the code."""
    return as_text(name) if re.search(r"[^\w./:=,-]", name) else f"`{name}`"


def _scores(run: str) -> Iterator[str]:
    from leap_rl.evaluation.analysis import analyse, measures_of
    from leap_rl.evaluation.evaluate import read_description
    from leap_rl.evaluation.results import CURVES, read_curves

    storage = open_storage(f"{run.rstrip('/')}-evaluation")
    if not {EVALUATION, CURVES} <= set(storage.names()):
        yield "None yet: this initialization has not been evaluated (`leap-rl evaluate`)."
        return
    description = read_description(storage)
    analysis = analyse(description, read_curves(storage, measures_of(description)))
    yield (
        f"Final score, {analysis.measures.final_text}; mean over {analysis.num_seeds} seeds with its 95 % interval; "
        "`random` starts from random weights and differs in nothing else."
    )
    digits = analysis.measures.digits
    yield from ("", f"| {analysis.measures.task} | from | final score | 95 % interval |", "|---|---|---|---|")
    for game in analysis.games:
        for arm in analysis.arms:
            final = analysis.results[arm, game].final
            low, value, high = (None if x is None else f"{x:.{digits}f}" for x in (final.low, final.value, final.high))
            names = f"{as_text(game)} | {as_text(arm)}"
            yield f"| {names} | {value} | {'one seed' if low is None else f'{low} to {high}'} |"

"""What an evaluation trains: every arm on every game from every seed, the arms differing in where they start.

A game is whatever the process has as a task: an alphabet, of classification.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from leap_rl.config import FREE_ON_RESUME, Config, MetaConfig, apply_overrides, flatten, parse_config
from leap_rl.processes import initial_parameters, resolve
from leap_rl.rules import without_heads
from leap_rl.run import CONFIG, INITIALIZATION, RunDirectory, fingerprint, read_config, read_initialization
from leap_rl.seeding import Purpose, derive_seed
from leap_rl.storage import LocalStorage, Storage, open_storage
from leap_rl.streaming import RANDOM_ARM
from leap_rl.tasks import held_out_tasks, parse_task, training_tasks
from leap_rl.types import BadInputError, Task, Tensors

SEGMENTS = 50  # points a learning curve has, at least


@dataclass(frozen=True)
class Arm:
    """Where the tasks of one arm start."""

    name: str
    source: str  # as it was given
    fingerprint: str  # of the initialization; empty for the random arm
    meta_steps: int | None = None  # of its meta-training, as the file says
    trained_on: tuple[str, ...] = ()  # games of its meta-training, where they are known
    trained_with: tuple[str, ...] = ()  # "key = value" of what its tasks had otherwise than those of the evaluation
    initialization: Tensors = field(default_factory=dict, compare=False)  # empty for the random arm
    first: Tensors = field(default_factory=dict, compare=False)  # before its meta-training, where that is known

    def describe(self) -> dict[str, Any]:
        """As evaluation.json has it."""
        return {"name": self.name, "source": self.source, "fingerprint": self.fingerprint,
                "meta_steps": self.meta_steps, "trained_on": list(self.trained_on),
                "trained_with": list(self.trained_with)}  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """``config`` is that of every task; ``config.run.dir`` is the evaluation's directory."""

    config: Config
    arms: tuple[Arm, ...]  # the random one first
    games: tuple[str, ...]
    num_seeds: int

    def tasks(self) -> list[Task]:
        """Seed by seed, so that what is done first is a whole evaluation of fewer seeds.

        The seed of a task depends on its game and the number of its seed alone: heads, actions and environments
        draw the same in every arm, and whatever else is evaluated.
        """
        starts = [(game, arm.name) for game in self.games for arm in self.arms]
        return [
            Task(seed, slot, game, derive_seed(0, Purpose.EVALUATION, seed, *game.encode()), arm)
            for seed in range(self.num_seeds)
            for slot, (game, arm) in enumerate(starts)
        ]

    def initializations(self) -> Tensors:
        """Of all arms in one mapping: "arm/parameter" → tensor."""
        return {f"{arm.name}/{name}": value for arm in self.arms for name, value in arm.initialization.items()}

    def describe(self) -> dict[str, Any]:
        """What evaluation.json holds, and what must be the same when an evaluation is continued."""
        arms = [arm.describe() for arm in self.arms]
        return {"format": "leap_rl evaluation", "process": self.config.process, "arms": arms,
                "games": list(self.games), "num_seeds": self.num_seeds}  # fmt: skip


def make_plan(
    sources: Sequence[str],
    overrides: Sequence[str],
    games: Sequence[str] | None,
    num_seeds: int,
    agent_steps: int | None,
    out: str | None,
) -> Plan:
    """``sources``: run directories, or initialization files. The first that has a configuration gives it to all
    tasks. Raises BadInputError, and writes nothing."""
    if num_seeds < 1:
        raise BadInputError(f"--seeds {num_seeds}: must be at least 1")
    for override in overrides:
        key = override.partition("=")[0]
        if (key not in FREE_ON_RESUME and key.partition(".")[0] not in FREE_ON_RESUME) or key.startswith("run."):
            raise BadInputError(
                f"override {override!r}: an evaluation trains as the run did; allowed are keys that say where it "
                f"runs: {', '.join(key for key in FREE_ON_RESUME if not key.startswith('run.'))}"
            )
    read = [
        (without_heads(tensors), meta_steps, theirs)
        for tensors, meta_steps, theirs in (_read(source, overrides) for source in sources)
    ]
    base = next((config for _, _, config in read if config is not None), None)
    if base is None:
        raise BadInputError(
            f"{sources[0]}: has no {CONFIG} beside it, which would say how to train; name its run directory, or "
            "another run as well"
        )
    for source, (_, _, theirs) in zip(sources, read, strict=True):
        if theirs is not None and theirs.process != base.process:
            raise BadInputError(f"{source}: process = {theirs.process}, where that of the others is {base.process}")
    base = resolve(base)
    chosen = _games(games, base)
    config = _evaluation_config(base, chosen, agent_steps, out or f"{_folder(sources[0])}-evaluation")
    needed = initial_parameters(config, 0)
    arms = [Arm(RANDOM_ARM, "drawn from each task's seed", "")]
    for source, (tensors, meta_steps, theirs) in zip(sources, read, strict=True):
        _check_fits(source, tensors, needed, config)
        arm = Arm(_name(source, [arm.name for arm in arms]), source, fingerprint(tensors), meta_steps)
        if theirs is not None:
            first = without_heads(initial_parameters(theirs, derive_seed(theirs.run.seed, Purpose.INITIALIZATION)))
            arm = replace(
                arm, trained_on=tuple(training_tasks(theirs)), trained_with=_otherwise(theirs, config), first=first
            )
        arms.append(replace(arm, initialization=tensors))
    return Plan(config, tuple(arms), tuple(chosen), num_seeds)


def _read(source: str, overrides: Sequence[str]) -> tuple[Tensors, int, Config | None]:
    """An initialization, its meta-steps, and the configuration of its run, if there is one beside it."""
    path = Path(source)
    if path.is_file():
        tensors, metadata = read_initialization(path)
        beside = LocalStorage(str(path.parent))
        known = CONFIG in beside.names()
        return tensors, int(metadata["meta_step"]), _read_config(beside, overrides) if known else None
    if "://" not in source and not path.exists():
        raise BadInputError(f"{source}: does not exist; it must be a run directory or an initialization file")
    storage = open_storage(source)
    if CONFIG not in storage.names():
        raise BadInputError(f"{source}: not a run directory: it has no {CONFIG}")
    config = _read_config(storage, overrides)
    tensors, metadata = RunDirectory(config, storage).published()
    if not tensors:
        raise BadInputError(f"{source}: has no {INITIALIZATION} yet")
    return tensors, int(metadata["meta_step"]), config


def _read_config(storage: Storage, overrides: Sequence[str]) -> Config:
    tree = read_config(storage).model_dump()
    apply_overrides(tree, overrides)
    return parse_config(tree)


def _otherwise(theirs: Config, ours: Config) -> tuple[str, ...]:
    """What the tasks of a run's meta-training had otherwise than those of the evaluation."""
    keys = {"agent", "env", "classifier", "rllib", "precision"}
    wanted = dict(flatten(ours.model_dump(include=keys)))
    return tuple(f"{key} = {value}" for key, value in flatten(theirs.model_dump(include=keys)) if wanted[key] != value)


def _games(games: Sequence[str] | None, base: Config) -> list[str]:
    if games is None:
        held_out = held_out_tasks(base)
        if not held_out:
            raise BadInputError("tasks.held_out of the run is empty; name the games to evaluate with --games")
        return held_out
    chosen = [parse_task(base, game) for game in games]
    for game in chosen:
        if chosen.count(game) > 1:
            raise BadInputError(f"--games: {game} is named {chosen.count(game)} times; each may be named once")
    return chosen


def _evaluation_config(base: Config, games: Sequence[str], agent_steps: int | None, out: str) -> Config:
    """The run's own, but for what belongs to meta-training: the path is measured in the same way for all arms."""
    tree = base.model_dump()
    meta = MetaConfig(steps=1, batch_size=1, lr=1.0, parameters=base.meta.parameters)
    tree["meta"] = meta.model_dump()
    if "tasks" in tree:
        tree["tasks"] = {"games": list(games), "held_out": []}
    tree["run"] |= {"dir": out, "seed": 0}
    tree["task"]["agent_steps"] = base.task.agent_steps if agent_steps is None else agent_steps
    tree["stream"] = {"segment_updates": base.stream.segment_updates, "compression": "none"}
    tree["faults"]["min_tasks"] = 1
    try:
        num_updates = parse_config(tree).num_updates
    except BadInputError as error:
        raise BadInputError(f"{'' if agent_steps is None else f'--agent-steps {agent_steps}: '}{error}") from None
    tree["stream"]["segment_updates"] = min(base.stream.segment_updates, -(-num_updates // SEGMENTS))
    return resolve(parse_config(tree))


def _check_fits(source: str, tensors: Tensors, needed: Tensors, config: Config) -> None:
    for name, value in sorted(needed.items()):
        if name not in tensors or tensors[name].shape != value.shape or tensors[name].dtype != value.dtype:
            found = _shape(tensors[name]) if name in tensors else "not in it"
            env = config.env
            decisive = (
                f"classifier.filters = {config.classifier.filters}"
                if config.process == "classification"
                else f"env.color = {env.color}, env.frame_stack = {env.frame_stack}, "
                f"env.screen_size = {env.screen_size}"
            )
            raise BadInputError(
                f"{source}: {name} is {found}; needed is {_shape(value)}, for the network of meta.parameters = "
                f"{config.meta.parameters}, {decisive}"
            )
        if not torch.isfinite(tensors[name]).all():
            raise BadInputError(f"{source}: {name} holds numbers that are not finite")
    for name in sorted(tensors):
        if name not in needed:
            raise BadInputError(
                f"{source}: {name} is in it; the network of meta.parameters = {config.meta.parameters} has none"
            )


def _shape(value: Any) -> str:
    return f"{str(value.dtype).removeprefix('torch.')} {'×'.join(map(str, value.shape))}"


def _folder(source: str) -> str:
    """The run's, or a file's name without its suffix."""
    if not Path(source).is_file():
        return source.rstrip("/")
    path = Path(source)
    return str(path.parent if path.name == INITIALIZATION else path.with_suffix(""))


def _name(source: str, taken: Sequence[str]) -> str:
    """The folder of a run or the stem of a file; numbered where an arm has that name already."""
    folder = _folder(source)
    plain = folder.rpartition("/")[2] if "://" in folder else Path(folder).resolve().name
    name, number = plain, 1
    while name in taken:
        number += 1
        name = f"{plain}-{number}"
    return name


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What two descriptions of a plan differ in, as "key (… there, … here)"."""
    found = []
    for key in ("games", "num_seeds"):
        if before.get(key) != after[key]:
            found.append(f"{key} ({_shown(before.get(key))} there, {_shown(after[key])} here)")
    pairs = [(arm["name"], arm["fingerprint"][:12]) for arm in before.get("arms", [])]
    wanted = [(arm["name"], arm["fingerprint"][:12]) for arm in after["arms"]]
    if pairs != wanted:
        shown = [", ".join(f"{name} {print_}".strip() for name, print_ in arms) for arms in (pairs, wanted)]
        found.append(f"arms ({shown[0]} there, {shown[1]} here)")
    return found


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)

"""Plans what an evaluation trains: every arm on every game with every seed. The arms differ in where they start.

A "game" here is any task of the process, such as an alphabet of classification.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from leap_rl.config import FREE_ON_RESUME, Config, PathConfig, flatten, is_free
from leap_rl.config_files import parse_config
from leap_rl.evaluation.arms import RANDOM_ARM, Arm, add_arms, parse_arms
from leap_rl.meta.rules import HEADS, without_heads
from leap_rl.pools import expand_all
from leap_rl.processes import PROCESSES, initial_parameters, parse_tasks, process_of, process_type, resolve
from leap_rl.processes.registry import import_named_process
from leap_rl.runs.run_files import CONFIG, fingerprint
from leap_rl.runs.sources import folder_of, read_source
from leap_rl.seeding import Purpose, derive_seed
from leap_rl.types import BadInputError, Start, Task, Tensors

# A learning curve has at most so many points and more than half as many; more where a run's own segments are shorter.
SEGMENTS = 50


@dataclass(frozen=True)
class Plan:
    """Says what an evaluation trains. All tasks have the same ``config``; ``config.run.dir`` is the evaluation's
    directory."""

    config: Config
    arms: tuple[Arm, ...]  # the random one first
    games: tuple[str, ...]
    num_seeds: int
    ignored: tuple[str, ...] = ()  # lines about keys of the runs' files that are not taken over

    def tasks(self) -> list[Task]:
        """Returns all tasks, seed by seed, so that an unfinished evaluation is a whole one with fewer seeds.

        The random streams of a task depend only on its game and its seed's number, so heads, actions and environments
        are the same in every arm, whatever else is evaluated. The ceiling's tasks continue from the random arm's.
        """
        tasks: list[Task] = []
        for number, (row, game) in itertools.product(range(self.num_seeds), enumerate(self.games)):
            seed, slot = derive_seed(0, Purpose.EVALUATION, number, *game.encode()), row * len(self.arms)
            drawn = Start(RANDOM_ARM, share=0.0)
            random = Task(number, slot, game, seed, drawn, zero_shot=True, keeps_weights=True)
            tasks.append(random)
            for arm in self.arms[1:]:
                slot += 1
                start = Start(arm.name, arm.share, after=random if arm.name == self.ceiling else None)
                tasks.append(Task(number, slot, game, seed, start, arm.frozen, zero_shot=True))
        shown = shown_tasks(self.games[0], self.arms[1].name) if len(self.arms) > 1 else ()
        return [replace(task, watched=task in shown) for task in tasks]

    @property
    def ceiling(self) -> str | None:
        """Returns the name of the ceiling's arm, if there is one."""
        return next((arm.name for arm in self.arms[1:] if not arm.initialization), None)

    def initializations(self) -> dict[str, Tensors]:
        """Returns the initializations by their arms' names."""
        return {arm.name: arm.initialization for arm in self.arms if arm.initialization}

    def describe(self) -> dict[str, Any]:
        """Returns the content of evaluation.json, which must be the same when an evaluation is continued."""
        arms = [arm.describe() for arm in self.arms]
        return {"format": "leap_rl evaluation", "process": self.config.process, "arms": arms,
                "games": list(self.games), "num_seeds": self.num_seeds}  # fmt: skip


def shown_tasks(game: str, arm: str) -> tuple[Task, Task]:
    """Returns the tasks of an evaluation that its report shows at play: on its first ``game`` with the first seed, the
    random arm's and that of the first initialization, ``arm``."""
    seed = derive_seed(0, Purpose.EVALUATION, 0, *game.encode())
    random = Task(0, 0, game, seed, Start(RANDOM_ARM, share=0.0), zero_shot=True, keeps_weights=True)
    return random, Task(0, 1, game, seed, Start(arm), zero_shot=True)


def make_plan(
    sources: Sequence[str],
    overrides: Sequence[str],
    games: Sequence[str] | None,
    num_seeds: int,
    agent_steps: int | None,
    out: str | None,
    extra_arms: str | None = None,
) -> Plan:
    """Returns the plan for ``sources``, which are run directories or initialization files. The first that has a
    configuration provides it for all tasks. ``extra_arms`` is the value of ``--arms``. Raises BadInputError. Writes
    nothing."""
    if num_seeds < 1:
        raise BadInputError(f"--seeds {num_seeds}: must be at least 1")
    paths = [key for name in PROCESSES for key in process_type(name).path_keys]
    for override in overrides:
        key = override.partition("=")[0]
        if key in ("meta.parameters", "process", *paths):
            continue  # the encoder alone is evaluated; which code is imported; where this machine has its files
        if not is_free(key) or key.startswith("run."):
            raise BadInputError(
                f"override {override!r}: an evaluation trains as the run did; allowed are keys that say where it "
                f"runs: {', '.join(key for key in (*FREE_ON_RESUME, *paths) if not key.startswith('run.'))}, and "
                "meta.parameters"
            )
    import_named_process(overrides)
    read = [read_source(source) for source in sources]
    here = [found.for_this_machine(overrides) for found in read]
    base = next((config for config, _ in here if config is not None), None)
    if base is None:
        raise BadInputError(
            f"{sources[0]}: there is no {CONFIG} beside it that says how to train; name its run directory, or another "
            "run as well"
        )
    for source, (theirs, _) in zip(sources, here, strict=True):
        if theirs is not None and theirs.process != base.process:
            raise BadInputError(f"{source}: process = {theirs.process}, but the others have process = {base.process}")
    extra = parse_arms(extra_arms, base.process)
    base = resolve(base)
    chosen = _games(games, base)
    config = _evaluation_config(base, chosen, agent_steps, out or f"{folder_of(sources[0])}-evaluation")
    needed = initial_parameters(config, 0)
    part = without_heads if config.meta.parameters == "encoder" else dict
    arms = [Arm(RANDOM_ARM, "drawn from each task's seed", "")]
    for source, found, (theirs, _) in zip(sources, read, here, strict=True):
        tensors = part(found.tensors)
        fresh_heads = _check_fits(source, tensors, needed, config)
        name = _name(source, [arm.name for arm in arms])
        arm = Arm(name, source, fingerprint(tensors), found.meta_step, fresh_heads=fresh_heads)
        if theirs is not None:
            first = part(initial_parameters(theirs, derive_seed(theirs.run.seed, Purpose.INITIALIZATION)))
            arm = replace(
                arm,
                trained_on=tuple(process_of(theirs).parts(theirs).training),
                trained_with=_otherwise(theirs, config),
                first=first,
            )
        arms.append(replace(arm, initialization=tensors))
    for arm in add_arms(arms, extra):
        arms.append(replace(arm, name=_free(arm.name, [other.name for other in arms])))
    return Plan(config, tuple(arms), tuple(chosen), num_seeds, tuple(line for _, line in here if line))


def _otherwise(theirs: Config, ours: Config) -> tuple[str, ...]:
    """Returns the keys of a run's meta-training that differ from those of the evaluation, as "key = value"."""
    keys = set(process_of(ours).training_keys)
    wanted = dict(flatten(ours.model_dump(include=keys)))
    return tuple(f"{key} = {value}" for key, value in flatten(theirs.model_dump(include=keys)) if wanted[key] != value)


def _games(games: Sequence[str] | None, base: Config) -> list[str]:
    if games is None:
        held_out = process_of(base).parts(base).held_out
        if not held_out:
            raise BadInputError("tasks.held_out of the run is empty; name the games to evaluate with --games")
        return held_out
    try:
        return expand_all(games, lambda text: parse_tasks(base, text))
    except BadInputError as error:
        raise BadInputError(f"--games: {error}") from None


def _evaluation_config(base: Config, games: Sequence[str], agent_steps: int | None, out: str) -> Config:
    """Returns the run's configuration on these games. The path is measured in the same way whatever rule and
    schedule were."""
    tree = base.model_dump()
    tree["meta"] |= PathConfig(parameters=base.meta.parameters).model_dump() | {"schedule": "synchronous"}
    process_of(base).evaluate_on(tree, games)
    tree["run"] |= {"dir": out, "seed": 0}
    tree["task"]["agent_steps"] = base.task.agent_steps if agent_steps is None else agent_steps
    tree["stream"] = {"segment_updates": base.stream.segment_updates, "compression": "none"}
    try:
        num_updates = parse_config(tree).num_updates
    except BadInputError as error:
        raise BadInputError(f"{'' if agent_steps is None else f'--agent-steps {agent_steps}: '}{error}") from None
    tree["stream"]["segment_updates"] = min(base.stream.segment_updates, -(-num_updates // SEGMENTS))
    return resolve(parse_config(tree))


def _check_fits(source: str, tensors: Tensors, needed: Tensors, config: Config) -> tuple[str, ...]:
    """Returns the games without heads in the initialization, which get fresh ones.

    Raises BadInputError if the initialization does not fit the network in any other way.
    """
    lacking = tuple(sorted(_owners(needed) - _owners(tensors)))
    for name, value in sorted(needed.items()):
        if _owner(name) in lacking:
            continue
        if name not in tensors or tensors[name].shape != value.shape or tensors[name].dtype != value.dtype:
            found = _shape(tensors[name]) if name in tensors else "missing"
            values = dict(flatten(config.model_dump()))
            decisive = ", ".join(f"{key} = {values[key]}" for key in process_of(config).shape_keys)
            raise BadInputError(
                f"{source}: {name} is {found}; it must be {_shape(value)}, for the network of meta.parameters = "
                f"{config.meta.parameters}, {decisive}"
            )
        if not torch.isfinite(tensors[name]).all():
            raise BadInputError(f"{source}: {name} holds numbers that are not finite")
    for name in sorted(tensors):
        if name not in needed and _owner(name) is None:
            raise BadInputError(
                f"{source}: {name} has no place in the network of meta.parameters = {config.meta.parameters}"
            )
    return lacking


def _owner(name: str) -> str | None:
    """Returns the game or alphabet that a head belongs to: "heads/pong/value.bias" → "pong"; None for other names."""
    return name.removeprefix(HEADS).partition("/")[0] if name.startswith(HEADS) else None


def _owners(tensors: Tensors) -> set[str]:
    return {owner for owner in map(_owner, tensors) if owner is not None}


def _shape(value: Any) -> str:
    return f"{str(value.dtype).removeprefix('torch.')} {'×'.join(map(str, value.shape))}"


def _name(source: str, taken: Sequence[str]) -> str:
    """Returns the arm's name: a run's folder or a file's stem, with a number if another arm has that name already."""
    folder = folder_of(source)
    plain = folder.rpartition("/")[2] if "://" in folder else Path(folder).resolve().name
    plain = plain.encode(errors="replace").decode()  # a path may contain bytes that are not text
    return _free(plain, taken)


def _free(plain: str, taken: Sequence[str]) -> str:
    """Returns the name, with a number if another arm has it already."""
    name, number = plain, 1
    while name in taken:
        number += 1
        name = f"{plain}-{number}"
    return name


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Returns the differences between two descriptions of a plan, as "key (… there, … here)"."""
    found = []
    for key in ("games", "num_seeds"):
        if before[key] != after[key]:
            found.append(f"{key} ({_shown(before[key])} there, {_shown(after[key])} here)")
    pairs = [(arm["name"], arm["fingerprint"][:12]) for arm in before["arms"]]
    wanted = [(arm["name"], arm["fingerprint"][:12]) for arm in after["arms"]]
    if pairs != wanted:
        shown = [", ".join(f"{name} {print_}".strip() for name, print_ in arms) for arms in (pairs, wanted)]
        found.append(f"arms ({shown[0]} there, {shown[1]} here)")
    return found


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)

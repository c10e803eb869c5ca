"""The configuration of a run: frozen, typed, read from YAML with ``key=value`` overrides.

Every problem is one line that names the key, the value and what is allowed.
"""

import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from leap_rl.types import BadInputError
from leap_rl.yaml_files import parse_yaml

PositiveInt = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class RunConfig(_Section):
    dir: Annotated[str, Field(min_length=1, description="the run directory")]
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    keep_checkpoints: PositiveInt = 3


class RayConfig(_Section):
    address: Annotated[str, Field(min_length=1, description="local, auto, host:port or ray://host:port")] = "local"


class WorkersConfig(_Section):
    count: PositiveInt = 2
    per_node: Annotated[PositiveInt | None, Field(description="this many on each node, instead of count in all")] = None
    cpus: Annotated[PositiveInt, Field(description="cores an actor steps its environments on")] = 1
    gpus: NonNegativeFloat = 0.0


class MetaConfig(_Section):
    rule: Annotated[
        Literal["leap", "reptile", "fomaml", "maml", "joint", "none"],
        Field(description="maml: of classification; joint: each task's heads are kept as well; none: no meta-training"),
    ] = "leap"
    steps: PositiveInt
    batch_size: Annotated[PositiveInt, Field(description="tasks a meta-step")]
    lr: PositiveFloat
    lr_decay: Annotated[Literal["constant", "linear"], Field(description="over meta.steps; linear: to 0")] = "constant"
    optimizer: Literal["sgd", "nesterov", "adam"] = "sgd"
    momentum: Annotated[float, Field(ge=0, lt=1, description="of nesterov")] = 0.9
    max_task_norm: Annotated[
        PositiveFloat | None, Field(description="a longer meta-gradient of one task is scaled down to it; null: never")
    ] = None
    metric: Literal["energy", "length"] = "energy"
    use_loss: bool = True
    stabilizer: bool = True
    loss_difference: Annotated[
        Literal["successive", "paired"], Field(description="paired: of the same rollout, before and after its update")
    ] = "successive"
    parameters: Literal["encoder", "all"] = "encoder"
    schedule: Annotated[
        Literal["synchronous", "asynchronous"], Field(description="asynchronous: no worker waits for the slowest game")
    ] = "synchronous"
    max_staleness: Annotated[PositiveInt, Field(description="asynchronous: meta-steps taken while a task runs")] = 1

    @property
    def staleness(self) -> int:
        """Meta-steps that may be taken while a task runs."""
        return self.max_staleness if self.schedule == "asynchronous" else 0


class TasksConfig(_Section):
    games: Annotated[list[str], Field(min_length=1, description="the pool of meta-training")]
    held_out: list[str] = []

    @field_validator("games", "held_out")
    @classmethod
    def _canonical(cls, names: list[str]) -> list[str]:
        from leap_rl.tasks import canonical_name

        try:
            games = [canonical_name(name) for name in names]
        except BadInputError as error:
            raise ValueError(str(error)) from None
        for name in games:
            if games.count(name) > 1:
                raise ValueError(f"{name} is listed {games.count(name)} times; each task may be listed once")
        return games


class TaskConfig(_Section):
    agent_steps: Annotated[
        PositiveInt, Field(description="of a task: actions over all environments; of classification: gradient steps")
    ]


class AgentConfig(_Section):
    num_envs: PositiveInt = 32
    unroll: Annotated[PositiveInt, Field(description="agent steps per environment and update")] = 5
    discount: Fraction = 0.99
    entropy_cost: NonNegativeFloat = 0.01
    value_cost: NonNegativeFloat = 0.5
    reward_clip: Annotated[PositiveFloat | None, Field(description="|reward| at most; null: unclipped")] = 1.0
    optimizer: Literal["rmsprop", "adam"] = "rmsprop"
    lr: PositiveFloat
    rmsprop_decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
    epsilon: PositiveFloat = 1e-5
    max_grad_norm: Annotated[PositiveFloat | None, Field(description="null: no clipping")] = None


class EnvConfig(_Section):
    frame_skip: Annotated[PositiveInt, Field(description="emulator frames per agent step")] = 4
    sticky_actions: Annotated[Fraction, Field(description="chance that a frame repeats the last action")] = 0.25
    noop_max: Annotated[int, Field(ge=0, description="no-ops after a reset: 1 to this many; 0: none")] = 30
    max_episode_frames: PositiveInt = 108_000
    life_loss: Annotated[Literal["ignore", "terminal"], Field(description="terminal: it cuts returns")] = "ignore"
    full_action_space: Annotated[bool, Field(description="all 18 actions in every game")] = False
    color: Literal["grey", "rgb"] = "grey"
    screen_size: Annotated[int, Field(ge=36, le=210, description="pixels a side")] = 84
    frame_stack: PositiveInt = 4
    center: Annotated[
        Literal["none", "background"], Field(description="background: the game's median pixel, in random play, is 0")
    ] = "none"


class AlphabetsConfig(_Section):
    source: Annotated[str, Field(min_length=1, description="glyphs, or the path of Omniglot: a folder or a zip")] = (
        "glyphs"
    )
    train: Annotated[PositiveInt, Field(description="alphabets to meta-train on")] = 25
    held_out: Annotated[PositiveInt, Field(description="alphabets to evaluate on; what is left is for validation")] = 10
    split: Annotated[int, Field(ge=0, lt=2**63, description="seed of which alphabets these are, and of labels")] = 0
    checksum: Annotated[
        str | None, Field(pattern="^[0-9a-f]{64}$", description="SHA-256 of all drawings; null: of what is found")
    ] = None


class ClassifierConfig(_Section):
    filters: Annotated[PositiveInt, Field(description="of each of the four convolutions")] = 64
    batch_size: Annotated[int, Field(ge=2, description="drawings a gradient step")] = 20
    lr: PositiveFloat = 0.1


class RLlibConfig(_Section):
    algorithm: Literal["A2C", "APPO", "DQN", "IMPALA", "PPO"] = "PPO"
    options: Annotated[dict[str, Any], Field(description="of its AlgorithmConfig, by RLlib's names")] = {}


class StreamConfig(_Section):
    segment_updates: Annotated[PositiveInt, Field(description="gradient steps between increments")] = 500
    compression: Annotated[Literal["none", "bf16", "int8"], Field(description="of increments")] = "none"


class FaultsConfig(_Section):
    min_tasks: Annotated[PositiveInt, Field(description="of a meta-batch that must not fail, or the run stops")] = 1
    segment_timeout: Annotated[PositiveFloat, Field(description="seconds without an increment: worker is stuck")] = (
        1800.0
    )


class LogConfig(_Section):
    segments: Annotated[bool, Field(description="also log every segment, not only tasks and meta-steps")] = True


# The sections that only some processes have: where another one runs, they are refused and not written down.
PROCESS_SECTIONS = {
    "a2c": ("tasks", "agent", "env"),
    "classification": ("alphabets", "classifier"),
    "rllib": ("tasks", "agent", "env", "rllib"),
}


class Config(_Section):
    process: Annotated[Literal["a2c", "classification", "rllib"], Field(description="what trains a task")] = "a2c"
    run: RunConfig
    backend: Literal["ray", "serial"] = "ray"
    ray: RayConfig = RayConfig()
    workers: WorkersConfig = WorkersConfig()
    device: Literal["cpu", "cuda"] = "cpu"
    precision: Annotated[
        Literal["auto", "fp32", "bf16"], Field(description="of convolutions; auto: bf16 where the CPU has it")
    ] = "fp32"
    meta: MetaConfig
    tasks: TasksConfig = None  # type: ignore[assignment]  # only where the process has none
    task: TaskConfig
    agent: AgentConfig = None  # type: ignore[assignment]
    env: EnvConfig = EnvConfig()
    alphabets: AlphabetsConfig = AlphabetsConfig()
    classifier: ClassifierConfig = ClassifierConfig()
    rllib: RLlibConfig = RLlibConfig()
    stream: StreamConfig = StreamConfig()
    faults: FaultsConfig = FaultsConfig()
    log: LogConfig = LogConfig()

    @property
    def update_steps(self) -> int:
        """Agent steps a gradient step; of classification, where a step is a gradient step, 1."""
        return 1 if self.process == "classification" else self.agent.num_envs * self.agent.unroll

    @property
    def num_updates(self) -> int:
        """Gradient steps a task, rounded up to whole ones."""
        return -(-self.task.agent_steps // self.update_steps)

    @model_validator(mode="before")
    @classmethod
    def _own_sections(cls, tree: Any) -> Any:
        process = tree.get("process", "a2c") if isinstance(tree, dict) else None
        if not isinstance(process, str) or process not in PROCESS_SECTIONS:
            return tree  # another check says so
        for section in tree:
            owners = [other for other, sections in PROCESS_SECTIONS.items() if section in sections]
            if owners and process not in owners:
                raise ValueError(f"{section}: only process = {' or '.join(owners)} has it, not {process}")
        return tree

    @model_serializer(mode="wrap")
    def _without_foreign_sections(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        own = PROCESS_SECTIONS[self.process]
        foreign = {name for sections in PROCESS_SECTIONS.values() for name in sections if name not in own}
        return {name: value for name, value in write(self).items() if name not in foreign}

    @model_validator(mode="after")
    def _possible(self) -> "Config":
        meta = self.meta
        _require(
            meta.rule != "joint" or meta.parameters == "encoder",
            f"meta.parameters = {meta.parameters}: meta.rule = joint has heads for each task, and shares the encoder",
        )
        if self.process == "classification":
            self._possible_classification()
        else:
            self._possible_a2c()
        if self.process == "rllib":
            self._possible_rllib()
        _require(
            self.faults.min_tasks <= meta.batch_size,
            f"faults.min_tasks = {self.faults.min_tasks}: must be at most meta.batch_size = {meta.batch_size}",
        )
        for name in ("metric", "use_loss", "stabilizer", "loss_difference"):
            value, default = getattr(meta, name), MetaConfig.model_fields[name].default
            _require(
                meta.rule == "leap" or value == default,
                f"meta.{name} = {json.dumps(value).strip(chr(34))}: only meta.rule = leap has it, not {meta.rule}",
            )
        _require(
            meta.use_loss or meta.loss_difference == "successive",
            "meta.loss_difference = paired: needs meta.use_loss = true, since no loss enters the path without it",
        )
        needed = 2 if meta.rule == "leap" and meta.use_loss and meta.loss_difference == "successive" else 1
        update = (
            "" if self.update_steps == 1 else f" of agent.num_envs × agent.unroll = {self.update_steps} agent steps"
        )
        _require(
            self.num_updates >= needed,
            f"task.agent_steps = {self.task.agent_steps}: must be more than {self.update_steps * (needed - 1)}: a path "
            f"needs {needed} gradient steps{update}",
        )
        _require(
            self.workers.gpus == 0 or self.device == "cuda",
            f"workers.gpus = {self.workers.gpus}: needs device = cuda",
        )
        _require(
            not (self.device == "cuda" and self.backend == "ray" and self.workers.gpus == 0),
            "workers.gpus = 0: device = cuda needs a share of a GPU for each worker, e.g. workers.gpus = 0.25",
        )
        return self

    def _possible_a2c(self) -> None:
        meta, tasks, env = self.meta, self.tasks, self.env
        for section in ("tasks", "agent"):
            _require(getattr(self, section) is not None, f"{section}: is missing and has no default")
        _require(
            meta.batch_size <= len(tasks.games),
            f"meta.batch_size = {meta.batch_size}: must be at most {len(tasks.games)}, the length of tasks.games",
        )
        for name in tasks.held_out:
            _require(
                name not in tasks.games, f"tasks.held_out = {name}: is also in tasks.games; a game is one or the other"
            )
        _require(meta.rule != "maml", f"meta.rule = maml: only process = classification has it, not {self.process}")
        _require(
            meta.parameters == "encoder" or env.full_action_space,
            "meta.parameters = all: needs env.full_action_space = true, since heads must have one shape in every game",
        )
        _require(
            env.max_episode_frames > env.noop_max,
            f"env.max_episode_frames = {env.max_episode_frames}: must exceed env.noop_max = {env.noop_max}",
        )
        if self.process == "a2c":
            from leap_rl.tasks import is_gymnasium_id

            for name in [*tasks.games, *tasks.held_out]:
                _require(not is_gymnasium_id(name), f"tasks.games = {name}: only process = rllib has Gymnasium's ids")

    def _possible_rllib(self) -> None:
        meta = self.meta
        _require(meta.rule != "joint", "meta.rule = joint: process = rllib has no common steps of several tasks")
        _require(meta.parameters == "encoder", "meta.parameters = all: process = rllib meta-learns the encoder alone")
        _require(
            meta.loss_difference == "successive",
            "meta.loss_difference = paired: process = rllib has successive alone, since RLlib takes no loss twice",
        )
        _require(self.env.center == "none", "env.center = background: only process = a2c has it, not rllib")
        _require(self.device == "cpu", "device = cuda: process = rllib runs on the CPU")
        for name in ("unroll", "entropy_cost", "value_cost", "optimizer", "rmsprop_decay", "epsilon", "max_grad_norm"):
            value = getattr(self.agent, name)
            _require(
                self.rllib.algorithm == "A2C" or value == AgentConfig.model_fields[name].default,
                f"agent.{name} = {value}: {self.rllib.algorithm} has options of its own for it; give rllib.options",
            )

    def _possible_classification(self) -> None:
        _require(self.precision != "bf16", "precision = bf16: process = classification computes in fp32")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


# Keys that may differ when a run is resumed: they change where and how fast it runs, never its result.
FREE_ON_RESUME = ("run.dir", "run.keep_checkpoints", "backend", "ray", "workers", "faults.segment_timeout", "log")


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, leaf) pairs of nested mappings, in order."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def identity(config: Config) -> dict[str, Any]:
    """The dotted keys and values that decide the result of a run."""
    free = tuple(key + end for key in FREE_ON_RESUME for end in ("", "."))
    return {
        key: value
        for key, value in flatten(config.model_dump())
        if key not in free and not key.startswith(tuple(end for end in free if end.endswith(".")))
    }


def config_hash(config: Config) -> str:
    """SHA-256 of :func:`identity`: equal for runs that must end in the same initialization."""
    return hashlib.sha256(json.dumps(identity(config), sort_keys=True).encode()).hexdigest()


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Reads a YAML file and applies overrides such as ``meta.steps=20``.

    Raises BadInputError, one line, for a file that cannot be read or anything that is not allowed.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise BadInputError(f"config {path}: {reason}") from None
    tree = parse_yaml(text, f"config {path}")
    if not isinstance(tree, dict):
        raise BadInputError(f"config {path}: must be a YAML mapping of sections, not {type(tree).__name__}")
    apply_overrides(tree, overrides)
    return parse_config(tree)


def apply_overrides(tree: dict[str, Any], overrides: Sequence[str]) -> None:
    """Replaces keys of nested mappings, e.g. ``meta.steps=20``. Raises BadInputError, one line."""
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise BadInputError(f"override {override!r}: must be key=value, e.g. meta.steps=20")
        section: Any = tree
        *parents, leaf = key.strip().split(".")
        for parent in parents:
            section = section.setdefault(parent, {})
            if not isinstance(section, dict):
                raise BadInputError(f"override {override!r}: {parent} is not a section")
        section[leaf] = parse_yaml(value, f"override {override!r}")


def parse_config(tree: Mapping[str, Any]) -> Config:
    """Validates nested mappings. Raises BadInputError, one line."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        # Unknown keys first: a key that is missing is often one that is misspelled.
        found = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
        problems = [" ".join(_describe(problem).split()) for problem in found]
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise BadInputError(problems[0] + more) from None


def _describe(problem: Any) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error" and not key:
        return str(message)
    if problem["type"] == "missing":
        return f"{key}: is missing and has no default"
    value = problem["input"]
    shown = json.dumps(value, default=str) if not isinstance(value, str) else value
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, [*Config.model_fields, *all_keys()], n=1, cutoff=0.4)
        return f"{key} = {shown}: unknown key" + (f"; did you mean {near[0]}?" if near else "")
    return f"{key} = {shown}: {message.replace('Input should', 'must').replace('must be a valid', 'must be a')}"


def all_keys() -> list[str]:
    """Every dotted key of the configuration."""
    return [key for key, _ in describe_keys()]


def describe_keys() -> Iterator[tuple[str, str]]:
    """(dotted key, type, default and meaning) of every key, for ``leap-rl train --help``."""

    def walk(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, str]]:
        for name, info in model.model_fields.items():
            kind: Any = info.annotation
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from walk(kind, f"{prefix}{name}.")
                continue
            allowed = " | ".join(map(str, kind.__args__)) if getattr(kind, "__origin__", None) is Literal else ""
            default = "required" if info.is_required() else f"default {json.dumps(info.default)}"
            yield f"{prefix}{name}", "; ".join(filter(None, (allowed, info.description, default)))

    return walk(Config, "")

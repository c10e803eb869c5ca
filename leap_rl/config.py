"""Defines the configuration of a run, frozen and typed: the sections that all learning processes share.

config_files.py reads it from YAML, with ``key=value`` overrides. Every problem is one line that names the key, the
value and what is allowed.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from leap_rl.limits import check_memory, check_path

PositiveInt = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveFloat = Annotated[float, Field(gt=0, le=1e30, allow_inf_nan=False)]  # float32 ends at 3e38
NonNegativeFloat = Annotated[float, Field(ge=0, le=1e30, allow_inf_nan=False)]
Compression = Literal["none", "bf16", "int8"]  # of increments (meta/compression.py)


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


PathOrURL = Annotated[str, Field(min_length=1)]


class RunConfig(Section):
    dir: Annotated[PathOrURL, Field(description="the run directory"), AfterValidator(check_path)]
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    keep_checkpoints: PositiveInt = 3


class RayConfig(Section):
    address: Annotated[str, Field(min_length=1, description="local, auto, host:port or ray://host:port")] = "local"


class WorkersConfig(Section):
    count: Annotated[int, Field(gt=0, le=10_000)] = 2
    per_node: Annotated[
        int | None, Field(gt=0, le=1_000, description="this many on each node, instead of count in all")
    ] = None
    cpus: Annotated[PositiveInt, Field(description="cores an actor steps its environments on")] = 1
    gpus: NonNegativeFloat = 0.0


class PathConfig(Section):
    """Holds the keys of the section ``meta`` that a learning process needs: what it records, and what is shared."""

    rule: Annotated[
        Literal["leap", "reptile", "fomaml", "maml", "joint", "none"],
        Field(description="maml: of classification; joint: each task's heads are kept as well; none: no meta-training"),
    ] = "leap"
    metric: Literal["energy", "length"] = "energy"
    use_loss: bool = True
    stabilizer: bool = True
    loss_difference: Annotated[
        Literal["successive", "paired"],
        Field(description="paired: of the same rollout, before and after its update"),
    ] = "successive"
    parameters: Literal["encoder", "all"] = "encoder"


class MetaConfig(PathConfig):
    """Holds the section ``meta``."""

    steps: PositiveInt
    batch_size: Annotated[PositiveInt, Field(description="tasks a meta-step")]
    lr: PositiveFloat
    lr_decay: Annotated[Literal["constant", "linear"], Field(description="over meta.steps; linear: to 0")] = "constant"
    optimizer: Literal["sgd", "nesterov", "adam"] = "sgd"
    momentum: Annotated[float, Field(ge=0, lt=1, description="of nesterov")] = 0.9
    max_task_norm: Annotated[
        PositiveFloat | None, Field(description="a longer meta-gradient of one task is scaled down to it; null: never")
    ] = None
    normalize_tasks: Annotated[bool, Field(description="each task's meta-gradient has norm 1 in the mean")] = False
    schedule: Annotated[
        Literal["synchronous", "asynchronous", "continual"],
        Field(
            description="asynchronous: no worker waits for the slowest game; continual: a meta-step after each segment "
            "of the tasks under way, which move along"
        ),
    ] = "synchronous"
    max_staleness: Annotated[
        int, Field(gt=0, le=1_000, description="asynchronous: meta-steps taken while a task runs")
    ] = 1

    @property
    def staleness(self) -> int:
        """Returns how many meta-steps may be taken while a task runs."""
        return self.max_staleness if self.schedule == "asynchronous" else 0


class TaskConfig(Section):
    agent_steps: Annotated[
        PositiveInt, Field(description="of a task: actions over all environments; of classification: gradient steps")
    ]


class StreamConfig(Section):
    segment_updates: Annotated[PositiveInt, Field(description="gradient steps between increments")] = 500
    compression: Annotated[Compression, Field(description="of increments")] = "none"


class FaultsConfig(Section):
    min_tasks: Annotated[PositiveInt, Field(description="of a meta-batch that must not fail, or the run stops")] = 1
    quorum: Annotated[
        PositiveInt | None, Field(description="tasks that must succeed before late ones are left out; null: none is")
    ] = None
    grace_seconds: Annotated[
        float, Field(ge=0, le=1e7, allow_inf_nan=False, description="for the others, once the quorum is there")
    ] = 60.0
    segment_timeout: Annotated[
        float, Field(gt=0, le=1e7, allow_inf_nan=False, description="seconds without an increment: worker is stuck")
    ] = 1800.0


class LogConfig(Section):
    segments: Annotated[bool, Field(description="also log every segment, not only tasks and meta-steps")] = True
    wandb: Annotated[
        str | None, Field(min_length=1, description="a project of Weights & Biases that the run is shown in")
    ] = None
    mlflow: Annotated[
        str | None, Field(min_length=1, description="a tracking URI of MLflow, e.g. sqlite:///mlflow.db or http://host")
    ] = None


class Config(Section):
    """Holds what the configurations of all learning processes have in common. Each process adds its own sections and
    checks in a subclass (see ``leap_rl.processes``)."""

    # What a path cannot do alone ("maml", "paired") is refused unless the process does it; "continual" is, unless the
    # process has ``shift``.
    carries_out: ClassVar[frozenset[str]] = frozenset()

    process: str
    run: RunConfig
    backend: Literal["ray", "serial"] = "ray"
    ray: RayConfig = RayConfig()
    workers: WorkersConfig = WorkersConfig()
    device: Literal["cpu", "cuda"] = "cpu"
    precision: Annotated[
        Literal["auto", "fp32", "bf16"], Field(description="of convolutions; auto: bf16 where the CPU has it")
    ] = "fp32"
    meta: MetaConfig
    task: TaskConfig
    stream: StreamConfig = StreamConfig()
    faults: FaultsConfig = FaultsConfig()
    log: LogConfig = LogConfig()

    @property
    def update_steps(self) -> int:
        """Returns the number of agent steps a gradient step."""
        return 1

    @property
    def num_updates(self) -> int:
        """Returns the number of gradient steps a task, rounded up to whole ones."""
        return -(-self.task.agent_steps // self.update_steps)

    @property
    def task_steps(self) -> int:
        """Returns the agent steps of a task, as they are counted."""
        return self.task.agent_steps

    @property
    def num_legs(self) -> int:
        """Segments of a learning process that are tasks of their own, in the continual schedule; 0 in the others."""
        return -(-self.num_updates // self.stream.segment_updates) if self.meta.schedule == "continual" else 0

    @property
    def task_updates(self) -> int:
        """Returns how many gradient steps a task takes between two meta-steps."""
        return self.stream.segment_updates if self.num_legs else self.num_updates

    def check(self) -> None:
        """Raises ValueError, one line, where keys do not go together. Subclasses add checks of their own."""

    def check_training(self) -> None:
        """Raises ValueError, one line, where there are too few tasks to meta-train on."""

    def memory(self) -> tuple[int, str]:
        """Returns how many bytes a worker needs at least, and the keys that decide it, as "key = value, …"."""
        return 0, ""

    def paths(self) -> tuple[str, ...]:
        """Returns the keys that name files of the machine on which the configuration was written."""
        return ()

    def decided_otherwise(self) -> tuple[str, ...]:
        """Returns the keys that decide no bit of the result because another key pins what they stand for."""
        return ()

    def extendable(self) -> tuple[str, ...]:
        """Returns the keys, of lists of names, that may change in a run without changing a bit of what is done."""
        return ()

    @model_validator(mode="after")
    def _possible(self) -> "Config":
        meta = self.meta
        self.check()
        check_memory(*self.memory())
        require(
            self.faults.min_tasks <= meta.batch_size,
            f"faults.min_tasks = {self.faults.min_tasks}: must be at most meta.batch_size = {meta.batch_size}",
        )
        if self.faults.quorum is not None:
            self._check_quorum(self.faults.quorum)
        for name in ("metric", "use_loss", "stabilizer", "loss_difference"):
            value, default = getattr(meta, name), MetaConfig.model_fields[name].default
            require(
                meta.rule == "leap" or value == default,
                f"meta.{name} = {json.dumps(value).strip(chr(34))}: only meta.rule = leap has it, not {meta.rule}",
            )
        require(
            meta.use_loss or meta.loss_difference == "successive",
            f"meta.loss_difference = {meta.loss_difference}: needs meta.use_loss = true, since no loss enters the path "
            "without it",
        )
        missing = f"process = {self.process} does not have it"
        require(meta.rule != "maml" or "maml" in self.carries_out, f"meta.rule = maml: {missing}")
        require(
            meta.loss_difference == "successive" or meta.loss_difference in self.carries_out,
            f"meta.loss_difference = {meta.loss_difference}: {missing}",
        )
        if meta.schedule == "continual":
            self._check_continual()
        needed = 2 if meta.rule == "leap" and meta.use_loss and meta.loss_difference != "paired" else 1
        update = (
            "" if self.update_steps == 1 else f" of agent.num_envs × agent.unroll = {self.update_steps} agent steps"
        )
        require(
            self.num_updates >= needed,
            f"task.agent_steps = {self.task.agent_steps}: must be more than {self.update_steps * (needed - 1)}: a path "
            f"needs {needed} gradient steps{update}",
        )
        require(
            self.workers.gpus == 0 or self.device == "cuda",
            f"workers.gpus = {self.workers.gpus}: needs device = cuda",
        )
        require(
            not (self.device == "cuda" and self.backend == "ray" and self.workers.gpus == 0),
            "workers.gpus = 0: device = cuda needs a share of a GPU for each worker, e.g. workers.gpus = 0.25",
        )
        return self

    def _check_quorum(self, quorum: int) -> None:
        where = f"faults.quorum = {quorum}"
        require(
            self.meta.schedule == "synchronous",
            f"{where}: only meta.schedule = synchronous has it, not {self.meta.schedule}",
        )
        least, most = self.faults.min_tasks, self.meta.batch_size
        require(
            least <= quorum <= most,
            f"{where}: must be from faults.min_tasks = {least} to meta.batch_size = {most}",
        )

    def _check_continual(self) -> None:
        require(
            "continual" in self.carries_out, f"meta.schedule = continual: process = {self.process} does not have it"
        )
        require(
            self.meta.rule in ("leap", "reptile"),
            f"meta.schedule = continual: needs meta.rule = leap or reptile, not {self.meta.rule}",
        )
        require(
            self.num_legs > 1,
            f"meta.schedule = continual: stream.segment_updates = {self.stream.segment_updates} must be less than the "
            f"{self.num_updates} gradient steps of a task",
        )


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


# Keys that may differ when a run is resumed: they change where and how fast it runs, never its result.
FREE_ON_RESUME = ("run.dir", "run.keep_checkpoints", "backend", "ray", "workers", "faults.segment_timeout", "log")


def is_free(key: str) -> bool:
    """Returns whether a dotted key may differ when a run is resumed: whether FREE_ON_RESUME has it, or its section."""
    return key in FREE_ON_RESUME or key.partition(".")[0] in FREE_ON_RESUME


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted key, leaf) pairs of nested mappings, in order."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def identity(config: Config) -> dict[str, Any]:
    """Returns the dotted keys and values that decide the result of a run."""
    otherwise = config.decided_otherwise()
    return {key: value for key, value in flatten(config.model_dump()) if not is_free(key) and key not in otherwise}


def config_hash(config: Config) -> str:
    """Returns the SHA-256 of :func:`identity`: equal for runs that must end in the same initialization."""
    return hashlib.sha256(json.dumps(identity(config), sort_keys=True).encode()).hexdigest()

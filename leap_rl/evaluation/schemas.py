"""Defines the schemas of an evaluation's files: evaluation.json, probes.json and curves.csv."""

from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, ConfigDict, Field, model_validator

from leap_rl.evaluation.arms import RANDOM_ARM
from leap_rl.files.schemas import Count, FileSchema, Finite
from leap_rl.files.text import is_plain


def _path_part(name: str) -> str:
    """Returns a name. Raises ValueError if it could lead out of the folder of event files of which it becomes a
    part."""
    parts = PurePosixPath(name).parts
    if not is_plain(name) or name.startswith("/") or ".." in parts or len(name) > 200:
        raise ValueError("must be a name, not a path")
    return name


Name = Annotated[str, AfterValidator(_path_part)]


class _Arm(FileSchema):
    name: Name
    source: str
    fingerprint: Annotated[str, Field(pattern="^([0-9a-f]{64})?$")]
    meta_steps: Count | None
    trained_on: list[str]
    trained_with: list[str]
    fresh_heads: list[str] = Field(default_factory=list)
    frozen: bool = False


class Description(FileSchema):
    """Describes the content of evaluation.json."""

    model_config = ConfigDict(extra="allow")
    format: Literal["leap_rl evaluation"]
    process: Name = "a2c"  # older descriptions have no process
    arms: Annotated[list[_Arm], Field(min_length=1, max_length=1000)]
    games: Annotated[list[Name], Field(min_length=1, max_length=10_000)]
    num_seeds: Annotated[int, Field(ge=1, le=100_000)]

    @model_validator(mode="after")
    def _once_each(self) -> "Description":
        arms = [arm.name for arm in self.arms]
        if arms[0] != RANDOM_ARM or len(set(arms)) < len(arms) or len(set(self.games)) < len(self.games):
            raise ValueError(f"arms must begin with {RANDOM_ARM}, and each arm and game be listed once")
        return self


class _Cosines(FileSchema):
    games: list[str]
    matrix: list[list[Finite | None]]

    @model_validator(mode="after")
    def _square(self) -> "_Cosines":
        if {len(self.matrix), *map(len, self.matrix)} - {len(self.games)}:
            raise ValueError("matrix must have a row and a column for each game")
        return self


class Probes(FileSchema):
    """Describes the content of probes.json."""

    model_config = ConfigDict(extra="allow")
    cosines: dict[str, _Cosines] = Field(default_factory=dict)
    drift: dict[str, dict[str, Finite]] = Field(default_factory=dict)


def check_curve(columns: dict[str, NDArray[Any]], scores: set[str]) -> None:
    """Raises ValueError if the columns of a task are not a learning curve: if numbers are missing, not finite or
    negative, or if steps decrease. Columns in ``scores`` may have gaps and be negative."""
    for name, values in columns.items():
        missing = np.isnan(values) if name in scores else np.zeros(len(values), bool)
        if not np.isfinite(values[~missing]).all():
            raise ValueError(f"{name} contains something that is not a number")
        if name not in scores and (values < 0).any():
            raise ValueError(f"{name} is negative")
    steps = columns["agent_steps"]
    if steps[-1] <= 0 or (np.diff(steps) < 0).any() or steps[-1] > 2**53:
        raise ValueError("agent_steps must not decrease, nor end at 0")

"""Names of tasks: an environment's id with options, and patterns that stand for many draws of the options.

MinAtar/Breakout-v1                         an id of Gymnasium's
FrozenLake-v1:map_name=8x8                  options are what the environment is made with, by Gymnasium's names
cartpole:gravity=12,length=1.3              one of ours, with other physics (physics.py)
64*cartpole:gravity=5..15,length=0.3..2     64 tasks, each with options drawn between these limits
"""

import math
import re

import numpy as np

from leap_rl.seeding import Purpose, derive_seed
from leap_rl.types import BadInputError

Value = bool | int | float | str
_NAME = re.compile(r"(?:(\d+)\*)?([\w./-]+)(?::(.*))?")
_RANGE = re.compile(r"(.+?)\.\.(.+)")
MOST = 10_000  # tasks of a pattern


def parse_name(text: str) -> tuple[str, dict[str, Value]]:
    """Returns the id and the options of one task. Raises BadInputError for anything else."""
    count, name, options = _split(text)
    if count is not None or any(_RANGE.fullmatch(value) for value in options.values()):
        pattern = text.rpartition("*")[2]
        raise BadInputError(f"{text!r}: stands for many tasks; write how many, e.g. 16*{pattern}")
    return name, {key: _value(text, value) for key, value in options.items()}


def expand(text: str) -> list[str]:
    """Returns the canonical names of the tasks that ``text`` stands for. Raises BadInputError.

    Numbers are drawn with three digits. The draws of a pattern depend on what is behind its star alone: ``8*x`` is the
    first half of ``16*x``.
    """
    count, name, options = _split(text)
    if count is None:
        return [_canonical(*parse_name(text))]
    limits = {key: _limits(text, value) for key, value in options.items() if _RANGE.fullmatch(value)}
    if not 0 < count <= MOST or not limits:
        raise BadInputError(
            f"{text!r}: must be 1 to {MOST:,} tasks, and have an option with limits, e.g. 16*cartpole:length=0.3..2"
        )
    fixed = {key: _value(text, value) for key, value in options.items() if key not in limits}
    pattern = _canonical(name, {**fixed, **{key: f"{low:g}..{high:g}" for key, (low, high) in limits.items()}})
    found: dict[str, None] = {}
    for number in range(100 * count):
        rng = np.random.default_rng(derive_seed(0, Purpose.VARIANT, number, *pattern.encode()))
        drawn = {key: _value(text, f"{rng.uniform(*limits[key]):.3g}") for key in sorted(limits)}
        found[_canonical(name, fixed | drawn)] = None
        if len(found) == count:
            return list(found)
    raise BadInputError(f"{text!r}: its limits are so close that it has only {len(found)} different tasks")


def _split(text: str) -> tuple[int | None, str, dict[str, str]]:
    match = _NAME.fullmatch(text.strip())
    if match is None:
        raise BadInputError(f"{text!r}: must be an environment's id, or ID:option=value,option=value")
    count, name, options = match.groups()
    found: dict[str, str] = {}
    for option in filter(None, (options or "").split(",")):
        key, equals, value = (part.strip() for part in option.partition("="))
        if not equals:
            raise BadInputError(
                f"{text!r}: {option!r} must be option=value; a module that registers environments goes into env.modules"
            )
        if not key.isidentifier() or not value or key in found:
            raise BadInputError(f"{text!r}: {option!r} must be option=value, each option once")
        found[key] = value
    return None if count is None else int(count), name, found


def _limits(text: str, value: str) -> tuple[float, float]:
    match = _RANGE.fullmatch(value)
    assert match is not None
    low, high = (_value(text, limit) for limit in match.groups())
    if isinstance(low, str) or isinstance(high, str) or not low < high:
        raise BadInputError(f"{text!r}: {value!r} must be two numbers, the lower one first")
    return float(low), float(high)


def _value(text: str, value: str) -> Value:
    if value in ("true", "false"):
        return value == "true"
    for kind in (int, float):
        try:
            number = kind(value)
        except ValueError:
            continue
        if not math.isfinite(number):
            raise BadInputError(f"{text!r}: {value!r} must be finite")
        return number
    return value


def _canonical(name: str, options: dict[str, Value]) -> str:
    written = [f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in options.items()]
    return name + (":" + ",".join(sorted(written)) if written else "")

"""Pools of tasks: names and patterns that stand for many, and the parts that a pool is divided into."""

import itertools
from collections.abc import Callable, Sequence
from typing import Annotated, TypeVar

from pydantic import Field

from leap_rl.config import Section, require
from leap_rl.seeding import Purpose, derive_seed
from leap_rl.types import BadInputError, Parts


class SplitConfig(Section):
    """Says how many tasks are moved from the pool of meta-training to other parts."""

    validation: Annotated[int, Field(ge=0, description="variants of each game to move to tasks.validation")] = 0
    held_out: Annotated[int, Field(ge=0, description="to move to tasks.held_out; games with too few keep all")] = 0
    seed: Annotated[int, Field(ge=0, lt=2**63, description="of which these are")] = 0


S = TypeVar("S", bound=Section)


def expand_all(texts: Sequence[str], expand: Callable[[str], list[str]]) -> list[str]:
    """Returns the tasks that the texts stand for under ``expand``, in order and once each.

    Patterns may overlap with each other and with names. Raises BadInputError for a task that is named more than once.
    """
    found: dict[str, None] = {}
    named: list[str] = []
    for text in texts:
        names = expand(text)
        found |= dict.fromkeys(names)
        named += [] if is_collective(text) else names
    for name in named:
        if named.count(name) > 1:
            raise BadInputError(f"{name} is listed {named.count(name)} times; each task may be listed once")
    return list(found)


def expanded(texts: Sequence[str], expand: Callable[[str], list[str]]) -> list[str]:
    """Returns what :func:`expand_all` returns. Raises ValueError instead, as a field of a configuration does."""
    try:
        return expand_all(texts, expand)
    except BadInputError as error:
        raise ValueError(str(error)) from None


def is_collective(text: str) -> bool:
    """Returns whether a text may stand for several tasks: a pattern, or a part of a run's tasks."""
    return "*" in text or text in Parts._fields


def divide(pool: Sequence[str], validation: int, held_out: int, seed: int, key: str = "games") -> Parts:
    """Draws ``validation`` variants of each game for validation, and ``held_out`` variants to be held out.

    A game with no more variants than both numbers together stays in training as a whole. Each game's variants are put
    in a random order, which depends only on the seed and their names; the first of them are held out, and the last are
    for validation. So neither the order of the pool nor the other games in it make a difference, and adding a variant
    of the same game moves at most one other into or out of each part. Raises BadInputError, which names tasks.``key``,
    if a part would be empty.
    """
    games: dict[str, list[str]] = {}
    for name in pool:
        games.setdefault(name.partition(":")[0], []).append(name)
    drawn: dict[str, int] = {}  # name → index of its part in Parts
    for variants in games.values():
        if len(variants) > validation + held_out:
            ordered = sorted(variants, key=lambda name: derive_seed(seed, Purpose.SPLIT, *name.encode()))
            drawn |= dict.fromkeys(ordered[:held_out], 2) | dict.fromkeys(ordered[len(ordered) - validation :], 1)
    if validation + held_out and not drawn:
        most = max(games, key=lambda game: len(games[game]))
        raise BadInputError(
            f"validation = {validation}, held_out = {held_out}: their sum must be less than the number of variants of "
            f"a game in tasks.{key}, or the parts stay empty; {most} has the most, {len(games[most])}"
        )
    return Parts(*([name for name in pool if drawn.get(name, 0) == part] for part in range(3)))


def divided(section: S, pool: str) -> S:
    """Returns the section ``tasks`` of a configuration with its parts listed, and nothing left to be divided: what is
    written down is read back as the same. ``pool`` is its key of what is meta-trained on. Raises ValueError."""
    split: SplitConfig = section.split  # type: ignore[attr-defined]
    if not split.validation + split.held_out:
        return section
    for part in ("validation", "held_out"):
        count = getattr(split, part)
        require(
            not (count and getattr(section, part)),
            f"tasks.split.{part} = {count}: tasks.{part} is given as well; a part is drawn or listed, not both",
        )
    try:
        parts = divide(getattr(section, pool), split.validation, split.held_out, split.seed, pool)
    except BadInputError as error:
        raise ValueError(f"tasks.split: {error}") from None
    given = {part: getattr(parts, part) or getattr(section, part) for part in ("validation", "held_out")}
    return section.model_copy(update={pool: parts.training, "split": SplitConfig(seed=split.seed), **given})


def check_batch(tasks: Section, pool: str, batch_size: int) -> None:
    """Raises ValueError where a meta-batch needs more tasks than there are."""
    number = len(getattr(tasks, pool))
    require(
        batch_size <= number, f"meta.batch_size = {batch_size}: must be at most {number}, the length of tasks.{pool}"
    )


def check_parts(tasks: Section, pool: str, task: str) -> None:
    """Raises ValueError where a task is in two parts."""
    for part, others in (("held_out", (pool, "validation")), ("validation", (pool,))):
        for name, other in itertools.product(getattr(tasks, part), others):
            require(
                name not in getattr(tasks, other),
                f"tasks.{part} = {name}: is also in tasks.{other}; a {task} is one or the other",
            )

"""Formats the numbers and tables of a report as Markdown."""

from collections.abc import Iterator, Sequence

from leap_rl.evaluation.statistics import Estimate
from leap_rl.files.text import as_text


def shown(estimate: Estimate | None, digits: int | None = None) -> str:
    """Returns an estimate as "value [low, high]", or "–" if there is none."""
    if estimate is None:
        return "–"
    numbers = [number for number in estimate if number is not None]
    texts = [number_text(number, numbers) if digits is None else f"{number:.{digits}f}" for number in numbers]
    return texts[0] + (f" [{texts[1]}, {texts[2]}]" if len(texts) == 3 else "")


def number_text(number: float, scale: Sequence[float]) -> str:
    """Returns a number with 0, 1 or 2 decimals; fewer, the larger the largest number of ``scale`` is."""
    largest = max(abs(other) for other in scale)
    return f"{number:,.{0 if largest >= 1000 else 1 if largest >= 10 else 2}f}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> Iterator[str]:
    """Yields the lines of a table whose first ``left`` columns are aligned left."""
    yield "| " + " | ".join(map(as_text, header)) + " |"
    yield "|" + "|".join("---" if index < left else "--:" for index in range(len(header))) + "|"
    yield from ("| " + " | ".join(map(as_text, row)) + " |" for row in rows)
    yield ""

"""Makes untrusted text (names in files, paths, messages) safe to show in a terminal or in Markdown."""

import difflib
import re
from collections.abc import Iterable


def printable(text: str) -> str:
    """Returns ``text`` with Python's escapes in place of characters that a terminal would interpret or not show."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode("ascii") for c in text)


def is_plain(text: str) -> bool:
    """Returns whether a name from a file can be shown: it must be one line of at most 500 printable characters."""
    return 0 < len(text) <= 500 and text.isprintable()


def as_text(name: str) -> str:
    """Returns an untrusted name in a form that Markdown shows literally: on one line, and not read as a table,
    mathematics, a link or HTML."""
    return re.sub(r"([\\`*|$<]|(?<=\])\()", r"\\\1", printable(" ".join(name.split())))


def closest(name: str, known: Iterable[str], cutoff: float = 0.5) -> str:
    """Returns which of the known names somebody may have meant by ``name``, or "". ``cutoff`` is from 0 (anything) to 1
    (only the name itself)."""
    return "".join(difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff))


def one_line(thing: object, limit: int = 300) -> str:
    """Returns the type and message of an error, or the text of anything else, on one line of at most ``limit``
    characters."""
    text = f"{type(thing).__name__}: {thing}" if isinstance(thing, Exception) else str(thing)
    return " ".join(text.split())[:limit]


def duration(seconds: float) -> str:
    """Returns a time as "42 s", "12 min" or "3.4 hours"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} hours"

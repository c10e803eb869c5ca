"""Reads and writes the plain values of YAML 1.2, strictly, and with error messages of one line.

PyYAML only finds the tokens and their nesting; this module decides what they mean. PyYAML's own constructors follow
YAML 1.1, where 010 is 8 and 1:30 is 90, call Python constructors if a tag asks for them, and recurse as deep as a file
nests.
"""

import math
import re
import unicodedata
from typing import Any

import yaml

from leap_rl.types import BadInputError

MAX_LENGTH = 1 << 18  # characters; a configuration has a few thousand
MAX_DEPTH = 32  # nested mappings and lists
MAX_INT = 2**63  # a 64-bit integer is smaller

_CONSTANTS: dict[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
# Numbers follow YAML 1.2's core schema, and may have "_" between digits, as in Python.
_DIGITS = r"[0-9]+(?:_[0-9]+)*"
_INT = re.compile(rf"[-+]?{_DIGITS}|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(rf"[-+]?(?:\.{_DIGITS}|{_DIGITS}(?:\.(?:{_DIGITS})?)?)(?:[eE][-+]?[0-9]+)?")
_SPECIAL = re.compile(r"([-+]?)\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")


class _YamlError(Exception):
    """Reports a problem and its line."""

    def __init__(self, problem: str, event: yaml.Event) -> None:
        super().__init__(problem)
        self.line = event.start_mark.line + 1 if event.start_mark else 0


def parse_yaml(text: str, what: str) -> Any:
    """Returns the content of a YAML text: mappings with text as keys, lists, text, numbers, true, false and null.

    Raises BadInputError, one line that names the text as ``what``, for everything else: text that is not YAML; a second
    document; tags, anchors and aliases; a key that is given twice; numbers that do not fit 64 bits; control characters;
    text that is too long or nested too deep.
    """
    if len(text) > MAX_LENGTH:
        raise BadInputError(f"{what}: has {len(text):,} characters; at most {MAX_LENGTH:,} are read")
    where = ""
    try:
        return _build(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
    except _YamlError as error:
        where, problem = f", line {error.line}", str(error)
    except (ValueError, OverflowError) as error:  # raised by PyYAML for an escape that is not a character
        problem = " ".join(str(error).split())
    raise BadInputError(f"{what}{where}: not YAML: {problem[:300]}") from None


def _build(text: str) -> Any:
    """Builds the value of the only document from the parser's events, in a loop, so that nesting cannot exhaust the
    stack."""
    documents: list[Any] = []
    open_values: list[Any] = [documents]  # the collections around the next value, outermost first
    keys: list[str | None] = [None]  # the key of each that waits for its value
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.DocumentStartEvent) and documents:
            raise _YamlError("a second document begins", event)
        if isinstance(event, yaml.CollectionEndEvent):
            open_values.pop()
            keys.pop()
        if not isinstance(event, yaml.NodeEvent):
            continue
        if isinstance(event, yaml.AliasEvent) or event.anchor:
            raise _YamlError("anchors and aliases (& and *) are not used here", event)
        if event.tag:  # type: ignore[attr-defined]  # all nodes but aliases have one
            raise _YamlError(f"tags (here {_short(event.tag)}) are not used here", event)  # type: ignore[attr-defined]
        parent, key = open_values[-1], keys[-1]
        if isinstance(parent, dict) and key is None:
            keys[-1] = _key(event, parent)
            continue
        value: Any = _scalar(event) if isinstance(event, yaml.ScalarEvent) else _collection(event, len(open_values))
        if isinstance(parent, dict):
            parent[key] = value
            keys[-1] = None
        else:
            parent.append(value)
        if isinstance(value, dict | list):
            open_values.append(value)
            keys.append(None)
    return documents[0] if documents else None


def _collection(event: yaml.Event, depth: int) -> dict[str, Any] | list[Any]:
    if depth > MAX_DEPTH:
        raise _YamlError(f"nests deeper than {MAX_DEPTH} levels", event)
    return {} if isinstance(event, yaml.MappingStartEvent) else []


def _key(event: yaml.Event, mapping: dict[str, Any]) -> str:
    if not isinstance(event, yaml.ScalarEvent):
        raise _YamlError("a key is a collection; it must be text", event)
    key = _scalar(event)
    if not isinstance(key, str):
        raise _YamlError(f"key {_short(event.value)!r} is not text", event)
    if key in mapping:
        raise _YamlError(f"key {_short(key)!r} is given twice", event)
    return key


def _scalar(event: yaml.ScalarEvent) -> Any:
    text: str = event.value
    if event.style is None:  # a plain scalar: neither quoted nor a block
        if text in _CONSTANTS:
            return _CONSTANTS[text]
        if _INT.fullmatch(text):
            return _int(text, event)
        if _FLOAT.fullmatch(text):
            number = float(text)
            if math.isinf(number):
                raise _YamlError(f"{_short(text)} is too large a number", event)
            return number
        if special := _SPECIAL.fullmatch(text):
            return math.nan if text[-1] in "nN" else math.inf * (-1 if special[1] == "-" else 1)
    for character in text:
        if unicodedata.category(character) in ("Cc", "Cs") and character != "\n":
            raise _YamlError(f"control character {character!r} in a text", event)
    return text


def _int(text: str, event: yaml.Event) -> int:
    base = {"0o": 8, "0x": 16}.get(text[:2], 10)
    digits = text if base == 10 else text[2:]
    number = int(digits, base) if len(digits) <= 80 else MAX_INT
    if not -MAX_INT <= number < MAX_INT:
        raise _YamlError(f"{_short(text)} does not fit 64 bits", event)
    return number


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:37]}…"


class _Dumper(yaml.SafeDumper):
    """Quotes text that :func:`parse_yaml` would read as something else, and writes no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _pattern in (_INT, _FLOAT, _SPECIAL):
    _Dumper.add_implicit_resolver("!number", re.compile(f"^(?:{_pattern.pattern})$"), list("-+0123456789."))


def dump_yaml(value: Any) -> str:
    """Returns the text that :func:`parse_yaml` reads as ``value``."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, width=100)

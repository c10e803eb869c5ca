"""Configurations as people write them: YAML files, ``key=value`` overrides, and one line for what is wrong.

``process`` of a configuration says which class it is an instance of (``leap_rl.processes``).
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from leap_rl.config import Config
from leap_rl.files.interface import MAX_TEXT
from leap_rl.files.storage import expand_key, read_file
from leap_rl.files.text import closest
from leap_rl.files.yaml_files import parse_yaml
from leap_rl.processes import PROCESSES, process_type
from leap_rl.types import BadInputError

DEFAULT_PROCESS = "a2c"


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Reads a YAML file and applies overrides such as ``meta.steps=20``.

    Raises BadInputError, one line, for a file that cannot be read or anything that is not allowed.
    """
    try:
        text = read_file(Path(path), MAX_TEXT).decode("utf-8")
    except BadInputError as error:
        raise BadInputError(f"config {error}") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise BadInputError(f"config {path}: {reason}") from None
    tree = parse_yaml(text, f"config {path}")
    if not isinstance(tree, dict):
        raise BadInputError(f"config {path}: must be a YAML mapping of sections, not {type(tree).__name__}")
    apply_overrides(tree, overrides)
    for section, values in tree.items():  # only here and in overrides: a run's own config.yaml has paths as they are
        if isinstance(values, dict):
            values |= {leaf: expand_key(f"{section}.{leaf}", value) for leaf, value in values.items()}
    return parse_training(tree)


def apply_overrides(tree: dict[str, Any], overrides: Sequence[str]) -> None:
    """Replaces keys of nested mappings, e.g. ``meta.steps=20``. Raises BadInputError, one line."""
    for override in overrides:
        key, equals, value = override.partition("=")
        what = f"override {override[:80] + '…' if len(override) > 80 else override!r}"
        if not equals or not key:
            raise BadInputError(f"{what}: must be key=value, e.g. meta.steps=20")
        section: Any = tree
        *parents, leaf = key.strip().split(".")
        for parent in parents:
            section = section.setdefault(parent, {})
            if not isinstance(section, dict):
                raise BadInputError(f"{what}: {parent[:80]} is not a section")
        section[leaf] = expand_key(key.strip(), parse_yaml(value, what))


def as_value(value: Any) -> str:
    """Returns a value as it is written behind ``key=``. Text stands as it is."""
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)


def parse_config(tree: Mapping[str, Any], may_import: bool = True) -> Config:
    """Validates nested mappings. Raises BadInputError, one line. Where the mappings came from elsewhere, they must not
    (``may_import``) name code to import as their process."""
    name = tree.get("process", DEFAULT_PROCESS)
    process = process_type(name if isinstance(name, str) else json.dumps(name, default=str), may_import)
    try:
        parsed: Config = process.config.model_validate({**tree, "process": name})
        return parsed
    except ValidationError as error:
        # Unknown keys first: a key that is missing is often one that is misspelled.
        found = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
        unknown = [problem["loc"] for problem in found if problem["type"] == "extra_forbidden"]
        _check_sections([str(place[0]) for place in unknown if len(place) == 1], name)
        problems = [" ".join(_describe(problem, process.config).split()) for problem in found]
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise BadInputError(problems[0] + more) from None


def parse_training(tree: Mapping[str, Any]) -> Config:
    """Validates nested mappings of a run that is to be trained. Raises BadInputError, one line."""
    config = parse_config(tree)
    try:
        config.check_training()
    except ValueError as error:
        raise BadInputError(str(error)) from None
    return config


def _describe(problem: Any, config: type[Config]) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error" and key in ("", *config.model_fields):  # of a section: names its key itself
        return str(message)
    if problem["type"] == "missing":
        return f"{key}: is missing and has no default"
    value = problem["input"]
    shown = as_value(value)
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    if problem["type"] == "extra_forbidden":
        near = closest(key, [*config.model_fields, *all_keys()], cutoff=0.4)
        return f"{key} = {shown}: unknown key" + (f"; did you mean {near}?" if near else "")
    hint = ""
    if problem["type"] == "int_type" and isinstance(value, float) and value.is_integer():
        hint = f"; write {int(value):_}"
    elif isinstance(value, str) and value.lower() in ("none", "nil") and _may_be_null(key, config):
        hint = "; write null"
    elif isinstance(value, str) and problem["type"] == "list_type":
        hint = f"; write [{'' if value.lower() in ('none', 'nil') else value}]"
    if problem["type"] == "model_type":
        message = "must be a section, a dictionary of keys, or be left out"
    message = message.replace("Input should", "must").replace("a valid integer", "an integer").replace("a valid", "a")
    return f"{key} = {shown}: {message}{hint}"


def _may_be_null(key: str, config: type[Config]) -> bool:
    model: Any = config
    *sections, leaf = key.split(".")
    for section in sections:
        model = model.model_fields[section].annotation if hasattr(model, "model_fields") else None
    fields = getattr(model, "model_fields", {})
    return leaf in fields and type(None) in getattr(fields[leaf].annotation, "__args__", ())


def _check_sections(sections: Sequence[str], process: str) -> None:
    """Raises BadInputError for the first of the sections that only other processes have."""
    for section in sections:
        owners = [name for name in PROCESSES if section in process_type(name).config.model_fields]
        if owners and process not in owners:
            named = " or ".join(filter(None, (", ".join(owners[:-1]), owners[-1])))
            raise BadInputError(f"{section}: only process = {named} has it, not {process}")


def all_keys() -> list[str]:
    """Returns every dotted key that a configuration of any process may have."""
    return [key for key, _ in describe_keys()]


def describe_keys() -> Iterator[tuple[str, str]]:
    """Yields every dotted key, with its type, default and meaning, for ``leap-rl train --keys``."""
    yield "process", f"{' | '.join(PROCESSES)}; what trains a task; default {json.dumps(DEFAULT_PROCESS)}"
    keys = dict(key for name in PROCESSES for key in _walk(process_type(name).config))
    yield from ((key, text) for key, text in keys.items() if key != "process")


def _walk(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, info in model.model_fields.items():
        kind: Any = info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _walk(kind, f"{prefix}{name}.")
            continue
        allowed = " | ".join(map(str, kind.__args__)) if getattr(kind, "__origin__", None) is Literal else ""
        default = "required" if info.is_required() else f"default {json.dumps(info.default)}"
        yield f"{prefix}{name}", "; ".join(filter(None, (allowed, info.description, default)))

"""YAML as this project reads it: strictly, and with errors of one line."""

import re
from typing import Any

import yaml

from leap_rl.types import BadInputError


class _Loader(yaml.SafeLoader):
    """YAML 1.2 floats (1e-4 is a number, not a string); keys are text, and none stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            text = key_node.tag == "tag:yaml.org,2002:str"
            if not text or key_node.value in seen:
                shown = repr(key_node.value) if isinstance(key_node.value, str) else "of several values"
                problem = f"key {shown} {'stands twice' if text else 'is not text'}"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*(\.[\d_]*)?|\.\d[\d_]*)([eE][-+]?\d+)?$|^[-+]?\.inf$|^\.nan$"),
    list("-+0123456789."),
)


def parse_yaml(text: str, what: str) -> Any:
    """The content of a YAML text. Raises BadInputError, one line that says ``what`` it was."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise BadInputError(f"{what}{where}: not YAML: {problem}") from None

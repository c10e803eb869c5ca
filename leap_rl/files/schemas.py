"""Parses JSON files by a schema, and reports whatever does not fit in one line, however hostile the text."""

from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from leap_rl.types import BadInputError

Count = Annotated[int, Field(ge=0, lt=2**53)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Schema = TypeVar("Schema", bound=BaseModel)


class FileSchema(BaseModel):
    """Serves as the base of all schemas. A file may have further keys, which are ignored."""

    model_config = ConfigDict(frozen=True, strict=True)


def parse_json(schema: type[Schema], data: bytes | str, where: object) -> Schema:
    """Returns the parsed text. Raises BadInputError, one line with the file's name ``where`` and the first thing that
    does not fit."""
    try:
        return schema.model_validate_json(data)
    except ValidationError as error:
        raise BadInputError(f"{where}: {_first(error)}") from None


def _first(error: ValidationError) -> str:
    problem, *others = error.errors(include_url=False, include_input=False)
    key = ".".join(str(part) for part in problem["loc"])[:80]
    text = " ".join(f"{key}: {problem['msg']}".split()).removeprefix(": ").replace("Value error, ", "")
    return text[:300] + (f" (and {len(others)} more)" if others else "")

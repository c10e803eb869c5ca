"""Takes initializations from the Hugging Face hub, as ``hub:OWNER/NAME``. (export/push.py puts them there.)

Only model.safetensors and config.json are downloaded, of one commit; both are read as files from elsewhere are
(runs/sources.py). The server, the token and the cache are huggingface_hub's: $HF_ENDPOINT, $HF_TOKEN, $HF_HOME.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from leap_rl.extras import require_extra
from leap_rl.types import BadInputError

PREFIX = "hub:"
TENSORS, CONFIG = "model.safetensors", "config.json"  # names of the files of `leap-rl export --to hub`
_NAME = re.compile(r"hub:(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?", re.ASCII)


def is_name(source: str) -> bool:
    """Returns whether a source is on the hub, and no path."""
    return source.startswith(PREFIX)


def pinned(source: str) -> str:
    """Returns a name on the hub with the commit that it stands for now, ``hub:OWNER/NAME@COMMIT``, and any other source
    as it is. Raises BadInputError if there is no such repository, or the hub does not answer."""
    if not is_name(source):
        return source
    repository, revision = parsed(source)
    with in_one_line(source):
        from huggingface_hub import HfApi

        commit = HfApi().model_info(repository, revision=revision).sha
    return f"{PREFIX}{repository}@{commit}"


def folder(source: str) -> Path:
    """Downloads an initialization, unless the cache has it, and returns its folder. Raises BadInputError."""
    repository, revision = parsed(source)
    with in_one_line(source):
        from huggingface_hub import snapshot_download  # takes both files from one commit

        return Path(snapshot_download(repository, revision=revision, allow_patterns=[TENSORS, CONFIG]))


def parsed(source: str) -> tuple[str, str | None]:
    """Returns repository and revision of a name. Raises BadInputError, also if huggingface_hub is not installed."""
    found = _NAME.fullmatch(source)
    if found is None:
        raise BadInputError(f"{source}: must be {PREFIX}OWNER/NAME, or {PREFIX}OWNER/NAME@REVISION")
    require_extra("hub", source)
    return found["repository"], found["revision"]


@contextmanager
def in_one_line(source: str) -> Iterator[None]:
    """Turns whatever the hub, or the way there, answers with into one line, and shows no bars of progress."""
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    try:
        yield
    except BadInputError:
        raise
    except Exception as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise BadInputError(f"{source}: {reason.strip()[:300]}") from None

"""Puts initializations on the Hugging Face hub (``leap-rl push``)."""

import tempfile
from typing import Any

from leap_rl.export.export import export_run
from leap_rl.hub import PREFIX, in_one_line, parsed


def push(run: str, repository: str, private: bool) -> dict[str, Any]:
    """Pushes what ``leap-rl export RUN --to hub`` writes, and makes the repository if there is none.

    Returns what ``--json`` prints. Raises BadInputError.
    """
    name = f"{PREFIX}{repository}"
    parsed(name)
    with tempfile.TemporaryDirectory() as temporary:
        written = export_run(run, "hub", f"{temporary}/hub")
        with in_one_line(name):
            from huggingface_hub import HfApi

            api = HfApi()
            api.create_repo(repository, private=private, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repository, folder_path=written["out"], commit_message="An initialization of leap_rl"
            )
    return {"repository": repository, "commit": commit.oid, "files": written["files"]}

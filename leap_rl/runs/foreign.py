"""Adapts the configuration of a foreign run to this machine: only what it says about the run itself is taken over.

A run directory may have been downloaded, or lie where other users can write. Its author must not decide which cluster
this process joins, how many processes it starts, or which of this machine's files it reads.
"""

from collections.abc import Sequence

from leap_rl.config import FREE_ON_RESUME, Config, flatten
from leap_rl.config_files import apply_overrides, parse_config
from leap_rl.types import BadInputError


def of_this_machine(config: Config, overrides: Sequence[str], where: str) -> tuple[Config, list[str]]:
    """Returns the configuration for this machine, and the entries of the run's file that are ignored, as "key = value".

    Keys that say where and how to run get this machine's defaults and then the user's overrides. Raises BadInputError,
    which names the file ``where``, if the configuration has a path and the user has not given one.
    """
    theirs, given = config.model_dump(), {override.partition("=")[0].strip() for override in overrides}
    tree = config.model_dump()
    for key in FREE_ON_RESUME:
        section, _, leaf = key.partition(".")
        if key != "run.dir":  # it has no default: it is where the run was found
            (tree[section] if leaf else tree).pop(leaf or section)
    apply_overrides(tree, overrides)  # before it is checked: device = cuda needs backend = serial, or workers.gpus
    adapted = parse_config(tree)
    ours = dict(flatten(adapted.model_dump()))
    ignored = [f"{key} = {value}" for key, value in flatten(theirs) if ours[key] != value and key not in given]
    for key in config.paths():
        if key not in given:
            raise BadInputError(
                f"{where}: {key} = {dict(flatten(theirs))[key]}: names what is on the machine where the run "
                f"was made, and is not read here; name yours with {key}=…"
            )
    return adapted, ignored

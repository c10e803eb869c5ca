"""Makes the folder for Ray's files on this machine (sockets, logs, unpacked jobs), which no other user can enter.

Ray makes its folders writable for everybody (mode 0777), and runs what it finds in them. Anyone who could swap a socket
or an unpacked job there could run code as this user, so Ray's folders are kept inside a private one. Its path is
printed by

    python -m leap_rl.private_folder
"""

import os
import stat
import sys
from pathlib import Path

from leap_rl.types import BadInputError

LONGEST = 36  # bytes of its path: a Unix socket's has at most 107; Ray adds 71 (/ray/session_…/sockets/plasma_store)


def private_folder() -> Path:
    """Returns the folder ``leap_rl-UID`` in ``$RAY_TMPDIR``, ``$TMPDIR`` or /tmp, and makes it if it does not exist.

    Raises BadInputError if it belongs to another user, is open to others, or could be replaced by others.
    """
    name = f"leap_rl-{os.getuid()}"
    base = Path(os.path.realpath(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"))
    folder = base if base.name == name else base / name  # a child process finds the folder itself in RAY_TMPDIR
    if len(os.fsencode(folder)) > LONGEST:
        folder = Path(os.path.realpath("/tmp")) / name
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        problem = _problem(folder)
    except OSError as error:
        problem = error.strerror or str(error)
    if problem:
        raise BadInputError(f"{folder}: {problem}; Ray needs a private folder: mend this one, or set RAY_TMPDIR")
    return folder


def _problem(folder: Path) -> str:
    """Returns why other users could reach into the folder; an empty text if they cannot."""
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        return "is not a folder"
    if found.st_uid != os.getuid():
        return f"belongs to another user (uid {found.st_uid})"
    if stat.S_IMODE(found.st_mode) & 0o077:
        return f"is open to others (mode {stat.S_IMODE(found.st_mode):04o}, must be 0700)"
    for parent in folder.parents:
        above = parent.stat()
        trusted = above.st_uid in (0, os.getuid())
        if not trusted or (above.st_mode & 0o022 and not above.st_mode & stat.S_ISVTX):
            return f"could be replaced by others, who may write in {parent}"
    return ""


if __name__ == "__main__":
    try:
        print(private_folder())
    except BadInputError as problem:
        print(f"error: {problem}", file=sys.stderr)
        sys.exit(2)
